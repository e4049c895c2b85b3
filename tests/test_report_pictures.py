"""The pictures of a report: cut from their grids, each with its prompt, the teacher's beside them."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sidlsg.prompts import PromptFile
from sidlsg.report.page import build
from sidlsg.report.pictures import cut, load_grids, parse_prompts
from sidlsg.report.reading import read_run
from sidlsg.sampling.draw import draw
from sidlsg.sampling.pictures import make_grid, save_grid, save_png
from sidlsg.teachers.loading import load_model
from sidlsg.teachers.registry import registry
from support.reports import make_run


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16])
def test_a_grid_is_cut_into_the_pictures_it_was_made_of(count: int) -> None:
    pictures = [Image.new("RGB", (7, 5), (10 * i, 0, 0)) for i in range(count)]
    grid = make_grid(pictures)
    assert [grid.crop(box).tobytes() for box in cut(grid.size, count)] == [picture.tobytes() for picture in pictures]


def test_what_is_no_grid_of_its_prompts_is_not_cut() -> None:
    assert cut((41, 41), 4) == cut((40, 40), 0) == cut((1, 1), 9) == []


def test_prompts_are_read_as_any_version_wrote_them() -> None:
    assert parse_prompts('["a | b", ""]') == ("a | b", "")
    assert parse_prompts("red heart | cat face") == ("red heart", "cat face")
    assert parse_prompts("") == ()


def test_a_prompt_stands_below_its_picture_also_with_a_bar_in_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", grids=0)
    prompts = ["a | b", "c", "<i>", ""]
    pictures = [Image.new("RGB", (6, 6), (0, 0, 60 * i)) for i in range(4)]
    save_grid(pictures, prompts, folder / "samples" / "000000000640.png", images_seen=640)
    (found,) = load_grids([read_run(folder)])
    assert [picture.prompt for picture in found.grids[0].pictures] == prompts
    drawn = [base64.b64decode(picture.uri.partition(",")[2]) for picture in found.grids[0].pictures]
    assert [Image.open(io.BytesIO(data)).convert("RGB").tobytes() for data in drawn] == [p.tobytes() for p in pictures]
    page = build([read_run(folder)])
    captions = ["a | b", "c", "&lt;i&gt;", "(no prompt)"]
    assert [page.count(f"<figcaption>{text}</figcaption>") for text in captions] == [1, 1, 1, 1]


def test_a_file_that_is_no_grid_is_shown_whole_with_its_prompts_in_a_list(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", grids=0)
    save_png(Image.new("RGB", (41, 40)), folder / "samples" / "000000000640.png", prompts="one | two")
    page = build([read_run(folder)])
    assert '<ol class="prompts"><li>one</li><li>two</li></ol>' in page


# -- the teacher ---------------------------------------------------------------------------------------------------------------


def grid_prompts() -> list[str]:
    path = registry()["emoji"].grid_prompts
    assert path is not None
    return list(PromptFile(path))


def test_the_embedded_teachers_pictures_are_there_though_the_run_drew_none(tmp_path: Path) -> None:
    folder, prompts = make_run(tmp_path / "run", grids=0), grid_prompts()[:4]
    save_grid([Image.new("RGB", (64, 64))] * 4, prompts, folder / "samples" / "000000000000.png")
    (found,) = load_grids([read_run(folder)])
    assert found.teacher is not None
    assert [picture.prompt for picture in found.teacher.pictures] == prompts
    assert ">teacher</h3>" in build([read_run(folder)])


def test_pictures_of_other_prompts_have_no_shipped_teacher_and_the_page_says_so(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))  # "red heart", "cat face"
    assert load_grids([run])[0].teacher is None
    assert "The pictures of the teacher are not here" in build([run])


def test_the_shipped_grid_is_what_the_embedded_teacher_draws() -> None:
    path, prompts = registry()["emoji"].grid, grid_prompts()
    assert path is not None
    with Image.open(path) as file:
        assert parse_prompts(file.text["prompts"]) == tuple(prompts)
        boxes = cut(file.size, len(prompts))
        shipped = [np.asarray(file.convert("RGB").crop(box), dtype=float) for box in boxes[6:8]]
    model = load_model("emoji", torch.device("cpu"), torch.float32)
    drawn = draw(model, prompts[6:8], [6, 7], batch=2)
    for there, here in zip(shipped, drawn, strict=True):
        assert np.abs(there - np.asarray(here, dtype=float)).mean() < 1
