"""The paper's comparisons on the embedded teacher: distil with every guidance strategy, score the teacher's own samplers.

    python experiments/claims/run.py            # about an hour and a quarter on two idle cores; resumes where it stopped
    python experiments/claims/report.py         # tables and plots from what is there

Runs go to ``runs/claims/<name>``, evaluations of the teacher to ``evals/claims/<name>``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import yaml

HERE = Path(__file__).parent


def command(kind: str, name: str, options: dict[str, object], common: dict[str, object]) -> list[str]:
    """The ``sidlsg`` command line of one run."""
    verb, folder = {"students": ("distill", "runs"), "repeats": ("distill", "runs"), "teachers": ("eval", "evals")}[
        kind
    ]
    name = f"repeats/{name}" if kind == "repeats" else name
    words = [sys.executable, "-m", "sidlsg", verb, "--out", f"{folder}/claims/{name}"]
    for key, value in (common | options).items():
        words += [f"--{key}", str(value)]
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these runs")
    args = parser.parse_args()
    plan = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))
    for kind in ("students", "teachers", "repeats"):
        common = plan[kind].pop("common")
        for name, options in plan[kind].items():
            if args.names and name not in args.names:
                continue
            done = Path("evals/claims") / name / "results.json"
            if kind == "teachers" and done.is_file():
                continue
            begun = time.monotonic()
            words = command(kind, name, options, common)
            print("$ sidlsg", *words[3:], flush=True)
            subprocess.run(words, check=True)
            print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
