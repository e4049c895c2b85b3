"""Checkpoints: folders of safetensors files and one JSON file, each complete or absent, never half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sidlsg.errors import SidlsgError
from sidlsg.files import Kinds, flush, read_object
from sidlsg.runs.folder import STATE_FILE

Tensors = dict[str, dict[str, Tensor]]
KINDS: Kinds = {
    "images_seen": int,
    "files": dict,
    "adam_steps": dict,
    "prompts_sha256": str,
    "teacher_sha256": dict,
    "window": list,
}


class Checkpoints:
    """The checkpoints of a run, ``<folder>/<images seen>/``; the newest ``keep`` are kept.

    A checkpoint is written under a temporary name, flushed to the disk and renamed, so that an interruption leaves the older
    ones intact.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("[0-9]*") if p.name.isdigit() and (p / STATE_FILE).is_file())

    def save(self, images_seen: int, tensors: Tensors, state: dict[str, Any]) -> Path:
        """Write ``{name}.safetensors`` for each group of tensors and ``state.json``, then delete the oldest checkpoints.

        Returns the checkpoint's folder. Raises SidlsgError when it cannot be written.
        """
        target = self.folder / f"{images_seen:012d}"
        temporary = self.folder / f".{target.name}.part"
        for stale in self.folder.glob(".*.part"):
            shutil.rmtree(stale, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            sizes = {}
            for name, group in tensors.items():
                file = temporary / f"{name}.safetensors"
                save_file({key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}, file)
                sizes[file.name] = file.stat().st_size
            state = {"images_seen": images_seen, "files": sizes, **state}
            (temporary / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
            for file in temporary.iterdir():
                flush(file)
            flush(temporary)  # its directory entries, before it takes the checkpoint's name
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
            flush(self.folder)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise SidlsgError(f"cannot write checkpoint {target}: {error}; {self._what_is_left()}") from error
        except OSError as error:
            raise SidlsgError(f"cannot write checkpoint {target}: {error.strerror}; {self._what_is_left()}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in self.complete()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)  # one that something still reads must not end the run
        return target

    def _what_is_left(self) -> str:
        kept = self.complete()
        if not kept:
            return "free some space and run the same command again"
        return f"{kept[-1]} is intact: free some space and run the same command again to go on from there"

    def load_latest(self, needed: tuple[str, ...] = ()) -> tuple[Tensors, dict[str, Any], list[str]] | None:
        """The newest readable checkpoint as (tensors on the CPU, state, warnings about newer, damaged ones).

        Args:
            needed: keys that the state must have.

        Returns None when there is no checkpoint.

        Raises SidlsgError when there are checkpoints but every one is damaged.
        """
        damaged: list[str] = []
        for path in sorted((p for p in self.folder.glob("[0-9]*") if p.name.isdigit()), reverse=True):
            try:
                state = read_object(path / STATE_FILE, ("images_seen", "files", *needed), KINDS)
                for name, size in state["files"].items():
                    if (path / name).stat().st_size != size:
                        raise ValueError(f"{name} is {(path / name).stat().st_size} bytes, not {size}")
                tensors = {Path(name).stem: load_file(path / name) for name in state["files"]}
                return tensors, state, damaged
            except (OSError, ValueError, TypeError, SafetensorError, SidlsgError) as error:
                damaged.append(f"checkpoint {path} is damaged ({error})")
        if damaged:
            raise SidlsgError(
                f"{damaged[0]}, and there is no older one. Delete {self.folder} to start the run anew, "
                "or put a copy of the checkpoint back."
            )
        return None
