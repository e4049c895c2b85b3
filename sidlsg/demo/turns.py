"""Whose turn it is to draw, when several want to: one at a time, and who types does not wait for a model of many steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Unwanted(Exception):
    """Nobody waits for the pictures any more."""


class Turns:
    """Turns of drawing. Those in haste come before all others, which give way to them between two steps."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.taken = False
        self.hasty = 0  # that wait


class Turn:
    """One's turn, to be held in a ``with`` block.

    Args:
        wanted: asked while waiting and between steps; when it says no, ``Unwanted`` is raised.

    Attributes:
        away: seconds for which others had the turn since it was first held.
    """

    def __init__(self, turns: Turns, hasty: bool, wanted: Callable[[], bool]) -> None:
        self.turns, self.hasty, self.wanted = turns, hasty, wanted
        self.held, self.away = False, 0.0

    def __enter__(self) -> Turn:
        changed = self.turns.changed
        with changed:
            self.turns.hasty += self.hasty
            try:
                while self.turns.taken or (self.turns.hasty and not self.hasty):
                    if not self.wanted():
                        raise Unwanted
                    changed.wait(0.5)  # then ask again whether it is wanted
                self.turns.taken = self.held = True
            finally:
                self.turns.hasty -= self.hasty
        return self

    def __exit__(self, *_: object) -> None:
        with self.turns.changed:
            if self.held:
                self.turns.taken = self.held = False
                self.turns.changed.notify_all()

    def between_steps(self) -> None:
        """Let those in haste go first. Raises Unwanted when the drawing need not go on."""
        if not self.wanted():
            raise Unwanted
        if self.turns.hasty and not self.hasty:
            begun = time.perf_counter()
            self.__exit__()
            self.__enter__()
            self.away += time.perf_counter() - begun
