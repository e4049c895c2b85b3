"""The networks of an evaluation protocol with random weights: no file is read, and none is needed to count or to run them.

``python -m nullgpu.scorer``, in ``tests/``, prints ``sidlsg/planning/scorers.yaml``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from sidlsg.evaluation import networks
from sidlsg.evaluation.protocol import Protocol, protocols
from sidlsg.evaluation.scorer import BATCH, Scorer
from sidlsg.planning.counting import _Live, allocated
from sidlsg.planning.footprint import GIB


@contextmanager
def random_weights(device: torch.device) -> Iterator[None]:
    """Inside the block a ``Scorer`` is built without weights files, its large networks on the device from the start."""
    import open_clip

    found = networks._open_clip

    def on_the_device(name: str, weights: Path | None, *about: Any) -> Any:
        if weights is None:  # the judge, which comes with the package
            return found(name, weights, *about)
        with torch.device(device):
            return open_clip.create_model(name, device=device).eval().requires_grad_(False)

    with (
        patch("sidlsg.evaluation.scorer.find_weights", lambda name, given: Path(name)),
        patch("sidlsg.evaluation.scorer.file_sha256", lambda path: ""),
        patch.object(networks, "_open_clip", on_the_device),
        patch.object(torch, "load", lambda *_, **__: {}),
        patch.object(networks.FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None),
    ):
        yield


def fullest(run: Callable[[], Any]) -> int:
    """Bytes at the fullest moment of what runs without gradient on the meta device."""
    with _Live() as live, torch.no_grad():
        run()
    return max(live.at)


def count(protocol: Protocol) -> tuple[float, float]:
    """GiB of the networks of a protocol, and of what encoding ``BATCH`` pictures holds at its fullest moment."""
    meta = torch.device("meta")
    with random_weights(meta):
        scorer = Scorer(protocol, meta)
    assert scorer.extractor is not None
    assert scorer.clip is not None
    modules: list[nn.Module] = [scorer.extractor, *([] if scorer.shared else [scorer.clip.model])]
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    pictures, side = (
        torch.empty(BATCH, 3, protocol.size, protocol.size, dtype=torch.uint8, device=meta),
        scorer.clip.size,
    )
    prepared = torch.empty(BATCH, 3, side, side, device=meta)
    moments = [fullest(lambda: scorer.extractor(pictures.clone()))]
    if not scorer.shared:
        moments.append(fullest(lambda: scorer.clip.encode_prepared(prepared.clone())))
    return sum(allocated(t.nbytes) for t in tensors) / GIB, max(moments) / GIB


if __name__ == "__main__":
    for name, protocol in protocols().items():
        weights, encoding = count(protocol)
        print(f"{name}: {{weights: {weights:.4f}, encoding: {encoding:.4f}}}")
