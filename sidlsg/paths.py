"""Paths as users write them: one meaning in options, presets and Python calls. No torch in here."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from sidlsg.errors import UsageError


def user_path(text: str | os.PathLike[str]) -> Path:
    """A path as a user writes it: ``~`` and ``~user`` are home folders, and what is relative is so to the working directory.

    As in a shell, ``~name`` stays as it is when there is no such user. Raises UsageError for an empty path.
    """
    if not os.fspath(text):
        raise UsageError("a path is empty; a variable of the shell may not be set")
    return Path(os.path.expanduser(text))


def full_path(text: str | os.PathLike[str]) -> str:
    """A file or folder as every working directory can name it: absolute, with links followed. Anything else (a pipe, what is not
    there) stays as it is written."""
    path = user_path(text)
    return os.path.realpath(path) if os.path.isfile(path) or os.path.isdir(path) else os.fspath(text)


def check_output(folder: Path) -> None:
    """Raise UsageError when results cannot be written to a folder, better before they are computed. Leaves nothing there."""
    if len(os.fsencode(folder.name)) > 255:
        raise UsageError(f"{folder.name[:40]}... is too long a name for a folder; give another --out")
    refusal = UsageError(f"cannot write to {folder}; give another --out")
    if not writable(folder):
        raise refusal
    try:  # permissions say little on Windows, to root, and of what is no disk
        tempfile.TemporaryFile(dir=existing(folder)).close()
    except OSError:
        raise refusal from None


def writable(folder: Path) -> bool:
    """Whether files may be made in a folder, which need not exist yet, by the permissions. Writes nothing."""
    place = existing(folder)
    return os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)


def existing(folder: Path) -> str:
    """The folder, with links followed, or the nearest one above it that exists."""
    place = os.path.realpath(folder)
    while not os.path.exists(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    return place
