"""Bytes of an ``.xz`` file, to its end.

Python's ``lzma.open`` takes what is no stream behind one, such as a damaged second, for the end.
"""

import io
import lzma
from pathlib import Path
from typing import IO

_CHUNK = 1 << 16


class _Streams(io.RawIOBase):
    """The streams of a file, one behind the other, with zeros between them."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._source.close()
        super().close()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Raises LZMAError for damage, and EOFError for a file that is cut off."""
        while True:
            data = b""
            if self._decoder.eof:
                data = self._decoder.unused_data.lstrip(b"\0")
                while not data and (read := self._source.read(_CHUNK)):
                    data = read.lstrip(b"\0")
                if not data:
                    return 0
                self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            elif self._decoder.needs_input:
                data = self._source.read(_CHUNK)
                if not data:
                    raise EOFError("it ends inside a stream")
            found = self._decoder.decompress(data, len(buffer))
            buffer[: len(found)] = found
            if found:
                return len(found)


def open_xz(file: Path) -> io.BufferedReader:
    """Decompressed, to be read once from the start."""
    # A small buffer: what of it was read before an error would be lost.
    return io.BufferedReader(_Streams(file.open("rb")))
