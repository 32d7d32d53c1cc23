"""How a trainer's process ends in a sentence: by mistake, because it is done, or has diverged."""

import functools
import os
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from lighthouse.orphan import watch
from lighthouse.refusal import (
    DIVERGED,
    FILE_VARIABLE,
    Diverged,
    NothingToDo,
    Refusal,
    end_in_a_rank,
    say_last,
)
from lighthouse.runs.owner import let_go


def ends_in_one_sentence(main: Callable[..., None]) -> Callable[..., None]:
    """Decorate torchtitan's ``main``: a refusal is a line and exit code 2, a finished run a line.

    Without a traceback; any other error is raised as it is. In any case the run's folder is free.
    Without its launcher the process ends as well.
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        watch()
        rank = int(os.environ.get("RANK", "0"))
        try:
            try:
                main(*args, **kwargs)
            finally:
                let_go()
        except Refusal as refusal:
            end_in_a_rank(_sentence(refusal), rank)
        except Diverged as diverged:
            end_in_a_rank(str(diverged), rank, DIVERGED)
        except NothingToDo as done:
            if rank == 0:
                say_last(str(done), os.environ.get(FILE_VARIABLE))
            if dist.is_initialized():
                dist.destroy_process_group()

    return wrapped


def _sentence(refusal: Refusal) -> str:
    """What it says; of one from a loader's worker, what stands behind that process's traceback."""
    return str(refusal).strip().splitlines()[-1].removeprefix(f"{Refusal.__module__}.Refusal: ")
