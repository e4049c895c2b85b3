"""Stopping a run at the end of an iteration instead of in its middle."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """The first Ctrl-C (or SIGTERM, or SIGHUP of a closed terminal) sets the event and lets the iteration end; a second one
    interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        with suppress(OSError):  # a terminal that is gone
            print("\nstopping after this iteration (again to stop at once)", file=sys.stderr, flush=True)

    wanted = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
        wanted.append(signal.SIGHUP)
    previous = {s: signal.signal(s, ask) for s in wanted}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
