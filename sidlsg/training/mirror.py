"""A run's metrics, scores and sample grids in TensorBoard or Weights & Biases too: the lines of its own files, sent on."""

from __future__ import annotations

import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from sidlsg.config import Config
from sidlsg.errors import UsageError, sentence
from sidlsg.files import write_text
from sidlsg.runs.folder import RunFolder

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


class Sink(Protocol):
    """Where lines go. Steps are images seen."""

    def line(self, images_seen: int, values: dict[str, float]) -> None: ...

    def picture(self, images_seen: int, path: Path) -> None: ...

    def close(self) -> None: ...


class Mirror:
    """Sends a run's lines to the tracker that ``config.tracker`` names. What goes wrong there is said once and ends the sending,
    not the run.

    Args:
        images_seen: from which the run goes on. What a tracker already has beyond that is not shown twice.
        warn: told what went wrong.
    """

    def __init__(self, config: Config, folder: RunFolder, images_seen: int, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self.sink: Sink | None = None
        if config.tracker in SINKS:
            self._try(lambda: self._open(config, folder, images_seen))

    def _open(self, config: Config, folder: RunFolder, images_seen: int) -> None:
        self.sink = SINKS[config.tracker](config, folder, images_seen)

    def line(self, line: dict[str, Any]) -> None:
        """A line of ``metrics.jsonl`` or ``scores.jsonl``."""
        if sink := self.sink:
            self._try(lambda: sink.line(line["images_seen"], dict(numbers(line))))

    def picture(self, images_seen: int, path: Path) -> None:
        """A sample grid."""
        if sink := self.sink:
            self._try(lambda: sink.picture(images_seen, path))

    def close(self) -> None:
        if sink := self.sink:
            self._try(sink.close)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # each library raises its own types
            self.sink = None
            self.warn(f"the run goes on without its tracker, which failed ({type(error).__name__}): {sentence(error)}")


def check_tracker(name: str) -> None:
    """Raise UsageError when the tracker's package is not installed."""
    if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
        raise UsageError(f'tracker {name} needs a package: pip install "sidlsg[{name}]"')


def numbers(line: dict[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line by name; those of a list or an object have the names "list/0", "object/key"."""
    for name, value in line.items():
        if isinstance(value, dict | list):
            inner = value if isinstance(value, dict) else {str(place): item for place, item in enumerate(value)}
            yield from numbers(inner, f"{above}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "images_seen":
            yield above + name, float(value)


class TensorBoard:
    """Event files in ``tensorboard/`` of the run's folder: ``tensorboard --logdir RUN``."""

    def __init__(self, config: Config, folder: RunFolder, images_seen: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard drops what an interrupted run had written beyond the checkpoint that this one goes on from.
        self.writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=images_seen + 1 if images_seen else 0)

    def line(self, images_seen: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, images_seen)
        self.writer.flush()

    def picture(self, images_seen: int, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            self.writer.add_image("samples", np.asarray(picture.convert("RGB")), images_seen, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the project ``sidlsg``, or of what WANDB_PROJECT names; ``wandb.json`` in the run's folder says which.

    That file holds the number of images up to which lines were sent: a run that goes on from an earlier checkpoint computes the
    lines in between again, the same ones, and they are not sent twice.
    """

    def __init__(self, config: Config, folder: RunFolder, images_seen: int) -> None:
        import wandb

        self.wandb, self.file = wandb, folder.path / "wandb.json"
        self.state: dict[str, Any] = {"id": uuid.uuid4().hex[:8], "sent": -1}
        if self.file.is_file() and images_seen:
            self.state |= json.loads(self.file.read_text(encoding="utf-8"))
        self.before: int = self.state["sent"]
        self.run = wandb.init(
            project=None if "WANDB_PROJECT" in os.environ else "sidlsg",
            name=folder.path.name,
            id=self.state["id"],
            resume="allow",
            dir=str(folder.path),
            config=config.as_dict(),
        )
        self.run.define_metric("images_seen")
        self.run.define_metric("*", step_metric="images_seen")
        write_text(self.file, json.dumps(self.state))

    def line(self, images_seen: int, values: dict[str, float]) -> None:
        if images_seen > self.before:
            self.run.log({"images_seen": images_seen, **values})
            self.state["sent"] = images_seen
            write_text(self.file, json.dumps(self.state))

    def picture(self, images_seen: int, path: Path) -> None:
        if images_seen > self.before:
            self.run.log({"images_seen": images_seen, "samples": self.wandb.Image(str(path))})

    def close(self) -> None:
        self.run.finish()


SINKS: dict[str, Callable[[Config, RunFolder, int], Sink]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
