"""Whether a run is sane: its statistics as a line of metrics, and the band that its latents must not leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sidlsg.config import Config
from sidlsg.errors import SidlsgError
from sidlsg.method.statistics import reference_loss, score_gap
from sidlsg.method.update import Stats

Window = list[tuple[Stats, Stats]]  # of the fake score's and the generator's update, by iteration


@dataclass(frozen=True)
class Summary:
    """A window of iterations: means of both losses, of mean and standard deviation of x_g, and of the gradients' norms; samples
    left out in all; and what the generator's update says of both score networks (``method/statistics.py``)."""

    loss_fake: float
    loss_generator: float
    skipped: int
    x_mean: float
    x_std: float
    grad_norm_fake: float
    grad_norm_generator: float
    loss_reference: float | None
    score_gap: list[float | None]

    @classmethod
    def of(cls, window: Window) -> Summary:
        """Reads the statistics off the device, which makes a GPU wait."""
        columns = [
            torch.stack([psi.loss for psi, _ in window]).mean(),
            torch.stack([theta.loss for _, theta in window]).mean(),
            torch.stack([psi.skipped + theta.skipped for psi, theta in window]).sum(),
            torch.stack([theta.x_mean for _, theta in window]).mean(),
            torch.stack([theta.x_std for _, theta in window]).mean(),
            torch.stack([psi.grad_norm for psi, _ in window]).mean(),
            torch.stack([theta.grad_norm for _, theta in window]).mean(),
        ]
        sums = torch.stack([theta.sums for _, theta in window]).sum(0)
        loss_fake, loss_generator, skipped, mean, std, fake, generator = torch.stack(columns).tolist()
        return cls(
            loss_fake,
            loss_generator,
            int(skipped),
            mean,
            std,
            grad_norm_fake=fake,
            grad_norm_generator=generator,
            loss_reference=reference_loss(sums),
            score_gap=score_gap(sums),
        )

    def as_line(self) -> dict[str, Any]:
        """As ``metrics.jsonl`` has it."""
        line = vars(self).copy()
        return line | {"skipped_samples": line.pop("skipped")}


def stats_to_numbers(stats: Stats) -> dict[str, Any]:
    """An update's statistics as plain numbers, for a checkpoint."""
    return {name: value.tolist() for name, value in vars(stats).items()}


def stats_from_numbers(numbers: dict[str, Any], device: torch.device) -> Stats:
    """The statistics that ``stats_to_numbers`` made them of."""
    return Stats(**{name: torch.tensor(value, device=device) for name, value in numbers.items()})


def to_numbers(window: Window) -> list[list[dict[str, Any]]]:
    """A window as plain numbers, for a checkpoint."""
    return [[stats_to_numbers(stats) for stats in pair] for pair in window]


def from_numbers(numbers: list[list[dict[str, Any]]], device: torch.device) -> Window:
    """The window that ``to_numbers`` made them of; without the iterations of versions that kept other statistics."""
    return [
        (stats_from_numbers(psi, device), stats_from_numbers(theta, device))
        for psi, theta in numbers
        if isinstance(psi, dict)
    ]


def check(window: Window, config: Config, images_seen: int, kept: str) -> Summary:
    """The window's summary; raises SidlsgError when the latents' statistics have left their band in any of its iterations, or
    nothing finite is left in its last one.

    Args:
        kept: for the message, what is left of the run.
    """
    found, newest = Summary.of(window), Summary.of(window[-1:])
    low, high = config.latent_std
    latents = torch.stack([torch.stack([theta.x_mean, theta.x_std]) for _, theta in window]).tolist()
    outside = [(mean, std) for mean, std in latents if not (abs(mean) <= config.latent_mean and low <= std <= high)]
    # Good iterations must not hide one that is not, nor that nothing is finite any more.
    if outside or newest.skipped >= 2 * config.batch:
        mean, std = outside[0] if outside else latents[-1]
        raise SidlsgError(
            f"the generator has diverged at {images_seen:,} images: its latents have mean {mean:.3g} and standard deviation "
            f"{std:.3g} (allowed: ±{config.latent_mean:g}, {low:g} to {high:g}), {found.skipped} samples were not finite. "
            f"Start again with a smaller --lr, or --precision fp32 or bf16, in another --out. {kept}"
        )
    return found
