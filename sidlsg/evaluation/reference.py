"""What generated pictures are compared with: statistics and features of real ones, in one file that can be shared."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidlsg.data import ASSETS, cache_folder
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.evaluation.distance import Moments
from sidlsg.evaluation.pictures import Folder
from sidlsg.evaluation.protocol import Protocol
from sidlsg.files import write_arrays

BENCH = ASSETS / "emoji-bench"


@dataclass(frozen=True)
class Reference:
    """Moments (for the Fréchet distance) and, for precision and recall, features [M, D] of real pictures.

    ``protocol`` and ``fingerprint`` are the protocol's; ``weights`` is the SHA-256 of the feature network's file, ``source``
    says where the pictures came from.
    """

    protocol: str
    fingerprint: str
    weights: str
    source: str
    moments: Moments
    features: Tensor | None

    def save(self, path: Path) -> None:
        """Write an ``.npz`` under a temporary name and rename it."""
        facts = {k: getattr(self, k) for k in ("protocol", "fingerprint", "weights", "source")}
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

    Raises UsageError when the file is missing, is not a statistics file, or was made by another protocol or with another network.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        mu, sigma = arrays["mu"].astype(np.float32), arrays["sigma"].astype(np.float64)
        if (
            mu.ndim != 1
            or sigma.shape != (len(mu), len(mu))
            or not np.isfinite(mu).all()
            or not np.isfinite(sigma).all()
        ):
            raise ValueError("mu and sigma do not fit together, or are not finite")
    except FileNotFoundError:
        raise UsageError(f"--reference {path}: there is no such folder or file") from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise UsageError(
            f"{path} is not a statistics file ({error}); make one with: sidlsg eval stats FOLDER --out {path.stem}.npz"
        ) from None
    if "about" not in arrays:
        if not assume:
            raise UsageError(
                f"{path} does not say by which protocol it was made, and FIDs of two protocols differ by whole points. If "
                f"you know that it was {protocol.name}, add --assume-protocol"
            )
        about = {"protocol": protocol.name, "fingerprint": protocol.fingerprint, "weights": weights or ""}
        about["source"] = f"{path.name} (protocol assumed)"
    else:
        try:
            about = json.loads(str(arrays["about"]))
            about = {key: about[key] for key in ("protocol", "fingerprint", "weights", "source")}
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"{path} is not a statistics file of sidlsg (its description is damaged); make one with: sidlsg eval stats"
            ) from None
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
    count = int(arrays["count"]) if "count" in arrays else 0
    features = torch.from_numpy(arrays["features"].astype(np.float32)) if "features" in arrays else None
    return Reference(moments=Moments(mu, sigma, count), features=features, **about)


def cache_path(protocol: Protocol, weights: str, folder: Folder | None) -> Path:
    """Where the features of a folder (None: of the embedded benchmark's reference pictures) are cached.

    The file name contains a hash of the protocol, the weights and the list of files.
    """
    digest = hashlib.sha256(f"{protocol.fingerprint} {weights}".encode())
    if folder is None:
        digest.update(file_digest(BENCH / "reference.png").encode())
        name = "emoji-bench"
    else:
        for file in folder.files:
            stat = file.stat()
            digest.update(f"{file.relative_to(folder.path)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        name = folder.path.resolve().name or "folder"
    return cache_folder() / "features" / f"{protocol.name}-{name[:40]}-{digest.hexdigest()[:20]}.npz"


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached(path: Path, protocol: Protocol, weights: str) -> Reference | None:
    """The cached features; None when the cache file is missing or cannot be used."""
    if not path.is_file():
        return None
    try:
        return load_reference(path, protocol, weights)
    except SidlsgError:
        return None
