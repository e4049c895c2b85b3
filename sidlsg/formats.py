"""Numbers as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """62 -> "1:02", 4000 -> "1:06:40", 200000 -> "2 d 7 h"."""
    if seconds >= 48 * 3600:
        return f"{int(seconds // 86400)} d {int(seconds % 86400 // 3600)} h"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
