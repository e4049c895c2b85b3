"""Whether a run is sane is judged by its worst iteration; what was not computed is null in its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sidlsg.config import Config
from sidlsg.errors import SidlsgError
from sidlsg.evaluation.distance import frechet_distance
from sidlsg.evaluation.protocol import get_protocol
from sidlsg.evaluation.scorer import Encoded, Scorer
from sidlsg.method.update import Stats
from sidlsg.planning.cost import passes_per_image
from sidlsg.training.engine import configure_network
from sidlsg.training.health import check
from support.small_runs import quick, small_config, small_trainer


def iteration(mean: float = 0.0, std: float = 1.0) -> tuple[Stats, Stats]:
    numbers = [torch.tensor(value) for value in (1.0, 0.0, mean, std, 1.0)]
    stats = Stats(*numbers, torch.zeros(9))
    return stats, stats


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"std": 60.0}, "mean 0 and standard deviation 60 "),
        ({"std": 0.01}, "mean 0 and standard deviation 0.01 "),
        ({"mean": -30.0}, "mean -30 and standard deviation 1 "),
        ({"mean": float("nan")}, "mean nan and"),
    ],
)
@pytest.mark.parametrize("place", [0, 7, 19])
def test_nineteen_sane_iterations_do_not_hide_one_that_is_not(bad: dict[str, float], said: str, place: int) -> None:
    window = [iteration() for _ in range(20)]
    assert check(window, Config(), 320, "").x_std == 1.0
    window[place] = iteration(**bad)
    with pytest.raises(SidlsgError, match=f"diverged at 320 images: its latents have {said}"):
        check(window, Config(), 320, "")


@pytest.mark.parametrize(("kappa4", "known"), [(0.0, False), (1.0, True), (1.5, True)])
def test_the_teachers_loss_is_null_where_no_pass_gives_it(
    kappa4: float, known: bool, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With kappa4 = 0 the teacher is not asked with the prompts, and is not asked for the record's sake."""
    quick(monkeypatch)
    config = small_config(tiny_teacher, kappa=(1, 1, 1, kappa4), images=8)
    subject = small_trainer(config, tmp_path / "run")
    asked = []
    subject.engine.teacher.network.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    subject.iterate()
    assert sum(asked) == 8 * (2 if kappa4 == 1.5 else 1)
    assert passes_per_image(config)["forward"] == 5 + (kappa4 == 1.5)
    subject.record(subject.check(), 1.0)
    line = json.loads(subject.folder.metrics.read_text(encoding="utf-8"))
    assert (line["loss_reference"] is not None) == known
    if known:
        assert 0.1 < line["loss_reference"] / line["loss_fake"] < 10


@pytest.mark.parametrize("wanted", [True, False])
def test_tf32_is_set_for_matrix_products_and_convolutions(wanted: bool) -> None:
    flags: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = not wanted
        configure_network(nn.Linear(1, 1), Config(tf32=wanted))
        assert [flag.allow_tf32 for flag in flags] == [wanted, wanted]
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


@pytest.mark.parametrize("name", ["embedded", "gigagan", "sid-lsg"])
def test_the_scorers_covariance_has_the_protocols_divisor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six pictures: dividing by 5 or by 6 is not the same distance."""
    protocol = get_protocol(name)
    monkeypatch.setattr(Scorer, "__init__", lambda self: None)
    scorer = Scorer()
    scorer.protocol, scorer.metrics, scorer.weights = protocol, ("fid",), {protocol.features: "of its weights"}
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(6, 3))).float()
    real = scorer.reference(torch.from_numpy(rng.normal(size=(9, 3))).float(), "nine pictures")
    found = scorer.score(Encoded(features), real, None)[protocol.distance.lower()]
    mean, covariance = (
        features.double().numpy().mean(0).astype(np.float32),
        np.cov(features.double().numpy(), rowvar=False, ddof=protocol.ddof),
    )
    expected = type(real.moments)(mean, covariance, 6)
    assert found == pytest.approx(frechet_distance(expected, real.moments), rel=1e-4)
    other = type(real.moments)(mean, covariance * (6 - protocol.ddof) / (5 + protocol.ddof), 6)
    assert found != pytest.approx(frechet_distance(other, real.moments), rel=1e-3)
