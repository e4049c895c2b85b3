"""Draw the embedded teacher's pictures of the grid prompts, which reports show beside a student's.

python experiments/emoji/make_grid.py            # writes sidlsg/assets/emoji-grid.png; 13 s on one core
"""

from __future__ import annotations

import torch

from sidlsg.prompts import PromptFile
from sidlsg.sampling.draw import draw
from sidlsg.sampling.pictures import save_grid
from sidlsg.teachers.loading import load_model
from sidlsg.teachers.registry import registry


def main() -> None:
    entry = registry()["emoji"]
    assert entry.grid_prompts is not None
    assert entry.grid is not None
    prompts = list(PromptFile(entry.grid_prompts))
    model = load_model("emoji", torch.device("cpu"), torch.float32)
    save_grid(list(draw(model, prompts, range(len(prompts)), batch=16)), prompts, entry.grid)


if __name__ == "__main__":
    main()
