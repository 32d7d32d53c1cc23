"""What makes Triton's interpreter quick enough for many small kernels."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpretedFunction


@pytest.fixture(scope="package", autouse=True)
def language_is_replaced_once_a_launch() -> Iterator[None]:
    """The interpreter replaces what a module sees of Triton's language when a kernel is launched.

    It does so again at each call of a function inside the kernel, which takes half of a small
    kernel's time. Of the functions of a module the first call is enough.
    """
    modules: set[str] = set()
    launch = GridExecutor.__call__

    def launch_afresh(kernel: GridExecutor, *args: Any, **kwargs: Any) -> None:
        modules.clear()
        launch(kernel, *args, **kwargs)

    def call(function: InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
        module = function.fn.__module__
        if module not in modules:
            interpreter._patch_lang(function.fn)
            modules.add(module)
        return function.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setattr(GridExecutor, "__call__", launch_afresh)
            patch.setattr(InterpretedFunction, "__call__", call)
        yield


@pytest.fixture(scope="package", autouse=True)
def nothing_is_computed_in_vain() -> Iterator[None]:
    """The interpreter computes whether each sum and product overflows, and looks at none.

    It also makes a table of all types whenever it looks one up.
    """
    options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    look_up = interpreter._get_np_dtype
    known: dict[str, Any] = {}

    def look_up_once(of: Any) -> Any:
        name = of.scalar.name
        if name not in known:
            known[name] = look_up(of.scalar)
        return known[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.interpreter_builder, "options", options)
        patch.setattr(interpreter, "_get_np_dtype", look_up_once)
        yield
