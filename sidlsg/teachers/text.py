"""What the Stable Diffusion families take from CLIP text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 64  # prompts encoded at once


def tokens(tokenizer: Any, prompts: Sequence[str], device: torch.device) -> Tensor:
    """B prompts -> token ids [B, L] on ``device``, padded or cut to the tokenizer's ``model_max_length`` L."""
    return tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids.to(device)


@torch.no_grad()
def last_states(tokenizer: Any, encoder: nn.Module, prompts: Sequence[str]) -> Tensor:
    """Every token's hidden state after the encoder's final normalisation: [B, L, D] float32 (Stable Diffusion 1.x and 2.x)."""
    ids = tokens(tokenizer, prompts, next(encoder.parameters()).device)
    return torch.cat([encoder(part)[0].float() for part in ids.split(BATCH)])


@torch.no_grad()
def penultimate_states(tokenizer: Any, encoder: nn.Module, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Every token's hidden state after the last layer but one, [B, L, D], and the encoder's first output, which is the pooled
    embedding [B, P] if the encoder has a projection; both float32 (SDXL)."""
    ids = tokens(tokenizer, prompts, next(encoder.parameters()).device)
    found = [encoder(part, output_hidden_states=True) for part in ids.split(BATCH)]
    return torch.cat([out.hidden_states[-2].float() for out in found]), torch.cat([out[0].float() for out in found])
