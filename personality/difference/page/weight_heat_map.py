"""Layer × module: where the weights changed, and how much."""

from __future__ import annotations

import math
from collections.abc import Sequence

from personality.composition.weight_diff import LayerDiff, WeightDiff, module_order
from personality.difference.page.figures import number, percentage
from personality.difference.page.markup import Markup, details, element, table

_TALLEST, _LOWEST, _WHOLE = 34, 12, 720  # pixels of a row, and about the most of all rows

_FEW = 9  # modules up to which their names have room beside each other on a desk

MEASURES = {
    "norm": "norm of the change",
    "rms": "per weight (root mean square)",
    "flips": "share of sign flips",
}


def weight_heat_map(weights: WeightDiff, labels: tuple[str, str]) -> Markup:
    """A grid to walk with the arrow keys, whose cells tell their figures, and the same as a table."""
    modules = sorted({item.module for item in weights.modules}, key=module_order)
    cells = {(item.layer, item.module): item for item in weights.modules}
    tops = {name: max((_value(item, name) for item in weights.modules), default=0.0) for name in MEASURES}
    height = max(_LOWEST, min(_TALLEST, _WHOLE // len(weights.layers)))
    rows, first = [], True
    for layer in weights.layers:
        drawn = []
        for module in modules:
            item = cells.get((layer.layer, module))
            drawn.append(_cell(item, tops, labels, first=first) if item else element("td", class_="absent"))
            first = first and item is None
        name = "other" if layer.layer is None else str(layer.layer)
        rows.append(element("tr", element("th", name, scope="row"), drawn))
    grid = element(
        "table",
        element(
            "thead",
            element(
                "tr",
                element("td", element("span", "layer", class_="corner")),
                [element("th", element("span", module), scope="col") for module in modules],
            ),
        ),
        element("tbody", rows),
        role="grid",
        aria_label="Change of the weights by layer and module; arrow keys walk",
        class_="heat few" if len(modules) <= _FEW else "heat",
        data_measure="norm",
        style=f"--row:{height}px",
    )
    buttons = [
        element("button", text, type="button", data_measure=name, aria_pressed="true" if name == "norm" else "false")
        for name, text in MEASURES.items()
    ]
    scales = [
        element(
            "p",
            element("span", "0"),
            element("span", class_="ramp"),
            element("span", _shown(tops[name], name)),
            class_="heat-scale",
            data_measure=name,
            hidden=name != "norm",
        )
        for name in MEASURES
    ]
    figures = table(
        ["layer", "module", *_columns(labels)],
        [_figures(item) for item in weights.modules],
        caption="Weights by layer and module",
    )
    return element(
        "figure",
        element("div", buttons, class_="measures", role="group", aria_label="What the colors show"),
        element("div", grid, class_="scroll"),
        element("figcaption", scales),
        details("The same figures as a table", figures),
    )


def layer_table(layers: Sequence[LayerDiff], labels: tuple[str, str]) -> Markup:
    """Layer by layer."""
    return table(
        ["layer", *_columns(labels)],
        [(name, *rest) for name, _, *rest in map(_figures, layers)],
        caption="Weights by layer",
    )


def _columns(labels: tuple[str, str]) -> list[str]:
    norms = [f"norm {label}" for label in labels]
    return [*norms, "norm of change", "cosine", "sign flips", "elements changed", "after rounding"]


def _figures(item: LayerDiff) -> tuple[str, ...]:
    return (
        "other" if item.layer is None else str(item.layer),
        item.module,
        number(item.norm_before),
        number(item.norm_after),
        number(item.norm_change),
        number(item.cosine),
        "–" if item.sign_flips is None else percentage(item.sign_flips),
        percentage(item.changed),
        percentage(item.changed_rounded),
    )


def _cell(item: LayerDiff, tops: dict[str, float], labels: tuple[str, str], *, first: bool) -> Markup:
    where, module, before, after, change, cosine, flips, changed, rounded = _figures(item)
    tip = "\n".join(
        [
            f"{'layer ' if item.layer is not None else ''}{where} · {module}",
            f"norm of change {change} ({_shown(_value(item, 'rms'), 'rms')} per weight)",
            f"norm {labels[0]} {before}, {labels[1]} {after}, cosine {cosine}",
            f"sign flips {flips}, elements changed {changed}, after rounding {rounded}",
        ]
    )
    depth = ";".join(f"--{name}:{_value(item, name) / top if top else 0:.3f}" for name, top in tops.items())
    # One stop for the Tab key; from there the arrow keys walk.
    return element("td", style=depth, tabindex="0" if first else "-1", data_tip=tip, aria_label=tip)


def _value(item: LayerDiff, measure: str) -> float:
    if measure == "norm":
        return item.norm_change
    if measure == "rms":
        return item.norm_change / math.sqrt(item.elements) if item.elements else 0.0
    return item.sign_flips or 0.0


def _shown(value: float, measure: str) -> str:
    if measure == "flips":
        return percentage(value)
    return f"{value:.3f}" if measure == "norm" else f"{value:.2g}"
