"""References of other tools and of other scales: what is taken, what is refused, and in which words."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sidlsg.errors import UsageError
from sidlsg.evaluation import reference as references
from sidlsg.evaluation.comparable import Made, said_of
from sidlsg.evaluation.distance import copies
from sidlsg.evaluation.pictures import find_pictures, load_sheet, name_shape
from sidlsg.evaluation.protocol import get_protocol, protocols
from sidlsg.evaluation.reference import BENCH, load_reference
from sidlsg.evaluation.scorer import Encoded, Scorer
from sidlsg.evaluation.scoring import encode_folder, open_reference, warn_of_few

CPU = torch.device("cpu")
GIGAGAN, EMBEDDED = get_protocol("gigagan"), get_protocol("embedded")
FEATURES = np.random.default_rng(0).normal(1, 1, size=(50, 6))
MU, SIGMA = FEATURES.mean(0), np.cov(FEATURES, rowvar=False)


class Harmful:
    """A pickle that would write a file if it were loaded."""

    def __reduce__(self) -> tuple:
        return (Path("harmed").touch, ())


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def packed(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIDLSG_CACHE", str(tmp_path / "cache"))


# -- files of other tools --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "count"),
    [
        ("pytorch-fid.npz", packed(mu=MU, sigma=SIGMA), 0),
        ("torch-fidelity.pt", saved({"mu": MU, "sigma": SIGMA}), 0),
        ("tensors.pt", saved({"mu": torch.from_numpy(MU), "sigma": torch.from_numpy(SIGMA)}), 0),
        ("torch-fidelity-features.pt", saved(torch.from_numpy(FEATURES)), 50),
        ("clean-fid_kid.npz", packed(feats=FEATURES.astype(np.float32)), 50),
        ("adm.npz", packed(mu=MU, sigma=SIGMA, arr_0=np.zeros((2, 4, 4, 3), np.uint8)), 0),
    ],
)
def test_statistics_and_features_of_other_tools_are_read(name: str, content: bytes, count: int) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(UsageError, match="does not say by which protocol"):
        load_reference(Path(name), GIGAGAN, None)
    found = load_reference(Path(name), GIGAGAN, None, assume=True)
    np.testing.assert_allclose(found.moments.mu, MU, rtol=1e-6)
    np.testing.assert_allclose(found.moments.sigma, SIGMA, rtol=1e-5)
    assert (found.assumed, found.moments.count, found.names) == (True, count, "")
    if count:
        np.testing.assert_allclose(found.features, FEATURES, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("edm2.pkl", pickle.dumps({"fid": {"mu": MU, "sigma": SIGMA}}), "it is a Python pickle, as EDM2"),
        ("harm.pkl", pickle.dumps(Harmful()), "it is a Python pickle"),
        ("harm.pt", saved({"mu": Harmful(), "sigma": SIGMA}), "damaged, or holds more than arrays"),
        ("harm.npz", packed(mu=np.array([Harmful()], dtype=object), sigma=SIGMA), "pickled Python objects"),
        (
            "pictures.npz",
            packed(arr_0=np.zeros((7, 4, 4, 3), np.uint8)),
            "it holds 7 pictures, arr_0 of ADM's evaluator",
        ),
        ("weights.pt", saved({"conv.weight": torch.zeros(3)}), "torch.save without mu and sigma"),
        ("captions.txt", b"a red heart\n", "neither an .npz file nor"),
        ("flat.npz", packed(feats=np.zeros(8)), "which are no feature vectors"),
        ("one.npz", packed(mu=MU, sigma=np.zeros((6, 6))), "sigma is zero, as if all pictures were one"),
    ],
)
def test_other_files_are_named_and_nothing_in_them_is_run(name: str, content: bytes, said: str) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(UsageError, match=rf"{name} is not a statistics file.*{said}") as refused:
        load_reference(Path(name), GIGAGAN, None, assume=True)
    assert "allow_pickle" not in str(refused.value)
    assert "weights_only" not in str(refused.value)
    assert not Path("harmed").exists()


def test_statistics_of_another_scale_are_refused() -> None:
    scorer = Scorer(EMBEDDED, CPU, ("fid",))
    drawings = load_sheet(BENCH / "reference.png", 64, 40)
    real = scorer.reference(scorer.encode(drawings, True, False).features, "").moments
    warned: list[str] = []

    def opened(mu: np.ndarray, sigma: np.ndarray) -> object:
        np.savez("stats.npz", mu=mu, sigma=sigma)
        return open_reference(scorer, Path("stats.npz"), True, warned.append, warned.append)

    opened(real.mu, real.sigma)
    opened(real.mu / 2, real.sigma * 2)  # other pictures
    for mu, sigma in (
        (real.mu * 255, real.sigma),
        (real.mu, real.sigma * 255**2),
        (real.mu / 255, real.sigma / 255**2),
    ):
        with pytest.raises(UsageError, match=r"stats\.npz is of another scale"):
            opened(mu, sigma)
    with pytest.raises(UsageError, match="sigma is zero"):
        opened(real.mu, np.zeros_like(real.sigma))


# -- what a reference is ---------------------------------------------------------------------------------------------------


def test_a_reference_is_known_by_its_names_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """40,504 pictures of anything are not val2014. Here 3 and the embedded judge stand for them."""
    protocol = replace(EMBEDDED, reference_images=3, reference_names=GIGAGAN.reference_names, images=3)
    scorer = Scorer(protocol, CPU, ("fid",))
    for folder, name in (
        ("val2014", "COCO_val2014_{:012d}.jpg"),
        ("train2014", "COCO_train2014_{:012d}.jpg"),
        ("x", "{}.png"),
    ):
        Path(folder).mkdir()
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(folder, name.format(i)), "PNG")
        files = find_pictures(Path(folder))
        encode_folder(scorer, files, lambda name, total: lambda count: None).save(Path(f"{folder}.npz"))
        loaded = load_reference(Path(f"{folder}.npz"), protocol, None)
        assert loaded.names == name_shape(files.files)
        said = said_of(protocol, Made(3, {}, 3, {}, loaded.names))
        assert (said == []) == (folder == "val2014"), said
    about = json.loads(str(np.load("val2014.npz")["about"]))
    arrays = dict(np.load("val2014.npz")) | {
        "about": np.array(json.dumps({k: v for k, v in about.items() if k != "names"}))
    }
    np.savez("older.npz", **arrays)  # a file of a version that did not note them
    assert (
        "not named as those of"
        in said_of(protocol, Made(3, {}, 3, {}, load_reference(Path("older.npz"), protocol, None).names))[0]
    )


def test_names_are_no_part_of_what_is_computed() -> None:
    """So that statistics of before are still those of the protocol."""
    for protocol in protocols().values():
        assert replace(protocol, reference_names=("other",)).fingerprint == protocol.fingerprint
    assert GIGAGAN.fingerprint == "7c688d1e78f0e124"
    assert references.CODE == 1


# -- scores that say nothing -----------------------------------------------------------------------------------------------


def vectors(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


def test_copies_are_counted_up_to_rounding() -> None:
    several = torch.cat([vectors(40), vectors(3).repeat(4, 1) + 1e-6])
    assert copies(several) == 12  # three that are among the 40, four times
    assert copies(vectors(500)) == 0


@pytest.mark.parametrize(
    ("generated", "real", "said"),
    [
        (vectors(1200), vectors(1100, 1), []),
        (vectors(4), vectors(1100, 1), ["Precision and recall of 4 pictures say little"]),
        (vectors(1200), vectors(50, 1), ["Precision and recall of 50 pictures say little"]),
        (vectors(300).repeat(4, 1), vectors(1100, 1), ["900 of the 1,200 pictures are copies of another one"]),
        (vectors(1).repeat(24, 1), vectors(24, 1), ["Precision and recall of 24", "23 of the 24 pictures are copies"]),
    ],
)
def test_precision_and_recall_that_say_nothing_are_said_to(
    generated: torch.Tensor, real: torch.Tensor, said: list
) -> None:
    scorer = Scorer.__new__(Scorer)
    scorer.protocol, scorer.metrics, scorer.weights = EMBEDDED, ("fid", "pr"), {"judge": ""}
    warned: list[str] = []
    warn_of_few(scorer, Encoded(generated), scorer.reference(real, "test"), warned.append)
    assert len(warned) == len(said)
    assert all(text.startswith(start) for text, start in zip(warned, said, strict=True))
