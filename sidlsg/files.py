"""Writing files so that whatever interrupts it leaves the old content or the new, never half."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def flush(path: Path) -> None:
    """fsync a file or folder: after it, a power cut loses nothing that was written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write NumPy arrays as ``.npz`` under a temporary name of this process's own, and rename; makes the folder."""
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, flush to the disk, and rename. File names that are not UTF-8 are written with escapes."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    flush(temporary)
    temporary.replace(path)
