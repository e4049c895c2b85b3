"""The file that ``--prompts`` names: a text file, the prompts that come with a model, or one of the authors' published lists."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from pathlib import Path

from sidlsg.data import in_cache
from sidlsg.errors import SidlsgError, UsageError, nearest
from sidlsg.files import replacing
from sidlsg.paths import user_path
from sidlsg.teachers.hub import download_file
from sidlsg.teachers.registry import registry

# The authors' training prompts: a tar archive in the repository of their released generators.
PROMPT_REPOSITORY = "UT-Austin-PML/SiD-LSG"
PROMPT_LISTS = {
    "aesthetics6plus": "aesthetics_6_plus.txt",
    "aesthetics625plus": "aesthetics_625_plus.txt",
    "aesthetics65plus": "aesthetics_65_plus.txt",
}


def is_named_list(name: str) -> bool:
    """Whether ``--prompts`` names a list, and not a file."""
    return name in PROMPT_LISTS or (name in registry() and registry()[name].prompts is not None)


def prompt_path(name: str, download: bool = True) -> tuple[Path, bool]:
    """The file behind ``--prompts`` (a path, the name of a model that has prompts, or a published list).

    A published list is downloaded once and kept in the cache. Returns the path, and whether the file is still to be downloaded
    (only with ``download`` false). Raises UsageError for an unknown name, SidlsgError when the download fails.
    """
    entry = registry().get(name)
    if entry is not None and entry.prompts is not None:
        return entry.prompts, False
    if name in PROMPT_LISTS:
        target = in_cache(PROMPT_LISTS[name])
        if download and not target.exists():
            _download_prompt_list(name, target)
        return target, not target.exists()
    path = user_path(name)
    if os.path.exists(path) or re.search(r"[/\\.]", name) or name.startswith("~"):
        return path, False
    known = [*PROMPT_LISTS, *(n for n, e in registry().items() if e.prompts)]
    raise UsageError(f'unknown prompt list "{name}"{nearest(name, known)} (or a text file, one prompt a line)')


def _download_prompt_list(name: str, target: Path) -> None:
    """Extract one list from the authors' archive; it is written under a temporary name, then renamed."""
    from huggingface_hub import list_repo_files

    help_text = f"download {PROMPT_LISTS[name]} from {PROMPT_REPOSITORY} elsewhere and pass it with --prompts FILE"
    try:
        archives = [file for file in list_repo_files(PROMPT_REPOSITORY) if file.endswith((".tar", ".tar.gz"))]
        for archive in archives:
            with tarfile.open(download_file(PROMPT_REPOSITORY, archive)) as tar:
                for member in tar:
                    source = tar.extractfile(member) if Path(member.name).name == PROMPT_LISTS[name] else None
                    if source is not None:
                        target.parent.mkdir(parents=True, exist_ok=True)
                        with replacing(target) as temporary, temporary.open("wb") as file:
                            shutil.copyfileobj(source, file, 1 << 20)
                        return
    except Exception as error:  # the hub client raises many unrelated types for "no network"
        raise SidlsgError(f"cannot download the prompt list {name} ({type(error).__name__}); {help_text}") from error
    raise SidlsgError(f"{PROMPT_REPOSITORY} holds no archive with {PROMPT_LISTS[name]}; {help_text}")
