#!/usr/bin/env bash
# Train on this machine, in a process per GPU; NPROC sets another number. All arguments go to the
# trainer:
#
#   scripts/train.sh --job.config_file train_configs/530M_byte_98k.toml [--KEY VALUE ...]
#
# Ctrl-C, SIGTERM, SIGUSR1 or a file STOP in the run's folder stop it with a checkpoint; the same command
# then continues.
set -euo pipefail
PATH="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin:$PATH"
exec python -m lighthouse.launch "$@"
