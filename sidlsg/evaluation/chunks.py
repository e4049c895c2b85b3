"""Encode tens of thousands of pictures in chunks that are saved, so that an interrupted evaluation can resume."""

from __future__ import annotations

import contextlib
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidlsg.evaluation.pictures import Folder
from sidlsg.evaluation.reference import cache_key
from sidlsg.evaluation.scorer import Encoded, Scorer, Tick
from sidlsg.files import write_arrays

CHUNK = 4096  # pictures


def chunk_key(scorer: Scorer, digests: Sequence[str], features: bool, clip: bool) -> str:
    """The cache key of a chunk: a hash of the protocol, the weights, the outputs asked for and the pictures' own hashes."""
    return cache_key(scorer.protocol, scorer.weights, digests, f"features {features}, clip {clip}")


def encode_files(
    scorer: Scorer, folder: Folder, features: bool, clip: bool, keep: Path, tick: Tick | None = None
) -> Encoded:
    """``Scorer.encode`` chunk by chunk; each finished chunk is saved in the folder ``keep`` and never computed again."""
    parts = []
    for start in range(0, len(folder), CHUNK):
        chunk = slice(start, start + CHUNK)
        path = keep / f"{chunk_key(scorer, folder.digests[chunk], features, clip)}.npz"
        part = _load(path)
        if part is None:
            part = scorer.encode(folder.files[chunk], features, clip, tick)
            with contextlib.suppress(OSError):  # costs an interrupted evaluation some time, nothing else
                _save(part, path)
        elif tick:
            tick(len(folder.files[chunk]))
        parts.append(part)
    embeddings = [part.embeddings for part in parts if part.embeddings is not None]
    return Encoded(torch.cat([part.features for part in parts]), torch.cat(embeddings) if embeddings else None)


def forget(keep: Path) -> None:
    """Remove the saved chunks."""
    shutil.rmtree(keep, ignore_errors=True)


def _load(path: Path) -> Encoded | None:
    try:
        with np.load(path, allow_pickle=False) as data:
            embeddings = torch.from_numpy(data["embeddings"]) if "embeddings" in data.files else None
            return Encoded(torch.from_numpy(data["features"]), embeddings)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        return None


def _save(part: Encoded, path: Path) -> None:
    arrays: dict[str, Any] = {"features": part.features.numpy()}
    if part.embeddings is not None:
        arrays["embeddings"] = part.embeddings.numpy()
    write_arrays(path, arrays)
