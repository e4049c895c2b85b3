"""Figures of the paper, and the memory of the code that they were measured with."""

from __future__ import annotations

from sidlsg.config import Config
from sidlsg.planning.footprint import GIB, Footprint
from sidlsg.planning.memory import fake_score_phase, generator_phase

# Table 4, "max memory in GB allocated" (the log divides by 2^30): long, short, simplest LSG, LSG. xFormers and FlashAttention
# never write a softmax out; LSG ran without EMA on the RTX cards.
TABLE_4 = {
    "a5000-fp16": (22.9, 22.9, 22.6, 22.0),
    "a6000-fp32": (45.7, 45.7, 45.0, 45.8),
    "h100-fp16, eager": (55.8, 55.8, 47.7, 63.9),
    "h100-fp16": (32.3, 32.2, 29.2, 35.2),
    "h100-fp32": (58.9, 57.4, 53.4, 62.9),
}


def authors_gib(config: Config, size: Footprint) -> float:
    """GiB of the authors' implementation, which holds twelve copies of the network in one precision.

    They are phi, psi, theta and the average; the gradients of psi and theta, kept at the same time; the buckets of
    DistributedDataParallel for both, separate from the gradients; Adam's two moments for both.
    """
    bits = 16 if config.precision == "fp16" else 32
    copy = size.copy(bits)
    lines = {
        "weights": 3 * copy,
        "gradients": 2 * copy,
        "buckets": 2 * copy,
        "optimizer": 4 * copy,
        "average": copy if config.ema else 0.0,
        "text encoder": size.text_encoder * bits / 8 / GIB,
        "vae": size.vae * bits / 8 / GIB,
    }
    updates = fake_score_phase(config, size), generator_phase(config, size)
    return sum(lines.values()) + max(update.lines["activations"] for update in updates)
