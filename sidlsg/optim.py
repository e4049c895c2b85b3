"""Adam for beta1 = 0, where the first moment is the gradient itself and need not be kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


class LeanAdam(torch.optim.Optimizer):
    """``torch.optim.Adam(betas=(0, beta2))`` bit for bit, with one state tensor a parameter instead of two.

    Args:
        params: parameters; the state takes their dtype, as torch's does.
        lr: step size. eps: added to the root of the second moment.
        chunk: elements updated at once, which bounds the temporaries.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-6,
        beta2: float = 0.999,
        eps: float = 1e-8,
        chunk: int = 2**26,
    ) -> None:
        super().__init__(params, {"lr": lr, "beta2": beta2, "eps": eps, "step": 0})
        self.chunk = chunk

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            group["step"] += 1
            correction = (1 - group["beta2"] ** group["step"]) ** 0.5
            for params in self._chunks([p for p in group["params"] if p.grad is not None]):
                grads: list[Tensor] = [p.grad for p in params]  # type: ignore[misc]
                second = [self.second_moment(p) for p in params]
                torch._foreach_mul_(second, group["beta2"])
                torch._foreach_addcmul_(second, grads, grads, 1 - group["beta2"])
                denominator = torch._foreach_sqrt(second)
                torch._foreach_div_(denominator, correction)
                torch._foreach_add_(denominator, group["eps"])
                torch._foreach_addcdiv_(params, grads, denominator, -group["lr"])

    def second_moment(self, parameter: Tensor) -> Tensor:
        """The running mean of squared gradients of one parameter, created as zeros when first asked for."""
        state = self.state[parameter]
        if "second_moment" not in state:
            state["second_moment"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state["second_moment"]

    def _chunks(self, params: list[nn.Parameter]) -> Iterator[list[Tensor]]:
        part: list[Tensor] = []
        size = 0
        for parameter in params:
            if part and size + parameter.numel() > self.chunk:
                yield part
                part, size = [], 0
            part.append(parameter)
            size += parameter.numel()
        if part:
            yield part
