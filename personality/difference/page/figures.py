"""How figures are written on the page."""

from __future__ import annotations

MINUS = "−"


def signed(value: float, digits: int = 1) -> str:
    """With its sign and a true minus; zero has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if not float(text) else text.replace("-", MINUS)


def percentage(value: float) -> str:
    """A share as a percentage, with a decimal only where it is not whole."""
    shown = value * 100
    text = f"{shown:.0f}" if abs(shown - round(shown)) < 0.05 else f"{shown:.1f}"
    return text.replace("-", MINUS) + "%"


def number(value: float | None, digits: int = 3) -> str:
    """A plain figure, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About so many round numbers from at or below `low` to at or above `high`."""
    if high <= low:
        low, high = low - 1, high + 1
    width = max(high - low, 1e-9) / count
    power = 1.0
    while power * 10 <= width:
        power *= 10
    while power > width:
        power /= 10
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= width * 0.999)
    first, last = int(low // step), -int(-high // step)
    return [index * step for index in range(first, last + 1)]
