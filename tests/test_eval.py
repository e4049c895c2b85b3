"""``sidlsg eval`` as a user meets it: what it draws, scores and writes, how it resumes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sidlsg import distributed
from sidlsg.config import Config
from sidlsg.distributed import Processes
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.evaluation import captions, generation, report, scoring, weights
from sidlsg.evaluation.reference import BENCH, Reference
from sidlsg.evaluation.request import Request
from sidlsg.runs.folder import RunFolder, read_metrics
from sidlsg.teachers.loading import load_model
from sidlsg.training.tracking import Tracker
from support.scoring import folder_of, results
from support.terminal import one_line

CPU = torch.device("cpu")
FEW = ["--limit", "12", "--device", "cpu"]


# -- drawing and scoring ---------------------------------------------------------------------------------------------------


def test_the_shipped_student_is_scored_and_what_is_there_is_not_drawn_again(cold_run, tmp_path: Path) -> None:
    """One of the two tests whose cache is empty on purpose: the first thing that a newcomer scores."""
    out = tmp_path / "out"
    code, shown, _ = cold_run("eval", *FEW, "--out", out)
    assert code == 0
    (reference,) = (tmp_path / ".cache" / "features").iterdir()
    encoded = reference.stat().st_mtime_ns
    first = results(out)
    assert first["protocol"] == "embedded"
    assert first["pictures"] == 12
    assert first["scores"]["clip"] > 0.4  # the shipped student draws what it is asked for; noise has about 0
    assert "fd" in first["scores"]
    assert "fid" not in first["scores"]
    assert f"{first['scores']['clip']:.4f}" in shown
    assert f"{first['scores']['clip']:.4f}" in (out / "results.md").read_text(encoding="utf-8")

    pictures = sorted((out / "images").glob("*.png"))
    assert [p.name for p in pictures] == [f"{i:06d}.png" for i in range(12)]
    captions = (BENCH / "captions.txt").read_text(encoding="utf-8").splitlines()
    assert [Image.open(p).text["prompt"] for p in pictures] == captions[:12]
    assert [Image.open(p).text["seed"] for p in pictures] == [str(i) for i in range(12)]

    kept = {p: p.stat().st_mtime_ns for p in pictures}
    pictures[5].unlink()
    pictures[11].unlink()
    assert cold_run("eval", *FEW, "--out", out)[0] == 0
    assert reference.stat().st_mtime_ns == encoded  # only once
    redrawn = {p for p in pictures if p.stat().st_mtime_ns != kept[p]}
    assert redrawn == {pictures[5], pictures[11]}
    # The two were drawn in a batch of two: equal up to the rounding of a few pixels.
    assert results(out)["scores"] == pytest.approx(first["scores"], rel=1e-4)


def test_an_interrupted_encoding_goes_on(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sidlsg.evaluation import chunks
    from sidlsg.evaluation.scorer import Scorer

    monkeypatch.setattr(chunks, "CHUNK", 4)
    encode, sizes = Scorer.encode, []

    def stop_in_the_third(self, items, *rest, **options):
        if len(sizes) == 2:
            raise KeyboardInterrupt
        sizes.append(len(items))
        return encode(self, items, *rest, **options)

    fake = folder_of(tmp_path / "fake", 10)
    command = ["eval", "--images", fake, "--protocol", "embedded", "--device", "cpu", "--only", "fid", "--out"]
    monkeypatch.setattr(Scorer, "encode", stop_in_the_third)
    code, _, err = run(*command, tmp_path / "out")
    assert (code, sizes) == (130, [4, 4])
    one_line(err, "interrupted")

    def count(self, items, *rest, **options):
        sizes.append(len(items))
        return encode(self, items, *rest, **options)

    monkeypatch.setattr(Scorer, "encode", count)
    assert run(*command, tmp_path / "out")[0] == 0
    assert sizes == [4, 4, 2]
    monkeypatch.setattr(Scorer, "encode", encode)
    monkeypatch.setattr(chunks, "CHUNK", 4096)
    assert run(*command, tmp_path / "at-once")[0] == 0
    assert results(tmp_path / "out")["scores"]["fd"] == pytest.approx(
        results(tmp_path / "at-once")["scores"]["fd"], rel=1e-4
    )


def test_processes_draw_disjoint_shares_of_what_is_missing(tiny_teacher: Path, tmp_path: Path, monkeypatch) -> None:
    model = load_model(str(tiny_teacher), torch.device("cpu"))
    jobs = generation.caption_jobs([f"prompt {i}" for i in range(7)])
    options = {"batch": 2, "steps": 2, "guidance": 1.5}
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    generation.generate(model, jobs, alone, **options)
    shared.mkdir()
    for number in (1, 2):
        shutil.copy(alone / f"{number:06d}.png", shared)
    listed = generation.missing(jobs, shared)
    monkeypatch.setattr(distributed, "gather", lambda value: [listed, value, value])  # what the main process sends
    drawn = []
    for rank in range(3):  # each finds the folder as the one before left it
        todo = generation.to_draw(jobs, shared, Processes(rank, 3))
        assert todo == listed
        generation.generate(model, todo[rank::3], shared, **options)
        drawn.append([job.seed for job in todo[rank::3]])
    assert drawn == [[0, 5], [3, 6], [4]]
    for job in jobs:
        assert (shared / job.path).read_bytes() == (alone / job.path).read_bytes()
    generation.check_complete(jobs, shared)
    (shared / "000004.png").unlink()
    with pytest.raises(SidlsgError, match=r"1 of 7 pictures are missing after drawing \(first: .*000004.png"):
        generation.check_complete(jobs, shared)


def test_a_teachers_row_says_how_it_was_sampled_and_other_settings_are_not_mixed_in(run, tmp_path: Path) -> None:
    drawn = ["eval", "--model", "emoji", "--limit", "2", "--device", "cpu", "--only", "clip", "--out", "out"]
    options = ["--guidance", "1.5", "--sampler", "unipc"]
    assert run(*drawn, *options, "--steps", "2")[0] == 0
    assert "emoji, 2 steps, CFG 1.5, unipc" in Path("out/results.md").read_text(encoding="utf-8")
    code, _, err = run(*drawn, *options, "--steps", "3")
    assert code == 2
    one_line(err, "steps (2 there, 3 here)", "--out")


def test_line_i_is_picture_i_whatever_is_blank(run, tmp_path: Path) -> None:
    """A blank line takes its own picture out of the score, and moves no other caption."""
    pictures = folder_of(tmp_path / "pictures", 12)
    lines = [f"a drawing of thing number {i}" for i in range(12)]
    whole, blank = tmp_path / "whole.txt", tmp_path / "blank.txt"
    whole.write_text("\n".join(lines) + "\n", encoding="utf-8")
    blank.write_text(
        "\ufeff" + "\r\n".join([*lines[:2], "", *lines[3:5], "  ", *lines[6:]]) + "\r\n\r\n", encoding="utf-8"
    )

    def clip(captions: Path, folder: Path) -> tuple[float, str]:
        shutil.rmtree("out", ignore_errors=True)
        options = ["--images", folder, "--protocol", "embedded", "--only", "clip", "--prompts", captions]
        code, shown, err = run("eval", *options, "--device", "cpu", "--out", "out")
        assert code == 0, err
        return results(Path("out"))["scores"]["clip"], shown

    found, shown = clip(blank, pictures)
    assert "2 captions are blank lines (first: 2)" in shown
    for number in (2, 5):
        (pictures / f"{number:06d}.png").unlink()
    expected, _ = clip(whole, pictures)
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_blank_caption_is_not_drawn(run, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("red heart\n\n" + "cat face\n" * 3, encoding="utf-8")
    code, _, err = run("eval", "--prompts", "captions.txt", "--device", "cpu", "--only", "clip", "--out", "out")
    assert code == 0, err
    drawn = {path.stem: Image.open(path).text["prompt"] for path in Path("out/images").glob("*.png")}
    assert drawn == {"000000": "red heart"} | {f"{i:06d}": "cat face" for i in range(2, 5)}


def test_captions_whose_lines_cannot_be_counted_are_refused(run, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_bytes(b"red heart\rcat face\rpig face\n")
    code, _, err = run("eval", "--prompts", "captions.txt", "--device", "cpu", "--out", "out")
    assert code == 2
    one_line(err, "captions.txt, line 1", "carriage return")


def test_statistics_can_be_shared_instead_of_pictures(run, tmp_path: Path) -> None:
    real, fake = folder_of(tmp_path / "real", 12), folder_of(tmp_path / "fake", 9)
    stats = tmp_path / "stats.npz"
    assert run("eval", "stats", real, "--out", stats, "--protocol", "embedded", "--device", "cpu")[0] == 0
    scores = []
    for name, reference in (("folder", real), ("file", stats)):
        command = ["eval", "--images", fake, "--reference", reference, "--protocol", "embedded", "--device", "cpu"]
        code, shown, _ = run(*command, "--out", tmp_path / name)
        assert code == 0, shown
        scores.append(results(tmp_path / name)["scores"])
        assert "The reference holds 12 pictures; that of the protocol embedded holds 1,024." in shown
    assert scores[0] == scores[1]
    assert {"fd", "precision", "recall"} <= set(scores[0])


def test_jpeg_pictures_and_small_numbers_are_warned_about(run, tmp_path: Path) -> None:
    fake = folder_of(tmp_path / "fake", 9, suffix=".jpg")
    code, shown, _ = run(
        "eval", "--images", fake, "--protocol", "embedded", "--device", "cpu", "--out", tmp_path / "out"
    )
    assert code == 0
    assert "lossy" in shown
    assert "1,015 of 1,024 captions have no picture (first: 9)" in shown
    assert "fewer than the 128 features" in shown
    assert len(results(tmp_path / "out")["warnings"]) == 5


@pytest.mark.parametrize(("count", "warned"), [(127, True), (128, False)])
def test_fewer_pictures_than_features_are_called_rank_deficient(tmp_path: Path, count: int, warned: bool) -> None:
    from sidlsg.evaluation.pictures import find_pictures
    from sidlsg.evaluation.protocol import get_protocol
    from sidlsg.evaluation.scorer import Scorer

    scorer = Scorer(get_protocol("embedded"), torch.device("cpu"), ("fid",))
    fake = find_pictures(folder_of(tmp_path / "fake", count))
    reference = scorer.reference(torch.randn(200, 128, generator=torch.Generator().manual_seed(0)), "test")
    said: list[str] = []
    options = {"bar": lambda name, total: lambda n: None, "warn": said.append, "stage": lambda text: None}
    scores = scoring.score_pictures(scorer, fake, None, [], reference, tmp_path / "work", **options)
    assert "fd" in scores
    assert any("rank-deficient" in text for text in said) == warned


# -- plans -----------------------------------------------------------------------------------------------------------------


def test_the_dry_run_lists_what_is_needed_and_downloads_nothing(run, tmp_path: Path) -> None:
    code, shown, _ = run("eval", "--coco30k", "--model", "sd15", "--dry-run")
    assert code == 0
    text = " ".join(shown.split())
    for name in ("inception", "clip-vit-g-14", "coco30k"):
        row = weights.weight_files()[name]
        assert row.url in text.replace(" ", "") or row.url.split("/")[-1] in text
    assert "30,000 PNG files" in text
    assert "MISSING, give --reference: the 40,504 JPEG files" in text
    assert "A photo depicts" in text
    assert not (tmp_path / "evals").exists()
    assert not (tmp_path / ".cache" / "weights").exists()


def test_the_hps_dry_run_names_checkpoint_and_prompts(run) -> None:
    code, shown, _ = run("eval", "--hpsv2", "--model", "sd15", "--dry-run")
    assert code == 0
    assert "4 x 800 prompts" in shown
    assert "HPS_v2_compressed.pt" in shown
    code, shown, _ = run("eval", "--hpsv2", "--hps-version", "v2.1", "--model", "sd15", "--dry-run")
    assert "HPS_v2.1_compressed.pt" in shown


# -- mistakes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"coco30k": True, "hpsv2": True}, ["--coco30k", "--hpsv2"]),
        ({"coco30k": True, "protocol": "embedded"}, ["embedded", "gigagan"]),
        ({"protocol": "gigagan"}, ["--coco30k"]),
        ({"protocol": "gigagam"}, ["gigagan"]),
        ({"only": "fid,is"}, ["fid,clip,pr"]),
        ({"images": "nowhere", "model": "emoji"}, ["--images", "--model"]),
        ({"images": "nowhere"}, ["--reference"]),
        ({"hpsv2": True, "hps_version": "2"}, ["v2.0"]),
        ({"hpsv2": True, "reference": "x.npz"}, ["--reference"]),
        ({"limit": 0}, ["--limit is 0; give 1 or more"]),
        ({"hpsv2": True, "limit": 801}, ["--limit is 801; give 1 to 800"]),
        ({"coco30k": True, "limit": 30001}, ["--limit is 30001; give 1 to 30,000"]),
        ({"batch": 0}, ["--batch is 0; give 1 or more"]),
        ({"model": "emoji", "steps": 1001}, ["--steps is 1001; give 1 to 1,000"]),
        ({"model": "emoji", "steps": 0}, ["--steps is 0"]),
        ({"hpsv2": True, "only": "clip"}, ["--only has no effect with --hpsv2"]),
        ({"hps_version": "v2.1"}, ["--hps-version has no effect without --hpsv2"]),
        (
            {"hpsv2": True, "hps_package": True, "hps_antialias": False},
            ["--no-hps-antialias has no effect with --hps-package"],
        ),
        ({"assume_protocol": True}, ["--assume-protocol has no effect without --reference"]),
        ({"clip": "x"}, ["--clip has no effect with the protocol embedded"]),
        ({"coco30k": True, "only": "clip", "inception": "x"}, ["--inception has no effect with --only clip"]),
        ({"coco30k": True, "images": "nowhere"}, ["--coco30k is for pictures that are drawn"]),
        *(
            ({"images": "x", "protocol": "embedded", name: value}, [f"--{name} is for pictures that are drawn"])
            for name, value in {"limit": 4, "steps": 4, "guidance": 3, "sampler": "ddim", "precision": "bf16"}.items()
        ),
    ],
)
def test_options_that_conflict_or_have_no_effect_are_refused(options: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        Request.of(**options)
    assert all(part in str(refused.value) for part in parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--hpsv2", "--hps-package", "--no-hps-antialias"], ["--no-hps-antialias has no effect with --hps-package"]),
        (["--coco30k", "--only", "clip", "--inception", "x"], ["--inception has no effect with --only clip"]),
        (["--images", "nowhere", "--protocol", "embedded"], ["nowhere", "not a folder"]),
        (["--model", "emoji-student", "--steps", "4", "--limit", "2"], ["--steps"]),
        (["--model", "emoji", "--sampler", "dpm+", "--limit", "2"], ["dpm++"]),
        (["--model", "emoij"], ["emoji"]),
        (["--limit", "1025"], ["--limit is 1,025", "captions.txt holds 1,024 captions"]),
        (["--model", "emoji", "--sampler", "pndm", "--steps", "2"], ["PNDMScheduler cannot draw in 2 steps"]),
        (["--precision", "half", "--limit", "2"], ["fp16"]),
        (["stats", "nowhere", "--out", "x.npz"], ["nowhere"]),
        (["stats", "nowhere", "--out", "x.pt"], [".npz"]),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(run, arguments: list[str], parts: list[str]) -> None:
    code, _, err = run("eval", *arguments)
    assert code == 2, err
    one_line(err, *parts)


@pytest.fixture
def captions30k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of the right length, taken as the right one."""
    path = tmp_path / "captions.txt"
    path.write_text("".join(f"caption {i}\n" for i in range(30_000)), encoding="utf-8")
    rows = dict(weights.weight_files())
    rows["coco30k"] = replace(rows["coco30k"], sha256=None)
    monkeypatch.setattr(weights, "weight_files", lambda: rows)
    monkeypatch.setattr(captions, "weight_files", lambda: rows)
    return path


def test_the_caption_list_must_be_the_protocols(run, tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("a cat\n" * 29_999, encoding="utf-8")
    code, _, err = run("eval", "--coco30k", "--prompts", path, "--dry-run")
    assert code == 2
    one_line(err, "29,999", "30,000")
    path.write_text("a cat\n" * 30_000, encoding="utf-8")
    code, _, err = run("eval", "--coco30k", "--prompts", path, "--dry-run")
    assert code == 2
    one_line(err, "SHA-256", "--prompts")


def test_without_a_network_a_missing_file_is_named_before_anything_is_drawn(run, tmp_path: Path) -> None:
    code, _, err = run("eval", "--coco30k", "--model", "emoji-student")
    assert code == 1
    one_line(err, "captions.txt", "--prompts FILE", "https://")


def test_missing_weights_are_named_before_anything_is_drawn(
    run, tmp_path: Path, captions30k: Path, monkeypatch
) -> None:
    options = ["--coco30k", "--prompts", captions30k, "--model", "emoji-student", "--device", "cpu"]
    code, _, err = run("eval", *options)
    assert code == 2
    one_line(err, "--reference", "40,504")
    code, _, err = run("eval", *options, "--reference", tmp_path)
    assert code == 1
    one_line(err, "--inception FILE", "inception-2015-12-05", "https://")
    code, _, err = run("eval", *options, "--reference", tmp_path, "--inception", tmp_path / "x.pth")
    assert code == 2
    one_line(err, "--inception", "x.pth")
    assert not (tmp_path / "evals").exists()


def test_folders_that_cannot_be_scored(run, tmp_path: Path) -> None:
    def attempt(folder: Path) -> str:
        options = ["--protocol", "embedded", "--device", "cpu", "--out", tmp_path / "out"]
        code, _, err = run("eval", "--images", folder, *options)
        assert code == 2
        return err

    (tmp_path / "empty").mkdir()
    one_line(attempt(tmp_path / "empty"), "no pictures")
    mixed = folder_of(tmp_path / "mixed", 3)
    Image.new("RGB", (64, 32)).save(mixed / "000001.png")
    one_line(attempt(mixed), "mixes sizes", "64x32")
    damaged = folder_of(tmp_path / "damaged", 3)
    whole = (damaged / "000002.png").read_bytes()
    (damaged / "000002.png").write_bytes(whole[: len(whole) // 2])
    one_line(attempt(damaged), "000002.png")
    one_line(attempt(folder_of(tmp_path / "large", 3, size=65)), "65x65", "64x64")


def test_results_of_another_protocol_are_not_overwritten(run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.json").write_text('{"protocol": "gigagan"}', encoding="utf-8")
    code, _, err = run("eval", *FEW, "--out", out)
    assert code == 2
    one_line(err, "gigagan", "--out")
    assert json.loads((out / "results.json").read_text()) == {"protocol": "gigagan"}
    assert not (out / "images").exists()  # refused before hours of drawing


def test_a_download_must_have_the_pinned_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDLSG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "file.bin").write_bytes(b"content")
    row = replace(weights.weight_files()["inception"], url=(tmp_path / "file.bin").as_uri(), file="it.bin", others=())
    import hashlib

    right = replace(row, sha256=hashlib.sha256(b"content").hexdigest())
    monkeypatch.setattr(weights, "weight_files", lambda: {"inception": row})
    monkeypatch.setattr(weights, "weight_files", lambda: {"inception": replace(row, sha256="0" * 64)})
    with pytest.raises(weights.SidlsgError, match="another file than expected"):
        weights.find_weights("inception")
    assert not list((tmp_path / "cache" / "weights").iterdir())
    monkeypatch.setattr(weights, "weight_files", lambda: {"inception": right})
    path = weights.find_weights("inception")
    assert path is not None
    assert path.read_bytes() == b"content"
    path.write_bytes(b"damaged")
    with pytest.raises(weights.SidlsgError, match="is not the file it should be"):
        weights.find_weights("inception")


# -- published rows --------------------------------------------------------------------------------------------------------


def result(protocol: str, warnings: tuple[str, ...] = (), **scores: float | None) -> dict:
    about = {"model": "m", "one_step": True}
    return {"protocol": protocol, "scores": scores, "generation": about, "warnings": warnings, "not_given": {}}


def test_published_rows_stand_beside_results_of_their_own_protocol_only() -> None:
    assert len(report.sections(result("sid-lsg", fid=9.0, clip=0.3))[1]) == 1
    head, (own, measured, quoted) = report.sections(result("gigagan", fid=9.0, clip=0.3))
    assert head == ["", "FID", "CLIP"]
    assert own.rows == [["m, 1 step", "9.00", "0.3000"]]
    assert ["SD1.5, SiD-LSG κ = 1.5", "8.71", "0.302"] in measured.rows
    assert ["StyleGAN-T", "13.90", "~0.293"] in quoted.rows  # read from a plot, says the paper
    assert ["SD1.5, Guided Distillation", "37.3", "0.27"] in quoted.rows


def test_what_another_code_measured_stands_apart() -> None:
    """Of Table 1, the authors measured SiD-LSG and, from public weights, ADD; of Table 2's HPSv2, SiD-LSG."""
    for protocol, score, ours in (("gigagan", "fid", ("SiD-LSG", "(ADD)")), ("hps-v2.0", "hps_anime", ("SiD-LSG",))):
        _, (_, measured, quoted) = report.sections(result(protocol, **{score: 9.0}))
        assert "Quoted" in quoted.title
        assert all(any(name in row[0] for name in ours) for row in measured.rows)
        assert not any(name in row[0] for name in ours for row in quoted.rows)


def test_a_warning_takes_the_published_rows_away() -> None:
    assert len(report.sections(result("gigagan", ("The number of pictures is 9.",), fid=9.0))[1]) == 1
    said = report.remarks(result("gigagan", ("The number of pictures is 9.",), fid=9.0))
    assert said == [
        "Warning: The number of pictures is 9.",
        "Because of this, published results are not shown beside it.",
    ]


def test_our_own_rows_are_those_that_were_measured() -> None:
    measured = json.loads((Path(__file__).parents[1] / "experiments/claims/results.json").read_text(encoding="utf-8"))
    names = {"shipped student": measured["teachers"]["student-shipped"], "real drawings": measured["drawings"]}
    for name, scores in measured["teachers"].items():
        sampler, _, scale = name.partition("-cfg-")
        kind, _, steps = sampler.partition("-")
        shown = {"ddim": "teacher", "dpm++": "DPM++", "unipc": "UniPC"}.get(kind)
        names[f"{shown} {steps}, CFG {scale}"] = scores
    for row in report.published()["embedded"][0]["rows"]:
        for key, value in row.items():
            if key != "method":
                assert value == pytest.approx(
                    names[row["method"]][key], abs=0.5 * 10 ** -report.COLUMNS[key][1] + 1e-9
                ), row


# -- scores while training -------------------------------------------------------------------------------------------------


SCORED = """\
images: 24
batch: 8
micro_batch: 8
lr: 1e-2
ema_half_life: 10
grid_images: 1
device: cpu
checkpoint_every: 8
eval_every: 8
eval_images: 16
"""


@pytest.fixture
def scored(
    tiny_teacher_64: Path, prompt_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str | Path]:
    """A distillation of a few seconds that scores and saves its student at every iteration.

    By the embedded benchmark, which says nothing about this teacher; that it is refused is tested elsewhere.
    """
    monkeypatch.setattr("sidlsg.training.launch.is_emoji", lambda place: True)
    preset = tmp_path / "preset.yaml"
    preset.write_text(SCORED, encoding="utf-8")
    return ["distill", "--preset", preset, "--teacher", tiny_teacher_64, "--prompts", prompt_file]


def test_scores_while_training_are_those_of_eval_also_of_an_interrupted_run(run, tmp_path: Path, scored: list) -> None:
    out, broken = tmp_path / "run", tmp_path / "broken"
    assert run(*scored, "--out", out)[0] == 0
    lines = read_metrics(out / "scores.jsonl")
    assert [line["images_seen"] for line in lines] == [0, 8, 16, 24]
    # The folder holds half-precision weights: almost the same pictures.
    assert run("eval", "--model", out, "--limit", "16", "--device", "cpu", "--out", tmp_path / "eval")[0] == 0
    found = results(tmp_path / "eval")["scores"]
    assert found["fd"] == pytest.approx(lines[-1]["fd"], rel=0.01)
    assert found["clip"] == pytest.approx(lines[-1]["clip"], abs=0.01)
    assert abs(lines[-1]["fd"] / lines[0]["fd"] - 1) > 0.02  # so that any other line's would not do
    # Among all captions, though only 16 are drawn; one picture's rank may differ.
    for name in ("retrieval_top1", "retrieval_top5"):
        assert found[name] == pytest.approx(lines[-1][name], abs=1.01 / 16)
    for line in lines:
        assert line["pictures"] == 16
        assert line["warnings"] == ["The number of pictures is 16; the protocol embedded has 1,024."]
    best = json.loads((out / "best" / "sidlsg.json").read_text(encoding="utf-8"))
    smallest = min(lines[1:], key=lambda line: line["fd"])
    assert (best["images_seen"], best["scores"]["fd"]) == (smallest["images_seen"], smallest["fd"])
    assert Image.open(out / "curves.png").size[0] > 500

    # As if it had ended between its last scores and the checkpoint after them: they are computed again.
    shutil.copytree(out, broken)
    shutil.rmtree(broken / "student")
    shutil.rmtree(max(RunFolder(broken).checkpoints.iterdir()))
    code, shown, _ = run(*scored, "--out", broken)
    assert code == 0
    assert "resuming at 16 images" in shown
    assert (broken / "scores.jsonl").read_bytes() == (out / "scores.jsonl").read_bytes()


def test_a_run_with_an_empty_cache_makes_the_reference_that_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, warm_cache: Path
) -> None:
    """The other test whose cache is empty on purpose: a run that scores makes what `sidlsg eval` would, and keeps it."""

    def reference(cache: Path) -> Reference:
        monkeypatch.setenv("SIDLSG_CACHE", str(cache))
        return Tracker(Config(eval_every=8, eval_images=16, device="cpu"), CPU, Processes(0, 1)).reference

    made, kept = reference(tmp_path), reference(warm_cache)
    assert made.moments.count == kept.moments.count == 1024
    np.testing.assert_allclose(made.moments.mu, kept.moments.mu, rtol=1e-5, atol=1e-6)
    assert len(list((tmp_path / "features").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_distance_falls_while_the_emoji_teacher_is_distilled(run) -> None:
    preset = "images: 96\nbatch: 16\nmicro_batch: 16\nlr: 3e-4\nema_half_life: 50\ndevice: cpu\n"
    Path("preset.yaml").write_text(preset + "eval_every: 96\neval_images: 16\n", encoding="utf-8")
    assert run("distill", "--preset", "preset.yaml", "--out", "run")[0] == 0
    lines = read_metrics(Path("run/scores.jsonl"))
    assert lines[-1]["fd"] < lines[0]["fd"]  # 96 images are enough to leave noise behind


def test_scoring_stable_diffusion_while_training_needs_a_reference(run, tmp_path: Path, scored: list) -> None:
    code, _, err = run(*scored, "--set", "eval_protocol=gigagan", "--out", tmp_path / "run")
    assert code == 2
    one_line(err, "eval_reference", "sidlsg eval stats")
