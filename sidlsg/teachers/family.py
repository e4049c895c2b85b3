"""What a family of models must say about itself, and a loaded model.

Everything that differs between Stable Diffusion, SDXL and the families to come stands behind ``Family``. A new one is a class of
its own in a file of its own, named in ``families.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidlsg.errors import SidlsgError, UsageError
from sidlsg.files import Kinds
from sidlsg.method.condition import Condition
from sidlsg.method.denoiser import Denoiser
from sidlsg.method.schedule import NoiseSchedule
from sidlsg.teachers.identity import part_digest, recognised, schedule_digest, values_digest


class PromptEncoder(ABC):
    """Prompts to what the network is conditioned on: ``tokens`` on the host, then ``encode`` on the model's device."""

    device: torch.device

    @cached_property
    def empty(self) -> Condition:
        """∅, of one sample: what a dropped prompt becomes and guidance starts from. Encoded when it is first needed."""
        return self([""])

    def __call__(self, prompts: Sequence[str]) -> Condition:
        """B prompts -> a condition of B samples, float32; prompts that are too long are cut."""
        return self.encode({name: ids.to(self.device) for name, ids in self.tokens(prompts).items()})

    @abstractmethod
    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What ``encode`` takes of B prompts: named tensors on the CPU, each with B rows. Any thread may call it."""

    @abstractmethod
    def encode(self, tokens: Mapping[str, Tensor]) -> Condition:
        """``tokens`` on ``device`` -> a condition of B samples, float32. The host does not wait for the device."""


@dataclass(frozen=True)
class Description:
    """What the configuration files of a folder say, read before any weight is.

    Attributes:
        source: the folder, hub id or alias it came from, for messages.
        index: ``model_index.json``; configs: ``<part>/config.json`` by part, as far as there is one.
        student: ``sidlsg.json`` of a folder that this tool wrote, else None.
        licence: what the folder's README.md or the registry says, else None.
    """

    source: str
    folder: Path
    family: Family
    index: Mapping[str, Any]
    configs: Mapping[str, Mapping[str, Any]]
    scheduler: dict[str, Any]
    student: dict[str, Any] | None = None
    licence: str | None = None

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """As a loaded model has it, like ``schedule``."""
        return self.scheduler

    @property
    def schedule(self) -> NoiseSchedule:
        return self.family.schedule(self.scheduler)


class Family(ABC):
    """One family of latent diffusion models, in the folder layout of one diffusers pipeline."""

    name: str  # in student notes and in architectures.yaml
    what: str  # for people
    pipeline: str  # the diffusers class that reads and samples its folders
    relatives: tuple[
        str, ...
    ] = ()  # other pipelines with the same parts: usable, or refused by ``check`` with a reason
    network: str  # the part that is distilled
    parts: Mapping[str, str]  # every part's folder -> its class, as "library.Class"
    kinds: Mapping[str, Kinds] = {}  # types of what is read of the parts' configurations, and of the scheduler's

    def check(self, about: Description) -> None:
        """Raise UsageError, saying what the model is and what to do, when its configurations are of a kind that this family's
        code would run wrongly. Nothing is loaded for it."""
        for part, kind in self.parts.items():
            listed = about.index.get(part)
            found = listed[1] if isinstance(listed, list) and len(listed) == 2 else None
            wanted = kind.rpartition(".")[2]
            if found is None:
                raise UsageError(
                    f"{about.source} has no {part} ({wanted}), which {self.what} needs; use a complete folder"
                )
            if str(found).removesuffix("Fast") != wanted:
                raise UsageError(f"the {part} of {about.source} is a {found}; {self.what} has a {wanted}")
            if wanted.endswith("Tokenizer"):
                continue
            if part not in about.configs:
                raise SidlsgError(f"{about.folder / part} has no config.json; fetch or copy the whole folder again")
            if (quantised := about.configs[part].get("quantization_config")) is not None:
                method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
                raise UsageError(
                    f"the {part} of {about.source} is quantised ({method or 'quantization_config in its config.json'}), and "
                    "sidlsg needs the weights themselves; give the model that it was made from"
                )
            inside = about.configs[part].get("_class_name") or (about.configs[part].get("architectures") or [wanted])[0]
            if str(inside) != wanted and not (wanted.startswith("CLIP") and str(inside).startswith("CLIP")):
                raise UsageError(
                    f"the {part} of {about.source} is a {inside} by its config.json; {self.what} has a {wanted}"
                )

    def settle(self, parts: Mapping[str, Any], source: str) -> None:  # noqa: B027
        """Fill in what the configurations of loaded parts leave open; raise UsageError when the parts do not fit together."""

    def check_teacher(self, about: Description) -> None:  # noqa: B027
        """Raise UsageError when the model can be sampled but is no teacher: one that was distilled already."""

    def index_values(self, index: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a ``model_index.json`` that change what the model computes."""
        return {}

    @abstractmethod
    def encoder(self, model: Model) -> PromptEncoder:
        """How prompts become conditions."""

    @abstractmethod
    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
        """One call of the network: what it predicts, [B, C, H, W]; the schedule turns it into eps."""

    @abstractmethod
    def schedule(self, scheduler: dict[str, Any]) -> NoiseSchedule:
        """The forward process of a ``scheduler_config.json``; raises UsageError for a formulation that is not the family's."""

    def unusual_schedule(self, schedule: NoiseSchedule, t_init: int) -> str | None:
        """What to tell the user about a schedule that is not the one the family's models were published with; None if it is."""
        return None

    @abstractmethod
    def latent_shape(self, network: Any) -> tuple[int, int, int]:
        """(C, H, W) of one latent at the model's own resolution."""

    @abstractmethod
    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Latents [B, C, H, W] in the network's scaling -> images [B, 3, H', W'] in [-1, 1], in the VAE's dtype."""

    @abstractmethod
    def one_step_scheduler(self, schedule: NoiseSchedule, t_init: int) -> Any:
        """A diffusers scheduler with which the stock pipeline's single step is the generator."""

    @abstractmethod
    def stock_pipeline(self, parts: Mapping[str, Any], index: Mapping[str, Any], scheduler: Any) -> Any:
        """diffusers' own pipeline around the parts, as it reads them from a folder with this ``model_index.json``."""

    @abstractmethod
    def example_condition(self, network: Any, count: int, tokens: int = 77) -> Condition:
        """A condition of the right shapes on the network's device, to count the network without text encoders."""


@dataclass
class Model:
    """A latent diffusion model on one device, frozen and in eval mode.

    Attributes:
        source: the folder or hub id it came from.
        parts: tokenizers, text encoders, network and VAE, by their folders' names.
        index: ``model_index.json``.
        student: ``sidlsg.json`` of a one-step student, else None.
    """

    source: str
    family: Family
    parts: dict[str, Any]
    scheduler_config: dict[str, Any]
    schedule: NoiseSchedule
    index: Mapping[str, Any] = field(default_factory=dict)
    student: dict[str, Any] | None = None
    licence: str | None = None

    @property
    def network(self) -> Any:
        """The UNet (or transformer) that is distilled."""
        return self.parts[self.family.network]

    @property
    def vae(self) -> Any:
        return self.parts["vae"]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent at the model's own resolution, from its configs."""
        return self.family.latent_shape(self.network)

    def encoder(self) -> PromptEncoder:
        return self.family.encoder(self)

    def digests(self) -> dict[str, str]:
        """SHA-256 of every part as it was loaded, of the schedule and of what ``model_index.json`` says, by name: two models with
        equal digests are one model."""
        return {
            **{name: part_digest(part) for name, part in self.parts.items()},
            "scheduler": schedule_digest(self.schedule),
            "model_index": values_digest({"family": self.family.name, **self.family.index_values(self.index)}),
        }

    def recognised(self, recorded: Mapping[str, str], today: Mapping[str, str]) -> dict[str, str]:
        """``digests`` that were recorded, with ``today``'s in place of those that older versions gave to this model's parts."""
        return recognised(recorded, today, self.parts)

    def denoiser(self, network: nn.Module | None = None, autocast: torch.dtype | None = None) -> Denoiser:
        """The model's network, or a copy of it, as eps(x_t, t, c)."""
        return Denoiser(network or self.network, self.schedule, self.family.predict, autocast)

    def pipeline(self, scheduler: Any) -> Any:
        """diffusers' own pipeline around this model's parts."""
        return self.family.stock_pipeline(self.parts, self.index, scheduler)

    @contextmanager
    def decoding(self, device: torch.device) -> Iterator[None]:
        """Keep a VAE that waits on another device on ``device`` inside the block, so that several ``decode`` move it once."""
        home = next(self.vae.parameters()).device
        if home == device:
            yield
            return
        self.vae.to(device)
        try:
            yield
        finally:
            self.vae.to(home)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, H, W] -> images [B, 3, H', W'] in [0, 1], by the VAE in float32 (some overflow in half)."""
        with self.decoding(latents.device):
            images = self.family.decode(self.vae, latents.float())
        return (images / 2 + 0.5).clamp(0, 1)
