"""The work of an image in passes of the network. No torch in here."""

from __future__ import annotations

from sidlsg.config import Config
from sidlsg.method.guidance import network_passes

# A backward pass of a trained network costs 2.00 forward passes, one through a frozen network (towards its input only) 1.15:
# counted on SD1.5's UNet by sidlsg.planning.flops.
FULL_BACKWARD, INPUT_BACKWARD = 2.0, 1.15


def passes_per_image(config: Config) -> dict[str, int]:
    """Network passes for one image (one sample of each update): forward, full backward, input-only backward.

    The counts behind Table 4's times; psi's passes serve kappa2 and kappa3 alike. Passes that are repeated to save memory
    count as "repeated forward": every graph under gradient checkpointing, both score networks' by one network at a time.
    """
    k1, k2, k3, k4 = config.guidance
    trained, scores = network_passes(k1), network_passes(k2, k3) + network_passes(k4)
    return {
        "forward": 1 + trained + 1 + scores,
        "full backward": trained + 1,
        "input backward": scores,
        "repeated forward": (trained + 1 + scores) * config.gradient_checkpointing + scores * config.two_stage,
    }


def forward_equivalents(config: Config) -> float:
    """The cost of one image in forward passes of the network."""
    passes = passes_per_image(config)
    cost = passes["forward"] + passes["repeated forward"] + FULL_BACKWARD * passes["full backward"]
    return cost + INPUT_BACKWARD * passes["input backward"]
