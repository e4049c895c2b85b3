"""What the families around a UNet2DConditionModel, a KL autoencoder and a DDPM schedule share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sidlsg.errors import UsageError
from sidlsg.files import Kinds
from sidlsg.method.schedule import NoiseSchedule
from sidlsg.teachers.family import Description, Family
from sidlsg.teachers.foreign import few_step_word
from sidlsg.teachers.schedules import KINDS, PUBLISHED, compare, ddpm_schedule
from sidlsg.teachers.text import fit_tokenizer

SCALING_FACTOR = 0.18215  # what diffusers fills in
EXTRA_CHANNELS = {
    9: "an inpainting model",
    8: "a model that edits a given picture",
    5: "a depth-guided model",
    7: "an upscaler",
}


# Types of what is read of the configurations.
SIZE = (int, list)
UNET: Kinds = {
    **dict.fromkeys(("in_channels", "out_channels", "time_cond_proj_dim", "num_class_embeds", "encoder_hid_dim"), int),
    **dict.fromkeys(("addition_time_embed_dim", "projection_class_embeddings_input_dim"), int),
    **dict.fromkeys(("_name_or_path", "class_embed_type", "addition_embed_type", "encoder_hid_dim_type"), str),
    **dict.fromkeys(("sample_size", "cross_attention_dim"), SIZE),
}
VAE: Kinds = {
    **dict.fromkeys(("latent_channels", "out_channels"), int),
    "block_out_channels": list,
    "sample_size": SIZE,
    **dict.fromkeys(("scaling_factor", "shift_factor"), (int, float)),
}
TEXT: Kinds = {
    "text_config": dict,
    "_name_or_path": str,
    "hidden_size": int,
    "projection_dim": int,
    "architectures": list,
    "model_type": str,
}


class UnetFamily(Family):
    """A subclass says how text becomes a condition and how the UNet takes it."""

    network = "unet"
    base: str  # the usual teacher of the family, for advice
    sample_size: int  # of a UNet whose config does not say, in latent pixels
    decode_at_once: int | None = None  # pictures; bounds the memory of the VAE
    addition: str | None  # `addition_embed_type` of the UNet
    scaling_factor: float  # of the latents, as published
    kinds = {"unet": UNET, "vae": VAE, "text_encoder": TEXT, "text_encoder_2": TEXT, "scheduler": KINDS}  # noqa: RUF012

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
        hidden = unet.get("encoder_hid_dim_type") or unet.get("encoder_hid_dim")
        if hidden:
            raise UsageError(
                f"the UNet of {about.source} takes its prompt through a further projection ({hidden}), as an IP-adapter's or "
                f"Kandinsky's: it may need a picture, which sidlsg does not give. Give the model without it, or {self.base}"
            )
        if unet.get("out_channels", channels) != channels:
            raise UsageError(
                f"the UNet of {about.source} gives {unet['out_channels']} channels for {channels}: it predicts a variance too, "
                "which sidlsg does not use"
            )
        addition = unet.get("addition_embed_type")
        if addition != self.addition:
            raise UsageError(
                f"the UNet of {about.source} takes the additional conditioning {addition or 'none'}, that of {self.what} takes "
                f"{self.addition or 'none'}; this is another family's model"
            )
        if vae.get("latents_mean") or vae.get("shift_factor"):
            raise UsageError(f"the VAE of {about.source} normalises its latents in another way than {self.what}'s")
        if vae.get("out_channels", 3) != 3:
            raise UsageError(
                f"the VAE of {about.source} gives pictures of {vae['out_channels']} channels, and not of 3"
            )
        if vae.get("scaling_factor") is None and self.scaling_factor != SCALING_FACTOR:
            raise UsageError(
                f"the VAE of {about.source} does not say its scaling_factor, for which diffusers would take {SCALING_FACTOR}; "
                f"that of {self.what} is {self.scaling_factor}: set it in {about.folder / 'vae' / 'config.json'}"
            )
        self.check_text(about)
        self.schedule(about.scheduler)

    @abstractmethod
    def check_text(self, about: Description) -> None:
        """Raise UsageError when the UNet does not take what the text encoders give."""

    def check_width(self, about: Description, given: int) -> None:
        """Raise UsageError when the UNet attends to text of another width than the encoders' together."""
        width = about.configs[self.network].get("cross_attention_dim") or 1280  # diffusers' own default
        if set(width if isinstance(width, list) else [width]) != {given}:
            raise UsageError(
                f"the UNet of {about.source} takes text of width {width}, but its text encoders give {given}: they do not "
                "belong together. Copy the encoders of the model that the UNet was made from"
            )

    def unusual_schedule(self, schedule: NoiseSchedule, t_init: int) -> str | None:
        return compare(schedule, ddpm_schedule(PUBLISHED), t_init)

    def check_teacher(self, about: Description) -> None:
        names = [
            about.source,
            *(config.get("_name_or_path") or "" for config in (about.index, *about.configs.values())),
        ]
        named = next(filter(None, map(few_step_word, names)), None)
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
