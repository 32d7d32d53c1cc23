"""What the cost model makes of the cases of ``training.py``, before and after they were run.

python -m benchmarks.training_plan h100 CASE[:STAGE,...] ...      # needs no GPU
"""

import sys
from dataclasses import replace

from benchmarks.training_cases import Case, Run, named, sizes, tokens_per_step
from lighthouse.cost.memory import GIB
from lighthouse.cost.rates import Rates, load_rates
from lighthouse.cost.sizes import flops_per_token
from lighthouse.cost.step import cost

# What a case takes besides its steps, generously: starting; compiling, per stage.
START_SECONDS, COMPILE_SECONDS = 35.0, 15.0


def planned(result: Run, rates: Rates) -> Run:
    """What the plan says of a result, and the share by which what was measured differs from it."""
    model, layout, work = sizes(result)
    expected = cost(model, layout, work, rates)
    speed = tokens_per_step(result) / layout.gpus / expected.step_seconds
    memory = expected.peak_bytes / GIB
    found: Run = {
        "planned": {
            "step_seconds": round(expected.step_seconds, 2),
            "tokens_per_second": round(speed),
            "memory_gib": round(memory, 1),
            "host_gib": round(expected.host_bytes * layout.gpus / GIB, 1),
            "fits": expected.peak_bytes <= rates.memory,
            "seconds_by_part": {k: round(v, 3) for k, v in expected.seconds.items() if v},
        }
    }
    if "tokens_per_second" in result:
        off = {
            "tokens_per_second": result["tokens_per_second"] / speed - 1,
            "memory_gib": result["memory_gib"] / memory - 1,
        }
        found["measured_over_planned_percent"] = {k: round(100 * v, 1) for k, v in off.items()}
        # Half of what all attention counts, whose products under the mask count in mfu_percent.
        full = flops_per_token(model, work)
        weights = flops_per_token(model, replace(work, attention=()))
        flops = (full + weights) / 2
        found["causal_flops_per_token"] = round(flops)
        mfu = result["tokens_per_second"] * flops / rates.peak
        found["causal_mfu_percent"] = round(100 * mfu, 1)
    return found


def expectations(name: str, case: Case, rates: Rates) -> tuple[float, list[str]]:
    """Seconds that a case would take, and a line for each of its stages."""
    seconds, lines = START_SECONDS, []
    for stage, table in zip(case.stages or [None], case.tables() or [None], strict=True):
        result: Run = {"gpus": case.gpus, "flags": case.flags}
        if table is not None:
            result["stage_table"] = table
        plan = planned(result, rates)["planned"]
        steps = table["steps"] if table else case.steps
        seconds += COMPILE_SECONDS + steps * plan["step_seconds"]
        lines.append(
            f"{name}{f':{stage}' if stage else ''}: {steps} steps of {plan['step_seconds']:.2f} s, "
            f"{plan['tokens_per_second']:,} tokens/s of each GPU, {plan['memory_gib']:.1f} GiB, "
            f"which {'fit' if plan['fits'] else 'DO NOT FIT'} in {rates.memory / GIB:.1f}"
            + (f", {plan['host_gib']:.1f} of the host" if plan["host_gib"] else "")
        )
    return seconds, lines


def main(device: str, *words: str) -> None:
    for word in words:
        seconds, lines = expectations(*named(word), load_rates(device))
        print("\n".join([*lines, f"  about {seconds:.0f} s in all"]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
