"""The plan in words: times that people say, what is written when and how much of it, and lines that fit a terminal."""

from __future__ import annotations

import io
import re
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from rich.console import Console

from sidlsg import cli
from sidlsg.formats import about, amount
from sidlsg.planning import memory
from sidlsg.planning.footprint import footprints
from sidlsg.planning.gpus import get_gpu, gpus
from sidlsg.planning.offers import fit, offers, table
from sidlsg.planning.plan import room_note, short_count
from sidlsg.settings import make_config, preset_names
from sidlsg.terminal import Paragraph
from sidlsg.training.launch import Job, prepare


def planned(preset: str | None = "24gb", **settings: object) -> Job:
    return prepare(preset, settings, dry_run=True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "about 1 second"),
        (40, "about 40 seconds"),
        (89.4, "about 89 seconds"),
        (137, "about 2 minutes"),
        (5399, "about 90 minutes"),
        (157_364, "about 44 hours"),
        (4.2e6, "about 49 days"),
        (1.4e9, "about 16,204 days"),
    ],
)
def test_times_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert about(seconds) == text


def test_numbers_of_images_have_three_figures() -> None:
    assert [amount(n) for n in (0.0910, 6.32, 86.44, 415.2, 207_912, 999_600, 5_489_000)] == [
        *("0.091", "6.32", "86.4", "415", "208,000", "1 million", "5.49 million")
    ]
    assert [short_count(n) for n in (512, 5120, 100_000, 207_912, 10_000_000, 1_457_152)] == [
        *("512", "5120", "100k", "208k", "10M", "1.46M")
    ]


def test_the_time_is_days_with_images_per_day_and_never_0_s_per_1k_images() -> None:
    assert (
        planned()
        .lines["time"]
        .startswith("about 48 days on 1 x RTX 4090 (estimate): 2.41 images/s, 208,000 images per day")
    )
    assert "415 s per 1k images" in planned().lines["time"]
    assert "0.091 s per 1k images" in planned(teacher="emoji").lines["time"]
    assert planned(gpu="24GB").lines["time"] == "not known for this model on a GPU of 24GB; sidlsg bench measures"


def test_the_largest_micro_batch_is_said_with_what_it_needs_of_the_card() -> None:
    config, size = make_config("24gb", {}), footprints()["sd15"]
    text = planned().lines["largest micro-batch"]
    largest, need = re.match(r"(\d+): ([\d.]+) of 23.5 GiB on RTX 4090 \(estimate\)$", text).groups()
    full = memory.predict(memory.with_micro_batch(config, int(largest)), size).total
    assert float(need) == pytest.approx(full, abs=0.05)
    assert full + memory.OVERHEAD <= 23.5
    assert planned("h100-bf16", gpu="4090").lines["largest micro-batch"] == "none fits RTX 4090, 23.5 GiB"


@pytest.mark.parametrize(
    ("preset", "settings", "text"),
    [
        ("24gb", {}, "a checkpoint every 30 minutes,"),  # 500,000 images are more than two days
        ("24gb", {"checkpoint_minutes": None}, "a checkpoint every 500,000 images (about 2 days),"),
        ("24gb", {"checkpoint_every": 1024}, "a checkpoint every 1,024 images (about 7 minutes),"),
        ("24gb", {"gpu": "24GB"}, "a checkpoint every 500,000 images or 30 minutes, whichever is first,"),
        ("cpu", {}, "a checkpoint every 1,280 images or 30 minutes, whichever is first,"),
    ],
)
def test_the_plan_says_how_often_a_checkpoint_is_written(preset: str, settings: dict, text: str) -> None:
    assert text in planned(preset, **settings).lines["writes"]


def test_the_plan_says_what_the_run_takes_on_the_disk() -> None:
    assert planned().lines["disk"].startswith("50 GiB (estimate): a checkpoint is 16.0 GiB, the newest 2 are kept")
    size = footprints()["sd15"]
    half, average = size.network * 2 / 2**30, size.network * 4 / 2**30
    for preset, expected in (
        ("h100-fp16", 4 * half + average),  # docs/run-folder.md: 9.6 GiB
        ("h100-bf16", 5 * average),
        ("a6000-fp32", 4 * average),  # without an average
    ):
        assert memory.checkpoint(make_config(preset, {}), size) == pytest.approx(expected, rel=0.01)
    assert memory.checkpoint(make_config("h100-bf16", {"lean_adam": False}), size) == pytest.approx(
        7 * average, rel=0.01
    )


def test_a_teacher_that_is_not_here_is_said_to_be_downloaded_with_its_size(tmp_path: Path) -> None:
    assert "to be downloaded, 4.0 GiB (estimate)" in planned().lines["teacher"]
    assert "download" not in planned("cpu").lines["teacher"]


def test_a_disk_that_is_too_small_is_noted_before_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    config, size = make_config("24gb", {}), footprints()["sd15"]
    for free, noted in ((49, True), (51, False)):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: usage(0, 0, free * 2**30))
        note = room_note(config, size, tmp_path / "run")
        assert (note is not None and "49 GiB free, and this run needs 50" in note) == noted


@pytest.mark.parametrize(
    ("preset", "settings", "text"),
    [
        ("24gb", {}, "1e-06, constant"),
        ("cpu", {}, "from 0.0006 to 0 over the last 5,120 images"),
        ("cpu", {"images": 10240}, "0.0006, then to 0 over the last 5,120 images"),
        ("cpu", {"images": 1280}, "from 0.00015 to 0: it reaches 0 over 5,120 images, more than the run has. "
         "--set lr_decay=1280 begins at 0.0006"),
    ],
)  # fmt: skip
def test_the_plan_says_from_what_to_what_the_rate_goes(preset: str, settings: dict, text: str) -> None:
    assert planned(preset, **settings).lines["learning rate"] == text


def test_more_than_a_week_is_pointed_out_with_what_a_week_would_be() -> None:
    (note,) = planned().notes
    assert note.startswith("this run takes about 48 days (estimate).")
    assert planned("24gb", images=1_450_000).notes == ()
    week = re.search(r"--images (\S+);", note)[1]
    days = float(re.match(r"about (\d+) days", planned("24gb", images=int(float(week[:-1]) * 1e6)).lines["time"])[1])
    assert days == 7
    assert not any("this run takes" in note for note in planned("h100-bf16").notes)


# -- presets by hardware ---------------------------------------------------------------------------------------------------


def test_every_preset_is_offered_once_ours_first_and_by_what_it_needs() -> None:
    found = offers()
    assert sorted(offer.name for offer in found) == preset_names()
    assert [offer.name for offer in found][:5] == ["16gb", "24gb", "48gb", "h100-bf16", "h200-bf16"]
    assert [offer.name for offer in found][-2:] == ["cpu", "cpu-long"]


def test_an_offer_says_whether_it_fits_another_gpu_and_how_long_it_takes() -> None:
    by_name = {offer.name: offer for offer in offers()}
    assert fit(by_name["24gb"], get_gpu("4090")).text == "fits: 48 days"
    assert fit(by_name["h100-bf16"], get_gpu("h100"), 8).text == "fits: 17 hours"
    assert fit(by_name["24gb"], get_gpu("24GB")).text == "fits"
    assert fit(by_name["48gb"], get_gpu("4090")).text == "needs 34.8 GiB"  # CUDA's own included
    assert fit(by_name["24gb"], get_gpu("v100")).text == "no bf16"
    assert fit(by_name["cpu"], get_gpu("4090")) is None


@pytest.mark.parametrize("key", [None, "24GB", *gpus()])
def test_the_list_fits_80_columns(key: str | None) -> None:
    lines = "\n".join(table(get_gpu(key) if key else None, 8)).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("  ") for line in lines) == len(preset_names()) + 1


# -- on a terminal ---------------------------------------------------------------------------------------------------------


def shown(renderable: object, width: int, terminal: bool = True) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, force_interactive=terminal, no_color=True)
    console.print(renderable, highlight=False, soft_wrap=True)
    return re.sub("\033\\[[0-9;]*m", "", file.getvalue()).splitlines()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_paragraph_is_broken_between_words_on_a_terminal_only(width: int) -> None:
    text = planned("h100-bf16", gpu="4090").problem
    assert text is not None
    lines = shown(Paragraph(("problem: ", "yellow"), text), width)
    assert len(lines) > 1
    assert max(map(len, lines)) <= width
    assert " ".join(lines) == f"problem: {text}"
    assert shown(Paragraph(("problem: ", "yellow"), text), width, terminal=False) == [f"problem: {text}"]


def test_a_word_that_is_longer_than_a_line_stays_whole_and_blank_lines_stay() -> None:
    path = "/a/path/" + "x" * 60
    assert shown(Paragraph("\nOpen ", (path, "bold"), " in a browser"), 40) == ["", "Open", path, "in a browser"]


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_of_a_plan_is_broken_inside_a_word(width: int) -> None:
    job = planned("h100-bf16", gpu="4090", teacher="sd21-base")
    lines = shown(job.plan(whole=True), width)
    assert all(len(line) <= width or len(line.split()) == 1 for line in lines)
    whole = "".join(shown(job.plan(whole=True), width, terminal=False))
    assert "".join("".join(lines).split()) == "".join(whole.split())


def test_an_error_is_broken_between_words_on_a_terminal_and_one_line_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    message = "an unknown word is met " * 10
    for stream, lines in ((Screen(), 4), (io.StringIO(), 1)):
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(sys, "stderr", stream)
        cli.complain(message.strip())
        text = re.sub("\033\\[[0-9;]*m", "", stream.getvalue())
        assert text.count("\n") == lines - (lines > 3)
        assert " ".join(text.split()) == f"sidlsg: {message.strip()}"
