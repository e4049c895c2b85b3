"""The loop around Algorithm 1: loading, pre-flight checks, resuming, logging, grids, checkpoints, the student folder.

All progress is one number, the images seen. Every draw is a function of (seed, images seen), so resuming needs nothing but
the weights and the optimiser's state.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from rich.console import Console
from rich.markup import escape

from sidlsg import distributed
from sidlsg.config import FREE_FIELDS, Config
from sidlsg.devices import peak_memory, pick_device
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.method import draws
from sidlsg.method.algorithm import Batch
from sidlsg.prompts import PromptFile
from sidlsg.runs.checkpoints import Checkpoints
from sidlsg.runs.folder import MOVABLE, RunFolder, read_metrics, settled
from sidlsg.teachers.loading import load_model
from sidlsg.terminal import say
from sidlsg.training.engine import Engine, stored_dtype
from sidlsg.training.health import Summary, Window, check, from_numbers, to_numbers
from sidlsg.training.outputs import draw_grid, draw_pictures, grid_places, write_student
from sidlsg.training.preflight import preflight
from sidlsg.training.progress import FP16_NOTE, NOTE, RunProgress
from sidlsg.training.signals import stop_signals
from sidlsg.training.tracking import Tracker, draw_curves, due
from sidlsg.version import __version__


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
        teacher = load_model(config.teacher, self.device, stored_dtype(config), teacher=True)
        self.teacher_sha256 = teacher.digests()
        self.check_inputs()
        self.engine = Engine.build(config, teacher, self.device)
        self.order = draws.PromptOrder(len(prompts), config.seed)
        self.window: Window = []  # iterations since the last line of metrics
        if self.processes.main:
            folder.claim(config)
        distributed.barrier()
        if not all(distributed.gather(folder.config.is_file())):
            raise SidlsgError(
                f"not every process sees the run folder {folder.path}; it must be on a disk that all of them share"
            )

    def check_inputs(self) -> None:
        """Raise UsageError when teacher or prompts are not those of the run in this folder; say so when they are elsewhere."""
        state = self.folder.recorded()
        if state.get("prompts_sha256", self.prompts.sha256) != self.prompts.sha256:
            raise UsageError(
                f"{self.prompts.path} is not the prompt file this run was started with (its content is another); put the old "
                "one back, or give another --out to start a new run"
            )
        known = state.get("teacher_sha256", self.teacher_sha256)
        if other := [name for name, sha in self.teacher_sha256.items() if known.get(name) != sha]:
            raise UsageError(
                f"the {', '.join(other)} of {self.config.teacher} is not what this run was started with; put the old teacher "
                "back, or give another --out to start a new run"
            )
        if state:
            old, new = self.folder.load_config().as_dict(), settled(self.config).as_dict()
            for name in MOVABLE:
                if old[name] != new[name]:
                    say(
                        self.console,
                        f"{new[name]} has the content of {old[name]}, which this run was started with",
                        "note: ",
                    )

    # -- state --------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of the state at images_seen; raises SidlsgError, on every process, when it is not finite."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # offloaded state may still be on its way to the CPU
        if not self.engine.finite():
            raise SidlsgError(
                f"the weights are no longer finite at {self.images_seen:,} images, and are not saved. Start again with a smaller "
                f"--lr, or --precision fp32 or bf16, in another --out. {self.kept()}"
            )
        if self.processes.main:
            facts = {
                "adam_steps": self.engine.adam_steps,
                "precision": self.config.precision,
                "prompts_sha256": self.prompts.sha256,
                "teacher_sha256": self.teacher_sha256,
                "window": to_numbers(self.window),
                "sidlsg": __version__,
            }
            self.checkpoints.save(self.images_seen, self.engine.state(), facts)
        distributed.barrier()

    def resume(self) -> bool:
        """Load the newest readable checkpoint; False when there is none."""
        loaded = self.checkpoints.load_latest(("prompts_sha256", "adam_steps"))
        if loaded is None:
            return False
        tensors, state, warnings = loaded
        for warning in warnings:
            self.console.print(f"[yellow]warning:[/] {escape(warning)}; going on from the one before", highlight=False)
        different = self.engine.load_state(tensors, state["adam_steps"])
        if different:
            raise SidlsgError(
                f"the checkpoints in {self.checkpoints.folder} are of another model ({different} differs)"
            )
        self.images_seen = state["images_seen"]
        self.window = from_numbers(state.get("window", []), self.device)
        if self.processes.main:
            self.folder.cut_metrics(self.images_seen)
        return True

    def agree(self) -> None:
        """Raise SidlsgError, on every process, when the processes would not train the same run from the same place."""
        settings = {name: value for name, value in self.config.as_dict().items() if name not in FREE_FIELDS}
        facts = {
            "images seen": self.images_seen,
            "settings": settings,
            "micro-batches": self.config.micro_batches,
            "prompts": self.prompts.sha256,
            "teacher": self.teacher_sha256,
            "version": __version__,
        }
        if different := distributed.agree(facts):
            raise SidlsgError(
                f"the processes do not agree on: {', '.join(different)}. All of them need the same run folder on a shared disk, "
                "the same files, and the same version of sidlsg"
            )

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to ``config.images``, then write the student. Raises Stopped on Ctrl-C, SidlsgError on divergence, UsageError
        when another process trains in this folder."""
        with self.folder.locked() if self.processes.main else nullcontext():
            self._run()

    def _run(self) -> None:
        config = self.config
        resumed = self.resume()
        self.agree()
        if resumed:
            self.console.print(f"resuming at {self.images_seen:,} images", highlight=False)
        else:
            if self.processes.main:
                if self.folder.begun:
                    self.console.print(
                        f"[yellow]note:[/] there is no checkpoint in {escape(str(self.checkpoints.folder))}: the run that was "
                        "here before starts again from 0 images",
                        highlight=False,
                    )
                self.folder.cut_metrics(-1)  # of a run that ended before its first checkpoint
            self.console.print(preflight(self.engine, self.prompts[0]), highlight=False)
            self.grid()
            self.track(-1)
        for text in self.tracker.warnings if self.tracker else []:
            self.console.print(f"[yellow]note:[/] scores while training: {escape(text)}", highlight=False)
        if config.compile:
            self.engine.compile()
        grids = grid_places(config.images, config.batch)
        begun, logged, saved = time.monotonic(), self.images_seen, time.monotonic()
        self.console.print(NOTE, highlight=False, style="dim")
        if config.precision == "fp16":
            self.console.print(f"[yellow]warning:[/] {FP16_NOTE}", highlight=False)
        with RunProgress(self.console, config.images, self.images_seen) as progress, stop_signals() as stop:
            while self.images_seen < config.images:
                before = self.images_seen
                self.iterate()
                crossed, last = _crossed(before, self.images_seen), self.images_seen >= config.images
                if progress.due():
                    psi, theta = self.window[-1]
                    progress.update(self.images_seen, psi.loss.item(), theta.loss.item(), peak_memory(self.device))
                if crossed(config.log_every) or last:
                    seconds = time.monotonic() - begun
                    self.log(self.check(), (self.images_seen - logged) / seconds)
                    self.window, begun, logged = [], time.monotonic(), self.images_seen
                if any(before < at <= self.images_seen for at in grids):
                    self.grid()
                begun += self.track(before)
                late = (
                    config.checkpoint_minutes is not None and time.monotonic() - saved >= 60 * config.checkpoint_minutes
                )
                stopping, late = distributed.any_process(stop.is_set(), late)
                if crossed(config.checkpoint_every) or late or stopping or last:
                    if self.window:
                        self.check()  # a checkpoint of a diverged run would only hide the good one before
                    self.save()
                    saved = time.monotonic()
                if stopping and not last:
                    raise Stopped(f"stopped at {self.images_seen:,} images; run the same command again to go on")
        if self.processes.main:
            write_student(self.engine, self.folder.student, self.images_seen, self.prompts.sha256)

    def iterate(self) -> None:
        """One iteration of Algorithm 1 with its average; its statistics join the window."""
        batches = (self.draw(draws.FAKE_SCORE), self.draw(draws.GENERATOR))
        self.window.append(self.engine.iterate(batches, self.images_seen))
        self.images_seen += self.config.batch

    def draw(self, update: int) -> Batch:
        """This process's slice of one update's draws. Prompts of both updates come from one stream, psi's first."""
        batch = self.config.batch
        count = batch // self.processes.world
        offset = self.processes.rank * count
        position = 2 * self.images_seen + (batch if update == draws.GENERATOR else 0)
        prompts = [self.prompts[i] for i in self.order(position + offset, count)]
        return self.engine.draw(update, self.images_seen + offset, prompts)

    def check(self) -> Summary:
        """The window's summary; raises SidlsgError when the run is no longer sane."""
        return check(self.window, self.config, self.images_seen, self.kept())

    def kept(self) -> str:
        """What is left of a run that went wrong."""
        last = self.checkpoints.complete()
        return f"The last checkpoint before, {last[-1]}, is kept." if last else "No checkpoint had been written yet."

    def log(self, found: Summary, rate: float) -> None:
        """Append a line to metrics.jsonl."""
        if not self.processes.main:
            return
        line = {
            "images_seen": self.images_seen,
            **found.as_line(),
            "images_per_second": round(rate, 3),
            "peak_gib": round(peak_memory(self.device), 3),
        }
        with self.folder.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def grid(self) -> None:
        """Draw the fixed prompts to samples/<images seen>.png."""
        if self.processes.main:
            path = self.folder.samples / f"{self.images_seen:012d}.png"
            draw_grid(self.engine, self.grid_prompts, self.images_seen, path)

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
        with self.engine.averaged():
            scores = tracker(
                lambda z, prompts: draw_pictures(self.engine, z, prompts), self.engine.teacher.latent_shape
            )
        if self.processes.main:
            earlier = read_metrics(self.folder.scores) if self.folder.scores.is_file() else []
            line = {"images_seen": self.images_seen} | tracker.about | scores
            with self.folder.scores.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            draw_curves([*earlier, line], self.folder.curves, tracker.protocol.distance)
            shown = "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
            self.console.print(f"{self.images_seen:,} images: {shown}", highlight=False, soft_wrap=True)
            if before >= 0 and all(scores[tracker.key] < old[tracker.key] for old in earlier if old["images_seen"] > 0):
                write_student(self.engine, self.folder.best, self.images_seen, self.prompts.sha256, scores)
        return time.monotonic() - begun


def _crossed(before: int, after: int) -> Callable[[int], bool]:
    """Whether a multiple of ``every`` lies in (before, after]."""
    return lambda every: after // every > before // every
