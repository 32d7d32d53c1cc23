#!/usr/bin/env bash
# The whole recipe in minutes, on a GPU if there is one and on the CPU otherwise: a small Llama-3 is
# trained with Lighthouse Attention and finished under dense attention. Run again, it continues.
#
#   scripts/quickstart.sh [--fresh]     --fresh starts over, deleting outputs/quickstart
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
run=outputs/quickstart

case "${1:-}" in
    "") ;;
    --fresh) rm -rf "$run" ;;
    *)
        echo "usage: scripts/quickstart.sh [--fresh]" >&2
        exit 2
        ;;
esac

scripts/setup.sh

mkdir -p "$run"
steps=$(.venv/bin/python -c 'import tomllib
with open("train_configs/quickstart.toml", "rb") as file:
    print(sum(stage["steps"] for stage in tomllib.load(file)["stages"]))')
last=$run/checkpoint/step-$steps/.metadata
if [ -e "$last" ]; then
    echo "quickstart: already done; scripts/quickstart.sh --fresh starts over"
else
    echo "quickstart: training; the full log is $run/train.log"
    code=0
    # Every tenth step, stages and whatever goes wrong on the screen, everything in the log.
    shown='step: +[0-9]*0 |starts at step|Stage [0-9]|Stopped by|Error:|^refused:'
    # Ctrl-C reaches all of them, and is for the trainer alone, which saves a checkpoint and says so.
    trap '' INT
    (trap - INT && exec .venv/bin/python -m lighthouse.launch --processes 1 \
        --job.config_file train_configs/quickstart.toml 2>&1) |
        tee -a "$run/train.log" |
        { grep --line-buffered -E "$shown" || true; } ||
        code=$?
    trap - INT
    # Not by the exit code alone: a run that a file STOP stopped exits with 0 too.
    if [ ! -e "$last" ] && [ "$code" = 2 ]; then
        exit 2 # refused, and the last line says why
    elif [ ! -e "$last" ] && [[ " 0 130 138 143 " != *" $code "* ]]; then # SIGINT, USR1, TERM
        echo "quickstart: training failed; the end of $run/train.log:" >&2
        tail -n 20 "$run/train.log" >&2
        exit 1
    elif [ ! -e "$last" ]; then
        echo "quickstart: stopped before step $steps; the same command continues"
        exit "$code"
    fi
fi
.venv/bin/python -m lighthouse.report "$run"
