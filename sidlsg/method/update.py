"""One network's share of an iteration: accumulate gradients over micro-batches, then reduce, clip and step once.

Nothing in here reads a value back from the device, and every process always takes part in the all-reduce: a process whose
samples are all non-finite adds zeros instead of leaving the others waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sidlsg.method.optim import FullAdam, LeanAdam

# What non-finite gradients become (the authors' recipe).
INFINITY = 1e5


def limit(grad: Tensor) -> float:
    """What ±inf becomes in a dtype: ±1e5, or the largest half."""
    return min(INFINITY, torch.finfo(grad.dtype).max)


def scrub(grad: Tensor) -> Tensor:
    """NaN to 0, ±inf to ±1e5; exactly the same values where all are finite."""
    return torch.nan_to_num(grad, nan=0.0, posinf=limit(grad), neginf=-limit(grad))


def finite_samples(x_g: Tensor) -> tuple[Tensor, Tensor]:
    """x_g with non-finite samples replaced by zeros, and which samples to keep [B] (bool).

    A gradient that comes back non-finite for one sample stops here, so it cannot spoil the others. (A sample that is
    already non-finite inside the network empties the weights' gradients of its micro-batch, never more.)
    """
    keep = x_g.isfinite().flatten(1).all(1)
    if x_g.requires_grad:
        x_g.register_hook(scrub)
    return torch.where(keep.view(-1, *[1] * (x_g.ndim - 1)), x_g, 0), keep


@dataclass
class Stats:
    """What one update did, over the global batch; scalars left on the device (reading them makes a GPU wait).

    loss: mean over the batch; skipped: samples left out; x_mean, x_std: of all elements of x_g.
    """

    loss: Tensor
    skipped: Tensor
    x_mean: Tensor
    x_std: Tensor

    @classmethod
    def from_sums(cls, sums: Tensor, batch: int, elements: int) -> Stats:
        """From [sum of losses, samples skipped, sum of x_g, sum of x_g^2]."""
        loss, skipped, x_sum, x_square_sum = sums.unbind()
        mean = x_sum / (batch * elements)
        return cls(loss / batch, skipped, mean, (x_square_sum / (batch * elements) - mean**2).clamp(min=0).sqrt())


class NetworkUpdate:
    """Gradients, optimiser and statistics of one trained network.

    Args:
        module: the network; its gradients are scrubbed as they are produced, before they are accumulated.
        batch: the global batch; losses are averaged over it.
        clip_value: gradients are clipped to ±clip_value after accumulation (pure fp16 only), or None.
        reduce: sums each tensor of a list over all processes, in place; None for a single process.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: LeanAdam | FullAdam,
        batch: int,
        clip_value: float | None = None,
        reduce: Callable[[list[Tensor]], None] | None = None,
    ) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer, self.batch, self.clip_value, self.reduce = optimizer, batch, clip_value, reduce
        for parameter in self.parameters:
            parameter.register_hook(scrub)  # runs before the gradient is added to .grad
        self._sums: list[Tensor] = []
        self._elements = 1

    def accumulate(self, loss: Tensor, keep: Tensor, x_g: Tensor) -> None:
        """Add the gradient of sum(loss) / global batch, leaving out non-finite samples.

        Args:
            loss: [B], with graph; keep: [B] bool; x_g: [B, C, H, W], only for the statistics.
        """
        keep = keep & loss.isfinite()
        kept = torch.where(keep, loss, 0)
        (kept.sum() / self.batch).backward()
        x_g = x_g.float()
        sums = (kept.detach().sum().float(), (~keep).sum().float(), x_g.sum(), x_g.square().sum())
        self._sums.append(torch.stack(sums))
        self._elements = x_g[0].numel()

    def step(self) -> Stats:
        """Sum gradients over processes, clip, take one Adam step, clear gradients; returns the batch's statistics."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        sums = torch.stack(self._sums).sum(0)
        if self.reduce is not None:
            self.reduce([*gradients, sums])
        for gradient in gradients:  # sums of finite halves can overflow
            torch.nan_to_num_(gradient, nan=0.0, posinf=limit(gradient), neginf=-limit(gradient))
        if self.clip_value is not None:
            torch.nn.utils.clip_grad_value_(self.parameters, self.clip_value)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._sums = []
        return Stats.from_sums(sums, self.batch, self._elements)
