"""The update of one network: accumulate gradients over micro-batches, then all-reduce, clip and step once.

Nothing here reads a value back from the device, and every process always takes part in the all-reduce: a process whose
samples are all non-finite adds zeros instead of leaving the others waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sidlsg.method.optim import FullAdam, LeanAdam

# What replaces ±inf in gradients, as in the authors' code.
INFINITY = 1e5


def limit(grad: Tensor) -> float:
    """What replaces inf in a gradient of this dtype: 1e5, or for fp16 the largest number whose square is finite (255.9), since
    the optimiser's second moment has the gradient's dtype and would stay infinite for good."""
    return min(INFINITY, torch.finfo(grad.dtype).max ** 0.5)


def scrub(grad: Tensor) -> Tensor:
    """NaN becomes 0, ±inf becomes ±``limit(grad)``; finite values are unchanged."""
    return torch.nan_to_num(grad, nan=0.0, posinf=limit(grad), neginf=-limit(grad))


def finite_samples(x_g: Tensor) -> tuple[Tensor, Tensor]:
    """x_g [B, C, H, W] with non-finite samples replaced by zeros, and the mask [B] bool of the finite ones.

    The gradient that comes back to x_g is scrubbed here, so one sample's non-finite gradient cannot spoil the others. (A sample
    whose activations are non-finite inside a network costs that network the gradient of the micro-batch, but no more.)
    """
    keep = x_g.isfinite().flatten(1).all(1)
    if x_g.requires_grad:
        x_g.register_hook(scrub)
    return torch.where(keep.view(-1, *[1] * (x_g.ndim - 1)), x_g, 0), keep


@dataclass
class Stats:
    """Statistics of one update over the global batch: scalars on the device (reading one waits for the GPU).

    loss: mean over the batch; skipped: number of samples left out; x_mean, x_std: over all elements of x_g.
    """

    loss: Tensor
    skipped: Tensor
    x_mean: Tensor
    x_std: Tensor

    @classmethod
    def from_sums(cls, sums: Tensor, batch: int, elements: int) -> Stats:
        """From ``sums`` [4] = (losses, samples skipped, x_g, x_g^2) over ``batch`` samples of ``elements`` elements each."""
        loss, skipped, x_sum, x_square_sum = sums.unbind()
        mean = x_sum / (batch * elements)
        return cls(loss / batch, skipped, mean, (x_square_sum / (batch * elements) - mean**2).clamp(min=0).sqrt())


class NetworkUpdate:
    """Gradients, optimiser and statistics of one trained network.

    Args:
        module: the network; hooks scrub its gradients before they are accumulated.
        batch: size of the global batch, over which losses are averaged.
        clip_value: bound on every element of the accumulated gradient (the paper's recipe has it in fp16); None: no clipping.
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
            loss: [B], with its graph; keep: [B] bool; x_g: [B, C, H, W], only for the statistics.
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
            if gradient.dtype == torch.float16:
                gradient.clamp_(-limit(gradient), limit(gradient))
        if self.clip_value is not None:
            torch.nn.utils.clip_grad_value_(self.parameters, self.clip_value)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._sums = []
        return Stats.from_sums(sums, self.batch, self._elements)
