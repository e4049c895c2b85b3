"""The machine that is measured: its data sheet, its default architecture and preset."""

from __future__ import annotations

import torch

from sidlsg.config import Config
from sidlsg.planning.gpus import arithmetic, known_gpu, preset_for


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
