"""The bands into which the range of t is divided, for statistics by t and their labels. No torch in here."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

BANDS = 4

Times = TypeVar("Times", int, "Tensor")


def band_of(t: Times, t_range: tuple[int, int]) -> Times:
    """The band 0 ... BANDS - 1 of each t of the range (first, last): bands of equal width, as far as integers allow."""
    first, last = t_range
    return (t - first) * BANDS // (last - first + 1)


def band_edges(t_range: tuple[int, int]) -> list[int]:
    """The first t of each band, and last the t after the range: band i holds edges[i] ... edges[i + 1] - 1, low t first."""
    first, last = t_range
    return [first - (-i * (last - first + 1) // BANDS) for i in range(BANDS + 1)]
