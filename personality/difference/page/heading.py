"""The head of a difference's page: which versions, and in a sentence what changed."""

from __future__ import annotations

from personality.difference.difference import Difference, Side
from personality.difference.page.figures import number
from personality.difference.page.forest_plot import Mark, marks_of
from personality.difference.page.markup import Markup, element, join
from personality.manifests.canonical import short

_NAMED = 3


def heading(found: Difference) -> Markup:
    """Title, summary and the two versions."""
    arrow = element("span", " → ", class_="arrow")
    return join(
        element("p", "What changed", class_="kicker"),
        element("h1", found.before.label, arrow, found.after.label),
        element("p", _summary(found), class_="lede"),
        _movers(found),
        element("div", _side(found.before, "side-a"), _side(found.after, "side-b"), class_="sides"),
    )


def _side(side: Side, kind: str) -> Markup:
    version = side.version
    time = element("span", f"{version.time[:16].replace('T', ' ')} UTC", class_="whole")
    return element(
        "div",
        element("p", element("b", side.label), " ", element("code", short(version.id)), class_="side-name"),
        element("p", version.message, class_="message"),
        element("p", f"{version.personality} · ", time, class_="muted"),
        class_=kind,
    )


def _summary(found: Difference) -> str:
    if not found.recipe:
        return "The two versions have the same recipe, so nothing changed."
    if found.measured is None:
        moved = f"The weights moved by {number(found.weights.norm_change)} in norm." if found.weights.layers else ""
        return f"{moved} What the change does was not measured.".strip()
    effects = found.measured.effects
    count = sum(effect.shown for effect in effects)
    if not count:
        return f"No difference was shown in any of {len(effects)} probes."
    rest = f" No difference was shown in the other {len(effects) - count}." if count < len(effects) else ""
    return f"{count} of {len(effects)} probes show a difference.{rest}"


def _movers(found: Difference) -> Markup | None:
    """The probes that moved most, each by the figure that moved most."""
    if found.measured is None:
        return None
    effects = found.measured.effects
    largest = [(effect.probe, mark) for effect in effects if (mark := _largest(marks_of(effect)))]
    largest.sort(key=lambda item: -abs(item[1].change.value))
    items = [
        element(
            "li",
            element("b", name),
            element("span", mark.measure, class_="muted"),
            element("span", f"{mark.text} points", class_="figure"),
        )
        for name, mark in largest[:_NAMED]
    ]
    return element("ul", items, class_="movers", aria_label="What moved most") if items else None


def _largest(marks: list[Mark]) -> Mark | None:
    """The mark that moved most, of those that show a difference."""
    return max((mark for mark in marks if mark.shown), key=lambda mark: abs(mark.change.value), default=None)
