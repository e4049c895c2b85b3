"""Parameters, operations and memory of each architecture's passes (``footprints.yaml``), memory of the networks that score
pictures (``scorers.yaml``). Memory is in GiB (2^30 bytes). Does not import torch."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, field
from typing import Any

from sidlsg.data import read_table

GIB = 2**30


@dataclass(frozen=True)
class Moment:
    """Memory at one moment of a pass: GiB for each sample, and GiB however many samples there are (casts of weights, mostly)."""

    sample: float = 0.0
    fixed: float = 0.0

    def gib(self, samples: int) -> float:
        return self.sample * samples + self.fixed


@dataclass(frozen=True)
class Pass:
    """One forward pass of a network, and the backward pass that follows it.

    Attributes:
        forward: the fullest moments of the forward pass. Which is the fullest depends on the number of samples.
        kept: what it keeps for its backward pass when it has ended.
        backward: the fullest moments of the backward pass, with what is still kept. Gradients of weights exist before it, as
            from the second micro-batch on.
    """

    forward: tuple[Moment, ...]
    kept: Moment = Moment()
    backward: tuple[Moment, ...] = ()

    def as_dict(self) -> dict[str, list[list[float]] | list[float]]:
        """Plain values, without what a pass that keeps nothing lacks."""
        values: dict[str, list[list[float]] | list[float]] = {"forward": _pairs(self.forward)}
        if self.backward:
            values |= {"kept": _pairs((self.kept,))[0], "backward": _pairs(self.backward)}
        return values


def _pairs(moments: tuple[Moment, ...]) -> list[list[float]]:
    return [[moment.sample, moment.fixed] for moment in moments]


def _shown(value: Any) -> str:
    """A value as YAML, with numbers to four places."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return str(round(value, 4))


def passes_as_yaml(passes: dict[str, dict[str, Pass]]) -> list[str]:
    """Lines of ``footprints.yaml`` for ``Footprint.passes``."""
    lines = []
    for name, kinds in passes.items():
        lines.append(f"    {name}:")
        for kind, found in kinds.items():
            values = ", ".join(f"{key}: {_shown(value)}" for key, value in found.as_dict().items())
            lines.append(f"      {kind}: {{{values}}}")
    return lines


@dataclass(frozen=True)
class Footprint:
    """One architecture at its own resolution, counted by ``counting.py``.

    Attributes:
        network, text_encoder, vae: numbers of parameters (text_encoder: of all text encoders together).
        gflop: GFLOP of one forward pass of one sample.
        largest: number of elements of the largest weight.
        rounding: GiB that PyTorch's allocator adds to one copy of the network in 16 and in 32 bits.
        draw: GiB of one sample's noise, timestep and condition.
        decode: decoding pictures by the VAE in float32.
        passes: by way of computing (``way``) and kind: "trained", through a network whose weights get gradients; "frozen",
            through one that only passes gradients on to its input; "half", the same with weights stored in 16 bits; "drawn",
            without gradients; "probed", "trained" when there are no gradients yet and the pass makes them.
    """

    name: str
    network: int
    gflop: float
    text_encoder: int = 0
    vae: int = 0
    largest: int = 0
    rounding: tuple[float, float] = (0.0, 0.0)
    draw: float = 0.0
    decode: tuple[Moment, ...] = ()
    passes: dict[str, dict[str, Pass]] = field(default_factory=dict)

    def copy(self, bits: int) -> float:
        """One copy of the network in GiB."""
        return self.network * bits / 8 / GIB + self.rounding[bits // 32]

    def as_dict(self) -> dict[str, Any]:
        """Plain values; ``from_dict`` reads them."""
        passes = {way: {kind: found.as_dict() for kind, found in kinds.items()} for way, kinds in self.passes.items()}
        return asdict(self) | {"rounding": [*self.rounding], "decode": _pairs(self.decode), "passes": passes}

    def as_yaml(self) -> str:
        """As an entry of ``footprints.yaml``."""
        values = self.as_dict()
        lines = [f"{self.name}:"]
        lines += [f"  {key}: {values[key]}" for key in ("network", "text_encoder", "vae", "largest")]
        lines += [f"  {key}: {values[key]:.5g}" for key in ("gflop", "draw")]
        lines += [f"  {key}: {_shown(values[key])}" for key in ("rounding", "decode")]
        return "\n".join([*lines, "  passes:", *passes_as_yaml(self.passes)])


def from_dict(values: dict[str, Any]) -> Footprint:
    """A footprint from what ``as_dict`` gave."""

    def moments(pairs: list[list[float]]) -> tuple[Moment, ...]:
        return tuple(Moment(*pair) for pair in pairs)

    passes = {
        way: {
            kind: Pass(moments(row["forward"]), Moment(*row.get("kept", ())), moments(row.get("backward", [])))
            for kind, row in kinds.items()
        }
        for way, kinds in values.get("passes", {}).items()
    }
    sizes = {"rounding": tuple(values.get("rounding", (0.0, 0.0))), "decode": moments(values.get("decode", []))}
    return Footprint(**values | sizes | {"passes": passes})


def way(precision: str, attention: str, checkpointed: bool, compiled: bool) -> str:
    """The key of ``Footprint.passes`` for networks that compute so. xFormers keeps what SDPA keeps."""
    words = [
        precision,
        "eager attention" * (attention == "eager"),
        "checkpointed" * checkpointed,
        "compiled" * compiled,
    ]
    return ", ".join(filter(None, words))


@functools.cache
def footprints() -> dict[str, Footprint]:
    rows: dict[str, dict[str, Any]] = read_table("planning/footprints.yaml")
    return {name: from_dict(row | {"name": name}) for name, row in rows.items()}


@dataclass(frozen=True)
class ScorerSize:
    """GiB of the networks of an evaluation protocol, and of what encoding a batch of pictures holds at its fullest moment."""

    weights: float
    encoding: float


@functools.cache
def scorers() -> dict[str, ScorerSize]:
    """By protocol."""
    rows: dict[str, dict[str, float]] = read_table("planning/scorers.yaml")
    return {name: ScorerSize(**row) for name, row in rows.items()}
