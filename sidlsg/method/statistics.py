"""What shows whether a distillation works, where the generator's loss does not: it oscillates around zero from start to end."""

from __future__ import annotations

import torch
from torch import Tensor

from sidlsg.method.bands import BANDS, band_of
from sidlsg.method.losses import fake_score_loss

# Columns of ``generator_statistics``.
COLUMNS = 2 * BANDS + 1


def bands(t: Tensor, t_range: tuple[int, int]) -> Tensor:
    """The band of each t [B] of the range (first, last): [B, BANDS], 1 in its column and 0 elsewhere."""
    return (band_of(t, t_range)[:, None] == torch.arange(BANDS, device=t.device)).float()


@torch.no_grad()
def generator_statistics(
    eps_real: Tensor, eps_fake2: Tensor, eps_phi: Tensor | None, eps: Tensor, t: Tensor, t_range: tuple[int, int]
) -> Tensor:
    """Statistics of each sample of the generator's update, [B, COLUMNS], to be summed over the samples that count.

    Columns: by band of t, the mean square of eps_{phi, kappa4} - eps_{psi, kappa2} over the elements, which falls to zero as
    generator and teacher come to agree; by band, 1 for the band the sample is in; ||eps_phi(x_t, t, c) - eps||^2, the loss that
    the teacher has on the generator's images without guidance, which Eq. 7's is to be compared with; 0 where eps_phi is None,
    because kappa4 = 0 needs no pass with the prompts.
    """
    gap = (eps_fake2 - eps_real).float().square().flatten(1).mean(1)
    inside = bands(t, t_range)
    loss = torch.zeros_like(gap) if eps_phi is None else fake_score_loss(eps_phi, eps).float()
    return torch.cat([inside * gap[:, None], inside, loss[:, None]], dim=1)


def score_gap(sums: Tensor) -> list[float | None]:
    """The root mean square of eps_{phi, kappa4} - eps_{psi, kappa2} an element, by band of t, low t first; None for an empty one.

    Args:
        sums: [COLUMNS], of ``generator_statistics``.
    """
    squares, counts = sums[:BANDS].tolist(), sums[BANDS : 2 * BANDS].tolist()
    return [(square / count) ** 0.5 if count else None for square, count in zip(squares, counts, strict=True)]


def reference_loss(sums: Tensor) -> float | None:
    """The mean of the teacher's loss on the generator's images, from the same sums; None without samples, and where it was not
    computed (a sum of exactly 0, which no squared difference of noises gives)."""
    count, loss = sums[BANDS : 2 * BANDS].sum().item(), sums[-1].item()
    return loss / count if count and loss else None
