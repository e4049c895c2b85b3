"""Time of work on a device, and the speed of a plain matrix product there."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


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


def gemm_tflops(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Median TFLOP/s of one large square matrix product: about the most that the device reaches in practice.

    8192 x 8192 on a GPU, 2048 x 2048 on a CPU; there smaller, down to 256, where one product would take more than a second:
    CPUs without instructions for ``dtype`` are about 70 times slower in it.
    """

    def seconds(size: int, warmup: int, repeats: int) -> float:
        a, b = (torch.randn(size, size, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
        return timed(lambda: a @ b, device, warmup, repeats).median

    size = 8192
    if device.type != "cuda":
        size, smallest = 2048, 256
        probe = seconds(smallest, 1, 3)
        while size > smallest and probe * (size / smallest) ** 3 > 1:
            size //= 2
    return 2 * size**3 / seconds(size, 2, repeats) / 1e12
