"""What a wheel is made of: the library, and the built tree where no torchtitan of a user's is."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MANIFEST = ".built.json"


class BuiltTree(BuildHookInterface):
    """Put ``torchtitan/`` into ``lighthouse/_torchtitan/``.

    An editable installation takes both packages from the checkout, where the tree may be built
    later.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatch.

        Raises:
            RuntimeError: the tree is not built.
        """
        if version == "editable":
            return
        tree = Path(self.root) / "torchtitan"
        if not (tree / MANIFEST).is_file():
            raise RuntimeError(
                f"{tree} is not built, and a wheel without it could not train: run "
                "`python scripts/titan_tree.py` first"
            )
        for path in tree.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.name != MANIFEST:
                place = Path("lighthouse", "_torchtitan", "torchtitan", path.relative_to(tree))
                build_data["force_include"][str(path)] = str(place)
