"""Random draws of a run, each a pure function of (seed, update, sample index).

The index counts samples over the whole run (images seen + place in the global batch), so draws depend neither on the
micro-batch, nor on the number of processes, nor on whether the run was interrupted. Philox is counter-based: there is no
generator state to carry or save.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sidlsg.method.times import Times

# Which update a draw is for. The numbers are part of the random key: changing one changes what every run draws.
FAKE_SCORE, GENERATOR, PREFLIGHT = 0, 1, 3


@dataclass
class Draws:
    """z, eps ~ N(0, I) float32 [B, C, H, W]; t int64 [B]; u float64 [B], uniform on [0, 1), decides on dropping the prompt."""

    z: Tensor
    eps: Tensor
    t: Tensor
    u: Tensor


def draw(seed: int, update: int, first: int, count: int, shape: tuple[int, ...], times: Times) -> Draws:
    """Draws, on the CPU, for samples first ... first + count - 1 of one update; ``shape`` is (C, H, W) of a latent."""
    z, eps = np.empty((2, count, *shape), dtype=np.float32)
    t, u = np.empty(count, dtype=np.int64), np.empty(count)
    for i in range(count):
        rng = np.random.Generator(np.random.Philox(key=[seed, update], counter=[0, 0, 0, first + i]))
        z[i] = rng.standard_normal(shape, dtype=np.float32)
        eps[i] = rng.standard_normal(shape, dtype=np.float32)
        t[i] = times.draw(rng)
        u[i] = rng.random()
    return Draws(*(torch.from_numpy(x) for x in (z, eps, t, u)))


class PromptOrder:
    """An endless sequence over ``count`` prompts, a new permutation every epoch; any position can be computed directly."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __call__(self, first: int, count: int) -> list[int]:
        """Prompt indices at positions first ... first + count - 1."""
        chosen = []
        for position in range(first, first + count):
            epoch, place = divmod(position, self.count)
            if epoch != self._epoch:
                digest = hashlib.sha256(f"prompts {self.seed} {epoch}".encode()).digest()
                self._order = np.random.default_rng(list(digest)).permutation(self.count)
                self._epoch = epoch
            chosen.append(int(self._order[place]))
        return chosen
