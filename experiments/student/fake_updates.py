"""`sidlsg distill` with several updates of the fake score to one of the generator: an experiment, not a setting.

    python experiments/student/fake_updates.py 3 --images 10240 --out runs/three

The first word is the number of updates, the others are options of `sidlsg distill`.
"""

from __future__ import annotations

import sys

from sidlsg.cli import app
from sidlsg.method.algorithm import update_fake_score
from sidlsg.method.draws import FAKE_SCORE
from sidlsg.training import trainer

# Samples of the extra updates are counted from here, which no run reaches: they share no draw with Algorithm 1's own.
FAR = 10**12


class Trainer(trainer.Trainer):
    """Lines 3-5 of Algorithm 1 ``updates`` times in every iteration."""

    updates = 1

    def iterate(self) -> None:
        engine, batch = self.engine, self.config.batch
        for extra in range(1, self.updates):
            first = extra * FAR + self.images_seen
            prompts = [self.prompts[i] for i in self.order(first, batch)]
            drawn = engine.send(engine.draw(FAKE_SCORE, first, prompts))
            update_fake_score(engine.nets, engine.psi, drawn, self.config.micro_batches[0])
        super().iterate()


if __name__ == "__main__":
    Trainer.updates = int(sys.argv[1])
    trainer.Trainer = Trainer
    app(["distill", *sys.argv[2:]])
