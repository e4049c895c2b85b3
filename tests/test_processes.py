"""Several processes, played by threads: each does its share, and none waits for one that went another way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sidlsg import distributed
from sidlsg.config import Config
from sidlsg.distributed import Processes
from sidlsg.errors import SidlsgError
from sidlsg.evaluation import scorer
from sidlsg.evaluation.scorer import Encoded, Scorer
from sidlsg.method import draws
from sidlsg.method.update import Losses, NetworkUpdate
from sidlsg.sampling.draw import seed_noise
from sidlsg.training import tracking
from sidlsg.training.engine import HostBatch
from sidlsg.training.tracking import Tracker
from sidlsg.training.trainer import PLACES, Trainer
from support.small_runs import PROMPTS, Team, checkpoints, one_of, quick, small_config, small_trainer


def tokens(subject: Trainer, numbers: Sequence[int]) -> torch.Tensor:
    """Of the prompts of these numbers: [N, L]."""
    (found,) = subject.engine.encode.tokens([subject.prompts[i] for i in numbers]).values()
    return found


def text(batch: HostBatch) -> torch.Tensor:
    (found,) = batch.tokens.values()
    return found


# -- prompts ---------------------------------------------------------------------------------------------------------------------


def test_processes_train_on_slices_of_what_one_would_train_on(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts, noise and timesteps of both updates."""
    config = small_config(tiny_teacher)
    alone = small_trainer(config, tmp_path / "run")
    assert len(tokens(alone, range(PROMPTS)).unique(dim=0)) == PROMPTS  # the tests' prompts are not all one
    whole, halves = alone.draw(8), []
    for rank in (0, 1):
        with one_of(Processes(rank, 2), monkeypatch):
            halves.append(small_trainer(config, tmp_path / "run").draw(8))
    for update in (0, 1):
        one, two = (half[update] for half in halves)
        assert not torch.equal(text(one), text(two))
        for name in ("z", "eps", "t"):
            both = torch.cat([getattr(one, name), getattr(two, name)])
            assert torch.equal(both, getattr(whole[update], name))
        assert torch.equal(torch.cat([text(one), text(two)]), text(whole[update]))


def test_a_resumed_run_takes_the_prompts_that_follow(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One stream: psi's 8 and theta's 8 of each iteration, from where the run was left and not from the beginning."""
    out = tmp_path / "run"
    quick(monkeypatch)
    small_trainer(small_config(tiny_teacher, images=8), out).run()
    subject = small_trainer(small_config(tiny_teacher, images=16), out)
    used: list[torch.Tensor] = []
    send = subject.engine.send
    subject.engine.send = lambda batch: used.append(text(batch)) or send(batch)  # type: ignore[method-assign]
    subject.run()
    assert torch.equal(torch.cat(used), tokens(subject, draws.PromptOrder(PROMPTS, 0)(16, 16)))


# -- scores ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Encoded]:
    """What every scorer of a tracker was given to score: pictures are known by their first pixel, and no network is loaded."""
    scored: list[Encoded] = []

    def encode(self: Scorer, items: Any, features: bool, clip: bool) -> Encoded:
        first = torch.tensor([[float(item.getpixel((0, 0))[0])] for item in items])
        return Encoded(first, first)

    def score(self: Scorer, encoded: Encoded, *_: Any) -> dict[str, float]:
        scored.append(encoded)
        return {"fd": 1.0, "clip": 0.5}

    monkeypatch.setattr(Scorer, "__init__", lambda self, *_: setattr(self, "weights", {}))
    for name, stub in {"encode": encode, "score": score, "to": lambda self, device: None}.items():
        monkeypatch.setattr(Scorer, name, stub)
    reference = scorer.Reference("embedded", "", "", "", scorer.moments(torch.eye(2), 0), None)
    for module in (scorer, tracking):
        monkeypatch.setattr(module, "bench_reference", lambda found: reference, raising=False)
    return scored


def tracker(processes: Processes = Processes(), **settings: Any) -> Tracker:  # noqa: B008
    """Of the embedded protocol."""
    return Tracker(Config(eval_every=512, **settings), torch.device("cpu"), processes)


@contextmanager
def anywhere() -> Any:
    yield


SHAPE = (1, 2, 2)


def level(seed: int) -> float:
    """The first pixel, 0 to 255, of the picture that ``drawing`` makes of a seed's noise."""
    return float(torch.sigmoid(seed_noise([seed], SHAPE)[0, 0, 0, 0]).mul(255).round())


def drawing(z: torch.Tensor, captions: list[str]) -> torch.Tensor:
    return torch.sigmoid(z).expand(-1, 3, -1, -1)


@pytest.mark.parametrize("world", [1, 2, 3, 20])
def test_scores_are_of_the_same_pictures_however_many_processes_draw(
    world: int, judged: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """18 pictures in micro-batches of 4, picture i of seed i and caption i, in this order; each drawn once. With 20 processes two
    have nothing to draw."""
    settings: dict[str, Any] = {"eval_images": 18, "micro_batch": 4}
    team = Team(world, monkeypatch)
    captions: list[str] = []

    def score(processes: Processes) -> dict[str, float]:
        return tracker(processes, **settings)(
            lambda z, texts: captions.extend(texts) or drawing(z, texts), anywhere, SHAPE
        )

    assert team.each(score) == [{"fd": 1.0, "clip": 0.5}, *[{}] * (world - 1)]
    (encoded,) = judged
    expected = [level(seed) for seed in range(18)]
    assert len(set(expected)) > 10
    assert encoded.features.flatten().tolist() == expected
    assert encoded.embeddings is not None
    assert encoded.embeddings.flatten().tolist() == expected
    assert sorted(captions) == sorted(tracker(**settings).captions[:18])


def test_pictures_are_drawn_inside_the_block_that_swaps_the_average_in(judged: list[Encoded]) -> None:
    inside: list[bool] = []

    @contextmanager
    def swapped() -> Any:
        inside.append(True)
        yield
        inside.clear()

    def draw(z: torch.Tensor, captions: list[str]) -> torch.Tensor:
        assert inside
        return drawing(z, captions)

    tracker(eval_images=16)(draw, swapped, SHAPE)
    assert len(judged) == 1


def test_a_process_that_cannot_draw_its_share_leaves_none_waiting(
    judged: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(processes: Processes) -> dict[str, float]:
        def draw(z: torch.Tensor, captions: list[str]) -> torch.Tensor:
            if processes.rank == 1:
                raise MemoryError
            return drawing(z, captions)

        return tracker(processes, eval_images=16)(draw, anywhere, SHAPE)

    found = Team(3, monkeypatch).each(score)
    assert all(isinstance(error, SidlsgError) for error in found)
    assert {str(error)[:29] for error in found} == {"out of this machine's memory;"}
    assert judged == []


# -- saving ----------------------------------------------------------------------------------------------------------------------


def test_the_others_wait_for_a_save_and_share_its_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes: each wait is a short one. What the main process is told, all are told."""
    monkeypatch.setattr(distributed, "ASKED_EVERY", 0.01)
    written: list[float] = []

    def save() -> None:
        time.sleep(0.1)
        written.append(time.monotonic())

    def full() -> None:
        raise OSError(28, "No space left on device", "a file")

    team = Team(3, monkeypatch)
    met: list[int] = []
    meet = team.any_process
    monkeypatch.setattr(distributed, "any_process", lambda *flags: met.append(1) or meet(*flags))
    ended = team.each(lambda processes: (distributed.by_main(save, processes.main), time.monotonic())[1])
    assert len(written) == 1
    assert min(ended) >= written[0]
    assert len(met) >= 3 * 3
    errors = team.each(lambda processes: distributed.by_main(full, processes.main))
    assert isinstance(errors[0], OSError)
    assert all(isinstance(error, SidlsgError) and "the disk is full (a file)" in str(error) for error in errors[1:])


def test_the_main_process_alone_writes_and_every_process_waits_and_checks(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that is not finite ends every process, not the first one alone."""
    out = tmp_path / "run"
    subjects = []
    for rank in (0, 1):
        with one_of(Processes(rank, 2), monkeypatch):
            subjects.append(small_trainer(small_config(tiny_teacher), out))
    team = Team(2, monkeypatch)
    write, there = subjects[0].checkpoints.save, []
    subjects[0].checkpoints.save = lambda *a: (time.sleep(0.2), write(*a))[1]  # type: ignore[method-assign]

    def save(processes: Processes) -> None:
        subjects[processes.rank].save()
        there.append(checkpoints(out))

    assert team.each(save) == [None, None]
    assert there == [[0], [0]]
    for subject in subjects:
        subject.images_seen = 8
        with torch.no_grad():
            next(subject.engine.fake.parameters()).view(-1)[0] = float("nan")
    errors = team.each(save)
    assert all("no longer finite at 8 images" in str(error) for error in errors)
    assert checkpoints(out) == [0]


def test_a_process_waits_as_long_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    asked: dict[str, timedelta] = {}
    monkeypatch.setattr(distributed, "launched", lambda: Processes(0, 2))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: asked.update({backend: timeout}))
    for device in ("cpu", "cuda"):
        distributed.start(torch.device(device))
    assert asked == {"gloo": timedelta(minutes=30), "cpu:gloo,cuda:nccl": timedelta(minutes=30)}


# -- agreement -------------------------------------------------------------------------------------------------------------------


def other(value: Any) -> Any:
    """A value of the same kind that is not this one."""
    if isinstance(value, dict):
        return value | {"unet": "another"}
    return (
        "another"
        if value is None or isinstance(value, str)
        else (*value, 1)
        if isinstance(value, tuple | list)
        else value + 1
    )


def test_processes_that_differ_in_anything_that_decides_are_refused(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every setting but those that say where something is; the teacher's and the prompts' content; the place."""
    subject = small_trainer(small_config(tiny_teacher), tmp_path / "run")
    subject.agree()
    shared = subject.shared()
    free = {
        "checkpoint_every",
        "checkpoint_minutes",
        "eval_every",
        "eval_protocol",
        "eval_images",
        "latent_std",
        "images",
    }
    assert {*free, "lr", "teacher", "prompts", "images seen", "version"} <= set(shared)
    assert set(subject.config.as_dict()) - set(shared) == set(PLACES) - {"teacher", "prompts"}
    for name, value in shared.items():
        monkeypatch.setattr(
            distributed, "gather", lambda facts, name=name, value=value: [facts, facts | {name: other(value)}]
        )
        with pytest.raises(SidlsgError, match=f"do not agree on: {name}\\."):
            subject.agree()
    moved = replace(subject.config, device="cuda:1", eval_reference="/elsewhere")
    monkeypatch.setattr(subject, "config", moved)
    assert subject.shared() == shared


# -- sums ------------------------------------------------------------------------------------------------------------------------


def test_gradients_are_clipped_after_they_are_summed() -> None:
    """0.8 here and 0.8 in another process are 1.6, which is clipped to 1."""
    module = nn.Linear(1, 1, bias=False)
    taken: list[float] = []

    class Optimizer:
        def step(self) -> None:
            taken.append(module.weight.grad.item())

        def zero_grad(self, set_to_none: bool) -> None:
            module.weight.grad = None

    update = NetworkUpdate(module, Optimizer(), 1, clip_value=1.0, reduce=lambda tensor: tensor.mul_(2))  # type: ignore[arg-type]
    loss = module(torch.full((1, 1), 0.8)).flatten()
    update.accumulate(Losses(loss, torch.ones(1, dtype=torch.bool), torch.zeros(1, 1, 1, 1)))
    update.step()
    assert taken == [1.0]
