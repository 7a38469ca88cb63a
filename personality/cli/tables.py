"""Rows of the tables that several verbs show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from personality.cli.output import percent

if TYPE_CHECKING:
    from personality.composition.steering_diff import SteeringDiff
    from personality.composition.weight_diff import LayerDiff
    from personality.evaluation.evaluate import Effect
    from personality.manifests.evaluation import Figure

LEGEND = "≈ no difference shown · P probability of opening the reply the wanted way, where a probe declares openings"
P_MEANS = "P: probability of opening the reply the wanted way, where a probe declares its openings"


def layer_rows(layers: list[LayerDiff]) -> list[tuple[str, ...]]:
    """Table rows, one a layer."""
    return [
        (
            "other" if item.layer is None else str(item.layer),
            f"{item.norm_before:.3f}",
            f"{item.norm_after:.3f}",
            f"{item.norm_change:.3f}",
            "–" if item.cosine is None else f"{item.cosine:.3f}",
            "–" if item.sign_flips is None else percent(item.sign_flips),
        )
        for item in layers
    ]


def steering_rows(steering: list[SteeringDiff]) -> list[tuple[str, ...]]:
    """Table rows, one a layer, positions and mode."""
    return [
        (
            str(item.layer),
            item.place,
            f"{item.norm_before:.3f}",
            f"{item.norm_after:.3f}",
            f"{item.norm_change:.3f}",
            "–" if item.cosine is None else f"{item.cosine:.3f}",
        )
        for item in steering
    ]


def effect_rows(effects: list[Effect]) -> list[tuple[str, ...]]:
    """Table rows, one a probe."""
    return [
        (
            item.probe,
            percent(item.before.value),
            percent(item.after.value),
            change_text(item.change),
            percent(item.probability_before.value) if item.probability_before else "",
            percent(item.probability_after.value) if item.probability_after else "",
            change_text(item.probability_change) if item.probability_change else "",
        )
        for item in effects
    ]


def change_text(change: Figure) -> str:
    """A difference of shares in points with its interval; `≈` where none was shown."""
    sign = "" if change.shows_change else "≈ "
    return f"{sign}{change.value * 100:+.1f} [{change.low * 100:+.1f}, {change.high * 100:+.1f}]"


def measure_rows(measures: dict[str, dict[str, float]], indent: str) -> list[tuple[str, ...]]:
    """Table rows of a manifest's measures: shares passed and opening probabilities, before and after."""
    rows = []
    for probe, figures in sorted(measures.items()):
        cells = [
            percent(figures[name]) if name in figures else ""
            for name in ("passed before", "passed after", "probability before", "probability after")
        ]
        rows.append((f"{indent}{probe}", *cells))
    return rows


def interval(figure: Figure) -> str:
    """A 95% interval of a share."""
    return f"{percent(figure.low)}–{percent(figure.high)}"
