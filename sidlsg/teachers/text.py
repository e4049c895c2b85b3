"""What the Stable Diffusion families take from CLIP text encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sidlsg.errors import UsageError

BATCH = 64  # prompts encoded at once


NO_LIMIT = 1_000_000  # transformers writes 1e30 for a tokenizer without a limit


def fit_tokenizer(tokenizer: Any, encoder: Any, source: str) -> None:
    """Give a tokenizer without a limit that of its encoder.

    Raises UsageError when the encoder has no embedding for some of the tokenizer's tokens or positions, or the tokenizer no
    vocabulary for the encoder.
    """
    vocabulary, embeddings = len(tokenizer), encoder.config.vocab_size
    if not embeddings / 2 < vocabulary <= embeddings:
        raise UsageError(
            f"the tokenizer of {source} has a vocabulary of {vocabulary:,}, its text encoder has embeddings for {embeddings:,}: "
            "they do not belong together, or files of the tokenizer are missing"
        )
    positions = encoder.config.max_position_embeddings
    if tokenizer.model_max_length > NO_LIMIT:
        tokenizer.model_max_length = positions
    if tokenizer.model_max_length > positions:
        raise UsageError(
            f"the tokenizer of {source} gives up to {tokenizer.model_max_length} tokens, its text encoder takes {positions}"
        )


def text_width(config: Mapping[str, Any]) -> int:
    """The width of a CLIP text encoder's states by its ``config.json``, which may be that of the whole CLIP model."""
    return (config.get("text_config") or config).get("hidden_size", 512)


def tokens(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """B prompts -> ids [B, L] on the CPU, padded and cut to the tokenizer's ``model_max_length`` L.

    Two threads may call it at once, since every call pads and cuts alike: one that did not would change the tokenizer, which
    fails with "Already borrowed" while another thread uses it.
    """
    return tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


@torch.no_grad()
def last_states(encoder: nn.Module, ids: Tensor) -> Tensor:
    """Ids [B, L] on the encoder's device -> every token's hidden state after the encoder's final normalisation, [B, L, D] float32
    (Stable Diffusion 1.x and 2.x)."""
    return torch.cat([encoder(part)[0].float() for part in ids.split(BATCH)])


@torch.no_grad()
def penultimate_states(encoder: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Ids [B, L] on the encoder's device -> every token's hidden state after the last layer but one, [B, L, D], and the encoder's
    first output, which is the pooled embedding [B, P] if the encoder has a projection; both float32 (SDXL)."""
    states, pooled = [], []
    for part in ids.split(BATCH):
        out = encoder(part, output_hidden_states=True)  # all layers' states, which must not outlive the part
        states.append(out.hidden_states[-2].float())
        pooled.append(out[0].float())
    return torch.cat(states), torch.cat(pooled)
