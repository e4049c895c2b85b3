"""The presets as one chooses among them: by hardware, with what they need, how long they take, and what fits a GPU. Estimates of
the plan for LSG; no torch in here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from sidlsg.config import Config
from sidlsg.formats import about, amount
from sidlsg.planning import memory
from sidlsg.planning.footprint import Footprint, footprints
from sidlsg.planning.gpus import PRESETS, Gpu, get_gpu
from sidlsg.planning.plan import misfit, short_count, speed
from sidlsg.settings import make_config, preset_names, preset_path

ONE, SEVERAL, SDXL, PAPER, CPU = GROUPS = (
    "Stable Diffusion 1.5 and 2.1, one GPU",
    "Stable Diffusion 1.5 and 2.1, eight GPUs",
    "SDXL",
    "The paper's settings (Table 4), eight GPUs",
    "The embedded emoji teacher, two CPU cores",
)


@dataclass(frozen=True)
class Offer:
    """A preset, and what it needs on the hardware that it is made for.

    Attributes:
        purpose: the first line of its file, up to the semicolon.
        size: of its teacher.
        gpu: None for a preset of the CPU.
    """

    name: str
    purpose: str
    config: Config
    size: Footprint
    gpu: Gpu | None

    @property
    def group(self) -> str:
        """Which of ``GROUPS`` it belongs to."""
        if self.gpu is None:
            return CPU
        if not any(self.name == name for rows in PRESETS.values() for _, name in rows):
            return PAPER
        return SDXL if self.config.teacher == "sdxl" else ONE if self.config.processes == 1 else SEVERAL

    @property
    def gib(self) -> float | None:
        """GiB per GPU; None on a CPU."""
        return memory.predict(self.config, self.size).total if self.gpu else None

    @property
    def per_second(self) -> float | None:
        """Images/s over all GPUs; None on a CPU."""
        return speed(self.config, self.size, self.gpu, self.config.processes)

    def as_dict(self, fits: Fit | None) -> dict[str, Any]:
        """For programs; ``here`` is how it goes on the GPU that was asked about."""
        rate = self.per_second
        return {
            "preset": self.name,
            "for": self.purpose,
            "group": self.group,
            "gib_per_gpu": self.gib,
            "images_per_second": rate,
            "seconds": self.config.images / rate if rate else None,
            "here": asdict(fits) if fits else None,
            "config": self.config.as_dict(),
        }


@dataclass(frozen=True)
class Fit:
    """How a preset goes on another GPU: GiB per GPU (without CUDA's own), seconds of the whole run (None: not known), and why it
    does not fit, if so."""

    gib: float
    seconds: float | None
    problem: str | None

    @property
    def text(self) -> str:
        """In a few words, for a table."""
        if self.problem is not None:
            return "no bf16" if "has no bf16" in self.problem else f"needs {self.gib + memory.OVERHEAD:.1f} GiB"
        return "fits" if self.seconds is None else f"fits: {_length(self.seconds)}"


def offers() -> list[Offer]:
    """Make the offers of all presets: by group, and in a group from the smallest need to the largest."""
    found = []
    for name in preset_names():
        config = make_config(name, {})
        first = preset_path(name).read_text(encoding="utf-8").splitlines()[0]
        purpose = first.lstrip("# ").partition(";")[0]
        gpu = get_gpu(config.gpu) if config.gpu else None
        found.append(Offer(name, purpose, config, footprints()[config.teacher], gpu))
    return sorted(found, key=lambda offer: (GROUPS.index(offer.group), offer.gib or 0.0, offer.config.images))


def fit(offer: Offer, gpu: Gpu, count: int = 1) -> Fit | None:
    """Foresee a preset on ``count`` GPUs, or on one where the batch cannot be shared by so many; None for one of a CPU."""
    if offer.gpu is None:
        return None
    part = max(offer.config.micro_batches) * count
    processes = count if offer.config.batch % part == 0 else 1
    config = replace(offer.config, processes=processes)
    rate = speed(config, offer.size, gpu, processes)
    return Fit(
        gib=memory.predict(config, offer.size).total,
        seconds=None if rate is None else config.images / rate,
        problem=misfit(config, offer.size, gpu),
    )


def table(gpu: Gpu | None, count: int = 1) -> Iterator[str]:
    """Write the presets as lines of text under headings, for a terminal of 80 columns; a last column says what fits ``gpu``."""
    found = [(offer, _cells(offer, gpu, count)) for offer in offers()]
    here = f"on {count} GPU{'s' if count > 1 else ''}" if gpu else ""
    head = ("preset", "made for", "GiB", "per day", "full run", here)
    columns = zip(*(cells for offer, cells in found if offer.gpu), head, strict=True)
    widths = [max(len(str(cell)) for cell in column) for column in columns]
    yield _line(head, widths)
    for group in GROUPS:
        yield f"\n{group}"
        for offer, cells in found:
            if offer.group == group:
                yield _line(cells, widths) if offer.gpu else f"  {offer.name:<{widths[0]}}  {offer.purpose}"


def _cells(offer: Offer, gpu: Gpu | None, count: int) -> tuple[str, ...]:
    """Cells of a preset's line."""
    rate, fits = offer.per_second, fit(offer, gpu, count) if gpu else None
    if offer.gpu is None or offer.gib is None or rate is None:
        return (offer.name, *[""] * 5)
    full = f"{short_count(offer.config.images)} in {_length(offer.config.images / rate)}"
    made_for = f"{offer.config.processes} x {offer.gpu.name}"
    return offer.name, made_for, f"{offer.gib:.1f}", amount(rate * 86400), full, fits.text if fits else ""


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    """Cells in columns; the third and fourth are numbers, and stand right."""
    pairs = enumerate(zip(cells, widths, strict=True))
    return (
        "  " + "  ".join(f"{cell:>{width}}" if n in (2, 3) else f"{cell:<{width}}" for n, (cell, width) in pairs)
    ).rstrip()


def _length(seconds: float) -> str:
    """As ``about`` says it, without the word."""
    return about(seconds).removeprefix("about ")
