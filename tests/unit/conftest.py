"""Settings shared by the unit tests."""

from hypothesis import settings

# The same examples on every run and machine, and no example database in the working tree.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")
