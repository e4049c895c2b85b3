"""Scores against images that the teacher draws: what is drawn, when it is drawn again, what the distance says, who needs it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from sidlsg import distributed
from sidlsg.config import Config
from sidlsg.data import ASSETS
from sidlsg.distributed import Processes
from sidlsg.errors import UsageError
from sidlsg.evaluation import generation
from sidlsg.evaluation.progress import Bars
from sidlsg.evaluation.protocol import protocols
from sidlsg.evaluation.teacher_images import chosen_prompts, draw_teacher
from sidlsg.prompts import PromptFile
from sidlsg.runs.folder import read_metrics
from sidlsg.sampling.draw import many_steps
from sidlsg.teachers.loading import load_model
from sidlsg.teachers.registry import locate
from sidlsg.training.launch import check_scores
from sidlsg.training.tracking import Tracker
from support.scoring import results
from support.terminal import one_line

CPU, QUIET, ALONE = torch.device("cpu"), Console(quiet=True), Processes()
WORDS = [
    f"{letter} {i}" for i, letter in enumerate("abcdefghijklmnopqrstuvw")
]  # the tiny teacher reads the first letters


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the teacher, so that the tests take seconds."""
    monkeypatch.setattr("sidlsg.sampling.draw.DEFAULT_STEPS", 2)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol with the embedded judge in place of Inception and ViT-g-14, of which no weights are here."""
    judge = {"features": "judge", "features_resize": None, "size": 64, "clip_weights": "judge", "clip_resize": None}
    monkeypatch.setitem(protocols(), "teacher", replace(protocols()["teacher"], **judge))


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PromptFile:
    monkeypatch.setenv("SIDLSG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "prompts.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return PromptFile(tmp_path / "prompts.txt")


@pytest.fixture
def draw(prompts: PromptFile, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Path, list[int]]]:
    """``draw(teacher, count)`` -> (the folder of images, the numbers of those that were drawn in this call)."""
    drawn: list[int] = []
    generate = generation.generate

    def counted(model, jobs, *arguments, **options) -> None:
        drawn.extend(int(job.path.stem) for job in jobs)
        generate(model, jobs, *arguments, **options)

    monkeypatch.setattr(generation, "generate", counted)

    def call(teacher: Path, count: int, processes: Processes = ALONE) -> tuple[Path, list[int]]:
        drawn.clear()
        config = Config(teacher=str(teacher), batch=4, micro_batch=4)
        folder = draw_teacher(config, prompts, count, CPU, processes, 4, Bars(QUIET))
        assert len(folder) == count
        return folder.path, list(drawn)

    return call


# -- what the teacher draws ------------------------------------------------------------------------------------------------


def test_the_teacher_draws_each_image_once(tiny_teacher: Path, prompts: PromptFile, draw, tmp_path: Path) -> None:
    images, drawn = draw(tiny_teacher, 5)
    assert drawn == [0, 1, 2, 3, 4]
    texts = chosen_prompts(prompts, 30)
    assert len(set(texts[: len(WORDS)])) == len(WORDS)  # every prompt once before one comes again
    assert chosen_prompts(prompts, 5) == texts[:5]
    for i in range(5):
        noted = Image.open(images / f"{i:06d}.png").text
        assert (noted["prompt"], noted["seed"]) == (texts[i], str(2**32 + i))
    before = {path.name: path.read_bytes() for path in images.iterdir()}

    assert draw(tiny_teacher, 5) == (images, [])
    (images / "000003.png").unlink()  # as an interruption leaves it
    assert draw(tiny_teacher, 8) == (images, [3, 5, 6, 7])
    assert {name: (images / name).read_bytes() for name in before} == before
    moved = shutil.copytree(tiny_teacher, tmp_path / "elsewhere")  # what a teacher is, not where it is
    assert draw(moved, 8) == (images, [])


def test_another_teacher_has_images_of_its_own(tiny_teacher: Path, draw, tmp_path: Path) -> None:
    images, _ = draw(tiny_teacher, 2)
    other = shutil.copytree(tiny_teacher, tmp_path / "other")
    unet = load_model(str(other), CPU).network
    unet.conv_out.weight.data.mul_(0.5)
    unet.save_pretrained(other / "unet")
    found, drawn = draw(other, 2)
    assert found != images
    assert drawn == [0, 1]


def test_an_image_that_is_not_the_teachers_is_named(tiny_teacher: Path, draw) -> None:
    images, _ = draw(tiny_teacher, 3)
    shutil.copy(images / "000000.png", images / "000002.png")
    with pytest.raises(
        UsageError, match=r"1 of the 3 pictures .* \(first: 000002.png: it has the seed 4294967296, not"
    ):
        draw(tiny_teacher, 3)


def test_processes_share_the_drawing(tiny_teacher: Path, draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes its share of every round; the last one to come finds the images of all."""
    monkeypatch.setattr(generation, "ROUND", 2)
    monkeypatch.setattr(generation, "check_complete", lambda *_: None)  # the others of these have not drawn yet
    sent: list = []

    def gather(value: object) -> list:
        if isinstance(value, list):  # the jobs that the main process found missing
            sent.append(value or sent[0])
            return [sent[0]]
        return [value]

    monkeypatch.setattr(distributed, "gather", gather)
    shares = [draw(tiny_teacher, 9, Processes(rank, 2))[1] for rank in (0, 1)]
    assert shares == [[0, 2, 4, 6, 8], [1, 3, 5, 7]]


def test_a_cache_that_another_process_does_not_see_is_named(tiny_teacher: Path, draw, monkeypatch) -> None:
    monkeypatch.setattr(distributed, "gather", lambda value: [value, False] if value is True else [value])
    with pytest.raises(UsageError, match=r"not every process sees the cache folder .* SIDLSG_CACHE"):
        draw(tiny_teacher, 2)


# -- what the scores say ---------------------------------------------------------------------------------------------------


def test_the_distance_is_small_for_what_draws_like_the_teacher(
    judged: None, tiny_teacher: Path, prompts: PromptFile
) -> None:
    config = Config(
        teacher=str(tiny_teacher), batch=16, micro_batch=16, eval_every=16, eval_images=48, eval_protocol="teacher"
    )
    tracker = Tracker(config, CPU, Processes(), prompts, QUIET)
    assert (tracker.about["protocol"], tracker.about["pictures"], tracker.about["warnings"]) == ("teacher", 48, [])
    assert tracker.about["reference"] != "run"  # that of these images of this teacher
    model = load_model(str(tiny_teacher), CPU)

    def like_the_teacher(z: torch.Tensor, texts: list[str]) -> torch.Tensor:
        return many_steps(model, texts, range(len(texts)), 2, 3.0)

    def noise(z: torch.Tensor, texts: list[str]) -> torch.Tensor:
        return torch.rand(len(texts), 3, 8, 8, generator=torch.Generator().manual_seed(0))

    near, far = (tracker(drawn, nullcontext, model.latent_shape) for drawn in (like_the_teacher, noise))
    assert set(near) == {"fid-t", "precision", "recall", "clip"}
    assert near["fid-t"] < far["fid-t"] / 3


def test_a_run_is_scored_against_its_teacher_without_real_pictures(
    cold_run, judged: None, tiny_teacher: Path, prompts: PromptFile, tmp_path: Path
) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text(
        "images: 16\nbatch: 8\nmicro_batch: 8\ndevice: cpu\neval_every: 16\neval_images: 16\ngrid_images: 1\n"
    )
    command = ["distill", "--preset", preset, "--teacher", tiny_teacher, "--prompts", prompts.path, "--out", "out"]
    code, shown, err = cold_run(*command, "--set", "eval_protocol=teacher")
    assert code == 0, err
    assert "the teacher draws 16 images of its prompts" in " ".join(shown.split())
    lines = read_metrics(Path("out/scores.jsonl"))
    assert [line["images_seen"] for line in lines] == [0, 8, 16]
    assert all(line["fid-t"] > 0 for line in lines)

    options = ["--protocol", "teacher", "--limit", "16", "--device", "cpu", "--precision", "fp32", "--out", "scored"]
    code, _, err = cold_run("eval", "--model", "out", *options)
    assert code == 0, err
    found = results(Path("scored"))
    assert found["scores"]["fid-t"] == pytest.approx(lines[-1]["fid-t"], rel=0.05)  # the student is stored in half
    assert found["scores"]["clip"] == pytest.approx(lines[-1]["clip"], abs=0.01)
    assert found["reference"]["pictures"] == 16
    assert len(found["warnings"]) == 2, found["warnings"]  # of few pictures; nothing of published ones
    assert len(list((tmp_path / "cache" / "teachers").iterdir())) == 1


# -- who needs it ----------------------------------------------------------------------------------------------------------


def test_scores_by_emoji_are_refused_for_another_teacher(cold_run, tiny_teacher: Path) -> None:
    command = ["distill", "--preset", "cpu", "--teacher", tiny_teacher, "--eval-every", "64", "--dry-run"]
    code, _, err = cold_run(*command)
    assert code == 2
    one_line(err, "embedded", "emoji", "eval_protocol=teacher", "eval_protocol=gigagan", "eval_every=null")
    assert cold_run(*command, "--set", "eval_protocol=teacher")[0] == 0
    assert cold_run(*command[:5], "--set", "eval_every=null", "--dry-run")[0] == 0


def test_a_copy_of_the_emoji_teacher_is_scored_by_emoji(tmp_path: Path) -> None:
    config = Config(eval_every=64)
    copied = shutil.copytree(ASSETS / "emoji", tmp_path / "copy")
    check_scores(locate(str(copied)), config)
    network = copied / "unet" / "diffusion_pytorch_model.safetensors"
    network.write_bytes(network.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UsageError, match="says nothing about"):
        check_scores(locate(str(copied)), config)


@pytest.mark.parametrize("more", [[], ["--model", "emoji-student"], ["--model", "out", "--reference", "x.npz"]])
def test_the_protocol_needs_a_run(cold_run, more: list[str]) -> None:
    code, _, err = cold_run("eval", "--protocol", "teacher", *more)
    assert code == 2
    one_line(err, "--model RUN", "teacher")
