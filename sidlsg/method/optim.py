"""Adam for beta1 = 0, where the first moment is the gradient itself and need not be kept."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sidlsg.method.chunks import chunks, parts


class FullAdam(torch.optim.Adam):
    """``torch.optim.Adam(betas=(0, beta2))`` with the extra methods of ``LeanAdam``, as its reference."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 1e-6, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        super().__init__(params, lr=lr, betas=(0.0, beta2), eps=eps)
        # As torch.optim.Adam makes them in its first step. The first moment is the gradient, once there has been one.
        state = {
            i: {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            for i, p in enumerate(self.param_groups[0]["params"])
        }
        self.load_state_dict(self.state_dict() | {"state": state})

    def second_moment(self, parameter: Tensor) -> Tensor:
        """The running mean of squared gradients of one parameter."""
        return self.state[parameter]["exp_avg_sq"]

    @property
    def steps(self) -> int:
        """Steps taken."""
        return max(int(state["step"]) for state in self.state.values())

    @steps.setter
    def steps(self, value: int) -> None:
        for state in self.state.values():
            state["step"].fill_(value)


class LeanAdam(torch.optim.Optimizer):
    """The updates of ``torch.optim.Adam(betas=(0, beta2))``, bit for bit, with one state tensor per parameter instead of two.

    Args:
        params: the parameters, on one device; the state has their dtype, as in torch.
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
        self.offload = offload
        # One tensor for each chunk: it is moved in one copy, and PyTorch rounds every pinned tensor up to a power of two.
        self._chunks: list[tuple[list[nn.Parameter], Tensor]] = []
        for part in chunks(self.param_groups[0]["params"], chunk):
            first = part[0]
            second = torch.zeros(
                sum(p.numel() for p in part),
                dtype=first.dtype,
                device="cpu" if offload else first.device,
                pin_memory=offload and first.is_cuda,
            )
            self._chunks.append((part, second))
            for parameter, moment in zip(part, parts(second, part), strict=True):
                self.state[parameter]["second_moment"] = moment

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        (group,) = self.param_groups
        group["step"] += 1
        correction = (1 - group["beta2"] ** group["step"]) ** 0.5
        for chunk, kept in self._chunks:
            here = kept.to(chunk[0].device, non_blocking=True, copy=True) if self.offload else kept
            found = [(p, v) for p, v in zip(chunk, parts(here, chunk), strict=True) if p.grad is not None]
            if not found:
                continue
            params, second = map(list, zip(*found, strict=True))
            grads: list[Tensor] = [p.grad for p in params]
            torch._foreach_mul_(second, group["beta2"])
            torch._foreach_addcmul_(second, grads, grads, 1 - group["beta2"])
            denominator = torch._foreach_sqrt(second)
            torch._foreach_div_(denominator, correction)
            torch._foreach_add_(denominator, group["eps"])
            torch._foreach_addcdiv_(params, grads, denominator, -group["lr"])
            if self.offload:
                # From a GPU, asynchronous; the order of the stream puts it before the next step's copy to the GPU.
                kept.copy_(here, non_blocking=True)

    def second_moment(self, parameter: Tensor) -> Tensor:
        """The running mean of squared gradients of one parameter."""
        return self.state[parameter]["second_moment"]

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self.param_groups[0]["step"]

    @steps.setter
    def steps(self, value: int) -> None:
        self.param_groups[0]["step"] = value
