"""What somebody else's checkpoint may hold: a value that does something when it is unpickled.

Imported by a training run (``experimental.custom_import``), it is the loader's place in the data of
each checkpoint; ``PAYLOAD`` names the file that unpickling makes.
"""

import os
import pickle
from collections.abc import Callable
from pathlib import Path


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.file,)


if "PAYLOAD" in os.environ:
    from torchtitan.components.dataloader import ParallelAwareDataloader

    ParallelAwareDataloader.state_dict = lambda self: {
        self._rank_id: pickle.dumps(Payload(Path(os.environ["PAYLOAD"]))),
        "world_size": 1,
    }
