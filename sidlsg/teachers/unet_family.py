"""What the families around a UNet2DConditionModel, a KL autoencoder and a DDPM schedule share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sidlsg.errors import UsageError
from sidlsg.method.schedule import NoiseSchedule
from sidlsg.teachers.family import Description, Family
from sidlsg.teachers.schedules import ddpm_schedule
from sidlsg.teachers.text import fit_tokenizer

# What the pictures of these would be compared with has few steps already. Words in names: of hub ids, folders, `_name_or_path`.
FEW_STEP = re.compile(r"(?<![a-z])(turbo|lcm|lightning|hyper|dmd2?|schnell|pcm)(?![a-z])", re.IGNORECASE)
EXTRA_CHANNELS = {
    9: "an inpainting model",
    8: "a model that edits a given picture",
    5: "a depth-guided model",
    7: "an upscaler",
}


class UnetFamily(Family):
    """A subclass says how text becomes a condition and how the UNet takes it."""

    network = "unet"
    base: str  # the usual teacher of the family, for advice
    sample_size: int  # of a UNet whose config does not say, in latent pixels
    decode_at_once: int | None = None  # pictures; bounds the memory of the VAE
    addition: str | None  # `addition_embed_type` of the UNet

    def check(self, about: Description) -> None:
        super().check(about)
        unet, vae = about.configs.get("unet", {}), about.configs.get("vae", {})
        channels, latent = unet.get("in_channels", 4), vae.get("latent_channels", 4)
        if channels != latent:
            kind = EXTRA_CHANNELS.get(channels, "a model of another kind")
            raise UsageError(
                f"{about.source} is {kind}: its UNet takes {channels} channels where the latents have {latent}. Only models that "
                f"draw from text alone can be used; give the model it was made from, or {self.base}"
            )
        if unet.get("time_cond_proj_dim"):
            raise UsageError(
                f"the UNet of {about.source} takes the guidance scale as an input (a consistency model, LCM): it was distilled "
                f"already, and sidlsg does not call such networks. Give the model it was distilled from, for instance {self.base}"
            )
        labels = unet.get("class_embed_type") or unet.get("num_class_embeds")
        if labels:
            raise UsageError(
                f"the UNet of {about.source} needs class labels ({labels}), which a text prompt does not give"
            )
        addition = unet.get("addition_embed_type")
        if addition != self.addition:
            raise UsageError(
                f"the UNet of {about.source} takes the additional conditioning {addition or 'none'}, that of {self.what} takes "
                f"{self.addition or 'none'}; this is another family's model"
            )
        if vae.get("latents_mean") or vae.get("shift_factor"):
            raise UsageError(f"the VAE of {about.source} normalises its latents in another way than {self.what}'s")
        self.schedule(about.scheduler)

    def check_teacher(self, about: Description) -> None:
        names = [
            about.source,
            *(config.get("_name_or_path") or "" for config in (about.index, *about.configs.values())),
        ]
        named = next(
            (found[0] for name in names if (found := FEW_STEP.search(name.rstrip("/").rpartition("/")[2]))), None
        )
        kind = about.scheduler.get("_class_name", "")
        why = None
        if kind in ("LCMScheduler", "TCDScheduler"):
            why = "a consistency model (LCM)"
        elif kind == "EulerAncestralDiscreteScheduler" and about.scheduler.get("timestep_spacing") == "trailing":
            why = "a Turbo model"
        elif named:
            why = f'a few-step model by its name ("{named}"; if it is none, give it as a folder of another name)'
        if why:
            raise UsageError(
                f"{about.source} is {why}: it was distilled already and is no teacher. Give the model it was distilled from, "
                f"for instance {self.base}"
            )

    def schedule(self, scheduler: dict[str, Any]) -> NoiseSchedule:
        return ddpm_schedule(scheduler)

    def settle(self, parts: Mapping[str, Any], source: str) -> None:
        for name, encoder in parts.items():
            if name.startswith("text_encoder"):
                fit_tokenizer(parts[name.replace("text_encoder", "tokenizer")], encoder, source)
        unet, vae = parts[self.network], parts["vae"].config
        if not unet.config.sample_size:  # diffusers' pipelines would take their own default
            unet.register_to_config(sample_size=vae.sample_size // 2 ** (len(vae.block_out_channels) - 1))

    def latent_shape(self, network: Any) -> tuple[int, int, int]:
        size = network.config.sample_size or self.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return (network.config.in_channels, height, width)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        latents = latents / vae.config.scaling_factor
        return torch.cat([vae.decode(part).sample for part in latents.split(self.decode_at_once or len(latents))])

    def one_step_scheduler(self, schedule: NoiseSchedule, t_init: int) -> Any:
        """Euler over the first t_init + 1 betas, so that nobody needs a special argument in the pipeline.

        With trailing spacing one step runs at t_init; Euler's initial sigma_t / a_t and its input scaling together make the
        network's input sigma_{t_init} z.
        """
        from diffusers import EulerDiscreteScheduler

        return EulerDiscreteScheduler(
            num_train_timesteps=t_init + 1,
            trained_betas=[float(beta) for beta in schedule.betas[: t_init + 1]],
            prediction_type=schedule.prediction_type,
            timestep_spacing="trailing",
            steps_offset=1,  # unused by trailing spacing; diffusers warns about 0
        )

    def stock_pipeline(self, parts: Mapping[str, Any], index: Mapping[str, Any], scheduler: Any) -> Any:
        import diffusers

        return getattr(diffusers, self.pipeline)(**parts, scheduler=scheduler, **self.pipeline_options(index))

    def pipeline_options(self, index: Mapping[str, Any]) -> dict[str, Any]:
        """What else the pipeline's constructor takes."""
        return {}
