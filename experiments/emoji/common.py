"""What the scripts of the embedded models share: the split of the drawings, seeding by step, checkpoints, progress."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch

REFERENCE, REFERENCE_SEED = 1024, 11


def split_drawings(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the drawings that the teacher learns from, and of the benchmark's reference, which it never sees."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(REFERENCE_SEED))
    return order[REFERENCE:].sort().values, order[:REFERENCE]


def seed_step(stream: int, step: int) -> torch.Generator:
    """A CPU generator that depends only on (stream, step): a resumed run draws what an unbroken one would."""
    return torch.Generator().manual_seed(stream * 1_000_003 + step)


def cosine_lr(peak: float, step: int, steps: int, warmup: int = 100) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


@torch.no_grad()
def average(averaged: torch.nn.Module, net: torch.nn.Module, step: int, decay: float = 0.999) -> None:
    """averaged <- decay averaged + (1 - decay) net, with a smaller decay in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(averaged.parameters()), list(net.parameters()), 1 - decay)


class Checkpoint:
    """Named parts with ``state_dict``, written to a temporary name and renamed."""

    def __init__(self, path: Path, parts: dict[str, Any]) -> None:
        self.path, self.parts = path, parts

    def load(self) -> int:
        """Load all parts if the file exists; returns the step to go on from (0 for a fresh start)."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        print(f"resuming {self.path} at step {state['step']}", flush=True)
        return state["step"]

    def save(self, step: int) -> None:
        temporary = self.path.with_suffix(".tmp")
        torch.save({"step": step} | {name: part.state_dict() for name, part in self.parts.items()}, temporary)
        os.replace(temporary, self.path)


def log_line(path: Path, step: int, steps: int, started: float, first: int, **values: float) -> None:
    """One progress line on the terminal and one JSON line in ``path``."""
    each = (time.time() - started) / max(1, step - first)
    numbers = "  ".join(f"{name} {float(value):.4f}" for name, value in values.items())
    print(
        f"step {step}/{steps}  {numbers}  {1e3 * each:.0f} ms/step  {(steps - step) * each / 60:.1f} min left",
        flush=True,
    )
    with path.open("a") as file:
        file.write(json.dumps({"step": step} | {name: float(value) for name, value in values.items()}) + "\n")
