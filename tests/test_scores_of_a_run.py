"""One rule says which lines of scores.jsonl are compared: for best/, curves, the terminal's course and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidlsg.plotting import figure
from sidlsg.report.reading import read_run
from sidlsg.runs.folder import RunFolder
from sidlsg.runs.scores import comparable, is_best
from sidlsg.training import tracking
from sidlsg.training.progress import score_course

MADE = {"protocol": "embedded", "pictures": 1024, "reference": "emoji-bench"}
OTHERS = [{"protocol": "gigagan"}, {"pictures": 64}, {"reference": "0123456789abcdef"}]


def line(seen: int, fd: float, **changes: Any) -> dict[str, Any]:
    return {"images_seen": seen, "clip": 0.5, "fd": fd, **MADE, **changes}


@pytest.mark.parametrize("change", OTHERS, ids=lambda change: next(iter(change)))
def test_lines_made_in_another_way_are_left_out_everywhere(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was taken up again with another eval_protocol, eval_images or eval_reference."""
    before = [line(0, 9.0, **change), line(8, 1.0, **change)]
    if change.get("protocol"):
        before = [{"fid" if key == "fd" else key: value for key, value in row.items()} for row in before]
    after = [line(16, 5.0), line(24, 7.0)]
    assert comparable([*before, *after]) == after
    assert comparable([*before, *after], line(32, 0.0, **change)) == before
    assert is_best(line(16, 5.0), before, "fd")
    assert not is_best(after[1], [*before, after[0]], "fd")

    (tmp_path / "config.yaml").write_text("teacher: emoji\n", encoding="utf-8")
    rows = "".join(json.dumps(row) + "\n" for row in [*before, *after])
    (tmp_path / "scores.jsonl").write_text(rows, encoding="utf-8")
    course = score_course(RunFolder(tmp_path))
    assert course is not None
    assert course.endswith(" 7, best 5")
    run = read_run(tmp_path)
    assert [row["fd"] for row in run.scores] == [5.0, 7.0]
    ((key, value),) = change.items()
    assert f"{key} {value} instead of {MADE[key]}" in run.problems[0]

    drawn = []

    class Noted:
        def __init__(self, *size: float) -> None:
            self.inner = figure(*size)

        def __enter__(self) -> Any:
            self.made = self.inner.__enter__()
            return self.made

        def __exit__(self, *error: Any) -> None:
            drawn.extend([(x.tolist(), y.tolist()) for axes in self.made.axes for x, y in [axes.lines[0].get_data()]])
            self.inner.__exit__(*error)

    monkeypatch.setattr(tracking, "figure", Noted)
    tracking.draw_curves([*before, *after], tmp_path / "curves.png", "FD")
    assert drawn == [([16, 24], [5.0, 7.0]), ([16, 24], [0.5, 0.5])]


def test_lines_of_versions_that_wrote_less_are_compared_by_what_they_have() -> None:
    old = {key: value for key, value in line(8, 3.0).items() if key != "reference"}
    assert comparable([old, line(16, 2.0)]) == [old, line(16, 2.0)]
    assert not is_best(line(16, 3.0), [old], "fd")
    assert comparable([]) == []


@pytest.mark.parametrize("fd", [float("nan"), None, "low", True])
def test_what_is_no_number_is_never_the_best_and_beats_nothing(fd: Any) -> None:
    assert not is_best(line(16, fd), [line(8, 3.0)], "fd")
    assert is_best(line(16, 2.0), [line(8, fd), line(0, 1.0)], "fd")
    assert not is_best(line(0, 0.0), [], "fd")


def test_curves_leave_out_what_is_not_finite(tmp_path: Path) -> None:
    tracking.draw_curves([line(8, float("nan")), line(16, 2.0)], tmp_path / "curves.png", "FD")
    assert (tmp_path / "curves.png").stat().st_size > 2000
    tracking.draw_curves([line(0, 2.0)], tmp_path / "none.png", "FD")
    assert not (tmp_path / "none.png").exists()
