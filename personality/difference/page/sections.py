"""The sections of a difference's page, from recipe to how to read it."""

from __future__ import annotations

from personality.difference.difference import Difference, MeasuredChange
from personality.difference.page.dose_plot import dose_plot
from personality.difference.page.figures import number, percentage
from personality.difference.page.forest_plot import forest_plot
from personality.difference.page.markup import Markup, details, element, join, table
from personality.difference.page.owner_bars import owner_bars
from personality.difference.page.transcript_cards import transcript_cards
from personality.difference.page.weight_heat_map import layer_table, weight_heat_map
from personality.manifests.canonical import short
from personality.versions.recipe import RecipeChange

Section = tuple[str, str, Markup]
"""Id, title and content."""


def sections(found: Difference) -> list[Section]:
    """Those that the difference has something for, in order."""
    labels = found.before.label, found.after.label
    every = [
        _recipe(found),
        _effects(found, labels),
        _replies(found.measured, labels),
        _weights(found, labels),
        _steering(found, labels),
        _doses(found, labels),
        _reading(found),
    ]
    return [item for item in every if item is not None]


def _recipe(found: Difference) -> Section:
    changes = [element("li", _change(change), class_=_kind(change)) for change in found.recipe]
    lines = changes or [element("li", "the same recipe")]
    old, new = found.before.version.personality, found.after.version.personality
    methods = [str(item.composition) for item in (old, new)]
    said = methods[0] if methods[0] == methods[1] else " → ".join(methods)
    return (
        "recipe",
        "Recipe",
        join(
            element("ul", lines, class_="recipe"),
            element("p", f"Composition: {said}. Base: {old.base}.", class_="muted"),
        ),
    )


def _kind(change: RecipeChange) -> str:
    return "added" if change.before is None else "removed" if change.after is None else "altered"


def _change(change: RecipeChange) -> Markup:
    if change.before is None or change.after is None:
        return join(change.after or change.before)
    return join(change.before, element("span", " → ", class_="arrow"), change.after)


def _effects(found: Difference, labels: tuple[str, str]) -> Section:
    if found.measured is None:
        how = element("code", f"persona diff {labels[0]} {labels[1]} --effect --html FILE")
        content = element("p", "What the change does was not measured: ", how, " measures it.", class_="muted")
    else:
        content = join(
            element(
                "p",
                "Change in points, with its 95% interval, paired row by row. Pale: the interval does not leave out 0, "
                "so no difference was shown.",
                class_="muted",
            ),
            forest_plot(found.measured.effects, labels),
        )
        if margins := forest_plot(found.measured.effects, labels, "nats"):
            words = "Log-probability per token of the preferred over the rejected answer: its change in nats."
            content = join(content, element("h3", "Margin"), element("p", words, class_="muted"), margins)
    return "effects", "What it does", content


def _replies(measured: MeasuredChange | None, labels: tuple[str, str]) -> Section | None:
    if measured is None:
        return None
    if not measured.transcripts:
        return "replies", "Replies", element("p", "No reply was found that changed.", class_="muted")
    words = "The replies that changed most, greedy. Words that only one of them has are marked."
    return (
        "replies",
        "Replies",
        join(element("p", words, class_="muted"), transcript_cards(measured.transcripts, labels)),
    )


def _weights(found: Difference, labels: tuple[str, str]) -> Section | None:
    weights = found.weights
    if not weights.layers:
        return None
    owners = None
    if weights.owners:
        joint = ""
        if any(not owner.exact for owner in weights.owners):
            rest = 1 - sum(owner.share for owner in weights.owners)
            joint = f" Under ties three and more changes act jointly; {percentage(rest)} is owned by none alone."
        owners = join(
            element("h3", "Who owns the change"),
            element("p", f"Share of ‖change‖² that each change of the recipe accounts for.{joint}", class_="muted"),
            owner_bars(weights.owners, found.recipe),
        )
    return (
        "weights",
        "Weights",
        join(
            owners,
            element("h3", "Where"),
            element(
                "p",
                f"Layer by module; the darker, the more. Norm of the whole change: {number(weights.norm_change)}.",
                class_="muted when-light",
            ),
            element(
                "p",
                f"Layer by module; the brighter, the more. Norm of the whole change: {number(weights.norm_change)}.",
                class_="muted when-dark",
            ),
            weight_heat_map(weights, labels),
            details("Layer by layer", layer_table(weights.layers, labels)),
        ),
    )


def _steering(found: Difference, labels: tuple[str, str]) -> Section | None:
    if not found.steering:
        return None
    rows = [
        (
            str(item.layer),
            item.place,
            number(item.norm_before),
            number(item.norm_after),
            number(item.norm_change),
            number(item.cosine),
        )
        for item in found.steering
    ]
    columns = ["after layer", "at", f"norm {labels[0]}", f"norm {labels[1]}", "norm of change", "cosine"]
    return "steering", "Steering", table(columns, rows, caption="What is added to activations")


def _doses(found: Difference, labels: tuple[str, str]) -> Section | None:
    if not found.doses:
        return None
    plots = [dose_plot(curve, labels) for curve in found.doses]
    return "doses", "Dose and response", element("div", plots, class_="doses")


def _reading(found: Difference) -> Section:
    notes = [
        "Norms are Euclidean norms of what the recipe adds to the base's weights, before rounding to the base's dtype; "
        "“after rounding” counts the elements that differ in a checkpoint.",
        "A share of ‖change‖² is the projection of a part on the whole change, divided by the change's squared norm. "
        "It is negative where a part points against the whole.",
    ]
    facts: list[tuple[str, str]] = []
    if found.measured is not None:
        first = found.measured.evaluations[0]
        counts = sorted({effect.change.n for effect in found.measured.effects})
        rows = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        notes += [
            "Shares of passing replies have Wilson's interval, their differences Newcombe's for paired shares; P, the "
            "probability of opening the reply the wanted way, and its difference have a bootstrap interval over rows. "
            "All are 95% intervals, and no correction is made for looking at several probes.",
            "“No difference shown” means that the interval does not leave out 0. It does not mean that there is none.",
        ]
        environment = ", ".join(f"{name} {value}" for name, value in sorted(first.environment.items()))
        facts = [
            ("rows of each probe (n)", rows),
            ("seed", str(first.seed)),
            ("suite", short(first.suite)),
            ("evaluations", ", ".join(short(evaluation.id) for evaluation in found.measured.evaluations)),
            ("measured with", environment),
        ]
    facts.append(("base", str(found.before.version.personality.base)))
    listed = [join(element("dt", name), element("dd", value)) for name, value in facts]
    return (
        "reading",
        "How to read this",
        join([element("p", note) for note in notes], element("dl", listed)),
    )
