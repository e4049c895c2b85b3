"""Adam for beta1 = 0, where the first moment is the gradient itself and need not be kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


class FullAdam(torch.optim.Adam):
    """``torch.optim.Adam(betas=(0, beta2))`` with the extra methods of ``LeanAdam``, as its reference."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 1e-6, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        super().__init__(params, lr=lr, betas=(0.0, beta2), eps=eps)

    def second_moment(self, parameter: Tensor) -> Tensor:
        """The running mean of squared gradients of one parameter; creates torch's whole state if there is none yet."""
        state = self.state[parameter]
        if "exp_avg_sq" not in state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)  # the gradient, once there has been one
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state["exp_avg_sq"]

    @property
    def steps(self) -> int:
        """Steps taken."""
        return max((int(state["step"]) for state in self.state.values()), default=0)

    @steps.setter
    def steps(self, value: int) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.second_moment(parameter)
            self.state[parameter]["step"].fill_(value)


class LeanAdam(torch.optim.Optimizer):
    """The updates of ``torch.optim.Adam(betas=(0, beta2))``, bit for bit, with one state tensor per parameter instead of two.

    Args:
        params: the parameters; the state has their dtype, as in torch.
        lr: step size. eps: added to the root of the second moment.
        chunk: number of elements updated at once, which bounds the temporary memory.
        offload: keep the state on the CPU (in pinned memory if the parameters are on a GPU). ``step`` moves it through the
            parameters' device chunk by chunk, so it takes no memory there while gradients are computed.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-6,
        beta2: float = 0.999,
        eps: float = 1e-8,
        chunk: int = 2**26,
        offload: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "beta2": beta2, "eps": eps, "step": 0})
        self.chunk, self.offload = chunk, offload

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            group["step"] += 1
            correction = (1 - group["beta2"] ** group["step"]) ** 0.5
            for params in self._chunks([p for p in group["params"] if p.grad is not None]):
                grads: list[Tensor] = [p.grad for p in params]  # type: ignore[misc]
                kept = [self.second_moment(p) for p in params]
                second = (
                    [v.to(p.device, non_blocking=True, copy=True) for v, p in zip(kept, params, strict=True)]
                    if self.offload
                    else kept
                )
                torch._foreach_mul_(second, group["beta2"])
                torch._foreach_addcmul_(second, grads, grads, 1 - group["beta2"])
                denominator = torch._foreach_sqrt(second)
                torch._foreach_div_(denominator, correction)
                torch._foreach_add_(denominator, group["eps"])
                torch._foreach_addcdiv_(params, grads, denominator, -group["lr"])
                if self.offload:
                    # From a GPU, asynchronous; the order of the stream puts it before the next step's copy to the GPU.
                    torch._foreach_copy_(kept, second, non_blocking=True)

    def second_moment(self, parameter: Tensor) -> Tensor:
        """The running mean of squared gradients of one parameter, created as zeros when first asked for."""
        state = self.state[parameter]
        if "second_moment" not in state:
            zeros = torch.zeros_like(
                parameter, memory_format=torch.preserve_format, device="cpu" if self.offload else None
            )
            state["second_moment"] = zeros.pin_memory() if self.offload and parameter.is_cuda else zeros
        return state["second_moment"]

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self.param_groups[0]["step"]

    @steps.setter
    def steps(self, value: int) -> None:
        self.param_groups[0]["step"] = value

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
