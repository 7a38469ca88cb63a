"""Rows that `persona eval` shows beside those of the probes: further figures, judgment, health, gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from personality.cli.output import Output, percent
from personality.cli.tables import change_text, interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from personality.evaluation.evaluate import Effect
    from personality.evaluation.gate import Check
    from personality.evaluation.judgment import Judgment
    from personality.manifests.evaluation import Evaluation, Figure, HealthResult, ProbeResult

FAILED = 3
"""Exit code when a gate fails."""
COLUMNS = (">value", ">95% interval", ">n", ">change (95% interval)")
_HEALTH = {
    "perplexity": "perplexity of general text",
    "kl": "KL from the base, nats per token",
    "kl_95": "KL from the base, 95th percentile",
    "repetition": "repetition (4-grams)",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "ended": "replies that end",
}
_OTHERS = ("margin", "sampled", "grade", "bypass")


def probe_rows(evaluation: Evaluation, effects: Sequence[Effect]) -> list[tuple[str, ...]]:
    """Table rows, one a probe: shares, their intervals and changes."""
    changes = {effect.probe: effect for effect in effects}
    rows: list[tuple[str, ...]] = []
    for item in evaluation.results:
        effect = changes.get(item.probe)
        change = change_text(effect.change) if effect else ""
        likely = change_text(effect.probability_change) if effect and effect.probability_change else ""
        rows.append(
            (
                item.probe,
                f"{sum(item.outcomes)}/{item.passed.n} = {percent(item.passed.value)}",
                interval(item.passed),
                change,
                percent(item.probability.value) if item.probability else "",
                interval(item.probability) if item.probability else "",
                likely,
            )
        )
    return rows


def other_rows(evaluation: Evaluation, effects: Sequence[Effect]) -> list[tuple[str, ...]]:
    """Table rows of the margins, sampled replies, grades and bypasses that the probes have."""
    changes = {effect.probe: effect.others for effect in effects}
    rows: list[tuple[str, ...]] = []
    for item in evaluation.results:
        for name in _OTHERS:
            figure: Figure | None = getattr(item, name)
            if figure is not None:
                change = changes.get(item.probe, {}).get(name)
                in_nats = name == "margin"
                rows.append((f"{item.probe}  {_title(name, item)}", *_cells(figure, change and change[2], in_nats)))
    return rows


def _title(name: str, item: ProbeResult) -> str:
    if name == "sampled" and item.sampling is not None:
        how = item.sampling
        return f"sampled ({how.samples} a row, temperature {how.temperature:g}, seed {how.seed})"
    return "margin, nats per token" if name == "margin" else name


def judgment_rows(judgments: Sequence[Judgment], changes: Mapping[str, Mapping[str, Figure]]) -> list[tuple[str, ...]]:
    """Table rows, four figures a behavior, by replies and by probability."""
    rows: list[tuple[str, ...]] = []
    for item in judgments:
        for name, figure in item.figures().items():
            words = name.removesuffix("_p").replace("_", " ") + (", by P" if name.endswith("_p") else "")
            signed = name.startswith("discrimination")
            rows.append(
                (f"{item.behavior}  {words}", *_cells(figure, changes.get(item.behavior, {}).get(name), signed))
            )
    return rows


def health_rows(found: HealthResult, changes: Mapping[str, Figure]) -> list[tuple[str, ...]]:
    """Table rows, one a figure. The change of perplexity is that of the nats per token beneath it."""
    import math

    rows: list[tuple[str, ...]] = []
    for name, title in _HEALTH.items():
        if name == "perplexity":
            nll = found.nll
            figure = nll.model_copy(update={part: math.exp(getattr(nll, part)) for part in ("value", "low", "high")})
            change = changes.get("nll")
            cells = (f"{figure.value:.2f}", f"{figure.low:.2f}–{figure.high:.2f}", str(figure.n))
            rows.append((title, *cells, f"{_nats(change)} nats" if change else ""))
        else:
            rows.append((title, *_cells(getattr(found, name), changes.get(name), name in ("kl", "kl_95"))))
    return rows


def harness_rows(evaluation: Evaluation | None, changes: Mapping[tuple[str, str], Figure]) -> list[tuple[str, ...]]:
    """Table rows, one a metric of a task."""
    found = evaluation.harness if evaluation else ()
    return [
        (
            f"{item.task}  {item.metric}",
            *_cells(item.figure, changes.get((item.task, item.metric)), not set(item.values) <= {0.0, 1.0}),
        )
        for item in found
    ]


def _cells(figure: Figure, change: Figure | None, plain: bool) -> tuple[str, str, str, str]:
    """Value, interval, n and change of a figure: as a share, or as the plain number that it is."""
    if plain:
        bounds = f"{figure.low:.4f} to {figure.high:.4f}"
        return f"{figure.value:.4f}", bounds, str(figure.n), _nats(change) if change else ""
    return percent(figure.value), interval(figure), str(figure.n), change_text(change) if change else ""


def _nats(change: Figure) -> str:
    """A difference of plain numbers with its interval; `≈` where none was shown in the digits that are."""
    value, low, high = (round(part, 4) + 0.0 for part in (change.value, change.low, change.high))
    return f"{'' if low > 0 or high < 0 else '≈ '}{value:+.4f} [{low:+.4f}, {high:+.4f}]"


def effects_json(effects: Sequence[Effect]) -> list[dict[str, Any]]:
    """Effects as JSON data: of each figure before, after and change."""
    found = []
    for item in effects:
        figures = {"passed": (item.before, item.after, item.change), **item.others}
        if item.probability_before and item.probability_after and item.probability_change:
            figures["probability"] = (item.probability_before, item.probability_after, item.probability_change)
        named = {
            name: dict(zip(("before", "after", "change"), (figure.as_json() for figure in triple), strict=True))
            for name, triple in figures.items()
        }
        found.append({"probe": item.probe, "shown": item.shown, **named})
    return found


def show_gate(out: Output, checks: Sequence[Check]) -> None:
    """Every bound of a gate, kept or not."""
    for check in checks:
        out.line(f"{'kept  ' if check.kept else 'FAILED'}  {check}", None if check.kept else "bold red")
