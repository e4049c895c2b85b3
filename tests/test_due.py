"""What is due in a run, by images seen and by the clock."""

from __future__ import annotations

import pytest

from sidlsg.config import Config
from sidlsg.training import due
from sidlsg.training.due import Clock, Due
from sidlsg.training.tracking import score_places


def test_a_place_belongs_to_the_iteration_that_reaches_it() -> None:
    """Batches of 8 and something every 12 images: due at the end of the iterations that reach 12, 24, 36, 48."""
    assert [n for n in range(8, 49, 8) if Due(n - 8, n).every(12)] == [16, 24, 40, 48]
    assert [n for n in range(8, 49, 8) if Due(n - 8, n).any_of([0, 16, 17])] == [16, 24]


def test_scores_are_due_at_doublings_and_then_at_multiples_and_at_the_end() -> None:
    config = Config(batch=64, micro_batch=1, images=2500, eval_every=640)
    assert score_places(config) == [64, 128, 256, 512, 640, 1280, 1920, 2500]
    assert score_places(Config(batch=512, micro_batch=1, images=1000, eval_every=500)) == [500, 1000]
    assert score_places(Config(images=2500)) == []


def test_the_clock_leaves_out_what_it_is_halted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(due.time, "monotonic", lambda: now)
    clock, never = Clock(10), Clock()
    now += 7
    with clock.halted():
        now += 1000
    assert (clock.passed, clock.due, never.due) == (7, False, False)
    now += 3
    assert clock.due
    clock.restart()
    assert (clock.passed, clock.due) == (0, False)
