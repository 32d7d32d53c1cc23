"""Triton's tuning in two steps, for many processes on one GPU.

The tuner compiles and times one variant of a kernel after another. Here all variants of a kernel
are compiled side by side, in any process at any time, and are timed only once the process has the
GPU to itself.
"""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from triton.runtime.autotuner import Autotuner

THREADS = 8


@contextlib.contextmanager
def compiling_only() -> Iterator[None]:
    """Inside, a kernel's variants are compiled, and its first one is taken untimed.

    Outside again, all is forgotten but what was compiled: the next call times the variants.
    """
    prune = Autotuner.prune_configs
    met: list[Autotuner] = []

    def first_of_compiled(self: Autotuner, kwargs: dict[str, Any]) -> list[Any]:
        met.append(self)
        configs = prune(self, kwargs)
        arguments = list(self.nargs.values())

        def compile_one(config: Any) -> bool:
            try:
                self.fn.run(*arguments, **{**kwargs, **config.all_kwargs(), "warmup": True})
            except Exception:  # such as too much shared memory: the tuner will pass it over, too
                return False
            return True

        with ThreadPoolExecutor(THREADS) as pool:
            compiled = list(pool.map(compile_one, configs))
        usable = [config for config, fine in zip(configs, compiled, strict=True) if fine]
        return (usable or configs)[:1]

    Autotuner.prune_configs = first_of_compiled
    try:
        yield
    finally:
        Autotuner.prune_configs = prune
        for tuner in met:
            tuner.cache.clear()
