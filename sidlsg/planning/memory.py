"""Peak GPU memory of a distillation run, predicted by component. All sizes are in GiB (2^30 bytes). Does not import torch.

Nothing is fitted. Both the parameters of an architecture and the tensors that one pass of one sample saves for its backward pass
are counted (``footprints.yaml``; tests/test_plan.py counts both again). The sum reproduces the 20 memory cells of the paper's
Table 4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sidlsg.config import Config
from sidlsg.method.guidance import network_passes
from sidlsg.planning.footprint import GIB, Footprint, Saved

# CUDA context, cuDNN and cuBLAS workspaces, fragmentation: not in PyTorch's count of allocated memory.
OVERHEAD = 1.0


@dataclass(frozen=True)
class Memory:
    """GiB on one GPU at the peak of one update."""

    weights: float
    casts: float  # 16-bit copies that autocast makes of fp32 weights
    gradients: float
    optimizer: float
    average: float
    text_encoder: float
    activations: float
    vae: float = 0.0  # this engine keeps it on the CPU
    buckets: float = 0.0  # of DistributedDataParallel, which this engine does not use

    @property
    def total(self) -> float:
        """Comparable with PyTorch's count of allocated memory."""
        return sum(vars(self).values())


def alive_passes(config: Config) -> tuple[tuple[int, int], tuple[int, int]]:
    """Passes per sample whose graphs are alive at once, as (through trained networks, through frozen ones): in the fake score's
    update, and in the generator's.

    The fake score's update keeps its own passes. The generator's keeps the generator's pass and all those of teacher and fake
    score (5 together for lsg, 4 for long and short, 3 for lsg-simple); with ``two_stage``, the generator's and those of only one
    score network, the one with more.
    """
    k1, k2, k3, k4 = config.guidance
    fake, real = network_passes(k2, k3), network_passes(k4)
    return (network_passes(k1), 0), (1, max(fake, real) if config.two_stage else fake + real)


def predict(config: Config, size: Footprint) -> Memory:
    """The larger of the two updates' peaks, with this engine: gradients of one network at a time, no buckets."""
    return max(phases(config, size), key=lambda memory: memory.total)


def phases(config: Config, size: Footprint) -> tuple[Memory, Memory]:
    """The peak of the fake score's update, and that of the generator's."""
    pure_half = config.precision == "fp16"
    bits = 16 if pure_half else 32
    full, half = size.copy(bits), size.copy(16)
    moments = 1 if config.lean_adam else 2
    autocast = config.precision == "bf16"
    # For both trained networks. Offloaded, only a chunk at a time is on the GPU, in a step, when there are no activations.
    optimizer = 0.0 if config.offload_optimizer and config.lean_adam else 2 * moments * full
    average = size.copy(32) if config.ema and config.ema_device == "same" else 0.0
    teacher = half if config.half_teacher else full
    block = _saved_by_a_pass(config, size).block
    found = []
    for micro, alive, networks in zip(
        config.micro_batches, alive_passes(config), (1, 2 + (not config.two_stage)), strict=True
    ):
        # A graph keeps the casts of its network's weights: the fake score's update has graphs of one network, the generator's of
        # three, or two with two_stage. A teacher stored in 16 bits needs no casts. Checkpointed blocks cast again, so only the
        # network that is running has its casts.
        casts = 0.0
        if autocast:
            graphs = networks - (1 if config.half_teacher and networks == 3 else 0)
            casts = half * (1 if config.gradient_checkpointing else graphs)
        found.append(
            Memory(
                weights=teacher + 2 * full,
                casts=casts,
                gradients=full,
                optimizer=optimizer,
                average=average,
                text_encoder=size.text_encoder * bits / 8 / GIB,
                # 2 blocks: a guided pass sends both its halves (∅ and c) through a block at once.
                activations=micro * (saved(config, size, *alive) + 2 * block * config.gradient_checkpointing),
            )
        )
    return found[0], found[1]


def saved(config: Config, size: Footprint, trained: int, frozen: int) -> float:
    """GiB saved by ``trained`` passes through trained networks and ``frozen`` passes through frozen ones, one sample each."""
    kind = _saved_by_a_pass(config, size)
    if config.gradient_checkpointing:
        return kind.checkpointed * (trained + frozen)
    softmax = size.softmax * (2 if config.precision == "fp32" else 1) if config.attention == "eager" else 0.0
    return (kind.trained + softmax) * trained + (kind.frozen + softmax) * frozen


def _saved_by_a_pass(config: Config, size: Footprint) -> Saved:
    assert size.saved is not None  # callers skip architectures without it
    return size.saved[config.precision]


def official(config: Config, size: Footprint) -> Memory:
    """Memory of the authors' implementation, which holds twelve copies of the network in one precision.

    They are phi, psi, theta and the average; the gradients of psi and theta, kept at the same time; the buckets of
    DistributedDataParallel for both, separate from the gradients; Adam's two moments for both.
    """
    bits = 16 if config.precision == "fp16" else 32
    copy, text_encoder, vae = size.copy(bits), size.text_encoder * bits / 8 / GIB, size.vae * bits / 8 / GIB
    activations = max(saved(config, size, *alive) for alive in alive_passes(config)) * config.micro_batch
    average = copy if config.ema else 0.0
    return Memory(3 * copy, 0.0, 2 * copy, 4 * copy, average, text_encoder, activations, vae, buckets=2 * copy)


def largest_micro_batch(config: Config, size: Footprint, budget: float, processes: int) -> int:
    """The largest micro-batch of the generator's update that divides a process's share of the batch and fits into ``budget`` GiB;
    0 when not even one image does."""
    share = config.batch // processes
    for micro in sorted((m for m in range(1, share + 1) if share % m == 0), reverse=True):
        fake = min(micro, config.fake_micro_batch or micro)
        if predict(replace(config, micro_batch=micro, fake_micro_batch=fake), size).total + OVERHEAD <= budget:
            return micro
    return 0


# In order of the time they cost: the first three little, two_stage and gradient_checkpointing 22 % and 38 % more passes for lsg.
REMEDIES = (
    {"ema_device": "cpu"},
    {"half_teacher": True},
    {"offload_optimizer": True},
    {"two_stage": True},
    {"gradient_checkpointing": True},
)


# The paper's pure fp16 and the settings that go with it: about half the memory, at a loss of quality that the plan mentions.
PURE_HALF: dict[str, object] = {"precision": "fp16", "half_teacher": False, "adam_eps": 1e-6, "clip_value": 1.0}


def make_fit(config: Config, size: Footprint, budget: float) -> dict[str, object] | None:
    """The cheapest changes of settings with which the run fits into ``budget`` GiB: ``REMEDIES``, added one by one, then
    micro-batches of one image, then pure fp16. None when nothing helps."""

    def fits(changes: dict[str, object]) -> bool:
        return predict(replace(config, **changes), size).total + OVERHEAD <= budget  # type: ignore[arg-type]

    chosen: dict[str, object] = {}
    for remedy in REMEDIES:
        if "half_teacher" in remedy and config.precision != "bf16":
            continue
        if "offload_optimizer" in remedy and not config.lean_adam:
            continue
        if "two_stage" in remedy and config.gradient_checkpointing:
            continue  # checkpointing saves more; both together cost twice
        if all(getattr(config, key) == value for key, value in remedy.items()):
            continue
        if remedy.get("gradient_checkpointing"):
            chosen.pop("two_stage", None)
        chosen |= remedy
        if fits(chosen):
            return chosen
    single: dict[str, object] = {"micro_batch": 1, "fake_micro_batch": 1}
    if fits(chosen | single):
        return chosen | single
    half = {key: value for key, value in chosen.items() if key != "half_teacher"} | PURE_HALF
    for more in ({}, single):
        if config.precision != "fp16" and fits(half | more):
            return half | more
    return None
