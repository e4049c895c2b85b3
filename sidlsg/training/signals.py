"""Stopping a run between two micro-batches instead of in the middle of one."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from torch import Tensor

from sidlsg.method.algorithm import Batch
from sidlsg.method.condition import Condition


class Interrupted(Exception):
    """An update was left before its step, because the run is to stop."""


@dataclass
class StoppableBatch(Batch):
    """Draws whose micro-batches end with Interrupted once ``stop`` is set."""

    stop: threading.Event

    def split(self, size: int) -> Iterator[tuple[Tensor, Condition, Tensor, Tensor]]:
        for part in super().split(size):
            if self.stop.is_set():
                raise Interrupted
            yield part


@contextmanager
def stop_signals(event: threading.Event) -> Iterator[None]:
    """Inside the block the first Ctrl-C (or SIGTERM, or SIGHUP of a closed terminal) sets the event; a second one interrupts at
    once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        with suppress(OSError):  # a terminal that is gone
            print("\nstopping and saving (again to stop at once)", file=sys.stderr, flush=True)

    wanted = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
        wanted.append(signal.SIGHUP)
    previous = {s: signal.signal(s, ask) for s in wanted}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
