"""Time and peak memory of work on a device, and the speed of a plain matrix product there."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sidlsg.devices import peak_resident


@dataclass
class Timing:
    """Seconds of repeated measurements of the same work."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(largest - smallest) / median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device, warmup: int, repeats: int) -> Timing:
    """Run ``work`` ``warmup`` times without measuring (compilation, caches), then time it ``repeats`` times."""
    for _ in range(warmup):
        work()
    found = Timing()
    for _ in range(repeats):
        synchronise(device)
        begun = time.perf_counter()
        work()
        synchronise(device)
        found.seconds.append(time.perf_counter() - begun)
    return found


def gemm_tflops(device: torch.device, dtype: torch.dtype, size: int | None = None, repeats: int = 5) -> float:
    """Median TFLOP/s of one large square matrix product: about the most that the device reaches in practice."""
    size = size or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(size, size, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    return 2 * size**3 / timed(lambda: a @ b, device, 2, repeats).median / 1e12


class PeakMemory:
    """Peak memory since the object was made: PyTorch's allocated and reserved on a GPU, the process's resident size on a CPU.

    Only Linux can reset the resident peak; elsewhere it is that of the process's whole life.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):  # not on Linux: cannot be reset
                Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> tuple[float, float | None]:
        """(allocated, reserved) on a GPU, (resident, None) on a CPU; in GiB."""
        if self.device.type == "cuda":
            found = torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)
            return found[0] / 2**30, found[1] / 2**30
        return peak_resident() / 2**30, None
