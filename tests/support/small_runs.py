"""Runs of the tiny teacher that train for a few iterations, and what stands in for their judge and for other processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from sidlsg import distributed
from sidlsg.config import Config
from sidlsg.distributed import Processes
from sidlsg.training.trainer import Trainer
from support.runs import config_for, trainer, write_prompts

PROMPTS = 23


def small_config(teacher: Path, **changes: Any) -> Config:
    """Three iterations; saved at the end only."""
    return config_for(teacher, **{"images": 24, "checkpoint_every": 8_000_000, **changes})


def small_trainer(config: Config, out: Path, console: Console | None = None) -> Trainer:
    """A trainer with prompts that are written beside its folder."""
    file = out.with_name("prompts.txt")
    subject = trainer(config, out, file if file.is_file() else write_prompts(file, PROMPTS))
    subject.console = console or subject.console
    return subject


class Judge:
    """In the place of a Tracker: the distance is a number that the averaged weights give, or what it is told to give."""

    key, pictures, warnings = "fd", 16, ()
    protocol = SimpleNamespace(distance="FD")

    def __init__(self, subject: Trainer, distances: list[float] | None = None, **about: Any) -> None:
        self.subject, self.distances = subject, distances
        self.about = {"protocol": "embedded", "pictures": 16, "reference": "emoji-bench", "warnings": []} | about
        subject.tracker = self  # type: ignore[assignment]
        subject.config = replace(subject.config, eval_every=subject.config.eval_every or 8)

    def __call__(self, draw: Any, drawing: Any, shape: Any, tick: Any) -> dict[str, float]:
        with drawing():
            weights = sum(p.abs().sum().item() for p in self.subject.engine.generator.parameters())
        return {"fd": self.distances.pop(0) if self.distances is not None else weights, "clip": 0.5}


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of a small run's time and is not the claim: pre-flight, report, curves, collecting garbage."""
    monkeypatch.setattr("sidlsg.training.trainer.preflight", lambda *_: "checked")
    monkeypatch.setattr("sidlsg.report.write", lambda folder: None)
    monkeypatch.setattr("sidlsg.training.outputs.draw_curves", lambda *_: None)
    monkeypatch.setattr("sidlsg.devices.PeakMemory.reset", lambda self: None)


def checkpoints(out: Path) -> list[int]:
    return sorted(int(path.name) for path in (out / "checkpoints").glob("[0-9]*"))


class Team:
    """Threads that take themselves for the processes of one run: ``distributed`` exchanges what they give between them."""

    def __init__(self, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world, self.mine = world, threading.local()
        self.meeting = threading.Barrier(world, timeout=60)
        self.given: list[Any] = [None] * world
        monkeypatch.setattr(distributed, "started", lambda: True)
        monkeypatch.setattr(distributed, "gather", self.gather)
        monkeypatch.setattr(distributed, "barrier", self.meeting.wait)
        monkeypatch.setattr(distributed, "any_process", self.any_process)

    def gather(self, value: Any) -> list[Any]:
        self.given[self.mine.rank] = value
        self.meeting.wait()
        found = list(self.given)
        self.meeting.wait()
        return found

    def any_process(self, *flags: bool) -> tuple[bool, ...]:
        return tuple(map(any, zip(*self.gather(flags), strict=True)))

    def each(self, work: Callable[[Processes], Any]) -> list[Any]:
        """What ``work`` gives, or raises, in each of the processes, by rank."""
        found: list[Any] = [None] * self.world

        def one(rank: int) -> None:
            self.mine.rank = rank
            try:
                found[rank] = work(Processes(rank, self.world))
            except Exception as error:
                found[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


@contextmanager
def one_of(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trainers built inside the block take themselves for that one of several processes; nobody answers them."""
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "start", lambda device: processes)
        patch.setattr(distributed, "barrier", lambda: None)
        yield
