"""Whether a run is sane: its statistics as a line of metrics, and the band that its latents must not leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sidlsg.config import Config
from sidlsg.errors import SidlsgError
from sidlsg.method.update import Stats

Window = list[tuple[Stats, Stats]]  # of the fake score's and the generator's update, by iteration


@dataclass(frozen=True)
class Summary:
    """Means over a window of iterations: both losses, mean and standard deviation of x_g; and samples left out in all."""

    loss_fake: float
    loss_generator: float
    skipped: int
    x_mean: float
    x_std: float

    @classmethod
    def of(cls, window: Window) -> Summary:
        """Reads the statistics off the device, which makes a GPU wait."""
        columns = [
            torch.stack([psi.loss for psi, _ in window]).mean(),
            torch.stack([theta.loss for _, theta in window]).mean(),
            torch.stack([psi.skipped + theta.skipped for psi, theta in window]).sum(),
            torch.stack([theta.x_mean for _, theta in window]).mean(),
            torch.stack([theta.x_std for _, theta in window]).mean(),
        ]
        loss_fake, loss_generator, skipped, mean, std = torch.stack(columns).tolist()
        return cls(loss_fake, loss_generator, int(skipped), mean, std)

    def as_line(self) -> dict[str, Any]:
        """As ``metrics.jsonl`` has it."""
        return {
            "loss_fake": self.loss_fake,
            "loss_generator": self.loss_generator,
            "skipped_samples": self.skipped,
            "x_mean": self.x_mean,
            "x_std": self.x_std,
        }


def to_numbers(window: Window) -> list[list[list[float]]]:
    """A window as plain numbers, for a checkpoint."""
    return [[torch.stack([*vars(stats).values()]).tolist() for stats in pair] for pair in window]


def from_numbers(numbers: list[list[list[float]]], device: torch.device) -> Window:
    """The window that ``to_numbers`` made them of."""
    return [
        (Stats(*torch.tensor(psi, device=device)), Stats(*torch.tensor(theta, device=device))) for psi, theta in numbers
    ]


def check(window: Window, config: Config, images_seen: int, kept: str) -> Summary:
    """The window's summary; raises SidlsgError when the latents' statistics have left their band, or nothing finite is left in
    its last iteration.

    Args:
        kept: for the message, what is left of the run.
    """
    found, newest = Summary.of(window), Summary.of(window[-1:])
    low, high = config.latent_std
    sane = abs(found.x_mean) <= config.latent_mean and low <= found.x_std <= high
    # A window of good iterations must not hide that nothing is finite any more.
    if not sane or newest.skipped >= 2 * config.batch:
        raise SidlsgError(
            f"the generator has diverged at {images_seen:,} images: its latents have mean {found.x_mean:.3g} and standard "
            f"deviation {found.x_std:.3g} (allowed: ±{config.latent_mean:g}, {low:g} to {high:g}), {found.skipped} samples were "
            f"not finite. Start again with a smaller --lr, or --precision fp32 or bf16, in another --out. {kept}"
        )
    return found
