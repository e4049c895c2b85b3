"""The settings of a distillation run: one frozen dataclass that checks itself. No torch in here."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import reprlib
import typing
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from sidlsg.errors import UsageError, nearest
from sidlsg.method.guidance import Guidance, make_guidance

# -- how values are written ------------------------------------------------------------------------------------------------


def parse_count(text: str | int | float, name: str = "images") -> int:
    """A count of images: 512, "10M", "50k", "1.5M", "1e6", "12_800".

    Raises UsageError when it is not a whole number of at least 0.
    """
    if isinstance(text, str):
        match = re.fullmatch(r"\s*([0-9][0-9_]*\.?[0-9]*(?:e[+]?[0-9]{1,2})?)\s*([kKmM]?)\s*", text)
        if not match:
            raise UsageError(f'{name} is "{text}"; write a count such as 12800, 50k or 10M')
        value = Decimal(match[1].replace("_", "")).scaleb({"": 0, "k": 3, "m": 6}[match[2].lower()])
    else:
        value = Decimal(text)
    if not (value.is_finite() and 0 <= value <= 10**15 and value == int(value)):
        raise UsageError(f'{name} is "{text}"; it must be a whole number of images')
    return int(value)


def parse_kappa(text: str) -> tuple[float, ...]:
    """ "1.5" -> (1.5,); "1,0.5,0.5,1" -> four numbers. Range and count are checked by the guidance itself."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f'kappa is "{text}"; write one number (1.5) or four separated by commas (1,0.5,0.5,1)'
        ) from None


def _count(value: Any) -> Any:
    """A count as people write it; anything but text and numbers is left to the type."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    try:
        return parse_count(value)
    except UsageError:
        raise ValueError("a whole number of images, such as 12800, 50k or 10M") from None


def _exponent(value: Any) -> Any:
    """YAML 1.1 reads 1e-6, without a dot, as text."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)e[+-]?[0-9]+", value):
        return float(value)
    return value


def _numbers(value: Any) -> Any:
    """One number or several, as a tuple."""
    values = value if isinstance(value, list | tuple) else [value]
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return tuple(float(v) for v in values)
    raise ValueError("a number or a list of numbers")


def _positive(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError("a number > 0")
    return value


def _timestep(value: int) -> int:
    if not 0 <= value <= 999:
        raise ValueError("a timestep, 0 to 999")
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("a finite number")
    return value


Count = Annotated[int, BeforeValidator(_count), Field(ge=1)]
Number = Annotated[float, BeforeValidator(_exponent)]
Positive = Annotated[Number, AfterValidator(_positive)]
Timestep = Annotated[int, AfterValidator(_timestep)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_numbers)]


# -- the settings ----------------------------------------------------------------------------------------------------------


class Free:
    """Marks a setting that may differ when a run is taken up again: it changes where, how fast, in how much memory or how
    long the run goes, not what it computes (up to rounding)."""


FREE = Free()


@dataclass(frozen=True)
class Config:
    """Every setting of a run. Counts are images, never iterations.

    Values are checked and converted when one is made ("50k" for a count). Raises UsageError, naming the setting, when a value is
    of another type or out of range, or when two values do not fit together.
    """

    teacher: str = "emoji"  # alias, hub id or folder
    prompts: str = "emoji"  # alias, text file with one prompt a line, or table
    caption_column: str | None = None  # of a table that holds the prompts; None: the only one with a usual name
    strategy: str = "lsg"  # long, short, lsg-simple, lsg (Sec. 2.3)
    kappa: Numbers | None = None  # one number, or k1, k2, k3, k4; None: the strategy's default
    alpha: Annotated[Number, AfterValidator(_finite)] = 1.0  # Eq. 8's general form; 1 is the paper's
    t_min: Timestep = 20  # t of both losses is uniform on t_min ... t_max
    t_init: Timestep = 625  # the timestep the generator runs at (Eq. 9)
    t_max: Timestep = 979
    drop_prompt: Annotated[Number, Field(ge=0, le=1)] = 0.1  # share of empty prompts in the fake score's update
    drop_when: Literal["always", "guided"] = "always"  # Algorithm 1, or the authors' code: only if k1 or k2 is not 1
    images: Annotated[Count, FREE] = 10_000_000  # duration, in images seen
    batch: Count = 512  # images an iteration, over all processes
    micro_batch: Annotated[Count, FREE] = 4  # images a forward pass, per process
    # The same for the fake score's update (fewer graphs); None: micro_batch.
    fake_micro_batch: Annotated[Count | None, FREE] = None
    processes: Annotated[Count, FREE] = 1  # what the preset was made for; the plan assumes it, torchrun decides
    lr: Positive = 1e-6  # both networks
    # It falls linearly to 0 over the run's last so many images; None: it stays.
    lr_decay: Annotated[Count | None, FREE] = None
    adam_eps: Positive = 1e-8
    clip_value: Positive | None = None  # value clip of the generator's gradients (pure fp16)
    # In bf16, autocast over fp32 weights; fp16 is the paper's: everything in half.
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tf32: bool = False
    # sdpa: the fused kernel that PyTorch chooses; flash, cudnn, efficient: that one of its kernels; eager: unfused.
    attention: Literal["sdpa", "flash", "cudnn", "efficient", "xformers", "eager"] = "sdpa"
    channels_last: bool = False
    compile: Annotated[bool, FREE] = False  # torch.compile of the networks, static shapes
    # Recompute activations in the backward pass, of the frozen networks too.
    gradient_checkpointing: Annotated[bool, FREE] = False
    # The generator's gradient by one score network at a time: three graphs alive instead of five.
    two_stage: Annotated[bool, FREE] = False
    # No first moment, which is the gradient for beta1 = 0; false: torch.optim.Adam.
    lean_adam: Annotated[bool, FREE] = True
    # Optimiser state of the network that is not being updated waits on the CPU.
    offload_optimizer: Annotated[bool, FREE] = False
    half_teacher: Annotated[bool, FREE] = False  # the frozen teacher's weights in 16 bits, under bf16
    ema: bool = True
    ema_device: Annotated[Literal["same", "cpu"], FREE] = "same"  # where the average is kept, in fp32
    ema_half_life: Count = 50_000  # images
    ema_ramp_up: Positive | None = 0.05  # half-life = min(ema_half_life, ema_ramp_up x images seen)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Annotated[str, FREE] = "auto"
    # What the plan is for when the run is not on this machine: a key of gpus.yaml.
    gpu: Annotated[str | None, FREE] = None
    log_every: Count = 10_240  # images between two lines of metrics.jsonl
    checkpoint_every: Annotated[Count, FREE] = 500_000  # images
    checkpoint_minutes: Annotated[Positive | None, FREE] = (
        30.0  # ... and at the latest after so long; None: by images only
    )
    keep_checkpoints: Annotated[int, Field(ge=1), FREE] = 2
    grid_prompts: str | None = None  # prompts of the sample grid; None: the teacher's own, or the first of `prompts`
    grid_images: Annotated[int, Field(ge=1, le=256)] = 16
    eval_every: Annotated[Count | None, FREE] = None  # images between two scorings of the student; None: never
    eval_protocol: Annotated[str, FREE] = "embedded"  # of emoji; for another teacher: teacher, or gigagan
    eval_reference: Annotated[str | None, FREE] = None  # file of `sidlsg eval stats`; embedded has its own
    eval_images: Annotated[Count, Field(ge=16), FREE] = 1024
    # Where metrics, scores and grids go besides the run's own files (extras of the same names).
    tracker: Annotated[Literal["none", "tensorboard", "wandb"], FREE] = "none"
    latent_mean: Annotated[Positive, FREE] = 2.0  # the run stops when |mean of x_g| is larger
    # ... or its standard deviation is outside.
    latent_std: Annotated[Numbers, Field(min_length=2, max_length=2), FREE] = (0.1, 5.0)

    def __post_init__(self) -> None:
        for name in FIELDS:
            object.__setattr__(self, name, checked(name, getattr(self, name)))
        if self.t_min > self.t_max:
            raise UsageError(f"t_min is {self.t_min}; it must be at most t_max ({self.t_max})")
        if self.half_teacher and self.precision != "bf16":
            raise UsageError(
                f"half_teacher goes with precision bf16; with {self.precision} it would change the teacher"
            )
        if self.offload_optimizer and not self.lean_adam:
            raise UsageError("offload_optimizer needs lean_adam; torch's own Adam keeps its state on the GPU")
        if self.precision == "fp16" and self.adam_eps < SMALLEST_HALF:
            raise UsageError(
                f"adam_eps is {self.adam_eps}, which is 0 in half precision, where a step divides by it: precision fp16 needs "
                "adam_eps 1e-6, as in the paper"
            )
        if self.latent_std[0] >= self.latent_std[1]:
            raise UsageError(f"latent_std is {list(self.latent_std)}; the smaller bound comes first")
        make_guidance(self.strategy, self.kappa)

    @property
    def guidance(self) -> Guidance:
        return make_guidance(self.strategy, self.kappa)

    @property
    def strategy_name(self) -> str:
        """The strategy, or "custom" when all four scales are given."""
        return "custom" if self.kappa is not None and len(self.kappa) == 4 else self.strategy

    @property
    def drops_prompts(self) -> bool:
        """Whether the fake score's update replaces prompts by ""."""
        guided = self.guidance.kappa1 != 1 or self.guidance.kappa2 != 1
        return self.drop_prompt > 0 and (self.drop_when == "always" or guided)

    @property
    def iterations(self) -> int:
        return math.ceil(self.images / self.batch)

    @property
    def micro_batches(self) -> tuple[int, int]:
        """Images a forward pass and process: in the fake score's update, in the generator's."""
        return self.fake_micro_batch or self.micro_batch, self.micro_batch

    def rounds(self, processes: int) -> int:
        """Micro-batches of the generator's update per process and iteration.

        Raises UsageError when the batch does not divide by processes and both micro-batches.
        """
        for name, size in (("--micro-batch", self.micro_batch), ("--set fake_micro_batch", self.micro_batches[0])):
            part = size * processes
            if self.batch % part:
                lower, upper = self.batch // part * part, -(-self.batch // part) * part
                fitting = f"{lower} or {upper}" if lower else str(upper)
                raise UsageError(
                    f"batch {self.batch} does not divide by {name.split()[-1].lstrip('-')} {size} x {processes} process(es); "
                    f"use --batch {fitting}, or another {name}"
                )
        return self.batch // (self.micro_batch * processes)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as YAML writes them."""
        values = dataclasses.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


FIELDS = tuple(field.name for field in dataclasses.fields(Config))
FREE_FIELDS = frozenset(
    name
    for name, hint in typing.get_type_hints(Config, include_extras=True).items()
    if FREE in getattr(hint, "__metadata__", ())
)
SMALLEST_HALF = 6e-8  # what is smaller is 0 in float16

# -- checking one value ----------------------------------------------------------------------------------------------------

WORDS = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "string_type": "text",
    "finite_number": "a finite number",
}


@functools.cache
def _adapters() -> dict[str, TypeAdapter[Any]]:
    hints = typing.get_type_hints(Config, include_extras=True)
    return {name: TypeAdapter(hints[name]) for name in FIELDS}


def checked(name: str, value: Any) -> Any:
    """The value as its field's type; raises UsageError with the rule that it breaks, in one sentence."""
    try:
        return _adapters()[name].validate_python(value, strict=True)
    except ValidationError as error:
        found = error.errors()[0]
    except OverflowError:
        raise UsageError(f"{name} is too large a number") from None
    kind, context = found["type"], found.get("ctx", {})
    if value is None:
        raise UsageError(f"{name} must have a value")
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        raise UsageError(f'{name} is "{value}"{nearest(str(value), known)}')
    shown = f'"{value[:80]}"' if isinstance(value, str) else reprlib.repr(value)  # of a list in lists, its beginning
    raise UsageError(f"{name} is {shown}; it must be {_rule(kind, context)}")


def _rule(kind: str, context: dict[str, Any]) -> str:
    """What pydantic found missing, in our words."""
    if kind == "value_error":
        return str(context["error"])
    for limit, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
        if limit in context:
            return f"{words} {context[limit]}"
    if "actual_length" in context:
        return f"{context.get('min_length', context.get('max_length'))} numbers"
    return WORDS.get(kind, "of another type")
