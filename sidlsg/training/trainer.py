"""The loop around Algorithm 1: loading, pre-flight checks, resuming, logging, grids, checkpoints, the student folder.

All progress is one number, the images seen. Every draw is a function of (seed, images seen), so resuming needs nothing but
the weights and the optimiser's state.
"""

from __future__ import annotations

import math
import threading
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console

from sidlsg import distributed
from sidlsg.config import Config
from sidlsg.devices import PeakMemory, machine, pick_device
from sidlsg.errors import SidlsgError, Stopped, UsageError, reason
from sidlsg.files import still_missing
from sidlsg.formats import duration
from sidlsg.method import draws
from sidlsg.method.algorithm import Batch
from sidlsg.prompts import PromptFile
from sidlsg.runs.checkpoints import Checkpoints
from sidlsg.runs.folder import MOVABLE, RunFolder, defining
from sidlsg.runs.scores import comparable
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
from sidlsg.training.log import RunLog, now
from sidlsg.training.mirror import Mirror, check_tracker
from sidlsg.training.outputs import Outputs, grid_places, write_student
from sidlsg.training.prefetch import Prefetch
from sidlsg.training.preflight import check_compiler, preflight
from sidlsg.training.progress import FP16_NOTE, NOTE, RunProgress
from sidlsg.training.session import session
from sidlsg.training.signals import Interrupted, StoppableBatch, stop_signals
from sidlsg.training.tracking import Tracker, score_places
from sidlsg.version import __version__

# Settings that may differ between processes: where each finds the same things. All others may decide what they do together.
PLACES = ("device", "gpu", "teacher", "prompts", "grid_prompts", "eval_reference")


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
        if self.processes.main and folder.path.is_dir():
            with folder.locked():  # a second run is refused before anything is loaded
                pass
        self.checkpoints = Checkpoints(folder.checkpoints, config.keep_checkpoints)
        self.images_seen = 0
        self.saved: tuple[int, bool] | None = None  # ``place`` of the newest checkpoint
        self.tried: tuple[int, bool] | None = None  # ... of the last one that was begun
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
        self.memory, self.machine = PeakMemory(self.device), machine(self.device)
        self.order = draws.PromptOrder(len(prompts), config.seed)
        self.drawn = Prefetch(self.draw)
        self.window: Window = []  # iterations since the last line of metrics
        main = self.processes.main
        self.log = RunLog(folder.log if main else None)
        self.outputs = Outputs(self.engine, folder, prompts.sha256, grid_prompts, main, self.say)

    def claim(self) -> None:
        """Make the run folder this run's, and see that every process has it; called while it is locked."""
        lacking = self.folder.claim(self.config) if self.processes.main else []
        if lacking:
            where, what = self.folder.path, ", no ".join(lacking)
            costs = "the run goes on without (docs/reliability.md says what that costs)"
            self.say(f"the file system of {where} has no {what}; {costs}", "note: ")
        distributed.barrier()
        if any(distributed.gather(still_missing([self.folder.config]))):
            raise SidlsgError(
                f"not every process sees the run folder {self.folder.path}; it must be on a disk that all of them share"
            )

    def check_inputs(self, teacher: Model) -> None:
        """Raise UsageError when teacher or prompts are not those of the run in this folder; say so when they are elsewhere."""
        state = self.folder.recorded()
        if self.foreign({"prompts_sha256": state.get("prompts_sha256")}):
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

    def foreign(self, state: dict[str, Any]) -> str | None:
        """What shows that a checkpoint with this state is of another run; None where nothing does."""
        if state.get("prompts_sha256") not in (None, self.prompts.sha256):
            return "it was trained on other prompts"
        mine, settings = defining(self.config), state.get("settings") or {}
        other = [name for name in settings if name in mine and name not in MOVABLE and settings[name] != mine[name]]
        return f"it has another {' and '.join(other)}" if other else None

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
        self.tried = self.place
        if self.window:
            self.check()  # a checkpoint of a diverged run would only hide the good one before
        if not self.finite():
            raise SidlsgError(
                f"the weights are no longer finite at {self.images_seen:,} images, and are not saved. Start again with a smaller "
                f"--lr, or --precision fp32 or bf16, in another --out. {self.kept()}"
            )
        distributed.by_main(self.write_checkpoint, self.processes.main)
        self.saved = self.place

    def finite(self) -> bool:
        """Whether every number of the state is finite; every process asks, and finds the same."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # offloaded state may still be on its way to the CPU
        return self.engine.finite()

    def write_checkpoint(self) -> None:
        facts = {
            "adam_steps": self.engine.adam_steps,
            "ahead": stats_to_numbers(self.engine.ahead) if self.engine.ahead else None,
            "settings": defining(self.config),
            "prompts_sha256": self.prompts.sha256,
            "teacher_sha256": self.teacher_sha256,
            "machine": self.machine,
            "window": to_numbers(self.window),
            "sidlsg": __version__,
        }
        self.checkpoints.save(self.images_seen, self.engine.state(), facts)

    def rescue(self) -> None:
        """Save where the run stands when an error ends it, if that is a place to go on from. No other process is waited for: it
        may be gone."""
        nothing_new = self.place in (self.saved, self.tried, (0, False))
        if nothing_new or not self.processes.main or not self.engine.whole:
            return
        try:
            if self.window:
                self.check()
            if self.finite():
                self.write_checkpoint()
                self.say(f"saved at {self.images_seen:,} images, where an error ends the run", "note: ")
        except SidlsgError:
            pass  # no longer sane: the checkpoint before is the good one
        except Exception as error:
            self.say(f"nothing could be saved at {self.images_seen:,} images: {reason(error)}", "warning: ")

    def resume(self) -> bool:
        """Load the newest readable checkpoint; False when there is none."""
        loaded = self.checkpoints.load_latest(("prompts_sha256", "adam_steps"), self.engine.state(), self.foreign)
        if loaded is None:
            return False
        tensors, state, warnings = loaded
        for warning in warnings:
            self.say(f"{warning}; going on from the one before", "warning: ")
        self.engine.load_state(tensors, state["adam_steps"])
        self.images_seen = state["images_seen"]
        self.engine.ahead = stats_from_numbers(state["ahead"], self.device) if state.get("ahead") else None
        self.saved = self.place
        self.window = from_numbers(state.get("window", []), self.device)
        if self.processes.main:
            self.folder.cut_metrics(self.images_seen)
        return True

    def agree(self) -> None:
        """Raise SidlsgError, on every process, when the processes would not train the same run from the same place."""
        if different := distributed.agree(self.shared()):
            raise SidlsgError(
                f"the processes do not agree on: {', '.join(different)}. All of them need the same run folder on a shared disk, "
                "the same files, and the same version of sidlsg"
            )

    def shared(self) -> dict[str, Any]:
        """What all processes must have in common: what they train, from where, and all that decides what they do together."""
        settings = {name: value for name, value in self.config.as_dict().items() if name not in PLACES}
        return settings | {
            "images seen": self.place,
            "prompts": self.prompts.sha256,
            "teacher": self.teacher_sha256,
            "version": __version__,
        }

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to ``config.images``, then write the student. Raises Stopped on Ctrl-C, SidlsgError on divergence, UsageError
        when another process trains in this folder."""
        config, main = self.config, self.processes.main
        with self.folder.locked() if main else nullcontext():
            self.claim()
            with (
                self.log.session(self.machine, self.processes.world),
                RunProgress(self.console, config.images, 0, self.folder, score_places(config)) as progress,
            ):
                self.distil(progress)

    def distil(self, progress: RunProgress) -> None:
        """From the pre-flight, or the checkpoint, to the student, in a folder that is this run's."""
        resumed = self.begin(progress)
        begun = self.images_seen
        mirrored = self.config if self.processes.main else replace(self.config, tracker="none")
        self.outputs.mirror = Mirror(mirrored, self.folder, begun, self.warn)
        try:
            with (
                closing(self.outputs.mirror),
                session(self.folder, lambda: self.images_seen, self.device, self.processes, self.warn),
            ):
                self.show_place(progress, resumed)
                self.train(progress)
                if self.processes.main:
                    write_student(self.engine, self.folder.student, self.images_seen, self.prompts.sha256)
        finally:
            self.outputs.report()
        scored = f", and {duration(sum(progress.scored))} of scoring" if progress.scored else ""
        self.say(f"{self.images_seen - begun:,} images in {duration(progress.training)} of training{scored}")

    def begin(self, progress: RunProgress) -> bool:
        """Resume, where there is a checkpoint; check the networks first, where this has not been done on this machine. Returns
        whether the run was resumed."""
        checked = [state.get("machine") for state in self.folder.states][-1:]
        if checked != [self.machine]:
            again = " again, since PyTorch, driver or GPU may be others than before" if checked else ""
            progress.status(f"pre-flight: checking networks and attention{again}")
            found = preflight(self.engine, self.prompts[0])  # while psi and theta are copies of phi
            self.say(f"{found}; peak memory {self.memory.read()[0]:.2f} GiB")
        resumed = self.resume()
        self.agree()
        if resumed:
            if self.processes.main:
                for path in self.checkpoints.set_aside():
                    self.say(f"the damaged checkpoint is {path} now, and can be deleted", "note: ")
                self.checkpoints.prune()
            self.say(f"resuming at {self.images_seen:,} images; attention {self.engine.attention}")
        elif self.processes.main:
            if self.folder.begun:
                self.say(
                    f"there is no checkpoint in {self.checkpoints.folder}: the run that was here before starts again from 0 "
                    "images",
                    "note: ",
                )
            self.folder.cut_metrics(-1)  # of a run that ended before its first checkpoint
        for text in self.tracker.warnings if self.tracker else []:
            self.say(f"scores while training: {text}", "note: ")
        self.say(NOTE)
        if self.config.precision == "fp16":
            self.say(FP16_NOTE, "warning: ")
        return resumed

    def warn(self, text: str) -> None:
        self.say(text, "warning: ")

    def say(self, text: str, label: str = "") -> None:
        """Print a line, and put it into log.txt."""
        self.log(label + text)
        with suppress(OSError):  # a terminal that is gone
            say(self.console, text, label)

    def show_place(self, progress: RunProgress, resumed: bool) -> None:
        """Draw and score what is due where the run begins: everything about the untrained generator; on resuming, what the last
        end came before."""
        before = self.images_seen - self.config.batch
        due, first = Due(before, self.images_seen), self.images_seen == 0
        if not resumed:
            self.outputs.teacher_grid()
        drawn = resumed and self.outputs.grid_file(self.images_seen).is_file()
        if due.any_of(self.grids) and not drawn:
            self.grid()
        if self.tracker and (first or due.any_of(score_places(self.config))):
            lines = comparable(self.outputs.scored(), self.tracker.about)
            scored = any(line["images_seen"] == self.images_seen for line in lines)
            (wanted,) = distributed.any_process(self.processes.main and not scored)
            if wanted:
                self.score(progress)

    def train(self, progress: RunProgress) -> None:
        """Iterate to ``config.images``, with all that is due on the way. An error that ends it saves first."""
        if self.config.compile:
            self.engine.compile()
        self.memory.reset()
        progress.begin(self.images_seen)
        with stop_signals(self.stop):
            try:
                self.iterate_to_the_end(progress)
            except Exception:
                self.rescue()
                raise

    def iterate_to_the_end(self, progress: RunProgress) -> None:
        config, scores = self.config, score_places(self.config)
        since_saved = Clock(math.inf if config.checkpoint_minutes is None else 60 * config.checkpoint_minutes)
        since_logged, logged = Clock(), self.images_seen
        while self.images_seen < config.images:
            before = self.images_seen
            try:
                self.iterate()
            except Interrupted:
                self.save()
                raise self.stopped() from None
            due, last = Due(before, self.images_seen), self.images_seen >= config.images
            psi, theta = self.window[-1]
            if due.every(config.log_every) or last:
                self.record(self.check(), (self.images_seen - logged) / since_logged.passed)
                self.window, logged = [], self.images_seen
                since_logged.restart()
            stopping, late = distributed.any_process(self.stop.is_set(), since_saved.due)
            if due.every(config.checkpoint_every) or late or stopping or last:
                self.save()  # before all that may fail, or take long
                since_saved.restart()
            if stopping and not last:
                raise self.stopped()
            if due.any_of(self.grids):
                self.grid()
            if self.tracker and due.any_of(scores):
                with since_logged.halted():
                    self.score(progress)
            if progress.due or last:
                with suppress(OSError):
                    progress.update(self.images_seen, psi.loss.item(), theta.loss.item(), self.memory.read()[0])

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

    def record(self, found: Summary, rate: float) -> None:
        """Append a line to metrics.jsonl."""
        line = {"images_seen": self.images_seen, **found.as_line(), "lr": self.engine.lr}
        line |= {"images_per_second": round(rate, 3), "peak_gib": round(self.memory.read()[0], 3), "time": now()}
        self.outputs.metrics(line)

    @property
    def grids(self) -> list[int]:
        return grid_places(self.config.images, self.config.batch)

    def grid(self) -> None:
        """Draw the fixed prompts, and write the report anew."""
        self.outputs.grid(self.images_seen)
        self.memory.reset()

    def score(self, progress: RunProgress) -> None:
        """Score the student; every process draws a share of the pictures."""
        assert self.tracker is not None
        with progress.scoring(self.images_seen, self.tracker.pictures) as tick:
            self.outputs.score(self.tracker, self.images_seen, lambda count: tick(count * self.processes.world))
        self.memory.reset()
