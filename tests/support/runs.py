"""Tiny distillations, and what a run left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from sidlsg.config import Config
from sidlsg.prompts import PromptFile
from sidlsg.runs.folder import RunFolder, read_metrics
from sidlsg.training.trainer import Trainer


def write_prompts(path: Path, count: int = 23) -> Path:
    """Prompts that differ in their first letters: the tiny tokenizer sees no others."""
    path.write_text("".join(f"{chr(97 + i)} prompt number {i}\n" for i in range(count)), encoding="utf-8")
    return path


def config_for(teacher: Path, **changes: Any) -> Config:
    settings: dict[str, Any] = {
        "teacher": str(teacher),
        "images": 32,
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
    drop = ("images_per_second", "peak_gib", "time")
    return [{k: v for k, v in line.items() if k not in drop} for line in read_metrics(out / "metrics.jsonl")]


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

# The options of a run of two iterations by the command line, and of one.
SIZES = ["--preset", "cpu", "--batch", "8", "--micro-batch", "4", "--device", "cpu", "--set", "grid_images=1"]
TWO, ONE = [*SIZES, "--images", "16"], [*SIZES, "--images", "8"]
