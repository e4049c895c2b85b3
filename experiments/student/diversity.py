"""Whether other noise gives another picture: the spread over seeds of one prompt's pictures, as a share of the teacher's.

    python experiments/student/diversity.py emoji-student runs/emoji-cpu-lsg-2     # run folders, students, aliases

For each of the sixteen prompts of the sample grids, sixteen seeds: the variance of the judge's features over the seeds, summed.
The mean over the prompts is divided by that of the teacher with 25 steps at CFG 2: 1 is the teacher's diversity, 0 is one picture
a prompt. The benchmark's recall does not see this: its 1,024 pictures have a caption each.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from sidlsg.data import ASSETS
from sidlsg.evaluation.protocol import get_protocol
from sidlsg.evaluation.scorer import Scorer
from sidlsg.prompts import PromptFile
from sidlsg.runs.opening import open_model
from sidlsg.sampling.draw import draw

CPU = torch.device("cpu")
SEEDS = 16


def spread(scorer: Scorer, name: str, guidance: float | None = None) -> float:
    """The variance of the features [prompts, seeds, D] over the seeds, summed over D, averaged over the prompts."""
    prompts = list(PromptFile(ASSETS / "emoji-grid.txt"))
    model = open_model(name, CPU, torch.float32)
    options = {} if model.student else {"steps": 25, "guidance": guidance}
    pictures = list(
        draw(model, [p for p in prompts for _ in range(SEEDS)], [*range(SEEDS)] * len(prompts), batch=64, **options)
    )
    features = scorer.encode(pictures, features=True, clip=False).features
    return float(features.unflatten(0, (len(prompts), SEEDS)).var(1).sum(-1).mean())


def diversities(names: Sequence[str]) -> dict[str, float]:
    """The diversity of each of these students (run folders, students, aliases), and of the teacher at three scales."""
    scorer = Scorer(get_protocol("embedded"), CPU, ("fid",))
    teachers = {f"emoji, CFG {guidance:g}": spread(scorer, "emoji", guidance) for guidance in (1.0, 2.0, 3.0)}
    whole = teachers["emoji, CFG 2"]
    return {name: value / whole for name, value in (teachers | {n: spread(scorer, n) for n in names}).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    for name, value in diversities(parser.parse_args().models).items():
        print(f"{name}: {value:.2f}")


if __name__ == "__main__":
    main()
