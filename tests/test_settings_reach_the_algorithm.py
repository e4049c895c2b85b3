"""Every setting that the mathematics reads arrives there: the real trainer against a naive transcription of Algorithm 1.

The transcription gets the settings as plain numbers and makes its draws by itself. A second test breaks one setting after the
other on that side, and sees that the comparison notices each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sidlsg.method.draws import PromptOrder
from sidlsg.prompts import PromptFile
from sidlsg.teachers.loading import load_model
from support.naive import NaiveAlgorithm1
from support.runs import config_for, trainer, write_prompts

# None is its default's value; together they differ in every setting that changes a result. Adam's eps is so large that steps are
# smooth in the gradient: with the usual one the first steps are its sign, and rounding noise would be as large as the signal.
SETTINGS: dict[str, Any] = {
    "kappa": (2.0, 0.3, 1.7, 4.5),
    "alpha": 1.2,
    "t_min": 300,
    "t_init": 550,
    "t_max": 880,
    "drop_prompt": 0.4,
    "lr": 2e-3,
    "lr_decay": 10,
    "adam_eps": 1e-2,
    "clip_value": 0.4,
    "ema_half_life": 10,
    "ema_ramp_up": 1.5,
    "seed": 5,
    "batch": 4,
}
# How each is broken on the transcription's side.
BROKEN = {
    "kappa1": {"kappa": (1.5, 0.3, 1.7, 4.5)},
    "kappa2": {"kappa": (2.0, 0.5, 1.7, 4.5)},
    "kappa3": {"kappa": (2.0, 0.3, 1.5, 4.5)},
    "kappa4": {"kappa": (2.0, 0.3, 1.7, 4.0)},
    "alpha": {"alpha": 1.0},
    "t_min": {"t_min": 310},
    "t_init": {"t_init": 560},
    "t_max": {"t_max": 870},
    "drop_prompt": {"drop_prompt": 0.1},
    "lr": {"lr": 2.2e-3},
    "lr_decay": {"lr_decay": 6},
    "adam_eps": {"adam_eps": 1.2e-2},
    "clip_value": {"clip_value": None},
    "ema_half_life": {"ema_half_life": 7},
    "ema_ramp_up": {"ema_ramp_up": None},
    "seed": {"seed": 6},
}
ITERATIONS = 3


def transcription(
    teacher: Path, prompts: Path, settings: dict[str, Any]
) -> Iterator[dict[str, dict[str, torch.Tensor]]]:
    """psi, theta and the average after each iteration, from plain numbers."""
    model = load_model(str(teacher), torch.device("cpu"))
    encode, lines, batch = model.encoder(), PromptFile(prompts), settings["batch"]
    order = PromptOrder(len(lines), settings["seed"])
    naive = NaiveAlgorithm1(
        model.network.requires_grad_(True),
        settings["kappa"],
        alpha=settings["alpha"],
        t_init=settings["t_init"],
        lr=settings["lr"],
        adam_eps=settings["adam_eps"],
        clip=settings["clip_value"],
        batch=batch,
        half_life=settings["ema_half_life"],
        ramp_up=settings["ema_ramp_up"],
    )
    for iteration in range(ITERATIONS):
        left = (ITERATIONS - iteration) * batch / settings["lr_decay"]
        for adam in (naive.adam_psi, naive.adam_theta):
            adam.param_groups[0]["lr"] = settings["lr"] * min(left, 1)
        for update, step in ((0, naive.fake_score_step), (1, naive.generator_step)):
            z, eps, t, texts = [], [], [], []
            for i in range(batch):
                index = iteration * batch + i
                rng = np.random.Generator(np.random.Philox(key=[settings["seed"], update], counter=[0, 0, 0, index]))
                z.append(rng.standard_normal((4, 4, 4), dtype=np.float32))
                eps.append(rng.standard_normal((4, 4, 4), dtype=np.float32))
                t.append(int(rng.integers(settings["t_min"], settings["t_max"], endpoint=True)))
                (place,) = order(2 * iteration * batch + update * batch + i, 1)
                dropped = update == 0 and rng.random() < settings["drop_prompt"]
                texts.append("" if dropped else lines[place])
            c, empty = encode(texts)["text"], encode([""])["text"]
            step(torch.from_numpy(np.stack(z)), c, torch.tensor(t), torch.from_numpy(np.stack(eps)), empty)
        networks = {"fake": naive.psi, "generator": naive.theta}
        found = {name: {k: p.detach() for k, p in net.named_parameters()} for name, net in networks.items()}
        yield found | {"ema": naive.average}


def gap(ours: dict[str, dict[str, torch.Tensor]], theirs: dict[str, dict[str, torch.Tensor]]) -> dict[str, float]:
    """Largest difference of a weight, as a share of the learning rate, by network."""
    return {
        name: max((ours[name][key] - theirs[name][key]).abs().max().item() for key in theirs[name]) / SETTINGS["lr"]
        for name in theirs
    }


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.txt")


@pytest.fixture(scope="module")
def trained(tiny_teacher: Path, prompts: Path, tmp_path_factory) -> list[dict[str, dict[str, torch.Tensor]]]:
    """The trainer's state after each iteration."""
    config = config_for(
        tiny_teacher, **SETTINGS, images=ITERATIONS * SETTINGS["batch"], micro_batch=2, fake_micro_batch=4
    )
    subject, states = trainer(config, tmp_path_factory.mktemp("run") / "run", prompts), []
    for _ in range(ITERATIONS):
        subject.iterate()
        state = subject.engine.state()
        states.append({name: {k: x.clone() for k, x in group.items()} for name, group in state.items()})
    return states


def test_the_trainer_is_algorithm_1_with_the_settings_it_was_given(trained, tiny_teacher: Path, prompts: Path) -> None:
    for ours, theirs in zip(trained, transcription(tiny_teacher, prompts, SETTINGS), strict=True):
        found = gap(ours, theirs)
        assert max(found.values()) < 2e-3, found


@pytest.mark.parametrize("name", BROKEN)
def test_the_comparison_notices_each_setting(name: str, trained, tiny_teacher: Path, prompts: Path) -> None:
    """In one of the iterations."""
    broken = transcription(tiny_teacher, prompts, SETTINGS | BROKEN[name])
    assert any(max(gap(ours, theirs).values()) > 1e-2 for ours, theirs in zip(trained, broken, strict=True))
