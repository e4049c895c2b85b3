"""Random draws depend on seed, update and sample index, and on nothing else."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidlsg.method.draws import FAKE_SCORE, GENERATOR, PREFLIGHT, Draws, PromptOrder, draw
from sidlsg.method.times import UniformTimes

settings.register_profile("unhurried", deadline=None)  # other work may slow the machine down
settings.load_profile("unhurried")

SHAPE = (4, 2, 3)


def some(first: int = 0, count: int = 8, seed: int = 0, update: int = FAKE_SCORE, shape=SHAPE, t=(20, 979)) -> Draws:
    return draw(seed, update, first, count, shape, UniformTimes(*t))


def same(a: Draws, b: Draws) -> bool:
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def joined(*parts: Draws) -> Draws:
    return Draws(*(torch.cat(tensors) for tensors in zip(*(vars(part).values() for part in parts), strict=True)))


def test_two_halves_are_the_whole() -> None:
    assert same(some(0, 8), joined(some(0, 4), some(4, 4)))


@given(st.integers(0, 10**12), st.integers(1, 9), st.data())
def test_draws_are_the_same_however_they_are_split(first: int, count: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1)))) if count > 1 else []
    edges = [0, *cuts, count]
    assert same(some(first, count), joined(*(some(first + a, b - a) for a, b in pairwise(edges))))


def test_shapes_and_types() -> None:
    draws = some(count=5)
    assert draws.z.shape == draws.eps.shape == (5, *SHAPE)
    assert (draws.z.dtype, draws.t.dtype, draws.u.dtype) == (torch.float32, torch.int64, torch.float64)


def test_every_seed_update_and_sample_has_its_own_noise() -> None:
    runs = [some(seed=s, update=u) for s in (0, 1, 2**63 - 1) for u in (FAKE_SCORE, GENERATOR, PREFLIGHT)]
    noise = torch.cat([x for run in runs for x in (run.z, run.eps)])
    assert len(noise.flatten(1).unique(dim=0)) == len(noise) == 3 * 3 * 2 * 8


def test_t_covers_exactly_its_range_evenly() -> None:
    t = some(count=3000, shape=(1,), t=(20, 29)).t
    counts = t.bincount()
    assert counts.nonzero().flatten().tolist() == list(range(20, 30))
    assert counts[20:].min() > 220  # 300 expected, standard deviation 16
    assert set(some(count=8, t=(625, 625)).t.tolist()) == {625}


def test_noise_is_standard_normal_and_u_uniform() -> None:
    draws = some(count=2000, shape=(16,))
    n = 32_000
    for x in (draws.z, draws.eps):
        assert abs(x.mean()) < 5 / n**0.5
        assert abs(x.var() - 1) < 5 * (2 / n) ** 0.5
        assert abs(x.pow(4).mean() - 3) < 5 * (96 / n) ** 0.5
    assert abs((draws.z * draws.eps).mean()) < 5 / n**0.5
    assert draws.u.min() >= 0
    assert draws.u.max() < 1
    assert abs(draws.u.mean() - 0.5) < 5 * (1 / 12 / 2000) ** 0.5


@given(st.integers(1, 40), st.integers(0, 2**63 - 1), st.integers(0, 5))
def test_every_epoch_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    assert sorted(PromptOrder(count, seed)(epoch * count, count)) == list(range(count))


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 40)), max_size=6))
def test_any_position_is_found_without_history(count: int, asked: list[tuple[int, int]]) -> None:
    sequential = PromptOrder(count, 7)(0, 240)
    order = PromptOrder(count, 7)  # one object, asked in any order
    for first, length in asked:
        assert order(first, length) == sequential[first : first + length] == PromptOrder(count, 7)(first, length)


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(PromptOrder(50, seed)(epoch * 50, 50)) for seed in range(4) for epoch in range(5)]
    assert len(set(orders)) == 20
