"""Only the update itself may end a run: what it shows is made after the save that is due, and spared when it fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from sidlsg.method.update import Stats
from sidlsg.runs.folder import read_metrics
from sidlsg.training import engine, outputs
from sidlsg.training.trainer import Trainer
from support.runs import files
from support.small_runs import Judge, checkpoints, quick, small_config, small_trainer


@pytest.fixture(autouse=True)
def quick_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)


@pytest.fixture(scope="module")
def unbroken(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three iterations, scored after each."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        subject = small_trainer(small_config(tiny_teacher), out)
        Judge(subject)
        subject.run()
    return out


@pytest.fixture(scope="module")
def idle(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A trainer that is not running."""
    return small_trainer(small_config(tiny_teacher), tmp_path_factory.mktemp("idle") / "run")


def student(out: Path) -> bytes:
    return (out / "student" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


class Failing(Judge):
    """Runs out of memory in the middle of drawing, at 16 images."""

    def __call__(self, draw: Any, drawing: Any, *more: Any) -> dict[str, float]:
        with drawing():
            if self.subject.images_seen == 16:
                raise RuntimeError(
                    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
                )
        return super().__call__(draw, drawing, *more)


def test_whatever_fails_beside_the_update_is_said_and_the_student_is_the_same(
    unbroken: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    out = tmp_path / "run"
    subject = small_trainer(small_config(tiny_teacher, checkpoint_every=8), out, Console(width=400))
    Failing(subject)
    saved: list[tuple[str, int, list[int]]] = []

    def fails(what: str) -> Any:
        def failing(*_: Any, **__: Any) -> None:
            saved.append((what, subject.images_seen, checkpoints(out)))
            raise OSError(116, f"no {what} here")

        return failing

    for name in ("draw_grid", "draw_curves", "write_student", "append_line"):
        monkeypatch.setattr(outputs, name, fails(name))
    monkeypatch.setattr("sidlsg.report.write", fails("report"))
    subject.run()
    assert student(out) == student(unbroken)
    said = capsys.readouterr().out
    for name in ("draw_grid", "draw_curves", "write_student", "append_line", "report"):
        assert f"no {name} here" in said
    assert "the run goes on without scores of this place: out of this machine's memory" in said
    # append_line writes metrics before the save of its place; everything else finds that place saved.
    later = [(what, seen, there) for what, seen, there in saved if what != "append_line" and seen]
    assert {seen for _, seen, _ in later} == {8, 16, 24}
    assert all(seen in there for _, seen, there in later)


def test_any_other_error_in_the_loop_saves_before_it_leaves(
    unbroken: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First between psi's update and theta's, then between two iterations; what goes on from there is the unbroken run."""
    out, config = tmp_path / "run", small_config(tiny_teacher)
    subject = small_trainer(config, out)
    Judge(subject)
    update, iterate = engine.update_generator, Trainer.iterate

    def no_memory(*arguments: Any) -> Any:
        if subject.images_seen == 8:
            raise MemoryError
        return update(*arguments)

    def no_kernel(self: Trainer) -> None:
        if self.images_seen == 16:
            raise RuntimeError("a kernel is gone")
        iterate(self)

    monkeypatch.setattr(engine, "update_generator", no_memory)
    with pytest.raises(MemoryError):
        subject.run()
    assert subject.place == (8, True)
    assert checkpoints(out) == [8]
    monkeypatch.setattr(engine, "update_generator", update)
    monkeypatch.setattr(Trainer, "iterate", no_kernel)
    second = small_trainer(config, out)
    Judge(second)
    with pytest.raises(RuntimeError, match="a kernel is gone"):
        second.run()
    assert checkpoints(out) == [8, 16]
    monkeypatch.setattr(Trainer, "iterate", iterate)
    third = small_trainer(config, out)
    Judge(third)
    third.run()
    assert student(out) == student(unbroken)
    assert files(out / "samples") == files(unbroken / "samples")
    assert (out / "scores.jsonl").read_bytes() == (unbroken / "scores.jsonl").read_bytes()


@pytest.mark.parametrize(("network", "lean"), [("psi", False), ("theta", True)])
def test_a_step_left_in_its_middle_is_never_saved(network: str, lean: bool, tiny_teacher: Path, tmp_path: Path) -> None:
    """Some of the weights have moved: no run can go on from there to where it would have been."""
    subject = small_trainer(small_config(tiny_teacher, lean_adam=lean), tmp_path / "run")
    subject.iterate()
    assert subject.engine.whole
    optimizer = getattr(subject.engine, network).optimizer
    step = optimizer.step

    def torn() -> None:
        step()
        raise RuntimeError("out of memory in the middle")

    optimizer.step = torn
    with pytest.raises(RuntimeError, match="in the middle"):
        subject.iterate()
    assert not subject.engine.whole
    subject.rescue()
    assert checkpoints(tmp_path / "run") == []


def test_a_run_that_diverged_is_not_saved_by_its_error(idle: Trainer) -> None:
    far = torch.tensor(50.0)
    idle.rescue()  # nothing has been learnt yet
    idle.images_seen, idle.window = 8, [(Stats(*[far] * 5, torch.zeros(9)),) * 2]
    idle.rescue()
    assert checkpoints(idle.folder.path) == []
    idle.window = []
    idle.rescue()
    assert checkpoints(idle.folder.path) == [8]


def test_pictures_are_drawn_by_the_average_into_a_folder_that_is_made_again(
    idle: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so are the pictures that are scored."""
    shutil.rmtree(idle.folder.samples, ignore_errors=True)
    assert idle.engine.ema is not None
    for average in idle.engine.ema.average.values():
        average.mul_(0.5)
    expected, inside = next(iter(idle.engine.ema.average.values())).clone(), []
    draw = outputs.draw_pictures

    def noted(engine: Any, *arguments: Any) -> Any:
        inside.append(torch.equal(next(engine.generator.parameters()), expected))
        return draw(engine, *arguments)

    class Drawing(Judge):
        def __call__(self, draw: Any, drawing: Any, shape: Any, tick: Any) -> dict[str, float]:
            with drawing():
                draw(torch.zeros(1, *shape), ["a"])
            return {"fd": 1.0, "clip": 0.5}

    monkeypatch.setattr(outputs, "draw_pictures", noted)
    idle.outputs.grid(8)
    assert idle.outputs.grid_file(8).is_file()
    idle.outputs.score(Drawing(idle), 8)
    assert inside == [True, True]
    assert not torch.equal(next(idle.engine.generator.parameters()), expected)


def test_what_an_end_came_before_is_drawn_and_scored_when_the_run_goes_on(
    unbroken: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the grid that follows a checkpoint: grid and scores of that place are not lost, and none is there twice."""
    out = tmp_path / "run"
    config = small_config(tiny_teacher, checkpoint_every=8)
    subject = small_trainer(config, out)
    Judge(subject)
    draw = outputs.draw_grid

    def killed(*arguments: Any) -> None:
        if subject.images_seen == 16:
            raise KeyboardInterrupt
        draw(*arguments)

    monkeypatch.setattr(outputs, "draw_grid", killed)
    with pytest.raises(KeyboardInterrupt):
        subject.run()
    monkeypatch.setattr(outputs, "draw_grid", draw)
    assert checkpoints(out)[-1] == 16
    assert [line["images_seen"] for line in read_metrics(out / "scores.jsonl")] == [0, 8]
    resumed = small_trainer(config, out)
    Judge(resumed)
    resumed.run()
    assert (out / "scores.jsonl").read_bytes() == (unbroken / "scores.jsonl").read_bytes()
    assert files(out / "samples") == files(unbroken / "samples")


def best(out: Path) -> tuple[int, float]:
    note = json.loads((out / "best" / "sidlsg.json").read_text(encoding="utf-8"))
    return note["images_seen"], note["scores"]["fd"]


def test_the_best_student_is_the_best_of_all_but_the_untrained_one(
    idle: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of the last two; scores made in another way are not compared; what is not a number wins nothing."""
    idle.folder.scores.unlink(missing_ok=True)
    shutil.rmtree(idle.folder.best, ignore_errors=True)
    judge, found = Judge(idle, [1.0, 5.0, 3.0, 4.0, 3.5, float("nan"), 2.0]), []
    for seen in range(0, 56, 8):
        idle.outputs.score(judge, seen)
        found.append(best(idle.folder.path) if idle.folder.best.is_dir() else None)
    assert found == [None, (8, 5.0), *[(16, 3.0)] * 4, (48, 2.0)]
    fewer = Judge(idle, [400.0, 300.0, 350.0], pictures=64)
    for seen in (56, 64, 72):
        idle.outputs.score(fewer, seen)
        found.append(best(idle.folder.path))
    assert found[-3:] == [(56, 400.0), (64, 300.0), (64, 300.0)]


def test_a_line_after_a_torn_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "lines.jsonl"
    outputs.append_line(path, json.dumps({"images_seen": 8}))
    with path.open("ab") as file:
        file.write(b'{"images_se')  # a full disk
    outputs.append_line(path, json.dumps({"images_seen": 24}))
    assert [line["images_seen"] for line in read_metrics(path)] == [8, 24]
