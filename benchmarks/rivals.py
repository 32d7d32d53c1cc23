"""One attention layer of ours beside its rivals: time and memory against length, on a GPU.

    python -m benchmarks.rivals [--rows NAME ...] [--lengths N ...] [--gpus G] [--seconds S]
        [--out FILE]

Libraries alone: torch, flash-linear-attention (fla-core, einops) and, if it is installed,
flash-attn-4. Each row is a process, so that what ends one doesn't end the others. First all
compile what they need, side by side; then one after another has a GPU to itself, is checked
against a naive form and measured as in ``benchmarks.attention``. GPUs of one host, which should be
of one kind, take the next row each. A length whose forward + backward
would take more than two seconds, by the growth up to it, is left out. Rows are written as they
come; ``python -m benchmarks.rivals_page`` makes docs/rivals.md of them.
"""

import argparse
import contextlib
import json
import multiprocessing
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.attention import (
    Inputs,
    backward_of,
    extra_memory_gib,
    make_inputs,
    median_ms,
    without_grad,
)
from benchmarks.provenance import gpu
from benchmarks.rivals_methods import HEAD_DIM, LAYOUTS, METHODS, Method

LENGTHS = [2**n for n in range(13, 20)]
TUNED_AT = 32768
LONGEST_MS = 2000.0
BUDGET_MS = 200.0
COMPILE_SECONDS, ROW_SECONDS = 300, 240

Row = dict[str, Any]


def inputs_of(layout: str, seq_len: int) -> Inputs:
    return make_inputs(seq_len, *LAYOUTS[layout], HEAD_DIM, torch.bfloat16)


def once(method: Method, layout: str, seq_len: int, small: bool) -> None:
    """Forward and backward, for what is compiled or tuned by it."""
    inputs = inputs_of(layout, seq_len)
    build = method.small if small and method.small else method.build
    layer = build(*inputs)
    backward_of(layer.call, (*inputs, *layer.gates), torch.randn_like(inputs[0]))()


def timed(call: Callable[[], Any], graph: bool) -> tuple[float, bool]:
    """Milliseconds, and whether they are of a CUDA graph: not if there is no capturing it."""
    if graph:
        try:
            return median_ms(call, True, BUDGET_MS), True
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            print(f"no CUDA graph: {error}", flush=True)
            torch.cuda.synchronize()
    return median_ms(call, False, BUDGET_MS), False


def measure(method: Method, layout: str, seq_len: int) -> Row:
    inputs = inputs_of(layout, seq_len)
    layer = method.build(*inputs)
    inputs = (*inputs, *layer.gates)
    # Its own generator: a capture that failed can leave the default one unusable.
    generator = torch.Generator("cuda").manual_seed(2)
    grad = torch.empty_like(inputs[0]).normal_(generator=generator)
    forward = without_grad(layer.call, *(x.detach() for x in inputs))
    both = backward_of(layer.call, inputs, grad)
    extra = extra_memory_gib(both, inputs)
    forward_ms, graph = timed(forward, method.graph)
    both_ms, graph = timed(both, graph)
    return {"ms": [forward_ms, both_ms], "extra_memory_gib": extra, "graph": graph}


def rows_of(method: Method, layout: str, lengths: list[int]) -> Iterator[Row]:
    """Of one layout: how good the check was, then a row for each length, as far as it goes."""
    if method.tuned:
        once(method, layout, TUNED_AT, small=False)
    yield {"error_over_allowed": method.check(inputs_of(layout, method.checked_at))}
    before: list[float] = []
    for seq_len in lengths:
        torch.cuda.empty_cache()
        expected = before[-1] ** 2 / before[-2] if len(before) > 1 else 0.0
        if expected > LONGEST_MS:
            yield {"seq_len": seq_len, "reason": f"would take about {expected / 1000:.1f} s"}
            return
        try:
            row = measure(method, layout, seq_len)
        except Exception as error:
            yield {"seq_len": seq_len, "reason": say(error)}
            return
        before.append(row["ms"][1])
        yield {"seq_len": seq_len, **row}


def say(error: BaseException) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def work(name: str, lengths: list[int], pipe: Connection) -> None:
    """A row's process: compile, say so, wait for the GPU, send rows, and None behind the last."""
    from benchmarks.tuning import compiling_only

    method = METHODS[name]
    try:
        for layout in method.layouts:
            with compiling_only():
                once(method, layout, method.checked_at, small=True)
            for seq_len in lengths if method.by_length else ():
                with compiling_only(), contextlib.suppress(ValueError):  # for a length too long
                    once(method, layout, seq_len, small=False)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        pipe.send({})
        torch.cuda.set_device(pipe.recv())
        for layout in method.layouts:
            try:
                for row in rows_of(method, layout, lengths):
                    pipe.send({"layout": layout, **row})
            except Exception as error:
                traceback.print_exc()
                pipe.send({"layout": layout, "reason": say(error)})
    except Exception as error:
        traceback.print_exc()
        pipe.send({"reason": say(error)})
    pipe.send(None)


class Worker:
    def __init__(self, name: str, lengths: list[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(name, lengths, theirs))
        self.process.start()
        theirs.close()

    def next(self, until: float) -> Row | None:
        """What the process sends, or why nothing came."""
        if not self.pipe.poll(max(0.0, until - time.monotonic())):
            return {"reason": "was ended: there was no time left for it"}
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            return {"reason": f"its process ended with {self.process.exitcode}"}

    def compiled(self, until: float) -> Row:
        """Nothing, or why it cannot go on; it has been ended then."""
        message = self.next(until) or {}
        if message:
            self.end()
        return message

    def rows(self, until: float, gpu: int) -> Iterator[Row]:
        """All that it has to say once it has compiled and has a GPU."""
        with contextlib.suppress(OSError):  # if it has ended since, the next line says so
            self.pipe.send(gpu)
        while (row := self.next(until)) is not None:
            yield row
            if "reason" in row and "layout" not in row:
                break
        self.end()

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=400.0, help="of all rows together")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rivals.json"))
    options = parser.parse_args()
    begin = time.monotonic()
    rows: dict[str, list[Row]] = {}
    workers = {name: Worker(name, options.lengths) for name in options.rows}
    writing = threading.Lock()

    def report(name: str, row: Row, provenance: Row) -> None:
        with writing:
            rows.setdefault(name, []).append({"method": name, **row})
            print(f"{time.monotonic() - begin:6.1f} s", rows[name][-1], flush=True)
            ordered = [row for name in workers for row in rows.get(name, ())]
            options.out.write_text(json.dumps({**provenance, "rows": ordered}, indent=1) + "\n")

    try:
        until = begin + min(COMPILE_SECONDS, options.seconds)
        failed = {name: worker.compiled(until) for name, worker in workers.items()}
        print(f"compiled after {time.monotonic() - begin:.0f} s", flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        provenance = gpu()
        waiting = deque(workers)

        def take_turns(device: int) -> None:
            while waiting:
                name = waiting.popleft()
                until = min(time.monotonic() + ROW_SECONDS, begin + options.seconds)
                for row in [failed[name]] if failed[name] else workers[name].rows(until, device):
                    report(name, row, provenance)

        with ThreadPoolExecutor(options.gpus) as pool:
            for turn in [pool.submit(take_turns, device) for device in range(options.gpus)]:
                turn.result()
    finally:
        for worker in workers.values():
            worker.end()


if __name__ == "__main__":
    main()
