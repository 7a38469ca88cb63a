"""The forest plot: what changed in each probe, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from personality.difference.page.figures import nice_ticks, percentage, signed
from personality.difference.page.markup import Markup, details, element, table
from personality.evaluation.evaluate import Effect
from personality.manifests.evaluation import Figure

Unit = Literal["points", "nats"]

_LANE, _PAD, _AXIS, _SIZE = 22, 3, 22, 5  # pixels: of a mark, above and below, of the axis, of a dot's radius

_NAMES = {
    "passed": "passing replies",
    "probability": "P of the wanted opening",
    "sampled": "passing sampled replies",
    "grade": "judge's grade",
    "bypass": "habit comes when asked for",
    "margin": "margin",
}
_SQUARE = ("sampled", "grade", "bypass")


@dataclass(frozen=True)
class Mark:
    """One estimate of a probe's change: of what, before, after, and the difference."""

    kind: str
    before: Figure
    after: Figure
    change: Figure

    @property
    def unit(self) -> Unit:
        """Margins are nats per token, everything else is a share."""
        return "nats" if self.kind == "margin" else "points"

    @property
    def measure(self) -> str:
        """In words."""
        return _NAMES[self.kind]

    @property
    def shown(self) -> bool:
        """Whether its interval leaves out 0."""
        return self.change.shows_change

    @property
    def text(self) -> str:
        """The difference with its interval, in points or nats."""
        factor, digits = (1, 3) if self.unit == "nats" else (100, 1)
        figures = (self.change.value, self.change.low, self.change.high)
        value, low, high = (signed(figure * factor, digits) for figure in figures)
        return f"{value} [{low}, {high}]"

    @property
    def ends(self) -> tuple[str, str]:
        """Before and after."""
        if self.unit == "nats":
            return signed(self.before.value, 2), signed(self.after.value, 2)
        return percentage(self.before.value), percentage(self.after.value)


def marks_of(effect: Effect, unit: Unit = "points") -> list[Mark]:
    """Everything that the probe measures in a unit."""
    found = [Mark("passed", effect.before, effect.after, effect.change)]
    if effect.probability_before and effect.probability_after and effect.probability_change:
        figures = effect.probability_before, effect.probability_after, effect.probability_change
        found.append(Mark("probability", *figures))
    found += [Mark(name, *figures) for name, figures in effect.others.items()]
    return [mark for mark in found if mark.unit == unit]


def forest_plot(effects: Sequence[Effect], labels: tuple[str, str], unit: Unit = "points") -> Markup | None:
    """The plot, its legend, and the same figures as a table; None when no probe measures anything in the unit.

    Positions are percentages of the lane, so that the same drawing fits a phone and a desk.
    """
    marks = {effect.probe: found for effect in effects if (found := marks_of(effect, unit))}
    if not marks:
        return None
    factor = 1 if unit == "nats" else 100
    every = [mark for each in marks.values() for mark in each]
    ends = [end * factor for mark in every for end in (mark.change.low, mark.change.high)]
    ticks = nice_ticks(min(0.0, *ends), max(0.0, *ends))
    rows: list[Markup] = []
    group = ""
    for probe, found in marks.items():
        owner, _, short = probe.partition(".")
        if owner != group:
            rows.append(element("li", owner, class_="forest-group"))
            group = owner
        rows.append(_row(probe, short or owner, found, [tick / factor for tick in ticks]))
    kinds = list(dict.fromkeys(mark.kind for mark in every))
    keys = [element("span", _sample(kind), _NAMES[kind], class_="key") for kind in kinds]
    keys.append(element("span", _sample(f"{kinds[0]} unshown"), "no difference shown", class_="key"))
    figures = table(
        ["probe", "measure", *labels, f"change in {unit} [95% interval]", "n", "difference"],
        [
            (probe, mark.measure, *mark.ends, mark.text, str(mark.change.n), "shown" if mark.shown else "not shown")
            for probe, found in marks.items()
            for mark in found
        ],
        caption=f"Effects, probe by probe, in {unit}",
    )
    return element(
        "figure",
        element("figcaption", keys),
        element("ol", rows, class_="forest", aria_label=f"Change from {labels[0]} to {labels[1]} in {unit}"),
        _axis(ticks),
        details("The same figures as a table", figures),
    )


def _row(probe: str, name: str, marks: Sequence[Mark], ticks: Sequence[float]) -> Markup:
    words = "; ".join(
        f"{mark.measure} {mark.text} {mark.unit}{'' if mark.shown else ', no difference shown'}" for mark in marks
    )
    height = _LANE * len(marks) + 2 * _PAD
    lines = [_line(_place(tick, ticks), height, "zero" if abs(tick) < 1e-9 else "grid") for tick in ticks]
    picture = element(
        "svg",
        element("title", probe),
        element("desc", words),
        lines,
        [_drawn(mark, ticks, _PAD + _LANE * (lane + 0.5)) for lane, mark in enumerate(marks)],
        role="img",
        width="100%",
        height=height,
        aria_label=f"{probe}: {words}",
    )
    tips = [f"{mark.measure}: {' → '.join(mark.ends)}, n {mark.change.n}" for mark in marks]
    return element(
        "li",
        element("span", name, class_="forest-name"),
        element("span", picture, class_="forest-lane"),
        element(
            "span",
            [element("span", mark.text, class_="figure" if mark.shown else "figure unshown") for mark in marks],
            class_="forest-figures",
            aria_hidden="true",
        ),
        class_="forest-row",
        tabindex="0",
        data_tip="\n".join([probe, *tips]),
    )


def _drawn(mark: Mark, ticks: Sequence[float], y: float) -> Markup:
    low, middle, high = (_place(end, ticks) for end in (mark.change.low, mark.change.value, mark.change.high))
    return element(
        "g",
        element("line", x1=_percent(low), x2=_percent(high), y1=y, y2=y, class_="whisker"),
        [element("line", x1=_percent(x), x2=_percent(x), y1=y - 3, y2=y + 3, class_="whisker") for x in (low, high)],
        _dot(mark.kind, _percent(middle), y),
        class_=f"mark {mark.kind}{'' if mark.shown else ' unshown'}",
    )


def _dot(kind: str, x: str | float, y: float) -> Markup:
    if kind not in _SQUARE:
        return element("circle", cx=x, cy=y, r=_SIZE, class_="dot")
    side = 2 * _SIZE - 1
    # A percentage and a length do not add up in one attribute, so half of the side goes into a shift.
    shift = f"translate({-side / 2:g} {-side / 2:g})"
    return element("rect", x=x, y=y, width=side, height=side, transform=shift, class_="dot")


def _line(place: float, bottom: float, kind: str) -> Markup:
    return element("line", x1=_percent(place), x2=_percent(place), y1=0, y2=bottom, class_=kind)


def _axis(ticks: Sequence[float]) -> Markup:
    texts = []
    for tick in ticks:
        shown = f"{tick:+g}".replace("-", "−") if abs(tick) > 1e-9 else "0"
        texts.append(element("text", shown, x=_percent(_place(tick, ticks)), y=14, text_anchor="middle"))
    axis = element("svg", texts, width="100%", height=_AXIS, aria_hidden="true")
    return element("div", element("span", axis, class_="forest-lane"), class_="forest-axis", aria_hidden="true")


def _sample(kind: str) -> Markup:
    whisker = element("line", x1=1, x2=25, y1=7, y2=7, class_="whisker")
    drawn = element("g", whisker, _dot(kind.partition(" ")[0], 13, 7), class_=f"mark {kind}")
    return element("svg", drawn, width=26, height=14, aria_hidden="true")


def _percent(place: float) -> str:
    return f"{place:.2f}%"


def _place(value: float, ticks: Sequence[float]) -> float:
    """Percent of the lane; a little room at both ends, for dots and the axis' numbers."""
    return 4 + 92 * (value - ticks[0]) / (ticks[-1] - ticks[0])
