"""Files of statistics and features as different tools write them: told by their form, and read without running code in them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidlsg.errors import UsageError

NAMES = ("mu", "sigma", "count", "features", "about")  # of ``Reference.save``; other tools have the first two
PICKLE = b"\x80"  # the beginning of a pickle; the next byte is its protocol, at most:
PICKLE_PROTOCOL = 5


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a statistics file that are of use: mu and sigma, or features [N, D] alone.

    Read are ``.npz`` files of `sidlsg eval stats`, pytorch-fid, clean-fid (statistics, and features of its KID) and ADM's
    evaluator, and the ``.pt`` files of torch-fidelity's cache. Raises UsageError for anything else, saying what it is.
    """
    try:
        with path.open("rb") as file:
            beginning = file.read(2)
        if beginning[:1] == PICKLE and beginning[1:] <= bytes([PICKLE_PROTOCOL]):
            raise ValueError(
                "it is a Python pickle, as EDM2 and MMGeneration write them, which can run any code when it is read, and is not"
            )
        if beginning == b"PK":
            with zipfile.ZipFile(path) as packed:
                names = packed.namelist()
            return _of_torch(path) if any(name.endswith("data.pkl") for name in names) else _of_numpy(path)
        if beginning == b"\x93N":
            raise ValueError("it is a single array, not mu and sigma")
        raise ValueError("it is neither an .npz file nor one of torch.save")
    except FileNotFoundError:
        raise UsageError(f"--reference {path}: there is no such folder or file") from None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UsageError(
            f"{path} is not a statistics file ({reason}); make one with: sidlsg eval stats FOLDER --out {path.stem}.npz"
        ) from None


def _of_numpy(path: Path) -> dict[str, np.ndarray]:
    """An ``.npz`` file; raises ValueError when it has none of the arrays."""
    with np.load(path, allow_pickle=False) as data:
        names = set(data.files)
        # Those of ADM's evaluator also hold thousands of pictures, which are left.
        wanted = (
            [name for name in NAMES if name in names]
            if names >= {"mu", "sigma"}
            else sorted(names & {"feats", "arr_0"})
        )
        try:
            found = {name: data[name] for name in wanted}
        except ValueError:
            raise ValueError("it holds pickled Python objects, which are not read") from None
    if "mu" in found:
        return found
    if "feats" in found:
        return {"features": _features(found["feats"])}
    if "arr_0" in found and found["arr_0"].ndim == 4:
        count = len(found["arr_0"])
        raise ValueError(
            f"it holds {count:,} pictures, arr_0 of ADM's evaluator: save them as PNG files, and give the folder"
        )
    raise ValueError(f"it has no {' and no '.join(sorted({'mu', 'sigma'} - names))}")


def _of_torch(path: Path) -> dict[str, np.ndarray]:
    """A file of ``torch.save`` with mu and sigma, or with features; raises ValueError for another content."""
    numpy: Any = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    kinds = [type(np.dtype(name)) for name in ("f8", "f4", "f2", "i8")]
    allowed: list[Any] = [
        np.ndarray,
        np.dtype,
        *kinds,
        (numpy, "numpy._core.multiarray._reconstruct"),
        (numpy, "numpy.core.multiarray._reconstruct"),
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of many types
        raise ValueError("it is a file of torch.save that is damaged, or holds more than arrays") from None
    if isinstance(found, dict) and {"mu", "sigma"} <= set(found):
        return {name: _array(found[name]) for name in ("mu", "sigma")}
    if isinstance(found, Tensor | np.ndarray):
        return {"features": _features(_array(found))}
    raise ValueError("it is a file of torch.save without mu and sigma")


def _array(value: Any) -> np.ndarray:
    return value.numpy() if isinstance(value, Tensor) else np.asarray(value)


def _features(array: np.ndarray) -> np.ndarray:
    """Feature vectors [N, D]; raises ValueError for an array that is none."""
    if array.ndim != 2 or array.dtype.kind != "f" or len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(f"it holds an array of {array.dtype} and shape {array.shape}, which are no feature vectors")
    return array
