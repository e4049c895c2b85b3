"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, cross-attention to its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sidlsg.method.condition import Condition
from sidlsg.teachers.family import Description, Model, PromptEncoder
from sidlsg.teachers.text import last_states, text_width, tokens
from sidlsg.teachers.unet_family import UnetFamily


class StableDiffusion(UnetFamily):
    """The condition is ``text`` [B, L, D]; ∅ is the encoding of ""."""

    name = "stable-diffusion"
    what = "Stable Diffusion 1.x and 2.x"
    pipeline = "StableDiffusionPipeline"
    relatives = (
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionInstructPix2PixPipeline",
        "StableDiffusionDepth2ImgPipeline",
        "StableDiffusionUpscalePipeline",
        "LatentConsistencyModelPipeline",
    )
    parts = {  # noqa: RUF012
        "tokenizer": "transformers.CLIPTokenizer",
        "text_encoder": "transformers.CLIPTextModel",
        "vae": "diffusers.AutoencoderKL",
        "unet": "diffusers.UNet2DConditionModel",
    }
    base = "sd15 or sd21-base"
    sample_size = 64
    addition = None
    scaling_factor = 0.18215

    def check_text(self, about: Description) -> None:
        self.check_width(about, text_width(about.configs["text_encoder"]))

    def encoder(self, model: Model) -> Encoder:
        return Encoder(model)

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
        return network(x_t, t, c["text"]).sample

    def pipeline_options(self, index: Mapping[str, Any]) -> dict[str, Any]:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    def example_condition(self, network: Any, count: int, tokens: int = 77) -> Condition:
        device = next(network.parameters()).device
        return Condition({"text": torch.zeros(count, tokens, network.config.cross_attention_dim, device=device)})


class Encoder(PromptEncoder):
    """Prompts to the embeddings ``text`` [B, L, D] of their tokens, L of them as in the stock pipeline."""

    def __init__(self, model: Model) -> None:
        self.tokenizer, self.text_encoder = model.parts["tokenizer"], model.parts["text_encoder"]
        self.device = next(self.text_encoder.parameters()).device

    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"tokenizer": tokens(self.tokenizer, prompts)}

    def encode(self, tokens: Mapping[str, Tensor]) -> Condition:
        return Condition({"text": last_states(self.text_encoder, tokens["tokenizer"])})
