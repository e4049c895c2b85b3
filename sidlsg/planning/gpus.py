"""The GPUs that the plan knows (``gpus.yaml``), and how fast a run would be on them. Does not import torch."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from typing import Any

from sidlsg.config import Config
from sidlsg.data import read_table
from sidlsg.errors import UsageError, nearest
from sidlsg.planning.cost import forward_equivalents


@dataclass(frozen=True)
class Gpu:
    """One row of ``gpus.yaml``, or a GPU that has none (its key is empty).

    Memory is in GiB; then dense peak TFLOP/s by arithmetic, and the share of it that a run reaches (MFU).
    """

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


BRANDS = frozenset(("nvidia", "geforce", "quadro", "rtx", "tesla"))
OTHER_CHIPS = frozenset(("laptop", "mobile", "mig"))  # slower ones that are sold under the same name, and parts of one
LABEL = 0.98  # of the gigabytes on a card's label that PyTorch reports on cards without ECC, in GiB: 24 GB are 23.5 GiB


def get_gpu(text: str) -> Gpu:
    """A GPU by its key or name ("4090", "RTX 4090", "A100-80GB"), or any GPU by its memory ("24GB", "23.5GiB").

    Raises UsageError, naming the nearest and all known keys, for another text.
    """
    words = _words(text)
    for gpu in gpus().values():
        if words and words in (_words(gpu.key), _words(gpu.name)):
            return gpu
    if size := re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(gb|gib|g)\s*", text.lower()):
        memory = float(size[1]) * (1 if size[2] == "gib" else LABEL)
        if memory > 0:
            return unknown_gpu(f"a GPU of {text.strip()}", memory)
    near = nearest(text, gpus())
    known = "" if near.startswith("; known") else f"; known: {', '.join(sorted(gpus()))}"
    raise UsageError(f'unknown GPU "{text}"{near}{known}; or give its memory, such as 24GB')


def _words(name: str) -> frozenset[str]:
    """What tells a GPU from others: the words of its name in small letters, without brands ("RTX4090" is "4090")."""
    name = re.sub(r"^(nvidia|geforce|rtx|tesla)(?=[0-9atv])", "", name.strip().lower())
    return frozenset(re.split(r"[^a-z0-9.]+", name)) - BRANDS - {""}


def known_gpu(name: str, memory: float) -> Gpu | None:
    """The row for a GPU by its name in CUDA ("NVIDIA H100 80GB HBM3") and its memory in GiB; None if the table lacks it."""
    words = _words(name)
    if words & OTHER_CHIPS:
        return None

    def chip(gpu: Gpu) -> frozenset[str]:
        return frozenset(word for word in _words(gpu.name) if not word.endswith("gb"))

    fitting = [gpu for gpu in gpus().values() if chip(gpu) <= words]
    return max(fitting, key=lambda gpu: (len(chip(gpu)), -abs(gpu.memory - memory)), default=None)


def unknown_gpu(name: str, memory: float, bf16: bool = True) -> Gpu:
    """A GPU of which nothing but the memory is known: no estimate of time."""
    return Gpu("", name, memory, dict.fromkeys(("16", "tf32", "fp32"), 0.0), {}, bf16)


def device_gpu(name: str, memory: float, bf16: bool) -> Gpu:
    """A GPU that is there, by what CUDA says about it; its speed from the table where that has it."""
    return replace(known_gpu(name, memory) or unknown_gpu(name, memory), name=name, memory=memory, bf16=bf16)


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
