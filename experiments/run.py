"""The runs of a plan: distillations of the embedded teacher, and evaluations. Resumes where it stopped.

    python experiments/run.py claims            # those of experiments/claims/plan.yaml; hours on two idle cores
    python experiments/run.py claims --jobs 2   # two at a time, a core each: on two cores that is a fifth faster
    python experiments/run.py student batch-16  # only this run of experiments/student/plan.yaml

Runs go to ``runs/<plan>/seed-<s>/<name>``, evaluations to ``evals/<plan>/<name>``. What has its scores in ``<plan>/results.json``
is run only with ``--again`` (pictures need the student itself).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pages import HERE, read_plan, read_results


def commands(plan: str, names: list[str], again: bool = False) -> Iterator[tuple[str, list[str]]]:
    """(name, words of the ``sidlsg`` command) of every run that is asked for and not finished."""
    found, known = read_plan(plan), {} if again else read_results(plan)
    students, evaluated = found["students"], found.get("teachers", {})
    runs = [
        (
            name,
            "distill",
            f"runs/{plan}/seed-{seed}/{name}",
            {"seed": seed} | students["common"] | options,
            str(seed) in known.get("students", {}).get(name, {}),
        )
        for seed in found["seeds"]
        for name, options in students.items()
        if name != "common" and (seed == found["seeds"][0] or name in found.get("repeated", students))
    ] + [
        (name, "eval", f"evals/{plan}/{name}", evaluated["common"] | options, name in known.get("teachers", {}))
        for name, options in evaluated.items()
        if name != "common"
    ]
    for name, verb, out, options, scored in runs:
        finished = scored or (Path(out) / ("student" if verb == "distill" else "results.json")).exists()
        if not finished and (not names or name in names):
            words = [sys.executable, *program(options.pop("program", None), plan, verb), "--out", out]
            for key, value in options.items():  # what is no option of the command is a setting
                words += [f"--set={key}={json.dumps(value)}"] if "_" in key else [f"--{key}", str(value)]
            yield name, words


def program(script: str | None, plan: str, verb: str) -> list[str]:
    """The ``sidlsg`` command, or a script of the plan's folder (with its first words) that stands in for it."""
    if script is None:
        return ["-m", "sidlsg", verb]
    name, *rest = script.split()
    return [str(HERE / plan / name), *rest]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", choices=sorted(path.parent.name for path in HERE.glob("*/plan.yaml")))
    parser.add_argument("names", nargs="*", help="only these runs")
    parser.add_argument("--again", action="store_true", help="also what results.json holds already")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    options = parser.parse_args()
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if options.jobs > 1 else {})

    def run(name: str, words: list[str]) -> None:
        begun = time.monotonic()
        print("$", *words[1:], flush=True)
        subprocess.run(words, check=True, env=environment)
        print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        started = [pool.submit(run, *todo) for todo in commands(options.plan, options.names, options.again)]
        try:
            for each in started:
                each.result()
        except BaseException:  # a run failed, or Ctrl-C, which reaches the others too: no more begin
            pool.shutdown(cancel_futures=True)
            raise


if __name__ == "__main__":
    main()
