"""What a report concludes: how far a student has come, held against its teacher and its own beginning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sidlsg.evaluation.request import Request
from sidlsg.evaluation.run import keep_in_run
from sidlsg.report import curves
from sidlsg.report.numbers import times
from sidlsg.report.page import build
from sidlsg.report.reading import Run, read_run
from sidlsg.report.verdict import EQUAL, NEAR, judge
from support.reports import make_run, published_span, score_line, write_lines

LOW, HIGH = published_span("embedded", "teacher 25", "fd")


def run_of(path: Path, fd: list[float], finished: bool = True, **scores: Any) -> Run:
    folder = make_run(path, fd)
    if fd:
        lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
        write_lines(folder / "scores.jsonl", [*lines[:-1], lines[-1] | scores])
    if not finished:
        (folder / "student" / "sidlsg.json").unlink()
    return read_run(folder)


@pytest.mark.parametrize(
    ("fd", "word", "tone"),
    [
        ([564, 600], "Not learning", "bad"),
        ([564, 520], "Not learning", "warn"),
        ([564, 453], "Learning", "fair"),
        ([564, 191], "Learning", "fair"),
        ([564, NEAR * HIGH + 0.1], "Learning", "fair"),
        ([564, NEAR * HIGH], "Close", "good"),
        ([564, HIGH + 0.1], "Close", "good"),
        ([564, HIGH], "Close", "good"),
        ([564, EQUAL * LOW + 0.1], "Close", "good"),
        ([564, EQUAL * LOW], "As good as its teacher", "good"),
        ([564, LOW - 5], "As good as its teacher", "good"),
    ],
)
def test_a_student_has_a_grade(tmp_path: Path, fd: list[float], word: str, tone: str) -> None:
    verdict = judge(run_of(tmp_path / "run", fd))
    assert (verdict.word, verdict.tone) == (word, tone)


def test_a_grade_is_held_against_the_teacher_in_words(tmp_path: Path) -> None:
    sentence = judge(run_of(tmp_path / "run", [564, 191])).sentence
    assert sentence.startswith(
        "fd went from 564 before the first update to 191 after 1,280 images, twice the teacher's worst (the teacher's 25 steps "
        "reach 39.1 to 91.9, depending on its guidance)."
    )
    close = judge(run_of(tmp_path / "close", [564, 81.6])).sentence
    assert "to 81.6 after 1,280 images, twice the teacher's best (" in close


def test_an_unfinished_run_is_graded_so_far(tmp_path: Path) -> None:
    assert judge(run_of(tmp_path / "a", [564, 191], finished=False)).word == "Learning so far"
    assert judge(run_of(tmp_path / "b", [564, 40], finished=False)).word == "As good as its teacher so far"
    assert judge(run_of(tmp_path / "c", [], finished=False)).word == "Not scored"


def test_without_the_teachers_scores_nothing_is_said_of_it(tmp_path: Path) -> None:
    verdict = judge(run_of(tmp_path / "run", [564, 20], warnings=["The number of pictures is 1,000."]))
    assert verdict.word == "Learning"
    assert "no scores of its teacher" in verdict.sentence


def test_one_picture_for_all_seeds_is_not_as_good_as_the_teacher(tmp_path: Path) -> None:
    alike = judge(run_of(tmp_path / "alike", [564, 40], diversity=0.06))
    assert (alike.word, alike.tone) == ("Close, with a warning", "warn")
    assert "differ 0.06 times as much as the teacher's" in alike.sentence
    varied = judge(run_of(tmp_path / "varied", [564, 40], diversity=0.6))
    assert (varied.word, varied.tone) == ("As good as its teacher", "good")
    unknown = judge(run_of(tmp_path / "unknown", [564, 40]))
    assert "Whether different seeds give different pictures is not scored." in unknown.sentence


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(1.02, "as much as"), (1.31, "1.3 times"), (2.08, "twice"), (2.2, "2.2 times"), (12.3, "12 times")],
)
def test_ratios_in_words(ratio: float, words: str) -> None:
    assert times(ratio) == words


# -- what `sidlsg eval` found --------------------------------------------------------------------------------------------------


def evaluated(folder: Path, fd: float, seen: int = 1280, **changes: Any) -> None:
    line = score_line(seen, fd)
    results = {key: line[key] for key in ("protocol", "pictures", "warnings")}
    results |= {"scores": {"fd": fd, "clip": 0.6}, "generation": {"images_seen": seen}} | changes
    (folder / "evals").mkdir(exist_ok=True)
    (folder / "evals" / f"{seen:012d}-{len(list((folder / 'evals').iterdir()))}.json").write_text(json.dumps(results))


def test_an_evaluation_is_in_the_runs_curves_and_table(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [564, 191])
    evaluated(folder, 200.0)
    evaluated(folder, 150.0, pictures=512)  # of another number of pictures: in the table alone
    (folder / "evals" / "damaged.json").write_text("{")
    run = read_run(folder)
    (found,) = [line for line in curves.plots([run])[0].series if line.name == "sidlsg eval"]
    assert (found.x, found.y) == ([1280.0], [200.0])
    page = build([run])
    assert "1,280, sidlsg eval, embedded, 1,024 pictures" in page
    assert "1,280, sidlsg eval, embedded, 512 pictures" in page
    assert "damaged.json is damaged and left out" in page


def test_an_evaluation_grades_a_run_that_has_no_scores(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [])
    evaluated(folder, 191.0)
    verdict = judge(read_run(folder))
    assert (verdict.word, verdict.tone) == ("Far from its teacher", "open")
    assert verdict.sentence.startswith("fd is 191 after 1,280 images, twice the teacher's worst")
    evaluated(folder, 40.0, seen=2560)
    assert judge(read_run(folder)).word == "As good as its teacher"


@pytest.mark.parametrize("model", [".", "student", "best"])
def test_eval_keeps_its_results_in_the_run_whose_student_it_scores(tmp_path: Path, model: str) -> None:
    folder = make_run(tmp_path / "run", [])
    (folder / "best").mkdir()
    results = {"scores": {"fd": 60.0}, "generation": {"images_seen": 640}, "protocol": "embedded", "pictures": 1024}
    request = Request(model=str(folder / model), out=tmp_path / "mine")
    keep_in_run(request, results, Console(quiet=True))
    assert json.loads((folder / "evals" / "000000000640-mine.json").read_text()) == results
    assert read_run(folder).best() == {
        "images_seen": 640,
        "warnings": [],
        "protocol": "embedded",
        "pictures": 1024,
        "fd": 60.0,
    }


def test_results_of_other_models_and_pictures_go_into_no_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [])
    drawn = {"scores": {}, "generation": {"images_seen": None}}
    keep_in_run(Request(model="emoji-student", out=tmp_path / "a"), drawn, Console(quiet=True))
    keep_in_run(Request(model=str(folder), out=tmp_path / "a"), drawn, Console(quiet=True))
    keep_in_run(
        Request(images=tmp_path, reference=tmp_path, out=tmp_path / "a"), {"generation": {}}, Console(quiet=True)
    )
    assert not (folder / "evals").exists()
