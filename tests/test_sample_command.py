"""``sidlsg sample`` refuses before it loads, says what an empty prompt is, and makes grids that fit a page."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from PIL import Image

import sidlsg
from conftest import one_line
from sidlsg.config import Config
from sidlsg.errors import UsageError
from sidlsg.runs.folder import RunFolder
from sidlsg.runs.opening import describe_model
from sidlsg.sampling import grid
from sidlsg.sampling.grid import prompt_grid, seed_ranges


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--steps", "4"], ["emoji-student is a one-step generator", "leave out --steps"]),
        (["--guidance", "3"], ["leave out --guidance"]),
        (["--sampler", "ddim"], ["leave out --sampler"]),
        (["--model", "emoji", "--sampler", "ddi"], ['did you mean "ddim"']),
        (["--model", "emoji", "--steps", "2000"], ["cannot draw in 2000 steps"]),
        (["--model", "emoji", "--guidance", "0.5"], ["guidance is 0.5"]),
        (["--model", "runs/mine", "--steps", "4"], ["runs/mine is a one-step generator", "leave out --steps"]),
    ],
)
def test_options_that_do_not_fit_are_refused_before_the_model_is_loaded(run, monkeypatch, arguments, parts) -> None:
    monkeypatch.setattr("sidlsg.runs.opening.open_model", lambda *_: pytest.fail("the model was loaded"))
    folder = RunFolder(Path("runs/mine"))
    folder.path.mkdir(parents=True)
    folder.config.write_text(yaml.safe_dump(Config(teacher="emoji", device="cpu").as_dict()), encoding="utf-8")
    code, _, err = run("sample", "a cat", "--device", "cpu", *arguments)
    assert code == 2
    one_line(err, *parts)


def test_a_seed_that_torch_would_change_is_refused_before_the_model_is_loaded(monkeypatch) -> None:
    monkeypatch.setattr("sidlsg.runs.opening.open_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(UsageError, match="the seed -1 is not in"):
        sidlsg.sample("a cat", seeds=[0, -1])


def test_a_model_that_is_not_on_this_machine_is_not_described(run) -> None:
    assert describe_model("sd15") is None


def test_an_empty_prompt_is_said(run, tiny_teacher: Path) -> None:
    command = ["sample", "--model", tiny_teacher, "--steps", "1", "--device", "cpu"]
    code, out, err = run(*command, "")
    assert (code, out) == (0, str(Path("samples", "empty-0.png")) + "\n")
    assert err == "note: the prompt is empty: this is what the model draws when it is told nothing\n"
    assert run(*command, "a")[2] == ""


@pytest.mark.parametrize(
    ("prompts", "seeds", "columns"), [(1, 16, 4), (1, 5, 3), (2, 16, 8), (2, 9, 5), (3, 10, 5), (2, 8, 8), (2, 20, 7)]
)
def test_rows_of_many_seeds_are_broken_into_equal_ones(monkeypatch, prompts: int, seeds: int, columns: int) -> None:
    wide: list[int] = []
    real = grid.make_grid
    monkeypatch.setattr(
        grid, "make_grid", lambda found, columns, gap: (wide.append(columns), real(found, columns, gap))[1]
    )
    pictures = [Image.new("RGB", (64, 64))] * (prompts * seeds)
    sheet = prompt_grid(pictures, [str(i) for i in range(prompts)], range(seeds), note="a model, 1 step")
    assert wide == [columns] * prompts
    assert sheet.width < 1500  # of 64-pixel images, which are enlarged


def test_a_grid_names_model_and_seeds(monkeypatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(grid, "write", lambda sheet, place, text, *_, **__: written.append(text))
    prompt_grid([Image.new("RGB", (64, 64))] * 3, ["a cat"], [0, 1, 5], note="runs/mine, 1 step")
    assert written == ["a cat", "seeds 0 to 1, 5", "runs/mine, 1 step"]
    assert seed_ranges([3, 0, 1, 2, 7, 9, 10]) == "3, 0 to 2, 7, 9 to 10"
