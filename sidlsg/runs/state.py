"""``state.json`` of a checkpoint: what the run had reached, with a checksum of it; and checkpoints' names. No torch in here."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from sidlsg.errors import SidlsgError
from sidlsg.files import STATE_FILE, Kinds, read_object

DAMAGED = ".damaged"  # ends the name of a checkpoint that was moved aside
NAME = re.compile(r"([0-9]+)(?:\.([0-9]+))?")
KINDS: Kinds = {
    "images_seen": int,
    "files": dict,
    "adam_steps": dict,
    "prompts_sha256": str,
    "teacher_sha256": dict,
    "window": list,
    "settings": dict,
    "ahead": dict,
    "sha256": str,
}


def place(path: Path) -> tuple[int, int]:
    """Images seen and which writing of them it is, of the folder ``<images seen>`` or ``<images seen>.2`` of a checkpoint.

    Raises ValueError for any other name.
    """
    found = NAME.fullmatch(path.name.removesuffix(DAMAGED))
    if found is None:
        raise ValueError(f"{path.name} is no name of a checkpoint")
    return int(found[1]), int(found[2] or 1)


def numbered(folder: Path, suffix: str = "") -> list[Path]:
    """The folders of checkpoints in ``folder``, whole or not, oldest first; with ``DAMAGED``, those that were moved aside."""
    return sorted((p for p in folder.glob(f"[0-9]*{suffix}") if NAME.fullmatch(p.name.removesuffix(suffix))), key=place)


def write_state(checkpoint: Path, state: dict[str, Any]) -> Path:
    """Write ``state.json``, with a checksum of it; returns its path. Numbers that are not finite are written as objects."""
    plain = _without_infinities(state)
    path = checkpoint / STATE_FILE
    text = json.dumps(plain | {"sha256": _digest(plain)}, indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def read_state(checkpoint: Path, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """What ``write_state`` wrote; where an earlier version wrote it, without a checksum, what is there.

    Args:
        needed: keys that it must have, besides ``images_seen`` and ``files``.

    Raises SidlsgError when it is missing, damaged, or not of the folder that it is in.
    """
    path = checkpoint / STATE_FILE
    state = read_object(path, ("images_seen", "files", *needed), KINDS)
    sealed = "sha256" in state or any(isinstance(about, dict) for about in state["files"].values())
    if sealed and state.pop("sha256", None) != _digest(state):
        raise SidlsgError(f"{STATE_FILE} does not fit its checksum")
    if state["images_seen"] != place(checkpoint)[0]:
        raise SidlsgError(f"{STATE_FILE} is of {state['images_seen']:,} images")
    return _with_infinities(state)


def _digest(state: dict[str, Any]) -> str:
    """SHA-256 of what the JSON says, however it is laid out."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(state)), sort_keys=True).encode()).hexdigest()


def _without_infinities(value: Any) -> Any:
    """The value with {"float": "inf"} for an infinity, and so on: JSON has no such numbers."""
    if isinstance(value, dict):
        return {key: _without_infinities(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(inner) for inner in value]
    return {"float": str(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _with_infinities(value: Any) -> Any:
    """What ``_without_infinities`` made it of."""
    if isinstance(value, dict):
        if value.keys() == {"float"} and value["float"] in ("inf", "-inf", "nan"):
            return float(value["float"])
        return {key: _with_infinities(inner) for key, inner in value.items()}
    return [_with_infinities(inner) for inner in value] if isinstance(value, list) else value
