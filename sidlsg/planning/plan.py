"""The plan of a run, printed before it starts and by ``--dry-run``. Making it needs no weights, no network access and no torch.

Numbers of passes are exact; memory, images/s and hours are estimates by ``memory.py`` and ``gpus.py``, and are printed as such.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from sidlsg.config import FIELDS, Config
from sidlsg.formats import about, amount
from sidlsg.method.rate import decayed_lr
from sidlsg.paths import existing
from sidlsg.planning import memory
from sidlsg.planning.cost import forward_equivalents, passes_per_image
from sidlsg.planning.footprint import GIB, Footprint
from sidlsg.planning.gpus import Gpu, images_per_second
from sidlsg.planning.memory import OVERHEAD
from sidlsg.planning.recognise import Recognised
from sidlsg.settings import load_settings, preset_path
from sidlsg.sheet import Sheet
from sidlsg.teachers.hub import missing_part
from sidlsg.teachers.registry import Location, at_hand

LONG = 7 * 86400  # seconds; a run that takes longer is pointed out


def plan(
    config: Config,
    preset: str | None,
    out: Path,
    place: Location,
    found: Recognised | None,
    prompts: str,
    processes: int,
    gpu: Gpu | None = None,
) -> dict[str, str]:
    """What will run, how the batch is divided, what it costs, and where it goes: named lines.

    Args:
        found: the teacher's footprint; None if it is not known.
        prompts: a description of the prompt list (its length and hash, once it has been read).
        processes: the number of processes that the plan is for.
        gpu: the GPU that the estimates are for; None leaves out what depends on one.
    """
    rounds = config.rounds(processes)
    size = found.footprint if found else None
    gflop = size.gflop if size else None
    rate = speed(config, size, gpu, processes)
    teacher = place.name + (
        f", UNet {size.network / 1e6:.2f} M parameters" if found and size and not found.assumed else ""
    )
    where = (
        "in the package"
        if place.entry and place.entry.folder
        else str(place.folder)
        if place.folder
        else "hub: " + ", then ".join(place.repositories)
    )
    if to_download(place):
        where += ", to be downloaded" + (f", {_weights(size):.1f} GiB (estimate)" if size else "")
    rows = {
        "preset": preset_line(config, preset),
        "teacher": teacher if place.name == where else f"{teacher} ({where})",
        "prompts": prompts,
        "strategy": f"{config.strategy_name}: {config.guidance}",
        "duration": f"{config.images:,} images in {config.iterations:,} iterations of {config.batch}",
        "learning rate": _learning_rate(config),
        "batch": f"{config.batch} = {processes} process(es) x {rounds} round(s) x {config.micro_batch} images"
        + (f"; {config.fake_micro_batch} a round in the fake score's update" if config.fake_micro_batch else ""),
        "UNet passes per image": _work(config, gflop),
        "precision": _precision(config),
        "EMA": f"half-life {config.ema_half_life:,} images, fp32"
        + (", on the CPU" if config.ema_device == "cpu" else "")
        if config.ema
        else "none",
        "run folder": str(out),
        "writes": f"metrics every {config.log_every:,} images, a checkpoint {_checkpoints(config, rate)}, "
        "sample grids at Fig. 2's spacing, student/ at the end"
        + (f", scores every {config.eval_every:,} images ({config.eval_protocol})" if config.eval_every else ""),
    }
    if size and size.passes:
        assumed = f" (taking the model for one of {found.assumed}'s size)" if found and found.assumed else ""
        rows["disk"] = _disk(config, size) + assumed
        rows |= {name: text + assumed for name, text in _memory(config, size, gpu, processes).items()}
    if gpu is not None:
        rows["time"] = _time(config, rate, gpu, processes)
    if config.compile:
        rows["compilation"] = (
            "within the first iteration, and again for the first grid: 5 to 15 minutes on a GPU (estimate)"
        )
    return rows


def speed(config: Config, size: Footprint | None, gpu: Gpu | None, processes: int) -> float | None:
    """Images/s over all processes, an estimate; None when it is not known what a network or a GPU does."""
    if gpu is None or not gpu.mfu or size is None:
        return None
    return images_per_second(config, size.gflop, gpu, processes)


def _weights(size: Footprint) -> float:
    """GiB of a model's weights in 32 bits, as the hub has them."""
    return (size.network + size.text_encoder + size.vae) * 4 / GIB


def to_download(place: Location) -> bool:
    """Whether a model of the hub is not whole on this machine."""
    folder = at_hand(place)
    return bool(place.repositories) and (folder is None or missing_part(folder) is not None)


WHAT = ("preset", "teacher", "prompts", "strategy", "duration", "learning rate")
COST = ("batch", "precision", "peak memory per GPU", "largest micro-batch", "time", "compilation")
WHERE = ("run folder", "writes", "disk")


def sheet(lines: dict[str, str], config: Config, whole: bool = False) -> Sheet:
    """The lines that matter, in groups; the ``whole`` plan with every line and the effective configuration."""
    groups = {"What will run": WHAT, "Time and memory": COST, "Where it goes": WHERE}
    shown = {title: {name: lines[name] for name in names if name in lines} for title, names in groups.items()}
    if whole:
        said = {*WHAT, *COST, *WHERE}
        shown["Time and memory"] |= {name: text for name, text in lines.items() if name not in said}
        shown["Effective configuration"] = {name: written(value) for name, value in config.as_dict().items()}
        return Sheet(shown)
    if "peak memory per GPU" in lines:  # without what it consists of
        shown["Time and memory"]["peak memory per GPU"] = lines["peak memory per GPU"].partition(": ")[0]
    return Sheet(shown)


def preset_line(config: Config, preset: str | None) -> str:
    """The preset's name and every setting that differs from it."""
    base = {name: getattr(Config, name) for name in FIELDS} | (load_settings(preset_path(preset)) if preset else {})
    differ = [
        f"{name} {written(value)} (not {written(base[name])})"
        for name, value in ((name, getattr(config, name)) for name in FIELDS)
        if value != base[name]
    ]
    return f"{preset or 'none'}, with {', '.join(differ)}" if differ else f"{preset or 'none'}, unchanged"


def written(value: Any) -> str:
    """A setting's value as YAML writes it."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(f'{v:g}' for v in value)}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _work(config: Config, gflop: float | None) -> str:
    passes, cost = passes_per_image(config), forward_equivalents(config)
    text = f"{passes['forward']} forward, {passes['full backward']} full backward, {passes['input backward']} input-only backward"
    if passes["repeated forward"]:
        text += f", {passes['repeated forward']} forward again to save memory"
    return f"{text} (as much as {cost:.1f} forward passes" + (f"; {cost * gflop / 1e3:.3g} TFLOP)" if gflop else ")")


def _memory(config: Config, size: Footprint, gpu: Gpu | None, processes: int) -> dict[str, str]:
    """Rows on the phase with the highest peak, line by line, on what is kept on the CPU, and on the largest micro-batch."""
    config = replace(config, processes=processes)
    peak, here = memory.predict(config, size), memory.on_the_cpu(config, size)
    rows = {
        "peak memory per GPU": f"{peak.total:.1f} GiB in {peak.name} (estimate): {_sum(peak.lines)}; "
        f"CUDA itself takes about {OVERHEAD:g} more",
        "memory on the CPU": f"{sum(here.values()):.1f} GiB a process (estimate): {_sum(here)}",
    }
    if gpu is not None:
        largest = memory.largest_micro_batch(config, size, gpu.memory, processes)
        rows["largest micro-batch"] = f"none fits {gpu.name}, {gpu.memory:.1f} GiB"
        if largest:
            full = memory.predict(memory.with_micro_batch(config, largest), size).total
            rows["largest micro-batch"] = f"{largest}: {full:.1f} of {gpu.memory:.1f} GiB on {gpu.name} (estimate)"
    return rows


def _sum(lines: dict[str, float]) -> str:
    return " + ".join(f"{name} {value:.1f}" for name, value in lines.items() if round(value, 1))


def _time(config: Config, rate: float | None, gpu: Gpu, processes: int) -> str:
    if rate is None:
        return f"not known for this model on {gpu.name}; sidlsg bench measures"
    return (
        f"{about(config.images / rate)} on {processes} x {gpu.name} (estimate): {rate:.3g} images/s, "
        f"{amount(rate * 86400)} images per day, {amount(1e3 / rate)} s per 1k images; sidlsg bench measures"
    )


def _learning_rate(config: Config) -> str:
    """From what to what it goes, and why it does not begin at the value that was set."""
    if config.lr_decay is None:
        return f"{config.lr:g}, constant"
    first = decayed_lr(config.lr, 0, config.images, config.lr_decay)
    if first < config.lr:
        return (
            f"from {first:g} to 0: it reaches 0 over {config.lr_decay:,} images, more than the run has. "
            f"--set lr_decay={config.images} begins at {config.lr:g}"
        )
    constant = f"{config.lr:g}, then " if config.lr_decay < config.images else f"from {config.lr:g} "
    return f"{constant}to 0 over the last {config.lr_decay:,} images"


def _checkpoints(config: Config, rate: float | None) -> str:
    """How often one is written; in the unit that decides, once the speed is known."""
    images, minutes = f"every {config.checkpoint_every:,} images", config.checkpoint_minutes
    if rate is None:
        return images + (f" or {minutes:g} minutes, whichever is first" if minutes else "")
    between = config.checkpoint_every / rate
    if minutes is not None and between > 60 * minutes:
        return f"every {minutes:g} minutes"
    return f"{images} ({about(between)})"


def _disk(config: Config, size: Footprint) -> str:
    each, kept = memory.checkpoint(config, size), config.keep_checkpoints
    kept_text = "the newest is kept" if kept == 1 else f"the newest {kept} are kept"
    return (
        f"{disk_needed(config, size):.0f} GiB (estimate): a checkpoint is {each:.1f} GiB, {kept_text}, with one more while it is "
        f"written; {'student/ and best/' if config.eval_every else 'student/'} {memory.student(size):.1f} GiB"
        + (" each" if config.eval_every else "")
    )


def disk_needed(config: Config, size: Footprint) -> float:
    """GiB that a run folder takes at most: the checkpoints that are kept, one that is being written, the students."""
    students = 2 if config.eval_every else 1
    return (config.keep_checkpoints + 1) * memory.checkpoint(config, size) + students * memory.student(size)


def room_note(config: Config, size: Footprint | None, folder: Path) -> str | None:
    """What to say where the disk of a run folder has less room than the run needs; None where it has, or nothing is known."""
    if size is None or not size.passes:
        return None
    try:
        free = shutil.disk_usage(existing(folder)).free / GIB
    except OSError:
        return None
    already = sum(path.stat().st_size for path in folder.glob("checkpoints/*/*.safetensors")) / GIB
    if free + already >= (need := disk_needed(config, size)):
        return None
    return (
        f"{folder} has {free:.0f} GiB free, and this run needs {need:.0f} (estimate); give an --out on a larger disk, or "
        "--set keep_checkpoints=1"
    )


def long_run_note(config: Config, rate: float | None) -> str | None:
    """What to say of a run of more than a week; None for any other, and where its time is not known."""
    if rate is None or config.images / rate <= LONG:
        return None
    week = max(config.batch, int(rate * LONG) // config.batch * config.batch)
    return (
        f"this run takes {about(config.images / rate)} (estimate). A week is --images {short_count(week)}; the same command with "
        "more images goes on from there"
    )


def short_count(images: int) -> str:
    """A count as the options take it, to three figures: 1.45M, 208k, 5120."""
    rounded = float(f"{images:.3g}")
    return f"{rounded / 1e6:g}M" if rounded >= 1e6 else f"{rounded / 1e3:g}k" if rounded >= 1e4 else str(images)


def misfit(config: Config, size: Footprint | None, gpu: Gpu) -> str | None:
    """Why the run cannot work on the GPU, and which settings would help; None when it fits or its size is not known."""
    if config.precision == "bf16" and not gpu.bf16:
        return f"{gpu.name} has no bf16 arithmetic; use --precision fp16 or fp32"
    if size is None or not size.passes:
        return None
    peak = memory.predict(config, size)
    need = peak.total
    if need + OVERHEAD <= gpu.memory:
        return None
    remedy = memory.make_fit(config, size, gpu.memory)
    start = (
        f"this run needs about {need:.1f} GiB in {peak.name} and CUDA itself {OVERHEAD:g}, but {gpu.name} has "
        f"{gpu.memory:.1f} GiB"
    )
    if remedy is None:
        return f"{start}, and no setting changes that; use a larger GPU"
    settings = " ".join(
        f"--set {key}={'null' if value is None else str(value).lower()}" for key, value in remedy.items()
    )
    then = memory.predict(replace(config, **remedy), size).total  # type: ignore[arg-type]
    half = ", at the quality of pure fp16" if "precision" in remedy else ""
    return f"{start}. With {settings} it needs {then:.1f} GiB{half} (estimate; --force runs it anyway)"


def _precision(config: Config) -> str:
    what = {
        "fp32": "fp32" + (" with TF32" if config.tf32 else ", TF32 off"),
        "bf16": "bf16 autocast, fp32 weights and optimiser",
        "fp16": "pure fp16 (weights, gradients, optimiser), as in the paper: most updates of size lr "
        "round away; for quality prefer bf16",
    }
    return f"{what[config.precision]}; attention {config.attention}"


def processes_note(config: Config, processes: int) -> str | None:
    """What another number of processes than the preset's means; None for the preset's own."""
    if config.processes == processes:
        return None
    return (
        f"the preset is made for {config.processes} processes, this is {processes}: the result is the same, the time is not. For "
        f"{config.processes} GPUs: torchrun --nproc_per_node {config.processes} -m sidlsg distill ..."
    )
