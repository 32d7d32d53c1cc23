"""Stands in for the launcher and the trainer in tests of sweeps: a step takes a moment.

    python fake_trainer.py MODE ... --job.config_file FILE

It checkpoints where it stops, as the trainer does: at the last step or after finding STOP. What it
was called with, and its environment, it leaves in the run's folder. MODE is "ok", "slow" (more time
a step), or how each start ends: "same" (the same error, always), "different" (another error each
time), "once" (an error the first time), "refuse" (a refusal), "diverge" (numbers that are not
finite), "early" (no error, and not the last step).
"""

import json
import os
import sys
import time
import tomllib
from pathlib import Path

mode, file = sys.argv[1], Path(sys.argv[-1])
config = tomllib.loads(file.read_text())
folder = Path(config["job"]["dump_folder"])
(folder / "arguments.json").write_text(json.dumps(sys.argv[1:]))
(folder / "environment.json").write_text(json.dumps(dict(os.environ)))
stop = folder / "STOP"
starts = folder / "starts"
starts.touch()
starts.write_text(starts.read_text() + "x")
count = len(starts.read_text())
stop.unlink(missing_ok=True)

if mode == "same" or (mode == "once" and count == 1):
    print(f"[rank0]: ValueError: no luck with 0x7f{count}")
    sys.exit(1)
if mode == "different":
    print("RuntimeError: " + "very " * count + "bad")
    sys.exit(1)
if mode == "refuse":
    print(f"refused: training.steps = {config['training']['steps']}: must be something else")
    sys.exit(2)
if mode == "diverge":
    print("diverged: step 3: the loss is not finite")
    sys.exit(3)
if mode == "early":
    sys.exit(0)

done = sorted(int(p.name[5:]) for p in folder.glob("checkpoint/step-*"))
step = done[-1] if done else 0
while step < config["training"]["steps"] and not stop.exists():
    time.sleep(0.3 if mode == "slow" else 0.01)
    step += 1
    record = {"step": step, "loss": 5 / step, "tokens_per_second": 10.0, "time": time.time()}
    record |= {"tokens_seen": 100 * step, "time_metrics/eta(s)": 1.0}
    with (folder / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps(record) + "\n")
checkpoint = folder / "checkpoint" / f"step-{step}"
checkpoint.mkdir(parents=True, exist_ok=True)
(checkpoint / ".metadata").touch()
