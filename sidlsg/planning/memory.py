"""Memory of a distillation run, predicted phase by phase. All sizes are in GiB (2^30 bytes). Does not import torch.

A phase is a list of named lines, and the peak of a run is that of its largest phase. Nothing is fitted: weights and what passes
hold at their fullest moments are counted (``footprints.yaml``; tests/test_plan.py counts again). The sums agree with those of
PyTorch's own allocator (tests/test_nullgpu.py), and for the paper's implementation with the 20 memory cells of Table 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from sidlsg.config import Config
from sidlsg.method.guidance import network_passes
from sidlsg.planning.footprint import GIB, Footprint, Moment, Pass, scorers, way
from sidlsg.settings import WITH_PRECISION

# CUDA context, cuDNN and cuBLAS workspaces, fragmentation: not in PyTorch's count of allocated memory.
OVERHEAD = 1.0
# Elements that the optimiser updates at once (``method/optim.py``).
CHUNK = 2**26
# PyTorch rounds each pinned block, of up to CHUNK elements, up to a power of two: up to 1.17 times what the networks here need.
PINNED = 1.17
# GiB of the two pinned buffers through which the pieces of an average on the CPU arrive (``method/ema.py``).
ARRIVING = 2 * 0.125


@dataclass(frozen=True)
class Phase:
    """What is on one GPU at the fullest moment of a phase, line by line in GiB."""

    name: str
    lines: dict[str, float]

    @property
    def total(self) -> float:
        """Comparable with PyTorch's count of allocated memory."""
        return sum(self.lines.values())


def predict(config: Config, size: Footprint) -> Phase:
    """The phase in which a run with ``config.processes`` processes needs the most."""
    return max(phases(config, size), key=lambda phase: phase.total)


def phases(config: Config, size: Footprint) -> tuple[Phase, ...]:
    """All phases that can be the largest, in the order of a run."""
    return (
        preflight_phase(config, size),
        fake_score_phase(config, size),
        generator_phase(config, size),
        grid_phase(config, size),
        *([scoring_phase(config, size)] if config.eval_every else []),
        saving_phase(config, size),
        student_phase(config, size),
    )


# -- the phases ------------------------------------------------------------------------------------------------------------


def preflight_phase(config: Config, size: Footprint) -> Phase:
    """The checks before the first update: whole gradients of one sample, without compilation.

    The gradient through plain attention is not in it: the check leaves that one out where memory is short.
    """
    k4 = config.guidance.kappa4
    kinds = _Passes(replace(config, compile=False), size)
    scores = [(kinds.teacher, 2), (kinds.frozen, network_passes(k4))]  # kappa4 is raised, so the teacher is guided
    moment = _fullest(_through(kinds["probed"], scores, config.two_stage, kinds.drawn), 1)
    return _phase("pre-flight", _resting(config, size), moment, 1)


def fake_score_phase(config: Config, size: Footprint) -> Phase:
    """The update of psi: images drawn without gradient, then one pass and its gradient; at the end the optimiser's step."""
    micro, passes = config.micro_batches[0], network_passes(config.guidance.kappa1)
    kinds = _Passes(config, size)
    trained = kinds["trained"]
    moments = [*kinds.drawn.forward, *(_times(m, passes) for m in (*trained.forward, *trained.backward))]
    moments += _endings(config, size, passes)
    return _phase("the fake score's update", _training(config, size), _fullest(moments, micro), micro)


def generator_phase(config: Config, size: Footprint) -> Phase:
    """The update of theta: through the generator, the teacher and the fake score, and back; then the optimiser's step."""
    micro, (_, k2, k3, k4) = config.micro_batches[1], config.guidance
    kinds = _Passes(config, size)
    scores = [(kinds.teacher, network_passes(k4)), (kinds.frozen, network_passes(k2, k3))]
    moments = [*_through(kinds["trained"], scores, config.two_stage, kinds.drawn), *_endings(config, size, 1)]
    return _phase("the generator's update", _training(config, size), _fullest(moments, micro), micro)


def grid_phase(config: Config, size: Footprint) -> Phase:
    """Drawing pictures by the averaged generator."""
    micro = config.micro_batch
    return _phase("drawing a grid", _drawing(config, size), _drawn(config, size, micro), micro)


def scoring_phase(config: Config, size: Footprint) -> Phase:
    """Encoding pictures by the networks of ``eval_protocol``, which are on the CPU in all other phases, after drawing them."""
    scorer = scorers()[config.eval_protocol]
    lines = {**_resting(config, size), "scorer": scorer.weights}
    return max(
        replace(grid_phase(config, size), name="scoring"),
        _phase("scoring", lines, Moment(0.0, scorer.encoding), config.micro_batch),
        key=lambda phase: phase.total,
    )


def saving_phase(config: Config, size: Footprint) -> Phase:
    """Writing a checkpoint: every tensor is tested for finite numbers, and goes to the CPU by itself."""
    resting = _resting(config, size)
    width = 4 if resting["average"] else _bits(config) / 8
    tested = size.largest * (width + 2) / GIB  # its absolute values, and two masks
    return Phase("saving", {**resting, "test for finite numbers": tested})


def student_phase(config: Config, size: Footprint) -> Phase:
    """Writing the student's folder: the averaged weights, which go to the CPU one by one, in half."""
    return Phase("writing the student", _drawing(config, size))


# -- what they are made of -------------------------------------------------------------------------------------------------


class _Passes:
    """The passes of a configuration's networks, by kind."""

    def __init__(self, config: Config, size: Footprint) -> None:
        def found(compiled: bool, checkpointed: bool = config.gradient_checkpointing) -> dict[str, Pass]:
            return size.passes.get(way(config.precision, config.attention, checkpointed, compiled), {})

        # What was not counted compiled is taken for eager, which keeps more; but inductor may undo the checkpointing of the
        # trained network's backward pass (as in SDXL's, docs/performance.md).
        self.kinds = found(False) | (found(True) if config.compile else {})
        if config.compile and config.gradient_checkpointing and not found(True):
            whole = found(False, checkpointed=False)["trained"]
            self.kinds["trained"] = replace(self.kinds["trained"], backward=whole.backward)
        self.half_teacher = config.half_teacher

    def __getitem__(self, kind: str) -> Pass:
        return self.kinds[kind]

    @property
    def drawn(self) -> Pass:
        return self["drawn"]

    @property
    def frozen(self) -> Pass:
        return self["frozen"]

    @property
    def teacher(self) -> Pass:
        return self["half" if self.half_teacher else "frozen"]


def _through(generator: Pass, scores: list[tuple[Pass, int]], two_stage: bool, drawn: Pass) -> Iterator[Moment]:
    """The moments of one micro-batch of theta's update: forward through the generator and the score networks (each with its
    passes a sample), and back in the opposite order; with ``two_stage``, through one score network at a time."""
    held = Moment()
    yield from (_plus(held, m) for m in generator.forward)
    held = generator.kept
    if two_stage:
        yield from (_plus(held, _times(m, n)) for _, n in scores for m in drawn.forward)
        yield from (_plus(held, _times(m, n)) for net, n in scores for m in (*net.forward, *net.backward))
    else:
        below = []
        for net, n in scores:
            yield from (_plus(held, _times(m, n)) for m in net.forward)
            below.append(held)
            held = _plus(held, _times(net.kept, n))
        for (net, n), held in reversed(list(zip(scores, below, strict=True))):
            yield from (_plus(held, _times(m, n)) for m in net.backward)
    yield from generator.backward


def _times(moment: Moment, passes: int) -> Moment:
    """A moment of ``passes`` passes a sample, which run as one."""
    return Moment(moment.sample * passes, moment.fixed)


def _plus(a: Moment, b: Moment) -> Moment:
    return Moment(a.sample + b.sample, a.fixed + b.fixed)


def _fullest(moments: Iterable[Moment], samples: int) -> Moment:
    return max(moments, key=lambda moment: moment.gib(samples))


def _phase(name: str, lines: dict[str, float], moment: Moment, samples: int) -> Phase:
    return Phase(name, lines | {"activations": moment.sample * samples, "casts and temporaries": moment.fixed})


def _bits(config: Config) -> int:
    """Of the trained weights, their gradients and the optimiser's state."""
    return 16 if config.precision == "fp16" else 32


def _weights(config: Config, size: Footprint) -> float:
    return (size.copy(16) if config.half_teacher else size.copy(_bits(config))) + 2 * size.copy(_bits(config))


def _beside(config: Config, size: Footprint) -> dict[str, float]:
    """What is there from the beginning, beside the networks."""
    return {
        "text encoder": size.text_encoder * _bits(config) / 8 / GIB,
        "average": size.copy(32) if config.ema and config.ema_device == "same" else 0.0,
    }


def _resting(config: Config, size: Footprint) -> dict[str, float]:
    """What is there between two iterations."""
    moments = 1 if config.lean_adam else 2
    optimizer = 0.0 if config.offload_optimizer else 2 * moments * size.copy(_bits(config))  # of both trained networks
    return {"weights": _weights(config, size), "optimizer": optimizer, **_beside(config, size)}


def _drawing(config: Config, size: Footprint) -> dict[str, float]:
    """What is there while the generator has its averaged weights."""
    return {**_resting(config, size), "average in use": _average_in_use(config, size)}


def _training(config: Config, size: Footprint) -> dict[str, float]:
    """What is there in an update: gradients of one network, and both updates' draws of the whole iteration."""
    draws = config.batch // config.processes * 2 * size.draw
    return {**_resting(config, size), "gradients": size.copy(_bits(config)), "draws": draws}


def _endings(config: Config, size: Footprint, passes: int) -> Iterator[Moment]:
    """What needs memory when the activations are gone: the gradients that a compiled backward pass returns, all at once, before
    they are added to those that are there; the optimiser's denominators (and offloaded state) of a chunk, or for torch's own Adam
    of all weights. With checkpointing, generated code may compute a block again beside all those gradients: the order is its own.

    Args:
        passes: of the trained network, for each sample.
    """
    full = size.copy(_bits(config))
    if config.compile:
        again = (
            _Passes(replace(config, compile=False), size)["trained"].backward if config.gradient_checkpointing else ()
        )
        yield from (Moment(m.sample * passes, m.fixed + full) for m in again or (Moment(),))
    chunk = CHUNK * _bits(config) / 8 / GIB * (1 + config.offload_optimizer)
    yield Moment(0.0, chunk if config.lean_adam else full)


def _drawn(config: Config, size: Footprint, micro: int) -> Moment:
    """The fullest moment of drawing ``micro`` pictures: one pass, then the VAE, which is there (else on the CPU) in float32."""
    vae = size.vae * 4 / GIB
    moments = [*_Passes(config, size).drawn.forward, *size.decode]
    return _fullest([Moment(m.sample, m.fixed + vae) for m in moments], micro)


def _average_in_use(config: Config, size: Footprint) -> float:
    """The copy of the averaged weights that the generator computes with, where the average itself is elsewhere or wider."""
    there = not config.ema or (config.ema_device == "same" and _bits(config) == 32)
    return 0.0 if there else size.copy(_bits(config))


# -- other memory ----------------------------------------------------------------------------------------------------------


def on_the_cpu(config: Config, size: Footprint) -> dict[str, float]:
    """GiB of a process's own memory at its fullest, line by line: what waits there for the GPU, and what saving copies."""
    full, average = size.copy(_bits(config)), size.copy(32)
    lines = {}
    if config.offload_optimizer:
        lines["optimizer"] = 2 * PINNED * full
    if config.ema and config.ema_device == "cpu":
        lines["average"] = average
        lines["two pieces of the generator"] = ARRIVING
    if config.eval_every:
        lines["scorer"] = scorers()[config.eval_protocol].weights
    lines["a copy while saving"] = average if config.ema else full
    return lines


def largest_micro_batch(config: Config, size: Footprint, budget: float, processes: int) -> int:
    """The largest micro-batch of the generator's update that divides a process's share of the batch and fits into ``budget`` GiB;
    0 when not even one image does."""
    share, config = config.batch // processes, replace(config, processes=processes)
    for micro in sorted((m for m in range(1, share + 1) if share % m == 0), reverse=True):
        if predict(with_micro_batch(config, micro), size).total + OVERHEAD <= budget:
            return micro
    return 0


def with_micro_batch(config: Config, micro: int) -> Config:
    """The configuration with another micro-batch, which caps that of the fake score's update."""
    return replace(config, micro_batch=micro, fake_micro_batch=min(micro, config.fake_micro_batch or micro))


def checkpoint(config: Config, size: Footprint) -> float:
    """GiB of a checkpoint on the disk: psi and theta, both optimisers' state, the average."""
    moments = 1 if config.lean_adam else 2
    return (2 + 2 * moments) * size.copy(_bits(config)) + (size.copy(32) if config.ema else 0.0)


def student(size: Footprint) -> float:
    """GiB of a student's folder: every network in half precision."""
    return (size.network + size.text_encoder + size.vae) * 2 / GIB


# In order of the time they cost: the first three little, two_stage and gradient_checkpointing 22 % and 38 % more passes for lsg.
# Where scoring needs the most, it is left to `sidlsg eval` before training is slowed down for it.
# Without compilation checkpointed passes need a copy of the gradients less.
REMEDIES = (
    {"ema_device": "cpu"},
    {"half_teacher": True},
    {"offload_optimizer": True},
    {"eval_every": None},
    {"two_stage": True},
    {"gradient_checkpointing": True},
    {"compile": False},
)


# The paper's pure fp16 and the settings that go with it: about half the memory, at a loss of quality that the plan mentions.
PURE_HALF: dict[str, object] = {"precision": "fp16", **WITH_PRECISION["fp16"]}


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
        if "eval_every" in remedy and predict(replace(config, **chosen), size).name != "scoring":  # type: ignore[arg-type]
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
