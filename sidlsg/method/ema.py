"""Exponential moving average of the generator, in fp32, with a half-life counted in images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn

from sidlsg.method.chunks import chunks, parts


def ema_decay(images_seen: int, batch: int, half_life: float, ramp_up: float | None) -> float:
    """The factor 0.5^(batch / h) by which the average is multiplied in an iteration that starts at ``images_seen`` images.

    The half-life h = min(half_life, ramp_up x images_seen) grows from 0, so that the initial weights are forgotten quickly; with
    ``ramp_up`` None, h = half_life.
    """
    if ramp_up is not None:
        half_life = min(half_life, ramp_up * images_seen)
    return 0.5 ** (batch / half_life) if half_life > 0 else 0.0


class Ema:
    """Averages of ``module``'s parameters by name, in fp32 or wider; buffers are not averaged (the UNets here have none).

    Args:
        device: where the averages are kept; None is the module's own. On the CPU they take no GPU memory, but every update waits
            for the weights to be copied over the bus.
        chunk: number of elements averaged at once, which bounds the temporary memory.
    """

    def __init__(self, module: nn.Module, device: torch.device | None = None, chunk: int = 2**24) -> None:
        self.module, self.chunk = module, chunk
        self.average: dict[str, Tensor] = {
            name: p.detach().to(device or p.device, torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in module.named_parameters()
        }

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average <- decay average + (1 - decay) theta."""
        averages = iter(self.average.values())
        device = next(iter(self.average.values())).device
        for part in arriving(list(chunks(self.module.parameters(), self.chunk)), device):
            mine = list(islice(averages, len(part)))
            torch._foreach_lerp_(mine, [p.to(a.dtype) for p, a in zip(part, mine, strict=True)], 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside the block the module has the averaged weights."""
        parameters = dict(self.module.named_parameters())
        kept = {name: p.data for name, p in parameters.items()}
        try:
            for name, p in parameters.items():
                p.data = self.average[name].to(p.device, p.dtype)
            yield
        finally:
            for name, p in parameters.items():
                p.data = kept[name]


def arriving(groups: Sequence[Sequence[Tensor]], device: torch.device) -> Iterator[Sequence[Tensor]]:
    """Each group of tensors on ``device``, valid until the next one is asked for. From a GPU to the CPU the next group is on its
    way meanwhile, through two pinned buffers of the size of the largest group."""
    source = groups[0][0]
    if not (source.is_cuda and device.type == "cpu"):
        yield from ([t.to(device) for t in group] for group in groups)
        return
    size = max(sum(t.numel() for t in group) for group in groups)
    dtypes = {group[0].dtype for group in groups}
    buffers = [{dtype: torch.empty(size, dtype=dtype, pin_memory=True) for dtype in dtypes} for _ in range(2)]
    arrived = [torch.cuda.Event() for _ in buffers]

    def send(place: int) -> list[Tensor]:
        group, turn = groups[place], place % len(buffers)
        copies = parts(buffers[turn][group[0].dtype], group)
        for copy, tensor in zip(copies, group, strict=True):
            copy.copy_(tensor, non_blocking=True)
        arrived[turn].record(torch.cuda.current_stream(source.device))
        return copies

    following = send(0)
    for place in range(len(groups)):
        here = following
        if place + 1 < len(groups):
            following = send(place + 1)
        arrived[place % len(buffers)].synchronize()
        yield here
