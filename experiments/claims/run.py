"""The paper's comparisons on the embedded teacher: distil with every guidance strategy, score the teacher's own samplers.

    python experiments/claims/run.py            # three to four hours on two idle cores; resumes where it stopped
    python experiments/claims/report.py         # tables and plots from what is there

Runs go to ``runs/claims/seed-<s>/<name>``, evaluations of the teacher to ``evals/claims/<name>``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

HERE = Path(__file__).parent


def commands(names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(name, words of the ``sidlsg`` command) of every run that is asked for and not finished."""
    plan = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))
    runs = [
        (name, "distill", f"runs/claims/seed-{seed}/{name}", {"seed": seed} | plan["students"]["common"] | options)
        for seed in plan["seeds"]
        for name, options in plan["students"].items()
        if name != "common"
    ] + [
        (name, "eval", f"evals/claims/{name}", plan["teachers"]["common"] | options)
        for name, options in plan["teachers"].items()
        if name != "common"
    ]
    for name, verb, out, options in runs:
        finished = (Path(out) / ("student" if verb == "distill" else "results.json")).exists()
        if not finished and (not names or name in names):
            words = [sys.executable, "-m", "sidlsg", verb, "--out", out]
            yield name, words + [word for key, value in options.items() for word in (f"--{key}", str(value))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these runs")
    for name, words in commands(parser.parse_args().names):
        begun = time.monotonic()
        print("$ sidlsg", *words[3:], flush=True)
        subprocess.run(words, check=True)
        print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
