"""What a family of models must say about itself, and a loaded model.

Everything that differs between Stable Diffusion, SDXL and the families to come stands behind ``Family``. A new one is a class of
its own in a file of its own, named in ``families.py``.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidlsg.errors import SidlsgError, UsageError
from sidlsg.files import Kinds
from sidlsg.method.condition import Condition
from sidlsg.method.denoiser import Denoiser
from sidlsg.method.schedule import NoiseSchedule


class PromptEncoder(ABC):
    """Prompts to what the network is conditioned on: ``tokens`` on the host, then ``encode`` on the model's device."""

    empty: Condition  # ∅: what a dropped prompt becomes and guidance starts from, of one sample
    device: torch.device

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
            inside = about.configs[part].get("_class_name") or (about.configs[part].get("architectures") or [wanted])[0]
            if str(inside) != wanted and not (wanted.startswith("CLIP") and str(inside).startswith("CLIP")):
                raise UsageError(
                    f"the {part} of {about.source} is a {inside} by its config.json; {self.what} has a {wanted}"
                )

    def settle(self, parts: Mapping[str, Any], source: str) -> None:  # noqa: B027
        """Fill in what the configurations of loaded parts leave open; raise UsageError when the parts do not fit together."""

    def check_teacher(self, about: Description) -> None:  # noqa: B027
        """Raise UsageError when the model can be sampled but is no teacher: one that was distilled already."""

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
        """SHA-256 of every part as it was loaded, by name: two models with equal digests are one model."""
        return {name: part_digest(part) for name, part in self.parts.items()}

    def denoiser(self, network: nn.Module | None = None, autocast: torch.dtype | None = None) -> Denoiser:
        """The model's network, or a copy of it, as eps(x_t, t, c)."""
        return Denoiser(network or self.network, self.schedule, self.family.predict, autocast)

    def pipeline(self, scheduler: Any) -> Any:
        """diffusers' own pipeline around this model's parts."""
        return self.family.stock_pipeline(self.parts, self.index, scheduler)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, H, W] -> images [B, 3, H', W'] in [0, 1], by the VAE in float32 (some overflow in half).

        A VAE that waits on another device comes to the latents' for the time of the call.
        """
        home = next(self.vae.parameters()).device
        try:
            images = self.family.decode(self.vae.to(latents.device), latents.float())
        finally:
            self.vae.to(home)
        return (images / 2 + 0.5).clamp(0, 1)


def part_digest(part: Any) -> str:
    """SHA-256 over names, dtypes and bytes of a network's weights, or over a tokenizer's vocabulary."""
    digest = hashlib.sha256()
    if not isinstance(part, nn.Module):
        digest.update(json.dumps([sorted(part.get_vocab().items()), part.model_max_length]).encode())
        return digest.hexdigest()
    for name, tensor in sorted(part.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
