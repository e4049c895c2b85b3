"""What a network weighs and works, by architecture (``footprints.yaml``). No torch in here; all sizes in GiB (2^30 bytes)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from sidlsg.data import read_table

GIB = 2**30


@dataclass(frozen=True)
class Saved:
    """GiB of tensors saved for the backward pass by one pass of one sample, with attention that never writes its softmax out."""

    trained: float  # by a network whose weights get gradients
    frozen: float  # by one through which gradients only pass
    checkpointed: float  # by either under gradient checkpointing: the inputs of its blocks
    block: float  # by the largest block, when it is computed again


@dataclass(frozen=True)
class Footprint:
    """One architecture at its own resolution, counted by ``counting.py``.

    Attributes:
        network, text_encoder, vae: numbers of parameters (text_encoder: of all of them).
        gflop: one forward pass of one sample.
        softmax: GiB of all self-attentions' softmaxes of one sample in 16 bits, which only unfused attention writes out.
        saved: by precision: fp16, bf16 (autocast, which saves more than pure 16 bit since normalisations compute in fp32), fp32.
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
