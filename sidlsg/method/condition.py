"""The conditioning of a network: its inputs other than x_t and t."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """The conditioning of B samples: named tensors, each with the batch as its first dimension.

    The model family defines the names: Stable Diffusion has the text embeddings ``text`` [B, L, D], SDXL also pooled embeddings
    and time ids. Algorithm 1 only splits, stacks and mixes whole conditions. The empty prompt ∅ is a condition of one sample.
    """

    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    def _map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        return Condition({name: change(tensor) for name, tensor in self.tensors.items()})

    def rows(self, index: slice | Sequence[int]) -> Condition:
        """The samples at ``index``."""
        return self._map(lambda tensor: tensor[index])

    def split(self, size: int) -> Iterator[Condition]:
        """Yield conditions of ``size`` samples each, in order; the last may be smaller."""
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))

    def expand(self, count: int) -> Condition:
        """This condition of one sample, repeated for ``count`` samples without copying."""
        return self._map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def to(self, target: torch.device | torch.dtype) -> Condition:
        """Move to a device, or cast the floating-point tensors to a dtype (masks and ids keep theirs)."""
        if isinstance(target, torch.device):
            return self._map(lambda tensor: tensor.to(target))
        return self._map(lambda tensor: tensor.to(target) if tensor.is_floating_point() else tensor)

    def where(self, mask: Tensor, other: Condition) -> Condition:
        """Sample i of this condition where mask[i] is true, else of ``other`` (which may have one sample, taken for every i).

        Args:
            mask: [B] bool, on any device.
        """
        mask = mask.to(self.device)

        def choose(name: str) -> Tensor:
            mine = self.tensors[name]
            return torch.where(mask.view(-1, *[1] * (mine.ndim - 1)), mine, other[name])

        return Condition({name: choose(name) for name in self.tensors})

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """The samples of all conditions, one after the other."""
        return Condition({name: torch.cat([c[name] for c in conditions]) for name in conditions[0].tensors})
