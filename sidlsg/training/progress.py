"""The progress of a run: a rich progress bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import os
import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from sidlsg.formats import duration
from sidlsg.training.due import Clock

NOTE = (
    "The generator loss oscillates around zero by design and says nothing about quality: "
    "look at the grids in samples/, and at x_g's mean and standard deviation staying put."
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


class RunProgress:
    """Shows images seen, images/s, time left, both losses and peak memory. Use as a context manager.

    ``due`` says whether an update is wanted, so that the caller reads values from the GPU only then.
    """

    def __init__(self, console: Console, total: int, start: int) -> None:
        self.console, self.total, self.start = console, total, start
        self._running, self._shown = Clock(), Clock(1.0 if console.is_terminal else 5.0)
        self._bar: Progress | None = None

    def __enter__(self) -> RunProgress:
        if self.console.is_terminal:
            columns = (BarColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self.console, refresh_per_second=4)
            self._task = self._bar.add_task("starting", total=self.total, completed=self.start)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def due(self) -> bool:
        return self._shown.due

    def update(self, images_seen: int, loss_fake: float, loss_generator: float, peak_gib: float) -> None:
        """Show one line; losses are summed over C, H, W and averaged over the batch."""
        self._shown.restart()
        rate = (images_seen - self.start) / max(1e-9, self._running.passed)
        left = duration((self.total - images_seen) / rate) if rate > 0 else "?"
        text = (
            f"{images_seen:,}/{self.total:,} images  {rate:.1f}/s  {left} left  "
            f"ψ loss {loss_fake:.1f}  θ loss {loss_generator:+.1f}  {peak_gib:.2f} GiB"
        )
        if self._bar:
            self._bar.update(self._task, completed=images_seen, description=text)
        else:
            self.console.print(text, highlight=False, soft_wrap=True)
