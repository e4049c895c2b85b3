"""Tables of captions: CSV, TSV, JSON Lines and Parquet; and which kinds of file are no list of captions. No torch in here."""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
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
# A row of a tab-separated file whose quotation marks are all those of quoted fields, closed in their line.
QUOTED_ROW = re.compile(rb"(F)(\t(F))*\r*\n?".replace(b"F", rb'[^"\t\r\n]*|"[^"]*(?:""[^"]*)*"'))
LONGEST_FIELD = 1 << 24  # characters: what a quotation mark that nothing closes may gather before the file is refused
LARGEST_DOCUMENT = 1 << 28  # bytes of a JSON document that is read whole, to say what it is


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
    if first.lstrip().startswith(b"{") and (row := _object(first)):
        alone = not any(line.strip() for line in iter(data.readline, b""))
        if alone and not _is_row(row, column) and (program := jq_program(row)):
            raise _document(where, program)
        return "jsonl"
    if suffix in (".jsonl", ".ndjson", ".json") or first.strip() == b"{":
        document = _object(data[:]) if first.lstrip().startswith(b"{") and len(data) <= LARGEST_DOCUMENT else None
        if document and (program := jq_program(document)):
            raise _document(where, program)
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


def _is_row(value: dict[str, Any], column: str | None) -> bool:
    """Whether an object has a text, or null, where a row of JSON Lines has its caption."""
    texts = [value[name] for name in value if (PLAUSIBLE.fullmatch(name) if column is None else name == column)]
    return any(text is None or isinstance(text, str) for text in texts)


def _document(where: str, program: str) -> UsageError:
    return UsageError(
        f"{where} is one JSON object and not JSON Lines; write one object a line, with: jq -c '{program}' IN > OUT.jsonl"
    )


def jq_program(document: dict[str, Any]) -> str | None:
    """The program for jq that turns a JSON document with captions in it into JSON Lines; None where no captions are found.

    Known forms: a list of rows under a key (COCO); such a list whose rows hold lists of sentences (Karpathy); an object for each
    file name (kohya); columns (pandas); an object of nothing but texts.
    """
    for key, value in document.items():
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, dict):
            if _text_key(first):
                return f"{_at(key)}[]"
            for inner, rows in first.items():
                if (
                    isinstance(rows, list)
                    and rows
                    and isinstance(rows[0], dict)
                    and (text := _text_key(rows[0], "raw"))
                ):
                    file = next((name for name in ("filename", "file_name") if name in first), None)
                    name = "" if file is None else f"file_name: .{file}, "
                    return f"{_at(key)}[] | {{{name}caption: {_at(inner)}[]{_at(text)}}}"
        elif PLAUSIBLE.fullmatch(key) and isinstance(value, list | dict) and _are_texts(value):
            return f"{_at(key)}[] | {{caption: .}}"
    first = next(iter(document.values()), None)
    if isinstance(first, dict) and (text := _text_key(first)):
        return f"to_entries[] | {{file_name: .key, caption: .value{_at(text)}}}"
    return ".[] | {caption: .}" if len(document) > 1 and _are_texts(document) else None


def _text_key(row: dict[str, Any], *more: str) -> str | None:
    """The first key with a usual name for captions, or one of ``more``, that has a text."""
    usual = (key for key, value in row.items() if isinstance(value, str) and (PLAUSIBLE.fullmatch(key) or key in more))
    return next(usual, None)


def _are_texts(values: list[Any] | dict[str, Any]) -> bool:
    listed = list(values.values()) if isinstance(values, dict) else values
    return bool(listed) and all(isinstance(value, str) for value in listed)


def _at(key: str) -> str:
    """The value of a key, for jq in a shell's single quotes."""
    quoted = json.dumps(key).replace("'", "\\u0027")
    return f".{key}" if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key) else f".[{quoted}]"


def _has_header(head: bytes) -> bool:
    """Whether the first line names columns, one of them a usual one for captions, and the next rows have as many fields.

    They may have them with quotation marks taken for letters: stray ones are the reader's to refuse, and make no table a text.
    """
    header, *lines = head.decode("utf-8", errors="replace").split("\n")
    if not HEADER.fullmatch(header.rstrip("\r")):
        return False
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        reader = csv.reader((line + "\n" for line in (header, *lines)), delimiter=_delimiter(header), quoting=quoting)
        with contextlib.suppress(csv.Error):
            names, *rows = islice(reader, 6)
            if any(rows) and any(map(PLAUSIBLE.fullmatch, names)) and all(len(r) in (0, len(names)) for r in rows):
                return True
    return False


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

    def carriage_return(self) -> UsageError:
        """Of a line with a carriage return inside, which may be a line's end or not."""
        return self.error(
            "a carriage return inside the line, so that lines cannot be counted; convert its line ends, for instance with: "
            "tr '\\r' '\\n'"
        )


@dataclass(frozen=True)
class Row:
    """One row of a table: its caption ("" when it has none), and the file name of its picture ("" when that is not wanted)."""

    caption: str
    file: str


class Delimited:
    """The rows of a CSV or TSV file whose first line names the columns; None stands for a blank line.

    In CSV a quoted field may hold line breaks. With tabs a row is a line, and quotation marks are letters unless each of them
    is one that Python's ``csv`` would write, as around a field that holds one.

    Args:
        column, file_column: see ``choose``; that of the file names may be None.

    Attributes:
        broken: the first line of the first row that has a line break in a field, once rows were read; None without such a row.

    Raises UsageError, naming the line, for rows that are not CSV or do not fit the first one, for rows that quotation marks seem
    to have made one, and for a column that is not there.
    """

    def __init__(self, lines: Lines, column: str | None, file_column: str | None, tabs: bool = False) -> None:
        header = _first_line(lines.data).decode("utf-8", errors="replace")
        self.lines, self.delimiter = lines, "\t" if tabs else _delimiter(header)
        self.quoted = self.delimiter != "\t" or _tabs_are_quoted(lines.data)
        blank = "" if f"{self.delimiter} " in header else "(?! )"  # in prose a blank follows a comma
        self.separator = re.compile(re.escape(self.delimiter) + blank)
        self.broken: int | None = None
        lines.data.seek(lines.end)
        # The limit is the process's: 131,072 unless somebody raised it.
        csv.field_size_limit(max(LONGEST_FIELD, csv.field_size_limit()))
        self.reader = self._records(lines)
        self.columns = next(([name.strip() for name in row] for row in iter(self._record, None) if row), [])
        self.column = choose(self.columns, column, lines.where)
        self.caption = self.columns.index(self.column)
        self.file = None if file_column is None else self.columns.index(choose(self.columns, file_column, lines.where))

    def _records(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """The fields of each row; none for a blank line."""
        if self.quoted:
            return csv.reader(lines, delimiter=self.delimiter, strict=True)
        return (text.split("\t") if (text := line.rstrip("\r\n")) else [] for line in lines)

    def _record(self) -> list[str] | None:
        """The next row, [] for a blank line, None at the end."""
        first = self.lines.number + 1
        try:
            record = next(self.reader, None)
        except csv.Error as error:
            if "field limit" in str(error):
                remedy = f"a field of more than {LONGEST_FIELD:,} characters; a quotation mark is opened and not closed there"
            else:
                remedy = (
                    f"not a row of a CSV file ({error}); a field with quotation marks or line breaks must be quoted"
                )
            raise self.lines.error(remedy, first) from None
        if record and not self.quoted and any("\r" in field for field in record):
            raise self.lines.carriage_return()
        if record and self.lines.number > first and any("\n" in field for field in record):
            if _seem_rows(record, self.separator):
                raise self.lines.error(
                    f"lines {first:,} to {self.lines.number:,} are one row, since a field begins with a quotation mark at the "
                    f"first and ends with one at the last, but each of them has the {len(record)} fields of a row; where these "
                    'marks are of the texts, double them and put the field in quotation marks (""" letters"), or give JSON Lines',
                    first,
                )
            self.broken = self.broken or first
        return record

    def __iter__(self) -> Iterator[Row | None]:
        width = len(self.columns)
        remedy = f"a field that holds {self.delimiter!r} must be quoted"
        if self.delimiter == "\t":
            remedy = "in a tab-separated file a row is a line; give texts with tabs or line breaks as CSV or JSON Lines"
        for record in iter(self._record, None):
            if not record or (len(record) == 1 < width and not record[0].strip()):
                yield None
            elif len(record) != width:
                raise self.lines.error(f"{len(record)} fields, but the first line names {width} columns; {remedy}")
            else:
                yield Row(record[self.caption].strip(), "" if self.file is None else record[self.file].strip())

    def parse(self, record: bytes) -> str:
        """The caption of a row, from its bytes."""
        return next(self._records([record.decode("utf-8")]))[self.caption].strip()


def _tabs_are_quoted(data: mmap) -> bool:
    """Whether every quotation mark of a tab-separated file is one of quoting, in rows with as many fields as the first."""
    if data.find(b'"') < 0:
        return False
    width = _width(_first_line(data))
    data.seek(0)
    marked = (line.removeprefix(MARK.encode()) for line in iter(data.readline, b"") if b'"' in line)
    return all(QUOTED_ROW.fullmatch(line) and _width(line) == width for line in marked)


def _width(line: bytes) -> int:
    """The number of fields of a line that ``QUOTED_ROW`` matches."""
    return re.sub(rb'"[^"]*"', b"", line).count(b"\t") + 1


def _seem_rows(record: Sequence[str], separator: re.Pattern[str]) -> bool:
    """Whether a row over several lines may be rows that quotation marks joined: each line has as many fields as the row.

    In a table of one column every line could be a row, and none is taken for one.
    """
    counts = [1]
    for number, field in enumerate(record):
        counts[-1] += number > 0
        first, *more = field.split("\n")
        if more:
            *between, last = more
            counts[-1] += len(separator.findall(first))
            counts += [1 + len(separator.findall(line)) for line in (*filter(str.strip, between), last)]
    return len(record) > 1 and all(count == len(record) for count in counts)


class JsonLines:
    """The rows of a JSON Lines file, one object a line; None stands for a blank line, and null or no value for no caption.

    No field has a line break in the file (``broken``: see ``Delimited``).

    Args:
        column, file_column: see ``choose``; that of the file names may be None.

    Raises UsageError, naming the line, for what is no object or no text, and for a column that is not there.
    """

    broken = None

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
            listed = isinstance(value, list) and _are_texts(value)
            how = f", with: jq -c '{_at(column)} = {_at(column)}[]' IN > OUT" if listed else ""
            raise self.lines.error(f'"{column}" holds {str(value)[:40]}, which is no text; give one text a row{how}')
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
