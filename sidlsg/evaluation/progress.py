"""The progress bars and messages of a running evaluation."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sidlsg.terminal import say


class Bars:
    """Named progress bars; where the output is no terminal, one line for each.

    ``bars(name, total)`` adds a bar and returns the function that advances it by a count.
    """

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.console = console
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)

    def __enter__(self) -> Bars:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, name: str, total: int) -> Any:
        if not self.console.is_terminal:
            self.stage(f"{name}: {total:,}")
        task = self.bar.add_task(name, total=total)
        return lambda count: self.bar.advance(task, count)

    def stage(self, text: str) -> None:
        say(self.console, text)

    def warn(self, text: str) -> None:
        say(self.console, text, "warning: ")
