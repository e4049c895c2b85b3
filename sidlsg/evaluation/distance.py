"""Scores as functions of features: what goes in is float32 [N, D], what comes out is a number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from sidlsg.errors import SidlsgError

# Rows of a block of distances: 2,000 x 40,504 float32 is 0.3 GiB, and torch-fidelity holds a few such blocks.
BLOCK = 2000


@dataclass(frozen=True)
class Moments:
    """Mean [D] (float32) and covariance [D, D] (float64) of N features."""

    mu: np.ndarray
    sigma: np.ndarray
    count: int


def check_finite(features: Tensor, what: str) -> None:
    """Raise SidlsgError, naming the first row, when a feature is not a finite number."""
    bad = (~torch.isfinite(features).all(1)).nonzero()
    if len(bad):
        raise SidlsgError(
            f"{len(bad)} of {len(features)} feature vectors of {what} are not finite (first: picture {int(bad[0])}); the "
            "weights file may be damaged, or the device computes wrongly: try --device cpu"
        )


def moments(features: Tensor, ddof: int = 1) -> Moments:
    """Mean and covariance (dividing by N - ddof) of features [N, D]."""
    if len(features) < 2:
        raise SidlsgError("a covariance needs at least two pictures")
    found = fid_features_to_statistics(features)
    sigma = found["sigma"] * ((len(features) - 1) / (len(features) - ddof))
    return Moments(found["mu"].astype(np.float32), np.atleast_2d(sigma).astype(np.float64), len(features))


def frechet_distance(generated: Moments, reference: Moments) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), by torch-fidelity."""
    one, two = ({"mu": m.mu, "sigma": m.sigma} for m in (generated, reference))
    return float(fid_statistics_to_metric(one, two, verbose=False)["frechet_inception_distance"])


def precision_recall(
    generated: Tensor, reference: Tensor, neighbours: int = 3, block: int = BLOCK
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019) by k nearest neighbours, in blocks of distances.

    Precision: share of generated features within a ball of the reference; recall: the other way round.
    Args:
        generated, reference: float32 [N, D] and [M, D], more than ``neighbours`` each.
    """
    if min(len(generated), len(reference)) <= neighbours:
        raise SidlsgError(f"precision and recall need more than {neighbours} pictures on either side")
    options = {"prc_neighborhood": neighbours, "prc_batch_size": block, "save_cpu_ram": True, "verbose": False}
    found = prc_features_to_metric(generated, reference, **options)
    return found["precision"], found["recall"]


def retrieval(images: Tensor, captions: Tensor, own: Tensor, block: int = BLOCK) -> tuple[float, float]:
    """Share of pictures whose own caption is the nearest, and among the five nearest, of all distinct captions.

    Args:
        images: unit vectors [N, D]; captions: unit vectors [M, D]; own: index of each picture's caption, [N].
    """
    ranks = []
    for part, index in zip(images.split(block), own.split(block), strict=True):
        scores = part @ captions.T
        ranks.append((scores > scores.gather(1, index[:, None])).sum(1))
    rank = torch.cat(ranks)
    return (rank < 1).float().mean().item(), (rank < 5).float().mean().item()
