"""From pictures to scores: encode all pictures once with the networks of a protocol, then compute its scores."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from sidlsg.errors import SidlsgError
from sidlsg.evaluation.distance import check_finite, frechet_distance, moments, precision_recall, retrieval
from sidlsg.evaluation.networks import JUDGE, Clip, feature_extractor, full_precision, load_clip
from sidlsg.evaluation.picture_file import load_rgb
from sidlsg.evaluation.pictures import load_sheet, to_protocol
from sidlsg.evaluation.protocol import Protocol
from sidlsg.evaluation.reference import BENCH, Reference, cache_path, cached
from sidlsg.evaluation.request import METRICS
from sidlsg.evaluation.weights import file_sha256, find_weights

BATCH = 32  # pictures a forward pass
Tick = Callable[[int], None]


def scores_of(protocol: Protocol, metrics: Sequence[str]) -> list[str]:
    """The names of the scores that belong to some of the metrics fid, clip and pr, in the order of a report."""
    retrieval = ["retrieval_top1", "retrieval_top5"] if protocol.retrieval else []
    names = {"fid": [protocol.distance.lower()], "clip": ["clip"], "pr": ["precision", "recall"]}
    return [name for metric in METRICS if metric in metrics for name in names[metric]] + retrieval * ("clip" in metrics)


def obstacles(
    protocol: Protocol,
    metrics: Sequence[str],
    *,
    pictures: int,
    real: int | None,
    real_features: bool = True,
    captions: bool = True,
    paired: int,
) -> dict[str, str]:
    """Why some of the metrics cannot be computed: metric -> reason.

    Args:
        pictures: generated pictures.
        real: pictures of the reference (0: unknown); None when there is no reference.
        real_features: whether the reference holds features, not statistics alone.
        captions: whether there are any.
        paired: generated pictures that have a caption.
    """
    reasons = {}
    for metric, need in (("fid", 2), ("pr", protocol.neighbours + 1)):
        if real is None:
            reasons[metric] = "there is no reference (--reference)"
        elif pictures < need or 0 < real < need:
            reasons[metric] = f"at least {need} pictures are needed, of either kind"
        elif metric == "pr" and not real_features:
            reasons[metric] = "the reference file holds statistics alone, no features"
    if not captions:
        reasons["clip"] = "there are no captions (--prompts)"
    elif not paired:
        reasons["clip"] = "no picture is named by the number of a caption"
    return {metric: reason for metric, reason in reasons.items() if metric in metrics}


@dataclass
class Encoded:
    """Features [N, D] and CLIP embeddings [N, E] (unit vectors) of pictures, in their order; empty or None if not asked for."""

    features: Tensor
    embeddings: Tensor | None = None


class Pictures(Dataset[tuple[Tensor, Tensor] | SidlsgError]):
    """Pictures from files or memory. An item is (uint8 [3, S, S] for the features, float32 [3, s, s] for CLIP or empty).

    What is wrong with a file is an item too: of an exception that a worker process raises, the loader makes a traceback.
    """

    def __init__(self, items: Sequence[Path | Image.Image], protocol: Protocol, clip: Clip | None) -> None:
        self.items, self.protocol, self.clip = items, protocol, clip

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor] | SidlsgError:
        item = self.items[i]
        name = "a generated picture" if isinstance(item, Image.Image) else item
        try:
            picture = item if isinstance(item, Image.Image) else load_rgb(item)
            pixels = to_protocol(picture, self.protocol, name)
        except SidlsgError as error:
            return error
        for_clip = torch.empty(0) if self.clip is None else self.clip.prepare(pixels)
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1), for_clip


def collate(items: list[tuple[Tensor, Tensor] | SidlsgError]) -> Any:
    """A batch of items of ``Pictures``, or the first of them that is an error."""
    return next((item for item in items if isinstance(item, SidlsgError)), None) or default_collate(items)


def loader_workers(device: torch.device, pictures: int) -> int:
    """How many processes read and prepare pictures beside the one that encodes them."""
    return min(8, (os.cpu_count() or 1) - 1) if device.type == "cuda" and pictures > 256 else 0


class Scorer:
    """Loads the networks of one protocol and computes its scores.

    Args:
        metrics: which of fid, clip and pr (precision and recall); networks that none of them needs are not loaded.
        inception, clip: paths of weights files; None looks in the cache, then downloads.
        batch: pictures a forward pass; None: ``BATCH``.

    Raises UsageError or SidlsgError when a weights file is missing or belongs to another model.
    """

    def __init__(
        self,
        protocol: Protocol,
        device: torch.device,
        metrics: Sequence[str] = METRICS,
        *,
        inception: Path | None = None,
        clip: Path | None = None,
        batch: int | None = None,
    ) -> None:
        self.protocol, self.device, self.metrics = protocol, device, tuple(metrics)
        self.batch = batch or BATCH
        self.weights: dict[str, str] = {}
        self.extractor = self.clip = None
        self.captions: tuple[list[str], Tensor] | None = (
            None  # the last ones, encoded: training scores the same ones again
        )
        if {"fid", "pr"} & set(metrics):
            path = None if protocol.features == "judge" else find_weights(protocol.features, inception)
            self.extractor = feature_extractor(protocol, path, device)
            self.weights[protocol.features] = file_sha256(path or JUDGE / "open_clip_model.safetensors")
        if "clip" in metrics:
            path = None if protocol.clip_weights == "judge" else find_weights(protocol.clip_weights, clip)
            # The judge gives both features and embeddings: no second forward pass.
            shared = self.extractor is not None and protocol.clip_weights == protocol.features
            self.clip = self.extractor.clip if shared else load_clip(protocol, path, device)  # type: ignore[union-attr]
            self.weights[protocol.clip_weights] = file_sha256(path or JUDGE / "open_clip_model.safetensors")
            self.shared = shared

    def to(self, device: torch.device) -> None:
        """Move the networks, so that a scorer that is used now and then takes no GPU memory in between."""
        for network in (self.extractor, self.clip.model if self.clip else None):
            if network is not None:
                network.to(device)
        self.device = device

    @property
    def feature_weights(self) -> str:
        """SHA-256 of the feature network's file."""
        return self.weights[self.protocol.features]

    @torch.no_grad()
    @full_precision()
    def encode(
        self, items: Sequence[Path | Image.Image], features: bool, clip: bool, tick: Tick | None = None
    ) -> Encoded:
        """Encode pictures with the feature network, with CLIP, or both; ``tick(n)`` is called after each batch of n."""
        separate = self.clip if clip and not (self.shared and features) else None
        data = Pictures(items, self.protocol, separate)
        workers, pinned = loader_workers(self.device, len(items)), self.device.type == "cuda"
        loader: DataLoader[Any] = DataLoader(
            data, self.batch, num_workers=workers, pin_memory=pinned, collate_fn=collate
        )
        parts: list[Tensor] = []
        embeddings: list[Tensor] = []
        for found_batch in loader:
            if isinstance(found_batch, SidlsgError):
                raise found_batch
            pixels, prepared = found_batch
            if features:
                assert self.extractor is not None
                found = self.extractor(pixels.to(self.device, non_blocking=True))[0].float().cpu()
                parts.append(found)
            if clip:
                assert self.clip is not None
                vectors = found if separate is None else self.clip.encode_prepared(prepared).cpu()
                embeddings.append(F.normalize(vectors, dim=1))
            if tick:
                tick(len(pixels))
        return Encoded(torch.cat(parts) if parts else torch.empty(0), torch.cat(embeddings) if embeddings else None)

    def reference(self, features: Tensor, source: str) -> Reference:
        """A reference from the features [M, D] of real pictures; raises SidlsgError when they are not finite."""
        check_finite(features, source)
        protocol = self.protocol
        found = moments(features, protocol.ddof)
        return Reference(protocol.name, protocol.fingerprint, self.feature_weights, source, found, features)

    def score(
        self,
        encoded: Encoded,
        reference: Reference | None,
        captions: Sequence[str] | None,
        paired: Sequence[tuple[int, int]] = (),
        stage: Callable[[str], None] = lambda text: None,
    ) -> dict[str, float]:
        """Compute the protocol's scores.

        Args:
            captions: the whole caption list: retrieval looks for a picture's own among all of them that are not blank.
            paired: (position of a picture, number of its caption), for the pictures that have one.
            stage: called with the name of each computation before it starts.

        Returns those that were asked for and are possible (``obstacles``) of the Fréchet distance (``fid`` or ``fd``),
        ``precision``, ``recall``, ``clip``, ``retrieval_top1`` and ``retrieval_top5``. Raises SidlsgError for features that are
        not finite or do not fit the reference.
        """
        scores: dict[str, float] = {}
        protocol = self.protocol
        impossible = obstacles(
            protocol,
            self.metrics,
            pictures=len(encoded.features),
            real=None if reference is None else reference.moments.count,
            real_features=reference is not None and reference.features is not None,
            captions=captions is not None,
            paired=len(paired),
        )
        possible = set(self.metrics) - set(impossible)
        if reference is not None and {"fid", "pr"} & possible:
            check_finite(encoded.features, "the generated pictures")
            if encoded.features.shape[1] != len(reference.moments.mu):
                raise SidlsgError(
                    f"the reference has {len(reference.moments.mu)} features a picture, the network {encoded.features.shape[1]}"
                )
            if "fid" in possible:
                stage(f"{protocol.distance} of {len(encoded.features):,} and {reference.moments.count:,} pictures")
                found = moments(encoded.features, protocol.ddof)
                scores[protocol.distance.lower()] = frechet_distance(found, reference.moments)
            if "pr" in possible and reference.features is not None:
                stage("precision and recall")
                scores["precision"], scores["recall"] = precision_recall(
                    encoded.features, reference.features, protocol.neighbours
                )
        if "clip" in possible and captions is not None and encoded.embeddings is not None:
            stage("CLIP score")
            check_finite(encoded.embeddings, "the generated pictures")
            positions = torch.tensor([position for position, _ in paired])
            texts = [captions[number] for _, number in paired]
            unique = sorted({text for text in captions if text} if protocol.retrieval else set(texts))
            place = {text: i for i, text in enumerate(unique)}
            own = torch.tensor([place[text] for text in texts])
            vectors = self.encode_captions(unique)
            images = encoded.embeddings[positions]
            scores["clip"] = (images * vectors[own]).sum(1).double().mean().item()
            if protocol.retrieval:
                scores["retrieval_top1"], scores["retrieval_top5"] = retrieval(images, vectors, own)
        return scores

    def encode_captions(self, captions: list[str]) -> Tensor:
        """Unit vectors [N, E] of captions, on the CPU."""
        assert self.clip is not None
        if self.captions is None or self.captions[0] != captions:
            self.captions = captions, self.clip.encode_captions(captions)
        return self.captions[1]


def bench_reference(scorer: Scorer) -> Reference:
    """The reference of the embedded benchmark, from the cache or computed (seconds)."""
    path = cache_path(scorer.protocol, scorer.feature_weights, None)
    found = cached(path, scorer.protocol, scorer.feature_weights)
    if found is None:
        sheet = load_sheet(BENCH / "reference.png", scorer.protocol.size, scorer.protocol.reference_images)
        found = scorer.reference(scorer.encode(sheet, features=True, clip=False).features, "emoji-bench")
        keep(found, path)
    return found


def keep(reference: Reference, path: Path) -> None:
    """Save to the cache; when it cannot be written, say so on stderr and go on."""
    try:
        reference.save(path)
    except OSError as error:
        print(f"sidlsg: features are not cached: {path}: {error.strerror}", file=sys.stderr)
