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
if [ -e "$run/DONE" ]; then
    echo "quickstart: already done; scripts/quickstart.sh --fresh starts over"
else
    echo "quickstart: training; the full log is $run/train.log"
    # Every tenth step and whatever goes wrong on the screen, everything in the log.
    if ! .venv/bin/torchrun --standalone --nproc_per_node=1 -m torchtitan.train \
        --job.config_file train_configs/quickstart.toml 2>&1 |
        tee -a "$run/train.log" |
        { grep --line-buffered -E 'step: +[0-9]*0 |starts at step|Error:' || true; }; then
        echo "quickstart: training failed; the end of $run/train.log:" >&2
        tail -n 20 "$run/train.log" >&2
        exit 1
    fi
    touch "$run/DONE"
fi
.venv/bin/python -m lighthouse.report "$run"
