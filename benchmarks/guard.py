"""What it costs to withhold updates that are not finite, across GPUs, in a step of about 100 ms.

    python -m benchmarks.guard OUT.json

One run of the trainer, parameters sharded over two GPUs, in which every other step goes without the
guard. Steps are medians on the device, from one update to the next, in ms; the error of what the
guard adds is that of steps drawn again from the same; ``host_ms`` is the guard's call, which the
device does not wait for while it has work.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.provenance import gpu
from benchmarks.training import arguments, run_to_its_end
from benchmarks.training_cases import cases
from lighthouse.launch import environment

CASE = "16k-sharded"
WARMUP = 20
RESAMPLES = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    case = cases()[CASE]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *f"{sys.executable} -m lighthouse.launch --processes {case.gpus} --".split(),
            *"--metrics.log_freq 20 --experimental.custom_import benchmarks.guard_steps".split(),
            *arguments(case, Path(folder)),
        ]
        error = run_to_its_end(command, environment(dict(os.environ)))
        if error is not None:
            raise SystemExit(error)
        found = json.loads((Path(folder) / "guard.json").read_text())
    steps = {int(step): ms for step, ms in found["step_ms"].items() if int(step) > WARMUP}
    host = [ms for step, ms in found["host_ms"].items() if int(step) > WARMUP]
    guarded, bare = ([ms for step, ms in steps.items() if step % 2 == odd] for odd in (1, 0))
    without = statistics.median(bare)
    draw = random.Random(0)

    def percent(some: Sequence[float], others: Sequence[float]) -> float:
        return 100 * (statistics.median(some) - statistics.median(others)) / without

    drawn = [
        percent(draw.choices(guarded, k=len(guarded)), draw.choices(bare, k=len(bare)))
        for _ in range(RESAMPLES)
    ]
    report = {
        **gpu(),
        "processes": case.gpus,
        "flags": case.flags,
        "steps": len(steps),
        "guarded_ms": round(statistics.median(guarded), 3),
        "bare_ms": round(without, 3),
        "guard_percent": round(percent(guarded, bare), 2),
        "guard_percent_error": round(statistics.stdev(drawn), 2),
        "host_ms": round(statistics.median(host), 3),
    }
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
