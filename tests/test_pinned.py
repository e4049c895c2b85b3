"""No redesign moves a run: its first iterations are what ``support/pinned.py`` recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidlsg.method.guidance import STRATEGIES
from support.pinned import CASES, CONFIGURATIONS, RECORD, machine, observe

RECORDED = json.loads(RECORD.read_text(encoding="utf-8"))
NUMBERS = ("loss_fake", "loss_generator", "grad_norm_fake", "grad_norm_generator")


def test_every_configuration_and_strategy_is_recorded() -> None:
    assert {
        (configuration, strategy) for configuration in CONFIGURATIONS for strategy in RECORDED[configuration]
    } == set(CASES)


def test_two_processes_train_what_one_does_to_the_bit() -> None:
    """Recorded so: each of the two takes what is one of the two micro-batches of a single process."""
    for strategy in STRATEGIES:
        one, two = (RECORDED[configuration][strategy] for configuration in ("epsilon", "two processes"))
        assert {name: two[name] for name in (*NUMBERS, "weights")} == {
            name: one[name] for name in (*NUMBERS, "weights")
        }


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_the_first_iterations_are_those_recorded(configuration: str, tmp_path: Path) -> None:
    """To the bit with the recorded torch on the recorded kind of CPU; elsewhere to 1e-5 of the largest of each kind of number:
    other kernels differ by up to 3e-6 (AVX-512 against none, float32)."""
    found, recorded = observe(configuration, tmp_path, list(STRATEGIES)), RECORDED[configuration]
    if machine() == RECORDED["machine"]:
        assert found == recorded
    for strategy in STRATEGIES:
        for name in NUMBERS:
            expected: list[Any] = recorded[strategy][name]
            assert found[strategy][name] == pytest.approx(expected, rel=0, abs=1e-5 * max(map(abs, expected))), strategy
