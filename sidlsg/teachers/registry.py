"""Short names for models (``models.yaml``), and the location of a model that a user names. Does not import torch."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidlsg.data import PACKAGE, read_table
from sidlsg.errors import UsageError, nearest
from sidlsg.paths import user_path
from sidlsg.teachers.foreign import about_file
from sidlsg.teachers.hub import download_cache, missing_part, own_cache, snapshot


@dataclass(frozen=True)
class Entry:
    """One model of the registry; fields as explained at the top of ``models.yaml``."""

    name: str
    what: str
    folder: Path | None = None
    repositories: tuple[str, ...] = ()
    prompts: Path | None = None
    grid_prompts: Path | None = None
    grid: Path | None = None
    architecture: str | None = None
    licence: str | None = None


@functools.cache
def registry() -> dict[str, Entry]:
    raw: dict[str, dict[str, Any]] = read_table("teachers/models.yaml")
    entries = {}
    for name, values in raw.items():
        for key in ("folder", "prompts", "grid_prompts", "grid"):
            if key in values:
                values[key] = PACKAGE / values[key]
        values["repositories"] = tuple(values.get("repositories", ()))
        entries[name] = Entry(name, **values)
    return entries


@dataclass(frozen=True)
class Location:
    """Where a model is: in a local folder, or under hub ids to be tried in order. ``entry`` is set when ``name`` is an alias."""

    name: str
    folder: Path | None = None
    repositories: tuple[str, ...] = ()
    entry: Entry | None = None

    @property
    def note(self) -> str | None:
        """What else the name could have meant, and how to say that; where a model is downloaded to when the hub's cache cannot
        be written to. None when there is nothing to say."""
        return "; ".join(filter(None, (self._ambiguity(), self._detour()))) or None

    def _ambiguity(self) -> str | None:
        if self.entry is not None:
            hidden = f"{self.name} is the alias; the folder {self.name} in this directory is ./{self.name}"
            return hidden if os.path.isdir(self.name) else None
        first = self.name.partition("/")[0]
        if self.repositories and os.path.isdir(first):
            return f"there is no folder {self.name} here (though {first} is one), so it is looked up on the Hugging Face hub"
        return None

    def _detour(self) -> str | None:
        there = [snapshot(name) for name in self.repositories]
        if not there or any(folder is not None and missing_part(folder) is None for folder in there):
            return None
        own, cache = own_cache(), download_cache(self.repositories[0])
        if cache == own:
            return None
        return (
            f"the hub's cache {own} cannot be written to: {self.name} goes to {cache} (HF_HOME=FOLDER moves that cache)"
        )


def at_hand(place: Location) -> Path | None:
    """The folder of a model that is on this machine: its own, or that of a whole snapshot in the hub's cache; else None.

    Needs no network.
    """
    if place.folder is not None:
        return place.folder
    found = (folder for folder in map(snapshot, place.repositories) if folder is not None)
    return next((folder for folder in found if (folder / "unet" / "config.json").is_file()), None)


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate(name: str) -> Location:
    """Where a model is, by alias, folder or hub id ("owner/name"), in this order.

    Raises UsageError for any other name: of a file, of a folder that is not there (``./x``, ``/x``, ``~/x``, ``C:\\x`` are never
    taken for hub ids), or unknown (naming the nearest alias).
    """
    if name in registry():
        entry = registry()[name]
        return Location(name, entry.folder, entry.repositories, entry)
    path = user_path(name)
    if os.path.isdir(path):
        return Location(name, folder=path)
    if os.path.exists(path):
        raise UsageError(about_file(path))
    if HUB_ID.fullmatch(name):
        return Location(name, repositories=(name,))
    if re.search(r"[/\\]", name) or name.startswith("~") or os.path.islink(path):
        raise UsageError(f"{name} is not a folder; give a diffusers folder, a hub id (owner/name) or an alias")
    raise UsageError(
        f'unknown model "{name}"{nearest(name, registry())} (or a diffusers folder, or a hub id owner/name)'
    )
