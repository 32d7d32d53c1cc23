"""A setting that differs between a checkpoint and the run that is to go on from it."""

from dataclasses import asdict, dataclass
from typing import Any

from lighthouse.toml_types import spelled

NOT_SET = "not set"


@dataclass(frozen=True)
class Change:
    """A setting that is another one than in a checkpoint's record.

    Attributes:
        key: as the user writes it.
        name: that ``checkpoint.accept_changes`` has for it; None where no step that was taken would
            have been another one, and "" where nothing can go on with it.
        note: what the values don't tell.
        back: how to undo it, where that is not by the key.
    """

    key: str
    was: Any
    now: Any
    name: str | None
    note: str = ""
    back: str = ""

    @property
    def needs_a_word(self) -> bool:
        """Whether the run may not just go on."""
        return self.name is not None

    @property
    def way_back(self) -> str:
        """How to undo it."""
        if self.back:
            return self.back
        if _said(self.was) == NOT_SET:
            return f"leave {self.key} out"
        return f"set {self.key} = {spelled(self.was)}"

    def __str__(self) -> str:
        said = f"{self.key} = {_said(self.now)} (was {_said(self.was)})"
        return f"{said}, {self.note}" if self.note else said

    def record(self, step: int | None) -> dict[str, Any]:
        """For the record of checkpoints to come."""
        values = asdict(self)
        del values["back"]
        return {"after_step": step} | values


def _said(value: Any) -> str:
    return NOT_SET if value is None or value == NOT_SET else spelled(value)
