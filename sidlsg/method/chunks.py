"""A network's tensors in groups of bounded size, so that work on all of them needs memory for one group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

AnyTensor = TypeVar("AnyTensor", bound=Tensor)


def chunks(tensors: Iterable[AnyTensor], size: int) -> Iterator[list[AnyTensor]]:
    """Groups of consecutive tensors of one dtype, of at most ``size`` elements; a larger tensor is a group of its own."""
    part: list[AnyTensor] = []
    count = 0
    for tensor in tensors:
        if part and (count + tensor.numel() > size or part[0].dtype != tensor.dtype):
            yield part
            part, count = [], 0
        part.append(tensor)
        count += tensor.numel()
    if part:
        yield part


def parts(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Consecutive pieces of ``flat`` [N], each with the shape and the memory layout of the tensor it is for."""
    pieces = flat[: sum(t.numel() for t in like)].split([t.numel() for t in like])
    return [torch.as_strided(piece, t.shape, t.stride()) for piece, t in zip(pieces, like, strict=True)]
