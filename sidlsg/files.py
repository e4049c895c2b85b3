"""Reading JSON, and writing files so that whatever interrupts it leaves the old content or the new, never half."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from sidlsg.errors import SidlsgError

INDEX_FILE = "model_index.json"  # of a folder in diffusers' layout
STUDENT_FILE = "sidlsg.json"  # beside it, in folders that this tool wrote
STATE_FILE = "state.json"  # of a checkpoint


Kinds = Mapping[str, type | tuple[type, ...]]


def read_object(path: Path, needed: tuple[str, ...] = (), kinds: Kinds | None = None) -> dict[str, Any]:
    """A JSON object that has the keys ``needed``, and values of these ``kinds`` (or null) where it has their keys.

    Raises SidlsgError, naming the file, for anything else.
    """

    def no_number(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=no_number)
    except RecursionError:
        raise SidlsgError(f"{path} cannot be read: brackets are nested thousands deep") from None
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SidlsgError(f"{path} cannot be read: {reason}; fetch or copy it again") from None
    if not isinstance(content, dict) or any(key not in content for key in needed):
        wanted = f" with {', '.join(needed)}" if needed else ""
        raise SidlsgError(f"{path} is not a JSON object{wanted}; fetch or copy it again")
    for key, kind in (kinds or {}).items():
        value = content.get(key)
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise SidlsgError(
                f"{path}: {key} is {json.dumps(value)[:80]}, which is of the wrong type; fetch or copy it again"
            )
    return content


def flush(path: Path) -> None:
    """fsync a file or folder: after it, a power cut loses nothing that was written.

    Windows opens no folders, and flushes only what is opened for writing.
    """
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


PART = ".part"  # the end of the name of a file that is still being written


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to, and rename it to ``path`` when the block ends; it is removed when the block fails.

    No two writers have the same one, whatever their process, host or thread: each replaces the file by a whole one.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PART}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write NumPy arrays as ``.npz`` under a temporary name, and rename; makes the folder."""
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:  # closed before it is renamed
        np.savez(file, **arrays)


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, flush to the disk, and rename. File names that are not UTF-8 are written with escapes."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        flush(temporary)


def append_line(path: Path, text: str) -> None:
    """Append a line, and make the folder if it is gone. What an interrupted write left half remains a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        torn = b""
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = b"" if file.read(1) == b"\n" else b"\n"
        file.write(torn + text.encode("utf-8", errors="backslashreplace") + b"\n")
