"""Old checkpoints make way for newer ones; of one that can't, a run says so once and goes on."""

import functools
import logging
import os
import shutil
import time

from lighthouse.runs.folder import stale_checkpoints


def checkpoints_to_delete(folder: str, keep: int) -> list[str]:
    """Paths of those that `keep` newer finished ones have followed.

    One that can't be looked into stays, and counts for nothing: it may be whole or not.
    """
    stale, unreadable = stale_checkpoints(folder, keep)
    for why in unreadable:
        _warn_once(f"{why}; it is not deleted, and training goes on")
    return stale


def delete_checkpoint(path: str) -> None:
    """Delete what can be deleted of a checkpoint; it may be another user's, all or in part."""
    begin = time.monotonic()
    shutil.rmtree(path, ignore_errors=True)
    if not os.path.lexists(path):
        _log().info("Checkpointer deleted %s in %.2f seconds.", path, time.monotonic() - begin)
        return
    try:
        shutil.rmtree(path)  # which says why
    except OSError as error:
        _warn_once(
            f"the old checkpoint {path} can't be deleted ({error.strerror or error}); training "
            "goes on, and it takes room on the disk until whoever owns it deletes it"
        )


# Asked for again behind each checkpoint: what is in the way may be gone by then.
@functools.cache
def _warn_once(sentence: str) -> None:
    _log().warning(sentence)


def _log() -> logging.Logger:
    # Not imported above: torchtitan's checkpoint manager imports this module.
    from torchtitan.tools.logging import logger

    return logger
