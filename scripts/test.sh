#!/usr/bin/env bash
# Set up, check, and run the quick tests; with --thorough all of them. Arguments go to pytest:
# scripts/test.sh tests/unit -k pyramid
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# What is imported is compiled then, a small part of what is installed. PIP_NO_COMPILE=1 would compile.
export PIP_COMPILE=0
scripts/setup.sh dev

# Tests run side by side, and some of them in two processes: a thread each is enough.
export OMP_NUM_THREADS=1
# Hundreds of processes import the same modules: they are compiled once.
unset PYTHONDONTWRITEBYTECODE
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/codespell
# A minute on one core, beside the tests, and waited for behind them.
.venv/bin/mypy &
types=$!
# By file, because the tests of a file share the runs that they compare with; and in the order of the
# files, which has the long ones first. One process more than cores: some tests wait for Slurm.
.venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@" ||
    failed=$?
wait "$types"
exit "${failed:-0}"
