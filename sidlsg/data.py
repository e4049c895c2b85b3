"""Where the data files of the package are: the model registry, presets, the embedded models."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).parent
ASSETS = PACKAGE / "assets"


def presets_folder() -> Path:
    """``sidlsg/presets`` in an installed wheel, ``presets/`` beside the package in a checkout."""
    installed = PACKAGE / "presets"
    return installed if installed.is_dir() else PACKAGE.parent / "presets"


def cache_folder() -> Path:
    """Where downloads that are not hub models are kept; ``SIDLSG_CACHE`` moves it."""
    return Path(os.environ.get("SIDLSG_CACHE") or Path.home() / ".cache" / "sidlsg")
