"""Counts a network's operations and what it saves for the backward pass, on the meta device: no weights, no GPU, seconds.

`python -m sidlsg.planning.counting ARCHITECTURE` prints the architecture's entry of ``footprints.yaml``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from sidlsg.devices import DTYPES
from sidlsg.method.condition import Condition
from sidlsg.planning.footprint import GIB, Footprint, Saved
from sidlsg.teachers.architectures import build_model, build_network, build_part, family_of_architecture
from sidlsg.teachers.family import Family
from sidlsg.teachers.loading import describe

functional = nn.functional


@dataclass(frozen=True)
class NetworkCost:
    """Number of parameters, and FLOP for one sample at the network's own resolution; a multiply-add counts as two.

    backward computes the gradients of all weights; input_backward, through a frozen network, that of x_t only.
    """

    parameters: int
    forward: int
    backward: int
    input_backward: int


def count(network: Any, family: Family, tokens: int = 77) -> NetworkCost:
    """Count the operations of a network on the meta device.

    Args:
        tokens: length of the text embedding; CLIP's is 77.
    """
    x, t, c = example_inputs(network, family, tokens=tokens)

    def measure(train: bool) -> tuple[int, int]:
        network.requires_grad_(train)
        x_t = x.clone().requires_grad_(not train)
        with FlopCounterMode(display=False) as forward:
            out = family.predict(network, x_t, t, c)
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        return forward.get_total_flops(), backward.get_total_flops()

    forward, backward = measure(train=True)
    _, input_backward = measure(train=False)
    return NetworkCost(size(network), forward, backward, input_backward)


def example_inputs(
    network: Any, family: Family, dtype: torch.dtype = torch.float32, tokens: int = 77
) -> tuple[Tensor, Tensor, Condition]:
    """(x_t, t, c) of one sample on the meta device."""
    x = torch.empty(1, *family.latent_shape(network), device="meta", dtype=dtype)
    return x, torch.zeros(1, dtype=torch.int64, device="meta"), family.example_condition(network, 1, tokens).to(dtype)


class _FusedAttention(torch.autograd.Function):
    """Attention that saves what a fused kernel saves for its backward pass: queries, keys, values and output, no softmax."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


class _AsOnAGpu(TorchFunctionMode):
    """Runs attention as fused and, with ``autocast``, applies CUDA's autocast rules to what a UNet calls: convolutions and matrix
    products in bf16, normalisations in fp32. Also counts the softmax elements of all self-attentions."""

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self.softmax = 0  # number of softmax elements, over all self-attentions
        half, full = torch.bfloat16, torch.float32
        self.casts = {functional.conv2d: half, functional.linear: half} if autocast else {}
        self.casts |= {functional.group_norm: full, functional.layer_norm: full} if autocast else {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            q, k, v = args[:3]
            if q.shape[-2] == k.shape[-2]:
                self.softmax += q.shape[:-1].numel() * k.shape[-2]
            return _FusedAttention.apply(q, k, v)
        if func in self.casts:
            args = (args[0].to(self.casts[func]), *args[1:])
        return func(*args, **(kwargs or {}))


class _Count:
    """Adds up what is saved for a backward pass, in bytes: each storage once, without the weights."""

    def __init__(self, network: nn.Module) -> None:
        self.sizes = {p.untyped_storage()._cdata: 0 for p in network.parameters()}
        self.alive: list[Tensor] = []  # so that the id of a freed storage is not reused

    def note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.sizes.setdefault(storage._cdata, storage.nbytes())
        self.alive.append(tensor)
        return tensor

    @property
    def gib(self) -> float:
        return sum(self.sizes.values()) / GIB


def saved_tensors(build: Callable[[torch.dtype], Any], family: Family, precision: str) -> tuple[Saved, int]:
    """What one pass of one sample saves for its backward pass, and the number of softmax elements over all self-attentions.

    Args:
        build: makes the network on the meta device, in a given dtype.
        precision: fp16 or fp32 (everything in that dtype), or bf16 (autocast).
    """

    def run(trained: bool, checkpointed: bool) -> tuple[float, float, int]:
        network = build(DTYPES[precision]).requires_grad_(trained)
        if precision == "bf16":
            for module in network.modules():
                if isinstance(module, nn.GroupNorm | nn.LayerNorm):
                    module.float()
        found, blocks = _Count(network), [0.0]

        def inside(block: Any, *inputs: Any) -> Any:
            """Stands in for torch.utils.checkpoint: a block's inputs count as saved, the rest as recomputed."""
            again = _Count(network)
            with torch.autograd.graph.saved_tensors_hooks(again.note, lambda tensor: tensor):
                out = block(*inputs)
            blocks.append(again.gib)
            found.alive.extend(again.alive)
            for tensor in inputs:
                if isinstance(tensor, Tensor):
                    found.note(tensor)
            return out

        if checkpointed:
            network.enable_gradient_checkpointing()
            for module in network.modules():
                if hasattr(module, "gradient_checkpointing"):
                    module._gradient_checkpointing_func = inside
            network.train()
        x, t, c = example_inputs(network, family, DTYPES["fp16"] if precision == "fp16" else DTYPES["fp32"])
        x.requires_grad_(not trained)
        mode = _AsOnAGpu(precision == "bf16")
        with mode, torch.autograd.graph.saved_tensors_hooks(found.note, lambda tensor: tensor):
            family.predict(network, x, t, c)
        return found.gib, max(blocks), mode.softmax

    trained, _, softmax = run(trained=True, checkpointed=False)
    frozen, _, _ = run(trained=False, checkpointed=False)
    kept, block, _ = run(trained=True, checkpointed=True)
    return Saved(trained=trained, frozen=frozen, checkpointed=kept, block=block), softmax


def footprint(
    name: str,
    build: Callable[[torch.dtype], Any],
    family: Family,
    text_encoder: int = 0,
    vae: int = 0,
    tokens: int = 77,
) -> Footprint:
    """All that the plan needs to know of a network; counting takes seconds.

    Args:
        build: makes the network on the meta device, in a given dtype.
        text_encoder, vae: number of parameters of all text encoders together, and of the VAE.
    """
    cost = count(build(torch.float32), family, tokens)
    saved = {precision: saved_tensors(build, family, precision) for precision in DTYPES}
    return Footprint(
        name=name,
        network=cost.parameters,
        text_encoder=text_encoder,
        vae=vae,
        gflop=cost.forward / 1e9,
        softmax=2 * saved["fp16"][1] / GIB,
        saved={precision: found for precision, (found, _) in saved.items()},
    )


def footprint_of_folder(folder: Path) -> Footprint:
    """The footprint of the model in a diffusers folder, from its configuration files alone.

    Raises UsageError for a model that no family can run, SidlsgError for a missing or unreadable file.
    """
    about = describe(folder, str(folder))
    family, sizes = about.family, dict.fromkeys(about.family.parts, 0)

    def build(part: str, dtype: torch.dtype = torch.float32) -> Any:
        return build_part(family.parts[part], dict(about.configs[part]), "meta").to(dtype)

    for part in about.configs:
        if part != family.network:
            sizes[part] = size(build(part))
    encoders = sum(value for part, value in sizes.items() if part.startswith("text_encoder"))
    return footprint(folder.name, lambda dtype: build(family.network, dtype), family, encoders, sizes["vae"])


def size(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def main(name: str) -> None:
    """Print an architecture's entry of ``footprints.yaml``."""
    family, model = family_of_architecture(name), build_model(name, torch.device("meta"))
    tokens = model.parts["tokenizer"].model_max_length
    encoders = sum(size(part) for key, part in model.parts.items() if key.startswith("text_encoder"))
    found = footprint(name, lambda dtype: build_network(name, "meta", dtype), family, encoders, size(model.vae), tokens)
    print(found.as_yaml())


if __name__ == "__main__":
    main(sys.argv[1])
