"""What a run shows while it goes on, and what it leaves: metrics, sample grids, scores, the report, and the student's folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidlsg import report
from sidlsg.config import Config
from sidlsg.errors import reason
from sidlsg.files import append_line
from sidlsg.planning.cost import forward_equivalents
from sidlsg.runs.folder import RunFolder, read_metrics
from sidlsg.runs.scores import Line, is_best
from sidlsg.sampling.draw import DEFAULT_STEPS, draw, seed_noise
from sidlsg.sampling.pictures import save_grid, to_pil
from sidlsg.teachers.student import save_student
from sidlsg.training.engine import Engine
from sidlsg.training.mirror import Mirror
from sidlsg.training.tracking import Tracker, draw_curves
from sidlsg.version import __version__

# Figure 2 of the paper: 0, 0.02, 0.1, 0.2, 0.5, 1, 2, 3, 4 and 5 million images of a 5M run.
GRID_SHARES = (0, 0.004, 0.02, 0.04, 0.1, 0.2, 0.4, 0.6, 0.8, 1)

TEACHER_GRID_SHARE = 0.1  # of the network passes of a run; 16 pictures cost as much as training on about 42 images


def grid_places(images: int, batch: int) -> list[int]:
    """The images seen at which a run of ``images`` draws its grids."""
    return sorted({round(share * images / batch) * batch for share in GRID_SHARES} | {images})


@torch.no_grad()
def draw_pictures(engine: Engine, z: Tensor, prompts: Sequence[str]) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] of the generator as it is, from noise z [B, C, H, W]."""
    c = engine.encode(prompts)
    return engine.teacher.decode(engine.nets.generator(z.to(c.device), c))


def draw_grid(engine: Engine, prompts: Sequence[str], images_seen: int, path: Path) -> None:
    """Sample fixed prompts with fixed noise (picture i has seed i) by the averaged generator."""
    micro, pictures = engine.config.micro_batch, []
    z = seed_noise(list(range(len(prompts))), engine.teacher.latent_shape)
    with engine.drawing():
        for first in range(0, len(prompts), micro):
            part = slice(first, first + micro)
            pictures += to_pil(draw_pictures(engine, z[part], prompts[part]))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_grid(pictures, prompts, path, images_seen=images_seen)


def teacher_grid_is_cheap(config: Config, pictures: int) -> bool:
    """Whether a teacher's grid costs at most ``TEACHER_GRID_SHARE`` of the run's network passes."""
    passes = 2 * DEFAULT_STEPS * pictures
    return passes <= TEACHER_GRID_SHARE * forward_equivalents(config) * config.images


def draw_teacher_grid(engine: Engine, prompts: Sequence[str], path: Path) -> None:
    """The prompts of the sample grids with the same seeds, drawn by the teacher as `sidlsg sample` does by default.

    Guidance doubles a batch, so half as many pictures at once as in training take no more memory.
    """
    model, dtype, batch = engine.teacher, engine.nets.teacher.autocast, max(1, engine.config.micro_batch // 2)
    device = engine.encode.device
    with model.decoding(device), torch.autocast(device.type, dtype, enabled=dtype is not None):
        pictures = list(draw(model, prompts, range(len(prompts)), batch=batch))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_grid(pictures, prompts, path)


def write_student(
    engine: Engine, folder: Path, images_seen: int, prompts_sha256: str, scores: dict[str, float] | None = None
) -> None:
    """The averaged generator as a diffusers folder, with what it is in ``sidlsg.json``."""
    config = engine.config
    note: dict[str, Any] = {
        "teacher": engine.teacher.source,
        "strategy": config.strategy_name,
        "kappa": list(config.guidance),
        "images_seen": images_seen,
        "weights": "ema" if engine.ema else "last",
        "precision": config.precision,
        "prompts_sha256": prompts_sha256,
        "sidlsg": __version__,
    }
    if scores:
        note["scores"] = scores
    with engine.averaged():
        save_student(folder, engine.teacher, engine.generator, config.t_init, note)


class Outputs:
    """What a run writes and shows besides its checkpoints and its student. It can do without all of it: what goes wrong here is
    said, and the run goes on.

    Only the main process writes and draws; the others help with scores.

    Args:
        say: told a text and a label ("warning: ").
    """

    def __init__(
        self,
        engine: Engine,
        folder: RunFolder,
        prompts_sha256: str,
        grid_prompts: Sequence[str],
        main: bool,
        say: Callable[[str, str], None],
    ) -> None:
        self.engine, self.folder, self.prompts_sha256 = engine, folder, prompts_sha256
        self.grid_prompts, self.main, self.say = grid_prompts, main, say
        self.mirror: Mirror | None = None

    def spare(self, what: str, work: Callable[[], object]) -> None:
        """Make something that the run can do without."""
        try:
            work()
        except Exception as error:
            self.say(f"the run goes on without {what}: {reason(error)}", "warning: ")

    def metrics(self, line: Line) -> None:
        """Append a line to metrics.jsonl."""
        if self.main:
            self.spare("a line of metrics.jsonl", lambda: append_line(self.folder.metrics, json.dumps(line)))
            self._send(line)

    def report(self) -> None:
        """Write report.html anew."""
        if self.main:
            self.spare("its report", lambda: report.write(self.folder.path))

    def grid_file(self, images_seen: int) -> Path:
        return self.folder.samples / f"{images_seen:012d}.png"

    def grid(self, images_seen: int) -> None:
        """Draw the fixed prompts to samples/<images seen>.png, and show them in the report."""
        if self.main:
            path = self.grid_file(images_seen)
            self.spare("pictures of this place", lambda: self._grid(images_seen, path))
            self.report()

    def _grid(self, images_seen: int, path: Path) -> None:
        draw_grid(self.engine, self.grid_prompts, images_seen, path)
        if self.mirror:
            self.mirror.picture(images_seen, path)

    def teacher_grid(self) -> None:
        """Draw what the teacher makes of the fixed prompts, where that is cheap."""
        if self.main and teacher_grid_is_cheap(self.engine.config, len(self.grid_prompts)):
            path = self.folder.teacher_grid
            self.spare("the teacher's pictures", lambda: draw_teacher_grid(self.engine, self.grid_prompts, path))

    def scored(self) -> list[Line]:
        """The lines of scores.jsonl."""
        return read_metrics(self.folder.scores) if self.folder.scores.is_file() else []

    def score(self, tracker: Tracker, images_seen: int, tick: Callable[[int], None] = lambda count: None) -> None:
        """Score the student: append to scores.jsonl, redraw curves.png, and write best/ when no distance so far was smaller."""
        found: dict[str, float] = {}

        def draw(z: Tensor, prompts: Sequence[str]) -> Tensor:
            return draw_pictures(self.engine, z, prompts)

        shape = self.engine.teacher.latent_shape
        self.spare("scores of this place", lambda: found.update(tracker(draw, self.engine.drawing, shape, tick)))
        if not (self.main and found):
            return
        line = {"images_seen": images_seen} | tracker.about | found
        shown = "  ".join(f"{name} {value:.4g}" for name, value in found.items())
        self.say(f"{images_seen:,} images: {shown}", "")
        self.spare("its best student so far", lambda: self._keep_best(line, tracker.key, found))
        # Last, so that what an interruption leaves undone is done again with the scores.
        self.spare("a line of scores.jsonl", lambda: append_line(self.folder.scores, json.dumps(line)))
        self._send(line)
        distance = tracker.protocol.distance
        self.spare("its curves", lambda: draw_curves(self.scored(), self.folder.curves, distance))

    def _keep_best(self, line: Line, key: str, scores: dict[str, float]) -> None:
        if is_best(line, self.scored(), key):
            write_student(self.engine, self.folder.best, line["images_seen"], self.prompts_sha256, scores)

    def _send(self, line: Line) -> None:
        if self.mirror:
            self.mirror.line(line)
