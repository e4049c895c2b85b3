"""``sidlsg eval``: FID-30K, CLIP score, precision/recall and HPSv2 by named protocol; ``sidlsg eval stats``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sidlsg.metrics.protocol import Protocol

app = typer.Typer(invoke_without_command=True, subcommand_metavar="[stats ...]")

REFERENCE_HELP = "Real pictures: a folder (encoded once, cached) or a file of `sidlsg eval stats`."
INCEPTION_HELP = "Inception weights file, instead of the cached or downloaded one."
DEVICE_HELP = "auto, cpu, cuda or cuda:N."


@app.callback()
def evaluate(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="Run folder, diffusers folder, alias or hub id.")] = None,
    coco30k: Annotated[
        bool, typer.Option("--coco30k", help="30,000 COCO captions, as the paper's tables 1 and 2.")
    ] = False,
    hpsv2: Annotated[bool, typer.Option("--hpsv2", help="4 x 800 prompts, human preference score.")] = False,
    images: Annotated[Path | None, typer.Option(help="Score this folder of pictures, made by anything.")] = None,
    reference: Annotated[Path | None, typer.Option(help=REFERENCE_HELP)] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Caption file; line i belongs to picture i (or a folder, with --hpsv2).")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="gigagan, sid-lsg or embedded.")] = None,
    only: Annotated[str, typer.Option(help="Which scores: fid,clip,pr.")] = "fid,clip,pr",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first N captions; not comparable with tables.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps of a teacher (default 25).")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale of a teacher (default 3).")] = None,
    sampler: Annotated[str | None, typer.Option(help="Sampler of a teacher: ddim, dpm++, unipc, ...")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures made at once; does not change them.")] = None,
    precision: Annotated[str | None, typer.Option(help="Of the generator: fp32, bf16 or fp16.")] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    inception: Annotated[Path | None, typer.Option(help=INCEPTION_HELP)] = None,
    clip: Annotated[Path | None, typer.Option(help="CLIP ViT-g-14 weights file.")] = None,
    hps: Annotated[Path | None, typer.Option(help="HPS weights file.")] = None,
    hps_version: Annotated[str, typer.Option(help="v2.0 (the paper's) or v2.1; the scales differ.")] = "v2.0",
    hps_antialias: Annotated[
        bool, typer.Option("--hps-antialias/--no-hps-antialias", help="Off: as with torchvision before 0.17.")
    ] = True,
    hps_package: Annotated[
        bool, typer.Option("--hps-package", help="Score with the installed hpsv2 package's code.")
    ] = False,
    assume_protocol: Annotated[
        bool, typer.Option("--assume-protocol", help="Take statistics of another tool as this protocol's.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for pictures and results (default below evals/).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be done, needed and downloaded.")] = False,
) -> None:
    """Score a model, or pictures made by anything, by a named protocol.

    Alone, it scores the shipped emoji student on the embedded benchmark. With --coco30k it draws caption i with seed i for all
    30,000 captions, then computes FID, CLIP score, precision and recall as the paper's tables do. An interrupted evaluation
    goes on when the same command is given again. Several GPUs: `torchrun --nproc_per_node 8 -m sidlsg eval ...`

    Examples: `sidlsg eval` · `sidlsg eval --model runs/my-run` · `sidlsg eval --coco30k --model sd15 --dry-run` ·
    `sidlsg eval --hpsv2 --model runs/my-run` · `sidlsg eval --images DIR --reference coco.npz --protocol gigagan`
    """
    if context.invoked_subcommand is not None:
        return
    from sidlsg.errors import UsageError

    if sum((coco30k, hpsv2)) > 1:
        raise UsageError("give one of --coco30k and --hpsv2; they draw different pictures")
    if images is not None and model is not None:
        raise UsageError("give --model to draw pictures, or --images to score those in a folder, not both")
    if images is not None and not hpsv2 and reference is None and prompts is None and protocol != "embedded":
        raise UsageError("--images needs --reference (a folder of real pictures, or statistics) or --prompts, or both")
    request = Request(
        model=model or ("emoji-student" if images is None else None),
        images=images,
        reference=reference,
        prompts=prompts,
        only=parse_only(only),
        limit=limit,
        generation={"steps": steps, "guidance": guidance, "sampler": sampler},
        batch=batch,
        precision=precision,
        device=device,
        assume=assume_protocol,
        out=out,
    )
    if hpsv2:
        from sidlsg.metrics.protocol import HPS_VERSIONS

        if hps_version not in HPS_VERSIONS:
            raise UsageError(f'--hps-version is "{hps_version}"; use {" or ".join(HPS_VERSIONS)}')
        options = {"version": hps_version, "weights": hps, "antialias": hps_antialias, "package": hps_package}
        _hpsv2(request, options, dry_run)
    else:
        from sidlsg.metrics.protocol import get_protocol

        default = "gigagan" if coco30k or images is not None else "embedded"
        chosen = get_protocol(protocol or default)
        if coco30k and chosen.prompts != "coco30k":
            raise UsageError(f"--coco30k does not go with the protocol {chosen.name}; use gigagan or sid-lsg")
        if not coco30k and images is None and chosen.prompts == "coco30k":
            raise UsageError(f"the protocol {chosen.name} draws 30,000 pictures; add --coco30k (or --images FOLDER)")
        _protocol(request, chosen, {"inception": inception, "clip": clip}, dry_run)


@app.command("stats")
def stats(
    folder: Annotated[Path, typer.Argument(help="Folder of real pictures.")],
    out: Annotated[Path, typer.Option(help="File to write: coco.npz.")],
    protocol: Annotated[str, typer.Option(help="gigagan, sid-lsg or embedded.")] = "gigagan",
    features: Annotated[
        bool, typer.Option("--features/--no-features", help="Keep features, which precision and recall need.")
    ] = True,
    inception: Annotated[Path | None, typer.Option(help=INCEPTION_HELP)] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures at once.")] = None,
) -> None:
    """Make a file of reference statistics to share, so that others need no pictures.

    Example: `sidlsg eval stats /data/COCO2014/val2014 --out coco.npz`, then `sidlsg eval --coco30k --reference coco.npz`
    """
    from dataclasses import replace

    from rich.console import Console

    from sidlsg.errors import UsageError
    from sidlsg.metrics.pictures import find_pictures
    from sidlsg.metrics.protocol import get_protocol

    chosen = get_protocol(protocol)
    if out.suffix != ".npz":
        raise UsageError(f"--out {out}: the file's name must end in .npz")
    pictures = find_pictures(folder)
    from sidlsg.evaluate import encode_folder
    from sidlsg.metrics.scorer import Scorer
    from sidlsg.models import pick_device

    console = Console()
    scorer = Scorer(chosen, pick_device(device), ("fid",), inception=inception, batch=batch)
    with Bars(console) as bars:
        found = encode_folder(scorer, pictures, bars)
    (found if features else replace(found, features=None)).save(out)
    what = "statistics and features" if features else "statistics"
    console.print(
        f"{out}: {what} of {len(pictures):,} pictures, protocol {chosen.name}", highlight=False, soft_wrap=True
    )


@dataclass(frozen=True)
class Request:
    """What the command line asked for, in both kinds of evaluation."""

    model: str | None
    images: Path | None
    reference: Path | None
    prompts: Path | None
    only: tuple[str, ...]
    limit: int | None
    generation: dict[str, Any]
    batch: int | None
    precision: str | None
    device: str
    assume: bool
    out: Path | None

    def folder(self, kind: str) -> Path:
        """The same command gives the same folder."""
        import re

        if self.out is not None:
            return self.out
        parts = [kind, self.model or str(self.images)]
        parts += [f"{name}-{value}" for name, value in self.generation.items() if value is not None]
        parts += [f"first-{self.limit}"] if self.limit else []
        return Path("evals") / re.sub(r"[^\w.+-]+", "-", "-".join(parts)).strip("-.")


def parse_only(text: str) -> tuple[str, ...]:
    """ "fid,clip" -> ("fid", "clip"); raises UsageError for anything but fid, clip and pr."""
    from sidlsg.errors import UsageError

    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not set(names) <= {"fid", "clip", "pr"}:
        raise UsageError(f'--only is "{text}"; write some of fid,clip,pr')
    return names


class Bars:
    """Progress bars by name; on a pipe, one line each. ``bars(name, total)`` returns the function to tick with."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.console = console
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)

    def __enter__(self) -> Bars:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, name: str, total: int) -> Any:
        if not self.console.is_terminal:
            self.stage(f"{name}: {total:,}")
        task = self.bar.add_task(name, total=total)
        return lambda count: self.bar.advance(task, count)

    def stage(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self.console.print(f"warning: {text}", highlight=False, soft_wrap=True, style="yellow")


def _captions(request: Request, protocol: Protocol, download: bool) -> tuple[list[str] | None, str, str]:
    """The caption list (None when it is still to be downloaded), where it is, and its SHA-256.

    Raises UsageError when the protocol's own list has another length or hash than it must.
    """
    from sidlsg.data import cache_folder
    from sidlsg.errors import UsageError
    from sidlsg.metrics.reference import BENCH
    from sidlsg.metrics.weights import find_weights, weight_files
    from sidlsg.prompts import PromptFile

    if request.images is not None:  # whatever captions the pictures were made from
        if request.prompts is None and protocol.prompts == "coco30k":
            return None, "none given", ""
        path = request.prompts or BENCH / "captions.txt"
        lines = PromptFile(path)
        return list(lines), str(path), lines.sha256
    if protocol.prompts == "emoji-bench":
        path = request.prompts or BENCH / "captions.txt"
    else:
        found = find_weights(protocol.prompts, request.prompts, download)
        if found is None:
            row = weight_files()[protocol.prompts]
            return None, f"{row.url} -> {cache_folder() / 'weights' / row.file}", row.sha256 or ""
        path = found
    lines = PromptFile(path)
    if protocol.prompts == "coco30k":
        wanted = weight_files()["coco30k"].sha256
        if len(lines) != protocol.images:
            raise UsageError(
                f"{path} holds {len(lines):,} captions; the protocol {protocol.name} has {protocol.images:,}"
            )
        if wanted and lines.sha256 != wanted:
            raise UsageError(
                f"{path} is not the protocol's caption list (SHA-256 {lines.sha256[:12]}..., expected {wanted[:12]}...); leave "
                "out --prompts to download it"
            )
    return list(lines)[: request.limit], str(path), lines.sha256


def _protocol(request: Request, protocol: Protocol, weights: dict[str, Path | None], dry_run: bool) -> None:
    """FID (or fd), CLIP score, precision and recall."""
    from rich.console import Console

    from sidlsg import distributed
    from sidlsg.errors import UsageError
    from sidlsg.metrics.report import plan_table

    folder = request.folder(protocol.name)
    captions, where, digest = _captions(request, protocol, download=not dry_run)
    processes = distributed.launched()
    console = Console(quiet=not processes.main)
    if dry_run:
        console.print(plan_table(request, protocol, weights, folder, captions, where), highlight=False)
        return
    if request.reference is None and protocol.prompts != "emoji-bench" and {"fid", "pr"} & set(request.only):
        if request.images is None:
            raise UsageError(
                f"--reference is missing: {protocol.reference} as a folder, or a file of `sidlsg eval stats`. Without one, only "
                "the CLIP score can be computed: --only clip"
            )
        request = _without_reference(request)

    import time

    from sidlsg import evaluate as ev
    from sidlsg.metrics.pictures import find_pictures
    from sidlsg.metrics.report import markdown, results_table
    from sidlsg.metrics.scorer import Scorer
    from sidlsg.models import pick_device

    where_to = pick_device(request.device, processes.local_rank)
    warnings: list[str] = []
    seconds: dict[str, float] = {}
    begun = time.monotonic()
    with Bars(console) as bars:

        def warn(text: str) -> None:
            warnings.append(text)
            bars.warn(text)

        # Missing or wrong weights stop the evaluation before hours of drawing, not after.
        scorer = None
        if processes.main:
            scorer = Scorer(protocol, where_to, request.only, batch=request.batch, **weights)
            reference = None
            if {"fid", "pr"} & set(request.only):
                reference = ev.use_reference(scorer, request.reference, request.assume, bars, warn)
            seconds["reference"] = time.monotonic() - begun
        about: dict[str, Any] = {"images": str(request.images)}
        pictures = request.images
        if request.images is None:
            assert captions is not None
            begun = time.monotonic()
            about = _draw(request, ev.caption_jobs(captions), folder, protocol.prompts, digest, bars, where_to)
            pictures = folder / "images"
            seconds["drawing"] = time.monotonic() - begun
        if not processes.main:
            return
        assert scorer is not None and pictures is not None
        begun = time.monotonic()
        found = find_pictures(pictures)
        if request.limit and request.images is None:
            warn(f"only the first {request.limit:,} captions: not comparable with published numbers")
            found = _first(found, request.limit)
        scores = ev.score_pictures(scorer, found, captions, reference, folder / "encoded", bars, warn, bars.stage)
        seconds["scoring"] = time.monotonic() - begun
    results = {
        "protocol": protocol.name,
        "protocol_sha256": protocol.fingerprint,
        "what": protocol.what,
        "scores": scores,
        "pictures": len(found),
        "reference": None if reference is None else {"source": reference.source, "pictures": reference.moments.count},
        "generation": about,
        "prompts_sha256": digest,
        "weights_sha256": scorer.weights,
        "device": str(where_to),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "warnings": warnings,
        "versions": ev.versions(),
    }
    ev.write_results(folder, results, markdown(results))
    console.print(results_table(results), highlight=False)
    console.print(f"{folder / 'results.json'}", highlight=False, soft_wrap=True)


def _without_reference(request: Request) -> Request:
    from dataclasses import replace

    from sidlsg.errors import UsageError

    if "clip" not in request.only:
        raise UsageError("--reference is missing: a folder of real pictures, or a file of `sidlsg eval stats`")
    return replace(request, only=("clip",))


def _first(folder: Any, limit: int) -> Any:
    """The pictures with numbers below ``limit``: a larger evaluation may have been in this folder before."""
    from dataclasses import replace

    kept = [(file, number) for file, number in zip(folder.files, folder.index, strict=True) if number < limit]
    return replace(folder, files=tuple(f for f, _ in kept), index=tuple(n for _, n in kept))


def _draw(
    request: Request, jobs: Any, folder: Path, prompts: str, digest: str, bars: Bars, device: Any
) -> dict[str, Any]:
    """Draw the missing pictures (this process's share) and wait for the others; returns what determines them."""
    from dataclasses import asdict

    from sidlsg import distributed
    from sidlsg import evaluate as ev
    from sidlsg.cli.sample import open_model
    from sidlsg.errors import UsageError
    from sidlsg.models import DTYPES
    from sidlsg.sampler import check_sampling

    assert request.model is not None
    if request.precision is not None and request.precision not in DTYPES:
        raise UsageError(f'precision is "{request.precision}"; use fp32, bf16 or fp16')
    precision = request.precision or ("fp16" if device.type == "cuda" else "fp32")
    model = open_model(request.model, device, DTYPES[precision])
    processes = distributed.start(device)
    steps, guidance = check_sampling(model, **request.generation)
    settings = ev.Settings(
        model=model.source,
        unet_sha256=ev.model_digest(model.unet),
        one_step=model.student is not None,
        steps=steps,
        guidance=guidance,
        sampler=request.generation["sampler"] or (None if model.student else model.scheduler_config["_class_name"]),
        precision=precision,
        prompts=prompts,
        prompts_sha256=digest,
        pictures=len(jobs),
    )
    if processes.main:
        settings.claim(folder)
    distributed.barrier()
    left = len(ev.missing(jobs, folder / "images"))
    tick = bars(f"drawing ({len(jobs) - left:,} of {len(jobs):,} are there)", -(-left // processes.world))
    distributed.barrier()  # all processes have counted before the first one writes
    batch = request.batch or (16 if device.type == "cuda" else 32)
    ev.generate(model, jobs, folder / "images", processes, batch=batch, tick=tick, **request.generation)
    distributed.barrier()
    distributed.stop()
    return asdict(settings)


def _hpsv2(request: Request, options: dict[str, Any], dry_run: bool) -> None:
    """The human preference score of 4 x 800 prompts."""
    import hashlib
    import json

    from rich.console import Console

    from sidlsg import distributed
    from sidlsg.errors import UsageError
    from sidlsg.metrics import hps
    from sidlsg.metrics.protocol import HPS_STYLES
    from sidlsg.metrics.report import hps_plan_table, markdown, results_table

    if request.reference is not None:
        raise UsageError("--hpsv2 compares with no reference; leave out --reference")
    folder = request.folder(f"hps-{options['version']}")
    processes = distributed.launched()
    console = Console(quiet=not processes.main)
    if dry_run:
        console.print(hps_plan_table(request, options, folder), highlight=False)
        return
    prompts = {style: hps.load_prompts(style, request.prompts)[: request.limit] for style in HPS_STYLES}
    digest = hashlib.sha256(json.dumps(prompts, sort_keys=True).encode()).hexdigest()

    import time

    from sidlsg import evaluate as ev
    from sidlsg.models import pick_device

    device = pick_device(request.device, processes.local_rank)
    warnings: list[str] = []
    begun = time.monotonic()
    with Bars(console) as bars:
        version, weights = options["version"], options["weights"]
        scorer = None
        if processes.main:
            kinds = {"antialias": options["antialias"], "package": options["package"]}
            scorer = hps.load_hps(version, device, weights, **kinds)
        about: dict[str, Any] = {"images": str(request.images)}
        pictures = request.images
        if request.images is None:
            about = _draw(request, ev.style_jobs(prompts), folder, "hpsv2", digest, bars, device)
            pictures = folder / "images"
        if not processes.main:
            return
        assert scorer is not None and pictures is not None
        if request.limit:
            warnings.append(
                f"only the first {request.limit:,} prompts of each style: not comparable with published numbers"
            )
            bars.warn(warnings[-1])
        count = sum(len(texts) for texts in prompts.values())
        scores = ev.score_styles(scorer, prompts, pictures, bars("HPSv2", count))
    results = {
        "protocol": f"hps-{version}",
        "what": f"HPSv2, checkpoint {version}, 100 x cosine; v2.0 and v2.1 are different scales",
        "scores": scores,
        "pictures": count,
        "hps": scorer.facts,
        "generation": about,
        "prompts_sha256": digest,
        "device": str(device),
        "seconds": {"all": round(time.monotonic() - begun, 1)},
        "warnings": warnings,
        "versions": ev.versions(),
    }
    ev.write_results(folder, results, markdown(results))
    console.print(results_table(results), highlight=False)
    console.print(f"{folder / 'results.json'}", highlight=False, soft_wrap=True)
