"""A job's configuration: its TOML files, the ``[lighthouse]`` section, stages, and every check.

torchtitan's own configuration imports these modules, so none imports torchtitan at the top.
"""
