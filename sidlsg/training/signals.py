"""Stopping a run between two micro-batches instead of in the middle of one."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from torch import Tensor

from sidlsg.method.algorithm import Batch
from sidlsg.method.condition import Condition

AGAIN = 2.0  # seconds between two Ctrl-C that are a person's, not a supervisor's copies of one


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
    """Inside the block Ctrl-C, SIGTERM and SIGHUP (of a closed terminal) set the event. A Ctrl-C at least ``AGAIN`` seconds after
    the first one interrupts at once; every other repetition is ignored, since supervisors (Slurm, systemd, a terminal) signal
    torchrun and its workers, and torchrun passes on what it gets."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: float | None = None  # the time of the first Ctrl-C

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if number == signal.SIGINT:
            now = time.monotonic()
            if first is not None and now - first >= AGAIN:
                raise KeyboardInterrupt
            first = now if first is None else first
        if event.is_set():
            return
        event.set()
        with suppress(OSError):  # a terminal that is gone
            print(
                f"\nstopping and saving (another Ctrl-C, after {AGAIN:g} seconds, stops at once)",
                file=sys.stderr,
                flush=True,
            )

    wanted = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
        wanted.append(signal.SIGHUP)
    previous = {s: signal.signal(s, ask) for s in wanted}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
