"""``sidlsg distill``: a teacher and prompts in, a one-step generator out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sidlsg.config import Config
    from sidlsg.gpus import Gpu

DEFAULT_PRESET, DEFAULT_TEACHER = "cpu", "emoji"


def distill(
    preset: Annotated[
        str | None,
        typer.Option(
            help="Preset name (`sidlsg presets list`) or YAML file; default: `cpu` for emoji, else the one for this GPU."
        ),
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Alias (`sidlsg models`), hub id or diffusers folder.")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Text file, one prompt a line, or an alias (aesthetics6plus).")
    ] = None,
    strategy: Annotated[str | None, typer.Option(help="long, short, lsg-simple or lsg.")] = None,
    kappa: Annotated[
        str | None, typer.Option(help="The strategy's scale, or all four: k1,k2,k3,k4. 1 is no guidance.")
    ] = None,
    images: Annotated[str | None, typer.Option(help="Duration in images seen: 10M, 50k, 12800.")] = None,
    batch: Annotated[str | None, typer.Option(help="Images an iteration, over all processes.")] = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="Images a forward pass; changes memory, not the result.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of both networks.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 (autocast) or fp16 (the paper's pure half).")
    ] = None,
    ema: Annotated[bool | None, typer.Option("--ema/--no-ema", help="Average the generator's weights.")] = None,
    eval_every: Annotated[
        str | None, typer.Option(help="Score the student every so many images, keep the best, draw curves.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting of a preset: --set two_stage=true (repeatable)."),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Plan for this GPU: a5000, a6000, a100, h100, h200, 4090, ...")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Run even if the plan says that memory will not suffice.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Run folder (default: runs/<teacher>-<preset>-<strategy>-<kappa>).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop; needs no network.")] = False,
) -> None:
    """Distil a teacher into a one-step generator (Algorithm 1 of the paper).

    Alone, it distils the embedded emoji teacher on the CPU in a few minutes. Option beats preset beats default; the
    effective configuration is printed and saved as config.yaml beside the run.

    To resume, run the same command again. Several GPUs: `torchrun --nproc_per_node 8 -m sidlsg distill ...`

    The generator loss oscillates around zero by design. To see whether a run works, look at the grids in samples/.

    Examples: `sidlsg distill` · `sidlsg distill --preset h100-fp16 --teacher sd15 --dry-run` ·
    `sidlsg distill --strategy long --kappa 3 --images 50k`
    """
    from rich.console import Console

    from sidlsg import distributed
    from sidlsg.config import make_config, parse_count, parse_kappa, parse_settings
    from sidlsg.data import cache_folder
    from sidlsg.errors import UsageError
    from sidlsg.plan import misfit, plan
    from sidlsg.prompts import PromptFile
    from sidlsg.registry import locate, prompt_path
    from sidlsg.run_folder import RunFolder, default_name

    console = Console()
    if preset is None:
        preset = DEFAULT_PRESET if teacher in (None, DEFAULT_TEACHER) else preset_here(teacher)
    options = parse_settings(setting or []) | {
        name: value
        for name, value in {
            "teacher": teacher,
            "prompts": prompts,
            "strategy": strategy,
            "kappa": None if kappa is None else parse_kappa(kappa),
            "images": None if images is None else parse_count(images),
            "batch": None if batch is None else parse_count(batch, "batch"),
            "micro_batch": micro_batch,
            "lr": lr,
            "precision": precision,
            "ema": ema,
            "eval_every": None if eval_every is None else parse_count(eval_every, "eval_every"),
            "seed": seed,
            "device": device,
            "gpu": gpu,
        }.items()
        if value is not None
    }
    config = make_config(preset, options)
    place = locate(config.teacher)
    folder = RunFolder(out or Path("runs") / default_name(config, preset))
    processes = distributed.launched()
    path, to_download = prompt_path(config.prompts, cache_folder(), download=not dry_run)
    lines = None if to_download else PromptFile(path)
    if processes.main:
        listed = f"{config.prompts} (to be downloaded to {path})" if lines is None else repr(lines)
        world = processes.world if processes.by_torchrun or not dry_run else config.processes
        planned = plan_gpu(config, dry_run)
        console.print(plan(config, preset, folder.path, place, listed, world, planned), highlight=False)
        problem = planned and misfit(config, place, planned)
        if problem and dry_run:
            console.print(f"[yellow]does not fit:[/] {problem}", highlight=False, soft_wrap=True)
        elif problem and not force:
            raise UsageError(problem)
    if dry_run or lines is None:
        return
    after = f'{folder.student}\nsidlsg sample --model {folder.path} "..."'
    if folder.complete(config):
        console.print(f"this run is complete: {after}", highlight=False, markup=False, soft_wrap=True)
        return

    from sidlsg.trainer import Trainer

    grid_file = config.grid_prompts or (place.entry and place.entry.grid_prompts)
    grid = (PromptFile(grid_file) if grid_file else lines)[: config.grid_images]
    try:
        Trainer(config, folder, lines, grid, console).run()
    finally:
        distributed.stop()
    if processes.main:
        console.print(f"done: {after}", highlight=False, markup=False, soft_wrap=True)


def preset_here(teacher: str | None) -> str:
    """The bf16 preset for the GPU of this machine; raises UsageError where there is none that can run it."""
    from sidlsg.errors import UsageError
    from sidlsg.gpus import preset_for

    try:
        import torch

        able = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    except ImportError:
        able = False
    if not able:
        raise UsageError(f"--teacher {teacher} needs a --preset (no GPU with bf16 here); see: sidlsg presets list")
    return preset_for(torch.cuda.get_device_properties(0).total_memory / 2**30)


def plan_gpu(config: Config, dry_run: bool) -> Gpu | None:
    """The GPU to plan for: the one the run would use; in a dry run, --gpu or the preset's. None on a CPU.

    A GPU that the table lacks is known by its memory only: no estimate of time.
    """
    from dataclasses import replace

    from sidlsg.gpus import Gpu, get_gpu, known_gpu

    if dry_run:
        return get_gpu(config.gpu) if config.gpu else None
    from sidlsg.models import pick_device

    device = pick_device(config.device)
    if device.type != "cuda":
        return None
    import torch

    properties = torch.cuda.get_device_properties(device)
    total = properties.total_memory / 2**30
    row = known_gpu(properties.name, total) or Gpu(
        "", properties.name, total, dict.fromkeys(("16", "tf32", "fp32"), 0.0), {}
    )
    return replace(row, name=properties.name, memory=total)
