#!/usr/bin/env bash
# Set up, check and test everything. Arguments go to pytest: scripts/test.sh tests/unit -k pyramid
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh dev

# Tests run side by side, and some of them in two processes: a thread each is enough.
export OMP_NUM_THREADS=1
# Hundreds of processes import the same modules: they are compiled once.
unset PYTHONDONTWRITEBYTECODE
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/codespell
# By file, because the tests of a file share the runs that they compare with; and in the order of the
# files, which has the long ones first. One process more than cores: some tests wait for Slurm.
.venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"
