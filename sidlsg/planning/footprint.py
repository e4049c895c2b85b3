"""Parameters, operations and saved tensors of each architecture (``footprints.yaml``). Memory is in GiB (2^30 bytes). Does not
import torch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from sidlsg.data import read_table

GIB = 2**30


@dataclass(frozen=True)
class Saved:
    """GiB that one pass of one sample saves for its backward pass, with fused attention (which does not store its softmax)."""

    trained: float  # through a network whose weights get gradients
    frozen: float  # through one that only passes gradients on to its input
    checkpointed: float  # through either, under gradient checkpointing: the inputs of its blocks
    block: float  # through the largest block, while it is recomputed


@dataclass(frozen=True)
class Footprint:
    """One architecture at its own resolution, counted by ``counting.py``.

    Attributes:
        network, text_encoder, vae: numbers of parameters (text_encoder: of all text encoders together).
        gflop: GFLOP of one forward pass of one sample.
        softmax: GiB of the softmaxes of all self-attentions for one sample, in 16 bits; only unfused attention stores them.
        saved: by precision: fp16, bf16 (autocast, which saves more than fp16 because normalisations run in fp32), fp32.
    """

    name: str
    network: int
    gflop: float
    text_encoder: int = 0
    vae: int = 0
    softmax: float = 0.0
    saved: dict[str, Saved] | None = None

    def copy(self, bits: int) -> float:
        """One copy of the network in GiB."""
        return self.network * bits / 8 / GIB

    def as_yaml(self) -> str:
        """As an entry of ``footprints.yaml``."""
        lines = [f"{self.name}:"]
        lines += [f"  {key}: {getattr(self, key)}" for key in ("network", "text_encoder", "vae")]
        lines += [f"  {key}: {getattr(self, key):.5g}" for key in ("gflop", "softmax")]
        lines.append("  saved:")
        for precision, row in (self.saved or {}).items():
            values = ", ".join(f"{key}: {value:.3f}" for key, value in vars(row).items())
            lines.append(f"    {precision}: {{{values}}}")
        return "\n".join(lines)


@functools.cache
def footprints() -> dict[str, Footprint]:
    rows: dict[str, dict[str, Any]] = read_table("planning/footprints.yaml")
    found = {}
    for name, row in rows.items():
        saved = {precision: Saved(**values) for precision, values in row.pop("saved", {}).items()}
        found[name] = Footprint(name, saved=saved or None, **row)
    return found
