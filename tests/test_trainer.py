"""The loop around Algorithm 1: resuming, several processes, pre-flight checks, divergence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from sidlsg.config import Config
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.method import draws
from sidlsg.method.condition import Condition
from sidlsg.prompts import PromptFile
from sidlsg.runs.folder import RunFolder, read_metrics
from sidlsg.training.trainer import Trainer


def config_for(teacher: Path, **changes: Any) -> Config:
    settings: dict[str, Any] = {
        "teacher": str(teacher),
        "images": 48,
        "batch": 8,
        "micro_batch": 4,
        "lr": 1e-3,
        "ema_half_life": 100,
        "log_every": 8,
        "checkpoint_every": 16,
        "grid_images": 4,
        "device": "cpu",
    }
    return Config(**{**settings, **changes})


def trainer(config: Config, out: Path, prompts: Path) -> Trainer:
    lines = PromptFile(prompts)
    return Trainer(config, RunFolder(out), lines, lines[:4], Console(quiet=True))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def science(out: Path) -> list[dict[str, Any]]:
    """Metrics without what the clock and the memory say."""
    drop = ("images_per_second", "peak_gib")
    return [{k: v for k, v in line.items() if k not in drop} for line in read_metrics(out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def unbroken(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run of six iterations, and its prompt file."""
    folder = tmp_path_factory.mktemp("unbroken")
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"prompt number {i}\n" for i in range(23)), encoding="utf-8")
    trainer(config_for(tiny_teacher), folder / "run", prompts).run()
    return folder / "run", prompts


def test_a_killed_and_resumed_run_is_the_same_run(unbroken, tiny_teacher, tmp_path, monkeypatch) -> None:
    """Killed in the fifth iteration, after the checkpoint of 32 images and a metrics line of 40: bit for bit the same."""
    run, prompts = unbroken
    victim = trainer(config_for(tiny_teacher), tmp_path / "run", prompts)
    iterate = victim.iterate

    def die_at_48(window: list) -> None:
        if victim.images_seen == 40:
            raise KeyboardInterrupt
        iterate(window)

    monkeypatch.setattr(victim, "iterate", die_at_48)
    with pytest.raises(KeyboardInterrupt):
        victim.run()
    assert [line["images_seen"] for line in science(tmp_path / "run")][-1] == 40
    assert not (tmp_path / "run" / "student").exists()
    resumed = trainer(config_for(tiny_teacher), tmp_path / "run", prompts)
    resumed.run()
    assert files(tmp_path / "run" / "student") == files(run / "student")
    assert files(tmp_path / "run" / "checkpoints") == files(run / "checkpoints")
    assert files(tmp_path / "run" / "samples") == files(run / "samples")
    assert science(tmp_path / "run") == science(run)


def test_a_longer_run_goes_on_from_a_finished_one(unbroken, tiny_teacher, tmp_path) -> None:
    run, prompts = unbroken
    trainer(config_for(tiny_teacher, images=24), tmp_path / "run", prompts).run()
    trainer(config_for(tiny_teacher, images=48), tmp_path / "run", prompts).run()
    short = load_file(tmp_path / "run" / "student" / "unet" / "diffusion_pytorch_model.safetensors")
    long = load_file(run / "student" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(short[name], long[name]) for name in long)


def test_the_run_differs_with_the_seed(unbroken, tiny_teacher, tmp_path) -> None:
    run, prompts = unbroken
    trainer(config_for(tiny_teacher, seed=1), tmp_path / "run", prompts).run()
    assert files(tmp_path / "run" / "student") != files(run / "student")


def command(teacher: Path, prompts: Path, out: Path, preset: Path) -> list[str]:
    return ["distill", "--preset", str(preset), "--teacher", str(teacher), "--prompts", str(prompts), "--out", str(out)]


PRESET = """\
batch: 8
micro_batch: 4
lr: 1e-3
ema_half_life: 100
log_every: 8
checkpoint_every: 16
grid_images: 4
device: cpu
"""


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
    # What the interrupted process saved is what an unbroken one has at that point.
    config = config_for(tiny_teacher, prompts=str(prompt_file), images=seen)
    trainer(config, tmp_path / "unbroken", prompt_file).run()
    assert files(newest) == files(tmp_path / "unbroken" / "checkpoints" / newest.name)


def test_two_processes_make_the_run_of_one(unbroken, tiny_teacher, tmp_path) -> None:
    """Each takes half of every batch; draws belong to samples, so only the order of summation differs."""
    _, prompts = unbroken
    preset = tmp_path / "preset.yaml"
    preset.write_text(PRESET + "images: 16\n", encoding="utf-8")
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    line += ["--master_port", str(20_000 + os.getpid() % 20_000), "-m", "sidlsg"]
    line += command(tiny_teacher, prompts, tmp_path / "two", preset)
    result = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    trainer(config_for(tiny_teacher, images=16), tmp_path / "one", prompts).run()
    for one, two in zip(science(tmp_path / "one"), science(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-3)
    name = "checkpoints/000000000016/{}.safetensors"
    for group in ("fake", "generator", "ema"):
        one, two = (load_file(tmp_path / which / name.format(group)) for which in ("one", "two"))
        gaps = torch.cat([(one[key] - two[key]).abs().flatten() for key in one])
        # Steps are of size lr = 1e-3; where a gradient is rounding noise its sign, and so the step, may differ.
        assert (gaps < 1e-5).float().mean() > 0.9
        assert gaps.max() < 5e-3


def test_grids_come_at_the_papers_spacing_from_step_zero(unbroken, tiny_teacher) -> None:
    run, _ = unbroken
    shares = (0, 0.02, 0.1, 0.2, 0.5, 1, 2, 3, 4, 5)  # Fig. 2, millions of images of 5M
    expected = {round(share / 5 * 48 / 8) * 8 for share in shares}
    assert {int(p.stem) for p in (run / "samples").glob("*.png")} == expected
    assert Image.open(run / "samples" / "000000000000.png").size == (2 * 8 + 2, 2 * 8 + 2)


def test_prompts_of_both_updates_are_one_stream_and_empties_only_psis(unbroken, tiny_teacher, tmp_path) -> None:
    _, prompts = unbroken
    subject = trainer(config_for(tiny_teacher, drop_prompt=0.5), tmp_path / "run", prompts)
    used: list[list[str]] = []
    encode = subject.engine.encode

    def spy(texts: list[str]) -> Condition:
        used.append(list(texts))
        return encode(texts)

    spy.empty = encode.empty  # type: ignore[attr-defined]
    subject.engine.encode = spy  # type: ignore[assignment]
    lines = PromptFile(prompts)
    stream = [lines[i] for i in draws.PromptOrder(len(lines), 0)(0, 32)]
    dropped = 0
    for start in (0, 16):
        psi = subject.draw(draws.FAKE_SCORE)
        theta = subject.draw(draws.GENERATOR)
        assert used[-2] + used[-1] == stream[start : start + 16]
        dropped += sum(torch.equal(c, encode.empty["text"][0]) for c in psi.c["text"])
        assert not any(torch.equal(c, encode.empty["text"][0]) for c in theta.c["text"])
        subject.images_seen += 8
    assert 3 <= dropped <= 13
    assert Config(drop_when="guided", kappa=(1, 1, 1, 3)).drops_prompts is False
    assert Config(drop_when="guided", kappa=(2, 1, 1, 1)).drops_prompts is True
    assert Config(drop_when="always", kappa=(1, 1, 1, 3)).drops_prompts is True


def test_preflight_refuses_networks_that_are_not_copies(unbroken, tiny_teacher, tmp_path) -> None:
    _, prompts = unbroken
    subject = trainer(config_for(tiny_teacher), tmp_path / "run", prompts)
    with torch.no_grad():
        next(subject.engine.fake.parameters()).mul_(1.01)
    with pytest.raises(SidlsgError, match="pre-flight: with ψ = φ"):
        subject.run()


def test_preflight_refuses_an_attention_whose_gradient_is_wrong(unbroken, tiny_teacher, tmp_path) -> None:
    """A kernel that loses half its gradient goes unnoticed by ψ = φ, but not by the comparison."""
    from diffusers.models.attention_processor import AttnProcessor

    class Broken(AttnProcessor):
        def __call__(self, attn, hidden_states, *args, **kwargs):
            right = super().__call__(attn, hidden_states, *args, **kwargs)
            return right.detach() / 2 + right / 2  # the value is right, half the gradient is lost

    _, prompts = unbroken
    subject = trainer(config_for(tiny_teacher), tmp_path / "run", prompts)
    for unet in (subject.engine.teacher.network, subject.engine.fake, subject.engine.generator):
        unet.set_attn_processor(Broken())
    with pytest.raises(SidlsgError, match="gradient through attention"):
        subject.run()


def test_a_changed_prompt_file_is_not_resumed_with(tiny_teacher, tmp_path, prompt_file) -> None:
    trainer(config_for(tiny_teacher, images=16), tmp_path / "run", prompt_file).run()
    prompt_file.write_text("another prompt\n", encoding="utf-8")
    with pytest.raises(UsageError, match="not the prompt file this run was started with"):
        trainer(config_for(tiny_teacher, images=32), tmp_path / "run", prompt_file).run()


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
