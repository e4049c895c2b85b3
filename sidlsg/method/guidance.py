"""Classifier-free guidance (Eq. 6) and the four scales of Long-Short Guidance (Sec. 2.3). Imports torch only to run networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidlsg.errors import UsageError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from sidlsg.method.condition import Condition


@dataclass(frozen=True)
class Guidance:
    """The guidance scales of Eqs. 7 and 8: 1 is no guidance, 0 is unconditional. Raises UsageError unless finite and >= 0.

    kappa1: of the fake score network psi in its own update (Eq. 7).
    kappa2, kappa3: of psi in the generator's update, in the difference f_phi - f_psi and in the residual f_psi - x_g (Eq. 8).
    kappa4: of the teacher phi in the generator's update (Eq. 8).
    """

    kappa1: float
    kappa2: float
    kappa3: float
    kappa4: float

    def __post_init__(self) -> None:
        for name, kappa in vars(self).items():
            if not (math.isfinite(kappa) and kappa >= 0):
                raise UsageError(f"{name} is {kappa}; a guidance scale must be a finite number >= 0 (1 = no guidance)")

    def __iter__(self) -> Iterator[float]:
        return iter((self.kappa1, self.kappa2, self.kappa3, self.kappa4))

    def __str__(self) -> str:
        return ", ".join(f"κ{i} {kappa:g}" for i, kappa in enumerate(self, start=1))


@dataclass(frozen=True)
class Strategy:
    """How a strategy of Sec. 2.3 sets the four scales from one number k; ``default`` is the k used when none is given."""

    spread: Callable[[float], Guidance]
    default: float


STRATEGIES: dict[str, Strategy] = {
    "long": Strategy(lambda k: Guidance(1, 1, 1, k), 3.0),
    "short": Strategy(lambda k: Guidance(1, k, k, 1), 0.5),
    "lsg-simple": Strategy(lambda k: Guidance(k, 1, 1, 1), 2.0),
    "lsg": Strategy(lambda k: Guidance(k, k, k, k), 1.5),
}


def make_guidance(strategy: str, kappa: tuple[float, ...] | None) -> Guidance:
    """The four scales: a strategy's, from one number (None: its default), or the four given, which override the strategy.

    Raises UsageError for an unknown strategy, a count of numbers other than 1 or 4, or a negative or non-finite scale.
    """
    if strategy not in STRATEGIES:
        raise UsageError(f'unknown strategy "{strategy}"{nearest(strategy, STRATEGIES)}')
    if kappa is not None and len(kappa) == 4:
        return Guidance(*kappa)
    if kappa is not None and len(kappa) != 1:
        raise UsageError(f"kappa takes one number or four (k1,k2,k3,k4), not {len(kappa)}")
    return STRATEGIES[strategy].spread(STRATEGIES[strategy].default if kappa is None else kappa[0])


def network_passes(*kappas: float) -> int:
    """Forward passes one network needs at one x_t for all ``kappas``: eps(c) if all are 1, eps(∅) if all are 0, else both."""
    return conditional(*kappas) + any(kappa != 1 for kappa in kappas)


def conditional(*kappas: float) -> bool:
    """Whether eps(c) is among the passes that ``kappas`` need: with all of them 0 it is not computed."""
    return any(kappa != 0 for kappa in kappas)


def predictions(
    net: Callable[[Tensor, Tensor, Condition], Tensor],
    x_t: Tensor,
    t: Tensor,
    c: Condition,
    empty: Condition,
    *kappas: float,
) -> tuple[Tensor, Tensor]:
    """eps(x_t, t, ∅) and eps(x_t, t, c), each [B, C, H, W], in the ``network_passes`` that the scales ``kappas`` need.

    Where one of the two is not needed it is not computed, and the other stands in its place: then ``guided`` gives that one back.
    Two passes run as one call of ``net`` with 2B samples.

    Args:
        net: maps (x_t [B, C, H, W], t [B], c of B samples) to eps [B, C, H, W].
        empty: the condition of the empty prompt ∅, for one sample.
    """
    import torch

    from sidlsg.method.condition import Condition

    empty = empty.expand(len(c))
    if network_passes(*kappas) == 1:
        eps = net(x_t, t, c if kappas[0] == 1 else empty)
        return eps, eps
    both = net(torch.cat([x_t, x_t]), torch.cat([t, t]), Condition.cat([empty, c]))
    eps_empty, eps_c = both.chunk(2)
    return eps_empty, eps_c


def guided(eps_empty: Tensor, eps_c: Tensor, kappa: float) -> Tensor:
    """eps_kappa = eps(∅) + kappa (eps(c) - eps(∅)) (Eq. 6): [B, C, H, W]."""
    return eps_empty + kappa * (eps_c - eps_empty)
