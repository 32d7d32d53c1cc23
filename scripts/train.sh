#!/usr/bin/env bash
# Train on this machine, in a process per GPU; NPROC sets another number. All arguments go to the
# trainer:
#
#   scripts/train.sh --job.config_file train_configs/530M_byte_98k.toml [--KEY VALUE ...]
#
# SIGTERM, SIGUSR1 or a file STOP in the run's folder stop it with a checkpoint; the same command
# then continues.
set -euo pipefail
PATH="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin:$PATH"

nproc=${NPROC:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}

# torchrun passes on few signals and kills workers 30 s later, which is too soon for a long step.
# Given as variables, because an older torchrun would refuse them as options.
export PET_SIGNALS_TO_HANDLE=${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}
export PET_SHUTDOWN_TIMEOUT=${PET_SHUTDOWN_TIMEOUT:-600}

# Long sequences come and go in large pieces; without this the allocator leaves gaps between them.
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}

exec torchrun --standalone --nproc_per_node="$nproc" -m torchtitan.train "$@"
