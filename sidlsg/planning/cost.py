"""The cost of one image, in passes of the network. Does not import torch."""

from __future__ import annotations

from sidlsg.config import Config
from sidlsg.method.guidance import network_passes

# In forward passes, the cost of a backward pass through a trained network, and through a frozen one (gradient of its input only):
# counted on SD1.5's UNet by sidlsg.planning.counting.
FULL_BACKWARD, INPUT_BACKWARD = 2.0, 1.15


def passes_per_image(config: Config) -> dict[str, int]:
    """Network passes for one image, that is for one sample of each update; they explain the ratios of the times in Table 4.

    A "full backward" goes through a trained network, an "input backward" through a frozen one. kappa2 and kappa3 share psi's
    passes. A "repeated forward" saves memory: gradient checkpointing repeats every pass that has a graph, ``two_stage`` those of
    the score networks in the generator's update.
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
