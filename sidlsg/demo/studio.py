"""The models behind the page: one draws at a time, whoever asks, and keeps nothing of who asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from PIL import Image

from sidlsg.benchmark.comparison import Contender, Options
from sidlsg.benchmark.timing import synchronise
from sidlsg.devices import DTYPES, device_facts, pick_device, pick_precision
from sidlsg.errors import UsageError
from sidlsg.runs.opening import open_model
from sidlsg.sampling.draw import draw
from sidlsg.teachers.family import Model
from sidlsg.teachers.registry import locate

LONGEST = 2000  # characters of a prompt; the text encoders of Stable Diffusion read 75 tokens
MOST = 64  # pictures at once
LAST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Drawn:
    """Pictures of one request. ``seconds``: from the prompt to the decoded pixels; ``note``: what the visitor should know."""

    pictures: Sequence[Image.Image]
    seconds: float
    note: str


class Studio:
    """Draws with one or two models. The second is loaded when it is first asked for.

    Args:
        names: as for ``sidlsg compare`` (``emoji@25``); one alone is joined by the teacher that its note names.

    Raises UsageError for an unknown model or options that do not fit it.
    """

    def __init__(
        self, names: Sequence[str], device: str = "auto", precision: str | None = None, batch: int = 8
    ) -> None:
        self.device = pick_device(device)
        self.precision, self.batch = pick_precision(precision, self.device), batch
        self.contenders = [Contender.parse(name) for name in names]
        for contender in self.contenders:
            contender.check(Options())
        self._lock = threading.Lock()
        self._open: dict[int, tuple[Model, Options]] = {}
        self.load(0)
        if len(self.contenders) == 1 and (teacher := self._teacher()):
            self.contenders.append(Contender(teacher))

    def _teacher(self) -> str | None:
        """The teacher of the first model, where its note names one that can be found."""
        found = (self._open[0][0].student or {}).get("teacher")
        try:
            locate(str(found))
        except UsageError:
            return None
        return found

    def load(self, number: int) -> tuple[Model, Options]:
        """Model ``number`` with its options, loaded and warm."""
        if number not in self._open:
            contender = self.contenders[number]
            model = open_model(contender.model, self.device, DTYPES[self.precision])
            options = contender.sampling(model, Options())
            list(draw(model, [""], [0], **asdict(replace(options, steps=min(2, options.steps or 1)))))
            self._open[number] = model, options
        return self._open[number]

    def about(self) -> dict[str, Any]:
        """What the page shows: the models, and the machine that the seconds belong to."""
        models = []
        for number, contender in enumerate(self.contenders):
            known = self._open.get(number)
            steps = known[1].steps if known else contender.steps
            models.append({"name": contender.model, "steps": steps or 25})
        limits = {"longest": LONGEST, "last_seed": LAST_SEED, "most": MOST}
        return {"models": models, "device": device_facts(self.device)["device"], "precision": self.precision} | limits

    def draw(self, number: int, prompt: str, seeds: Sequence[int]) -> Drawn:
        """Pictures of one prompt with several seeds by model ``number``.

        Raises UsageError for what is not there: a model, a seed, too many pictures, an endless prompt.
        """
        if not 0 <= number < len(self.contenders):
            raise UsageError(f"there is no model {number}; there are {len(self.contenders)}")
        if len(prompt) > LONGEST:
            raise UsageError(f"the prompt has {len(prompt):,} characters; at most {LONGEST:,} are taken")
        if not 1 <= len(seeds) <= MOST:
            raise UsageError(f"{len(seeds)} pictures at once; from 1 to {MOST} are drawn")
        if not all(0 <= seed <= LAST_SEED for seed in seeds):
            raise UsageError(f"a seed is a whole number from 0 to {LAST_SEED}")
        with self._lock:
            model, options = self.load(number)
            synchronise(self.device)
            begun = time.perf_counter()
            pictures = list(draw(model, [prompt] * len(seeds), seeds, batch=self.batch, **asdict(options)))
            synchronise(self.device)
            return Drawn(pictures, time.perf_counter() - begun, remark(model, prompt))


def remark(model: Model, prompt: str) -> str:
    """What happens to an empty prompt, or to one that is longer than the model reads; "" for any other."""
    if not prompt.strip():
        return "The prompt is empty: this is what the model draws when it is told nothing."
    tokenizer = model.parts["tokenizer"]
    count, most = len(tokenizer(prompt).input_ids) - 2, tokenizer.model_max_length - 2
    return f"The prompt has {count} tokens; the model reads the first {most}." if count > most else ""
