"""The bytes of a file, decompressed as its name says."""

import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from lighthouse.titan.data.text_files import compression_of
from lighthouse.titan.data.xz import open_xz
from lighthouse.titan.data.zst import open_zst

BUFFER = 1 << 20
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowInvalid)
"""What readers of files raise, which say no more than this, and not of which file."""

_DECOMPRESSED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".xz": open_xz,
    ".zst": open_zst,
}


def open_bytes(file: Path) -> IO[bytes]:
    """To be read once from the start, or, of a plain file, from anywhere.

    What can be read comes before an error, one of `DAMAGE`.
    """
    compression = compression_of(file)
    if compression is None:
        return file.open("rb", buffering=BUFFER)
    return _DECOMPRESSED[compression](file)
