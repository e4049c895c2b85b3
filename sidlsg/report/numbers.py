"""Numbers as the report shows them."""

from __future__ import annotations


def short(value: float) -> str:
    """Three significant digits, never fewer than the whole part: 813.9 -> "814", 0.53071 -> "0.531", 12345.6 -> "12,346"."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return text if "e" in text or "." not in text else text.rstrip("0").rstrip(".")


def count(value: float) -> str:
    """12800 -> "12,800"; from a million on "2.5M"."""
    if value >= 1e6:
        return f"{value / 1e6:.4g}M"
    return f"{value:,.0f}"


def tick(value: float) -> str:
    """A tick of an axis: 2500 -> "2.5k", 0.001 -> "0.001"."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def percent(share: float) -> str:
    """0.0123 -> "1.2 %"; what is less than 0.1 % says so."""
    return f"{100 * share:.1f} %" if share >= 0.001 else "less than 0.1 %"


def times(ratio: float) -> str:
    """2.08 -> "twice", 3 -> "three times", 4.93 -> "4.9 times": what is within a twentieth of a whole number is called that."""
    words = {1: "as much as", 2: "twice", 3: "three times", 4: "four times", 5: "five times"}
    whole = round(ratio)
    near = whole in words and abs(ratio - whole) <= whole / 20
    return words[whole] if near else f"{ratio:.2g} times"
