"""Short names for models and prompt lists (``models.yaml``), and what a name given by the user refers to. No torch in here."""

from __future__ import annotations

import functools
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sidlsg.data import PACKAGE
from sidlsg.errors import SidlsgError, UsageError, nearest


@dataclass(frozen=True)
class Entry:
    """One model of the registry; fields as explained at the top of ``models.yaml``."""

    name: str
    what: str
    folder: Path | None = None
    repositories: tuple[str, ...] = ()
    prompts: Path | None = None
    grid_prompts: Path | None = None
    parameters: int | None = None
    text_encoder: int | None = None
    vae: int | None = None
    gflop: float | None = None


@functools.cache
def registry() -> dict[str, Entry]:
    raw: dict[str, dict[str, Any]] = yaml.safe_load((PACKAGE / "models.yaml").read_text(encoding="utf-8"))
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
    """Where a model is: a local folder, or hub ids to be tried in order. ``entry`` when an alias was given."""

    name: str
    folder: Path | None = None
    repositories: tuple[str, ...] = ()
    entry: Entry | None = None


def locate(name: str) -> Location:
    """An alias, a folder or a hub id ("owner/name"); raises UsageError, naming the nearest alias, for anything else."""
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


# The authors' training prompts: a tar archive in the repository of their released generators.
PROMPT_REPOSITORY = "UT-Austin-PML/SiD-LSG"
PROMPT_LISTS = {
    "aesthetics6plus": "aesthetics_6_plus.txt",
    "aesthetics625plus": "aesthetics_625_plus.txt",
    "aesthetics65plus": "aesthetics_65_plus.txt",
}


def prompt_path(name: str, cache: Path, download: bool = True) -> tuple[Path, bool]:
    """The file behind ``--prompts`` (a path, the name of a model that has prompts, or a published list).

    A published list is downloaded once and kept in ``cache``. Returns the path, and whether it is still to be downloaded.
    """
    entry = registry().get(name)
    if entry is not None and entry.prompts is not None:
        return entry.prompts, False
    if name in PROMPT_LISTS:
        target = cache / PROMPT_LISTS[name]
        if download and not target.exists():
            _download_prompt_list(name, target)
        return target, not target.exists()
    if Path(name).exists() or "/" in name or "." in name:
        return Path(name), False
    known = [*PROMPT_LISTS, *(n for n, e in registry().items() if e.prompts)]
    raise UsageError(f'unknown prompt list "{name}"{nearest(name, known)} (or a text file, one prompt a line)')


def _download_prompt_list(name: str, target: Path) -> None:
    """Extract one list from the authors' archive; written under a temporary name and renamed."""
    from huggingface_hub import hf_hub_download, list_repo_files

    help_text = f"download {PROMPT_LISTS[name]} from {PROMPT_REPOSITORY} elsewhere and pass it with --prompts FILE"
    try:
        archives = [file for file in list_repo_files(PROMPT_REPOSITORY) if file.endswith((".tar", ".tar.gz"))]
        for archive in archives:
            with tarfile.open(hf_hub_download(PROMPT_REPOSITORY, archive)) as tar:
                for member in tar:
                    source = tar.extractfile(member) if Path(member.name).name == PROMPT_LISTS[name] else None
                    if source is not None:
                        target.parent.mkdir(parents=True, exist_ok=True)
                        temporary = target.with_suffix(f".{os.getpid()}.part")  # several processes may be at it
                        try:
                            with temporary.open("wb") as file:
                                while block := source.read(1 << 20):
                                    file.write(block)
                            temporary.replace(target)
                        finally:
                            temporary.unlink(missing_ok=True)
                        return
    except Exception as error:  # the hub client raises many unrelated types for "no network"
        raise SidlsgError(f"cannot download the prompt list {name} ({type(error).__name__}); {help_text}") from error
    raise SidlsgError(f"{PROMPT_REPOSITORY} holds no archive with {PROMPT_LISTS[name]}; {help_text}")
