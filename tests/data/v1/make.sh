#!/usr/bin/env bash
# Make run/, whole/ and sweep/ beside this file: what code of commit 5dd501d wrote.
#
#   git worktree add --detach ../v1 5dd501d && ../v1/scripts/setup.sh && tests/data/v1/make.sh ../v1
#
# tests/integration/test_compatibility.py continues, reports and collects them with the present
# code, so they are not to be made again by later code. Where it was made does not stand in them.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
code=$(cd "${1:?usage: make.sh CHECKOUT}" && pwd)
made=/tmp/lighthouse-v1  # a sweep writes its whole path down

test "$(git -C "$code" rev-parse --short=7 HEAD)" = 5dd501d
test -z "$(git -C "$code" status --porcelain)"
mkdir "$made"
mkdir -p "$here"/{run,whole,sweep}
cp -r "$here"/{text,held_out,small_model.py,base.toml,run.toml,sweep.toml} "$made"
cd "$made"
export PATH="$code/.venv/bin:$PATH" PYTHONPATH="$made:$code" PYTHONDONTWRITEBYTECODE=1
export CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=1

# One process, as torchrun would start it; $1 is a module to import before the trainer.
train() {
    RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 LOCAL_WORLD_SIZE=1 MASTER_ADDR=localhost MASTER_PORT=0 \
        python -c "import runpy, $1; runpy.run_module('torchtitan.train', None, '__main__', True)" \
        --job.config_file run.toml "${@:2}"
}

train sys --job.dump_folder whole
STOP_IN_STEP="20 0 file" train tests.integration.stop_in_step
python "$code/scripts/sweep.py" submit --local sweep.toml

# What nothing reads again, and weights of runs that are done.
rm -r whole/checkpoint sweep/*@*/{checkpoint,train.log}
for folder in whole run; do
    python -m lighthouse.report "$folder" >report.txt
    mv report.txt "$folder"
    rm "$folder/loss.png"
done
python "$code/scripts/sweep.py" collect sweep.toml

sed -i "s|$code|/lighthouse|g" {run,whole,sweep/*@*}/config.toml
sed -i 's|"host": "[^"]*"|"host": "elsewhere"|' sweep/*@*/attempts.jsonl
# Mostly the zip headers of small tensors.
tar -C run --sort=name --owner=0 --group=0 --numeric-owner -czf run/checkpoint.tar.gz checkpoint
rm -r run/checkpoint "$here"/{run,whole,sweep}
mv run whole sweep "$here"
rm -r "$made"
