"""The plots of a report: which axes they offer, where their labels stand, how many runs they tell apart."""

from __future__ import annotations

import csv
import io
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidlsg.report import curves, png, svg
from sidlsg.report.page import build
from sidlsg.report.plot import PALETTE, Plot, Series, across, down
from sidlsg.report.reading import read_run
from support.reports import make_run, metrics_line, write_lines

# -- axes ----------------------------------------------------------------------------------------------------------------------


def test_a_plot_offers_images_linear_and_logarithmic_and_time(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    speeds = [metrics_line(seen, images_per_second=16.0 if seen <= 640 else 64.0) for seen in range(64, 1281, 64)]
    write_lines(folder / "metrics.jsonl", speeds)
    plot = {plot.key: plot for plot in curves.plots([read_run(folder)])}["distance"]  # scores at 0, 640 and 1,280
    horizontal, vertical = across(plot), down(plot)
    assert list(horizontal) == ["images, log", "images", "time"]  # the plot's own first
    assert list(vertical) == ["log", "linear"]
    assert horizontal["images"].at[0] == [0.0, 0.5, 1.0]
    assert horizontal["time"].at[0] == [0.0, 0.8, 1.0]  # 40 of 50 seconds
    assert horizontal["time"].label == "seconds of training"
    assert vertical["linear"].at[0] == sorted(vertical["linear"].at[0], reverse=True)
    assert all(low < high for low, high in vertical["linear"].held[:1])  # the teacher's range


def test_without_speeds_there_is_no_time_axis(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", change={"images_per_second": "absent"}))
    assert [list(across(plot)) for plot in curves.plots([run])[:1]] == [["images, log", "images"]]


@pytest.mark.parametrize(
    ("longest", "label"), [(100, "seconds"), (7000, "minutes"), (100_000, "hours"), (900_000, "days")]
)
def test_time_is_in_a_unit_that_people_use(longest: float, label: str) -> None:
    plot = Plot("p", "t", "", "how", [Series("a", [0, 1], [1.0, 2.0], seconds=[0.0, longest])])
    assert across(plot)["time"].label == f"{label} of training"


def test_values_below_zero_have_no_logarithmic_axis() -> None:
    plot = Plot("p", "t", "", "how", [Series("a", [0, 1], [-1.0, 2.0])])
    assert list(down(plot)) == ["linear"]


# -- labels --------------------------------------------------------------------------------------------------------------------

places = st.lists(st.tuples(st.floats(30, 60), st.floats(0.5, 0.62)), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(places)
def test_labels_overlap_neither_each_other_nor_a_point(points: list[tuple[float, float]]) -> None:
    xs, ys = map(list, zip(*points, strict=True))
    plot = Plot("p", "t", "", "", [Series("a", xs, ys, None, labels=["CFG 1.5"] * len(xs))], x_log=True, scatter=True)
    x_scale, y_scale = next(iter(across(plot).values())), next(iter(down(plot).values()))
    (spots,) = svg.label_spots(plot, x_scale, y_scale)
    width = svg.WIDTH - svg.LEFT - svg.RIGHT
    height = svg.HEIGHT - svg.TOP - svg.BOTTOM
    at = [
        (svg.LEFT + x * width, svg.HEIGHT - svg.BOTTOM - y * height)
        for x, y in zip(x_scale.at[0], y_scale.at[0], strict=True)
    ]
    boxes = []
    for (x, y), spot in zip(at, spots, strict=True):
        if spot:
            left = x + spot[0] - {"start": 0, "middle": 22, "end": 44}[spot[2]]  # seven letters of 6.3 pixels
            boxes.append((left, y + spot[1] - 10, left + 44, y + spot[1] + 2))
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for box in boxes:
        assert box[0] >= svg.LEFT
        assert box[2] <= svg.WIDTH
        assert not any(box[0] < x < box[2] and box[1] < y < box[3] for x, y in at)


def test_all_rows_of_the_trade_off_are_labelled(tmp_path: Path) -> None:
    plot = {plot.key: plot for plot in curves.plots([read_run(make_run(tmp_path / "run"))])}["trade-off"]
    drawing = svg.draw(plot, "")
    assert [f">{label}</text>" in drawing for label in ("CFG 1", "CFG 1.5", "CFG 2", "CFG 3", "CFG 7.5")] == [True] * 5
    teacher, shipped = plot.series[:2]
    assert (teacher.name, shipped.name) == ("teacher, 25 steps", "shipped student")
    assert svg.mark_path(teacher) != svg.mark_path(shipped)


# -- many runs -----------------------------------------------------------------------------------------------------------------


def test_runs_beyond_the_palette_have_marks_of_another_shape() -> None:
    series = [Series(f"run {i}", list(range(100)), [float(i + 1)] * 100, i) for i in range(2 * PALETTE)]
    looks = {(svg.css_class(line.colour), svg.mark_path(line)) for line in series}
    assert len(looks) == 2 * PALETTE
    assert not series[0].marked
    assert 6 <= len(series[PALETTE].marked) <= 10
    assert 'class="dot' in svg.draw(Plot("p", "t", "", "", [series[PALETTE]]), "")


def test_names_of_runs_are_in_a_png_as_they_are() -> None:
    assert png._literal("a$b$c") == r"a\$b\$c"
    assert png._literal("_base").lstrip("\u200b") == "_base"
    assert not png._literal("_base").startswith("_")  # matplotlib leaves such names out of a legend


# -- in a browser --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    runs = [make_run(folder / "a-run"), make_run(folder / "another, run", [800.0, 90.0, 95.0], kappa=3)]
    (folder / "two.html").write_text(build([read_run(run) for run in runs]), encoding="utf-8")
    return folder / "two.html"


def test_a_plot_is_enlarged_with_other_axes_and_saved_as_csv(page: Any, two: Path) -> None:
    opened = page(two)
    small = opened.locator("#distance .canvas svg").bounding_box()
    opened.locator("#distance").get_by_role("button", name="Enlarge").click()
    dialog = opened.get_by_role("dialog")
    assert dialog.locator(".canvas svg").bounding_box()["width"] > 2 * small["width"]
    opened.get_by_label("Horizontal").select_option("time")
    opened.get_by_label("Vertical").select_option("linear")
    texts = dialog.locator(".canvas svg text").all_text_contents()
    assert "seconds of training" in texts
    assert {"200", "400", "600", "800"} <= set(texts)
    dialog.locator(".canvas").focus()
    opened.keyboard.press("End")
    assert dialog.locator(".tip").inner_text() == "1,280 images\na-run 120\nanother, run 95"
    with opened.expect_download() as download:
        dialog.get_by_role("button", name="Save CSV").click()
    assert download.value.suggested_filename == "distance.csv"
    rows = list(csv.reader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8"))))
    assert rows[0] == ["series", "images_seen", "seconds_of_training", "fd"]
    assert rows[1] == ["a-run", "0", "0", "800"]
    assert rows[-1] == ["another, run", "1280", "40", "95"]
    dialog.get_by_role("button", name="Close").click()
    assert opened.get_by_role("dialog").count() == 0


def test_a_picture_is_enlarged_beside_the_others_of_its_prompt(page: Any, two: Path) -> None:
    opened = page(two)
    opened.locator(".step.shown img").first.click()
    dialog = opened.get_by_role("dialog")
    assert dialog.locator("h2").inner_text() == "red heart"
    assert dialog.locator("figcaption").all_inner_texts() == ["a-run, 1,280 images", "another, run, 1,280 images"]
    opened.keyboard.press("ArrowRight")
    assert dialog.locator("h2").inner_text() == "cat face"
    opened.keyboard.press("Escape")
    assert opened.get_by_role("dialog").count() == 0
    opened.locator(".step.shown .pictures").last.focus()  # and without a pointer
    opened.keyboard.press("Enter")
    assert dialog.locator("h2").inner_text() == "red heart"


@pytest.mark.parametrize("width", [390, 768, 1280, 1440])
def test_two_runs_fit_side_by_side(page: Any, two: Path, width: int) -> None:
    opened = page(two, width=width)
    boxes = opened.evaluate("[...document.querySelectorAll('.scroll')].map((e) => [e.scrollWidth, e.clientWidth])")
    assert len(boxes) >= 2
    assert [box for box in boxes[:2] if box[0] > box[1]] == []
