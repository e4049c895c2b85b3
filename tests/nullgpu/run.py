"""Runs one preset on the null GPU and prints, as JSON, what PyTorch's allocator says of each phase; in ``cards.environment``.

``python -m nullgpu.run PRESET --strategy NAME ... [--set NAME=VALUE ...]``: the pre-flight check of every strategy; then for each
two iterations of two rounds, with the draws of a whole batch on the GPU, grids, a checkpoint and the student's folder; with
``eval_every`` also the scores of a batch of pictures.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import lcm
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from nullgpu import scorer
from sidlsg.config import Config
from sidlsg.distributed import Processes
from sidlsg.method import draws
from sidlsg.method.algorithm import Batch, update_fake_score, update_generator
from sidlsg.runs.checkpoints import Checkpoints
from sidlsg.settings import gather, make_config
from sidlsg.teachers.architectures import build_model
from sidlsg.training import preflight, tracking
from sidlsg.training.engine import Engine, stored_dtype
from sidlsg.training.outputs import draw_grid, draw_pictures, draw_teacher_grid, write_student
from sidlsg.training.tracking import Tracker

LARGE = 2**20  # bytes; the null GPU copies nothing larger


@dataclass
class Peaks:
    """GiB allocated at the peak of each phase, the phases that did not fit, and the lines that made the host wait."""

    allocated: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    waits: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self._hook = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_uint64)(self._note)
        self._on = lambda on: library.nullgpu_hook(self._hook if on else None)

    def _note(self, what: bytes, size: int) -> None:
        ours = [frame for frame in traceback.extract_stack() if "/sidlsg/" in frame.filename][-1:]
        lines = [f"{Path(frame.filename).name}:{frame.lineno} {frame.line}" for frame in ours] or ["not from Python"]
        self.waits.update(f"{line} ({what.decode()})" for line in lines)

    @contextmanager
    def phase(self, name: str, watch: bool = False) -> Iterator[None]:
        """Note the peak of what runs inside; with ``watch`` also whatever waits for the device."""
        torch.cuda.reset_peak_memory_stats()
        self._on(watch)
        try:
            yield
        except torch.cuda.OutOfMemoryError as error:
            self.refused[name] = str(error).partition(" GPU 0 has")[0]
        finally:
            self._on(False)
            self.note(name)

    def note(self, name: str) -> None:
        """The peak since the last note belongs to the phase ``name``."""
        self.allocated[name] = max(self.allocated.get(name, 0.0), torch.cuda.max_memory_allocated() / 2**30)
        torch.cuda.reset_peak_memory_stats()


def spare_the_host() -> None:
    """Leave out what would only move zeros through this machine's memory and disk; on the device nothing changes."""
    contiguous, lerp, zeros = torch.Tensor.contiguous, torch._foreach_lerp_, torch.zeros

    def layout(x: torch.Tensor, **options: Any) -> torch.Tensor:
        large = x.device.type == "cpu" and x.nbytes > LARGE
        return torch.empty(x.shape, dtype=x.dtype) if large else contiguous(x, **options)

    def empty_file(tensors: Any, path: str | Path, *_: Any, **__: Any) -> None:
        Path(path).touch()

    torch.Tensor.contiguous = layout  # type: ignore[method-assign,assignment]
    torch.zeros = lambda *size, **options: (torch.empty if options.get("pin_memory") else zeros)(*size, **options)
    torch.Tensor.pin_memory = lambda x, device=None: torch.empty_like(x, pin_memory=True)  # type: ignore[method-assign]
    torch._foreach_lerp_ = lambda a, b, w: None if a[0].device.type == "cpu" else lerp(a, b, w)
    import safetensors.torch
    import transformers.modeling_utils

    from sidlsg.runs import checkpoints
    from sidlsg.teachers import student

    safetensors.torch.save_file = checkpoints.save_file = empty_file  # type: ignore[assignment]
    checkpoints.content_sha256 = lambda group: ""  # of 16 GiB that nothing was written to
    transformers.modeling_utils.safe_save_file = empty_file
    student.name_text_weights = lambda path: None  # type: ignore[assignment]
    student.read_back = lambda written, parts, folder: None  # type: ignore[assignment]


class NoKernel:
    """Stands in for a compiled Triton kernel."""

    def run(self, *_: Any, **__: Any) -> None:
        return None


def without_kernels() -> None:
    """inductor lowers, fuses, plans buffers and writes code as for a GPU; no Triton kernel is compiled, as none would run."""
    from torch._inductor.async_compile import AsyncCompile

    AsyncCompile.triton = lambda self, *_, **__: NoKernel()  # type: ignore[method-assign,assignment]
    torch._inductor.config.compile_threads = 1


def pass_checks(engine: Engine, peaks: Peaks) -> None:
    """Run the pre-flight check as it is, with its norms computed and then replaced by what an honest device would give. What it
    leaves out where memory is short, the gradient through plain attention, is a phase of its own."""
    norm, plain, honest = preflight.norm, preflight.plain_attention, iter((0.0, 1.0, 0.0))

    def stand_in(gradient: Any) -> float:
        norm(gradient)
        return next(honest)

    @contextmanager
    def entered(network: Any) -> Iterator[None]:
        peaks.note("pre-flight")
        with plain(network):
            yield

    preflight.norm, preflight.plain_attention = stand_in, entered
    try:
        with peaks.phase("plain attention"):
            preflight.preflight(engine, "a cat")
    finally:
        preflight.norm, preflight.plain_attention = norm, plain


def make_tracker(config: Config, device: torch.device) -> Tracker:
    """Scores a batch of pictures, by networks of random weights and without a reference."""
    config = replace(config, eval_images=scorer.BATCH, eval_reference="none")
    with (
        scorer.random_weights(device),
        patch.multiple(
            tracking,
            find_weights=lambda name: name,
            file_sha256=lambda path: "0" * 64,
            PromptFile=lambda path: [f"a cat {i}" for i in range(scorer.BATCH)],
            load_reference=lambda *_: SimpleNamespace(moments=SimpleNamespace(count=0), names=""),
        ),
    ):
        return Tracker(config, device, Processes())


def score(engine: Engine, tracker: Tracker) -> None:
    """As ``Trainer.track`` does, but for what is computed on the CPU from features, which have no values."""

    def captions_only(encoded: Any, reference: Any, captions: list[str], pairs: Any) -> dict[str, float]:
        tracker.scorer.encode_captions(captions)
        return {}

    with patch.object(tracker.scorer, "score", captions_only):
        tracker(lambda z, prompts: draw_pictures(engine, z, prompts), engine.drawing, engine.teacher.latent_shape)


def step_without_values(scheduler: Any, eps: Tensor, t: Tensor, x_t: Tensor, **_: Any) -> tuple[Tensor]:
    """For DDIM's step, which reads its timestep from the GPU, where nothing has a value."""
    return (x_t + eps,)


def first_rounds(batch: Batch, count: int) -> Batch:
    """The first ``count`` samples as views, which keep the whole batch's memory."""
    return next(Batch(z, c, t, eps) for z, c, t, eps in batch.split(count))


def take(engine: Engine, config: Config) -> Config:
    """Let an engine that is there follow another strategy; the configuration."""
    engine.config, engine.nets = config, replace(engine.nets, guidance=config.guidance)
    return config


def run(preset: str, strategies: list[str], settings: dict[str, Any], arch: str | None = None) -> dict[str, Any]:
    config = make_config(preset, settings)
    device = torch.device("cuda", 0)
    tracker = make_tracker(config, device) if config.eval_every else None
    engine = Engine.build(config, build_model(arch or config.teacher, device, stored_dtype(config)), device)
    share = config.batch // config.processes
    rounds = min(2 * lcm(*config.micro_batches), share)
    prompts = ["a cat"] * share
    found: dict[str, Peaks] = {}
    for strategy in strategies:
        take(engine, make_config(preset, settings | {"strategy": strategy}))
        found[strategy] = peaks = Peaks()
        pass_checks(engine, peaks)
    if config.compile:
        engine.compile()
    for strategy, peaks in found.items():
        config = take(engine, make_config(preset, settings | {"strategy": strategy}))
        for watch in (False, True):  # the first time, compilation and caches wait
            drawn = [engine.draw(update, 0, prompts) for update in (draws.FAKE_SCORE, draws.GENERATOR)]
            with peaks.phase("draws", watch):
                psi, theta = map(engine.send, drawn)
            fake, micro = config.micro_batches
            with peaks.phase("fake score", watch):
                update_fake_score(engine.nets, engine.psi, first_rounds(psi, rounds), fake)
            with peaks.phase("generator", watch):
                update_generator(engine.nets, engine.theta, first_rounds(theta, rounds), micro)
            with peaks.phase("average"):
                if engine.ema:
                    engine.ema.update(0.9)
            del psi, theta
        with tempfile.TemporaryDirectory() as folder:
            with peaks.phase("grid"):
                draw_grid(engine, ["a cat"] * config.micro_batch, 0, Path(folder, "grid.png"))
            with peaks.phase("teacher's grid"), patch.object(DDIMScheduler, "step", step_without_values):
                draw_teacher_grid(engine, ["a cat"] * config.micro_batch, Path(folder, "teacher.png"))
            if tracker:
                with peaks.phase("scoring"):
                    score(engine, tracker)
            with peaks.phase("saving"):
                engine.finite()
                Checkpoints(Path(folder)).save(0, engine.state(), {})
            with peaks.phase("student"):
                write_student(engine, Path(folder, "student"), 0, "")
    return {
        "gpu": torch.cuda.get_device_name(),
        "preset": preset,
        "settings": settings,
        "attention": engine.attention,
        "reserved": torch.cuda.max_memory_reserved() / 2**30,
        "between": torch.cuda.memory_allocated() / 2**30,
        "strategies": {
            name: {"allocated": p.allocated, "refused": p.refused, "waits": p.waits} for name, p in found.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("preset")
    parser.add_argument("--arch")
    parser.add_argument("--strategy", action="append", default=[])
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    spare_the_host()
    without_kernels()
    row = run(options.preset, options.strategy, gather(options.set, {}), options.arch)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
