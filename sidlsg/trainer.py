"""The loop around Algorithm 1: loading, pre-flight checks, resuming, logging, grids, checkpoints, the student folder.

All progress is one number, the images seen. Every draw is a function of (seed, images seen), so resuming needs nothing but
the weights and the optimiser's state.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from sidlsg import __version__, distributed, rng
from sidlsg.checkpoint import Checkpoints
from sidlsg.config import Config
from sidlsg.distill import Batch
from sidlsg.engine import Engine, stored_dtype
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.models import load_model, pick_device
from sidlsg.preflight import preflight
from sidlsg.progress import FP16_NOTE, NOTE, RunProgress
from sidlsg.prompts import PromptFile
from sidlsg.run_folder import RunFolder, read_metrics
from sidlsg.sampler import make_grid, save_png, seed_noise, to_pil
from sidlsg.student import save_student
from sidlsg.track import Tracker, draw_curves, due
from sidlsg.update import Stats

# Figure 2 of the paper: 0, 0.02, 0.1, 0.2, 0.5, 1, 2, 3, 4 and 5 million images of a 5M run.
GRID_SHARES = (0, 0.004, 0.02, 0.04, 0.1, 0.2, 0.4, 0.6, 0.8, 1)


class Stopped(SidlsgError):
    """The user asked the run to stop; everything up to ``images_seen`` is saved."""


class Trainer:
    """One distillation run in one folder. ``run()`` starts or resumes it, and returns when the student is written."""

    def __init__(
        self, config: Config, folder: RunFolder, prompts: PromptFile, grid_prompts: list[str], console: Console
    ) -> None:
        self.config, self.folder, self.prompts, self.grid_prompts = config, folder, prompts, grid_prompts
        self.device = pick_device(config.device, distributed.launched().local_rank)
        self.processes = distributed.start(self.device)
        self.console = console if self.processes.main else Console(quiet=True)
        config.rounds(self.processes.world)
        folder.check(config)
        self.checkpoints = Checkpoints(folder.checkpoints, config.keep_checkpoints)
        self.images_seen = 0
        # Before the networks are loaded: a missing reference or weights file is worth nothing later.
        self.tracker = Tracker(config, self.device, self.processes) if config.eval_every else None
        self._build()
        if self.processes.main:
            folder.claim(config)
        distributed.barrier()

    # -- setting up ---------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        """phi, and psi and theta as copies of it, with their optimisers and the average of theta."""
        config = self.config
        self.teacher = load_model(config.teacher, self.device, stored_dtype(config))
        self.engine = engine = Engine.build(config, self.teacher, self.device)
        self.fake, self.generator, self.nets, self.encode = engine.fake, engine.generator, engine.nets, engine.encode
        self.psi, self.theta, self.ema = engine.psi, engine.theta, engine.ema
        self.order = rng.PromptOrder(len(self.prompts), config.seed)

    def _draw(self, update: int, drop: bool) -> Batch:
        """This process's slice of one update's draws. Prompts of both updates come from one stream, psi's first."""
        config = self.config
        count = config.batch // self.processes.world
        offset = self.processes.rank * count
        draws = rng.draw(
            config.seed, update, self.images_seen + offset, count, self.teacher.latent_shape, config.t_min, config.t_max
        )
        position = 2 * self.images_seen + (config.batch if update == rng.GENERATOR else 0)
        prompts = [self.prompts[i] for i in self.order(position + offset, count)]
        c = self.encode(prompts)
        if drop:
            dropped = (draws.u < config.drop_prompt).to(c.device).view(-1, 1, 1)
            c = torch.where(dropped, self.encode.empty, c)
        z, eps, t = (x.to(self.device, non_blocking=True) for x in (draws.z, draws.eps, draws.t))
        return Batch(z, c, t, eps)

    # -- state --------------------------------------------------------------------------------------------------------

    def _groups(self) -> dict[str, dict[str, Tensor]]:
        """All tensors of the run's state, by file."""
        groups = {
            "fake": dict(self.fake.named_parameters()),
            "generator": dict(self.generator.named_parameters()),
            "fake_adam": {n: self.psi.optimizer.second_moment(p) for n, p in self.fake.named_parameters()},
            "generator_adam": {n: self.theta.optimizer.second_moment(p) for n, p in self.generator.named_parameters()},
        }
        if self.ema:
            groups["ema"] = self.ema.average
        return groups  # type: ignore[return-value]

    def save(self) -> None:
        """Write a checkpoint of the state at images_seen."""
        if self.processes.main:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # offloaded state may still be on its way to the CPU
            steps = {
                "fake": self.psi.optimizer.steps,
                "generator": self.theta.optimizer.steps,
            }
            self.checkpoints.save(
                self.images_seen,
                self._groups(),
                {
                    "adam_steps": steps,
                    "precision": self.config.precision,
                    "prompts_sha256": self.prompts.sha256,
                    "sidlsg": __version__,
                },
            )
        distributed.barrier()

    def resume(self) -> bool:
        """Load the newest readable checkpoint; False when there is none."""
        loaded = self.checkpoints.load_latest()
        if loaded is None:
            return False
        tensors, state, warnings = loaded
        if state["prompts_sha256"] != self.prompts.sha256:
            raise UsageError(
                f"{self.prompts.path} is not the prompt file this run was started with (its content has changed); "
                "put the old one back, or give another --out to start a new run"
            )
        for warning in warnings:
            self.console.print(f"[yellow]warning:[/] {escape(warning)}; going on from the one before", highlight=False)
        with torch.no_grad():
            for name, group in self._groups().items():
                if tensors.get(name, {}).keys() != group.keys():
                    raise SidlsgError(
                        f"the checkpoints in {self.checkpoints.folder} are of another model ({name} differs)"
                    )
                for key, tensor in group.items():
                    tensor.copy_(tensors[name][key])
        self.psi.optimizer.steps = state["adam_steps"]["fake"]
        self.theta.optimizer.steps = state["adam_steps"]["generator"]
        self.images_seen = state["images_seen"]
        if self.processes.main:
            self.folder.cut_metrics(self.images_seen)
        return True

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to ``config.images``, then write the student. Raises Stopped on Ctrl-C, SidlsgError on divergence."""
        config = self.config
        if self.resume():
            self.console.print(f"resuming at {self.images_seen:,} images", highlight=False)
        else:
            if self.processes.main:
                self.folder.cut_metrics(-1)  # of a run that ended before its first checkpoint
            self.console.print(
                preflight(self.nets, config, self.prompts[0], self.encode, self.engine.attention), highlight=False
            )
            self.grid()
            self.track(-1)
        if config.compile:
            self.engine.compile()
        grids = sorted(
            {round(share * config.images / config.batch) * config.batch for share in GRID_SHARES} | {config.images}
        )
        window: list[tuple[Stats, Stats]] = []
        begun, logged = time.monotonic(), self.images_seen
        self.console.print(NOTE, highlight=False, style="dim")
        if config.precision == "fp16":
            self.console.print(f"[yellow]warning:[/] {FP16_NOTE}", highlight=False)
        with (
            RunProgress(self.console, config.images, self.images_seen) as progress,
            _stop_signals() as stop,
        ):
            while self.images_seen < config.images:
                before = self.images_seen
                self.iterate(window)
                crossed = _crossed(before, self.images_seen)
                if progress.due():
                    psi, theta = window[-1]
                    progress.update(self.images_seen, psi.loss.item(), theta.loss.item(), peak_memory(self.device))
                if crossed(config.log_every) or self.images_seen >= config.images:
                    seconds = time.monotonic() - begun
                    self._log(window, (self.images_seen - logged) / seconds)
                    window, begun, logged = [], time.monotonic(), self.images_seen
                if any(before < at <= self.images_seen for at in grids):
                    self.grid()
                begun += self.track(before)
                stopping = distributed.any_process(stop.is_set())
                if crossed(config.checkpoint_every) or stopping or self.images_seen >= config.images:
                    if window:
                        self._check(window)  # a checkpoint of a diverged run would only hide the good one before
                    self.save()
                if stopping and self.images_seen < config.images:
                    raise Stopped(f"stopped at {self.images_seen:,} images; run the same command again to go on")
        self.finish()

    def iterate(self, window: list[tuple[Stats, Stats]]) -> None:
        """One iteration of Algorithm 1 with its average; appends its statistics."""
        config = self.config
        batches = (self._draw(rng.FAKE_SCORE, config.drops_prompts), self._draw(rng.GENERATOR, drop=False))
        window.append(self.engine.iterate(batches, self.images_seen))
        self.images_seen += config.batch

    def _log(self, window: list[tuple[Stats, Stats]], rate: float) -> None:
        """Append a line to metrics.jsonl (means over the window) and check that the run is sane."""
        loss_fake, loss_generator, skipped, mean, std = _means(window)
        if self.processes.main:
            line = {
                "images_seen": self.images_seen,
                "loss_fake": loss_fake,
                "loss_generator": loss_generator,
                "skipped_samples": int(skipped),
                "x_mean": mean,
                "x_std": std,
                "images_per_second": round(rate, 3),
                "peak_gib": round(peak_memory(self.device), 3),
            }
            with self.folder.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self._check(window)

    def _check(self, window: list[tuple[Stats, Stats]]) -> None:
        """Raise SidlsgError when the latents' statistics have left their band, or nothing finite is left."""
        _, _, skipped, mean, std = _means(window)
        low, high = self.config.latent_std
        sane = abs(mean) <= self.config.latent_mean and low <= std <= high
        if not sane or skipped >= 2 * self.config.batch * len(window):
            last = self.checkpoints.complete()
            raise SidlsgError(
                f"the generator has diverged at {self.images_seen:,} images: its latents have mean {mean:.3g} and standard "
                f"deviation {std:.3g} (allowed: ±{self.config.latent_mean:g}, {low:g} to {high:g}), {int(skipped)} samples were "
                f"not finite. Start again with a smaller --lr, or --precision fp32 or bf16, in another --out. "
                + (
                    f"The last checkpoint before, {last[-1]}, is kept."
                    if last
                    else "No checkpoint had been written yet."
                )
            )

    @torch.no_grad()
    def grid(self) -> None:
        """Sample the fixed prompts with fixed noise (picture i has seed i) and write samples/<images seen>.png."""
        if not self.processes.main:
            return
        seeds = range(len(self.grid_prompts))
        z = seed_noise(list(seeds), self.teacher.latent_shape).to(self.device)
        c = self.encode(self.grid_prompts)
        pictures = []
        with self.ema.swapped_in() if self.ema else nullcontext():
            for part_z, part_c in zip(z.split(self.config.micro_batch), c.split(self.config.micro_batch), strict=True):
                pictures += to_pil(self.teacher.decode(self.nets.generator(part_z, part_c)))
        path = self.folder.samples / f"{self.images_seen:012d}.png"
        save_png(make_grid(pictures), path, prompts=" | ".join(self.grid_prompts), images_seen=self.images_seen)

    @torch.no_grad()
    def _draw_pictures(self, z: Tensor, prompts: list[str]) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] of the generator as it is."""
        return self.teacher.decode(self.nets.generator(z.to(self.device), self.encode(prompts)))

    def track(self, before: int) -> float:
        """Score the student when that is due since ``before`` images (-1: the start); returns the seconds it took.

        Appends to scores.jsonl, redraws curves.png and, when the distance is the smallest so far, writes best/.
        """
        config, tracker, begun = self.config, self.tracker, time.monotonic()
        if tracker is None or config.eval_every is None:
            return 0.0
        last = self.images_seen >= config.images
        if not (before < 0 or last or due(before, self.images_seen, config.eval_every, config.batch)):
            return 0.0
        with self.ema.swapped_in() if self.ema else nullcontext():
            scores = tracker(self._draw_pictures, self.teacher.latent_shape)
        if self.processes.main:
            earlier = read_metrics(self.folder.scores) if self.folder.scores.is_file() else []
            line = {"images_seen": self.images_seen, "protocol": tracker.protocol.name} | scores
            with self.folder.scores.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            draw_curves([*earlier, line], self.folder.curves, tracker.protocol.distance)
            shown = "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
            self.console.print(f"{self.images_seen:,} images: {shown}", highlight=False, soft_wrap=True)
            if before >= 0 and all(scores[tracker.key] < old[tracker.key] for old in earlier if old["images_seen"] > 0):
                self._write_student(self.folder.best, scores)
        return time.monotonic() - begun

    def finish(self) -> None:
        """Write student/: the averaged generator (or the last one, without EMA) as a diffusers folder."""
        if self.processes.main:
            self._write_student(self.folder.student)

    def _write_student(self, folder: Path, scores: dict[str, float] | None = None) -> None:
        """The averaged generator as a diffusers folder, with what it is in sidlsg.json."""
        config = self.config
        note = {
            "teacher": self.teacher.source,
            "strategy": config.strategy_name,
            "kappa": list(config.guidance),
            "images_seen": self.images_seen,
            "weights": "ema" if self.ema else "last",
            "precision": config.precision,
            "prompts_sha256": self.prompts.sha256,
            "sidlsg": __version__,
        }
        if scores:
            note["scores"] = scores
        with self.ema.swapped_in() if self.ema else nullcontext():
            save_student(folder, self.teacher, self.generator, config.t_init, note)


def _means(window: list[tuple[Stats, Stats]]) -> list[float]:
    """Over a window of iterations: both losses, samples skipped, mean and standard deviation of x_g. Waits for the GPU."""
    columns = [
        torch.stack([psi.loss for psi, _ in window]).mean(),
        torch.stack([theta.loss for _, theta in window]).mean(),
        torch.stack([psi.skipped + theta.skipped for psi, theta in window]).sum(),
        torch.stack([theta.x_mean for _, theta in window]).mean(),
        torch.stack([theta.x_std for _, theta in window]).mean(),
    ]
    return torch.stack(columns).tolist()


def _crossed(before: int, after: int) -> Any:
    """Whether a multiple of ``every`` lies in (before, after]."""
    return lambda every: after // every > before // every


def peak_memory(device: torch.device) -> float:
    """GiB: peak allocated on a GPU, peak resident size of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """The first Ctrl-C (or SIGTERM) sets the event and lets the iteration end; a second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        print("\nstopping after this iteration (again to stop at once)", file=sys.stderr, flush=True)

    previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
