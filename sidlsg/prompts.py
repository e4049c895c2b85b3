"""Prompt and caption files: text with one a line, or a table, UTF-8, of any length. No torch in here."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from array import array
from collections.abc import Callable, Iterable, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import overload

import numpy as np

from sidlsg.errors import SidlsgError, UsageError
from sidlsg.tables import MARK, Delimited, JsonLines, Lines, Row, from_parquet, kind_of

IN_MEMORY = 1 << 26  # bytes: the copy of a larger file is a temporary file


class PromptFile(Sequence[str]):
    """The captions of a file, stripped. Those that are blank are left out.

    The file is copied once, since a run reads its prompts for days and files are edited meanwhile: into memory or, from 64 MiB
    on, into a temporary file without a name. A caption takes 16 bytes of memory beside its copy.

    A text file has one caption a line; lines end with a line feed, alone or after carriage returns. A table (CSV, TSV, JSON
    Lines, Parquet; see ``sidlsg.tables``) has one in each row. A pipe is read once.

    Args:
        numbered: keep blank captions as "", so that item i is line or row i: a caption file is read this way, since it belongs to
            picture i. The file is then refused where lines cannot be counted.
        column: of a table, that holds the captions; None: the only one with a usual name.
        file_column: of a table, that holds the pictures' file names, for a numbered file.

    Attributes:
        column: that was read; None for a text file.
        names: the file names, row by row; None without ``file_column``.
        broken: the line of a CSV file at which the first row with a line break in a field begins; None without one.
        sha256: hash of the file, and for a table also of the names of its columns that were read, each after a NUL byte.

    Raises UsageError when the file is missing or unreadable, holds no caption, is not UTF-8 (naming the line), or is no list of
    captions; SidlsgError when no temporary file can be written.
    """

    def __init__(
        self, path: Path | str, numbered: bool = False, column: str | None = None, file_column: str | None = None
    ) -> None:
        self.path = Path(path)
        self.column: str | None = None
        self.broken: int | None = None
        self.names: list[str] | None = None if file_column is None else []
        where = f"{'caption' if numbered else 'prompt'} file {path}"
        nothing = UsageError(f"{where} holds no prompts; give a text file with one prompt a line")
        data = _open(self.path, where)
        if data is None:
            raise nothing
        digest = hashlib.sha256(data)
        kind = kind_of(data, self.path.suffix, where, column or file_column)
        self._parse: Callable[[bytes], str] = _clean
        if kind == "text":
            spans = _lines(Lines(data, where), numbered)
        else:
            if kind == "parquet":
                data = _temporary(from_parquet(data, column, file_column, where), where)
                if data is None:
                    raise nothing
            lines = Lines(data, where)
            table: Delimited | JsonLines
            if kind in ("csv", "tsv"):
                table = Delimited(lines, column, file_column, tabs=kind == "tsv")
            else:
                table = JsonLines(lines, column, file_column)
            self.column, self._parse = table.column, table.parse
            spans = _rows(lines, table, numbered, self.names)
            self.broken = table.broken
            for name in (self.column, file_column):
                if name is not None:
                    digest.update(b"\0" + name.encode())
        if not spans:
            raise nothing
        self._data = data
        self._spans = np.frombuffer(spans, dtype=np.int64).reshape(-1, 2)
        self.sha256 = digest.hexdigest()

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
        return self._parse(self._data[start:end])

    def __repr__(self) -> str:
        column = "" if self.column is None else f', column "{self.column}"'
        return f"{self.path}{column} ({len(self):,} prompts, sha256 {self.sha256[:12]})"


def _clean(line: bytes) -> str:
    """A line of a text file without white space at its ends, and without a byte order mark in front."""
    return line.decode("utf-8").removeprefix(MARK).strip()


def _lines(lines: Lines, numbered: bool) -> array[int]:
    """Start and end, in bytes, of the lines of a text file; the blank ones too if ``numbered``, except after the last caption."""
    spans, start, last = array("q"), lines.end, 0  # last: length of spans at the last line that is not blank
    for line in lines:
        text = line.rstrip("\r\n")
        # A file without line feeds is one line; elsewhere a carriage return is a blank, unless lines are counted.
        if "\r" in text and (numbered or (lines.number == 1 and not line.endswith("\n"))):
            raise lines.carriage_return()
        text = text.removeprefix(MARK)
        if numbered and MARK in text:
            raise lines.error(
                "a byte order mark inside the line, as where files were put together without a line end between them; correct it"
            )
        blank = not text.strip()
        if numbered or not blank:
            spans.extend((start, lines.end))
        last = last if blank else len(spans)
        start = lines.end
    del spans[last:]
    return spans


def _rows(lines: Lines, table: Iterable[Row | None], numbered: bool, names: list[str] | None) -> array[int]:
    """Start and end, in bytes, of the rows of a table; those without a caption too if ``numbered``. ``names`` is extended."""
    spans, start, gap, captions = array("q"), lines.end, 0, 0
    for row in table:
        if row is None:
            gap = gap or lines.number
        elif gap and numbered:
            raise lines.error("a blank line between rows, so that rows cannot be counted; remove it", gap)
        elif numbered or row.caption:
            spans.extend((start, lines.end))
            captions += bool(row.caption)
            if names is not None:
                names.append(row.file)
        start = lines.end
    return spans if captions else array("q")


def _open(path: Path, where: str) -> mmap | None:
    """A copy of a file, or of what a pipe gives; None when it is empty."""
    if path.is_dir():
        raise UsageError(f"{where} is a folder; give a text file with one prompt a line, or a table")
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise UsageError(f"{where} does not exist; give a text file with one prompt a line") from None
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror}") from None
    with file:
        known = os.fstat(file.fileno())
        if stat.S_ISREG(known.st_mode) and known.st_size <= IN_MEMORY:
            return _in_memory(file.read())
        return _temporary(iter(lambda: file.read(1 << 20), b""), where)


def _in_memory(content: bytes) -> mmap | None:
    """The bytes as a map of no file; None for no bytes."""
    if not content:
        return None
    copy = mmap(-1, len(content))
    copy[:] = content
    return copy


def _temporary(parts: Iterable[bytes], where: str) -> mmap | None:
    """The bytes of all parts, in a temporary file without a name; None when there are none."""
    try:
        with tempfile.TemporaryFile() as file:
            file.writelines(parts)
            file.flush()
            return mmap(file.fileno(), 0, access=ACCESS_READ) if file.tell() else None
    except OSError as error:
        raise SidlsgError(
            f"{where} cannot be copied to a temporary file ({error.strerror}); set TMPDIR to a folder with room"
        ) from None
