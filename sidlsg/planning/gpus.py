"""The GPUs that the plan knows (``gpus.yaml``), and how fast a run would be on them. Does not import torch."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

from sidlsg.config import Config
from sidlsg.data import read_table
from sidlsg.errors import UsageError, nearest
from sidlsg.planning.cost import forward_equivalents


@dataclass(frozen=True)
class Gpu:
    """One row of ``gpus.yaml``: memory in GiB, dense peak TFLOP/s by arithmetic, and the share of it that a run reaches (MFU)."""

    key: str
    name: str
    memory: float
    peaks: dict[str, float]
    mfu: dict[str, float]
    bf16: bool = True


@functools.cache
def gpus() -> dict[str, Gpu]:
    rows: dict[str, dict[str, Any]] = read_table("planning/gpus.yaml")
    found = {}
    for key, row in rows.items():
        peaks = {name: row.pop(name) for name in ("16", "tf32", "fp32")}
        found[key] = Gpu(key, peaks=peaks, **row)
    return found


def get_gpu(key: str) -> Gpu:
    """A GPU by its key (upper or lower case); raises UsageError, naming the nearest key, for an unknown one."""
    if key.lower() not in gpus():
        raise UsageError(f'unknown GPU "{key}"{nearest(key, gpus())}')
    return gpus()[key.lower()]


def known_gpu(name: str, memory: float) -> Gpu | None:
    """The row for a GPU by its name in CUDA ("NVIDIA H100 80GB HBM3") and its memory in GiB; None if the table lacks it."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    fitting = [gpu for gpu in gpus().values() if gpu.name.split()[-1].split("-")[0].lower() in words]
    return min(fitting, key=lambda gpu: abs(gpu.memory - memory), default=None)


def arithmetic(config: Config) -> tuple[str, str]:
    """A run's keys in ``Gpu.peaks`` and ``Gpu.mfu``: ("16", "compiled" or "eager"), ("tf32", "tf32") or ("fp32", "fp32")."""
    if config.precision == "fp32":
        return ("tf32", "tf32") if config.tf32 else ("fp32", "fp32")
    good = config.compile and config.channels_last and config.micro_batch >= 4
    return "16", "compiled" if good else "eager"


def images_per_second(config: Config, gflop: float, gpu: Gpu, processes: int) -> float:
    """An ESTIMATE, over all processes: peak FLOP/s x MFU / FLOP per image.

    Args:
        gflop: GFLOP of one forward pass of the network for one sample.
    """
    peak, efficiency = arithmetic(config)
    return processes * gpu.peaks[peak] * gpu.mfu[efficiency] * 1e3 / (forward_equivalents(config) * gflop)


# The GiB that each bf16 preset needs, largest first. An architecture without a row of its own uses sd15's.
PRESETS = {
    "sd15": ((120, "h200-bf16"), (70, "h100-bf16"), (44, "48gb"), (22, "24gb"), (0, "16gb")),
    "sdxl": ((70, "sdxl-80gb"), (46.5, "sdxl-48gb")),
}


def preset_for(memory: float, architecture: str = "sd15") -> str:
    """The bf16 preset for a GPU with ``memory`` GiB; raises UsageError when none of the architecture's fits."""
    for least, name in PRESETS.get(architecture, PRESETS["sd15"]):
        if memory >= least:
            return name
    raise UsageError(
        f"no preset distils a model of {architecture}'s size in {memory:.1f} GiB; give a --preset, and see what would fit with "
        "--dry-run"
    )
