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


@dataclass(frozen=True)
class Entry:
    """One model of the registry; fields as explained at the top of ``models.yaml``."""

    name: str
    what: str
    folder: Path | None = None
    repositories: tuple[str, ...] = ()
    prompts: Path | None = None
    grid_prompts: Path | None = None
    architecture: str | None = None
    licence: str | None = None


@functools.cache
def registry() -> dict[str, Entry]:
    raw: dict[str, dict[str, Any]] = read_table("teachers/models.yaml")
    entries = {}
    for name, values in raw.items():
        for key in ("folder", "prompts", "grid_prompts"):
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


def locate(name: str) -> Location:
    """Where a model is, by alias, folder or hub id ("owner/name"); raises UsageError, naming the nearest alias, for any other."""
    if name in registry():
        entry = registry()[name]
        return Location(name, entry.folder, entry.repositories, entry)
    path = Path(os.path.expanduser(name))  # unlike Path.expanduser, leaves an unknown ~user as it is
    if path.is_dir():
        return Location(name, folder=path)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) and not path.exists():
        return Location(name, repositories=(name,))
    if "/" in name or path.exists():
        raise UsageError(f"{name} is not a folder; give a diffusers folder, a hub id (owner/name) or an alias")
    raise UsageError(
        f'unknown model "{name}"{nearest(name, registry())} (or a diffusers folder, or a hub id owner/name)'
    )
