"""Devices and dtypes by the names that users give them."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from sidlsg.errors import UsageError, nearest

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """ "auto" is the GPU of this process where there is one; raises UsageError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f'unknown device "{name}"; use auto, cpu, cuda or cuda:0') from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"device {name}: this PyTorch sees no CUDA GPU{_visible()}; use --device cpu")
        device = torch.device("cuda", device.index if device.index is not None else local_rank)
        if device.index >= torch.cuda.device_count():
            raise UsageError(f"device {device}: there are only {torch.cuda.device_count()} GPUs{_visible()}")
        torch.cuda.set_device(device)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"device {name}: this PyTorch sees no Apple GPU; use --device cpu")
    elif device.type not in ("cpu", "mps"):
        raise UsageError(f'device "{name}" is not supported; use auto, cpu, cuda or cuda:0')
    return device


def _visible() -> str:
    """The environment variable that may hide GPUs, for a message."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if shown is None else f' (CUDA_VISIBLE_DEVICES is "{shown}")'


def pick_precision(name: str | None, device: torch.device) -> str:
    """The precision of sampling: the one named, else fp16 on a GPU and fp32 elsewhere; raises UsageError for another name."""
    if name is not None and name not in DTYPES:
        raise UsageError(f'precision is "{name}"{nearest(name, DTYPES)}')
    return name or ("fp16" if device.type == "cuda" else "fp32")


def peak_memory(device: torch.device) -> float:
    """GiB: peak allocated on a GPU, peak resident size of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return peak_resident() / 2**30


def peak_resident() -> int:
    """Bytes: the largest resident size that this process has had; on Linux, since it was reset (``/proc/self/clear_refs``)."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
