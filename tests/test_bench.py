"""``sidlsg bench``: numbers that follow from what was timed, rows that fail without losing the others, Table 4 beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sidlsg.benchmark import distillation as bench
from sidlsg.benchmark import report as bench_report
from sidlsg.benchmark import timing
from sidlsg.benchmark.timing import Timing, timed
from sidlsg.planning.cost import forward_equivalents
from sidlsg.planning.footprint import footprints
from sidlsg.settings import make_config
from sidlsg.teachers.architectures import build_model
from sidlsg.teachers.loading import load_model
from support.paper import TABLE_4
from support.terminal import one_line

CPU = torch.device("cpu")
SMALL = ["--images", "4", "--micro-batch", "2", "--repeats", "2", "--device", "cpu"]
TFLOPS = 0.05


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tiny_teacher: Path) -> None:
    """`bench` with the tiny networks, beside a matrix product that takes no time (its own test is below)."""
    monkeypatch.setattr(bench, "build_model", lambda arch, device, dtype: load_model(str(tiny_teacher), device, dtype))
    monkeypatch.setattr(bench, "gemm_tflops", lambda device, dtype: TFLOPS)


def test_the_numbers_follow_from_the_seconds(small, run, tmp_path: Path) -> None:
    code, shown, _ = run("bench", "--strategy", "long", "--strategy", "lsg", *SMALL, "--out", tmp_path / "out")
    assert code == 0, shown
    found = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))
    assert [row["strategy"] for row in found["rows"]] == ["long", "lsg"]
    for row in found["rows"]:
        assert len(row["seconds"]) == 2
        assert (row["measured_images"], row["images"]) == (4, 64)  # the preset's batch
        rate = 64 / (sum(row["seconds"]) / 2)
        assert row["images_per_second"] == pytest.approx(rate)
        assert row["seconds_per_1k_images"] == pytest.approx(1000 / rate)
        cost = forward_equivalents(make_config("cpu", {"strategy": row["strategy"]}))
        assert row["share_of_gemm"] * TFLOPS == pytest.approx(rate * cost * footprints()["emoji"].gflop / 1e3)
        assert row["gemm_tflops"] == TFLOPS
        assert 0.1 < row["allocated_gib"] < 20
    text = (tmp_path / "out" / "bench.md").read_text(encoding="utf-8")
    assert f"{1e3 / found['rows'][0]['images_per_second']:.4g}" in text
    assert "sidlsg bench --strategy long" in text


def test_warm_up_is_not_measured() -> None:
    calls: list[int] = []
    found = timed(lambda: calls.append(len(calls)), CPU, warmup=2, repeats=3)
    assert len(calls) == 5
    assert len(found.seconds) == 3
    assert Timing([3.0, 1.0, 2.0]).median == 2.0
    assert Timing([3.0, 1.0, 2.0]).spread == 1.0


def test_the_baseline_turns_off_each_switch_that_is_on() -> None:
    config = make_config("24gb", {})
    rows = bench.without_each_switch(config)
    # (Not lean_adam alone: only the lean optimiser can be offloaded.)
    on = {"compile", "channels_last", "attention", "half_teacher", "tf32", "gradient_checkpointing"}
    on |= {"offload_optimizer", "ema_device"}
    assert {name.removeprefix("without ") for name, _ in rows[1:-1]} == on
    for name, changed in rows[1:-1]:
        differ = {k for k in config.as_dict() if getattr(config, k) != getattr(changed, k)}
        assert differ == {name.removeprefix("without ")}
    bare = rows[-1][1]
    assert all(getattr(bare, name) == off for name, off in bench.SWITCHES.items())


def test_a_row_that_fails_does_not_lose_the_others(small, monkeypatch: pytest.MonkeyPatch, run, tmp_path: Path) -> None:
    iterations = bench._iterations

    def fail_for_lsg(config, *rest):
        if config.strategy == "lsg":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return iterations(config, *rest)

    monkeypatch.setattr(bench, "_iterations", fail_for_lsg)
    code, shown, _ = run("bench", "--strategy", "lsg", "--strategy", "long", *SMALL, "--out", tmp_path / "out")
    assert code == 0
    assert "out of memory" in shown
    rows = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))["rows"]
    assert [row["error"] for row in rows] == ["out of memory", None]
    assert run("bench", "--strategy", "lsg", *SMALL)[0] == 1  # nothing was measured


def test_an_interruption_keeps_what_was_measured(small, monkeypatch: pytest.MonkeyPatch, run, tmp_path: Path) -> None:
    iterations = bench._iterations

    def stop_at_lsg(config, *rest):
        if config.strategy == "lsg":
            raise KeyboardInterrupt
        return iterations(config, *rest)

    monkeypatch.setattr(bench, "_iterations", stop_at_lsg)
    code, _, _ = run("bench", "--strategy", "long", "--strategy", "lsg", *SMALL, "--out", tmp_path / "out")
    assert code != 0
    rows = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))["rows"]
    assert [row["strategy"] for row in rows] == ["long"]


def test_table_4_is_the_papers() -> None:
    """The same cells as the memory model is tested with."""
    lines = bench_report.table4()
    assert len(lines) == len(TABLE_4)
    for line, (name, cells) in zip(lines, TABLE_4.items(), strict=True):
        assert name.startswith(f"{line['gpu']}-{line['precision']}")
        assert tuple(line[strategy][0] for strategy in ("long", "short", "lsg-simple", "lsg")) == cells


@pytest.mark.parametrize(
    ("device", "memory", "precision", "attention", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 79.1, "bf16", "sdpa", (35.2, 120)),
        ("NVIDIA H100 80GB HBM3", 79.1, "fp16", "eager", (63.9, 184)),
        ("NVIDIA H100 80GB HBM3", 79.1, "fp32", "sdpa", (62.9, 720)),
        ("NVIDIA RTX A5000", 23.7, "bf16", "sdpa", (22.0, 816)),
        ("NVIDIA RTX A6000", 47.5, "fp32", "sdpa", (45.8, 4016)),
        ("NVIDIA GeForce RTX 4090", 23.5, "bf16", "sdpa", (35.2, 120)),
    ],
)
def test_the_papers_row_is_that_of_the_nearest_platform(device, memory, precision, attention, expected) -> None:
    row: dict[str, Any] = {"strategy": "lsg", "precision": precision, "switches": {"attention": attention}}
    assert bench_report.paper_row(row, {"device": device, "memory_gib": memory, "arch": "sd15"}) == expected


def test_what_all_rows_share_is_in_the_title(small, run, tmp_path: Path) -> None:
    kinds = ["--precision", "fp32", "--precision", "bf16"]
    code, shown, _ = run("bench", "--strategy", "long", *kinds, *SMALL, "--out", tmp_path / "out")
    assert code == 0, shown
    title, _, head, _, *lines = (tmp_path / "out" / "bench.md").read_text(encoding="utf-8").splitlines()[:6]
    assert "preset cpu, micro-batch 2" in title
    assert head.startswith("| configuration | precision | GiB | s per 1k | images/s |")
    assert [line.split(" | ")[1] for line in lines] == ["fp32", "bf16"]
    assert not any(word in head for word in ("MFU", "reserved", "paper"))  # of a GPU only


@pytest.mark.parametrize(("tflops", "expected"), [(0.08, 2048), (0.001, 512), (0.00001, 256)])
def test_no_product_of_the_speed_test_takes_long(monkeypatch, tflops: float, expected: int) -> None:
    sizes: list[int] = []

    def clock(work, device, warmup: int, repeats: int) -> Timing:
        sizes.append(len(work()))
        return Timing([2 * sizes[-1] ** 3 / tflops / 1e12])

    monkeypatch.setattr(timing, "timed", clock)
    assert timing.gemm_tflops(CPU, torch.float32) == pytest.approx(tflops)
    assert sizes[-1] == expected


def test_no_paper_row_stands_beside_a_cpu_or_another_model() -> None:
    row: dict[str, Any] = {"strategy": "lsg", "precision": "fp32", "switches": {"attention": "sdpa"}}
    assert bench_report.paper_row(row, {"device": "AMD EPYC", "arch": "emoji"}) is None
    assert bench_report.paper_row(row, {"device": "NVIDIA H100", "memory_gib": 79.1, "arch": "emoji"}) is None


@pytest.mark.parametrize(
    ("micro", "fake", "images", "expected"),
    [
        (4, 8, 16, [8, 16]),
        (4, 8, 3, [8, 16]),
        (3, 2, 20, [6, 18]),
        (1, None, 5, [2, 5]),
        (8, None, 100, [96]),
        (8, 16, None, [16, 32]),
    ],
)
def test_measured_iterations_are_whole_micro_batches(micro, fake, images, expected) -> None:
    config = make_config("cpu", {"micro_batch": micro, "fake_micro_batch": fake, "batch": 96})
    assert bench.sizes(config, images) == expected


def test_what_is_done_once_an_iteration_is_not_done_for_every_few_images() -> None:
    """2 s once and 0.5 s an image: 258 s for 512 images, where two images alone take 3."""
    seconds = [2 + 0.5 * images for images in (2, 4)]
    whole, once = bench.compose(seconds, [2, 4], 512)
    assert (whole, once) == pytest.approx((258, 2))
    assert bench.compose([3.0], [16], 16) == (3.0, 0.0)
    noisy, once = bench.compose([1.0, 2.1], [2, 4], 8)  # a slope that leaves less than nothing for the rest
    assert (noisy, once) == pytest.approx((8 * 3.1 / 6, 0))


def test_a_bench_iteration_is_one_processs_share_of_the_presets_batch() -> None:
    ((_, config),) = bench.cases(["h100-bf16"], ["lsg"], [], {})
    assert (config.batch, config.processes) == (512 // 8, 1)


def test_sampling_is_measured_beside_the_stock_pipeline(run, tmp_path: Path) -> None:
    """With the architecture that is built by default on a CPU."""
    options = ["--images", "2", "--batch", "1", "--repeats", "1", "--device", "cpu", "--out", tmp_path / "out"]
    code, shown, _ = run("bench", "sample", *options)
    assert code == 0, shown
    found = json.loads((tmp_path / "out" / "bench-sample.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in found["rows"]}
    assert "stock diffusers pipeline (float32 VAE)" in rows
    for row in rows.values():
        assert row["ms_per_picture"] == pytest.approx(1e3 * row["seconds"][0] / 2)
    parts = sum(row["ms_per_picture"] for name, row in rows.items() if "alone" in name)
    assert parts < 3 * rows["one step, in memory"]["ms_per_picture"]


def test_misuse_is_one_line(run) -> None:
    code, _, err = run("bench", "--arch", "sd14")
    assert code == 2
    one_line(err, "sd15")
    code, _, err = run("bench", "--precision", "int8", "--device", "cpu")
    assert code == 2
    one_line(err, "precision")
    code, _, err = run("bench", "--strategy", "lgs", "--device", "cpu")
    assert code == 2
    one_line(err, "lsg")


def test_a_random_model_is_a_whole_model_of_the_published_shape() -> None:
    """On the meta device: what bench builds for a GPU, without its gigabytes."""
    model = build_model("sd21-base", torch.device("meta"))
    assert model.latent_shape == (4, 64, 64)
    assert sum(p.numel() for p in model.network.parameters()) == 865_910_724
    assert model.parts["text_encoder"].config.hidden_size == model.network.config.cross_attention_dim == 1024
    assert model.schedule.noise_to_data_ratio(torch.tensor([625]), torch.zeros(1)).item() == pytest.approx(
        2.5017, abs=1e-3
    )
