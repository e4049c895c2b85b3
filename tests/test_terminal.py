"""What a command writes where: plain lines in a pipe, columns on a terminal, JSON on request, and no more than was asked for."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from sidlsg.errors import sentence
from sidlsg.formats import sparkline
from sidlsg.runs.folder import RunFolder
from sidlsg.settings import preset_names
from sidlsg.sheet import Sheet
from sidlsg.teachers.registry import registry
from sidlsg.training.progress import RunProgress
from support.terminal import one_line

LONG = "a path /a/very/long/path/that/is/longer/than/any/narrow/terminal/has/columns/for and words that follow it"


def printed(width: int, terminal: bool) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, force_interactive=terminal, no_color=True)
    console.print(
        Sheet({"First": {"name": "text", "longer name": LONG}, "Empty": {}, "Second": {"a": ""}}), soft_wrap=True
    )
    return [line.rstrip() for line in re.sub("\033\\[[0-9;]*m", "", file.getvalue()).splitlines()]


def test_a_pipe_gets_each_line_whole() -> None:
    assert printed(40, False) == ["First", "  name         text", f"  longer name  {LONG}", "", "Second", "  a"]


def test_a_terminal_gets_columns_and_a_narrow_one_the_text_below_the_name() -> None:
    wide = printed(80, True)
    assert wide[:2] == ["First", "  name         text"]
    assert [line[15:] for line in wide[3:5]] == [
        "/a/very/long/path/that/is/longer/than/any/narrow/terminal/has/columns/for",
        "and words that follow it",
    ]
    narrow = printed(60, True)
    assert narrow[:5] == ["First", "  name", "    text", "  longer name", "    a path"]
    assert (
        narrow[5] == "    /a/very/long/path/that/is/longer/than/any/narrow/terminal/has/columns/for"
    )  # whole, to be copied


def test_a_sparkline_goes_from_the_smallest_to_the_largest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([100, 8, 1, float("nan"), 8], most=4) == "█▁ █"
    assert sparkline([3, 3]) == "▁▁"
    assert sparkline([]) == ""


def test_progress_shows_the_scores_course_and_each_new_grid(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.samples.mkdir()
    (folder.samples / "000000000000.png").touch()
    file = io.StringIO()
    with RunProgress(Console(file=file, width=40), 100, 0, folder) as progress:
        progress.update(10, 5.0, -1.0, 1.5)
        folder.scores.write_text(
            "".join(json.dumps({"images_seen": n, "fd": fd}) + "\n" for n, fd in ((0, 9.5), (10, 2.0), (20, 4.0)))
        )
        (folder.samples / "000000000020.png").touch()
        progress.update(20, 4.0, 1.0, 1.5)
        progress.update(30, 4.0, 1.0, 1.5)
    first, second, grid, third = file.getvalue().splitlines()
    assert first.startswith("10/100 images  ")
    assert first.endswith("1.50 GiB  ψ loss 5.0  θ loss -1.0")
    assert second.endswith("fd █▁▃ 4, best 2")
    assert grid == f"latest pictures: {folder.samples / '000000000020.png'}"
    assert third.startswith("30/100")


def test_a_terminal_gets_a_bar_with_the_same_lines_below_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.samples.mkdir()
    (folder.samples / "000000000000.png").touch()
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=True, force_interactive=True, no_color=True)
    with RunProgress(console, 100, 0, folder) as progress:
        progress.update(50, 5.0, -1.0, 1.5)
    last = re.sub("\033\\[[0-9;?]*[a-zA-Z]", "", file.getvalue()).replace("\r", "\n").rstrip().splitlines()[-4:]
    assert last[0].endswith(" 50 %")
    assert last[1].startswith("50/100 images  ")
    assert last[2:] == ["ψ loss 5.0  θ loss -1.0", f"latest pictures: {folder.samples / '000000000000.png'}"]


def test_the_plan_says_what_differs_from_the_preset_and_the_whole_one_says_everything(run) -> None:
    words = ["distill", "--preset", "h100-bf16", "--lr", "2e-6", "--dry-run"]
    code, short, _ = run(*words)
    assert code == 0
    assert "  preset               h100-bf16, with lr 2e-06 (not 1e-06)\n" in short
    assert len(short.splitlines()) <= 20
    assert "checkpoint_minutes" not in short
    code, whole, _ = run(*words, "--show-config")
    assert code == 0
    config = json.loads(run(*words, "--json")[1])["config"]
    effective = whole.split("Effective configuration\n")[1].splitlines()
    assert [line.split()[0] for line in effective] == list(config)
    assert any(line.split() == ["lr", "2e-06"] for line in effective)


def test_a_run_ends_with_where_everything_is(run, tiny_teacher: Path, prompt_file: Path, tmp_path: Path) -> None:
    words = ["distill", "--preset", "cpu", "--teacher", tiny_teacher, "--prompts", prompt_file, "--out", "a run"]
    words += ["--images", "8", "--batch", "8", "--micro-batch", "8", "--set", "grid_images=1", "--device", "cpu"]
    code, out, err = run(*words, "--quiet")
    assert (code, out, err) == (0, f"{Path('a run', 'student')}\n", "")
    code, out, _ = run(*words)
    assert code == 0
    lines = {
        line[2:].split("  ")[0]: line.split("  ")[-1].strip()
        for line in out.split("this run is complete")[1].splitlines()
    }
    assert lines["student"] == str(Path("a run", "student"))
    assert lines["latest pictures"] == str(Path("a run", "samples", "000000000008.png"))
    assert lines["draw"] == "sidlsg sample \"...\" --model 'a run'"
    assert lines["score"] == "sidlsg eval --model 'a run'"
    page = Path("a run", "report.html")
    assert out.splitlines()[-1] == f"Open {page} in a browser: it shows whether this works."
    assert "a run · finished" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "command",
    [["models"], ["presets", "list"], ["presets", "show", "cpu"], ["distill", "--dry-run"], ["eval", "--dry-run"]],
    ids=" ".join,
)
def test_json_is_the_whole_of_stdout(run, command: list[str]) -> None:
    code, out, err = run(*command, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    expected = {
        "models": lambda: [row["alias"] for row in found] == list(registry()),
        "presets list": lambda: [row["preset"] for row in found] == preset_names(),
        "presets show cpu": lambda: found["teacher"] == "emoji" and found["kappa"] == [2.0],
        "distill --dry-run": lambda: found["plan"]["preset"] == "cpu, unchanged" and found["problem"] is None,
        "eval --dry-run": lambda: "protocol" in found or "scores" in found,
    }
    assert expected[" ".join(command)]()


def test_json_of_a_run_is_refused_and_of_eval_is_what_its_file_holds(run, tmp_path: Path) -> None:
    code, _, err = run("distill", "--json")
    assert code == 2
    one_line(err, "--dry-run")
    code, out, err = run(
        "eval", "--limit", "2", "--device", "cpu", "--out", "results", "--only", "clip", "--json", "--quiet"
    )
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((tmp_path / "results" / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_colours_follow_no_color_and_force_color_in_a_pipe(
    run, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], coloured: bool
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TERM": "xterm-256color"} | environment).items():
        monkeypatch.setenv(name, value)
    code, out, _ = run("distill", "--preset", "h100-bf16", "--gpu", "4090", "--dry-run")
    assert code == 0
    assert ("\033[33m" in out) == coloured
    assert "\033[?25l" not in out  # nothing that moves or hides the cursor


def test_flags_for_all_commands_stand_anywhere_and_end_with_the_command(run) -> None:
    for words in (["--verbose", "distill", "--dry-run"], ["distill", "--dry-run", "--verbose"]):
        assert "Effective configuration" in run(*words)[1]
    assert "Effective configuration" not in run("distill", "--dry-run")[1]
    assert "SIDLSG_VERBOSE" not in os.environ


def test_what_a_library_says_is_quoted_as_one_sentence() -> None:
    assert (
        sentence(ValueError("Error no file named x.bin found in directory /a.b/c."))
        == "Error no file named x.bin found in directory /a.b/c."
    )
    assert sentence(ValueError("It failed: \n\nmore\n")) == "It failed."
    assert sentence(ValueError("It failed. Please report it. Thanks")) == "It failed."
    assert sentence(ValueError("")) == "ValueError."
    assert sentence(ValueError("word " * 100), length=20) == "word word word word."


def test_a_part_without_config_is_named_without_a_librarys_warning(
    run, tiny_teacher: Path, tmp_path: Path, recwarn
) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "copy")
    (folder / "vae" / "config.json").unlink()
    code, _, err = run("sample", "a", "--model", folder, "--device", "cpu")
    assert code == 1
    one_line(err, str(folder / "vae"), "config.json")
    assert [str(w.message) for w in recwarn if "local_dir" in str(w.message)] == []
