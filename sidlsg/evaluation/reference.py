"""What generated pictures are compared with: statistics and features of real ones, in one file that can be shared."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidlsg.data import ASSETS, in_cache
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.evaluation.distance import Moments, moments
from sidlsg.evaluation.pictures import Folder
from sidlsg.evaluation.protocol import Protocol
from sidlsg.evaluation.statistics_file import read_arrays
from sidlsg.evaluation.weights import file_sha256
from sidlsg.files import write_arrays

BENCH = ASSETS / "emoji-bench"

# Number of the code that makes features and embeddings out of picture files. It is raised with every change that gives other ones
# (tests/test_pictures.py knows them): features that were kept, and statistics, of another number are not used.
CODE = 1
ROUNDING = 1e-6  # relative, of statistics that were stored in float32


@dataclass(frozen=True)
class Reference:
    """Moments (for the Fréchet distance) and, for precision and recall, features [M, D] of real pictures.

    ``protocol`` and ``fingerprint`` are the protocol's; ``weights`` is the SHA-256 of the feature network's file, ``source``
    says where the pictures came from; ``names`` is what their files are named, as ``name_shape`` gives it ("" when unknown);
    ``assumed`` that the file names no protocol, and the user did.
    """

    protocol: str
    fingerprint: str
    weights: str
    source: str
    moments: Moments
    features: Tensor | None
    assumed: bool = False
    names: str = ""

    def save(self, path: Path) -> None:
        """Write an ``.npz`` under a temporary name and rename it."""
        facts = {k: getattr(self, k) for k in ("protocol", "fingerprint", "weights", "source", "names")}
        facts["code"] = CODE
        arrays: dict[str, Any] = {
            "mu": self.moments.mu,
            "sigma": self.moments.sigma,
            "count": np.int64(self.moments.count),
            "about": np.array(json.dumps(facts)),
        }
        if self.features is not None:
            arrays["features"] = self.features.numpy()
        write_arrays(path, arrays)


def load_reference(path: Path, protocol: Protocol, weights: str | None, assume: bool = False) -> Reference:
    """Read a statistics file that ``Reference.save`` (or, with ``assume``, another tool) wrote.

    Args:
        weights: SHA-256 of the feature network in use; None accepts a file made with any network.
        assume: accept a file that names no protocol (only mu and sigma) as made by this one.

    Raises UsageError when the file is missing, is not a statistics file, holds what no pictures can have, or was made by another
    protocol, with another network or with other code.
    """
    arrays = read_arrays(path)
    if "mu" not in arrays:  # features alone, of another tool
        made = moments(torch.from_numpy(arrays["features"].astype(np.float32)), protocol.ddof)
        arrays |= {"mu": made.mu, "sigma": made.sigma, "count": np.array(made.count)}
    given = _check_moments(arrays, path)
    assumed = "about" not in arrays
    if assumed:
        if not assume:
            raise UsageError(
                f"{path} does not say by which protocol it was made, and FIDs of two protocols differ by whole points. If "
                f"you know that it was {protocol.name}, add --assume-protocol"
            )
        about = {"protocol": protocol.name, "fingerprint": protocol.fingerprint, "weights": weights or ""}
        about["source"] = f"{path.name} (protocol assumed)"
    else:
        try:
            found = json.loads(str(arrays["about"]))
            about = {key: found[key] for key in ("protocol", "fingerprint", "weights", "source")}
            about["names"] = str(found.get("names", ""))
            code = found.get("code", 1)
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"{path} is not a statistics file of sidlsg (its description is damaged); make one with: sidlsg eval stats"
            ) from None
        if code != CODE:
            raise UsageError(
                f"{path} was made by code of another version, which gives other features; make new ones with: sidlsg eval stats"
            )
    if about["fingerprint"] != protocol.fingerprint:
        other = about["protocol"] if about["protocol"] != protocol.name else f"another version of {protocol.name}"
        raise UsageError(
            f"{path} was made by the protocol {other}; it cannot be compared with pictures prepared by {protocol.name}. "
            f"Use --protocol {about['protocol']}, or make new statistics with: sidlsg eval stats"
        )
    if weights is not None and about["weights"] and about["weights"] != weights:
        raise UsageError(
            f"{path} was made with another feature network (SHA-256 {about['weights'][:12]}..., here {weights[:12]}...); use "
            "the same weights file, or make new statistics with: sidlsg eval stats"
        )
    features = torch.from_numpy(arrays["features"].astype(np.float32)) if "features" in arrays else None
    return Reference(moments=given, features=features, assumed=assumed, **about)


def _check_moments(arrays: dict[str, np.ndarray], path: Path) -> Moments:
    """Mean, covariance and number of pictures; raises UsageError for values that no features of pictures have."""

    def check(right: bool, what: str) -> None:
        if not right:
            raise UsageError(
                f"{path} is not a statistics file of pictures: {what}; make a new one with: sidlsg eval stats"
            )

    count = arrays.get("count", np.int64(0))
    check(count.shape == () and count.dtype.kind in "iu" and int(count) >= 0, "count is no number of pictures")
    for name in ("mu", "sigma", "features"):
        check(name not in arrays or arrays[name].dtype.kind in "fiu", f"{name} is not made of real numbers")
    mu, sigma = arrays["mu"], arrays["sigma"].astype(np.float64)
    check(mu.ndim == 1 and len(mu) > 0, f"mu must be a vector, and has the shape {mu.shape}")
    check(
        sigma.shape == mu.shape * 2,
        f"sigma must be {len(mu)} x {len(mu)}, as mu has it, and has the shape {sigma.shape}",
    )
    with np.errstate(over="ignore"):
        mu = mu.astype(np.float32)
    check(bool(np.isfinite(mu).all() and np.isfinite(sigma).all()), "mu or sigma is not finite")
    check(bool(np.trace(sigma) > 0), "sigma is zero, as if all pictures were one")
    scale = np.abs(sigma).max()
    check(np.abs(sigma - sigma.T).max() <= ROUNDING * scale, "sigma is not symmetric")
    try:  # fails unless all eigenvalues are larger than - ROUNDING x the largest possible one
        np.linalg.cholesky(sigma + (ROUNDING * np.trace(sigma) + np.finfo(np.float64).tiny) * np.eye(len(mu)))
    except np.linalg.LinAlgError:
        check(False, "sigma is not positive semi-definite")
    if "features" in arrays:
        features = arrays["features"]
        right = features.shape == (int(count), len(mu)) and bool(np.isfinite(features).all())
        check(right, f"features must be {int(count)} x {len(mu)} finite numbers, as count and mu have it")
    return Moments(mu, sigma, int(count))


def cache_key(protocol: Protocol, weights: Mapping[str, str], digests: Sequence[str], *more: str) -> str:
    """A hash of everything that features depend on: the code, the protocol, the networks' hashes and the pictures' own."""
    versions = [importlib.metadata.version(name) for name in ("pillow", "torch", "torch-fidelity", "open_clip_torch")]
    facts = [CODE, versions, protocol.fingerprint, sorted(weights.items()), list(digests), *more]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]


def cache_path(protocol: Protocol, weights: str, folder: Folder | None) -> Path:
    """Where the features of a folder (None: of the embedded benchmark's reference pictures) are cached; reads every picture."""
    digests = [file_sha256(BENCH / "reference.png")] if folder is None else folder.digests
    key = cache_key(protocol, {protocol.features: weights}, digests)
    return in_cache(f"features/{protocol.name}-{key}.npz")


def cached(path: Path, protocol: Protocol, weights: str) -> Reference | None:
    """The cached features; None when the cache file is missing or cannot be used."""
    try:
        return load_reference(path, protocol, weights)
    except SidlsgError:
        return None
