"""Facts about the machine that is measured: device, data sheet and software; its default architecture and preset."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from sidlsg.config import Config
from sidlsg.data import PACKAGE
from sidlsg.planning.gpus import arithmetic, known_gpu, preset_for
from sidlsg.version import __version__


def device_facts(device: torch.device) -> dict[str, Any]:
    """Name of the device, its memory (GPU) or threads (CPU), and versions of the software, for the report."""
    facts: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0], "sidlsg": source_version()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"device": properties.name, "memory_gib": properties.total_memory / 2**30, "cuda": torch.version.cuda}
    else:
        facts |= {"device": cpu_name(), "threads": torch.get_num_threads()}
    return facts


def source_version() -> str:
    """The package's version and, in a git checkout, the commit (with + if files differ from it)."""
    if not (PACKAGE.parent / ".git").exists():
        return __version__
    git = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__} at {commit}"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def data_sheet_peak(config: Config, device: torch.device) -> float | None:
    """Peak TFLOP/s of the configuration's arithmetic on the maker's data sheet; None on a CPU or a GPU that gpus.yaml lacks."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    row = known_gpu(properties.name, properties.total_memory / 2**30)
    return row.peaks[arithmetic(config)[0]] if row else None


def default_arch(device: torch.device) -> str:
    """The architecture that is measured by default: sd15 on a GPU, emoji on a CPU."""
    return "sd15" if device.type == "cuda" else "emoji"


def default_preset(device: torch.device, arch: str) -> str:
    """The default preset: ``cpu`` on a CPU, on a GPU what ``preset_for`` chooses; raises UsageError when none fits."""
    if device.type != "cuda":
        return "cpu"
    return preset_for(torch.cuda.get_device_properties(device).total_memory / 2**30, arch)
