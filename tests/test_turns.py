"""Who draws when several want to: one at a time, and who types before a model of many steps."""

from __future__ import annotations

import threading

import pytest

from sidlsg.demo.turns import Turn, Turns, Unwanted


def always() -> bool:
    return True


def test_a_drawing_of_many_steps_gives_way_between_them_and_then_goes_on() -> None:
    turns, order, done = Turns(), [], threading.Event()

    def hasty() -> None:
        with Turn(turns, True, always):
            order.append("typed")
        done.set()

    with Turn(turns, False, always) as long:
        order.append("step 1")
        typing = threading.Thread(target=hasty)
        typing.start()
        while not turns.hasty:  # until it waits
            done.wait(0.001)
        long.between_steps()
        assert done.wait(10)
        order.append("step 2")
        assert turns.taken
    typing.join()
    assert order == ["step 1", "typed", "step 2"]
    assert long.away > 0
    assert not turns.taken


def test_in_haste_no_turn_is_given_up() -> None:
    turns = Turns()
    with Turn(turns, True, always) as one:
        turns.hasty += 1  # another one waits
        one.between_steps()
        assert one.held
        turns.hasty -= 1


def test_who_went_away_neither_waits_nor_draws_on_and_takes_nobodys_turn() -> None:
    turns = Turns()
    with Turn(turns, False, always) as held:
        with pytest.raises(Unwanted), Turn(turns, False, lambda: False):
            pytest.fail("drew")
        assert turns.taken
        held.wanted = lambda: False
        with pytest.raises(Unwanted):
            held.between_steps()
    assert not turns.taken


def test_who_goes_away_while_it_gives_way_leaves_the_turn_to_the_other() -> None:
    turns = Turns()
    asked = iter([True, False])
    with Turn(turns, False, lambda: next(asked)) as long:
        turns.hasty = 1  # one that waits, and never comes
        with pytest.raises(Unwanted):
            long.between_steps()
        assert not long.held
        turns.taken = True  # by another one
    assert turns.taken
