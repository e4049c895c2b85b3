"""What a supervisor sends twice is asked once; only a person's second Ctrl-C means at once."""

from __future__ import annotations

import signal
import threading

import pytest

from sidlsg.training import signals
from sidlsg.training.signals import stop_signals

INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.mark.parametrize(
    ("sent", "at_once"),
    [
        ([(0, TERM), (0.005, TERM)], False),  # Slurm, systemd and `kill -- -PGID`, through torchrun and directly
        ([(0, TERM), (30, TERM)], False),
        ([(0, INT), (0.01, INT)], False),  # a terminal's Ctrl-C, through torchrun and directly
        ([(0, INT), (1.9, INT)], False),
        ([(0, INT), (2, INT)], True),
        ([(0, INT), (0.01, INT), (2.1, INT)], True),
        ([(0, TERM), (10, INT), (10.01, INT)], False),
        ([(0, INT), (10, TERM)], False),
    ],
)
def test_only_a_second_ctrl_c_two_seconds_later_stops_at_once(
    sent: list[tuple[float, signal.Signals]], at_once: bool, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    now, event = 0.0, threading.Event()
    monkeypatch.setattr(signals.time, "monotonic", lambda: 100 + now)
    before = {number: signal.getsignal(number) for number in (INT, TERM)}

    def send() -> None:
        nonlocal now
        with stop_signals(event):
            for at, number in sent:
                now = at
                signal.raise_signal(number)
                assert event.is_set()

    if at_once:
        with pytest.raises(KeyboardInterrupt):
            send()
    else:
        send()
    assert {number: signal.getsignal(number) for number in (INT, TERM)} == before
    assert capsys.readouterr().err.count("stopping and saving") == 1
