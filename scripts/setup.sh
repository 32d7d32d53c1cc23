#!/usr/bin/env bash
# Make .venv and torchtitan/ ready; does next to nothing when they are.
#
#   scripts/setup.sh [EXTRAS]     EXTRAS of pyproject.toml beside train, separated by commas: dev,gla
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras=${1:-}

supported() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null
}

if ! { supported .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1; }; then
    for python in python3 python3.12 python3.11 none; do
        if supported "$python"; then break; fi
    done
    if [ "$python" = none ]; then
        echo "setup: Python 3.11 or 3.12 is needed; python3 is $(python3 -V 2>&1 || true)," \
            "and no working python3.12 or python3.11 is on the PATH." >&2
        exit 1
    fi
    echo "setup: creating .venv with $("$python" -V)"
    "$python" -m venv --clear .venv
    # The one that Python brings takes twice as long to find out what goes together.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip \
        --constraint constraints.txt
fi

# What was installed, and where from: one file for each set of extras, since they add up.
mkdir -p .venv/installed
wanted="$PWD $(cat pyproject.toml constraints.txt | cksum)"
stamp=.venv/installed/${extras:-base}
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    .venv/bin/python -m pip install --disable-pip-version-check \
        --constraint constraints.txt --editable ".[train${extras:+,$extras}]"
    echo "$wanted" | tee "$stamp" >.venv/installed/base
fi

.venv/bin/python scripts/titan_tree.py build
