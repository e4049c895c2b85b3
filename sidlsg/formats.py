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
