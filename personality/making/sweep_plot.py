"""The picture of a sweep: the knee of the effect, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personality.making.sweep import Judged, Sweep, measured_by
from personality.making.verdict import FALL, HOLDS, NLL_RISE, POOLED_FALL
from personality.manifests.atomic import writing
from personality.manifests.errors import PersonaError, UsageError
from personality.manifests.evaluation import Figure

_FORMATS = (".png", ".svg")
_COLUMNS = 2
_WIDTH, _HEIGHT = 4.6, 3.4  # of each panel, inches
_RED = "crimson"
_MARKERS = {"right": "o", "too small": "v", "too large": "^", "forgetting": "X", "unknown": "s"}


def check_plot(path: Path, option: str = "--plot") -> None:
    """Make sure that a plot can be drawn and written, before hours of training.

    Args:
        path: to be written.
        option: which asked for it, for the hint.

    Raises:
        PersonaError: matplotlib is not installed, or there is no such folder.
        UsageError: a format that is not drawn.
    """
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f"a plot is written as .png or .svg, not as `{path.name}`", f"`{option} {path.stem}.png`")
    if not path.absolute().parent.is_dir():
        raise PersonaError(f"there is no folder {path.absolute().parent} for the plot", "make it, or name another")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise PersonaError(
            "matplotlib, which draws the plot, is not installed",
            f'`pip install "personality[plots]"`, or leave out `{option}`',
        ) from None


def plot_sweep(sweep: Sweep, path: Path) -> None:
    """Draw effect, what must hold and forgetting against the number of examples, a line a learning rate.

    Bands are 95% intervals over the rows of the probes; they do not tell how another seed would have come out.

    Args:
        sweep: finished.
        path: file to write, .png or .svg.

    Raises:
        PersonaError: see `check_plot`; or the file cannot be written.
    """
    check_plot(path)
    from matplotlib import colormaps, rc_context
    from matplotlib.figure import Figure as Picture

    # Text stays text in an SVG, and equal sweeps give equal files.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "persona", "font.size": 10}):
        panels = _panels(sweep)
        rows = math.ceil(len(panels) / _COLUMNS)
        picture = Picture(figsize=(_WIDTH * _COLUMNS + 1.8, _HEIGHT * rows + 0.5), layout="constrained")
        axes: list[Any] = list(picture.subplots(rows, _COLUMNS, squeeze=False).flat)
        shades = [
            colormaps["viridis"](0.88 * place / max(1, len(sweep.rates) - 1)) for place in range(len(sweep.rates))
        ]
        for axis, panel in zip(axes, panels, strict=False):
            _draw(axis, sweep, shades, panel)
        for axis in axes[len(panels) :]:
            axis.remove()
        picture.suptitle(f"{sweep.behavior} by {sweep.method}: {_knee_text(sweep)}", x=0.02, ha="left", fontsize=12)
        _legend(picture, sweep, shades)
        with writing(path.absolute()) as file:
            picture.savefig(file, format=path.suffix.lower()[1:], dpi=150, metadata=_metadata(path))


@dataclass(frozen=True)
class _Panel:
    """One picture in the picture.

    Attributes:
        title, label: above it, and along its axis.
        before: the base's figure.
        value: where to find a cell's.
        limit: beyond which the verdict changes; None for none.
        is_share: whether the figures are shares.
    """

    title: str
    label: str
    before: Figure | None
    value: Callable[[Judged], Figure | None]
    limit: float | None
    is_share: bool = True


def _panels(sweep: Sweep) -> list[_Panel]:
    """Only those with something in them."""
    known = [item.effects for item in sweep.cells if item.effects is not None]
    effect = measured_by([change for effects in known for change in effects.wanted])
    held = measured_by([change for effects in known for change in effects.held])
    zero = Figure(value=0.0, low=0.0, high=0.0, n=1)
    least = sweep.held.value - FALL if sweep.held is not None else None
    able = sweep.ability.value - POOLED_FALL if sweep.ability is not None else None
    panels = [
        _Panel("the behavior", effect, sweep.wanted, lambda item: item.wanted, HOLDS),
        _Panel("its other side, which must hold", held, sweep.held, lambda item: item.held, least),
        _Panel("forgetting: abilities", "general probes that pass", sweep.ability, lambda item: item.ability, able),
        _Panel("forgetting: held-out general text", "rise, nats per token", zero, lambda i: i.nll, NLL_RISE, False),
    ]
    return [panel for panel in panels if any(panel.value(item) is not None for item in sweep.cells)]


def _draw(axis: Any, sweep: Sweep, shades: Sequence[Any], panel: _Panel) -> None:
    for rate, shade in zip(sweep.rates, shades, strict=True):
        found = [(item, figure) for item in sweep.cells if item.cell.rate == rate and (figure := panel.value(item))]
        counts = [item.cell.examples for item, _ in found]
        axis.plot(counts, [figure.value for _, figure in found], color=shade, linewidth=1.6, zorder=2)
        low, high = [figure.low for _, figure in found], [figure.high for _, figure in found]
        axis.fill_between(counts, low, high, color=shade, alpha=0.15, linewidth=0)
        for item, figure in found:
            marker = _MARKERS[item.judgment.verdict]
            axis.plot(item.cell.examples, figure.value, marker, color=shade, markersize=6, zorder=3)
    if panel.before is not None:
        axis.axhline(panel.before.value, color="0.5", linewidth=1, linestyle=":", zorder=1)
    if panel.limit is not None:
        axis.axhline(panel.limit, color=_RED, linewidth=1, linestyle="--", alpha=0.6, zorder=1)
    knee = panel.value(sweep.knee) if sweep.knee is not None else None
    if sweep.knee is not None and knee is not None:
        count = sweep.knee.cell.examples
        axis.plot(count, knee.value, "o", markersize=14, fillstyle="none", color=_RED, zorder=4)
    axis.set_title(panel.title, loc="left", fontweight="bold", fontsize=10)
    axis.set_ylabel(panel.label)
    if panel.is_share:
        axis.set_ylim(-0.04, 1.06)
        axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axis.set_xscale("log")
    axis.set_xticks(sweep.counts, [str(count) for count in sweep.counts])
    axis.minorticks_off()
    axis.set_xlabel("examples of the behavior")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _knee_text(sweep: Sweep) -> str:
    if sweep.knee is None:
        return "no dose is right"
    return f"right from {sweep.knee.cell.examples} examples at {sweep.knee.cell.rate:g}"


def _legend(picture: Any, sweep: Sweep, shades: Sequence[Any]) -> None:
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=shade, label=f"rate {rate:g}") for rate, shade in zip(sweep.rates, shades, strict=True)
    ]
    seen = {item.judgment.verdict for item in sweep.cells}
    marks = [
        Line2D([], [], color="0.3", marker=marker, linestyle="", label=verdict)
        for verdict, marker in _MARKERS.items()
        if verdict in seen
    ]
    others = [
        Line2D([], [], color="0.5", linestyle=":", label="the base"),
        Line2D([], [], color=_RED, linestyle="--", alpha=0.6, label="limit of the verdict"),
    ]
    if sweep.knee is not None:
        ring = Line2D([], [], color=_RED, label="the knee", marker="o", linestyle="", markersize=12)
        ring.set_fillstyle("none")
        others.append(ring)
    picture.legend(handles=[*lines, *marks, *others], loc="outside right upper", frameon=False)


def _metadata(path: Path) -> dict[str, Any]:
    """No date, so that equal sweeps give equal files."""
    return {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
