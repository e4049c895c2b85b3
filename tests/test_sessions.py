"""When, on what and by which command a run was trained: ``sessions.jsonl``, and the report's account of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidlsg.errors import SidlsgError, Stopped
from sidlsg.report.page import build
from sidlsg.report.reading import read_run
from sidlsg.runs.sessions import read_sessions, recorded
from sidlsg.training.session import command
from support.reports import make_run, write_lines


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (None, "complete"),
        (Stopped("stopped at 64 images"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (SidlsgError("the generator has diverged"), "failed: the generator has diverged."),
    ],
)
def test_a_session_says_how_it_ended(tmp_path: Path, error: BaseException | None, how: str) -> None:
    path, seen = tmp_path / "sessions.jsonl", iter([0, 64])

    def train() -> None:
        with recorded(path, lambda: next(seen), lambda: {"device": "a CPU"}, pytest.fail):
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            train()
    else:
        train()
    (session,) = read_sessions(path)
    assert session.end is not None
    assert (session.begin["images_seen"], session.begin["device"]) == (0, "a CPU")
    assert (session.end["images_seen"], session.end["how"]) == (64, how)


def test_a_session_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    said: list[str] = []
    with recorded(tmp_path / "gone" / "sessions.jsonl", lambda: 0, dict, said.append):
        pass
    assert len(said) == 2
    assert all("the run goes on without a line in sessions.jsonl" in text for text in said)


def test_a_killed_process_leaves_a_session_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "sessions.jsonl"
    write_lines(path, [{"event": "begin", "images_seen": 0}, {"event": "begin", "images_seen": 64}])
    path.open("a").write('{"event": "end", "images_seen": 128}\n{"event": "end", "images_seen": 12')
    assert [session.end and session.end["images_seen"] for session in read_sessions(path)] == [None, 128]


def test_a_command_is_shown_without_the_folder_of_its_program() -> None:
    assert command(["/home/me/venv/bin/sidlsg", "distill", "--out", "my run"]) == "sidlsg distill --out 'my run'"
    assert command(["/home/me/sidlsg/__main__.py", "distill"]) == "python -m sidlsg distill"


def test_a_run_records_its_session(unbroken: tuple[Path, Path]) -> None:
    (session,) = read_sessions(unbroken[0] / "sessions.jsonl")
    assert session.end is not None
    assert (session.begin["images_seen"], session.end["images_seen"], session.end["how"]) == (0, 32, "complete")
    assert session.begin["processes"] == 1
    assert {"time", "command", "device", "torch", "python", "sidlsg", "diffusers", "transformers"} <= set(session.begin)
    assert "<dt>ended</dt><dd>complete</dd>" in (unbroken[0] / "report.html").read_text(encoding="utf-8")


def test_the_report_has_start_end_device_command_and_the_terminals_times(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    facts = {"command": "sidlsg distill --kappa 2", "processes": 8, "device": "NVIDIA H100 80GB HBM3", "torch": "2.9.1"}
    begin, end = "2026-03-01T10:03:02+00:00", "2026-03-01T10:14:04+00:00"
    lines = [
        {"event": "begin", "time": begin, "images_seen": 0} | facts,
        {"event": "end", "time": end, "images_seen": 1280, "seconds": 662.0, "how": "complete"},
    ]
    write_lines(folder / "sessions.jsonl", lines)
    page = build([read_run(folder)])
    for said in (
        "<dd>2026-03-01 10:03<small>to 2026-03-01 10:14</small></dd>",
        "<dd>0:40<small>11:02 in all</small></dd>",  # 1,280 images at 32 images/s; and with scoring
        "<dd>32 images/s<small>without scoring</small></dd>",
        "<dd>NVIDIA H100 80GB HBM3<small>8 processes, fp32</small></dd>",
        "<dd>sidlsg distill --kappa 2</dd>",
        "<dt>torch</dt><dd>2.9.1</dd>",
    ):
        assert said in page


def test_a_run_of_an_older_version_has_no_sessions_and_says_so(tmp_path: Path) -> None:
    assert "was trained is not on record" in build([read_run(make_run(tmp_path / "run"))])
