"""Weights and data files of the metrics, looked for at a given path, then in the local cache, then downloaded and verified."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from sidlsg.data import in_cache, read_table
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.files import replacing

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class WeightFile:
    """One row of ``weights.yaml``. ``option`` is the command-line option that takes a local path instead."""

    name: str
    what: str
    option: str
    file: str  # its name in the cache
    url: str
    bytes: int | None = None
    sha256: str | None = None
    others: tuple[str, ...] = ()  # other names it may have in the cache


@functools.cache
def weight_files() -> dict[str, WeightFile]:
    rows = read_table("evaluation/weights.yaml")
    for row in rows.values():
        row["others"] = tuple(row.get("others", ()))
    return {name: WeightFile(name, **row) for name, row in rows.items()}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read anew each time: neither size nor times show that it is the same (and a GB takes a second)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remembered() -> dict[str, str]:
    """Hashes that the hub has announced before, by URL."""
    try:
        found = json.loads(in_cache("hashes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(url: str, digest: str) -> None:
    memory = in_cache("hashes.json")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with replacing(memory) as temporary:
            temporary.write_text(json.dumps(_remembered() | {url: digest}), encoding="utf-8")
    except OSError:
        pass  # a cache that cannot be written costs time, nothing else


def cached_path(row: WeightFile) -> Path | None:
    """The file in the cache, under any of its names; None when it is not there."""
    for name in (row.file, *row.others):
        path = in_cache(f"weights/{name}")
        if os.path.isfile(path):  # false for a folder that may not be entered, where Path.is_file raises
            return path
    return None


def find_weights(name: str, given: Path | None = None, download: bool = True) -> Path | None:
    """The path of a weights file: ``given``, else the file in the cache, else a download to the cache.

    Returns None when the file would have to be downloaded and ``download`` is False. Raises UsageError when ``given`` does not
    exist or is known to be another file, SidlsgError when the file has the wrong hash or cannot be downloaded (naming its URL and
    the option that takes a path).
    """
    row = weight_files()[name]
    if given is not None:
        if not given.is_file():
            raise UsageError(f"{row.option} {given}: there is no such file")
        _check_given(row, given)
        return given
    path = cached_path(row)
    if path is not None:
        _check(row, path)
        return path
    if not download:
        return None
    target = in_cache(f"weights/{row.file}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(row, target)
    except OSError as error:
        if getattr(error, "errno", None) == 28:
            raise
        reason = getattr(error, "reason", None) or error
        raise SidlsgError(
            f"{row.what} is needed: {row.file} is not in {target.parent} and cannot be downloaded from {row.url} ({reason}). "
            f"Fetch it elsewhere and give its path with {row.option} FILE, or copy it to {target}"
        ) from None
    return target


def announced_sha256(url: str) -> str | None:
    """The SHA-256 that the hub gives for a large file, None where it gives none; raises OSError when it does not answer."""
    from huggingface_hub import get_hf_file_metadata

    if not url.startswith(os.environ.get("HF_ENDPOINT", HUB)):
        return None
    try:
        etag = get_hf_file_metadata(url).etag
    except Exception as error:  # many unrelated types, all meaning that there is no answer
        raise OSError(f"no answer from the hub ({type(error).__name__})") from None
    return etag if etag is not None and len(etag) == 64 else None


def known_sha256(row: WeightFile) -> str | None:
    """The SHA-256 of the published file: pinned, or announced by the hub (which is asked once); None without an answer."""
    if row.sha256 is None and row.url not in _remembered():
        try:
            announced = announced_sha256(row.url.replace(HUB, os.environ.get("HF_ENDPOINT", HUB).rstrip("/")))
        except OSError:
            return None
        if announced is not None:
            _remember(row.url, announced)
        return announced
    return row.sha256 or _remembered()[row.url]


def _check_given(row: WeightFile, path: Path) -> None:
    """Raise UsageError when a file that the user gave is, by its name or SHA-256, another one of those that the option takes."""
    for other in weight_files().values():
        if other.option != row.option or other.name == row.name:
            continue
        known = other.sha256 or _remembered().get(other.url)
        if path.name in (other.file, *other.others) or (known is not None and file_sha256(path) == known):
            raise UsageError(f"{row.option} {path}: this is {other.what}, not {row.what}")


def _check(row: WeightFile, path: Path) -> None:
    if row.sha256 is not None and file_sha256(path) != row.sha256:
        raise SidlsgError(
            f"{path} is not the file it should be (SHA-256 {file_sha256(path)}, expected {row.sha256}); delete it and run "
            f"again, or give the right file with {row.option} FILE"
        )


def _download(row: WeightFile, target: Path) -> None:
    """Download under a temporary name, check length and hash, rename; raises OSError when the connection ends too early."""
    digest = hashlib.sha256()
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise OSError("HF_HUB_OFFLINE is set")
    url = row.url.replace(HUB, os.environ.get("HF_ENDPOINT", HUB).rstrip("/"))
    expected = row.sha256 or announced_sha256(url)
    with replacing(target) as temporary:
        with urllib.request.urlopen(url, timeout=60) as source, temporary.open("wb") as file:
            announced = source.headers.get("Content-Length")
            while block := source.read(1 << 20):
                digest.update(block)
                file.write(block)
            if announced is not None and file.tell() != int(announced):  # urllib says nothing
                raise OSError(f"the download was cut short: {file.tell():,} of {int(announced):,} bytes")
        if expected is not None and digest.hexdigest() != expected:
            raise SidlsgError(
                f"{url} gave another file than expected (SHA-256 {digest.hexdigest()}, expected {expected}); fetch "
                f"{row.file} elsewhere and give its path with {row.option} FILE"
            )
