"""Devices and dtypes by the names that users give them; what a device is, and the software on it."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from sidlsg.data import PACKAGE
from sidlsg.errors import UsageError, nearest
from sidlsg.version import __version__

DRIVER_FILE = Path("/proc/driver/nvidia/version")
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


def release(device: torch.device) -> None:
    """Free what nothing refers to any more; PyTorch gives back to the GPU what it holds and does not use."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def machine(device: torch.device) -> dict[str, str]:
    """What decides which kernels compute, and so what a check of them holds for: PyTorch, the GPU and its driver ("" where
    unknown)."""
    if device.type != "cuda":
        return {"torch": torch.__version__, "device": device.type, "driver": ""}
    return {"torch": torch.__version__, "device": torch.cuda.get_device_name(device), "driver": driver_version() or ""}


def driver_version() -> str | None:
    """Read the version of NVIDIA's driver, such as "550.54.14"; None where there is none, or it does not answer."""
    with contextlib.suppress(OSError):
        text = DRIVER_FILE.read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text):
            return found[0]
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return text.split()[0] if text.split() else None


class PeakMemory:
    """Peak memory since the last ``reset``: PyTorch's allocated and reserved on a GPU, the process's resident size on a CPU.

    Only Linux can reset the resident peak; elsewhere it is that of the process's whole life.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Begin anew, after ``release``."""
        release(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):  # not on Linux: cannot be reset
                Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> tuple[float, float | None]:
        """(allocated, reserved) on a GPU, (resident, None) on a CPU; in GiB."""
        if self.device.type == "cuda":
            found = torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)
            return found[0] / 2**30, found[1] / 2**30
        return peak_resident() / 2**30, None


def peak_resident() -> int:
    """Bytes: the largest resident size that this process has had; on Linux, since it was reset (``/proc/self/clear_refs``)."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_facts(device: torch.device) -> dict[str, Any]:
    """Read the name of the device, its memory (GPU) or threads (CPU), and versions of the software."""
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
