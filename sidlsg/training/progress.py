"""The progress of a run: a rich progress bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from sidlsg.formats import duration, sparkline
from sidlsg.runs.folder import RunFolder, read_metrics
from sidlsg.runs.scores import DISTANCES, comparable, score
from sidlsg.terminal import say
from sidlsg.training.due import Clock

NOTE = (
    "The generator loss oscillates around zero by design and says nothing about quality. report.html in the run folder shows "
    "what does, and is written anew with every grid of pictures."
)

# With beta1 = 0 an Adam step is about lr x g / sqrt(v), 1e-6. From 0.0039 on, fp16 numbers are at least 3.8e-6 apart and the step
# rounds away: for five in six weights of SD1.5's size (standard deviation 0.02). With bf16 weights it is 98 %.
FP16_NOTE = (
    "pure fp16 is the paper's setting for small cards: most updates of 1e-6 are lost in the rounding of half-precision "
    "weights, and quality levels off early. The bf16 presets keep fp32 weights, in no more memory."
)


class RunConsole(Console):
    """A console for a run of days: when the reader of its output goes away (`| head`, a closed `tee`), it falls silent and the
    run goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # so that Python's own flush at the end finds a file


class Bar(Progress):
    """A bar with lines of text below it, wrapped where the terminal is narrow."""

    text = Text("starting")

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from (self.make_tasks_table(self.tasks), self.text)


class RunProgress:
    """Shows images seen, images/s, time left, losses, memory, the score's course and the latest grid. Use as a context manager.

    ``due`` says whether an update is wanted, so that the caller reads values from the GPU only then.

    Args:
        start: images seen so far (or ``begin`` says it).
        scores: the images seen at which the student is scored, which takes time of its own.
    """

    def __init__(self, console: Console, total: int, start: int, folder: RunFolder, scores: Sequence[int] = ()) -> None:
        self.console, self.total, self.start, self.folder, self.scores = console, total, start, folder, scores
        self.scored: list[float] = []  # seconds of each scoring
        self._running, self._shown = Clock(), Clock(1.0 if console.is_interactive else 5.0)
        self._bar: Bar | None = None
        self._grid = newest_grid(folder)

    def __enter__(self) -> RunProgress:
        if self.console.is_interactive:
            self._bar = Bar(
                BarColumn(), TextColumn("{task.percentage:.0f} %"), console=self.console, refresh_per_second=4
            )
            self._task = self._bar.add_task("", total=self.total, completed=self.start)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            with suppress(OSError):  # a terminal that is gone
                self._bar.stop()

    @property
    def due(self) -> bool:
        return self._shown.due

    @property
    def training(self) -> float:
        """Seconds of training since ``begin``."""
        return self._running.passed

    def begin(self, images_seen: int) -> None:
        """Training begins here and now: what was before does not count for its speed."""
        self.start = images_seen
        self._running.restart()
        if self._bar:
            self._bar.update(self._task, completed=images_seen)

    def status(self, text: str) -> None:
        """Say what is being done that takes a while: below the bar of a terminal, elsewhere as a line."""
        if self._bar:
            self._bar.text = Text(text)
        else:
            with suppress(OSError):  # what reads the output is gone
                say(self.console, text)

    @contextmanager
    def scoring(self, images_seen: int, pictures: int) -> Iterator[Callable[[int], None]]:
        """Training stands still inside the block. Gives what is to be told how many of the ``pictures`` more are drawn."""
        what, drawn, took = f"scoring at {images_seen:,} images", 0, Clock()
        self.status(f"{what}: drawing {pictures:,} pictures")

        def tick(count: int) -> None:
            nonlocal drawn
            drawn += count
            if self._bar:
                self.status(f"{what}: {drawn:,} of {pictures:,} pictures drawn")

        try:
            with self._running.halted():
                yield tick
        finally:
            self.scored.append(took.passed)

    def left(self, images_seen: int) -> float | None:
        """Seconds to the end: of training at its speed so far, and of the scorings that are due at the mean of those so far. None
        before anything is known."""
        done = images_seen - self.start
        if done <= 0:
            return None
        scorings = sum(place > images_seen for place in self.scores)
        mean = sum(self.scored) / len(self.scored) if self.scored else 0.0
        return (self.total - images_seen) * self.training / done + scorings * mean

    def update(self, images_seen: int, loss_fake: float, loss_generator: float, peak_gib: float) -> None:
        """Show how far the run is; losses are summed over C, H, W and averaged over the batch."""
        self._shown.restart()
        rate = (images_seen - self.start) / max(1e-9, self.training)
        left = self.left(images_seen)
        lines = [
            f"{images_seen:,}/{self.total:,} images  {rate:.1f}/s  {'?' if left is None else duration(left)} left  "
            f"{peak_gib:.2f} GiB",
            f"ψ loss {loss_fake:.1f}  θ loss {loss_generator:+.1f}",
        ]
        if course := score_course(self.folder):
            lines.append(course)
        grid, known = newest_grid(self.folder), self._grid
        self._grid = grid
        if self._bar:
            self._bar.update(self._task, completed=images_seen)
            self._bar.text = Text("\n".join([*lines, f"latest pictures: {grid}"] if grid else lines))
            return
        self.console.print("  ".join(lines), highlight=False, soft_wrap=True, markup=False)
        if grid != known:
            self.console.print(f"latest pictures: {grid}", highlight=False, soft_wrap=True, markup=False)


def newest_grid(folder: RunFolder) -> Path | None:
    """The last sample grid that the run has drawn."""
    return max(folder.samples.glob("[0-9]*.png"), default=None)


def score_course(folder: RunFolder) -> str | None:
    """The distance over the run so far as a sparkline, with its last value, of the lines that can be compared with the last one;
    None where nothing is scored."""
    if not folder.scores.is_file():
        return None
    lines = comparable(read_metrics(folder.scores))
    key = next((key for key in DISTANCES if lines and key in lines[-1]), None)
    if key is None:
        return None
    values = [value for line in lines if (value := score(line, key)) is not None]
    return f"{key} {sparkline(values)} {values[-1]:.4g}, best {min(values):.4g}" if values else None
