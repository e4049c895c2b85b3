"""What is due in a run, by images seen and by the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Due:
    """What is due after an iteration that began at ``before`` images seen and ended at ``after``."""

    before: int
    after: int

    def every(self, count: int) -> bool:
        """Whether a multiple of ``count`` lies in (before, after]."""
        return self.after // count > self.before // count

    def any_of(self, places: Iterable[int]) -> bool:
        """Whether one of ``places`` does."""
        return any(self.before < place <= self.after for place in places)


class Clock:
    """What is due every ``seconds``, counted from the last ``restart``."""

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds = seconds
        self.restart()

    def restart(self) -> None:
        self._begun = time.monotonic()

    @property
    def passed(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self._begun

    @property
    def due(self) -> bool:
        return self.passed >= self.seconds

    @contextmanager
    def halted(self) -> Iterator[None]:
        """The time inside the block does not count."""
        passed = self.passed
        try:
            yield
        finally:
            self._begun = time.monotonic() - passed
