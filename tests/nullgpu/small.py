"""A small network of SD1.5's widths under ``torch.compile``: what inductor's own buffers take on the null GPU.

``python -m nullgpu.small SAMPLES``, in ``cards.environment``, prints as JSON, in GiB: what the forward pass keeps, the peak of
the backward pass above what was there before the forward pass, and the gradients of all weights.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from nullgpu.run import without_kernels
from sidlsg.planning.counting import example_inputs
from sidlsg.teachers.architectures import architectures, build_part, family_of_architecture
from sidlsg.teachers.family import Family

FAMILY: Family = family_of_architecture("sd15")


def build(dtype: torch.dtype, device: str = "meta") -> Any:
    """The first of SD1.5's four levels, with one layer, and the middle."""
    config = architectures()["sd15"]["unet"] | {
        "block_out_channels": [320],
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
        "layers_per_block": 1,
    }
    return build_part("diffusers.UNet2DConditionModel", config, device).to(dtype)


def main(samples: int) -> None:
    without_kernels()
    network = build(torch.float32, "cuda").eval().to(memory_format=torch.channels_last)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    x, t, c = example_inputs(network, FAMILY, samples)
    network.compile(dynamic=False)
    for _ in range(2):  # the first time, cuBLAS takes its workspaces
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16):
            out = FAMILY.predict(network, x, t, c)
        kept = torch.cuda.memory_allocated() - before - out.nbytes
        torch.cuda.reset_peak_memory_stats()
        out.sum().backward()
        peak = torch.cuda.max_memory_allocated() - before
        del out
    gradients = sum(parameter.nbytes for parameter in network.parameters())
    print(json.dumps({"kept": kept / 2**30, "peak": peak / 2**30, "gradients": gradients / 2**30}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
