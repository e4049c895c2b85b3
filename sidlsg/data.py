"""Where the data files of the package are: the tables of its subpackages, presets, the embedded models."""

from __future__ import annotations

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


def cache_folder() -> Path:
    """Where downloads that are not hub models, and counted footprints, are kept; the variable ``SIDLSG_CACHE`` overrides it.

    Where the home folder is missing or cannot be written to, it is in the folder for temporary files.
    """
    if given := os.environ.get("SIDLSG_CACHE"):
        return user_path(given)
    try:
        home = Path.home() / ".cache" / "sidlsg"
    except RuntimeError:  # a user without an entry and without HOME, as in some containers
        home = None
    if home is not None and (home.is_dir() or writable(home)):
        return home
    try:
        return Path(tempfile.gettempdir()) / "sidlsg-cache"
    except FileNotFoundError:  # nothing can be written anywhere
        return home or Path("sidlsg-cache")
