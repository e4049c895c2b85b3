"""The labels of the bands of t are the bands that the statistics are summed in."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidlsg.method.bands import BANDS, band_edges
from sidlsg.method.statistics import bands


@given(st.integers(0, 999), st.integers(0, 999))
def test_the_edges_are_where_the_statistics_change_bands(a: int, b: int) -> None:
    first, last = min(a, b), max(a, b)
    t = torch.arange(first, last + 1)
    edges = band_edges((first, last))
    assert (edges[0], edges[-1], len(edges)) == (first, last + 1, BANDS + 1)
    inside = [((low <= t) & (t < high)).float() for low, high in pairwise(edges)]
    assert torch.equal(torch.stack(inside, dim=1), bands(t, (first, last)))


@pytest.mark.parametrize(
    ("t_range", "edges"),
    [
        ((20, 979), [20, 260, 500, 740, 980]),
        ((20, 625), [20, 172, 323, 475, 626]),
        ((300, 880), [300, 446, 591, 736, 881]),
    ],
)
def test_edges_of_ranges_that_do_and_do_not_divide(t_range: tuple[int, int], edges: list[int]) -> None:
    assert band_edges(t_range) == edges
