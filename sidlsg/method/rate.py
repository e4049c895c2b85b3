"""The learning rate over a run. Does not import torch, so that a plan can say it."""

from __future__ import annotations


def decayed_lr(lr: float, images_seen: int, images: int, decay: int | None) -> float:
    """Give the learning rate of an iteration that starts at ``images_seen`` of ``images``: constant, then linear to 0 at the end.

    Args:
        decay: the number of images, the run's last, over which it falls; None: it stays ``lr``, as in the paper.
    """
    return lr if decay is None else lr * min(1.0, max(0, images - images_seen) / decay)
