"""The two losses of SiD-LSG as pure functions of noise predictions: tensors [B, C, H, W] in, one loss per sample [B] out.

Losses are **summed** over C, H, W; the caller averages over the global batch. With a mean over pixels the gradients would
shrink so far that Adam's epsilon stopped being negligible.

``ratio`` is sigma_t / a_t, shaped [B, 1, 1, 1]. With f = (x_t - sigma_t eps_net) / a_t and x_t = a_t x_g + sigma_t eps,

    f_a - f_b = ratio (eps_b - eps_a)        f_a - x_g = ratio (eps - eps_a)

so everything below is the paper's x0 form without a division by a_t (0.077 at t = 979).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Floor of the denominator of Eq. 9's weight, in x0 units.
WEIGHT_FLOOR = 1e-5


def fake_score_loss(eps_fake: Tensor, eps: Tensor) -> Tensor:
    """|| eps_{psi, kappa1}(x_t, t, c) - eps ||^2 (Eq. 7): [B]."""
    return (eps_fake - eps).square().flatten(1).sum(1)


def generator_weight(eps_real: Tensor, eps: Tensor, ratio: Tensor) -> Tensor:
    """1 / max(mean |x_g - f_{phi, kappa4}|, floor), without gradient (Eq. 9): [B].

    Eq. 9 has omega(t) = sigma_t^4 / a_t^2 · C / || x_g - f_{phi, kappa4} ||_1, where C is the number of elements of x_g; the
    factor sigma_t^4 / a_t^2 cancels against the a_t^2 / sigma_t^4 of Eq. 8.
    """
    with torch.no_grad():
        distance = (ratio * (eps - eps_real)).abs().flatten(1).mean(1)
        return 1 / distance.clamp(min=WEIGHT_FLOOR)


def generator_loss(
    eps_real: Tensor, eps_fake2: Tensor, eps_fake3: Tensor, eps: Tensor, ratio: Tensor, alpha: float = 1.0
) -> Tensor:
    """(f_{phi, kappa4} - f_{psi, kappa2})^T (f_{psi, kappa3} - x_g) with Eq. 9's weight (Eq. 8): [B].

    This is alpha = 1, the paper's loss. Any other alpha gives SiD's general form
    (f_phi - f_psi)^T ((f_phi - x_g) - alpha (f_phi - f_psi)), whose second f_psi is the one with kappa3.

    Args:
        eps_real: eps_{phi, kappa4}(x_t, t, c).
        eps_fake2, eps_fake3: eps_{psi, kappa2} and eps_{psi, kappa3}; the same tensor when kappa2 = kappa3.
    """
    weight = generator_weight(eps_real, eps, ratio)
    difference = eps_fake2 - eps_real
    residual = eps - eps_fake3 if alpha == 1 else (eps - eps_real) - alpha * (eps_fake3 - eps_real)
    return weight * (ratio.square() * difference * residual).flatten(1).sum(1)
