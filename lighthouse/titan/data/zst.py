"""Bytes of a ``.zst`` file, up to where it can be read.

pyarrow throws away what a read had when it comes to damage.
"""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa

_CHUNK = 1 << 16


class _Frames(io.RawIOBase):
    """The frames of a file, one behind the other; at damage read again, byte by byte."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stream = self._opened()
        self._given = 0
        self._most = _CHUNK

    def _opened(self) -> Any:
        return pa.CompressedInputStream(pa.OSFile(str(self._file)), "zstd")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """Raises OSError for damage, without an errno."""
        room = memoryview(buffer)  # of a bytearray a slice would be a copy
        try:
            found = self._stream.readinto(room[: self._most])
        except OSError as error:
            if error.errno is not None or self._most == 1:
                raise
            self._stream.close()
            self._stream, self._most = self._opened(), 1
            for begin in range(0, self._given, _CHUNK):
                self._stream.read(min(_CHUNK, self._given - begin))
            found = self._stream.readinto(room[:1])
        self._given += found
        return int(found)


def open_zst(file: Path) -> io.BufferedReader:
    """Decompressed, to be read once from the start."""
    return io.BufferedReader(_Frames(file), _CHUNK)
