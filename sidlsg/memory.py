"""Peak GPU memory of a distillation run, predicted by component. No torch in here; all sizes in GiB (2^30 bytes).

Two kinds of numbers go in. Copies of the weights are counted exactly. Activations are linear in micro-batch x passes whose graph
is alive at once, with one constant per pass and sample; it is fitted to the FlashAttention row of the paper's Table 4 (three
strategies give 0.77, 0.77 and 0.75 GiB per pass and sample in 16 bit at 64x64 latents), and a count of SD1.5's saved tensors
gives 0.86 for a trained network, of which frozen ones keep less. The test reproduces all 20 memory cells of Table 4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sidlsg.config import Config
from sidlsg.guidance import network_passes

GIB = 2**30
# GiB of saved tensors per pass and sample, 16 bit, with attention whose softmax is never written out.
ACTIVATIONS = 0.77
# What unfused attention saves besides: one softmax per self-attention, heads x tokens^2 x 2 bytes. SD has five layers of 8 heads
# at each of 64x64, 32x32 and 16x16 tokens and one at 8x8: 8 x 2 x (5 x 4096^2 + 5 x 1024^2 + 5 x 256^2 + 64^2) bytes.
SOFTMAX = 8 * 2 * (5 * 4096**2 + 5 * 1024**2 + 5 * 256**2 + 64**2) / GIB
# With gradient checkpointing: inputs of the blocks that are kept, and one block computed again (at 64x64 latents, 16 bit).
CHECKPOINTED, RECOMPUTED = 0.10, 0.15
# CUDA context, cuDNN and cuBLAS workspaces, fragmentation; not part of what PyTorch calls allocated.
OVERHEAD = 1.0


@dataclass(frozen=True)
class Size:
    """What the model contributes: numbers of parameters, and the area of a latent against Stable Diffusion's 64x64."""

    unet: int
    text_and_vae: int
    area: float = 1.0

    def copy(self, bits: int) -> float:
        """One copy of the UNet in GiB."""
        return self.unet * bits / 8 / GIB


@dataclass(frozen=True)
class Memory:
    """GiB on one GPU at the peak of one update."""

    weights: float
    casts: float  # 16-bit copies that autocast makes of fp32 weights
    gradients: float
    optimizer: float
    average: float
    encoders: float  # text encoder and VAE
    activations: float
    buckets: float = 0.0  # of DistributedDataParallel, which this engine does not use

    @property
    def total(self) -> float:
        """What PyTorch calls allocated."""
        return sum(vars(self).values())


def alive_passes(config: Config) -> tuple[int, int]:
    """Sample-passes whose graph is alive at once: in the fake score's update, in the generator's.

    The generator's own, and every guided pass of teacher and fake score (5 for LSG, 4 for long and short, 3 for the simplest);
    one network at a time: its own and the larger of the two.
    """
    k1, k2, k3, k4 = config.guidance
    fake, real = network_passes(k2, k3), network_passes(k4)
    return network_passes(k1), 1 + (max(fake, real) if config.two_stage else fake + real)


def predict(config: Config, size: Size) -> Memory:
    """The peak over both updates with this engine: gradients of one network at a time, no buckets."""
    return max(phases(config, size), key=lambda memory: memory.total)


def phases(config: Config, size: Size) -> tuple[Memory, Memory]:
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
    per_pass = activations_per_pass(config, size)
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
        again = (
            RECOMPUTED * size.area * 2 * micro * (1 if pure_half or autocast else 2)
            if config.gradient_checkpointing
            else 0.0
        )
        found.append(
            Memory(
                weights=teacher + 2 * full,
                casts=casts,
                gradients=full,
                optimizer=optimizer,
                average=average,
                encoders=size.text_and_vae * (16 if pure_half else 32) / 8 / GIB,
                activations=per_pass * alive * micro + again,
            )
        )
    return found[0], found[1]


def activations_per_pass(config: Config, size: Size) -> float:
    """GiB of saved tensors per sample-pass."""
    kept = ACTIVATIONS + (SOFTMAX if config.attention == "eager" else 0.0)
    sixteen = CHECKPOINTED if config.gradient_checkpointing else kept
    return sixteen * size.area * (2 if config.precision == "fp32" else 1)


def official(config: Config, size: Size) -> Memory:
    """The paper's own implementation: twelve copies in one precision.

    phi, psi, theta and the average; gradients of psi and theta, both kept; the buckets of DistributedDataParallel for both,
    separate from the gradients; Adam's two moments for both.
    """
    copy = size.copy(16 if config.precision == "fp16" else 32)
    encoders = size.text_and_vae * (16 if config.precision == "fp16" else 32) / 8 / GIB
    activations = activations_per_pass(config, size) * max(alive_passes(config)) * config.micro_batch
    average = copy if config.ema else 0.0
    return Memory(3 * copy, 0.0, 2 * copy, 4 * copy, average, encoders, activations, buckets=2 * copy)


def largest_micro_batch(config: Config, size: Size, budget: float, processes: int) -> int:
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


def make_fit(config: Config, size: Size, budget: float) -> dict[str, object] | None:
    """The cheapest switches, in order, that bring the run under ``budget`` GiB; None when none do."""
    chosen: dict[str, object] = {}
    for remedy in REMEDIES:
        if "half_teacher" in remedy and config.precision != "bf16":
            continue
        if all(getattr(config, key) == value for key, value in remedy.items()):
            continue
        if remedy.get("gradient_checkpointing"):
            chosen.pop("two_stage", None)  # checkpointing saves more; both together cost twice
        chosen |= remedy
        if predict(replace(config, **chosen), size).total + OVERHEAD <= budget:  # type: ignore[arg-type]
            return chosen
    smallest = {**chosen, "micro_batch": 1, "fake_micro_batch": 1}
    fits = predict(replace(config, **smallest), size).total + OVERHEAD <= budget  # type: ignore[arg-type]
    return smallest if fits else None
