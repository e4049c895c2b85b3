"""What is on this machine of the Hugging Face hub, and where downloads from it go. No torch in here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sidlsg.data import in_cache
from sidlsg.files import INDEX_FILE, read_object
from sidlsg.paths import writable

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts of pipelines that are not downloaded


def own_cache() -> Path:
    """The hub client's own cache, which may be missing or read-only."""
    from huggingface_hub import constants

    return Path(os.path.expanduser(constants.HF_HUB_CACHE))


def download_cache(repository: str) -> Path:
    """The cache that takes downloads of a repository: the hub's own, or one in ours when that cannot be written to."""
    own = own_cache()
    inside = own / f"models--{repository.replace('/', '--')}"
    places = (own, own / ".locks", inside, inside / "blobs", inside / "snapshots")
    homeless = own.parts[:1] == ("~",)  # a user without an entry and without HOME
    return in_cache("hub") if homeless or not all(map(writable, places)) else own


def snapshot(repository: str) -> Path | None:
    """The folder of a model of the hub that is on this machine, whole if there is one; None when there is nothing.

    Needs no network, and no cache that can be written to.
    """
    from huggingface_hub import try_to_load_from_cache

    found = []
    for cache in dict.fromkeys((own_cache(), download_cache(repository))):
        try:
            index = try_to_load_from_cache(repository, INDEX_FILE, cache_dir=cache)
        except ValueError:  # no id that the hub could have
            return None
        if isinstance(index, str):
            found.append(Path(index).parent)
    return next((folder for folder in found if missing_part(folder) is None), found[0] if found else None)


def missing_part(folder: Path) -> str | None:
    """What a folder in diffusers' layout lacks of what its ``model_index.json`` lists; None when it is whole."""
    if not (folder / INDEX_FILE).is_file():
        return INDEX_FILE
    for part, kind in read_object(folder / INDEX_FILE).items():
        if part in UNUSED or not isinstance(kind, list) or not kind or kind[0] is None:
            continue
        if part.startswith(("tokenizer", "scheduler")):
            if not any((folder / part).glob("*")):
                return f"{part}/"
            continue
        weights = {path.name for path in (folder / part).glob("*.safetensors") if path.is_file()}
        if not weights or not (folder / part / "config.json").is_file():
            return f"{part}/"
        for index in (folder / part).glob("*.safetensors.index.json"):
            shards = set(read_object(index, kinds={"weight_map": dict}).get("weight_map", {}).values())
            if weights & shards and shards - weights:  # those of another precision may all be left out
                return f"{part}/{min(shards - weights)}"
    return None


def download(repository: str, **patterns: Any) -> Path:
    """``huggingface_hub.snapshot_download`` of some files of a repository, to ``download_cache``; raises what that raises."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, cache_dir=_prepared(repository), **patterns))


def download_file(repository: str, name: str) -> Path:
    """``huggingface_hub.hf_hub_download``: a file that is in the hub's cache, or is downloaded to ``download_cache``."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    there = try_to_load_from_cache(repository, name, cache_dir=own_cache())
    return Path(there if isinstance(there, str) else hf_hub_download(repository, name, cache_dir=_prepared(repository)))


def _prepared(repository: str) -> Path:
    """``download_cache``, with the hub client's transfer library told to keep its logs and chunks there too."""
    cache = download_cache(repository)
    if cache != own_cache():
        os.environ.setdefault("HF_XET_CACHE", str(cache / "xet"))
    return cache
