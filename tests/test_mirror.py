"""TensorBoard and Weights & Biases get the lines that the run writes, once, and can do no harm to the run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sidlsg.config import Config
from sidlsg.runs.folder import RunFolder, read_metrics
from sidlsg.training.mirror import Mirror, numbers
from support.terminal import one_line


@pytest.fixture
def distil(run, tiny_teacher: Path, prompt_file: Path):
    """``distil(tracker, images)`` trains, or goes on with, one small run of batches of 8 with a checkpoint every 16 images."""

    def call(tracker: str, images: int) -> tuple[int, str, str]:
        words = [
            "--preset",
            "cpu",
            "--teacher",
            tiny_teacher,
            "--prompts",
            prompt_file,
            "--out",
            "run",
            "--device",
            "cpu",
        ]
        sets = {"tracker": tracker, "images": images, "batch": 8, "micro_batch": 8, "grid_images": 1}
        sets |= {"log_every": 8, "checkpoint_every": 16}
        return run("distill", *words, *(f"--set={name}={value}" for name, value in sets.items()))

    return call


class Fake:
    """Stands in for wandb: what was logged, and how each session began."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.sessions: list[dict[str, Any]] = []
        self.finished = 0
        self.Image = lambda path: Path(path).name

    def init(self, **options: Any) -> Any:
        self.sessions.append(options)
        return SimpleNamespace(log=self.logged.append, define_metric=lambda *_, **__: None, finish=self.finish)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("sidlsg.training.mirror.importlib.util.find_spec", lambda name: fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


def lines() -> list[dict[str, Any]]:
    return read_metrics(RunFolder(Path("run")).metrics)


def test_wandb_gets_every_line_once_in_one_run(distil, wandb: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    from sidlsg.training.trainer import Trainer

    real = Trainer.iterate

    def stopping(self: Trainer) -> None:
        if self.images_seen == 24:
            raise KeyboardInterrupt  # after the checkpoint at 16: the line at 24 was sent, and is computed again
        real(self)

    monkeypatch.setattr(Trainer, "iterate", stopping)
    assert distil("wandb", 32)[0] != 0
    monkeypatch.setattr(Trainer, "iterate", real)
    assert distil("wandb", 32)[0] == 0
    sent = [line for line in wandb.logged if "samples" not in line]
    assert [line["images_seen"] for line in sent] == [8, 16, 24, 32]
    for one, other in zip(sent, lines(), strict=True):
        assert one["x_std"] == other["x_std"]
    pictures = [line["samples"] for line in wandb.logged if "samples" in line]
    assert pictures == sorted(set(pictures))
    assert {path.name for path in RunFolder(Path("run")).samples.glob("*.png")} == set(pictures)
    first, second = wandb.sessions
    assert first["id"] == second["id"]
    assert (first["project"], first["name"], first["resume"]) == ("sidlsg", "run", "allow")
    assert first["config"]["batch"] == 8
    assert wandb.finished == 2


def test_tensorboard_shows_the_files_lines_after_a_resumption(distil) -> None:
    pytest.importorskip("tensorboard", reason='no tensorboard: pip install "sidlsg[tensorboard]"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for images in (16, 32):
        assert distil("tensorboard", images)[0] == 0
    found = EventAccumulator("run/tensorboard", {"images": 0})  # all of them
    found.Reload()
    assert [event.step for event in found.Scalars("x_std")] == [8, 16, 24, 32]
    assert [event.value for event in found.Scalars("x_std")] == pytest.approx([line["x_std"] for line in lines()])
    steps = [event.step for event in found.Images("samples")]
    assert steps == sorted(int(path.stem) for path in RunFolder(Path("run")).samples.glob("*.png"))
    assert "images_seen" not in found.Tags()["scalars"]


def test_a_missing_package_is_said_before_a_model_is_loaded(distil, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidlsg.training.mirror.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sidlsg.training.trainer.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    code, _, err = distil("tensorboard", 16)
    assert code == 2
    one_line(err, 'pip install "sidlsg[tensorboard]"')


def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(distil, wandb: Fake) -> None:
    def fail(line: dict[str, Any]) -> None:
        raise ConnectionError("no route")

    wandb.logged = SimpleNamespace(append=fail)  # type: ignore[assignment]
    code, out, err = distil("wandb", 8)
    assert (code, err) == (0, "")
    assert out.count("the run goes on without its tracker, which failed (ConnectionError): no route.\n") == 1


def test_numbers_of_nested_lines_have_paths_for_names() -> None:
    line = {
        "images_seen": 8,
        "loss": 1,
        "bands": [0.5, 2.0],
        "deep": {"a": [3]},
        "protocol": "embedded",
        "good": True,
        "none": None,
    }
    assert dict(numbers(line)) == {"loss": 1.0, "bands/0": 0.5, "bands/1": 2.0, "deep/a/0": 3.0}


def test_no_tracker_needs_nothing(tmp_path: Path) -> None:
    mirror = Mirror(Config(), RunFolder(tmp_path), 0, pytest.fail)
    mirror.line({"images_seen": 1})
    mirror.picture(1, tmp_path)
    mirror.close()
    assert list(tmp_path.iterdir()) == []
