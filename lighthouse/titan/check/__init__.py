"""Whether a job can run on a machine: `job` asks all the others, of which each looks at one thing.

torchtitan's own configuration imports these modules, so none imports torchtitan at the top.
"""
