"""The distribution from which an update draws its timesteps t."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Times(Protocol):
    """A distribution of timesteps; another one (logit-normal, for instance) is another class with this method."""

    def draw(self, rng: np.random.Generator) -> int:
        """One timestep, drawn with the sample's own random generator."""
        ...


@dataclass(frozen=True)
class UniformTimes:
    """t uniform on the integers t_min ... t_max, both included (Algorithm 1; the paper's are 20 ... 979)."""

    t_min: int
    t_max: int

    def draw(self, rng: np.random.Generator) -> int:
        return int(rng.integers(self.t_min, self.t_max, endpoint=True))
