"""One-step image generators out of diffusion models you already have: Score identity Distillation with Long-Short Guidance.

The functions below are what the command line calls; see ``sidlsg.api``. Importing this package imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sidlsg.version import __version__

__all__ = ["Picture", "__version__", "distill", "evaluate", "sample"]

if TYPE_CHECKING:
    from sidlsg.api import Picture, distill, evaluate, sample


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sidlsg' has no attribute '{name}'")
    from sidlsg import api

    return getattr(api, name)
