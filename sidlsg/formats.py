"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"


def duration(seconds: float) -> str:
    """62 -> "1:02", 4000 -> "1:06:40", 200000 -> "2 d 7 h"."""
    if seconds >= 48 * 3600:
        return f"{int(seconds // 86400)} d {int(seconds % 86400 // 3600)} h"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def about(seconds: float) -> str:
    """A length of time as people say it, for estimates: 40 -> "about 40 seconds", 157,000 -> "about 44 hours", 4.2e6 -> "about 48
    days"."""
    for unit, length, most in (("second", 1, 90), ("minute", 60, 90), ("hour", 3600, 48)):
        if (count := round(seconds / length)) <= most:
            return f"about {max(1, count)} {unit}{'s' if count > 1 else ''}"
    return f"about {round(seconds / 86400):,} days"


def amount(number: float) -> str:
    """A number of images to three figures: 5.49 million, 208,000, 86.4."""
    if number < 100:
        return f"{number:.3g}"
    rounded = round(number, 2 - math.floor(math.log10(number)))
    return f"{rounded / 1e6:.3g} million" if rounded >= 1e6 else f"{rounded:,.0f}"


def sparkline(values: Sequence[float], most: int = 24) -> str:
    """The last ``most`` values as bars from the smallest to the largest of them; what is not finite is a blank."""
    shown = values[-most:]
    finite = [value for value in shown if math.isfinite(value)]
    low, span = min(finite, default=0.0), max(finite, default=0.0) - min(finite, default=0.0)
    bars = [
        BARS[round((value - low) / span * (len(BARS) - 1)) if span else 0] if math.isfinite(value) else " "
        for value in shown
    ]
    return "".join(bars)
