"""Peak GPU memory of a distillation run, predicted by component. No torch in here; all sizes in GiB (2^30 bytes).

Nothing is fitted. Copies of the weights are counted from the architecture; so are the tensors that one pass of one sample saves
for its backward pass (``footprints.yaml``; tests/test_plan.py counts both again). The sum reproduces the 20 memory cells of the
paper's Table 4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sidlsg.config import Config
from sidlsg.method.guidance import network_passes
from sidlsg.planning.footprint import GIB, Footprint, Saved

# CUDA context, cuDNN and cuBLAS workspaces, fragmentation; not part of what PyTorch calls allocated.
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
    vae: float = 0.0  # waits on the CPU with this engine
    buckets: float = 0.0  # of DistributedDataParallel, which this engine does not use

    @property
    def total(self) -> float:
        """What PyTorch calls allocated."""
        return sum(vars(self).values())


def alive_passes(config: Config) -> tuple[tuple[int, int], tuple[int, int]]:
    """Sample-passes whose graph is alive at once, as (of a trained network, of frozen ones): in the fake score's update, in the
    generator's.

    The fake score's own; the generator's own and every guided pass of teacher and fake score (5 in all for LSG, 4 for long and
    short, 3 for the simplest); one network at a time: its own and the larger of the two.
    """
    k1, k2, k3, k4 = config.guidance
    fake, real = network_passes(k2, k3), network_passes(k4)
    return (network_passes(k1), 0), (1, max(fake, real) if config.two_stage else fake + real)


def predict(config: Config, size: Footprint) -> Memory:
    """The peak over both updates with this engine: gradients of one network at a time, no buckets."""
    return max(phases(config, size), key=lambda memory: memory.total)


def phases(config: Config, size: Footprint) -> tuple[Memory, Memory]:
    """The peaks of the fake score's and the generator's update."""
    pure_half = config.precision == "fp16"
    bits = 16 if pure_half else 32
    full, half = size.copy(bits), size.copy(16)
    moments = 1 if config.lean_adam else 2
    autocast = config.precision == "bf16"
    # Both trained networks' states, unless they wait on the CPU; then only a chunk is ever here, in a step, without activations.
    optimizer = 0.0 if config.offload_optimizer and config.lean_adam else 2 * moments * full
    average = size.copy(32) if config.ema and config.ema_device == "same" else 0.0
    teacher = half if config.half_teacher else full
    block = _saved_by_a_pass(config, size).block
    found = []
    for micro, alive, networks in zip(
        config.micro_batches, alive_passes(config), (1, 2 + (not config.two_stage)), strict=True
    ):
        # Graphs keep the casts of the networks in them: the fake score's; the generator's and both score networks'. A half
        # teacher needs none. Checkpointed blocks cast again, so only the network in hand has its casts.
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
                # Both halves of a guided pass go through a block at once.
                activations=micro * (saved(config, size, *alive) + 2 * block * config.gradient_checkpointing),
            )
        )
    return found[0], found[1]


def saved(config: Config, size: Footprint, trained: int, frozen: int) -> float:
    """GiB that so many sample-passes of trained and frozen networks save."""
    kind = _saved_by_a_pass(config, size)
    if config.gradient_checkpointing:
        return kind.checkpointed * (trained + frozen)
    softmax = size.softmax * (2 if config.precision == "fp32" else 1) if config.attention == "eager" else 0.0
    return (kind.trained + softmax) * trained + (kind.frozen + softmax) * frozen


def _saved_by_a_pass(config: Config, size: Footprint) -> Saved:
    assert size.saved is not None  # the plan asks only for what was counted
    return size.saved[config.precision]


def official(config: Config, size: Footprint) -> Memory:
    """The paper's own implementation: twelve copies in one precision.

    phi, psi, theta and the average; gradients of psi and theta, both kept; the buckets of DistributedDataParallel for both,
    separate from the gradients; Adam's two moments for both.
    """
    bits = 16 if config.precision == "fp16" else 32
    copy, text_encoder, vae = size.copy(bits), size.text_encoder * bits / 8 / GIB, size.vae * bits / 8 / GIB
    activations = max(saved(config, size, *alive) for alive in alive_passes(config)) * config.micro_batch
    average = copy if config.ema else 0.0
    return Memory(3 * copy, 0.0, 2 * copy, 4 * copy, average, text_encoder, activations, vae, buckets=2 * copy)


def largest_micro_batch(config: Config, size: Footprint, budget: float, processes: int) -> int:
    """The largest micro-batch of the generator's update that divides the batch and fits; 0 when not even one image does."""
    share = config.batch // processes
    for micro in sorted((m for m in range(1, share + 1) if share % m == 0), reverse=True):
        fake = min(micro, config.fake_micro_batch or micro)
        if predict(replace(config, micro_batch=micro, fake_micro_batch=fake), size).total + OVERHEAD <= budget:
            return micro
    return 0


# In the order of what they cost in time: nothing worth naming, then 11 %, 38 %, and efficiency.
REMEDIES = (
    {"ema_device": "cpu"},
    {"half_teacher": True},
    {"offload_optimizer": True},
    {"two_stage": True},
    {"gradient_checkpointing": True},
)


# The paper's pure fp16 and the settings that go with it: half the memory, at a loss of quality that the plan names.
PURE_HALF: dict[str, object] = {"precision": "fp16", "half_teacher": False, "adam_eps": 1e-6, "clip_value": 1.0}


def make_fit(config: Config, size: Footprint, budget: float) -> dict[str, object] | None:
    """The cheapest settings that bring the run under ``budget`` GiB: switches in order, then single images, then pure fp16;
    None when nothing does."""

    def fits(changes: dict[str, object]) -> bool:
        return predict(replace(config, **changes), size).total + OVERHEAD <= budget  # type: ignore[arg-type]

    chosen: dict[str, object] = {}
    for remedy in REMEDIES:
        if "half_teacher" in remedy and config.precision != "bf16":
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
