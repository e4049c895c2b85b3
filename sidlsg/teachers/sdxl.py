"""Stable Diffusion XL: two CLIP text encoders, a pooled embedding, and the picture's size as a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sidlsg.errors import UsageError
from sidlsg.method.condition import Condition
from sidlsg.teachers.family import Description, Model, PromptEncoder
from sidlsg.teachers.text import penultimate_states, text_width, tokens
from sidlsg.teachers.unet_family import UnetFamily


class StableDiffusionXL(UnetFamily):
    """The condition is ``text`` [B, L, D1 + D2] of both encoders, ``pooled`` [B, P] of the second, and ``time_ids`` [B, 6].

    ∅ is zeros for text and pooled embedding where ``model_index.json`` says ``force_zeros_for_empty_prompt`` (SDXL base does),
    as the stock pipeline guides without a negative prompt; else the encoding of "".
    """

    name = "sdxl"
    what = "Stable Diffusion XL"
    pipeline = "StableDiffusionXLPipeline"
    relatives = ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
    parts = {  # noqa: RUF012
        "tokenizer": "transformers.CLIPTokenizer",
        "tokenizer_2": "transformers.CLIPTokenizer",
        "text_encoder": "transformers.CLIPTextModel",
        "text_encoder_2": "transformers.CLIPTextModelWithProjection",
        "vae": "diffusers.AutoencoderKL",
        "unet": "diffusers.UNet2DConditionModel",
    }
    base = "sdxl"
    sample_size = 128
    decode_at_once = 1  # a float32 decoder at 1024x1024 takes gigabytes a picture
    addition = "text_time"
    scaling_factor = 0.13025

    def check(self, about: Description) -> None:
        no_first = about.index.get("text_encoder") in (None, [None, None])
        if about.index.get("requires_aesthetics_score") or (no_first and about.index.get("text_encoder_2")):
            raise UsageError(
                f"{about.source} is an SDXL refiner, which only finishes what the base model began; give the base: {self.base}"
            )
        super().check(about)

    def check_text(self, about: Description) -> None:
        unet, second = about.configs["unet"], about.configs["text_encoder_2"]
        self.check_width(about, text_width(about.configs["text_encoder"]) + text_width(second))
        pooled = second.get("projection_dim", 512)
        taken = unet.get("projection_class_embeddings_input_dim", 0) - 6 * unet.get("addition_time_embed_dim", 0)
        if taken != pooled:
            raise UsageError(
                f"the UNet of {about.source} takes a pooled embedding of width {taken}, but text_encoder_2 gives {pooled}: they "
                "do not belong together"
            )

    def encoder(self, model: Model) -> Encoder:
        return Encoder(model)

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
        added = {"text_embeds": c["pooled"], "time_ids": c["time_ids"]}
        return network(x_t, t, c["text"], added_cond_kwargs=added).sample

    def pipeline_options(self, index: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.index_values(index), "add_watermarker": False}

    def index_values(self, index: Mapping[str, Any]) -> dict[str, Any]:
        return {"force_zeros_for_empty_prompt": _zeros_for_empty(index)}

    def example_condition(self, network: Any, count: int, tokens: int = 77) -> Condition:
        config, device = network.config, next(network.parameters()).device
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return Condition(
            {
                "text": torch.zeros(count, tokens, config.cross_attention_dim, device=device),
                "pooled": torch.zeros(count, pooled, device=device),
                "time_ids": torch.zeros(count, 6, dtype=torch.int64, device=device),
            }
        )


def _zeros_for_empty(index: Mapping[str, Any]) -> bool:
    return bool(index.get("force_zeros_for_empty_prompt", True))  # the pipeline's own default


class Encoder(PromptEncoder):
    """Prompts to the embeddings of their tokens by both encoders, the pooled embedding, and the time ids of a square picture."""

    def __init__(self, model: Model) -> None:
        self.parts = model.parts
        self.device = next(self.parts["text_encoder"].parameters()).device
        factor = 2 ** (len(model.vae.config.block_out_channels) - 1)
        height, width = (factor * side for side in model.latent_shape[1:])
        # Original size, top left corner of the crop, target size: a whole picture of the model's own resolution.
        self.time_ids = torch.tensor([[height, width, 0, 0, height, width]])
        self.zeros_for_empty = _zeros_for_empty(model.index)

    @cached_property
    def empty(self) -> Condition:
        encoded = self([""])
        if not self.zeros_for_empty:
            return encoded
        zeros = {name: torch.zeros_like(encoded[name]) for name in ("text", "pooled")}
        return Condition({**encoded.tensors, **zeros})

    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        ids = {name: tokens(self.parts[name], prompts) for name in ("tokenizer", "tokenizer_2")}
        return {**ids, "time_ids": self.time_ids.repeat(len(prompts), 1)}

    def encode(self, tokens: Mapping[str, Tensor]) -> Condition:
        first, _ = penultimate_states(self.parts["text_encoder"], tokens["tokenizer"])
        second, pooled = penultimate_states(self.parts["text_encoder_2"], tokens["tokenizer_2"])
        text = torch.cat([first, second], dim=-1)
        return Condition({"text": text, "pooled": pooled, "time_ids": tokens["time_ids"]})
