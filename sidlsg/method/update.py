"""The update of one network: accumulate gradients over micro-batches, then all-reduce, clip and step once.

What is not finite is dealt with here, in this order:

1. ``finite_samples`` replaces an image x_g that is not finite by zeros, and masks its sample.
2. ``NetworkUpdate.accumulate`` masks samples whose loss is not finite: the loss of a masked sample counts as zero.
3. ``scrub`` cleans, element by element, the gradient that arrives at x_g, where one sample's cannot spoil the others, and that of
   every parameter before it is added to those of the earlier micro-batches.
4. ``NetworkUpdate.step`` adds up the processes' gradients and scrubs the sum: finite halves can add up to infinity.

Nothing here reads a value back from the device, and every process always takes part in the all-reduce: a process whose
samples are all non-finite adds zeros instead of leaving the others waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sidlsg.method.chunks import chunks, parts
from sidlsg.method.optim import FullAdam, LeanAdam

# Elements of one message between processes: 64 MiB in fp32.
BUCKET = 2**24

# What replaces ±inf in gradients, as in the authors' code.
INFINITY = 1e5


def limit(grad: Tensor) -> float:
    """What replaces inf in a gradient of this dtype: 1e5, or for fp16 the largest number whose square is finite (255.9), since
    the optimiser's second moment has the gradient's dtype and would stay infinite for good."""
    return min(INFINITY, torch.finfo(grad.dtype).max ** 0.5)


def scrub(grad: Tensor, out: Tensor | None = None) -> Tensor:
    """NaN becomes 0, ±inf becomes ±``limit(grad)``; finite values are unchanged. ``out``: where to put it, instead of a copy."""
    return torch.nan_to_num(grad, nan=0.0, posinf=limit(grad), neginf=-limit(grad), out=out)


def norm(gradients: list[Tensor]) -> Tensor:
    """The norm over all elements of tensors of one dtype, in at least fp32: a scalar on their device."""
    dtype = torch.promote_types(gradients[0].dtype, torch.float32)
    return torch.stack([*torch._foreach_norm(gradients, 2, dtype)]).norm()


def sum_in_buckets(tensors: list[Tensor], reduce: Callable[[Tensor], None]) -> None:
    """``reduce`` the tensors in place, of one dtype and BUCKET elements at a time: a UNet's 686 gradients are few messages."""
    for part in chunks(tensors, BUCKET):
        bucket = part[0].new_empty(sum(t.numel() for t in part))
        pieces = parts(bucket, part)
        torch._foreach_copy_(pieces, part)
        reduce(bucket)
        torch._foreach_copy_(part, pieces)


def finite_samples(x_g: Tensor) -> tuple[Tensor, Tensor]:
    """x_g [B, C, H, W] with non-finite samples replaced by zeros, and the mask [B] bool of the finite ones. The gradient that
    comes back to x_g is scrubbed."""
    keep = x_g.isfinite().flatten(1).all(1)
    if x_g.requires_grad:
        x_g.register_hook(scrub)
    return torch.where(keep.view(-1, *[1] * (x_g.ndim - 1)), x_g, 0), keep


@dataclass
class Losses:
    """What the B samples of a micro-batch give to an update.

    loss: [B], with its graph; keep: [B] bool, whether the image is finite; x_g: [B, C, H, W], without a graph;
    statistics: [B, K], to be summed over the samples that count.
    """

    loss: Tensor
    keep: Tensor
    x_g: Tensor
    statistics: Tensor | None = None


@dataclass
class Stats:
    """Statistics of one update over the global batch, on the device (reading one waits for the GPU).

    loss: mean over the batch; skipped: number of samples left out; x_mean, x_std: over all elements of x_g; grad_norm: of the
    gradient over all parameters, before clipping; sums: [K], of ``Losses.statistics``.
    """

    loss: Tensor
    skipped: Tensor
    x_mean: Tensor
    x_std: Tensor
    grad_norm: Tensor
    sums: Tensor

    @classmethod
    def from_sums(cls, sums: Tensor, batch: int, elements: int, grad_norm: Tensor) -> Stats:
        """From ``sums`` [4 + K] = (losses, samples skipped, x_g, x_g^2, statistics) over ``batch`` samples.

        Args:
            elements: of one sample's x_g.
        """
        loss, skipped, x_sum, x_square_sum = sums[:4].unbind()
        mean = x_sum / (batch * elements)
        std = (x_square_sum / (batch * elements) - mean**2).clamp(min=0).sqrt()
        return cls(loss / batch, skipped, mean, std, grad_norm, sums[4:])


class NetworkUpdate:
    """Gradients, optimiser and statistics of one trained network.

    Args:
        module: the network; hooks scrub its gradients before they are accumulated.
        batch: size of the global batch, over which losses are averaged.
        clip_value: bound on every element of the accumulated gradient (the paper's recipe has it in fp16); None: no clipping.
        reduce: sums a tensor over all processes, in place; None for a single process.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: LeanAdam | FullAdam,
        batch: int,
        clip_value: float | None = None,
        reduce: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer, self.batch, self.clip_value, self.reduce = optimizer, batch, clip_value, reduce
        for parameter in self.parameters:
            parameter.register_hook(scrub)
        self._sums: list[Tensor] = []
        self._elements = 1

    def accumulate(self, found: Losses) -> None:
        """Add the gradient of sum(loss) / global batch, leaving out non-finite samples."""
        keep, x_g = found.keep & found.loss.isfinite(), found.x_g.float()
        kept = torch.where(keep, found.loss, 0)
        (kept.sum() / self.batch).backward()
        sums = torch.stack([kept.detach().sum().float(), (~keep).sum().float(), x_g.sum(), x_g.square().sum()])
        if found.statistics is not None:
            sums = torch.cat([sums, torch.where(keep[:, None], found.statistics, 0).sum(0)])
        self._sums.append(sums)
        self._elements = x_g[0].numel()

    def step(self) -> Stats:
        """Sum gradients over processes, clip, take one Adam step, clear gradients; returns the batch's statistics."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        sums = torch.stack(self._sums).sum(0)
        if self.reduce is not None:
            sum_in_buckets([*gradients, sums], self.reduce)
        for gradient in gradients:
            scrub(gradient, out=gradient)
            if gradient.dtype == torch.float16:
                gradient.clamp_(-limit(gradient), limit(gradient))
        grad_norm = norm(gradients) if gradients else sums.new_zeros(())
        if self.clip_value is not None:
            torch.nn.utils.clip_grad_value_(self.parameters, self.clip_value)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._sums = []
        return Stats.from_sums(sums, self.batch, self._elements, grad_norm)
