"""Prompt files: one prompt per line, UTF-8, of any length. No torch in here."""

from __future__ import annotations

import hashlib
import mmap
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from sidlsg.errors import UsageError


def _clean(line: bytes) -> str:
    """A line without white space at its ends, and without the byte order mark some editors put in front of a file."""
    return line.decode("utf-8").removeprefix("\ufeff").strip()


class PromptFile(Sequence[str]):
    """The non-blank lines of a text file, stripped, read on demand: each takes 16 bytes of memory.

    ``sha256`` is the hash of the whole file.

    Args:
        numbered: keep blank lines in between as "", so that item i is line i. A caption file is read this way, since line i
            belongs to picture i; it must then have line feeds, alone or after carriage returns, as its line ends.

    Raises UsageError when the file is missing or unreadable, holds no prompt, or is not
    UTF-8 (naming the line).
    """

    def __init__(self, path: Path | str, numbered: bool = False) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                self._data: bytes | mmap.mmap = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except FileNotFoundError:
            raise UsageError(f"prompt file {path} does not exist; give a text file with one prompt a line") from None
        except OSError as error:
            raise UsageError(f"prompt file {path} cannot be read: {error.strerror}") from None
        digest = hashlib.sha256()
        spans, place, last = array("q"), 0, 0  # last: length of spans at the last line that is not blank
        for number, line in enumerate(iter(self._read_line, b""), start=1):
            digest.update(line)
            try:
                blank = not _clean(line)
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"prompt file {path}, line {number}: not UTF-8 (byte {error.start + 1} of the line); "
                    "convert it, for instance with: iconv -f latin1 -t utf-8"
                ) from None
            if numbered and b"\r" in line.rstrip(b"\r\n"):
                raise UsageError(
                    f"caption file {path}, line {number}: a carriage return inside the line, so that lines cannot be counted; "
                    "convert its line ends, for instance with: tr '\\r' '\\n'"
                )
            if numbered or not blank:
                spans.extend((place, place + len(line)))
            last = last if blank else len(spans)
            place += len(line)
        del spans[last:]
        if not spans:
            raise UsageError(f"prompt file {path} holds no prompts; give a text file with one prompt a line")
        self._spans = np.frombuffer(spans, dtype=np.int64).reshape(-1, 2)
        self.sha256 = digest.hexdigest()

    def _read_line(self) -> bytes:
        return self._data.readline() if isinstance(self._data, mmap.mmap) else b""

    def __len__(self) -> int:
        return len(self._spans)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start, end = self._spans[index]
        return _clean(self._data[start:end])

    def __repr__(self) -> str:
        return f"{self.path} ({len(self):,} prompts, sha256 {self.sha256[:12]})"
