"""Checkpoints: folders of safetensors files and one JSON file, each complete or absent, never half-written; what was changed
afterwards, by a disk or by hand, is noticed."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sidlsg.errors import SidlsgError
from sidlsg.files import STATE_FILE, flush, fresh
from sidlsg.runs.state import DAMAGED, numbered, place, read_state, write_state

Tensors = dict[str, dict[str, Tensor]]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Checkpoints:
    """The checkpoints of a run, ``<folder>/<images seen>/``; the newest ``keep`` good ones are kept.

    A checkpoint is written under a temporary name, flushed to the disk and renamed, so that an interruption leaves the older
    ones intact. None is ever replaced: where one of the same number is there already, the new one is ``<images seen>.2``.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep
        self.newest: Path | None = None  # that this process has written, or read whole
        self.damaged: list[Path] = []  # found by ``load_latest``, newer than the one that it returned

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return [path for path in numbered(self.folder) if (path / STATE_FILE).is_file()]

    def save(self, images_seen: int, tensors: Tensors, state: dict[str, Any]) -> Path:
        """Write ``{name}.safetensors`` for each group of tensors and ``state.json``, then ``prune``.

        Returns the checkpoint's folder. Raises SidlsgError when it cannot be written.
        """
        target = fresh(self.folder / f"{images_seen:012d}")
        temporary = self.folder / f".{target.name}.part"
        self._clear()
        try:
            temporary.mkdir(parents=True)
            files = {}
            for name, group in tensors.items():
                file = temporary / f"{name}.safetensors"
                files[file.name] = {"sha256_of_content": _write(file, group), "bytes": file.stat().st_size}
            flush(write_state(temporary, {"images_seen": images_seen, "files": files, **state}))
            flush(temporary)  # its directory entries, before it takes the checkpoint's name
            temporary.rename(target)
            flush(self.folder)
        except (OSError, SafetensorError) as error:
            code = _errno(error)
            reason = os.strerror(code) if code is not None else str(error)
            raise SidlsgError(f"cannot write checkpoint {target}: {reason}; {self._advice(code in FULL)}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self.newest = target
        self.damaged = [path for path in self.damaged if path != target]
        self.prune()
        return target

    def _advice(self, full: bool) -> str:
        again = "free some space and run the same command again" if full else "mend that and run the same command again"
        kept = [path for path in self.complete() if path not in self.damaged]
        return f"{kept[-1]} is intact: {again} to go on from there" if kept else again

    def load_latest(
        self,
        needed: tuple[str, ...] = (),
        like: Mapping[str, Mapping[str, Tensor]] | None = None,
        foreign: Callable[[dict[str, Any]], str | None] = lambda state: None,
        groups: Callable[[Iterable[str]], Iterable[str]] = lambda names: names,
    ) -> tuple[Tensors, dict[str, Any], list[str]] | None:
        """The newest good checkpoint as (tensors on the CPU, state, warnings about newer, damaged ones).

        A good one has the content that was written, by its checksums; one of an earlier version, which wrote none, has files
        of the sizes that were written.

        Args:
            needed: keys that the state must have.
            like: groups with the names, shapes and dtypes that the tensors must have.
            foreign: what shows, in a state, that the checkpoint is of another run; None where nothing does.
            groups: those to be read and checked, out of the names of all.

        Returns None when there is no checkpoint.

        Raises SidlsgError when there are checkpoints but every one is damaged.
        """
        self.damaged, warnings = [], []
        for path in reversed(numbered(self.folder)):
            try:
                state = read_state(path, needed)
                if found := foreign(state):
                    raise ValueError(f"it is of another run: {found}")
                tensors = _read(path, state["files"], groups)
                if like is not None and (found := unlike(tensors, like)):
                    raise ValueError(found)
            except (OSError, LookupError, ValueError, TypeError, SafetensorError, SidlsgError) as error:
                self.damaged.append(path)
                warnings.append(f"checkpoint {path} is damaged ({error})")
            else:
                self.newest = path
                return tensors, state, warnings
        if warnings:
            raise SidlsgError(
                f"{warnings[0]}, and there is no older one that is whole. Delete {self.folder} to start the run anew, "
                "or put a copy of the checkpoint back."
            )
        return None

    def prune(self) -> None:
        """Delete what is older than the ``keep`` newest checkpoints up to ``newest``: whole ones, parts of deleted ones, and
        damaged ones that were moved aside. Newer ones are not touched."""
        if self.newest is None:
            return
        self._clear()
        last = place(self.newest)
        older = [path for path in numbered(self.folder) if place(path) <= last]
        good = [path for path in older if (path / STATE_FILE).is_file() and path not in self.damaged]
        kept = good[-self.keep :]
        if not kept:  # somebody has deleted them meanwhile
            return
        aside = [path for path in numbered(self.folder, DAMAGED) if place(path) <= place(kept[0])]
        for path in [path for path in older if path not in kept] + aside:
            with suppress(OSError):  # first, so that one deleted in part is no checkpoint
                (path / STATE_FILE).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)  # one that something still reads must not end the run

    def set_aside(self) -> list[Path]:
        """Rename what ``load_latest`` found damaged, so that it is never taken for a checkpoint again; returns the new names."""
        moved = {}
        for path in self.damaged:
            with suppress(OSError):  # then the next start finds it damaged again
                moved[path] = path.rename(fresh(path, DAMAGED))
        self.damaged = [path for path in self.damaged if path not in moved]
        return list(moved.values())

    def _clear(self) -> None:
        """Delete what killed saves left."""
        for stale in self.folder.glob(".*.part"):
            shutil.rmtree(stale, ignore_errors=True)


def unlike(tensors: Tensors, like: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """The first difference in names, shapes or dtypes between groups of tensors; None when there is none."""
    for group, wanted in like.items():
        found = tensors.get(group, {})
        if found.keys() != wanted.keys():
            name = min(found.keys() ^ wanted.keys())
            return f"{group}.safetensors {'lacks' if name in wanted else 'has another weight,'} {name}"
        for name, tensor in wanted.items():
            have, want = ((x.dtype, list(x.shape)) for x in (found[name], tensor))
            if have != want:
                return f"{name} in {group}.safetensors is {have[1]} of {have[0]}, not {want[1]} of {want[0]}"
    return None


def content_sha256(group: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of contiguous tensors on the CPU."""
    digest = hashlib.sha256()
    for name, tensor in sorted(group.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(file: Path, group: Mapping[str, Tensor]) -> str:
    """Write and flush a safetensors file; returns the hash of its content, made in another thread meanwhile, from memory."""
    here = {name: tensor.detach().cpu().contiguous() for name, tensor in group.items()}
    with ThreadPoolExecutor(1) as thread:
        digest = thread.submit(content_sha256, here)
        save_file(here, file)
        flush(file)
        return digest.result()


def _read(path: Path, files: Mapping[str, Any], groups: Callable[[Iterable[str]], Iterable[str]]) -> Tensors:
    """Groups of tensors in a checkpoint's folder; raises ValueError, OSError or SafetensorError when one is not as written."""

    def read(name: str) -> dict[str, Tensor]:
        about = files[name]
        size, written = (path / name).stat().st_size, about["bytes"] if isinstance(about, dict) else about
        if size != written:
            raise ValueError(f"{name} is {size} bytes, not {written}")
        group = load_file(path / name)
        if isinstance(about, dict) and content_sha256(group) != about["sha256_of_content"]:
            raise ValueError(f"the content of {name} has changed since it was written")
        return group

    wanted = [f"{name}.safetensors" for name in groups([Path(name).stem for name in files])]
    with ThreadPoolExecutor(max(1, min(len(wanted), os.cpu_count() or 1))) as threads:
        return {Path(name).stem: group for name, group in zip(wanted, threads.map(read, wanted), strict=True)}


def _errno(error: Exception) -> int | None:
    """The system's number of an error; safetensors says it in words."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
