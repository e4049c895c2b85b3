"""A process's work on a run, for ``sessions.jsonl``: on what device, with which versions, started by which command."""

from __future__ import annotations

import importlib.metadata
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from sidlsg.devices import device_facts
from sidlsg.distributed import Processes
from sidlsg.runs.folder import RunFolder
from sidlsg.runs.sessions import recorded

PACKAGES = ("diffusers", "transformers")  # whose versions can move a result, besides torch


def session(
    folder: RunFolder,
    images_seen: Callable[[], int],
    device: torch.device,
    processes: Processes,
    warn: Callable[[str], object],
) -> AbstractContextManager[None]:
    """Record, from the main process, that the run is trained inside the block."""
    if not processes.main:
        return nullcontext()
    return recorded(folder.sessions, images_seen, lambda: circumstances(device, processes), warn)


def circumstances(device: torch.device, processes: Processes) -> dict[str, Any]:
    """Collect command, number of processes, device and versions."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"command": command(sys.argv), "processes": processes.world, **device_facts(device), **versions}


def command(arguments: Sequence[str]) -> str:
    """Join a command line as a shell takes it, without the folder of its program: the page that shows it may be sent away."""
    program = Path(arguments[0]).name if arguments else ""
    known = {"__main__.py": ["python", "-m", "sidlsg"]}.get(program, [program])
    return shlex.join([*known, *arguments[1:]])
