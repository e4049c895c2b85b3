"""The host's work for the next iteration, done while the device works on this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """``make(place)`` for one place of a run after the other, in a thread of its own: for the next place while the caller works
    with what it took. What ``make`` raises, ``take`` raises."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._coming: dict[int, Future[T]] = {}

    def take(self, place: int, following: int | None) -> T:
        """What ``make`` gives for ``place``; from now on the thread makes what ``following`` needs (None: nothing)."""
        here = self._coming.get(place) or self._thread.submit(self._make, place)
        found = here.result()
        self._coming = {} if following is None else {following: self._thread.submit(self._make, following)}
        return found
