"""Reading JSON, and writing files so that whatever interrupts it leaves the old content or the new, never half."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from sidlsg.errors import SidlsgError

INDEX_FILE = "model_index.json"  # of a folder in diffusers' layout
STUDENT_FILE = "sidlsg.json"  # beside it, in folders that this tool wrote
STATE_FILE = "state.json"  # of a checkpoint
PATIENCE = 60.0  # seconds in which what another host wrote is seen here


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


# What file systems (CIFS, NFS, Lustre, FUSE, WSL) answer to an operation that they do not have.
LACKING = frozenset(
    (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EBADF, errno.ENOTTY)
)


def flush(path: Path) -> bool:
    """fsync a file or folder: after it, a power cut loses nothing that was written. Returns False where the file system cannot.

    Windows opens no folders, and flushes only what is opened for writing. Raises OSError when the disk fails.
    """
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return False

    def sync() -> None:
        handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    return _where_possible(sync)


def make_readable(path: Path) -> bool:
    """Let everybody read a file; returns False where the file system has no such thing."""
    return _where_possible(lambda: path.chmod(0o644))


def _where_possible(operation: Callable[[], object]) -> bool:
    """Whether the file system has the operation; raises OSError for any other failure."""
    try:
        operation()
    except OSError as error:
        if error.errno in LACKING:
            return False
        raise
    return True


def fresh(path: Path, suffix: str = "") -> Path:
    """The first of ``path``, ``path.2``, ``path.3``, ..., each with the suffix, that does not exist."""
    count, found = 1, path.with_name(path.name + suffix)
    while os.path.lexists(found):
        count += 1
        found = path.with_name(f"{path.name}.{count}{suffix}")
    return found


def replace_folder(new: Path, target: Path) -> None:
    """Give the folder ``new`` the name ``target``. What had that name is removed, as far as nothing reads it any more.

    A link is removed, never followed. Raises OSError, with the old folder in its place, when it cannot be replaced.
    """
    for stale in target.parent.glob(f"{glob.escape(target.name)}.*old.tmp"):  # that was being read when it was replaced
        shutil.rmtree(stale, ignore_errors=True)
    old = fresh(target, ".old.tmp")
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def still_missing(paths: Iterable[Path]) -> list[Path]:
    """Those of the paths that are not there, asked for up to ``PATIENCE`` seconds.

    An NFS client remembers for up to a minute that a name was missing, whatever another host has written meanwhile.
    """
    end, lost = time.monotonic() + PATIENCE, list(paths)
    while (lost := [path for path in lost if not path.exists()]) and time.monotonic() < end:
        time.sleep(1)
    return lost


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
