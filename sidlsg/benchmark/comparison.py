"""Models side by side: the same prompts from the same noise, with the seconds that each takes for a picture."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from PIL import Image

from sidlsg.benchmark.timing import synchronise
from sidlsg.devices import DTYPES, device_facts, pick_device, pick_precision
from sidlsg.errors import UsageError
from sidlsg.paths import user_path
from sidlsg.runs.opening import describe_model, open_model
from sidlsg.sampling.draw import check_prompts, check_sampling, draw, sampling_text
from sidlsg.sampling.grid import EMPTY, Block, Row, labelled_grid
from sidlsg.teachers.family import Description, Model


@dataclass(frozen=True)
class Options:
    """How a teacher is sampled; None: 25 steps, guidance 3, its own scheduler."""

    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None


@dataclass(frozen=True)
class Contender:
    """One model of a comparison, and how it is sampled. None: what it takes by default."""

    model: str
    steps: int | None = None
    guidance: float | None = None

    @classmethod
    def parse(cls, text: str) -> Contender:
        """ "sd15", "sd15@50" (steps) or "sd15@50:7.5" (steps and guidance); a folder of that very name is a folder."""
        match = re.fullmatch(r"(.+)@(\d{1,6})(?::(\d+(?:\.\d+)?))?", text)
        if match is None or user_path(text).exists():
            return cls(text)
        if int(match[2]) == 0:
            raise UsageError(f'"{text}": a picture takes at least 1 step')
        return cls(match[1], int(match[2]), float(match[3]) if match[3] else None)

    def check(self, options: Options) -> None:
        """Raise UsageError for an unknown model, or a student with a teacher's options, before the first model is loaded."""
        if (about := describe_model(self.model)) is not None:
            self.sampling(about, options)

    def sampling(self, model: Model | Description, options: Options) -> Options:
        """The options that the model is sampled with, complete; a student takes none but its own."""
        if model.student is not None:
            return Options(*check_sampling(model, self.steps, self.guidance))
        steps = options.steps if self.steps is None else self.steps
        guidance = options.guidance if self.guidance is None else self.guidance
        return Options(*check_sampling(model, steps, guidance, options.sampler), options.sampler)


@dataclass(frozen=True)
class Measured:
    """The pictures of one model, by prompt and seed, and how they were made.

    Attributes:
        source: what was opened. seconds: of one picture, from the prompt to the decoded pixels, in batches, when warm.
    """

    name: str
    source: str
    one_step: bool
    options: Options
    seconds: float
    pictures: Sequence[Sequence[Image.Image]]

    @property
    def details(self) -> list[str]:
        """The lines below its name in a grid."""
        return [
            sampling_text(self.one_step, self.options.steps, self.options.guidance),
            *([self.options.sampler] if self.options.sampler else []),
            f"{seconds_text(self.seconds)} a picture",
        ]

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pictures."""
        about = {"name": self.name, "source": self.source, "one_step": self.one_step}
        return about | asdict(self.options) | {"seconds_per_picture": self.seconds}


@dataclass(frozen=True)
class Comparison:
    """Every model's pictures of every prompt with every seed; ``device`` and ``batch`` belong to the seconds."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    models: Sequence[Measured]
    device: str
    precision: str
    batch: int

    def grid(self) -> Image.Image:
        """A block a prompt, a row a model, a column a seed."""
        blocks = [
            Block([Row(m.pictures[number], m.name, m.details) for m in self.models], prompt or EMPTY)
            for number, prompt in enumerate(self.prompts)
        ]
        note = f"Seconds measured in this run: {self.device}, {self.precision}, batches of {self.batch}, warm, decoding included."
        return labelled_grid(blocks, [f"seed {seed}" for seed in self.seeds], note)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pictures."""
        about = {"device": self.device, "precision": self.precision, "batch": self.batch}
        models = [model.as_dict() for model in self.models]
        return {"prompts": list(self.prompts), "seeds": list(self.seeds), **about, "models": models}


def compare(
    prompts: Sequence[str],
    contenders: Sequence[Contender],
    seeds: Sequence[int],
    *,
    options: Options = Options(),  # noqa: B008
    batch: int = 8,
    precision: str | None = None,
    device: str = "auto",
    tell: Callable[[Measured], None] = lambda measured: None,
) -> Comparison:
    """Draw every prompt with every seed by one model after the other; at no time are two of them in memory.

    The noise is a function of the seed and the latents' shape, so models of one shape start from the same noise.

    Args:
        options: of the teachers among the models, where a contender does not say it itself.
        batch: pictures drawn at once. precision: fp32, bf16 or fp16; None is fp16 on a GPU, else fp32.
        tell: called with each model's result.

    Raises UsageError, before anything is loaded, for an unknown model, options that do not fit it, or a prompt that is not valid
    Unicode.
    """
    check_prompts(prompts)
    for contender in contenders:
        contender.check(options)
    where = pick_device(device)
    precision = pick_precision(precision, where)
    batch = min(batch, len(prompts) * len(seeds))
    found = []
    for contender in contenders:
        measured = _measure(contender, prompts, seeds, options, batch, where, DTYPES[precision])
        found.append(measured)
        tell(measured)
        gc.collect()
        if where.type == "cuda":
            torch.cuda.empty_cache()
    return Comparison(prompts, seeds, found, device_facts(where)["device"], precision, batch)


def _measure(
    contender: Contender,
    prompts: Sequence[str],
    seeds: Sequence[int],
    options: Options,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Measured:
    model = open_model(contender.model, device, dtype)
    chosen = contender.sampling(model, options)
    texts, numbers = zip(*((prompt, seed) for prompt in prompts for seed in seeds), strict=True)

    def pictures(count: int, options: Options) -> list[Image.Image]:
        return list(draw(model, texts[:count], numbers[:count], batch=batch, **asdict(options)))

    pictures(batch, replace(chosen, steps=min(2, chosen.steps or 1)))  # compilation and caches, not measured
    synchronise(device)
    begun = time.perf_counter()
    drawn = pictures(len(texts), chosen)
    synchronise(device)
    seconds = (time.perf_counter() - begun) / len(drawn)
    rows = [drawn[first : first + len(seeds)] for first in range(0, len(drawn), len(seeds))]
    return Measured(contender.model, model.source, model.student is not None, chosen, seconds, rows)


def seconds_text(seconds: float) -> str:
    """0.0123 -> "0.012 s", 12.3 -> "12 s": two digits."""
    digits = 0 if seconds >= 10 else 1 if seconds >= 1 else 2 if seconds >= 0.1 else 3
    return f"{seconds:.{digits}f} s"
