"""Presets x strategies on the null GPU, beside the plan.

``python -m nullgpu.matrix [--compiled] [--strategy NAME ...] [PRESET ...]``, run in ``tests/``, prints the table of
docs/performance.md: every preset with LSG. A preset takes under a minute (SDXL three), compiled ten or more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullgpu.build import build
from nullgpu.cards import environment
from sidlsg.planning.footprint import footprints
from sidlsg.planning.memory import phases
from sidlsg.settings import make_config, preset_names

STRATEGIES = ("long", "short", "lsg-simple", "lsg")
SCORING = {"eval_every": 512, "eval_protocol": "gigagan"}
ROOMY = 300.0  # GiB, where numbers are wanted whether they fit or not
# What the plan calls the phases that run.py notes.
PHASES = {
    "pre-flight": "pre-flight",
    "the fake score's update": "fake score",
    "the generator's update": "generator",
    "drawing a grid": "grid",
    "scoring": "scoring",
    "saving": "saving",
    "writing the student": "student",
}


@dataclass(frozen=True)
class Cell:
    """One phase of one preset and strategy: GiB by the plan and by PyTorch's allocator."""

    gpu: str
    preset: str
    strategy: str
    phase: str
    plan: float
    allocated: float

    @property
    def off(self) -> float:
        return self.plan / self.allocated - 1

    def __str__(self) -> str:
        where = f"{self.preset}, {self.strategy}, {self.phase} on {self.gpu}"
        return f"{where}: plan {self.plan:.2f} GiB, allocated {self.allocated:.2f} ({self.off:+.1%})"


def python(folder: Path, gpu: str, *arguments: str, memory: float | None = None) -> str:
    """What Python prints on the null GPU; raises subprocess.CalledProcessError when it fails."""
    command = [sys.executable, *arguments]
    env = environment(folder, gpu, memory)
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def run(
    folder: Path, preset: str, strategies: Sequence[str], settings: dict[str, Any], on_its_own_gpu: bool = False
) -> dict[str, Any]:
    """What ``run.py`` found of a preset, on a card of its own size or of one that everything fits."""
    options = [f"--strategy={name}" for name in strategies]
    options += [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    memory = None if on_its_own_gpu else ROOMY
    shown = python(folder, str(make_config(preset, {}).gpu), "-m", "nullgpu.run", preset, *options, memory=memory)
    return json.loads(shown.splitlines()[-1])


def cells(found: dict[str, Any]) -> list[Cell]:
    """Every phase that the plan foresees, beside what was allocated in it."""
    rows = []
    for strategy, row in found["strategies"].items():
        config = make_config(found["preset"], found["settings"] | {"strategy": strategy})
        for phase in phases(config, footprints()[config.teacher]):
            allocated = row["allocated"][PHASES[phase.name]]
            rows.append(Cell(found["gpu"], found["preset"], strategy, phase.name, phase.total, allocated))
    return rows


def line(rows: list[Cell]) -> str:
    """A row of the table: plan / allocated of each phase, and the largest difference."""
    worst = max((cell.off for cell in rows), key=abs)
    texts = [f"`{rows[0].preset}`", rows[0].strategy, *(f"{cell.plan:.1f} / {cell.allocated:.1f}" for cell in rows)]
    return f"| {' | '.join(texts)} | {worst:+.1%} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("preset", nargs="*", default=[name for name in preset_names() if make_config(name, {}).gpu])
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--strategy", action="append", choices=STRATEGIES)
    options = parser.parse_args()
    print("PyTorch's allocator on a null GPU; no measurement. GiB, plan / allocated.\n")
    print(f"| preset | strategy | {' | '.join(PHASES.values())} | largest difference |\n|{'---|' * (len(PHASES) + 3)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build(folder)
        for preset in options.preset:
            found = cells(run(folder, preset, options.strategy or ["lsg"], {"compile": options.compiled} | SCORING))
            for first in range(0, len(found), len(PHASES)):
                print(line(found[first : first + len(PHASES)]), flush=True)


if __name__ == "__main__":
    main()
