"""What a run says of itself: log.txt, lines of metrics, what is being done, how long it takes, and how it went."""

from __future__ import annotations

import io
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sidlsg.cli import describe
from sidlsg.errors import Stopped
from sidlsg.report.numbers import short
from sidlsg.runs.folder import RunFolder, read_metrics
from sidlsg.training import due
from sidlsg.training.launch import outcome, summary
from sidlsg.training.progress import RunProgress
from sidlsg.training.trainer import Trainer
from support.small_runs import Judge, quick, small_config, small_trainer


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


def test_log_and_metrics_say_what_was_done_when_and_at_what_rate(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    """Three starts: one that an error ends, one that is stopped, and one that ends."""
    quick(monkeypatch)
    monkeypatch.setattr("sys.argv", ["sidlsg", "distill", "--out", "my run"])
    out, config, iterate = tmp_path / "run", small_config(tiny_teacher, lr=1e-3, lr_decay=16), Trainer.iterate

    def failing(self: Trainer) -> None:
        if self.images_seen == 8:
            raise RuntimeError("a kernel is gone")
        iterate(self)

    monkeypatch.setattr(Trainer, "iterate", failing)
    with pytest.raises(RuntimeError, match="kernel"):
        small_trainer(config, out, Console(file=said, width=400)).run()
    monkeypatch.setattr(Trainer, "iterate", iterate)
    second = small_trainer(config, out)
    second.stop.set()
    with pytest.raises(Stopped):
        second.run()
    third = small_trainer(config, out)
    Judge(third)
    third.run()

    lines = (out / "log.txt").read_text(encoding="utf-8").splitlines()
    assert all(datetime.fromisoformat(line.split(" ", 1)[0]).tzinfo for line in lines)
    texts = [line.split(" ", 1)[1] for line in lines]
    assert [text.partition(":")[0] for text in texts if text.startswith(("start", "command", "end"))] == [
        *["start", "command", "end"] * 3
    ]
    assert texts[0].startswith("start: sidlsg ")
    assert ", torch " in texts[0]
    assert texts[1] == "command: sidlsg distill --out 'my run'"
    ends = [text for text in texts if text.startswith("end: ")]
    assert ends == [
        "end: RuntimeError: a kernel is gone.",
        "end: stopped at 8 images; run the same command again to go on",
        "end: done",
    ]
    assert 'raise RuntimeError("a kernel is gone")' in "\n".join(texts)  # the traceback
    assert "resuming at 8 images" in "\n".join(texts)
    assert "24 images: fd " in "\n".join(texts)
    assert re.search(r"^16 images in \d+:\d\d of training, and \d+:\d\d of scoring$", "\n".join(texts), re.MULTILINE)
    assert "note: saved at 8 images, where an error ends the run" in said.getvalue()

    metrics = read_metrics(out / "metrics.jsonl")
    assert [line["images_seen"] for line in metrics] == [8, 16, 24]
    assert [line["lr"] for line in metrics] == pytest.approx([1e-3, 1e-3, 5e-4])
    times = [datetime.fromisoformat(line["time"]) for line in metrics]
    assert times == sorted(times)
    assert times[0].tzinfo is not None

    found = outcome(RunFolder(out))
    fd = [line["fd"] for line in read_metrics(out / "scores.jsonl")]
    assert len(fd) == 3
    assert found["fd"].startswith(f"{short(fd[0])} → {short(fd[-1])}")
    assert re.fullmatch(r"\d+:\d\d of training for 24 images", found["time"])
    Console(file=said, width=400).print(summary(RunFolder(out), "emoji"), soft_wrap=True)
    assert "How it went" in said.getvalue()
    assert all(text in said.getvalue() for text in found.values())


def test_the_verdict_and_the_teachers_range_stand_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("teacher: emoji\nimages: 64\n", encoding="utf-8")
    line = {"protocol": "embedded", "pictures": 1024, "warnings": [], "clip": 0.5}
    rows = [{"images_seen": seen, "fd": fd} | line for seen, fd in ((0, 564.0), (64, 191.0))]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = outcome(RunFolder(tmp_path))
    assert re.fullmatch(r"564 → 191 \(the teacher's 25 steps: \d+(\.\d+)? to \d+(\.\d+)?\)", found["fd"])
    assert found["verdict"]
    (tmp_path / "config.yaml").write_text("[", encoding="utf-8")
    outcome(RunFolder(tmp_path))  # raises nothing


def test_the_time_left_is_that_of_training_and_of_the_scorings_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    now = 0.0
    monkeypatch.setattr(due.time, "monotonic", lambda: now)
    progress = RunProgress(Console(file=said, width=200), 100, 0, RunFolder(tmp_path), scores=[10, 20, 50, 100])
    with progress:
        assert progress.left(0) is None
        now += 1000  # pre-flight
        with progress.scoring(0, 16) as tick:
            now += 60
            tick(16)
        progress.begin(0)
        now += 20  # for 10 images
        with progress.scoring(10, 16):
            now += 40
        assert progress.training == 20
        assert progress.left(10) == 90 * 2 + 3 * 50
        progress.update(10, 1.0, 1.0, 1.0)
    assert "10/100 images  0.5/s  5:30 left" in said.getvalue()
    assert "scoring at 10 images: drawing 16 pictures\n" in said.getvalue()


def test_a_terminal_sees_how_many_pictures_are_drawn(tmp_path: Path, said: io.StringIO) -> None:
    console = Console(file=said, width=80, force_terminal=True, force_interactive=True, no_color=True)
    with RunProgress(console, 100, 0, RunFolder(tmp_path)) as progress, progress.scoring(0, 32) as tick:
        tick(16)
        assert progress._bar is not None
        assert progress._bar.text.plain == "scoring at 0 images: 16 of 32 pictures drawn"


def test_a_terminal_that_is_gone_ends_nothing(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    quick(monkeypatch)
    subject = small_trainer(small_config(tiny_teacher, images=8), tmp_path / "run", Console(file=Gone()))
    subject.run()
    assert (tmp_path / "run" / "student").is_dir()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
                "allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"
            ),
            "out of this machine's memory (4.0 GiB more were wanted); use a smaller --micro-batch",
        ),
        (MemoryError(), "out of this machine's memory; use a smaller --micro-batch"),
        (RuntimeError("std::bad_alloc"), "out of this machine's memory; use a smaller --micro-batch"),
    ],
)
def test_no_memory_is_one_line(error: Exception, said: str) -> None:
    message, code = describe(error)
    assert message.startswith(said)
    assert code == 1


def progress_of(subject: Trainer) -> Any:
    return RunProgress(subject.console, subject.config.images, 0, subject.folder)


def test_the_pre_flight_is_repeated_where_other_kernels_compute(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    """On another torch, driver or GPU, and on copies of the teacher: before the checkpoint is loaded."""
    quick(monkeypatch)
    checked: list[bool] = []

    def check(engine: Any, prompt: str) -> str:
        copies = zip(engine.fake.parameters(), engine.generator.parameters(), strict=True)
        checked.append(all(bool((a == b).all()) for a, b in copies))
        return "checked"

    monkeypatch.setattr("sidlsg.training.trainer.preflight", check)
    out, config = tmp_path / "run", small_config(tiny_teacher, images=8)
    small_trainer(config, out).run()
    assert checked == [True]
    again = small_trainer(config, out, Console(file=said, width=200))
    assert again.begin(progress_of(again))
    assert checked == [True]
    assert set(again.machine) == {"torch", "device", "driver"}
    other = small_trainer(config, out, Console(file=said, width=200))
    other.machine = other.machine | {"driver": "another"}
    assert other.begin(progress_of(other))
    assert checked == [True, True]
    assert other.images_seen == 8
    assert said.getvalue().count("pre-flight: checking networks and attention again") == 1
