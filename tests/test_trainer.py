"""The loop around Algorithm 1: resuming, several processes, pre-flight checks, divergence."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from sidlsg import api
from sidlsg import files as file_system
from sidlsg.config import Config
from sidlsg.errors import SidlsgError, Stopped, UsageError
from sidlsg.method import draws
from sidlsg.prompts import PromptFile
from sidlsg.runs.folder import RunFolder, read_metrics
from sidlsg.runs.opening import open_model
from sidlsg.sampling.pictures import make_grid
from sidlsg.teachers.loading import load_model
from sidlsg.training.engine import Engine
from sidlsg.training.outputs import draw_teacher_grid, teacher_grid_is_cheap
from sidlsg.training.prefetch import Prefetch
from sidlsg.training.preflight import preflight
from sidlsg.training.trainer import Trainer
from support.processes import free_port, on_ranks, without_reader
from support.runs import PRESET, command, config_for, files, science, trainer
from support.tiny import change_json


@pytest.fixture(autouse=True)
def no_reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report with every grid is a third of a tiny run's time, and the subject of few tests."""
    if "report" not in request.node.name:
        monkeypatch.setattr("sidlsg.report.write", lambda folder: None)


def test_a_killed_and_resumed_run_is_the_same_run(unbroken, tiny_teacher, tmp_path, monkeypatch) -> None:
    """Killed in the fourth iteration, after the checkpoint of 16 images and a metrics line of 24: bit for bit the same."""
    run, prompts = unbroken
    victim = trainer(config_for(tiny_teacher), tmp_path / "run", prompts)
    iterate = victim.iterate

    def die_at_32() -> None:
        if victim.images_seen == 24:
            raise KeyboardInterrupt
        iterate()

    monkeypatch.setattr(victim, "iterate", die_at_32)
    with pytest.raises(KeyboardInterrupt):
        victim.run()
    assert [line["images_seen"] for line in science(tmp_path / "run")][-1] == 24
    assert not (tmp_path / "run" / "student").exists()
    resumed = trainer(config_for(tiny_teacher), tmp_path / "run", prompts)
    resumed.run()
    assert files(tmp_path / "run" / "student") == files(run / "student")
    assert files(tmp_path / "run" / "checkpoints") == files(run / "checkpoints")
    assert files(tmp_path / "run" / "samples") == files(run / "samples")
    assert science(tmp_path / "run") == science(run)


def test_a_line_of_metrics_survives_a_stop_in_its_middle(unbroken, tiny_teacher, tmp_path, monkeypatch) -> None:
    """Lines every three iterations, checkpoints every two: the resumed run's lines average over all three."""
    _, prompts = unbroken
    settings = {"images": 24, "log_every": 24, "checkpoint_every": 16}
    trainer(config_for(tiny_teacher, **settings), tmp_path / "whole", prompts).run()
    victim = trainer(config_for(tiny_teacher, **settings), tmp_path / "run", prompts)
    iterate = victim.iterate

    def die_at_24() -> None:
        if victim.images_seen == 16:
            raise KeyboardInterrupt
        iterate()

    monkeypatch.setattr(victim, "iterate", die_at_24)
    with pytest.raises(KeyboardInterrupt):
        victim.run()
    trainer(config_for(tiny_teacher, **settings), tmp_path / "run", prompts).run()
    assert [line["images_seen"] for line in science(tmp_path / "whole")] == [24]
    assert science(tmp_path / "run") == science(tmp_path / "whole")


def test_weights_that_are_not_finite_are_never_saved(unbroken, tiny_teacher, tmp_path, monkeypatch) -> None:
    """Whatever spoilt them: the good checkpoint stays the newest, and the message says so."""
    _, prompts = unbroken
    subject = trainer(config_for(tiny_teacher, keep_checkpoints=1), tmp_path / "run", prompts)
    iterate = subject.iterate

    def spoil_after_16() -> None:
        iterate()
        if subject.images_seen == 32:
            with torch.no_grad():
                next(subject.engine.fake.parameters()).view(-1)[0] = float("nan")

    monkeypatch.setattr(subject, "iterate", spoil_after_16)
    with pytest.raises(SidlsgError, match=r"no longer finite at 32 images.*000000000016, is kept"):
        subject.run()
    assert [p.name for p in sorted((tmp_path / "run" / "checkpoints").iterdir())] == ["000000000016"]


def test_nothing_finite_in_the_last_iteration_is_divergence(unbroken, tiny_teacher, tmp_path) -> None:
    """However many good iterations stand before it in the window."""
    _, prompts = unbroken
    subject = trainer(config_for(tiny_teacher, log_every=800), tmp_path / "run", prompts)
    for _ in range(3):
        subject.iterate()
    subject.check()
    with torch.no_grad():
        for p in subject.engine.fake.parameters():
            p.fill_(float("nan"))
    subject.iterate()
    with pytest.raises(SidlsgError, match="diverged"):
        subject.check()


def test_a_run_is_saved_by_the_clock_too(unbroken, tiny_teacher, tmp_path) -> None:
    run, prompts = unbroken
    settings = {"checkpoint_every": 8_000_000, "keep_checkpoints": 9}
    trainer(config_for(tiny_teacher, **settings), tmp_path / "never", prompts).run()
    assert [int(p.name) for p in (tmp_path / "never" / "checkpoints").iterdir()] == [32]
    trainer(config_for(tiny_teacher, **settings, checkpoint_minutes=1e-9), tmp_path / "always", prompts).run()
    assert {int(p.name) for p in (tmp_path / "always" / "checkpoints").iterdir()} == {8, 16, 24, 32}
    assert files(tmp_path / "always" / "student") == files(run / "student")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_another_teacher_is_not_resumed_with(part: str, tiny_teacher, tmp_path, prompt_file) -> None:
    """The same folder with other weights in one of its parts."""
    teacher = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    trainer(config_for(teacher, images=16), tmp_path / "run", prompt_file).run()
    (path,) = (teacher / part).glob("*.safetensors")
    weights = load_file(path)
    weights[next(name for name in weights if weights[name].is_floating_point())] += 0.5
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=f"the {part} of .* is not what this run was started with"):
        trainer(config_for(teacher, images=32), tmp_path / "run", prompt_file).run()


def test_a_checkpoint_of_another_teacher_is_refused(tiny_teacher, tmp_path, prompt_file) -> None:
    """Of the same settings, seed, prompts and shapes, copied into the run's folder, newer than its own."""
    other = shutil.copytree(tiny_teacher, tmp_path / "other")
    change_json(other / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    trainer(config_for(tiny_teacher, images=8), tmp_path / "run", prompt_file).run()
    trainer(config_for(other, images=16), tmp_path / "others", prompt_file).run()
    name = "checkpoints/000000000016"
    shutil.copytree(tmp_path / "others" / name, tmp_path / "run" / name)
    with pytest.raises(UsageError, match=r"the scheduler of .*teacher is not what this run was started with"):
        trainer(config_for(tiny_teacher, images=24), tmp_path / "run", prompt_file)


def test_teacher_and_prompts_may_be_in_another_place(tiny_teacher, tmp_path, prompt_file) -> None:
    """Their recorded hashes prove that they are the same; the run folder then knows where they are."""
    teacher = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    trainer(config_for(teacher, images=16), tmp_path / "run", prompt_file).run()
    before = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    damaged = tmp_path / "run" / "checkpoints" / ("9" * 12)
    damaged.mkdir()
    (damaged / "state.json").write_text("{", encoding="utf-8")
    moved = teacher.rename(tmp_path / "moved")
    prompts = prompt_file.rename(tmp_path / "moved.txt")
    other = shutil.copytree(moved, tmp_path / "other")
    change_json(other / "tokenizer" / "tokenizer_config.json", model_max_length=5)
    with pytest.raises(UsageError, match=r"the tokenizer of .*other is not what this run was started with"):
        trainer(config_for(other, images=32), tmp_path / "run", prompts)
    (tmp_path / "other.txt").write_text("a cat\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"other.txt is not the prompt file this run was started with"):
        trainer(config_for(moved, images=32), tmp_path / "run", tmp_path / "other.txt")
    assert (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8") == before
    subject = trainer(config_for(moved, images=32), tmp_path / "run", prompts)
    subject.run()
    assert subject.images_seen == 32
    assert RunFolder(tmp_path / "run").load_config().teacher == str(moved)
    with pytest.raises(UsageError, match="other settings: seed"):
        trainer(config_for(teacher, images=32, seed=7), tmp_path / "run", prompts)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_damaged_teacher_is_named_before_the_first_update(part: str, tiny_teacher, tmp_path, prompt_file) -> None:
    teacher = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    (path,) = (teacher / part).glob("*.safetensors")
    weights = load_file(path)
    weights[next(name for name in weights if name.endswith("bias"))][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(
        SidlsgError, match=rf"weights in the {part} of .*teacher are not finite; fetch or copy it again"
    ):
        trainer(config_for(teacher), tmp_path / "run", prompt_file).run()


def test_a_run_without_a_checkpoint_takes_no_other_teacher(tiny_teacher, tmp_path, prompt_file) -> None:
    """Nothing shows that it is the same."""
    trainer(config_for(tiny_teacher), tmp_path / "run", prompt_file).claim()
    other = shutil.copytree(tiny_teacher, tmp_path / "other")
    with pytest.raises(UsageError, match=r"other settings: teacher \(.*teacher there, .*other here"):
        trainer(config_for(other), tmp_path / "run", prompt_file)


def test_a_longer_run_goes_on_from_a_finished_one(unbroken, tiny_teacher, tmp_path) -> None:
    run, prompts = unbroken
    trainer(config_for(tiny_teacher, images=16), tmp_path / "run", prompts).run()
    trainer(config_for(tiny_teacher), tmp_path / "run", prompts).run()
    short = load_file(tmp_path / "run" / "student" / "unet" / "diffusion_pytorch_model.safetensors")
    long = load_file(run / "student" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(short[name], long[name]) for name in long)


@pytest.mark.parametrize("content", [None, b"", bytes(4096)], ids=["missing", "empty", "zeros"])
def test_a_run_whose_configuration_is_lost_goes_on(content, unbroken, tiny_teacher, tmp_path) -> None:
    """Its checkpoints say what it is: the same settings resume it, others are refused, and config.yaml is there again."""
    run, prompts = unbroken
    trainer(config_for(tiny_teacher, images=16), tmp_path / "run", prompts).run()
    path = tmp_path / "run" / "config.yaml"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UsageError, match=r"other settings: lr \(0.001 there, 0.002 here\)"):
        trainer(config_for(tiny_teacher, lr=2e-3), tmp_path / "run", prompts)
    assert open_model(str(tmp_path / "run"), torch.device("cpu"), torch.float32).student["images_seen"] == 16
    trainer(config_for(tiny_teacher), tmp_path / "run", prompts).run()
    assert files(tmp_path / "run" / "student") == files(run / "student")
    assert path.read_bytes() == (run / "config.yaml").read_bytes()


def test_the_run_differs_with_the_seed(unbroken, tiny_teacher, tmp_path) -> None:
    run, prompts = unbroken
    trainer(config_for(tiny_teacher, seed=1), tmp_path / "run", prompts).run()
    assert files(tmp_path / "run" / "student") != files(run / "student")


def test_ctrl_c_saves_and_the_same_command_goes_on(tiny_teacher, prompt_file, tmp_path) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text(PRESET + "images: 8M\n", encoding="utf-8")
    line = [sys.executable, "-m", "sidlsg", *command(tiny_teacher, prompt_file, tmp_path / "run", preset)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "run the same command again" in err
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    seen = json.loads((newest / "state.json").read_text())["images_seen"]
    assert f"stopped at {seen:,} images" in err
    # Resumed from what the interrupted process saved, the run is the unbroken one.
    config = config_for(tiny_teacher, prompts=str(prompt_file), images=seen + 8)
    found = []
    for name in ("run", "unbroken"):
        trainer(config, tmp_path / name, prompt_file).run()
        found.append(files(tmp_path / name / "checkpoints" / f"{seen + 8:012d}"))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("stop", "saved"), [(0, (16, False)), (1, (16, False)), (2, (16, True)), (3, (16, True)), (4, (24, False))]
)
def test_a_stop_waits_for_one_micro_batch_only(stop, saved, unbroken, tiny_teacher, tmp_path) -> None:
    """In the third iteration: before one of psi's or theta's two micro-batches, or at its end; the resumed run is the same."""
    run, prompts = unbroken
    subject = trainer(config_for(tiny_teacher), tmp_path / "run", prompts)
    asked = itertools.count()
    subject.stop.is_set = lambda: next(asked) >= 2 * 5 + stop  # type: ignore[method-assign]
    with pytest.raises(Stopped, match=f"stopped at {saved[0]} images"):
        subject.run()
    assert subject.saved == subject.place == saved
    resumed = trainer(config_for(tiny_teacher), tmp_path / "run", prompts)
    resumed.resume()
    assert resumed.place == saved
    resumed.run()
    for part in ("student", "checkpoints/000000000032", "samples"):
        assert files(tmp_path / "run" / part) == files(run / part)
    assert science(tmp_path / "run") == science(run)


def test_a_run_goes_on_when_its_reader_goes_away(unbroken, tiny_teacher, tmp_path) -> None:
    """`sidlsg distill | head -1`: the pipe breaks, the run does not."""
    run, prompts = unbroken
    preset = tmp_path / "preset.yaml"
    preset.write_text(PRESET + "images: 32\n", encoding="utf-8")
    assert without_reader(command(tiny_teacher, prompts, tmp_path / "run", preset)) == (0, "")
    assert files(tmp_path / "run" / "student") == files(run / "student")


def test_sigterm_saves(tiny_teacher, prompt_file, tmp_path) -> None:
    preset = tmp_path / "preset.yaml"
    calm = PRESET.replace("checkpoint_every: 16", "checkpoint_every: 8M").replace("lr: 1e-3", "lr: 1e-6")
    preset.write_text(calm + "images: 8M\n", encoding="utf-8")
    line = [sys.executable, "-m", "sidlsg", *command(tiny_teacher, prompt_file, tmp_path / "run", preset)]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 110
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=110)
    assert process.returncode == 1
    assert "run the same command again" in err
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_a_closed_terminal_saves(unbroken, tiny_teacher, tmp_path, monkeypatch) -> None:
    """SIGHUP in the second iteration; nohup, which ignores it, is heeded (``test_nohup_is_heeded``)."""
    _, prompts = unbroken
    subject = trainer(config_for(tiny_teacher), tmp_path / "run", prompts)
    iterate = subject.iterate

    def hang_up() -> None:
        if subject.images_seen == 8:
            signal.raise_signal(signal.SIGHUP)
        iterate()

    monkeypatch.setattr(subject, "iterate", hang_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what started the tests may ignore it
    try:
        with pytest.raises(Stopped, match="stopped at 8 images"):
            subject.run()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["000000000008"]


def test_two_writers_in_one_folder_are_refused(unbroken, tiny_teacher, tmp_path, monkeypatch) -> None:
    """While one trains; and a run that was killed leaves no lock."""
    _, prompts = unbroken
    first = trainer(config_for(tiny_teacher), tmp_path / "run", prompts)
    iterate, refusals = first.iterate, []

    def meanwhile() -> None:
        if not refusals:
            with pytest.raises(UsageError, match="another process is training in") as refused:
                trainer(config_for(tiny_teacher), tmp_path / "run", prompts).run()
            refusals.append(refused)
        if first.images_seen == 24:
            raise KeyboardInterrupt
        iterate()

    monkeypatch.setattr(first, "iterate", meanwhile)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert refusals
    trainer(config_for(tiny_teacher), tmp_path / "run", prompts).run()


def test_a_start_from_zero_is_never_silent(tiny_teacher, tmp_path, prompt_file, capsys) -> None:
    """Checkpoints that somebody deleted."""
    trainer(config_for(tiny_teacher, images=16), tmp_path / "run", prompt_file).run()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    subject = trainer(config_for(tiny_teacher, images=32), tmp_path / "run", prompt_file)
    subject.console = Console(width=400)
    subject.run()
    assert "starts again from 0 images" in capsys.readouterr().out


def test_two_processes_make_the_run_of_one(unbroken, tiny_teacher, tmp_path) -> None:
    """Each takes half of every batch; draws belong to samples, so only the order of summation differs."""
    _, prompts = unbroken
    preset = tmp_path / "preset.yaml"
    preset.write_text(PRESET + "images: 16\n", encoding="utf-8")
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    line += ["--master_port", str(free_port()), "-m", "sidlsg"]
    line += command(tiny_teacher, prompts, tmp_path / "two", preset)
    result = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    trainer(config_for(tiny_teacher, images=16), tmp_path / "one", prompts).run()
    for one, two in zip(science(tmp_path / "one"), science(tmp_path / "two"), strict=True):
        gaps = [[-1 if gap is None else gap for gap in line.pop("score_gap")] for line in (one, two)]
        assert gaps[0] == pytest.approx(gaps[1], rel=1e-2)
        assert one == pytest.approx(two, rel=1e-3, abs=1e-3)
    name = "checkpoints/000000000016/{}.safetensors"
    for group in ("fake", "generator", "ema"):
        one, two = (load_file(tmp_path / which / name.format(group)) for which in ("one", "two"))
        gaps = torch.cat([(one[key] - two[key]).abs().flatten() for key in one])
        # Steps are of size lr = 1e-3; where a gradient is rounding noise its sign, and so the step, may differ.
        assert (gaps < 1e-5).float().mean() > 0.9
        assert gaps.max() < 5e-3


def run_in_own_folder(rank: int, teacher: Path, out: Path, prompts: Path) -> str:
    """What a process says whose run folder is not the others'."""
    file_system.PATIENCE = 1
    try:
        trainer(config_for(teacher, images=32), out / f"of-{rank}", prompts).run()
    except SidlsgError as error:
        return str(error)
    return "it ran"


def test_processes_with_folders_of_their_own_are_refused(unbroken, tiny_teacher, tmp_path) -> None:
    """As on two machines without a shared disk: at the first start, and when only one of them could resume."""
    _, prompts = unbroken
    for said in on_ranks(2, run_in_own_folder, tiny_teacher, tmp_path, prompts):
        assert "must be on a disk that all of them share" in said
    assert not list(tmp_path.glob("of-*/checkpoints/0*"))
    for rank in (0, 1):  # each has a run of its own now, at different images
        trainer(config_for(tiny_teacher, images=8 + 8 * rank), tmp_path / f"of-{rank}", prompts).run()
    for said in on_ranks(2, run_in_own_folder, tiny_teacher, tmp_path, prompts):
        assert "the processes do not agree on: images seen" in said


def test_grids_come_at_the_papers_spacing_from_step_zero(unbroken, tiny_teacher) -> None:
    run, _ = unbroken
    shares = (0, 0.02, 0.1, 0.2, 0.5, 1, 2, 3, 4, 5)  # Fig. 2, millions of images of 5M
    expected = {round(share / 5 * 32 / 8) * 8 for share in shares}
    assert {int(p.stem) for p in (run / "samples").glob("*.png")} == expected
    assert Image.open(run / "samples" / "000000000000.png").size == (2 * 8 + 2, 2 * 8 + 2)


def test_prompts_of_both_updates_are_one_stream_and_empties_only_psis(
    unbroken, tiny_teacher, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, prompts = unbroken
    subject = trainer(config_for(tiny_teacher, drop_prompt=0.5), tmp_path / "run", prompts)
    used: list[str] = []
    encode = subject.engine.encode
    tokens = encode.tokens
    monkeypatch.setattr(encode, "tokens", lambda texts: used.extend(texts) or tokens(texts))
    lines = PromptFile(prompts)
    stream = [lines[i] for i in draws.PromptOrder(len(lines), 0)(0, 32)]
    dropped = 0
    for start in (0, 8):
        psi, theta = map(subject.engine.send, subject.draw(start))
        assert used == stream[: 2 * start + 16]
        dropped += sum(torch.equal(c, encode.empty["text"][0]) for c in psi.c["text"])
        assert not any(torch.equal(c, encode.empty["text"][0]) for c in theta.c["text"])
    assert 3 <= dropped <= 13
    assert Config(drop_when="guided", kappa=(1, 1, 1, 3)).drops_prompts is False
    assert Config(drop_when="guided", kappa=(2, 1, 1, 1)).drops_prompts is True
    assert Config(drop_when="always", kappa=(1, 1, 1, 3)).drops_prompts is True


def test_the_next_iteration_is_drawn_while_this_one_runs(
    unbroken, tiny_teacher, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another thread, each place once, and nothing beyond the end. The run is the one whose draws are made when needed."""
    run, prompts = unbroken
    subject = trainer(config_for(tiny_teacher), tmp_path / "run", prompts)
    drawn: list[int] = []
    draw, iterate = subject.drawn._make, subject.engine.iterate

    def noted(place: int) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        drawn.append(place)
        return draw(place)

    def patient(batches: Any, images_seen: int) -> Any:
        for coming in subject.drawn._coming.values():
            coming.result(timeout=60)  # does not wait for this iteration
        assert drawn == list(range(0, min(images_seen + 8, 24) + 1, 8))
        return iterate(batches, images_seen)

    monkeypatch.setattr(subject.drawn, "_make", noted)
    monkeypatch.setattr(subject.engine, "iterate", patient)
    subject.run()
    assert drawn == [0, 8, 16, 24]
    assert files(tmp_path / "run" / "student") == files(run / "student")


def test_what_cannot_be_drawn_ends_the_run_with_its_reason() -> None:
    def make(place: int) -> int:
        if place == 8:
            raise SidlsgError("the prompts are gone")
        return place

    drawn = Prefetch(make)
    assert drawn.take(0, following=8) == 0
    with pytest.raises(SidlsgError, match="the prompts are gone"):
        drawn.take(8, following=16)
    assert drawn.take(24, following=None) == 24  # a place that was not foreseen


def test_prompts_are_tokenised_in_two_threads_at_once(tiny_teacher) -> None:
    """As when a grid is drawn while the next iteration's prompts are prepared."""
    encode = load_model(str(tiny_teacher), torch.device("cpu")).encoder()
    texts = [f"prompt number {i}" for i in range(200)]
    expected = encode.tokens(texts)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(encode.tokens, [texts] * 40))
    assert all(torch.equal(one[name], expected[name]) for one in found for name in expected)


def test_offloaded_state_has_arrived_before_it_is_checked_and_saved(
    unbroken, tiny_teacher, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its copies from a GPU are asynchronous: read too early, they would be judged, and saved, as they were."""
    _, prompts = unbroken
    subject = trainer(config_for(tiny_teacher), tmp_path / "run", prompts)
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append("waited"))
    monkeypatch.setattr(subject.engine, "finite", lambda: bool(done.append("checked") or True))
    subject.device = torch.device("cuda")
    subject.save()
    assert done == ["waited", "checked"]


def test_preflight_refuses_networks_that_are_not_copies(unbroken, tiny_teacher, tmp_path) -> None:
    _, prompts = unbroken
    subject = trainer(config_for(tiny_teacher), tmp_path / "run", prompts)
    with torch.no_grad():
        next(subject.engine.fake.parameters()).mul_(1.01)
    with pytest.raises(SidlsgError, match="pre-flight: with ψ = φ"):
        subject.run()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("broken", [False, True])
def test_preflight_refuses_an_attention_whose_gradient_is_wrong(precision: str, broken: bool) -> None:
    """A kernel that loses half its gradient goes unnoticed by ψ = φ, but not by the comparison; an honest one passes."""
    from diffusers.models.attention_processor import AttnProcessor

    class Broken(AttnProcessor):
        def __call__(self, attn, hidden_states, *args, **kwargs):
            right = super().__call__(attn, hidden_states, *args, **kwargs)
            return right.detach() / 2 + right / 2  # the value is right, half the gradient is lost

    device = torch.device("cpu")
    engine = Engine.build(Config(precision=precision, device="cpu"), load_model("emoji", device), device)
    if broken:
        for network in (engine.teacher.network, engine.fake, engine.generator):
            network.set_attn_processor(Broken())
        with pytest.raises(SidlsgError, match="gradient through attention"):
            preflight(engine, "red heart")
    else:
        assert "of plain attention's" in preflight(engine, "red heart")


def test_a_changed_prompt_file_is_not_resumed_with(tiny_teacher, tmp_path, prompt_file) -> None:
    trainer(config_for(tiny_teacher, images=16), tmp_path / "run", prompt_file).run()
    prompt_file.write_text("another prompt\n", encoding="utf-8")
    with pytest.raises(UsageError, match="not the prompt file this run was started with"):
        trainer(config_for(tiny_teacher, images=32), tmp_path / "run", prompt_file).run()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak of the resident size")
def test_the_peak_in_metrics_is_that_of_the_updates(
    unbroken, tiny_teacher, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not that of the pre-flight check or of a grid, which each take 256 MiB more here; the run prints the pre-flight's."""
    _, prompts = unbroken

    def large(report: str) -> str:
        torch.ones(2**26)
        return report

    monkeypatch.setattr("sidlsg.training.trainer.preflight", lambda *_: large("checked"))
    subject = trainer(config_for(tiny_teacher, images=24), tmp_path / "run", prompts)
    subject.console = Console(width=400)
    monkeypatch.setattr("sidlsg.training.outputs.draw_grid", lambda *_: large("drawn"))
    subject.run()
    printed = re.search(r"checked; peak memory ([\d.]+) GiB", capsys.readouterr().out)
    peaks = [line["peak_gib"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert len(peaks) == 3
    assert float(printed[1]) - max(peaks) > 0.2


def test_divergence_stops_with_the_reason(unbroken, tiny_teacher, tmp_path) -> None:
    _, prompts = unbroken
    subject = trainer(config_for(tiny_teacher, lr=10.0, images=800), tmp_path / "run", prompts)
    with pytest.raises(SidlsgError, match=r"diverged at \d+ images.*Start again with a smaller --lr"):
        subject.run()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_other_precisions_train(precision: str, tiny_teacher, tmp_path, prompt_file) -> None:
    """bf16 keeps fp32 weights; the paper's fp16 keeps everything in half, and the average in fp32."""
    half = precision == "fp16"
    # In half precision small second moments underflow, and lr g / eps is a large step: the trap of pure fp16.
    extra = {"adam_eps": 1e-6, "clip_value": 1.0, "lr": 1e-5} if half else {}
    subject = trainer(config_for(tiny_teacher, precision=precision, images=16, **extra), tmp_path / "run", prompt_file)
    subject.run()
    dtype = torch.float16 if half else torch.float32
    engine = subject.engine
    assert {p.dtype for p in engine.fake.parameters()} == {p.dtype for p in engine.generator.parameters()} == {dtype}
    assert engine.ema is not None
    assert {a.dtype for a in engine.ema.average.values()} == {torch.float32}
    assert all(p.isfinite().all() for p in engine.generator.parameters())
    start = trainer(config_for(tiny_teacher, precision=precision, images=16, **extra), tmp_path / "new", prompt_file)
    moved = [
        not torch.equal(a, b)
        for a, b in zip(engine.generator.parameters(), start.engine.generator.parameters(), strict=True)
    ]
    assert sum(moved) > 0.8 * len(moved)


# -- what a run shows ----------------------------------------------------------------------------------------------------------


def test_a_report_that_cannot_be_written_is_said_and_the_run_goes_on(
    tiny_teacher, tmp_path, prompt_file, capsys
) -> None:
    out = tmp_path / "run"
    lines = PromptFile(prompt_file)
    built = Trainer(config_for(tiny_teacher, images=8), RunFolder(out), lines, lines[:1], Console(width=200))
    built.claim()
    (out / "report.html").mkdir()
    built.run()
    assert (out / "student" / "model_index.json").is_file()
    assert "warning: the run goes on without its report:" in capsys.readouterr().out


def test_the_report_is_written_anew_with_every_grid(tiny_teacher, tmp_path, prompt_file) -> None:
    built, pages = trainer(config_for(tiny_teacher, images=24), tmp_path / "run", prompt_file), []
    iterate = built.iterate

    def look() -> None:
        pages.append(built.folder.report.read_text(encoding="utf-8").count("data-seen="))
        iterate()

    built.iterate = look
    built.run()
    assert pages == [1, 2, 3]


def test_a_diverged_run_has_a_report_that_says_so(tiny_teacher, tmp_path, prompt_file) -> None:
    with pytest.raises(SidlsgError, match="latent"):
        trainer(config_for(tiny_teacher, latent_std=(1e-6, 1e-5)), tmp_path / "run", prompt_file).run()
    assert 'data-seen="0"' in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_the_teachers_grid_is_what_sample_draws(tiny_teacher, tmp_path, prompt_file) -> None:
    config = config_for(tiny_teacher, micro_batch=2)
    built = trainer(config, tmp_path / "run", prompt_file)
    prompts = built.grid_prompts
    draw_teacher_grid(built.engine, prompts, tmp_path / "teacher.png")
    drawn = [
        picture.image
        for text, seed in zip(prompts, range(4), strict=True)
        for picture in api.sample(text, model=tiny_teacher, seeds=[seed], device="cpu")
    ]
    with Image.open(tmp_path / "teacher.png") as grid:
        assert grid.tobytes() == make_grid(drawn).tobytes()


def test_the_teachers_grid_is_drawn_from_halved_weights_too(tiny_teacher, tmp_path, prompt_file) -> None:
    built = trainer(config_for(tiny_teacher, precision="bf16", half_teacher=True), tmp_path / "run", prompt_file)
    draw_teacher_grid(built.engine, built.grid_prompts, tmp_path / "half.png")
    draw_teacher_grid(
        trainer(config_for(tiny_teacher), tmp_path / "other", prompt_file).engine,
        built.grid_prompts,
        tmp_path / "full.png",
    )
    half, full = (
        torch.tensor(list(Image.open(tmp_path / f"{name}.png").tobytes())).float() for name in ("half", "full")
    )
    assert 0 < (half - full).abs().mean() < 3


@pytest.mark.parametrize(("images", "drawn"), [(48, False), (5120, True)])
def test_the_teachers_grid_is_drawn_where_it_costs_little(
    tiny_teacher, tmp_path, prompt_file, monkeypatch, images, drawn
) -> None:
    """16 pictures of 25 steps with guidance are 800 passes; an image of LSG costs about as much as 19."""
    assert teacher_grid_is_cheap(Config(images=images), 16) == drawn
    monkeypatch.setattr(Trainer, "iterate", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer(config_for(tiny_teacher, images=images), tmp_path / "run", prompt_file).run()
    assert RunFolder(tmp_path / "run").teacher_grid.is_file() == drawn
