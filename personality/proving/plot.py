"""The picture of a steering vector: its layers, and its dose-response curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from personality.making.sweep_plot import check_plot
from personality.manifests.atomic import writing
from personality.manifests.errors import DataError
from personality.manifests.steering_record import Calibration, LayerFigures, SteeringRecord
from personality.proving.dose_response import GENERAL

_WIDTH, _HEIGHT = 5.2, 3.6  # of each panel, inches
_BLUE, _GREEN, _ORANGE, _RED = "tab:blue", "tab:green", "tab:orange", "crimson"
_TICKS = ([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])


def plot_steering(record: SteeringRecord, label: str, path: Path) -> None:
    """Draw a vector's figures layer by layer, and what it does at one scale after another.

    Args:
        record: of the vector's manifest; what it does not hold is not drawn.
        label: such as `candid@1`.
        path: file to write, .png or .svg.

    Raises:
        PersonaError: see `sweep_plot.check_plot`; or the file cannot be written.
        DataError: the record holds neither figures nor a curve.
    """
    check_plot(path)
    curve = record.calibration is not None and bool(record.calibration.curve)
    if not record.figures and not curve:
        raise DataError(
            f"`{label}` has no figures to draw: it was neither extracted nor calibrated here", "extract it again"
        )
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Picture

    # Text stays text in an SVG, and equal records give equal files.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "persona", "font.size": 10}):
        count = bool(record.figures) + curve
        picture = Picture(figsize=(_WIDTH * count, _HEIGHT + 0.5), layout="constrained")
        axes: list[Any] = list(picture.subplots(1, count, squeeze=False).flat)
        if record.figures:
            _draw_layers(axes[0], record.figures, record.layers)
        if curve:
            assert record.calibration is not None
            _draw_curve(axes[-1], record.calibration, record.proof.scale if record.proof is not None else None)
        words = "" if record.proof is None else (": proven" if record.proof.proven else ": not proven")
        picture.suptitle(
            f"{label}{words}; {record.mode} at {_PLACES[record.positions]}", x=0.02, ha="left", fontsize=12
        )
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
        with writing(path.absolute()) as file:
            picture.savefig(file, format=path.suffix.lower()[1:], dpi=150, metadata=metadata)


_PLACES = {"all": "every position", "response": "response positions", "decision": "the decision position"}


def _draw_layers(axis: Any, figures: Sequence[LayerFigures], acting: Sequence[int]) -> None:
    """Separation with its interval, consistency and effect, and where the vector acts."""
    rows = sorted(figures, key=lambda row: row.layer)
    width = 0.5
    for layer in acting:
        axis.axvspan(layer - width, layer + width, color="0.92", zorder=0, linewidth=0)
    separated = [(row.layer, row.separation) for row in rows if row.separation is not None]
    if separated:
        places = [layer for layer, _ in separated]
        axis.plot(places, [figure.value for _, figure in separated], "o-", color=_BLUE, label="separation, held out")
        low, high = [figure.low for _, figure in separated], [figure.high for _, figure in separated]
        axis.fill_between(places, low, high, color=_BLUE, alpha=0.15, linewidth=0)
        axis.axhline(0.9, color=_RED, linewidth=1, linestyle="--", alpha=0.6)
    axis.plot(
        [row.layer for row in rows], [row.consistency for row in rows], "s-", color=_GREEN, label="consistency (cosine)"
    )
    effects = [(row.layer, row.effect) for row in rows if row.effect is not None]
    if effects:
        places = [layer for layer, _ in effects]
        axis.plot(places, [effect for _, effect in effects], "^-", color=_ORANGE, label="effect, in this layer alone")
    lowest = min([row.consistency for row in rows] + [effect for _, effect in effects])
    axis.set_ylim(min(-0.05, lowest - 0.05), 1.06)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
    step = max(1, len(rows) // 12)
    axis.set_xticks([row.layer for row in rows][::step])
    axis.set_xlim(rows[0].layer - 0.6, rows[-1].layer + 0.6)
    axis.set_xlabel("layer (shaded: where it acts)")
    axis.set_ylabel("share or cosine")
    _finish(axis, "layers")


def _draw_curve(axis: Any, calibration: Calibration, proven_at: float | None) -> None:
    """Shares of the probes and repetition on the left axis, divergence on the right one."""
    points = sorted(calibration.curve, key=lambda point: point.scale)
    scales = [point.scale for point in points]
    names = sorted({name for point in points for name in point.probes})
    own = [name for name in names if not name.startswith(GENERAL)]
    others = [name for name in names if name.startswith(GENERAL)]
    for number, name in enumerate(own):
        axis.plot(scales, [point.probes[name] for point in points], "o-", color=f"C{number}", label=name, clip_on=False)
    if others:
        means = [sum(point.probes[name] for name in others) / len(others) for point in points]
        axis.plot(scales, means, "s--", color="0.4", label="general probes, mean", clip_on=False)
    axis.plot(scales, [point.repetition for point in points], "v:", color=_RED, label="repetition", clip_on=False)
    if calibration.coherent_to is None or calibration.coherent_to < scales[-1]:
        edge = scales[0] if calibration.coherent_to is None else calibration.coherent_to
        axis.axvspan(edge, scales[-1], color=_RED, alpha=0.07, linewidth=0, label="text falls apart")
    if proven_at is not None and scales[0] <= proven_at <= scales[-1]:
        axis.axvline(proven_at, color="0.3", linewidth=1, linestyle=":", label=f"tested at {proven_at:g}")
    axis.set_ylim(-0.04, 1.06)
    axis.set_yticks(*_TICKS)
    axis.set_xlabel("scale")
    second = axis.twinx()
    known = [(point.scale, point.kl_95) for point in points if point.kl_95 is not None]
    second.plot([x for x, _ in known], [y for _, y in known], "-", color="0.75", linewidth=2, zorder=0)
    second.set_ylabel("KL to the base, 95th percentile, nats", color="0.5")
    second.set_ylim(bottom=0)
    second.spines[["top"]].set_visible(False)
    axis.set_zorder(second.get_zorder() + 1)
    axis.patch.set_visible(False)
    _finish(axis, "dose and response")


def _finish(axis: Any, title: str) -> None:
    axis.set_title(title, loc="left", fontweight="bold", fontsize=10)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, loc="best", framealpha=0.8, edgecolor="none")
