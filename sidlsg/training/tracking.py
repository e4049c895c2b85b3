"""Scores of the student while it trains: when they are due, how they are computed, and their curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor

from sidlsg import distributed
from sidlsg.config import Config
from sidlsg.devices import release
from sidlsg.distributed import Processes
from sidlsg.errors import SidlsgError, UsageError, reason
from sidlsg.evaluation.comparable import Made, said_of
from sidlsg.evaluation.progress import Bars
from sidlsg.evaluation.protocol import RUN, Protocol, get_protocol
from sidlsg.evaluation.reference import BENCH, Reference, load_reference
from sidlsg.evaluation.weights import file_sha256, find_weights
from sidlsg.files import replacing
from sidlsg.plotting import figure
from sidlsg.prompts import PromptFile
from sidlsg.runs.scores import Line, comparable, score
from sidlsg.sampling.draw import seed_noise
from sidlsg.sampling.pictures import to_pil

if TYPE_CHECKING:
    from sidlsg.evaluation.scorer import Scorer

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

    Args:
        prompts: of the run, of which the teacher draws images by the protocol ``teacher``; others need none.

    ``warnings`` says why the scores are not comparable with published ones. Raises UsageError or SidlsgError, before the run
    starts, when the reference or a weights file is missing, or ``eval_images`` is more than the protocol has captions.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        processes: Processes,
        prompts: PromptFile | None = None,
        console: Console | None = None,
    ) -> None:
        # open_clip and torch-fidelity take seconds to import: only a run that scores waits for them.
        from sidlsg.evaluation.scorer import Scorer

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
        self.compared = reference_name(config, self.protocol)
        self.captions, self.reference = self.inputs(config, prompts, Bars(console or Console(quiet=True)))
        if self.pictures > len(self.captions):
            raise UsageError(
                f"eval_images is {self.pictures:,}, but the protocol {self.protocol.name} has {len(self.captions):,} captions"
            )
        self.warnings = self.deviations() if processes.main else []

    def inputs(self, config: Config, prompts: PromptFile | None, bars: Bars) -> tuple[list[str], Reference | None]:
        """The captions, and what the images of the student are compared with (which only the main process needs)."""
        from sidlsg.evaluation.scorer import bench_reference
        from sidlsg.evaluation.scoring import encode_folder
        from sidlsg.evaluation.teacher_images import chosen_prompts, draw_teacher

        if self.protocol.prompts == RUN:
            assert prompts is not None
            with bars:
                drawn = draw_teacher(
                    config, prompts, self.pictures, self.device, self.processes, config.micro_batch, bars
                )
                self.compared = drawn.path.parent.name[:16]
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
        """What stands beside the scores in every line: protocol, number of pictures, the reference (of a file: how its SHA-256
        begins), and how they deviate from the protocol."""
        return {
            "protocol": self.protocol.name,
            "pictures": self.pictures,
            "reference": self.compared,
            "warnings": self.warnings,
        }

    @property
    def key(self) -> str:
        """The name of the score that decides which student is best; smaller is better."""
        return self.protocol.distance.lower()

    def __call__(
        self,
        draw: Callable[[Tensor, list[str]], Tensor],
        drawing: Callable[[], AbstractContextManager[None]],
        shape: tuple[int, ...],
        tick: Callable[[int], None] = lambda count: None,
    ) -> dict[str, float]:
        """Score a generator. Its networks and those that judge are in turn on the device: what either needs beside the run's
        state need not fit together.

        Args:
            draw: (z [B, C, H, W] on the CPU, B captions) -> images [B, 3, H', W'] in [0, 1].
            drawing: a context in which pictures are drawn, and nothing else is done.
            shape: (C, H, W) of a latent.
            tick: called with the number of pictures that this process has drawn since the call before.

        Returns the scores on the main process, an empty dict on the others. Raises SidlsgError, on every process, when one of
        them could not draw or encode its share.
        """
        from sidlsg.evaluation.scorer import Encoded

        error, part = None, None
        try:
            part = self._share(draw, drawing, shape, tick)
        except Exception as found:  # the others wait for this share
            error = found
        everything = distributed.gather((part, None if error is None else reason(error)))
        if failed := [text for _, text in everything if text is not None]:
            raise SidlsgError(failed[0]) from error
        if not self.processes.main:
            return {}
        numbers, features, embeddings = (torch.cat(rows) for rows in zip(*(p for p, _ in everything if p), strict=True))
        order = numbers.argsort()
        with self.judging() as scorer:
            encoded = Encoded(features[order], embeddings[order])
            return scorer.score(encoded, self.reference, self.captions, [(i, i) for i in range(self.pictures)])

    def _share(
        self,
        draw: Callable[[Tensor, list[str]], Tensor],
        drawing: Callable[[], AbstractContextManager[None]],
        shape: tuple[int, ...],
        tick: Callable[[int], None],
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Numbers, features and embeddings of this process's pictures; None where there are more processes than pictures."""
        mine = list(range(self.pictures))[self.processes.rank :: self.processes.world]
        parts = []
        for start in range(0, len(mine), CHUNK):
            pictures = []
            chunk = mine[start : start + CHUNK]
            with drawing():
                for first in range(0, len(chunk), self.batch):
                    seeds = chunk[first : first + self.batch]
                    pictures += to_pil(draw(seed_noise(seeds, shape), [self.captions[i] for i in seeds]))
                    tick(len(seeds))
            with self.judging() as scorer:
                parts.append(scorer.encode(pictures, features=True, clip=True))
        if not parts:
            return None
        features, embeddings = torch.cat([p.features for p in parts]), torch.cat([p.embeddings for p in parts])  # type: ignore[misc]
        return torch.tensor(mine), features, embeddings

    @contextmanager
    def judging(self) -> Iterator[Scorer]:
        """The scorer is on the device inside the block, and on the CPU after it."""
        self.scorer.to(self.device)
        try:
            yield self.scorer
        finally:
            self.scorer.to(torch.device("cpu"))


def reference_name(config: Config, protocol: Protocol) -> str:
    """By what lines of scores know that they are against the same images: how the SHA-256 of the file of statistics begins, or,
    where a protocol brings its own reference, the name of its prompts."""
    if config.eval_reference is None or protocol.prompts == "emoji-bench":
        return protocol.prompts
    return file_sha256(Path(config.eval_reference))[:16]


def draw_curves(scores: Sequence[Line], path: Path, distance: str) -> None:
    """Plot distance and CLIP score against images seen, like the paper's figures 2 to 5: of the lines that can be compared with
    the last one. Scores at 0 images are left out, since the axis is logarithmic, and so are numbers that are not finite."""
    lines = [line for line in comparable(scores) if line["images_seen"] > 0]
    if not lines:
        return
    with figure(9, 3.6) as made, replacing(path) as temporary:
        for axes, name, colour in zip(
            made.subplots(1, 2), (distance, "CLIP score"), ("tab:blue", "tab:orange"), strict=True
        ):
            key = "clip" if name == "CLIP score" else name.lower()
            points = [(line["images_seen"], value) for line in lines if (value := score(line, key)) is not None]
            if not points:
                continue
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour)
            axes.set(xscale="log", yscale="linear" if key == "clip" else "log", xlabel="images seen", ylabel=name)
            axes.grid(True, which="both", alpha=0.3)
        made.savefig(temporary, dpi=110, format="png")
