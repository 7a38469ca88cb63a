"""Dose and response of one vector, with the scale that each version uses."""

from __future__ import annotations

from collections.abc import Sequence

from personality.difference.manifest_curve import ManifestCurve
from personality.difference.page.figures import nice_ticks, percentage
from personality.difference.page.markup import Markup, details, element, table

_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 12, 20, 28
_GENERAL = "general."
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4", "10 4")


def dose_plot(curve: ManifestCurve, labels: tuple[str, str]) -> Markup:
    """A small plot: shares against scale, and where text falls apart."""
    lines = _lines(curve)
    used = [(label, scale) for label, scale in zip(labels, (curve.before, curve.after), strict=True) if scale]
    ends = [*curve.scales, *(scale for _, scale in used)]
    ticks = nice_ticks(min(0.0, *ends), max(ends), 4)
    drawn: list[Markup] = []
    apart_words = ""
    apart = ticks[0] if curve.coherent_to is None else curve.coherent_to
    if apart < curve.scales[-1]:
        x = _x(apart, ticks)
        apart_words = " Shaded: text falls apart."
        drawn.append(
            element(
                "rect",
                element("title", "text falls apart"),
                x=x,
                y=_TOP,
                width=_x(ticks[-1], ticks) - x,
                height=_y(0) - _TOP,
                class_="apart",
            )
        )
    for value in (0.0, 0.5, 1.0):
        drawn.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=_y(value), y2=_y(value), class_="grid"))
        drawn.append(element("text", percentage(value), x=_LEFT - 6, y=_y(value) + 4, text_anchor="end"))
    drawn += [element("text", f"{tick:g}", x=_x(tick, ticks), y=_HEIGHT - 10, text_anchor="middle") for tick in ticks]
    same = len(used) == 2 and used[0][1] == used[1][1]
    for label, scale in [(" and ".join(labels), used[0][1])] if same else used:
        x = _x(scale, ticks)
        drawn.append(element("line", x1=x, x2=x, y1=_TOP - 4, y2=_y(0), class_="used"))
        drawn.append(element("text", label, x=x, y=_TOP - 8, text_anchor="middle", class_="used-name"))
    keys = []
    for index, (name, values) in enumerate(lines.items()):
        kind, dash = f"series s{index % len(_DASHES)}", _DASHES[index % len(_DASHES)]
        path = " ".join(
            f"{_x(scale, ticks):.1f},{_y(value):.1f}" for scale, value in zip(curve.scales, values, strict=True)
        )
        drawn.append(element("polyline", points=path, class_=kind, stroke_dasharray=dash or None))
        for scale, value in zip(curve.scales, values, strict=True):
            title = element("title", f"{name} at {scale:g}: {percentage(value)}")
            drawn.append(
                element("g", title, element("circle", cx=_x(scale, ticks), cy=_y(value), r=2.6, class_=f"{kind} point"))
            )
        sample = element("line", x1=1, x2=25, y1=7, y2=7, class_=kind, stroke_dasharray=dash or None)
        keys.append(
            element("span", element("svg", sample, width=26, height=14, aria_hidden="true"), name, class_="key")
        )
    words = f"{curve.label}: shares at scales {curve.scales[0]:g} to {curve.scales[-1]:g}"
    picture = element(
        "svg",
        element("title", words),
        element("desc", f"text holds together up to scale {apart:g}" if curve.coherent_to is not None else ""),
        drawn,
        role="img",
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        aria_label=words,
        class_="dose",
    )
    figures = table(
        ["scale", *lines],
        [
            (f"{scale:g}", *(percentage(values[index]) for values in lines.values()))
            for index, scale in enumerate(curve.scales)
        ],
        caption=f"{curve.label}, share at each scale",
    )
    return element(
        "figure",
        element("h3", curve.label),
        picture,
        element("figcaption", keys),
        element("p", "Measured on the base with this vector alone, against its scale.", apart_words, class_="muted"),
        details("The same figures as a table", figures),
        class_="dose-figure",
    )


def _lines(curve: ManifestCurve) -> dict[str, Sequence[float]]:
    """The behavior's own probes, the mean of general ones, repetition."""
    general = [values for name, values in curve.responses.items() if name.startswith(_GENERAL)]
    found: dict[str, Sequence[float]] = {
        name: values for name, values in curve.responses.items() if not name.startswith(_GENERAL)
    }
    if general:
        found["general probes, mean"] = [sum(column) / len(column) for column in zip(*general, strict=True)]
    return found


def _x(scale: float, ticks: Sequence[float]) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (scale - ticks[0]) / (ticks[-1] - ticks[0])


def _y(value: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * value
