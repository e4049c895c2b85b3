"""``sidlsg report``: what it concludes, what it draws, what it survives, and the page in a real browser."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sidlsg import report
from sidlsg.report import curves, pictures, svg
from sidlsg.report.live import Live, server
from sidlsg.report.page import build
from sidlsg.report.plot import POINTS, Axis, Plot, Series, axes, thin
from sidlsg.report.reading import closest_preset, differing, read_run
from sidlsg.report.references import references
from sidlsg.report.verdict import judge
from sidlsg.sampling.pictures import save_png
from sidlsg.settings import make_config
from support.reports import EVERY, make_run, metrics_line, published_span, score_line, write_lines
from support.terminal import one_line


class Tags(HTMLParser):
    """The tags of a page with their attributes; fails when one is closed that was not opened last."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# -- the verdict ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fd", "change", "tone", "words"),
    [
        ([800, 300, 120], {}, "fair", ["from 800", "to 120 after 1,280 images", "1.3 times the teacher's worst"]),
        ([800, 300, 120], {}, "fair", ["the teacher's 25 steps reach", "the gap between the scores shrinks"]),
        ([800, 900, 810], {}, "bad", ["worse than at the start", "from 800", "to 810"]),
        ([800, 780, 760], {}, "warn", ["hardly better than at the start"]),
        ([800, 100, 200], {}, "warn", ["become worse since 640 images", "fd was 100", "best/"]),
        ([], {}, "open", ["cannot be said from numbers", "look at the pictures"]),
        ([800], {}, "open", ["no fd of image 0 and of a later place"]),
        ([800, 300, 120], {"x_std": 7.0}, "bad", ["fd went", "But:", "left their band", "at 64 images"]),
        ([800, 300, 120], {"x_mean": math.nan}, "bad", ["left their band"]),
        ([800, 300, 120], {"skipped_samples": 1}, "warn", ["20 samples were skipped", "0.8 %"]),
        ([800, 300, 120], {"skipped_samples": 5}, "bad", ["100 samples were skipped", "3.9 %"]),
        ([], {"skipped_samples": 1}, "warn", ["cannot be said", "20 samples were skipped"]),
    ],
)
def test_verdict(tmp_path: Path, fd: list[float], change: dict[str, Any], tone: str, words: list[str]) -> None:
    verdict = judge(read_run(make_run(tmp_path / "run", fd, change)))
    assert verdict.tone == tone
    assert [word for word in words if word not in verdict.sentence] == []


def test_a_run_without_eval_every_is_told_so(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", [], eval_every=None))
    assert "--eval-every was not given" in judge(run).sentence


def test_a_gap_that_does_not_shrink_is_no_evidence(tmp_path: Path) -> None:
    grows = [metrics_line(seen, score_gap=[seen / 1000, None, None, None]) for seen in range(EVERY, 1281, EVERY)]
    folder = make_run(tmp_path / "run")
    write_lines(folder / "metrics.jsonl", grows)
    verdict = judge(read_run(folder))
    assert verdict.evidence[-1].tone == "open"
    assert "gap" not in verdict.sentence


def test_a_run_without_a_line_is_not_judged(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [])
    (folder / "metrics.jsonl").unlink()
    assert judge(read_run(folder)).word == "Nothing to judge yet"


# -- what a run may be compared with -------------------------------------------------------------------------------------------


def test_published_rows_are_drawn_only_where_they_can_be_compared(tmp_path: Path) -> None:
    def rows(protocol: str = "embedded", warnings: Sequence[str] = (), **given: Any) -> Any:
        folder = make_run(tmp_path / str(len(list(tmp_path.iterdir()))), [], eval_protocol=protocol, **given)
        key = "fd" if protocol == "embedded" else "fid"
        write_lines(
            folder / "scores.jsonl", [score_line(0, 100.0, protocol=protocol, warnings=list(warnings)) | {key: 100.0}]
        )
        return references(read_run(folder))

    assert rows().span("fd") == published_span("embedded", "teacher 25", "fd")
    assert [label for label, _ in rows().teacher] == ["CFG 1", "CFG 1.5", "CFG 2", "CFG 3", "CFG 7.5"]
    for teacher in ("sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5"):
        assert [row["fid"] for _, row in rows("gigagan", teacher=teacher).students] == [8.71, 8.15, 9.56, 13.21, 16.59]
        # The teacher's own FID is quoted from another paper, measured by other code.
        assert rows("gigagan", teacher=teacher).span("fid") is None
    few = rows("gigagan", ["The number of pictures is 1,024."], teacher="sd15")
    assert (few.teacher, few.students) == ([], [])
    assert "The number of pictures is 1,024." in few.missing
    assert rows("sid-lsg", teacher="sd15").students == []
    assert rows(teacher="somebody/else").span("fd") is None


def test_the_closest_preset_and_what_differs(tmp_path: Path) -> None:
    config = make_config("h100-bf16", {"lr": 3e-6, "teacher": "sd15"})
    assert closest_preset(config)[0] == "h100-bf16"
    assert {name: here for name, here, _ in closest_preset(config)[1]}["lr"] == 3e-6
    runs = [read_run(make_run(tmp_path / name, kappa=kappa)) for name, kappa in (("a", 2), ("b", 3))]
    assert differing(runs) == [("kappa", [[2.0], [3.0]])]


# -- reading -------------------------------------------------------------------------------------------------------------------


def test_a_write_in_progress_is_left_out_in_silence_and_damage_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[3], lines[5] = '{"images_seen": 25', "[1, 2]"
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"images_s']))
    run = read_run(folder)
    assert [line["images_seen"] for line in run.metrics] == [EVERY * i for i in range(1, 21) if i not in (4, 6)]
    assert run.problems == [f"{folder / 'metrics.jsonl'}: damaged and left out: lines 4, 6"]


def test_lines_that_a_resumed_run_wrote_again_count_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    write_lines(
        folder / "metrics.jsonl", [metrics_line(64, x_mean=1.0), metrics_line(128), metrics_line(64, x_mean=0.5)]
    )
    run = read_run(folder)
    assert run.column("x_mean") == ([64, 128], [0.5, 0.2])
    assert run.seconds() == pytest.approx(128 / 32)


def test_scores_of_another_protocol_are_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    other = {"images_seen": 32, "protocol": "gigagan", "fid": 9.0}
    write_lines(folder / "scores.jsonl", [score_line(0, 800), other, score_line(64, 500)])
    run = read_run(folder)
    assert [line["fd"] for line in run.scores] == [800, 500]
    assert "gigagan" in run.problems[0]


def test_a_run_of_another_version_is_shown_with_its_settings(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "run", change={"score_gap": "absent", "loss_reference": "absent", "grad_norm_fake": "absent"}
    )
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(kept | {"warp": 9}))
    run = read_run(folder)
    assert 'unknown key "warp"' in run.problems[0]
    assert run.settings["warp"] == 9
    page = build([run])
    for said in (
        "Learning",
        "warp",
        "Not on record: the gap between the scores (score_gap)",
        "gradient norms",
        "loss_reference",
    ):
        assert said in page


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(st.binary(max_size=40), st.just(b'{"images_seen": 7}'), st.just(b'{"images_seen": 1e999}')),
        max_size=5,
    )
)
def test_whatever_the_files_hold_the_report_is_made(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    for name in ("config.yaml", "metrics.jsonl", "scores.jsonl"):
        (folder / name).write_bytes(b"\n".join(lines))
    run = read_run(folder)
    whole = [i for i, line in enumerate(lines) if line == b'{"images_seen": 7}']
    assert ([line["images_seen"] for line in run.metrics] == [7]) >= bool(whole)
    assert judge(run).tone == "open"


@pytest.mark.parametrize("value", ["text", None, [1], {"a": 1}, True, 10**400, math.inf])
def test_values_of_another_kind_are_gaps(tmp_path: Path, value: Any) -> None:
    fields = [key for key in metrics_line(64) if key != "images_seen"]
    folder = make_run(tmp_path / "run", change=dict.fromkeys(fields, value))
    write_lines(folder / "scores.jsonl", [dict.fromkeys(score_line(0, 1), value) | {"images_seen": 0}])
    assert curves.plots([read_run(folder)]) == []
    assert build([read_run(folder)])


# -- plots ---------------------------------------------------------------------------------------------------------------------

numbers = st.floats(-1e9, 1e9, allow_nan=False)


@settings(max_examples=50, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=8), st.booleans(), st.booleans(), st.booleans())
def test_axes_hold_all_values_in_order_with_ticks_inside(
    values: list[float], log: bool, from_zero: bool, tight: bool
) -> None:
    values = [abs(value) for value in values] if log else values
    axis = Axis.over(values, log, from_zero, tight)
    places = [axis.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(-1e-6 <= place <= 1 + 1e-6 for place in places)
    ticks = axis.ticks()
    assert ticks == sorted(set(ticks))
    assert 1 <= len(ticks) <= 9
    assert all(-0.01 <= axis.at(tick) <= 1.01 for tick in ticks)


def test_a_logarithmic_axis_keeps_a_place_for_zero() -> None:
    axis = Axis.over([0, 64, 128, 1280], log=True, tight=True)
    assert [axis.at(0), axis.at(64), axis.at(1280)] == pytest.approx([0, Axis.FIRST, 1])
    assert axis.ticks()[0] == 0


def test_a_long_series_is_averaged_and_ends_where_it_ended() -> None:
    x = list(range(1, 1001))
    places, means = thin(x, [float(value) for value in x])
    assert len(places) <= POINTS
    assert (places[-1], means[0]) == (1000.0, 2.5)  # four neighbours: 1, 2, 3, 4


def test_svg_points_are_where_the_values_are() -> None:
    plot = Plot("p", "title", "", "how", [Series("a", [0, 50, 100], [1.0, None, 3.0])])
    drawing = str(svg.draw(plot, 'described "well" & <true>'))
    assert 'aria-label="described &#34;well&#34; &amp; &lt;true&gt;"' in drawing
    x, _ = axes(plot)
    assert (x.low, x.high) == (0, 100)
    (move, again) = re.search(r'class="line c0" d="(M[^M"]*)(M[^"]*)"', drawing).groups()  # a gap between the two
    assert float(move.split()[0][1:]) == svg.LEFT
    assert float(again.split()[0][1:]) == svg.WIDTH - svg.RIGHT
    assert float(again.split()[1]) < float(move.split()[1])  # larger is higher
    data = svg.script_data(plot)
    assert (data["series"][0]["x"], data["series"][0]["y"]) == ([0, 50, 100], [1.0, None, 3.0])
    assert data["across"]["images"]["at"] == [[0.0, 0.5, 1.0]]


def test_a_page_has_every_curve_that_tells(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    found = {plot.key: plot for plot in curves.plots([run])}
    assert list(found) == [
        *("distance", "clip", "trade-off", "precision-recall", "score-gap", "loss-fake", "latent-mean", "latent-std"),
        *("gradients", "speed", "memory"),
    ]
    assert [series.name for series in found["score-gap"].series] == ["t 20 to 259", "t 260 to 499", "t 500 to 739"]
    assert [series.name for series in found["loss-fake"].series] == ["ψ", "teacher"]
    span = published_span("embedded", "teacher 25", "fd")
    student = published_span("embedded", "shipped student", "fd")
    assert [(held.name, held.low, held.high) for held in found["distance"].references] == [
        ("teacher, 25 steps, CFG 1 to 7.5", *span),
        ("shipped student", *student),
    ]
    assert [(held.low, held.high) for held in found["latent-std"].references] == [(0.1, 5.0)]
    both = [run, read_run(make_run(tmp_path / "other", [800.0, 90.0, 140.0], kappa=3))]
    trade = {plot.key: plot for plot in curves.plots(both)}["trade-off"]
    assert [(series.x, series.y) for series in trade.series if series.name == "other"] == [
        ([90.0], [pytest.approx(0.555)])
    ]


# -- pictures ------------------------------------------------------------------------------------------------------------------


def test_grids_are_thinned_and_scaled_to_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run", grids=0)
    for i in range(20):
        Image.effect_noise((200, 200), 90).save(folder / "samples" / f"{i * 64:012d}.png")
    for name, value in (("BUDGET", 20_000), ("SIDE", 160), ("SHARP", 32), ("SMALLEST", 64)):
        monkeypatch.setattr(pictures, name, value)
    (found,) = pictures.load_grids([read_run(folder)])
    assert sum(grid.size for grid in found.grids) <= 20_000
    assert [found.grids[0].seen, found.grids[-1].seen] == [0, 19 * 64]
    assert f"{len(found.grids)} of 20 grids are shown" in found.note
    assert f"scaled to {found.grids[0].pictures[0].width} pixels" in found.note


def test_small_grids_are_kept_to_the_pixel(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    first = Image.effect_noise((40, 40), 90).convert("RGB")
    first.save(folder / "samples" / "000000000000.png")
    (found,) = pictures.load_grids([read_run(folder)])
    embedded = base64.b64decode(found.grids[0].pictures[0].uri.partition(",")[2])
    assert Image.open(io.BytesIO(embedded)).convert("RGB").tobytes() == first.tobytes()
    assert [grid.seen for grid in found.grids] == [0, 640, 1280]
    assert (found.note, found.prompts, found.grids[0].sharp) == ("", ("red heart", "cat face"), True)


def test_a_grid_that_is_drawn_anew_is_shown_anew(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", grids=1))
    before = pictures.load_grids([run])[0].grids[0].pictures
    save_png(Image.new("RGB", (40, 40), "red"), run.grids[0][1])
    os.utime(run.grids[0][1], (1, 1))
    assert pictures.load_grids([run])[0].grids[0].pictures != before


def test_the_teachers_pictures_stand_beside_once_for_runs_of_one_teacher(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("one", "same", "other", "none")]
    for folder, colour in zip(runs, ("red", "red", "blue"), strict=False):
        save_png(Image.new("RGB", (40, 40), colour), folder / "samples" / "teacher.png")
    found = [read_run(folder) for folder in runs]
    assert [build(some).count(">teacher</h3>") for some in (found[:1], found[:2], found[:3], found[3:])] == [
        1,
        1,
        2,
        0,
    ]


# -- the command ---------------------------------------------------------------------------------------------------------------


def test_report_writes_one_file_that_needs_nothing_else(run, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine")
    assert run("report", folder) == (0, f"{folder / 'report.html'}\n", "")
    page = (folder / "report.html").read_text(encoding="utf-8")
    links = [
        v for _, tag in Tags(page).found for k, v in tag.items() if k in ("src", "href", "srcset", "data", "action")
    ]
    assert links
    assert all(link.startswith("data:image/webp;base64,") for link in links)
    assert not re.search(r"url\(|@import|https?:", re.sub(r'"data:[^"]*"', "", page))


def test_write_is_for_the_end_of_a_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert report.write(folder) == folder / "report.html"
    assert "fd went from 800" in (folder / "report.html").read_text(encoding="utf-8")


def test_text_of_a_run_is_never_markup(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>&{{ 7*7 }}'
    folder = make_run(tmp_path / "run", teacher=evil, prompts=evil)
    picture = Image.new("RGB", (40, 40))
    save_png(picture, folder / "samples" / "000000001280.png", prompts=evil)
    write_lines(folder / "scores.jsonl", [score_line(0, 800, protocol=evil), score_line(64, 100, protocol=evil)])
    (folder / "student" / "sidlsg.json").write_text(json.dumps({"images_seen": 1280, "licence": evil}))
    other = make_run(tmp_path / ("odd & <b>" if os.name != "nt" else "odd & b"))
    for runs in ([folder], [folder, other]):
        page = build([read_run(path) for path in runs])
        scripts = [tag for tag, attributes in Tags(page).found if tag == "script" and "type" not in attributes]
        assert len(scripts) == 1
        assert "<script>alert" not in page
        assert "<b>" not in re.sub(r"<b>-?[\d.,]+( to [\d.,]+)?</b>", "", page)
        assert "{{ 7*7 }}" in page


def test_several_runs_are_compared(run, tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", [800.0, 90.0, 95.0], kappa=3)
    code, out, _ = run("report", first, second, "--out", "both.html")
    assert (code, out) == (0, "both.html\n")
    page = Path("both.html").read_text(encoding="utf-8")
    assert "The smallest fd is that of b: 90 after 640 images; it also has the highest CLIP score there, 0.555." in page
    assert re.search(r"<code>kappa</code></th><td>2</td><td>3</td>", page)
    assert "(that of c is so close that another seed" in build(
        [read_run(second), read_run(make_run(tmp_path / "c", [800, 98]))]
    )
    differ = [make_run(tmp_path / "d"), second]
    write_lines(differ[0] / "scores.jsonl", [score_line(seen, 100.0, pictures=512) for seen in (0, 640)])
    assert "cannot be compared" in build([read_run(path) for path in differ])


def test_each_plot_becomes_a_png(run, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine")
    assert run("report", folder, "--png", "plots")[0] == 0
    keys = {plot.key for plot in curves.plots([read_run(folder)])} | {"loss-generator"}
    assert {path.stem for path in Path("plots").iterdir()} == keys
    assert all(Image.open(path).width >= 800 for path in Path("plots").iterdir())


def test_damage_is_named_on_the_page_and_on_stderr(run, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine")
    broken = folder / "samples" / "000000000640.png"
    broken.write_bytes(broken.read_bytes()[:60])
    code, _, err = run("report", folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert code == 0
    assert err.startswith(f"warning: {broken} is not a readable picture")
    assert err.count("\n") == 1
    assert "000000000640.png is not a readable picture" in page
    assert page.count("data-seen=") == 2


def test_misuse_is_one_line(run, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine")
    for arguments, said in (
        ([tmp_path / "nothing"], "nothing is no run folder"),
        ([folder, tmp_path], "is no run folder: it has no config.yaml"),
        ([folder, tmp_path / "mine" / "."], "a run is given twice"),
        ([folder, "--port", "8000"], "--live"),
        ([folder, "--out", tmp_path], "is a folder"),
    ):
        code, _, err = run("report", *arguments)
        assert code == 2
        one_line(err, said)


def test_report_does_not_load_torch(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    code = "import pathlib, sys; from sidlsg import report; report.write(pathlib.Path('run')); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# -- live ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def live(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """A run, the address of a server that follows it, and the warnings given so far."""
    folder = make_run(tmp_path / "run", [800.0, 300.0])
    warnings: list[str] = []
    with server(Live([folder], tmp_path / "live.html", warnings.append), 0) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{serving.server_address[1]}", warnings
        serving.shutdown()
        thread.join()


def get(address: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
        return answer.read().decode()


def test_live_follows_the_run_and_rewrites_the_file(live, tmp_path: Path) -> None:
    folder, address, warnings = live
    version = get(f"{address}/version")
    assert f'data-live="{version}"' in get(address)
    assert get(f"{address}/version") == version
    with (folder / "scores.jsonl").open("a") as file:
        file.write(json.dumps(score_line(2560, 77.0)) + "\n" + "damage\n")
    assert get(f"{address}/version") != version
    assert "to 77 after 2,560 images" in get(address)
    written = (tmp_path / "live.html").read_text(encoding="utf-8")
    assert "to 77 after 2,560 images" in written
    assert "data-live=" not in written
    assert [w.partition(": ")[2] for w in warnings] == ["damaged and left out: line 4"]


def test_live_answers_this_machine_only(live) -> None:
    _, address, _ = live
    for path, headers, code in (
        ("/", {"Host": "evil.example"}, 403),
        ("/", {"Host": "evil.example:8000"}, 403),
        ("/", {"Host": "127.0.0.1.evil.example"}, 403),
        ("/../config.yaml", {}, 404),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(address + path, **headers)
        assert refused.value.code == code


def test_live_answers_through_a_forwarded_port(live) -> None:
    _, address, _ = live
    for host in ("127.0.0.1:9999", "localhost:8001", "localhost"):
        assert "data-live=" in get(f"{address}/?again", Host=host)


def test_live_says_in_a_line_that_a_run_is_gone(live) -> None:
    folder, address, warnings = live
    shutil.rmtree(folder)
    with pytest.raises(OSError, match="closed connection"):
        get(address)
    assert warnings == [f"{folder} is no run folder: it has no config.yaml"]


@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process on Windows")
def test_live_ends_with_ctrl_c(tmp_path: Path) -> None:
    make_run(tmp_path / "run", grids=0)
    command = [sys.executable, "-m", "sidlsg", "report", "run", "--live"]
    with (
        subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Whatever started the tests may ignore Ctrl-C (a shell's background job does), and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process,
        ExitStack() as at_last,
    ):
        at_last.callback(process.kill)  # leaving Popen's block waits for the process
        assert process.stdout is not None
        first = process.stdout.readline()
        address = re.match(r"http://127\.0\.0\.1:\d+/", first)
        assert address, first
        assert "Learning" in get(address[0])
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("ended; ")


# -- in a browser --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three pages: a run, one with damage and without scores, two compared; folder names and prompts are long."""
    folder = tmp_path_factory.mktemp("pages")
    one = make_run(folder / "one")
    long = make_run(
        folder / ("a-run-with-a-very-long-name-" * 3), [], {"skipped_samples": 3}, teacher="/very/long/path" * 6
    )
    save_png(Image.new("RGB", (40, 40)), long / "samples" / "000000001280.png", prompts=" | ".join(["word " * 60] * 4))
    (long / "scores.jsonl").write_text("damage\n")
    files = {"one": [one], "damaged": [long], "two": [one, long]}
    for name, runs in files.items():
        (folder / f"{name}.html").write_text(build([read_run(run) for run in runs]), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in files}


SHOWN = "[...document.querySelectorAll('.steps .step')].filter(f => f.offsetParent).map(f => f.dataset.seen)"


def test_the_slider_moves_the_picture(page, page_files: dict[str, Path]) -> None:
    opened = page(page_files["one"])
    slider = opened.get_by_role("slider")
    assert opened.evaluate(SHOWN) == ["1280"]
    slider.focus()
    opened.keyboard.press("ArrowLeft")
    assert opened.evaluate(SHOWN) == ["640"]
    assert (slider.get_attribute("aria-valuetext"), opened.locator("output").inner_text()) == ("640 images seen", "640")
    opened.reload()
    assert opened.evaluate(SHOWN) == ["640"]  # its place is kept
    opened.get_by_role("slider").fill("0")
    assert opened.evaluate(SHOWN) == ["0"]


def test_without_javascript_every_picture_and_curve_is_there(page, page_files: dict[str, Path]) -> None:
    opened = page(page_files["one"], java_script_enabled=False)
    assert [figure.get_attribute("data-seen") for figure in opened.locator(".steps .step:visible").all()] == [
        "0",
        "640",
        "1280",
    ]
    assert opened.locator(".plots > .plot:visible svg[role=img]").count() == 11
    assert opened.locator("input:visible, button:visible").count() == 0


def test_values_show_under_the_pointer_and_by_keyboard(page, page_files: dict[str, Path]) -> None:
    opened = page(page_files["one"])
    plot = opened.locator("#distance .canvas")
    plot.focus()
    opened.keyboard.press("End")
    assert plot.locator(".tip").inner_text() == "1,280 images\nstudent 120"
    opened.keyboard.press("ArrowLeft")
    assert plot.locator(".tip").inner_text() == "640 images\nstudent 300"
    opened.keyboard.press("Escape")
    assert plot.locator(".tip").is_hidden()
    plot.hover(position={"x": svg.LEFT, "y": 60})
    assert plot.locator(".tip").inner_text() == "0 images\nstudent 800"


# The smallest contrast of any visible text with what is behind it, as WCAG has it, and that text.
CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
  };
  let worst = [99, ""], count = 0;
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(rgb(element.closest("svg") ? style.fill : style.color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    count += 1;
    if (ratio < worst[0]) worst = [ratio, texts.currentNode.textContent];
  }
  return [...worst, count];
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["one", "damaged", "two"])
def test_text_is_legible_in_both_themes(page, page_files: dict[str, Path], name: str, theme: str) -> None:
    other = {"light": "dark", "dark": "light"}[theme]
    opened = page(page_files[name], theme=other)
    opened.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")

    def background() -> str:
        return opened.evaluate("getComputedStyle(document.body).backgroundColor")

    for _ in range(2):  # as the system has it, and switched
        ratio, text, count = opened.evaluate(CONTRAST)
        assert count > 100
        assert ratio >= 4.5, text
        before = background()
        opened.get_by_role("button", name="theme").click()
        assert background() != before


# What reaches beyond the window without a box of its own to scroll in.
OUTSIDE = """() => [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && !e.closest(".scroll, .word, svg")
    && e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize("name", ["one", "damaged", "two"])
def test_nothing_overflows_a_phone(page, page_files: dict[str, Path], name: str) -> None:
    opened = page(page_files[name], width=360)
    opened.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    assert opened.evaluate(OUTSIDE) == []


def test_everything_has_a_name_for_those_who_cannot_see_it(page, page_files: dict[str, Path]) -> None:
    opened = page(page_files["two"])
    unnamed = opened.evaluate(
        "[...document.querySelectorAll('img:not([alt]), svg:not([aria-label], [aria-hidden]), [tabindex]:not([aria-label])')]"
        ".map((e) => e.outerHTML.slice(0, 200))"
    )
    assert unnamed == []
    assert opened.evaluate("document.querySelectorAll('h1').length") == 1
    ids = opened.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


def test_a_live_page_follows_the_run_and_keeps_its_place(page, live) -> None:
    folder, address, _ = live
    opened = page(address)
    opened.get_by_role("slider").fill("1")
    opened.locator("summary").first.click()
    with (folder / "scores.jsonl").open("a") as file:
        file.write(json.dumps(score_line(2560, 77.0)) + "\n")
    opened.get_by_text("to 77 after 2,560 images").wait_for(timeout=60_000)
    assert opened.evaluate(SHOWN) == ["640"]
    assert opened.locator("details").first.get_attribute("open") == ""
