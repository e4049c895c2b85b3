"""Labelled grids, and models side by side: every picture in its place, from the same noise, with seconds of this run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from sidlsg.benchmark.comparison import Contender, seconds_text
from sidlsg.errors import UsageError
from sidlsg.sampling import grid, lettering
from sidlsg.sampling.grid import Block, Row, labelled_grid, prompt_grid
from support.terminal import one_line


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (96, 96)) -> Image.Image:
    return Image.new("RGB", size, colour)


def boxes(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the pixels of one colour, which must fill that box."""
    where = np.argwhere((np.asarray(sheet) == colour).all(axis=-1))
    (top, left), (bottom, right) = where.min(axis=0), where.max(axis=0) + 1
    assert len(where) == (bottom - top) * (right - left)
    return left, top, right, bottom


def test_every_picture_is_in_its_row_and_column_at_its_size() -> None:
    colours = [[(10 * r + c + 1, 200, 100) for c in range(3)] for r in range(4)]
    rows = [Row([plain(colour) for colour in line], f"row {r}", ["1 step"]) for r, line in enumerate(colours)]
    sheet = labelled_grid([Block(rows[:2], "first"), Block(rows[2:], "second")], ["seed 0", "seed 1", "seed 2"], "note")
    found = np.array([[boxes(sheet, colour) for colour in line] for line in colours])
    assert (found[..., 2] - found[..., 0] == 96).all()
    assert (found[..., 3] - found[..., 1] == 96).all()
    assert (np.diff(found[..., 0], axis=1) == 98).all()  # columns beside each other
    assert (np.diff(found[..., 0], axis=0) == 0).all()
    between = np.diff(found[:, 0, 1])
    assert between[0] == between[2] == 98  # rows below each other, and a title with heads between the blocks
    assert between[1] > 98 + 3 * grid.SMALLEST_TEXT
    assert sheet.getpixel((0, 0)) == (255, 255, 255)
    labels = np.asarray(sheet.convert("L"))[:, : found[0, 0, 0] - 1]
    for row in found[:, 0]:
        assert labels[row[1] : row[3]].min() < 60  # something is written beside each


def test_a_prompt_that_is_no_unicode_is_refused_before_a_model_is_loaded(run) -> None:
    code, _, err = run("compare", "caf\udce9", "--models", "emoji-student", "--device", "cpu")
    assert code == 2
    one_line(err, r"'caf\udce9' is not valid Unicode")


def test_pictures_of_other_sizes_fill_the_cell() -> None:
    rows = [Row([plain((255, 0, 0), (200, 200))], "large"), Row([plain((0, 0, 255), (50, 50))], "small")]
    sheet = labelled_grid([Block(rows)], ["seed 0"])
    for colour in ((255, 0, 0), (0, 0, 255)):
        left, top, right, bottom = boxes(sheet, colour)
        assert (right - left, bottom - top) == (200, 200)


def test_a_long_row_is_broken_and_says_which_seeds_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    real = grid.write
    monkeypatch.setattr(
        grid,
        "write",
        lambda image, place, text, *rest, **more: (drawn.append(text), real(image, place, text, *rest, **more)),
    )
    pictures = [plain((i + 1, 0, 0), (100, 100)) for i in range(10)]
    sheet = prompt_grid(pictures, ["a", "b"], [3, 4, 5, 6, 7], columns=2)
    tops = [boxes(sheet, (i + 1, 0, 0))[:2] for i in range(10)]
    assert [left for left, _ in tops] == [tops[0][0], tops[1][0]] * 2 + [tops[0][0]] + [tops[0][0], tops[1][0]] * 2 + [
        tops[0][0]
    ]
    assert drawn == ["a", "seeds 3 to 7", "b", "seeds 3 to 7"]
    drawn.clear()
    prompt_grid(pictures, ["a", ""], [3, 4, 5, 6, 7])
    assert drawn == [*(f"seed {s}" for s in (3, 4, 5, 6, 7)), "a", grid.EMPTY]


def test_text_is_broken_between_words_inside_long_ones_and_cut_with_an_ellipsis() -> None:
    font = lettering.font_for("a", 20)
    width = font.getlength("red heart  ")
    lines = lettering.wrap("red heart " * 3, font, width, 5)
    assert lines == ["red heart"] * 3
    lines = lettering.wrap("red heart " * 30, font, width, 3)
    assert lines[:2] == ["red heart"] * 2
    assert lines[2].endswith("…")
    word = "0123456789" * 10
    lines = lettering.wrap(word, font, width, 100)
    assert "".join(lines) == word
    assert all(font.getlength(line) <= width for line in lines)
    assert lettering.wrap("runs/abc-defghi", font, font.getlength("runs/abc-def"), 3) == ["runs/abc-", "defghi"]
    assert lettering.wrap("悲", font, 1, 3) == ["悲"]


def test_letters_that_dejavu_lacks_come_from_an_installed_font_or_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "_installed", lambda: ())
    assert lettering.unwritable(["red heart ❤️", "сердце", "καρδιά"]) == ""
    assert lettering.unwritable(["悲しい猫", "猫"]) == "悲しい猫"
    assert isinstance(lettering.font_for("悲しい猫", 13), ImageFont.FreeTypeFont)
    own, other = lettering._dejavu(False), lettering._dejavu(True)
    glyphs = lettering._glyphs
    monkeypatch.setattr(lettering, "_installed", lambda: (other,))
    monkeypatch.setattr(
        lettering,
        "_glyphs",
        lambda path: glyphs(path) | (frozenset(map(ord, "悲しい猫")) if path == other else frozenset()),
    )
    assert lettering.unwritable(["悲しい猫"]) == ""
    assert Path(lettering.font_for("悲しい猫", 13).path) == other
    assert Path(lettering.font_for("cat", 13).path) == own


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("emoji", Contender("emoji")),
        ("emoji@25", Contender("emoji", 25)),
        ("owner/name@50:7.5", Contender("owner/name", 50, 7.5)),
        ("C:\\runs\\a", Contender("C:\\runs\\a")),
        ("me@home", Contender("me@home")),
    ],
)
def test_a_model_may_have_its_own_steps_and_guidance(text: str, expected: Contender) -> None:
    assert Contender.parse(text) == expected


def test_a_folder_of_that_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run@25").mkdir()
    assert Contender.parse("run@25") == Contender("run@25")
    with pytest.raises(UsageError, match="at least 1 step"):
        Contender.parse("emoji@0")


def test_compare_draws_the_pictures_of_sample(run, tiny_teacher: Path, tmp_path: Path, monkeypatch) -> None:
    sheets: list[tuple] = []
    real = labelled_grid

    def spy(blocks, heads, note):
        sheets.append((blocks, heads, note))
        return real(blocks, heads, note)

    monkeypatch.setattr("sidlsg.benchmark.comparison.labelled_grid", spy)
    models = f"{tiny_teacher}@2,{tiny_teacher}@3:5"
    code, out, err = run(
        "compare",
        "a cat",
        "",
        "--models",
        models,
        "--seeds",
        "4,7",
        "--out",
        "new/grid.png",
        "--device",
        "cpu",
        "--json",
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["files"] == [str(Path("new", "grid.png"))]
    assert (found["prompts"], found["seeds"], found["precision"], found["batch"]) == (["a cat", ""], [4, 7], "fp32", 4)
    assert [(m["name"], m["steps"], m["guidance"], m["one_step"]) for m in found["models"]] == [
        (str(tiny_teacher), 2, 3.0, False),
        (str(tiny_teacher), 3, 5.0, False),
    ]
    assert all(0 < m["seconds_per_picture"] < 60 for m in found["models"])
    assert Image.open("new/grid.png").text["prompt"] == "a cat | "
    ((blocks, heads, note),) = sheets
    assert [block.title for block in blocks] == ["a cat", grid.EMPTY]
    assert list(heads) == ["seed 4", "seed 7"]
    assert found["device"] in note
    for block, prompt in zip(blocks, ["a cat", ""], strict=True):
        for row, options in zip(block.rows, (["--steps", "2"], ["--steps", "3", "--guidance", "5"]), strict=True):
            assert row.details[0] == ("2 steps, guidance 3" if "2" in options else "3 steps, guidance 5")
            assert row.details[1].endswith(" s a picture")
            code, out, _ = run(
                "sample", prompt, "--seeds", "4,7", "--model", tiny_teacher, "--device", "cpu", *options, "--json"
            )
            assert code == 0
            for picture, path in zip(row.pictures, json.loads(out)["files"], strict=True):
                assert np.abs(np.asarray(picture).astype(int) - np.asarray(Image.open(path))).max() <= 1


def test_compare_writes_beside_an_earlier_grid(run, tiny_teacher: Path) -> None:
    arguments = ["compare", "a", "--models", f"{tiny_teacher}", "--steps", "2", "--seeds", "0", "--device", "cpu"]
    assert [run(*arguments)[1] for _ in range(2)] == ["compare.png\n", "compare-2.png\n"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["nothing to draw", "sidlsg compare"]),
        (["a", "--models", "emoji-student,emojo"], ['unknown model "emojo"', 'did you mean "emoji"']),
        (["a", "--models", "emoji,emoji-student@4"], ["emoji-student is a one-step generator", "leave out --steps"]),
        (["a", "--models", "emoji", "--sampler", "ddi"], ['unknown sampler "ddi"', 'did you mean "ddim"']),
        (["a", "--seeds", "7-0"], ['seeds are "7-0"']),
        (["a", "--out", "grid.jpg"], ["grid.jpg", ".png"]),
    ],
)
def test_a_mistake_in_compare_is_found_before_a_model_is_loaded(run, monkeypatch, arguments, parts) -> None:
    monkeypatch.setattr("sidlsg.benchmark.comparison.open_model", lambda *_: pytest.fail("a model was loaded"))
    code, _, err = run("compare", *arguments)
    one_line(err, *parts)
    assert code == 2


def test_sample_puts_every_prompt_in_a_row(run, tiny_teacher: Path, tmp_path: Path) -> None:
    arguments = ["--model", tiny_teacher, "--steps", "2", "--seeds", "0-2", "--device", "cpu"]
    assert run("sample", "a", "b", *arguments, "--grid", "--out", "grid.png")[:2] == (0, "grid.png\n")
    sheet = np.asarray(Image.open("grid.png")).astype(int)
    out = run("sample", "a", "b", *arguments)[1]
    singles = [
        np.asarray(Image.open(path)).astype(int).repeat(12, axis=0).repeat(12, axis=1) for path in out.splitlines()
    ]
    assert len(singles) == 6
    # The cells are 96 pixels, the gap 2; the margin and the text decide where the first one is.
    height, width = sheet.shape[:2]
    left = width - 3 * 98 + 2 - grid.SMALLEST_TEXT
    tops = [
        top
        for top in range(height - 194)
        if all(
            np.abs(
                sheet[top + r * 98 : top + r * 98 + 96, left + c * 98 : left + c * 98 + 96] - singles[3 * r + c]
            ).max()
            <= 1
            for r in range(2)
            for c in range(3)
        )
    ]
    assert len(tops) == 1


def test_seconds_have_two_digits() -> None:
    assert [seconds_text(s) for s in (0.0123, 0.123, 1.26, 12.3)] == ["0.012 s", "0.12 s", "1.3 s", "12 s"]
