"""Counts a network's operations and what it saves for the backward pass, on the meta device: no weights, no GPU, seconds.

`python -m sidlsg.planning.counting ARCHITECTURE` prints the architecture's entry of ``footprints.yaml``; with ``--compiled bf16``
what is added to it for ``torch.compile``.
"""

from __future__ import annotations

import argparse
import itertools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sidlsg.devices import DTYPES
from sidlsg.method.condition import Condition
from sidlsg.method.update import scrub
from sidlsg.planning.footprint import GIB, Footprint, Moment, Pass, passes_as_yaml, way
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
    x, t, c = example_inputs(network, family, 1, tokens=tokens)

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
    network: Any, family: Family, samples: int, dtype: torch.dtype = torch.float32, tokens: int = 77
) -> tuple[Tensor, Tensor, Condition]:
    """(x_t, t, c) of so many samples on the network's device."""
    device = next(network.parameters()).device
    x = torch.empty(samples, *family.latent_shape(network), device=device, dtype=dtype)
    t = torch.zeros(samples, dtype=torch.int64, device=device)
    return x, t, family.example_condition(network, samples, tokens).to(dtype)


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
    products in bf16, normalisations and softmaxes in fp32, casts of trained weights kept until the network's pass ends."""

    def __init__(self, autocast: bool, traced: bool = False) -> None:
        super().__init__()
        self.traced = traced  # into a graph, which needs the operator's own name
        half, full = torch.bfloat16, torch.float32
        products = (functional.conv2d, functional.linear, torch.baddbmm, torch.bmm)
        wide = (functional.group_norm, functional.layer_norm, Tensor.softmax)
        self.dtypes = dict.fromkeys(products, half) | dict.fromkeys(wide, full) if autocast else {}
        self.casts: dict[Tensor, Tensor] = {}  # of weights, by the weight

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if isinstance(value, nn.Parameter) and value.requires_grad and dtype == torch.bfloat16 and not self.traced:
            if value not in self.casts:
                self.casts[value] = value.to(dtype)
            return self.casts[value]
        return value.to(dtype)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            if self.traced:
                return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]
            return _FusedAttention.apply(*args[:3])
        if self.traced and func is Tensor.to and args[1:] == (torch.float32,) and args[0].dtype == torch.bfloat16:
            return args[0]  # dynamo, which does not know this mode, took the dtype of queries for a constant
        if func in self.dtypes:
            dtype = self.dtypes[func]
            args = [self.cast(value, dtype) for value in args]
            kwargs = {name: self.cast(value, dtype) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def allocated(size: int) -> int:
    """What PyTorch's allocator for CUDA counts for a new tensor of so many bytes: from 10 MiB on, memory comes in pieces of
    2 MiB, of which a rest of 1 MiB or less stays with the tensor."""
    rest = -size % 2**21
    return size + rest if size >= 10 * 2**20 and rest <= 2**20 else size


class _Live(TorchDispatchMode):
    """Follows the bytes of all tensors that were made inside and are alive; ``at`` has them after every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.at: list[int] = []
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):  # what came from outside is not counted
            if isinstance(tensor, Tensor):
                self._known.setdefault(tensor.untyped_storage()._cdata, None)
        out = func(*args, **kwargs)
        inside = (
            out.nbytes if func is torch.ops.aten._softmax_backward_data.default else 0
        )  # CUDA's kernel makes one more
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self._known:
                size = allocated(storage.nbytes())
                self.now += size
                self._known[key] = weakref.finalize(storage, self._freed, key, size)
        self.at.append(self.now + inside)
        return out

    def _freed(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


KINDS = "trained", "probed", "frozen", "half", "drawn"
SAMPLES = 2, 4  # what passes are counted with; a single sample takes shortcuts


def _envelope(two: Sequence[int], four: Sequence[int]) -> tuple[Moment, ...]:
    """The moments that are the fullest for some number of samples, from the bytes at every moment with 2 samples and with 4."""
    lines = {((b - a) / 2 / GIB, (2 * a - b) / GIB) for a, b in zip(two, four, strict=True)}
    found: list[Moment] = []
    for samples in (1, 2, 4, 8, 16, 32, 64, 128):
        best = Moment(*max(lines, key=lambda line: line[0] * samples + line[1]))
        if all(best.gib(samples) > moment.gib(samples) + 1e-3 for moment in found):
            found.append(best)
    return tuple(found)


def prepared(build: Callable[[torch.dtype], Any], kind: str, precision: str, attention: str) -> Any:
    """The network on the meta device as a run has it; arguments as for ``count_pass``."""
    network = build(DTYPES["fp16" if precision == "fp16" else "fp32"]).eval()
    network.requires_grad_(kind in ("trained", "probed", "drawn"))
    if kind == "half":
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(torch.bfloat16)
    if attention == "eager":
        network.set_attn_processor(AttnProcessor())
    return network


def count_pass(
    build: Callable[[torch.dtype], Any], family: Family, kind: str, precision: str, attention: str, checkpointed: bool
) -> Pass:
    """The memory of one pass, by following every tensor of it on the meta device, with two samples and with four.

    Args:
        build: makes the network on the meta device, in a given dtype.
        kind: as in ``Footprint.passes``.
        precision: fp16 or fp32 (everything in that dtype), or bf16 (autocast).
    """
    network = prepared(build, kind, precision, attention)
    mode = _AsOnAGpu(precision == "bf16")

    def block(function: Any, *inputs: Any) -> Any:
        def alone(*values: Any) -> Any:
            if torch._C._current_graph_task_id() == -1:
                return function(*values)
            with _AsOnAGpu(precision == "bf16"):  # again, in the backward pass: an autocast region of its own
                return function(*values)

        return checkpoint(alone, *inputs, use_reentrant=False, preserve_rng_state=False)

    if checkpointed:
        network.enable_gradient_checkpointing(block)
    for parameter in network.parameters():
        if kind == "trained":
            parameter.grad = torch.empty_like(parameter)
            parameter.register_hook(scrub)
    forward, kept, backward = [], [], []
    for samples in SAMPLES:
        x, t, c = example_inputs(network, family, samples, DTYPES["fp16" if precision == "fp16" else "fp32"])
        x.requires_grad_(kind in ("frozen", "half"))
        wanted = list(network.parameters())
        with mode, _Live() as live, torch.set_grad_enabled(kind != "drawn"):
            out = family.predict(network, x, t, c)
            forward.append(live.at)
            mode.casts = {}
            kept.append(live.now)
            live.at = []
            gradient: Any = None
            if kind == "probed":
                gradient = torch.autograd.grad(out, wanted, torch.empty_like(out))
            elif kind != "drawn":
                out.backward(torch.empty_like(out))
            backward.append(live.at)
            del out, gradient
    if kind == "drawn":
        return Pass(_envelope(*forward))
    (left,) = _envelope(*([size] for size in kept))
    return Pass(_envelope(*forward), left, _envelope(*backward))


class _Enough(Exception):
    """Ends a compilation when its graph has been seen."""


def count_compiled_pass(
    build: Callable[[torch.dtype], Any], family: Family, kind: str, precision: str, attention: str, checkpointed: bool
) -> Pass:
    """The memory of one pass under ``torch.compile``, by the graph that torch's own partitioner makes of the forward pass.

    Nothing is computed and no code is generated; weights are allocated, and not touched, on the CPU, where tracing needs them.
    Generated code fuses most temporaries away: what is kept stands for the fullest moment of the forward pass, and together with
    the gradient of the largest tensor that is kept for that of the backward pass.
    """
    from torch._inductor.compile_fx import compile_fx

    dtype = DTYPES["fp16" if precision == "fp16" else "fp32"]
    network = prepared(build, kind, precision, attention).to_empty(device="cpu")
    if precision == "bf16":  # as in the presets; with this layout the partitioner keeps 3 % more
        network.to(memory_format=torch.channels_last)
    if checkpointed:
        network.enable_gradient_checkpointing()
    x, t, c = example_inputs(network, family, SAMPLES[0], dtype)
    found: list[tuple[Moment, float]] = []

    def seen(graph: Any, inputs: Any, *, static_input_idxs: Sequence[int] = (), **_: Any) -> Any:
        nodes = list(graph.graph.nodes)
        weights = {node for i, node in enumerate(nodes) if node.op == "placeholder" and i in set(static_input_idxs)}
        of_weights = set(weights)  # and what is computed of nothing else
        for node in nodes:
            if node.op == "call_function" and node.all_input_nodes and of_weights.issuperset(node.all_input_nodes):
                of_weights.add(node)
        kept: dict[Any, int] = {}
        for node in dict.fromkeys(nodes[-1].args[0][1:]):
            source = node
            while isinstance(source, torch.fx.Node) and getattr(source.target, "is_view", False):
                source = source.args[0]
            value = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
            if isinstance(value, Tensor) and source.op == "call_function":
                kept[source] = value.untyped_storage().nbytes() if source is node else value.nbytes
        fixed = sum(size for node, size in kept.items() if node in of_weights)
        largest = max(size for node, size in kept.items() if node not in of_weights)
        found.append((Moment((sum(kept.values()) - fixed) / SAMPLES[0] / GIB, fixed / GIB), largest / SAMPLES[0] / GIB))
        raise _Enough

    def backend(module: Any, inputs: Any) -> Any:
        with _AsOnAGpu(precision == "bf16", traced=True):
            return compile_fx(module, inputs, inner_compile=seen)

    def predict(x: Tensor, t: Tensor, c: Condition) -> Tensor:
        return family.predict(network, x, t, c)

    torch._dynamo.reset()
    try:
        torch.compile(predict, backend=backend, dynamic=False)(x.requires_grad_(kind in ("frozen", "half")), t, c)
    except Exception:  # dynamo wraps what a backend raises
        if not found:
            raise
    ((kept, largest),) = found
    return Pass((kept,), kept, (Moment(kept.sample + largest, kept.fixed),))


def count_decoding(vae: Any, family: Family, shape: tuple[int, int, int]) -> tuple[Moment, ...]:
    """The memory of decoding latents of ``shape`` [C, H, W] by a VAE on the meta device."""
    found = []
    for samples in SAMPLES:
        with _AsOnAGpu(False), _Live() as live, torch.no_grad():
            family.decode(vae, torch.empty(samples, *shape, device="meta"))
        found.append(live.at)
    if len(found[0]) < len(found[1]):  # pictures are decoded one after the other
        found[1] = found[1][: len(found[0])]
    return _envelope(*found)


def footprint(
    name: str,
    build: Callable[[torch.dtype], Any],
    family: Family,
    vae: Any,
    text_encoder: int = 0,
    tokens: int = 77,
    attentions: Sequence[str] = ("sdpa", "eager"),
) -> Footprint:
    """All that the plan needs to know of a network that is not compiled; counting takes a minute for each kind of attention.

    Args:
        build: makes the network on the meta device, in a given dtype.
        vae: on the meta device.
        text_encoder: number of parameters of all text encoders together.
        attentions: the kinds of attention that are counted.
    """
    network = build(torch.float32)
    cost = count(network, family, tokens)
    passes: dict[str, dict[str, Pass]] = {}
    for precision, attention, checkpointed in itertools.product(DTYPES, attentions, (False, True)):
        passes[way(precision, attention, checkpointed, False)] = {
            kind: count_pass(build, family, kind, precision, attention, checkpointed)
            for kind in KINDS
            if kind != "half" or precision == "bf16"
        }
    x, t, c = example_inputs(network, family, 1, tokens=tokens)
    return Footprint(
        name=name,
        network=cost.parameters,
        text_encoder=text_encoder,
        vae=size(vae),
        gflop=cost.forward / 1e9,
        largest=max(p.numel() for p in network.parameters()),
        rounding=(_rounding(network, 16), _rounding(network, 32)),
        draw=sum(tensor.nbytes for tensor in (x, x, t, *c.tensors.values())) / GIB,
        decode=count_decoding(vae, family, family.latent_shape(network)),
        passes=passes,
    )


def _rounding(network: nn.Module, bits: int) -> float:
    """GiB that the allocator adds to one copy of a network."""
    sizes = [p.numel() * bits // 8 for p in network.parameters()]
    return (sum(map(allocated, sizes)) - sum(sizes)) / GIB


def footprint_of_folder(folder: Path, attention: str) -> Footprint:
    """The footprint of the model in a diffusers folder with one kind of attention, from its configuration files alone.

    Raises UsageError for a model that no family can run, SidlsgError for a missing or unreadable file.
    """
    about = describe(folder, str(folder))
    family = about.family

    def build(part: str, dtype: torch.dtype = torch.float32) -> Any:
        return build_part(family.parts[part], dict(about.configs[part]), "meta").to(dtype)

    encoders = sum(size(build(part)) for part in about.configs if part.startswith("text_encoder"))
    return footprint(
        folder.name,
        lambda dtype: build(family.network, dtype),
        family,
        build("vae"),
        encoders,
        attentions=[attention],
    )


def size(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def computes_again_early(network: nn.Module) -> bool:
    """Whether inductor is taken to compute checkpointed blocks of a trained network again long before it needs them.

    The backward pass of SDXL's UNet held on the null GPU about what it holds without checkpointing. That of networks with one
    transformer block an attention layer, as Stable Diffusion's, did not.
    """
    layers = (module for module in network.modules() if isinstance(module, Transformer2DModel))
    return any(len(layer.transformer_blocks) > 1 for layer in layers)


def compiled_passes(name: str, precisions: Sequence[str], attention: str) -> dict[str, dict[str, Pass]]:
    """A known architecture's passes under ``torch.compile``; minutes for each precision."""
    family = family_of_architecture(name)

    def build(dtype: torch.dtype) -> Any:
        return build_network(name, "meta", dtype)

    found: dict[str, dict[str, Pass]] = {}
    for precision, checkpointed in itertools.product(precisions, (False, True)):
        kinds = {
            kind: count_compiled_pass(build, family, kind, precision, attention, checkpointed)
            for kind in ("trained", "frozen")
        }
        if checkpointed and computes_again_early(build(torch.float32)):
            whole = found[way(precision, attention, False, True)]["trained"]
            kinds["trained"] = replace(kinds["trained"], backward=whole.backward)
        if precision == "bf16":  # weights that are stored in 16 bits need no casts
            kept, back = (Moment(moment.sample) for moment in (kinds["frozen"].kept, *kinds["frozen"].backward))
            kinds["half"] = Pass((kept,), kept, (back,))
        found[way(precision, attention, checkpointed, True)] = kinds
    return found


def main() -> None:
    """Print an architecture's entry of ``footprints.yaml``, or with ``--compiled`` what is added to it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("architecture")
    parser.add_argument(
        "--compiled", nargs="+", metavar="PRECISION", choices=[*DTYPES], help="passes under torch.compile"
    )
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"], help="of compiled passes")
    options = parser.parse_args()
    name = options.architecture
    if options.compiled:
        print("\n".join(passes_as_yaml(compiled_passes(name, options.compiled, options.attention))))
        return
    family, model = family_of_architecture(name), build_model(name, torch.device("meta"))
    tokens = model.parts["tokenizer"].model_max_length
    encoders = sum(size(part) for key, part in model.parts.items() if key.startswith("text_encoder"))
    print(
        footprint(name, lambda dtype: build_network(name, "meta", dtype), family, model.vae, encoders, tokens).as_yaml()
    )


if __name__ == "__main__":
    main()
