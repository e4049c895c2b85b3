"""Whether the published architectures' footprints were counted with today's code, and the count.

Counting SDXL takes half a minute, and nothing but the files and libraries below can change the result. ``cd tests && python -m
support.counted`` counts all of them and records these.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import sidlsg
from sidlsg.planning.cost import FULL_BACKWARD, INPUT_BACKWARD
from sidlsg.planning.counting import count, count_decoding, count_pass, size
from sidlsg.planning.footprint import Moment, Pass, footprints, way
from sidlsg.teachers.architectures import build_model, build_network

RECORD = Path(__file__).parents[1] / "counted.json"
FILES = (
    "planning/counting.py",
    "planning/footprint.py",
    "planning/footprints.yaml",
    "teachers/architectures.py",
    "teachers/architectures.yaml",
    "teachers/unet_family.py",
    "teachers/stable_diffusion.py",
    "teachers/sdxl.py",
)
LIBRARIES = ("torch", "diffusers", "transformers")
# Of each architecture, the passes that are counted again: kind, precision, checkpointed. The first of sd15's always.
COUNTED_AGAIN = {
    "sd15": [("trained", "bf16", False), ("probed", "bf16", True)],
    "sd21-base": [("frozen", "fp32", False)],
    "sdxl": [("half", "bf16", True)],
}


def made_of() -> dict[str, Any]:
    """The versions of the libraries, and the SHA-256 of all files, which a count depends on."""
    total = hashlib.sha256()
    for name in FILES:
        total.update((Path(sidlsg.__file__).parent / name).read_bytes().replace(b"\r\n", b"\n"))
    versions = {name: importlib.metadata.version(name).split("+")[0] for name in LIBRARIES}
    return versions | {"sha256": total.hexdigest()}


def moments(found: Pass) -> tuple[Moment, ...]:
    return (*found.forward, found.kept, *found.backward)


def numbers(*found: Moment) -> list[float]:
    return [value for moment in found for value in (moment.sample, moment.fixed)]


def check_footprint(name: str, passes: Sequence[tuple[str, str, bool]]) -> None:
    """Count parameters, operations, and the memory of some passes, on the meta device at real shape; they must be the table's."""
    model, known = build_model(name, torch.device("meta")), footprints()[name]
    encoders = sum(size(part) for key, part in model.parts.items() if key.startswith("text_encoder"))
    cost = count(model.network, model.family)
    assert (cost.parameters, encoders, size(model.vae)) == (known.network, known.text_encoder, known.vae)
    assert cost.forward / 1e9 == pytest.approx(known.gflop, rel=1e-3)
    decoded = count_decoding(model.vae, model.family, model.latent_shape)
    assert numbers(*decoded) == pytest.approx(numbers(*known.decode), abs=1e-3)
    for kind, precision, checkpointed in passes:
        found = count_pass(
            lambda dtype: build_network(name, "meta", dtype), model.family, kind, precision, "sdpa", checkpointed
        )
        row = known.passes[way(precision, "sdpa", checkpointed, False)][kind]
        assert numbers(*moments(found)) == pytest.approx(numbers(*moments(row)), abs=1e-3)
    assert cost.backward / cost.forward == pytest.approx(FULL_BACKWARD, abs=0.01)
    assert cost.input_backward / cost.forward == pytest.approx(INPUT_BACKWARD, abs=0.05)


def main() -> None:
    for name, passes in COUNTED_AGAIN.items():
        check_footprint(name, passes)
    RECORD.write_text(json.dumps(made_of(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
