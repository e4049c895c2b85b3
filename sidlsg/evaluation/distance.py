"""Scores computed from features: float32 [N, D] in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from sidlsg.errors import SidlsgError

# Rows per block of a distance matrix: 2,000 x 40,504 float32 is 0.3 GiB, and torch-fidelity holds a few such blocks at once.
BLOCK = 2000
COPY = 1e-4  # of the mean length of feature vectors; two that are nearer are of one picture


@dataclass(frozen=True)
class Moments:
    """Mean [D] (float32) and covariance [D, D] (float64) of ``count`` feature vectors (0: unknown)."""

    mu: np.ndarray
    sigma: np.ndarray
    count: int


def check_finite(features: Tensor, what: str) -> None:
    """Raise SidlsgError, with the first such row and ``what`` in its message, when features [N, D] hold NaN or infinity."""
    bad = (~torch.isfinite(features).all(1)).nonzero()
    if len(bad):
        raise SidlsgError(
            f"{len(bad)} of {len(features)} feature vectors of {what} are not finite (first: picture {int(bad[0])}); the "
            "weights file may be damaged, or the device computes wrongly: try --device cpu"
        )


def moments(features: Tensor, ddof: int = 1) -> Moments:
    """Mean and covariance (dividing by N - ddof) of features [N, D]; raises SidlsgError when N < 2."""
    if len(features) < 2:
        raise SidlsgError("a covariance needs at least two pictures")
    found = fid_features_to_statistics(features)
    sigma = found["sigma"] * ((len(features) - 1) / (len(features) - ddof))
    return Moments(found["mu"].astype(np.float32), np.atleast_2d(sigma).astype(np.float64), len(features))


def frechet_distance(generated: Moments, reference: Moments) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), computed by torch-fidelity."""
    one, two = ({"mu": m.mu, "sigma": m.sigma} for m in (generated, reference))
    return float(fid_statistics_to_metric(one, two, verbose=False)["frechet_inception_distance"])


def precision_recall(
    generated: Tensor, reference: Tensor, neighbours: int = 3, block: int = BLOCK
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019), with distances computed block by block to save memory.

    Precision is the share of generated features that lie within the k-nearest-neighbour ball of a reference feature; recall is
    the share of reference features within the ball of a generated one.

    Args:
        generated, reference: float32 [N, D] and [M, D].
        neighbours: k.

    Returns (precision, recall). Raises SidlsgError when N or M is not larger than k.
    """
    if min(len(generated), len(reference)) <= neighbours:
        raise SidlsgError(f"precision and recall need more than {neighbours} pictures on either side")
    options = {"prc_neighborhood": neighbours, "prc_batch_size": block, "save_cpu_ram": True, "verbose": False}
    found = prc_features_to_metric(generated, reference, **options)
    return found["precision"], found["recall"]


def copies(features: Tensor) -> int:
    """How many of N feature vectors [N, D] are those of another one, up to rounding."""
    direction = torch.randn(features.shape[1], generator=torch.Generator().manual_seed(0))
    ordered = features[(features @ direction).argsort()]  # copies are neighbours in any direction
    gaps = (ordered[1:] - ordered[:-1]).norm(dim=1)
    return int((gaps <= COPY * features.norm(dim=1).mean()).sum())


def retrieval(images: Tensor, captions: Tensor, own: Tensor, block: int = BLOCK) -> tuple[float, float]:
    """Caption retrieval (top-1, top-5): the share of pictures whose own caption is the nearest, or among the five nearest.

    Args:
        images: unit vectors [N, D].
        captions: unit vectors [M, D] of all distinct captions.
        own: index of each picture's own caption, [N].
    """
    ranks = []
    for part, index in zip(images.split(block), own.split(block), strict=True):
        scores = part @ captions.T
        ranks.append((scores > scores.gather(1, index[:, None])).sum(1))
    rank = torch.cat(ranks)
    return (rank < 1).float().mean().item(), (rank < 5).float().mean().item()
