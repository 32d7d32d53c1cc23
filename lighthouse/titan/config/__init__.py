"""A job's configuration: its TOML files and flags, the ``[lighthouse]`` section, and stages.

torchtitan's own configuration imports these modules, so none imports torchtitan at the top.
"""
