"""The configuration of a distillation run: one frozen dataclass, filled as option > preset > default. No torch in here."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from sidlsg.data import presets_folder
from sidlsg.errors import UsageError, nearest
from sidlsg.method.guidance import Guidance, make_guidance

PRECISIONS = ("fp32", "bf16", "fp16")
ATTENTIONS = ("sdpa", "xformers", "eager")


@dataclass(frozen=True)
class Config:
    """Every setting of a run. Counts are images, never iterations.

    Raises UsageError, naming the setting, when a value is out of range or two values do not fit together.
    """

    teacher: str = "emoji"  # alias, hub id or folder
    prompts: str = "emoji"  # alias or text file, one prompt a line
    strategy: str = "lsg"  # long, short, lsg-simple, lsg (Sec. 2.3)
    kappa: tuple[float, ...] | None = None  # one number, or k1, k2, k3, k4; None: the strategy's default
    alpha: float = 1.0  # Eq. 8's general form; 1 is the paper's
    t_min: int = 20  # t of both losses is uniform on t_min ... t_max
    t_init: int = 625  # the timestep the generator runs at (Eq. 9)
    t_max: int = 979
    drop_prompt: float = 0.1  # share of prompts replaced by "" in the fake score's update
    drop_when: str = "always"  # always (Algorithm 1) or guided (authors' code: only if k1 or k2 is not 1)
    images: int = 10_000_000  # duration, in images seen
    batch: int = 512  # images an iteration, over all processes
    micro_batch: int = 4  # images a forward pass, per process
    fake_micro_batch: int | None = None  # the same for the fake score's update (fewer graphs); None: micro_batch
    processes: int = 1  # what the preset was made for; the plan assumes it, torchrun decides
    lr: float = 1e-6  # both networks
    adam_eps: float = 1e-8
    clip_value: float | None = None  # value clip of the generator's gradients (pure fp16)
    precision: str = "fp32"  # fp32; bf16 (autocast, fp32 weights); fp16 (the paper's: everything in half)
    tf32: bool = False
    attention: str = "sdpa"  # sdpa (FlashAttention where the GPU has it), xformers, eager (no fused attention)
    channels_last: bool = False
    compile: bool = False  # torch.compile of the UNets, static shapes
    gradient_checkpointing: bool = False  # recompute activations in the backward pass, of the frozen networks too
    two_stage: bool = False  # the generator's gradient by one network at a time: three graphs alive instead of five
    lean_adam: bool = True  # no first moment, which is the gradient for beta1 = 0; false: torch.optim.Adam
    offload_optimizer: bool = False  # optimiser state of the network that is not being updated waits on the CPU
    half_teacher: bool = False  # the frozen teacher's weights in 16 bits under fp32 or bf16
    ema: bool = True
    ema_device: str = "same"  # same, or cpu: the average is kept in fp32 on the CPU
    ema_half_life: int = 50_000  # images
    ema_ramp_up: float | None = 0.05  # half-life = min(ema_half_life, ema_ramp_up x images seen)
    seed: int = 0
    device: str = "auto"
    gpu: str | None = None  # what the plan is for when the run is not on this machine: a key of gpus.yaml
    log_every: int = 10_240  # images between two lines of metrics.jsonl
    checkpoint_every: int = 500_000  # images
    keep_checkpoints: int = 2
    grid_prompts: str | None = None  # prompts of the sample grid; None: the teacher's own, or the first of `prompts`
    grid_images: int = 16
    eval_every: int | None = None  # images between two scorings of the student; None: never
    eval_protocol: str = "embedded"  # gigagan for Stable Diffusion
    eval_reference: str | None = None  # file of `sidlsg eval stats`; embedded has its own
    eval_images: int = 1024
    latent_mean: float = 2.0  # the run stops when |mean of x_g| is larger
    latent_std: tuple[float, ...] = (0.1, 5.0)  # ... or its standard deviation is outside

    def __post_init__(self) -> None:
        def need(ok: bool, name: str, rule: str) -> None:
            if not ok:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be {rule}")

        for name in (
            "images",
            "batch",
            "micro_batch",
            "processes",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            need(getattr(self, name) >= 1, name, "at least 1")
        for name in ("t_min", "t_init", "t_max"):
            need(0 <= getattr(self, name) <= 999, name, "a timestep, 0 to 999")
        need(self.fake_micro_batch is None or self.fake_micro_batch >= 1, "fake_micro_batch", "at least 1")
        need(self.eval_every is None or self.eval_every >= 1, "eval_every", "at least 1 image, or null")
        need(self.eval_images >= 16, "eval_images", "at least 16")
        need(self.t_min <= self.t_max, "t_min", f"at most t_max ({self.t_max})")
        for name in ("lr", "adam_eps"):
            need(math.isfinite(getattr(self, name)) and getattr(self, name) > 0, name, "a number > 0")
        need(math.isfinite(self.alpha), "alpha", "a finite number (1 is the paper's)")
        need(0 <= self.drop_prompt <= 1, "drop_prompt", "a share, 0 to 1")
        need(self.clip_value is None or self.clip_value > 0, "clip_value", "a number > 0, or null")
        need(self.ema_half_life >= 1, "ema_half_life", "at least 1 image")
        need(self.ema_ramp_up is None or self.ema_ramp_up > 0, "ema_ramp_up", "a number > 0, or null")
        need(0 <= self.seed < 2**63, "seed", "a whole number >= 0")
        need(1 <= self.grid_images <= 256, "grid_images", "1 to 256")
        need(len(self.latent_std) == 2, "latent_std", "two numbers, smallest and largest")
        for name, known in (
            ("precision", PRECISIONS),
            ("attention", ATTENTIONS),
            ("drop_when", ("always", "guided")),
            ("ema_device", ("same", "cpu")),
        ):
            if getattr(self, name) not in known:
                value = getattr(self, name)
                raise UsageError(f'{name} is "{value}"{nearest(value, known)}')
        if self.half_teacher and self.precision != "bf16":
            raise UsageError(
                f"half_teacher goes with precision bf16; with {self.precision} it would change the teacher"
            )
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


FIELDS: dict[str, Any] = typing.get_type_hints(Config)


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


COUNTS = {
    "images",
    "batch",
    "micro_batch",
    "fake_micro_batch",
    "processes",
    "ema_half_life",
    "log_every",
    "checkpoint_every",
    "eval_every",
    "eval_images",
}


def _convert(name: str, value: Any) -> Any:
    """A YAML value as the type the field declares; raises ValueError with the expected type in words."""
    hint = FIELDS[name]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None:
        if type(None) in options:
            return None
        raise ValueError("a value")
    kind = next(option for option in options if option is not type(None))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in COUNTS and (number or isinstance(value, str)):
        return parse_count(value, name)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and number:
        return float(value)
    # YAML 1.1 reads 1e-6 (without a dot) as text.
    if kind is float and isinstance(value, str) and re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)e[+-]?[0-9]+", value):
        return float(value)
    if kind is str and isinstance(value, str):
        return value
    if typing.get_origin(kind) is tuple:
        values = value if isinstance(value, list) else [value]
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            return tuple(float(v) for v in values)
        raise ValueError("a number or a list of numbers")
    raise ValueError({bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind])


def parse_settings(assignments: list[str]) -> dict[str, Any]:
    """["two_stage=true", "ema_device=cpu"] -> settings, converted as in a preset; raises UsageError naming the setting."""
    settings: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals:
            raise UsageError(f'--set takes NAME=VALUE, not "{text}"')
        if key not in FIELDS:
            raise UsageError(f'--set: unknown setting "{key}"{nearest(key, FIELDS)}')
        try:
            settings[key] = _convert(key, yaml.safe_load(value))
        except yaml.YAMLError:
            raise UsageError(f"--set {text}: the value is not valid YAML") from None
        except (ValueError, OverflowError) as error:
            raise UsageError(f"--set: {key} must be {error}") from None
    return settings


def read_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings given in Python, converted as in a preset ("50k", 1.5); raises UsageError naming the setting."""
    settings = {}
    for key, value in values.items():
        if key not in FIELDS:
            raise UsageError(f'unknown setting "{key}"{nearest(key, FIELDS)}')
        try:
            settings[key] = _convert(key, list(value) if isinstance(value, tuple) else value)
        except (ValueError, OverflowError) as error:
            raise UsageError(f"{key} must be {error}") from None
    return settings


def load_settings(path: Path) -> dict[str, Any]:
    """Settings of a preset file, each converted to its field's type.

    Raises UsageError, with the line, for YAML that does not parse, an unknown key (naming the nearest), a key given
    twice, or a value of the wrong type.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as a YAML file: {error}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)})") from None
    except RecursionError:
        raise UsageError(f"{path}: not a preset (brackets are nested thousands deep)") from None
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{path}: a preset is a list of `key: value` lines")
    loader = yaml.SafeLoader("")
    settings: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key not in FIELDS:
            raise UsageError(f'{path}, line {line}: unknown key "{key}"{nearest(key, FIELDS)}')
        if key in settings:
            raise UsageError(f'{path}, line {line}: "{key}" is given twice')
        try:
            value = loader.construct_object(value_node, deep=True)
        except Exception:  # a tag or a date that does not fit its text: PyYAML raises half a dozen types
            raise UsageError(f"{path}, line {line}: the value of {key} is not valid YAML") from None
        try:
            settings[key] = _convert(key, value)
        except ValueError as error:
            raise UsageError(f"{path}, line {line}: {key} must be {error}") from None
        except OverflowError:
            raise UsageError(f"{path}, line {line}: {key} is too large a number") from None
        except UsageError as error:
            raise UsageError(f"{path}, line {line}: {error}") from None
    return settings


def preset_names() -> list[str]:
    return sorted(path.stem for path in presets_folder().glob("*.yaml"))


def preset_path(name: str) -> Path:
    """The file of a preset by name, or a path to one; raises UsageError naming the nearest preset."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    if name not in preset_names():
        raise UsageError(f'unknown preset "{name}"{nearest(name, preset_names())}')
    return presets_folder() / f"{name}.yaml"


def make_config(preset: str | None, options: Mapping[str, Any]) -> Config:
    """Option > preset > default; every option counts, None too (which is what YAML's null says).

    A strategy given as an option without a kappa takes that strategy's own default, not the preset's number.
    """
    settings = load_settings(preset_path(preset)) if preset else {}
    if "strategy" in options and "kappa" not in options:
        settings.pop("kappa", None)
    return Config(**settings | dict(options))
