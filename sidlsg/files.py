"""Writing files so that whatever interrupts it leaves the old content or the new, never half."""

from __future__ import annotations

import os
from pathlib import Path


def flush(path: Path) -> None:
    """fsync a file or folder: after it, a power cut loses nothing that was written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, flush to the disk, and rename."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    flush(temporary)
    temporary.replace(path)
