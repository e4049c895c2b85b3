"""The loop around Algorithm 1: loading, pre-flight checks, resuming, logging, grids, checkpoints, the student folder.

All progress is one number, the images seen. Every draw is a function of (seed, images seen), so resuming needs nothing but
the weights and the optimiser's state.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace

import torch
from rich.console import Console

from sidlsg import distributed, report
from sidlsg.config import Config
from sidlsg.devices import PeakMemory, pick_device
from sidlsg.errors import SidlsgError, Stopped, UsageError, sentence
from sidlsg.method import draws
from sidlsg.method.algorithm import Batch
from sidlsg.prompts import PromptFile
from sidlsg.runs.checkpoints import Checkpoints
from sidlsg.runs.folder import MOVABLE, RunFolder, defining, read_metrics
from sidlsg.teachers.family import Model
from sidlsg.teachers.loading import load_model
from sidlsg.terminal import say
from sidlsg.training.due import Clock, Due
from sidlsg.training.engine import Engine, HostBatch, stored_dtype
from sidlsg.training.health import (
    Summary,
    Window,
    check,
    from_numbers,
    stats_from_numbers,
    stats_to_numbers,
    to_numbers,
)
from sidlsg.training.mirror import Mirror, check_tracker
from sidlsg.training.outputs import (
    draw_grid,
    draw_pictures,
    draw_teacher_grid,
    grid_places,
    teacher_grid_is_cheap,
    write_student,
)
from sidlsg.training.prefetch import Prefetch
from sidlsg.training.preflight import check_compiler, preflight
from sidlsg.training.progress import FP16_NOTE, NOTE, RunProgress
from sidlsg.training.signals import Interrupted, StoppableBatch, stop_signals
from sidlsg.training.tracking import Tracker, draw_curves, score_places
from sidlsg.version import __version__


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
        self.saved: tuple[int, bool] | None = None  # ``place`` of the newest checkpoint
        self.stop = threading.Event()
        # Before the networks are loaded: a missing reference or weights file is worth nothing later.
        scored = config.eval_every is not None
        self.tracker = Tracker(config, self.device, self.processes, prompts, self.console) if scored else None
        check_tracker(config.tracker)
        if config.compile:
            check_compiler(self.device)
        teacher = load_model(config.teacher, self.device, stored_dtype(config), teacher=True)
        self.teacher_sha256 = teacher.digests()
        self.check_inputs(teacher)
        self.engine = Engine.build(config, teacher, self.device)
        self.memory = PeakMemory(self.device)
        self.order = draws.PromptOrder(len(prompts), config.seed)
        self.drawn = Prefetch(self.draw)
        self.window: Window = []  # iterations since the last line of metrics
        if self.processes.main:
            folder.claim(config)
        distributed.barrier()
        if not all(distributed.gather(folder.config.is_file())):
            raise SidlsgError(
                f"not every process sees the run folder {folder.path}; it must be on a disk that all of them share"
            )

    def check_inputs(self, teacher: Model) -> None:
        """Raise UsageError when teacher or prompts are not those of the run in this folder; say so when they are elsewhere."""
        state = self.folder.recorded()
        if state.get("prompts_sha256", self.prompts.sha256) != self.prompts.sha256:
            raise UsageError(
                f"{self.prompts.path} is not the prompt file this run was started with (its content is another); put the old "
                "one back, or give another --out to start a new run"
            )
        known = teacher.recognised(state.get("teacher_sha256", self.teacher_sha256), self.teacher_sha256)
        if other := [name for name, sha in self.teacher_sha256.items() if known.get(name) != sha]:
            raise UsageError(
                f"the {', '.join(other)} of {self.config.teacher} is not what this run was started with; put the old teacher "
                "back, or give another --out to start a new run"
            )
        if state:
            old, new = defining(self.folder.load_config()), defining(self.config)
            for name in MOVABLE:
                if old[name] != new[name]:
                    say(
                        self.console,
                        f"{new[name]} has the content of {old[name]}, which this run was started with",
                        "note: ",
                    )

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def place(self) -> tuple[int, bool]:
        """Where the run stands: images seen, and whether psi has taken its step beyond them and theta has not."""
        return self.images_seen, self.engine.ahead is not None

    def save(self) -> None:
        """Write a checkpoint of the state, unless there is one; raises SidlsgError, on every process, when the run is no longer
        sane or the state not finite."""
        if self.saved == self.place:
            return
        if self.window:
            self.check()  # a checkpoint of a diverged run would only hide the good one before
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
                "ahead": stats_to_numbers(self.engine.ahead) if self.engine.ahead else None,
                "settings": defining(self.config),
                "prompts_sha256": self.prompts.sha256,
                "teacher_sha256": self.teacher_sha256,
                "window": to_numbers(self.window),
                "sidlsg": __version__,
            }
            self.checkpoints.save(self.images_seen, self.engine.state(), facts)
        distributed.barrier()
        self.saved = self.place

    def resume(self) -> bool:
        """Load the newest readable checkpoint; False when there is none."""
        loaded = self.checkpoints.load_latest(("prompts_sha256", "adam_steps"))
        if loaded is None:
            return False
        tensors, state, warnings = loaded
        for warning in warnings:
            self.warn(f"{warning}; going on from the one before")
        different = self.engine.load_state(tensors, state["adam_steps"])
        if different:
            raise SidlsgError(
                f"the checkpoints in {self.checkpoints.folder} are of another model ({different} differs)"
            )
        self.images_seen = state["images_seen"]
        self.engine.ahead = stats_from_numbers(state["ahead"], self.device) if state.get("ahead") else None
        self.saved = self.place
        self.window = from_numbers(state.get("window", []), self.device)
        if self.processes.main:
            self.folder.cut_metrics(self.images_seen)
        return True

    def agree(self) -> None:
        """Raise SidlsgError, on every process, when the processes would not train the same run from the same place."""
        facts = {
            "images seen": self.place,
            "settings": defining(self.config),
            "images": self.config.images,
            "lr_decay": self.config.lr_decay,
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
            resumed = self.begin()
            mirrored = self.config if self.processes.main else replace(self.config, tracker="none")
            self.mirror = Mirror(mirrored, self.folder, self.images_seen, self.warn)
            try:
                with closing(self.mirror):
                    if not resumed:
                        self.show_untrained()
                    self.train()
                    if self.processes.main:
                        write_student(self.engine, self.folder.student, self.images_seen, self.prompts.sha256)
            finally:
                self.report()

    def begin(self) -> bool:
        """Resume; or check the networks. Returns whether the run was resumed."""
        resumed = self.resume()
        self.agree()
        if resumed:
            say(self.console, f"resuming at {self.images_seen:,} images; attention {self.engine.attention}")
        else:
            if self.processes.main:
                if self.folder.begun:
                    say(
                        self.console,
                        f"there is no checkpoint in {self.checkpoints.folder}: the run that was here before starts again from 0 "
                        "images",
                        "note: ",
                    )
                self.folder.cut_metrics(-1)  # of a run that ended before its first checkpoint
            found = preflight(self.engine, self.prompts[0])
            say(self.console, f"{found}; peak memory {self.memory.read()[0]:.2f} GiB")
        for text in self.tracker.warnings if self.tracker else []:
            say(self.console, f"scores while training: {text}", "note: ")
        self.console.print(NOTE, highlight=False, style="dim", soft_wrap=True)
        if self.config.precision == "fp16":
            self.warn(FP16_NOTE)
        return resumed

    def warn(self, text: str) -> None:
        say(self.console, text, "warning: ")

    def show_untrained(self) -> None:
        """Draw what the teacher makes of the fixed prompts, where that is cheap, and draw and score the untrained generator."""
        if self.processes.main and teacher_grid_is_cheap(self.config, len(self.grid_prompts)):
            path = self.folder.teacher_grid
            self.spare("the teacher's pictures", lambda: draw_teacher_grid(self.engine, self.grid_prompts, path))
        self.grid()
        self.score(first=True)

    def train(self) -> None:
        """Iterate to ``config.images``, with all that is due on the way."""
        config = self.config
        if config.compile:
            self.engine.compile()
        grids, scores = grid_places(config.images, config.batch), score_places(config)
        since_saved = Clock(math.inf if config.checkpoint_minutes is None else 60 * config.checkpoint_minutes)
        since_logged, logged = Clock(), self.images_seen
        self.memory.reset()
        with (
            RunProgress(self.console, config.images, self.images_seen, self.folder) as progress,
            stop_signals(self.stop),
        ):
            while self.images_seen < config.images:
                before = self.images_seen
                try:
                    self.iterate()
                except Interrupted:
                    self.save()
                    raise self.stopped() from None
                due, last = Due(before, self.images_seen), self.images_seen >= config.images
                if progress.due:
                    psi, theta = self.window[-1]
                    progress.update(self.images_seen, psi.loss.item(), theta.loss.item(), self.memory.read()[0])
                if due.every(config.log_every) or last:
                    self.log(self.check(), (self.images_seen - logged) / since_logged.passed)
                    self.window, logged = [], self.images_seen
                    since_logged.restart()
                if due.any_of(grids):
                    self.grid()
                if due.any_of(scores):
                    with since_logged.halted():
                        self.score()
                stopping, late = distributed.any_process(self.stop.is_set(), since_saved.due)
                if due.every(config.checkpoint_every) or late or stopping or last:
                    self.save()
                    since_saved.restart()
                if stopping and not last:
                    raise self.stopped()

    def stopped(self) -> Stopped:
        return Stopped(f"stopped at {self.images_seen:,} images; run the same command again to go on")

    def iterate(self) -> None:
        """One iteration of Algorithm 1 with its average; its statistics join the window. Meanwhile the next one is drawn.

        Raises Interrupted when a single process is to stop, between two micro-batches. Several processes end the iteration: it is
        shorter, and they would have to agree before every micro-batch.
        """
        following = self.images_seen + self.config.batch
        psi, theta = self.drawn.take(self.images_seen, following if following < self.config.images else None)
        batches = self.stoppable(self.engine.send(psi)), self.stoppable(self.engine.send(theta))
        self.window.append(self.engine.iterate(batches, self.images_seen))
        self.images_seen += self.config.batch

    def stoppable(self, batch: Batch) -> Batch:
        return StoppableBatch(**vars(batch), stop=self.stop) if self.processes.world == 1 else batch

    def draw(self, images_seen: int) -> tuple[HostBatch, HostBatch]:
        """This process's slice of both updates' draws, psi's and theta's. Prompts of both come from one stream, psi's first."""
        batch = self.config.batch
        count = batch // self.processes.world
        offset = self.processes.rank * count

        def drawn(update: int, position: int) -> HostBatch:
            prompts = [self.prompts[i] for i in self.order(position + offset, count)]
            return self.engine.draw(update, images_seen + offset, prompts)

        return drawn(draws.FAKE_SCORE, 2 * images_seen), drawn(draws.GENERATOR, 2 * images_seen + batch)

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
            "peak_gib": round(self.memory.read()[0], 3),
        }
        with self.folder.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.mirror.line(line)

    def spare(self, what: str, work: Callable[[], object]) -> None:
        """Make something that the run can do without: what goes wrong there is said, and the run goes on."""
        try:
            work()
        except Exception as error:
            self.warn(f"the run goes on without {what}: {sentence(error)}")

    def report(self) -> None:
        """Write report.html anew."""
        if self.processes.main:
            self.spare("its report", lambda: report.write(self.folder.path))

    def grid(self) -> None:
        """Draw the fixed prompts to samples/<images seen>.png, and show them in the report."""
        if self.processes.main:
            path = self.folder.samples / f"{self.images_seen:012d}.png"
            draw_grid(self.engine, self.grid_prompts, self.images_seen, path)
            self.mirror.picture(self.images_seen, path)
            self.report()
        self.memory.reset()

    def score(self, first: bool = False) -> None:
        """Score the student, where that is wanted: append to scores.jsonl and redraw curves.png.

        When the distance is the smallest so far, write best/; not at ``first``, when the generator is untrained.
        """
        tracker, folder = self.tracker, self.folder
        if tracker is None:
            return
        scores = tracker(
            lambda z, prompts: draw_pictures(self.engine, z, prompts),
            self.engine.drawing,
            self.engine.teacher.latent_shape,
        )
        if self.processes.main:
            earlier = read_metrics(folder.scores) if folder.scores.is_file() else []
            line = {"images_seen": self.images_seen} | tracker.about | scores
            with folder.scores.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.mirror.line(line)
            draw_curves([*earlier, line], folder.curves, tracker.protocol.distance)
            shown = "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
            say(self.console, f"{self.images_seen:,} images: {shown}")
            if not first and all(scores[tracker.key] < old[tracker.key] for old in earlier if old["images_seen"] > 0):
                write_student(self.engine, folder.best, self.images_seen, self.prompts.sha256, scores)
        self.memory.reset()
