"""The models behind the page: one draws at a time, whoever asks, and keeps nothing of who asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from PIL import Image

from sidlsg.benchmark.comparison import Contender, Options
from sidlsg.benchmark.timing import synchronise
from sidlsg.demo.turns import Turn, Turns
from sidlsg.devices import DTYPES, device_facts, pick_device, pick_precision
from sidlsg.errors import UsageError
from sidlsg.prompts import PromptFile
from sidlsg.runs.opening import open_model
from sidlsg.sampling.draw import DEFAULT_STEPS, EMPTY_PROMPT, draw
from sidlsg.teachers.family import Model
from sidlsg.teachers.registry import at_hand, locate, registry

LONGEST = 2000  # characters of a prompt; the text encoders of Stable Diffusion read 75 tokens
MOST = 64  # pictures at once
LAST_SEED = 2**32 - 1
EXAMPLES = (  # for models whose registry entry has none
    "a photograph of a red fox in the snow",
    "a lighthouse at dusk, oil painting",
    "a bowl of ramen, top view",
    "an astronaut riding a horse",
    "a watercolour of a small harbour",
    "a corgi wearing sunglasses",
)


@dataclass(frozen=True)
class Drawn:
    """Pictures of one request.

    Attributes:
        seconds: from the prompt to the decoded pixels, without those in which others drew.
        source: what the model was opened from, as the PNG files of ``sidlsg sample`` say it.
        note: what the visitor should know.
    """

    pictures: Sequence[Image.Image]
    seconds: float
    source: str
    note: str


class Studio:
    """Draws with one or two models. The second is loaded when it is first asked for, while the first goes on drawing.

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
        self._turns = Turns()
        self._opening = threading.Lock()
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

    def load(self, number: int, wanted: Callable[[], bool] = lambda: True) -> tuple[Model, Options]:
        """Model ``number`` with its options, loaded and warm. For ``wanted``, see ``draw``."""
        with self._opening:
            if number not in self._open:
                contender = self.contenders[number]
                model = open_model(contender.model, self.device, DTYPES[self.precision])
                options = contender.sampling(model, Options())
                warm = replace(options, steps=min(2, options.steps or 1))
                with Turn(self._turns, False, wanted) as turn:
                    list(draw(model, [""], [0], **asdict(warm), after_step=turn.between_steps))
                self._open[number] = model, options
            return self._open[number]

    def about(self) -> dict[str, Any]:
        """What the page shows: the models, prompts to begin with, and the machine that the seconds belong to.

        A model that is not ``ready`` is downloaded when it is first asked for.
        """
        models = []
        for number, contender in enumerate(self.contenders):
            known = self._open.get(number)
            steps = known[1].steps if known else contender.steps
            ready = known is not None or at_hand(locate(contender.model)) is not None
            models.append({"name": contender.model, "steps": steps or DEFAULT_STEPS, "ready": ready})
        limits = {"longest": LONGEST, "last_seed": LAST_SEED, "most": MOST}
        machine = {"device": device_facts(self.device)["device"], "precision": self.precision}
        return {"models": models, "examples": self._examples(), **machine, **limits}

    def _examples(self, most: int = 8) -> list[str]:
        """Prompts of the first model that the registry has some for; else those of this file."""
        entries = (registry().get(contender.model) for contender in self.contenders)
        path = next((entry.grid_prompts for entry in entries if entry and entry.grid_prompts), None)
        return list(islice(PromptFile(path), most)) if path else list(EXAMPLES)

    def draw(self, number: int, prompt: str, seeds: Sequence[int], wanted: Callable[[], bool] = lambda: True) -> Drawn:
        """Pictures of one prompt with several seeds by model ``number``. The second gives way to the first between its steps.

        Args:
            wanted: asked while waiting and between steps.

        Raises UsageError for what is not there: a model, a seed, too many pictures, an endless prompt; Unwanted when ``wanted``
        says that nobody waits for the pictures.
        """
        if not 0 <= number < len(self.contenders):
            raise UsageError(f"there is no model {number}; there are {len(self.contenders)}")
        if len(prompt) > LONGEST:
            raise UsageError(f"the prompt has {len(prompt):,} characters; at most {LONGEST:,} are taken")
        if not 1 <= len(seeds) <= MOST:
            raise UsageError(f"{len(seeds)} images at once; from 1 to {MOST} are drawn")
        if not all(0 <= seed <= LAST_SEED for seed in seeds):
            raise UsageError(f"a seed is a whole number from 0 to {LAST_SEED}")
        model, options = self._open[0] if number == 0 else self.load(number, wanted)
        prompts = [prompt] * len(seeds)
        with Turn(self._turns, number == 0, wanted) as turn:

            def after_step() -> None:
                synchronise(self.device)  # or the steps that are queued would have to be waited for
                turn.between_steps()

            synchronise(self.device)
            begun = time.perf_counter()
            pictures = list(draw(model, prompts, seeds, batch=self.batch, **asdict(options), after_step=after_step))
            synchronise(self.device)
            seconds = time.perf_counter() - begun - turn.away
        return Drawn(pictures, seconds, model.source, remark(model, prompt))


def remark(model: Model, prompt: str) -> str:
    """What happens to an empty prompt, or to one that is longer than the model reads; "" for any other."""
    if not prompt.strip():
        return f"{EMPTY_PROMPT[0].upper()}{EMPTY_PROMPT[1:]}."
    tokenizer = model.parts["tokenizer"]
    count, most = len(tokenizer(prompt).input_ids) - 2, tokenizer.model_max_length - 2
    return f"The prompt has {count} tokens; the model reads the first {most}." if count > most else ""
