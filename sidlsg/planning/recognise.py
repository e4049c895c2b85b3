"""Finds a teacher's footprint: that of a known architecture, or one counted for it. Imports torch only to count."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from sidlsg.data import in_cache, read_table
from sidlsg.files import write_text
from sidlsg.planning.footprint import Footprint, footprints, from_dict
from sidlsg.teachers.registry import Location, at_hand
from sidlsg.version import __version__


@dataclass(frozen=True)
class Recognised:
    """A teacher's footprint; ``assumed`` is the architecture it was taken for when its configuration is not on this machine."""

    footprint: Footprint
    assumed: str | None = None


def recognise(place: Location, attention: str | None = None) -> Recognised | None:
    """A teacher's footprint: by alias, else by the UNet's configuration (in the folder or the hub's cache), else guessed by name.

    Args:
        attention: count a UNet that is none of the known ones, with this kind of attention, which takes a minute and imports
            torch; the result is cached. None: do not count.

    Returns None when the configuration cannot be read, or when the UNet is not known and may not be counted. Raises what
    ``counting.footprint_of_folder`` raises.
    """
    if place.entry is not None:
        known = footprints().get(place.entry.architecture or "")
        return Recognised(known) if known else None
    folder = at_hand(place)
    if folder is None:
        like = "sdxl" if "xl" in place.name.lower() else "sd15"
        return Recognised(footprints()[like], assumed=like)
    try:
        config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    for name, row in read_table("teachers/architectures.yaml").items():
        if all(config.get(key) == value for key, value in row["unet"].items()):
            return Recognised(footprints()[name])
    return Recognised(_counted(folder, attention)) if attention else None


def _counted(folder: Path, attention: str) -> Footprint:
    """The footprint of a folder's model, from the cache or counted on the meta device."""
    kind = "eager" if attention == "eager" else "sdpa"  # xFormers keeps what SDPA keeps
    configs = sorted(path.read_text(encoding="utf-8") for path in folder.glob("*/config.json"))
    digest = hashlib.sha256(json.dumps([__version__, kind, configs]).encode()).hexdigest()[:20]
    path = in_cache(f"footprints/{digest}.json")
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        pass
    from sidlsg.planning.counting import footprint_of_folder

    found = footprint_of_folder(folder, kind)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(found.as_dict(), indent=1) + "\n")
    except OSError:
        pass  # counted again next time
    return found
