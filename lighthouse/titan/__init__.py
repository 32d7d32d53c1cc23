"""The connection to torchtitan: what ``patches/`` call. Only modules in here import torchtitan.

In a wheel the patched tree is ``lighthouse/_torchtitan``, so that a torchtitan of the user's stays
what it is. It comes first on the path of a process that imports this package.
"""

import sys
from pathlib import Path


def _use_tree(folder: Path) -> None:
    """Let ``import torchtitan`` find the tree in a folder, if it is there.

    Raises:
        ImportError: another one is imported already.
    """
    if not folder.is_dir() or str(folder) in sys.path:
        return
    other = sys.modules.get("torchtitan")
    if other is not None and not (other.__file__ or "").startswith(str(folder)):
        raise ImportError(
            f"torchtitan is imported from {other.__file__}, which lacks the patches of {folder}: "
            "import lighthouse.titan first"
        )
    sys.path.insert(0, str(folder))


_use_tree(Path(__file__).resolve().parents[1] / "_torchtitan")
