"""What a checkpoint records, what may be resumed, and room on the disk.

torchtitan's checkpoint manager imports these modules, so none imports torchtitan at the top.
"""
