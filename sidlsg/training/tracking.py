"""Scores of the student while it trains: when they are due, how they are computed, and their curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from sidlsg import distributed
from sidlsg.config import Config
from sidlsg.devices import release
from sidlsg.distributed import Processes
from sidlsg.errors import UsageError
from sidlsg.evaluation.comparable import Made, said_of
from sidlsg.evaluation.progress import Bars
from sidlsg.evaluation.protocol import RUN, Protocol, get_protocol
from sidlsg.evaluation.reference import BENCH, Reference, load_reference
from sidlsg.evaluation.scorer import Encoded, Scorer, bench_reference
from sidlsg.evaluation.scoring import encode_folder
from sidlsg.evaluation.teacher_images import chosen_prompts, draw_teacher
from sidlsg.evaluation.weights import find_weights
from sidlsg.files import replacing
from sidlsg.prompts import PromptFile
from sidlsg.sampling.draw import seed_noise
from sidlsg.sampling.pictures import to_pil

CHUNK = 512  # pictures in memory at once


def score_places(config: Config) -> list[int]:
    """The images seen at which scores are due: every multiple of ``eval_every``, before the first each doubling of the batch, so
    that a log-log plot has points from the start, and the end. Empty without ``eval_every``."""
    every = config.eval_every
    if every is None:
        return []
    doublings = [config.batch << n for n in range(every.bit_length()) if config.batch << n < every]
    return [*doublings, *range(every, config.images, every), config.images]


class Tracker:
    """Draws pictures of the protocol's first ``eval_images`` captions (caption i with seed i) and scores them.

    The processes share the drawing and encoding; the main one computes the scores.

    ``warnings`` says why the scores are not comparable with published ones. Raises UsageError or SidlsgError, before the run
    starts, when the reference or a weights file is missing, or ``eval_images`` is more than the protocol has captions.
    """

    def __init__(
        self, config: Config, device: torch.device, processes: Processes, prompts: PromptFile, console: Console
    ) -> None:
        self.protocol: Protocol = get_protocol(config.eval_protocol)
        self.processes, self.batch, self.device = processes, config.micro_batch, device
        self.pictures = config.eval_images
        own = self.protocol.prompts in ("emoji-bench", RUN)
        if config.eval_reference is None and not own:
            raise UsageError(
                f"scoring by the protocol {self.protocol.name} while training needs eval_reference: a file of "
                "`sidlsg eval stats`; without real pictures, use eval_protocol: teacher"
            )
        self.scorer = Scorer(self.protocol, device)
        self.scorer.to(torch.device("cpu"))  # ViT-g-14 alone is 5 GiB, which training needs
        self.captions, self.reference = self.inputs(config, prompts, Bars(console))
        if self.pictures > len(self.captions):
            raise UsageError(
                f"eval_images is {self.pictures:,}, but the protocol {self.protocol.name} has {len(self.captions):,} captions"
            )
        self.warnings = self.deviations() if processes.main else []

    def inputs(self, config: Config, prompts: PromptFile, bars: Bars) -> tuple[list[str], Reference | None]:
        """The captions, and what the images of the student are compared with (which only the main process needs)."""
        if self.protocol.prompts == RUN:
            with bars:
                drawn = draw_teacher(
                    config, prompts, self.pictures, self.device, self.processes, config.micro_batch, bars
                )
                release(self.device)
                captions, reference = chosen_prompts(prompts, self.pictures), None
                if self.processes.main:
                    with self.judging() as scorer:
                        reference = encode_folder(scorer, drawn, bars)
                distributed.barrier()
                return captions, reference
        if self.protocol.prompts == "emoji-bench":
            with self.judging() as scorer:
                return list(PromptFile(BENCH / "captions.txt")), bench_reference(scorer)
        path = find_weights(self.protocol.prompts)
        assert path is not None and config.eval_reference is not None
        reference = load_reference(Path(config.eval_reference), self.protocol, self.scorer.feature_weights)
        return list(PromptFile(path)), reference

    def deviations(self) -> list[str]:
        """In what the scores deviate from those that are published for the protocol."""
        assert self.reference is not None
        count, names = self.reference.moments.count, self.reference.names
        return said_of(self.protocol, Made(self.pictures, {}, count, self.scorer.weights, names))

    @property
    def about(self) -> dict[str, Any]:
        """What stands beside the scores in every line: protocol, number of pictures, and how they deviate from the protocol."""
        return {"protocol": self.protocol.name, "pictures": self.pictures, "warnings": self.warnings}

    @property
    def key(self) -> str:
        """The name of the score that decides which student is best; smaller is better."""
        return self.protocol.distance.lower()

    def __call__(
        self,
        draw: Callable[[Tensor, list[str]], Tensor],
        drawing: Callable[[], AbstractContextManager[None]],
        shape: tuple[int, ...],
    ) -> dict[str, float]:
        """Score a generator. Its networks and those that judge are in turn on the device: what either needs beside the run's
        state need not fit together.

        Args:
            draw: (z [B, C, H, W] on the CPU, B captions) -> images [B, 3, H', W'] in [0, 1].
            drawing: a context in which pictures are drawn, and nothing else is done.
            shape: (C, H, W) of a latent.

        Returns the scores on the main process, an empty dict on the others.
        """
        mine = list(range(self.pictures))[self.processes.rank :: self.processes.world]
        parts = []
        for start in range(0, len(mine), CHUNK):
            pictures = []
            chunk = mine[start : start + CHUNK]
            with drawing():
                for first in range(0, len(chunk), self.batch):
                    seeds = chunk[first : first + self.batch]
                    pictures += to_pil(draw(seed_noise(seeds, shape), [self.captions[i] for i in seeds]))
            with self.judging() as scorer:
                parts.append(scorer.encode(pictures, features=True, clip=True))
        numbers = torch.tensor(mine)
        features, embeddings = torch.cat([p.features for p in parts]), torch.cat([p.embeddings for p in parts])  # type: ignore[misc]
        everything = distributed.gather((numbers, features, embeddings))
        order = torch.cat([part[0] for part in everything]).argsort()
        encoded = Encoded(*(torch.cat([part[i] for part in everything])[order] for i in (1, 2)))
        if not self.processes.main:
            return {}
        with self.judging() as scorer:
            return scorer.score(encoded, self.reference, self.captions, [(i, i) for i in range(self.pictures)])

    @contextmanager
    def judging(self) -> Iterator[Scorer]:
        """The scorer is on the device inside the block, and on the CPU after it."""
        self.scorer.to(self.device)
        try:
            yield self.scorer
        finally:
            self.scorer.to(torch.device("cpu"))


def draw_curves(scores: Sequence[dict[str, Any]], path: Path, distance: str) -> None:
    """Plot distance and CLIP score against images seen, like the paper's figures 2 to 5.

    Scores at 0 images are left out, since the axis is logarithmic.
    """
    from matplotlib.figure import Figure

    lines = [line for line in scores if line["images_seen"] > 0]
    if not lines:
        return
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    seen = [line["images_seen"] for line in lines]
    left.plot(seen, [line[distance.lower()] for line in lines], marker="o", markersize=3)
    left.set(xscale="log", yscale="log", xlabel="images seen", ylabel=distance)
    right.plot(seen, [line["clip"] for line in lines], marker="o", markersize=3, color="tab:orange")
    right.set(xscale="log", xlabel="images seen", ylabel="CLIP score")
    for axes in (left, right):
        axes.grid(True, which="both", alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
