"""Where the data files of the package are: the tables of its subpackages, presets, the embedded models."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from sidlsg.paths import user_path, writable

PACKAGE = Path(__file__).parent
ASSETS = PACKAGE / "assets"


def read_table(path: str) -> Any:
    """The content of a YAML file of the package, by its path below ``sidlsg/``."""
    return yaml.safe_load((PACKAGE / path).read_text(encoding="utf-8"))


def presets_folder() -> Path:
    """``sidlsg/presets`` in an installed wheel, ``presets/`` beside the package in a checkout."""
    installed = PACKAGE / "presets"
    return installed if installed.is_dir() else PACKAGE.parent / "presets"


def in_cache(name: str) -> Path:
    """Where a file or folder of the cache is or, when it is not there, is to be made.

    The cache holds downloads and what was counted or encoded before. What it lacks is made in a folder of this user's below
    the one for temporary files, when the cache cannot be written to.
    """
    path = cache_folder() / name
    return path if os.path.exists(path) or writable(path.parent) else _temporary_cache() / name


def cache_folder() -> Path:
    """The cache, which may be missing or read-only: ``~/.cache/sidlsg``, or what the variable ``SIDLSG_CACHE`` says."""
    if given := os.environ.get("SIDLSG_CACHE"):
        return user_path(given)
    try:
        return Path.home() / ".cache" / "sidlsg"
    except RuntimeError:  # a user without an entry and without HOME, as in some containers
        return _temporary_cache()


@functools.cache
def _temporary_cache() -> Path:
    """The same in every process of this user, and never a folder that another user has made, who could put anything there."""
    user = os.getuid() if hasattr(os, "getuid") else None  # on Windows every user has a folder for temporary files
    try:
        folder = Path(tempfile.gettempdir()) / f"sidlsg-cache{'' if user is None else f'-{user}'}"
        if user is None or not os.path.lexists(folder) or os.lstat(folder).st_uid == user:
            return folder
        return Path(tempfile.mkdtemp(prefix="sidlsg-cache-"))
    except FileNotFoundError:  # nothing can be written anywhere
        return Path("sidlsg-cache")
