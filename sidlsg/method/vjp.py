"""Backpropagation of a loss through several frozen networks at one input: through all at once, or one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Network = Callable[[Tensor], tuple[Tensor, ...]]
Loss = Callable[..., Tensor]


def at_once(loss: Loss, networks: Sequence[Network], x_t: Tensor) -> Tensor:
    """loss(*outputs of all networks at x_t), [B]; autograd keeps every graph until the backward pass."""
    return loss(*(output for network in networks for output in network(x_t)))


def one_at_a_time(loss: Loss, networks: Sequence[Network], x_t: Tensor) -> Tensor:
    """The same value and the same gradient with respect to x_t, with one network's graph alive at a time.

    First computes all outputs without graphs, and the gradients v of the loss with respect to them. Then runs each network
    again, with a graph, for its vector-Jacobian product J^T v. These sum to g = dL/dx_t; a term with value 0 and gradient g hands
    it to autograd. Costs one more forward pass of every network; equal to ``at_once`` up to the order of summation.

    Args:
        loss: outputs [B, C, H, W] of the networks, in order -> one loss per sample [B].
        networks: x_t [B, C, H, W] -> a tuple of outputs; sample i of an output depends on sample i of x_t only.
        x_t: [B, C, H, W], with its graph.
    """
    with torch.no_grad():
        values = [network(x_t) for network in networks]
    with torch.enable_grad():
        leaves = [tuple(value.detach().requires_grad_() for value in outputs) for outputs in values]
        total = loss(*(leaf for outputs in leaves for leaf in outputs))
        flat = [leaf for outputs in leaves for leaf in outputs]
        vectors = list(torch.autograd.grad(total.sum(), flat, materialize_grads=True))
        gradient = torch.zeros_like(x_t)
        for network, outputs in zip(networks, leaves, strict=True):
            mine, vectors = vectors[: len(outputs)], vectors[len(outputs) :]
            x = x_t.detach().requires_grad_()
            again = network(x)
            if any(output.requires_grad for output in again):
                gradient += torch.autograd.grad(again, x, grad_outputs=mine)[0]
    carrier = (x_t * gradient).flatten(1).sum(1)
    return total.detach() + (carrier - carrier.detach())
