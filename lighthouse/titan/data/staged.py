"""One loader for the stages of a run, which read one stream of text at different lengths."""

from collections.abc import Callable, Iterator
from typing import Any

from torch.distributed.checkpoint.stateful import Stateful

from lighthouse.titan.config.stages import Stage
from lighthouse.titan.data.tally import Tally


class StagedLoader(Stateful):
    """The loader of the present stage, and its place in the text.

    A stage begins where the text of the one before it ended: batches that were read ahead are given
    back, since a loader's state is that after the batch it last gave out.

    Args:
        build: makes the loader of a stage.
        first: the stage to be in until another begins.

    Attributes:
        tally: of what was not read as it stands; None where the text is not local.
        moves: whether its places can be gone on from in other text.
    """

    tally: Tally | None = None
    moves = False

    def __init__(self, build: Callable[[Stage], Any], first: Stage) -> None:
        self._build = build
        self._stage = first
        self._loader: Any = None
        self._state: dict[str, Any] | None = None
        self._moved: Any = None

    def go_on_from(self, sources: Any) -> None:
        """The state to be loaded next is of other text; as `PackedTextDataset.go_on_from`."""
        self._moved = sources

    def begin_stage(self, stage: Stage) -> None:
        """Read as this stage does from now on; does nothing if that is the present one."""
        if stage == self._stage:
            return
        if self._loader is not None:
            self._state, self._loader = self._loader.state_dict(), None
        self._stage = stage

    def __iter__(self) -> Iterator[Any]:
        while True:
            loader = self._loader = self._build(self._stage)
            if self._state is not None:
                if self._moved is not None:
                    loader.go_on_from(self._moved)
                    self._moved = None
                loader.load_state_dict(self._state)
                self._state = None
            for batch in loader:
                yield batch
                if self._loader is not loader:
                    break
            else:
                return

    def state_dict(self) -> dict[str, Any]:
        """That of the stage's loader, also before there is one: loading asks for its shape."""
        if self._loader is not None:
            return self._loader.state_dict()
        return self._build(self._stage).state_dict() if self._state is None else self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, with the next iteration."""
        self._state, self._loader = dict(state_dict), None
