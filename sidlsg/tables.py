"""Tables of captions: CSV, TSV, JSON Lines and Parquet; and which kinds of file are no list of captions. No torch in here."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from mmap import mmap
from typing import Any

from sidlsg.errors import UsageError

MARK = "\ufeff"  # the byte order mark that some editors put in front of a file

# What files begin with that are given by mistake, what they are called, and what to do.
FOREIGN = (
    (rb"\x1f\x8b", "a gzip file", "unpack it first, with: gunzip"),
    (rb"PK\x03\x04", "a zip archive (as Excel workbooks and .pt files are)", "unpack it, or save the sheet as CSV"),
    (rb"\xfd7zXZ|\x28\xb5\x2f\xfd|BZh[1-9]1AY|7z\xbc\xaf", "a compressed file", "unpack it first"),
    (rb".{257}ustar", "a tar archive", "unpack it first"),
    (rb"\xff\xfe|\xfe\xff|\0\0\xfe\xff", "UTF-16 or UTF-32", "save it as UTF-8, with: iconv -f UTF-16 -t UTF-8"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF.{4}WEBP|II\*\0|MM\0\*", "a picture", "give a text file with one prompt a line"),
    (rb".{4}\0{4}\{", "a safetensors file", "give a text file with one prompt a line"),
    (rb"\x80[\x02-\x05]", "a pickle file", "give a text file with one prompt a line"),
    (rb"ARROW1\0\0", "an Arrow file", "save it as Parquet"),
    (rb"%PDF-", "a PDF file", "give a text file with one prompt a line"),
    (rb"(?i)\s*<(!doctype\s+html|html[\s>])", "an HTML page", "fetch the file itself, not the page that shows it"),
    (rb"version https://git-lfs", "a Git LFS pointer", "fetch the file that it stands for, with: git lfs pull"),
    (rb'\s*\[\s*"', "a JSON array", "write one prompt a line, with: jq -r '.[]'"),
    (rb"\s*\[\s*\{", "a JSON array", "write one object a line (JSON Lines), with: jq -c '.[]'"),
)
PLAUSIBLE = re.compile(r"(caption|text|prompt)s?", re.IGNORECASE)
DELIMITERS = ",\t;|"
HEADER = re.compile(r'("?[\w.-]*"?)([,\t;|]"?[\w.-]+"?)+')


def kind_of(data: mmap, suffix: str, where: str, column: str | None) -> str:
    """What a file holds: "text" (one caption a line), "csv", "tsv", "jsonl" or "parquet".

    A table is known by its suffix or its content, or because a ``column`` of it is asked for.

    Raises UsageError, naming ``where``, for what is no list of captions.
    """
    head, suffix = data[: 1 << 16].removeprefix(MARK.encode()), suffix.lower()
    if head.startswith(b"PAR1"):
        return "parquet"
    for pattern, name, remedy in FOREIGN:
        if re.match(pattern, head, re.DOTALL):
            raise UsageError(f"{where} is {name} (it begins with {head[:8]!r}); {remedy}")
    if suffix in (".parquet", ".pq"):
        raise UsageError(f"{where} is not a Parquet file (it begins with {head[:8]!r}); fetch or write it again")
    first = _first_line(data)
    if first.lstrip().startswith(b"{") and _object(first):
        return "jsonl"
    if suffix in (".jsonl", ".ndjson", ".json") or first.strip() == b"{":
        raise UsageError(
            f"{where} is not JSON Lines: its first line is no JSON object of its own; write one object a line"
        )
    if suffix in (".tsv", ".tab"):
        return "tsv"
    return "csv" if suffix == ".csv" or column is not None or _has_header(head) else "text"


def _first_line(data: mmap) -> bytes:
    """The first line that is not blank, without a byte order mark; empty when there is none."""
    data.seek(0)
    lines = (line.removeprefix(MARK.encode()) for line in iter(data.readline, b""))
    return next((line for line in lines if line.strip()), b"")


def _object(line: str | bytes) -> dict[str, Any] | None:
    """A JSON object; None for anything else."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _has_header(head: bytes) -> bool:
    """Whether the first line names columns, one of them a usual one for captions, and the next rows have as many fields."""
    header, *lines = head.decode("utf-8", errors="replace").split("\n")
    if not HEADER.fullmatch(header.rstrip("\r")):
        return False
    try:
        names, *rows = islice(csv.reader((line + "\n" for line in (header, *lines)), delimiter=_delimiter(header)), 6)
    except csv.Error:
        return False
    return any(rows) and any(map(PLAUSIBLE.fullmatch, names)) and all(len(row) in (0, len(names)) for row in rows)


def _delimiter(header: str) -> str:
    return max(DELIMITERS, key=header.count)  # a comma when there is none


class Lines(Iterator[str]):
    """The lines of UTF-8 data with their ends, split at line feeds only; a byte order mark in front is left out.

    ``number`` is that of the last line, from 1, and ``end`` the byte at which it ends. Raises UsageError, naming the line, for
    one that is not UTF-8 or holds a NUL.
    """

    def __init__(self, data: mmap, where: str) -> None:
        self.data, self.where, self.number = data, where, 0
        self.end = 3 if data[:3] == MARK.encode() else 0
        data.seek(self.end)

    def __next__(self) -> str:
        line = self.data.readline()
        if not line:
            raise StopIteration
        self.number += 1
        self.end += len(line)
        if b"\0" in line:
            raise self.error("a NUL byte, as in UTF-16 and in files that are no text; save it as UTF-8 text")
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(
                f"not UTF-8 (byte {error.start + 1} of the line); convert it, for instance with: iconv -f latin1 -t utf-8"
            ) from None

    def error(self, text: str, line: int | None = None) -> UsageError:
        return UsageError(f"{self.where}, line {line or self.number}: {text}")


@dataclass(frozen=True)
class Row:
    """One row of a table: its caption ("" when it has none), and the file name of its picture ("" when that is not wanted)."""

    caption: str
    file: str


class Delimited:
    """The rows of a CSV or TSV file whose first line names the columns; None stands for a blank line.

    Args:
        column, file_column: see ``choose``; that of the file names may be None.

    Raises UsageError, naming the line, for rows that are not CSV or do not fit the first one, and for a column that is not there.
    """

    def __init__(self, lines: Lines, column: str | None, file_column: str | None, tabs: bool = False) -> None:
        header = _first_line(lines.data).decode("utf-8", errors="replace")
        lines.data.seek(lines.end)
        self.lines, self.delimiter = lines, "\t" if tabs else _delimiter(header)
        self.reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        self.columns = next(([name.strip() for name in row] for row in iter(self._record, None) if row), [])
        self.column = choose(self.columns, column, lines.where)
        self.caption = self.columns.index(self.column)
        self.file = None if file_column is None else self.columns.index(choose(self.columns, file_column, lines.where))

    def _record(self) -> list[str] | None:
        """The next row, [] for a blank line, None at the end."""
        first = self.lines.number + 1
        try:
            return next(self.reader, None)
        except csv.Error as error:
            raise self.lines.error(
                f"not a row of a CSV file ({error}); a field with quotation marks or line breaks must be quoted", first
            ) from None

    def __iter__(self) -> Iterator[Row | None]:
        width = len(self.columns)
        for record in iter(self._record, None):
            if not record or (len(record) == 1 < width and not record[0].strip()):
                yield None
            elif len(record) != width:
                raise self.lines.error(
                    f"{len(record)} fields, but the first line names {width} columns; a field that holds {self.delimiter!r} "
                    "must be quoted"
                )
            else:
                yield Row(record[self.caption].strip(), "" if self.file is None else record[self.file].strip())

    def parse(self, record: bytes) -> str:
        """The caption of a row, from its bytes."""
        return next(csv.reader([record.decode("utf-8")], delimiter=self.delimiter))[self.caption].strip()


class JsonLines:
    """The rows of a JSON Lines file, one object a line; None stands for a blank line, and null or no value for no caption.

    Args:
        column, file_column: see ``choose``; that of the file names may be None.

    Raises UsageError, naming the line, for what is no object or no text, and for a column that is not there.
    """

    def __init__(self, lines: Lines, column: str | None, file_column: str | None) -> None:
        columns = list(json.loads(_first_line(lines.data)))
        lines.data.seek(lines.end)
        self.lines = lines
        self.column = choose(columns, column, lines.where)
        self.file_column = None if file_column is None else choose(columns, file_column, lines.where)

    def __iter__(self) -> Iterator[Row | None]:
        for line in self.lines:
            line = line.removeprefix(MARK).strip()
            if not line:
                yield None
                continue
            row = _object(line)
            if row is None:
                raise self.lines.error("not a JSON object; write one object a line")
            file = "" if self.file_column is None else self._text(row, self.file_column)
            yield Row(self._text(row, self.column), file)

    def _text(self, row: dict[str, Any], column: str) -> str:
        value = row.get(column)
        if value is not None and not isinstance(value, str):
            raise self.lines.error(f'"{column}" holds {str(value)[:40]}, which is no text; give one text a row')
        text = (value or "").strip()
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise self.lines.error(
                f'"{column}" holds half a surrogate pair or a NUL, which is no text; correct or remove it'
            )
        return text

    def parse(self, record: bytes) -> str:
        """The caption of a row, from its bytes."""
        value = json.loads(record).get(self.column)  # which skips a byte order mark in bytes
        return str(value or "").strip()


def choose(columns: Sequence[str], wanted: str | None, where: str) -> str:
    """The column ``wanted``, or, when that is None, the only one that is called caption, text or prompt (or their plural).

    Raises UsageError that lists the columns when it is not there, or not the only one.
    """
    shown = ", ".join(name[:40] for name in columns[:20]) + (", ..." if len(columns) > 20 else "")
    if wanted is None:
        plausible = [name for name in columns if PLAUSIBLE.fullmatch(name)]
        if len(plausible) != 1:
            raise UsageError(f"{where} is a table; say with --caption-column which column holds the captions: {shown}")
        return plausible[0]
    if columns.count(wanted) != 1:
        how = "has no column" if wanted not in columns else "has more than one column"
        raise UsageError(f'{where} {how} "{wanted}"; the columns that its first line names are: {shown}')
    return wanted


def from_parquet(data: mmap, column: str | None, file_column: str | None, where: str) -> Iterator[bytes]:
    """The captions, and the file names if wanted, of a Parquet file, as JSON Lines.

    Raises UsageError when pyarrow is not installed, the file is damaged, or a column is not there or holds no text.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(f'{where} is a Parquet file, which pyarrow reads: pip install "sidlsg[parquet]"') from None
    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(data))
        schema = file.schema_arrow
        wanted = [choose(schema.names, column, where)]
        wanted += [] if file_column is None else [choose(schema.names, file_column, where)]
        for name in wanted:
            if not re.match(r"(dictionary<values=)?(large_)?string|null", kind := str(schema.field(name).type)):
                raise UsageError(f'{where}: the column "{name}" holds {kind}, which is no text')
        for batch in file.iter_batches(columns=wanted):
            yield from (json.dumps(row).encode() + b"\n" for row in batch.to_pylist())
    except UsageError:
        raise
    except Exception as error:  # pyarrow raises OSError, ArrowInvalid, UnicodeDecodeError and others for damaged files
        first = str(error).partition("\n")[0]
        raise UsageError(f"{where} is not a readable Parquet file ({first}); fetch or write it again") from None
