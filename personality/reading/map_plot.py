"""The picture of a reading: a map for each vector, tokens downward and layers across."""

from __future__ import annotations

from pathlib import Path

from personality.making.sweep_plot import check_plot
from personality.manifests.atomic import writing
from personality.reading.reading import Reading

_ROW, _LEAST, _MOST = 0.19, 2.0, 60.0  # inches: of a token, and of the whole picture's height
_LABELED = 250  # tokens beyond which their names would be too small to read


def plot_reading(reading: Reading, path: Path) -> None:
    """Draw cosines in red along a vector's direction and in blue against it.

    Args:
        reading: of a text or transcript.
        path: file to write, .png or .svg.

    Raises:
        PersonaError: matplotlib is not installed, or the file cannot be written.
        UsageError: a format that is not drawn.
    """
    check_plot(path, "--png")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    count = len(reading.tokens)
    height = min(_MOST, max(_LEAST, 1.2 + _ROW * count))
    widths = [max(1.6, 0.3 * len(item.layers)) for item in reading.vectors]
    # Text stays text in an SVG, equal readings give equal files, and a token's `$` begins no formula.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "persona", "font.size": 8, "text.parse_math": False}):
        picture = Figure(figsize=(1.6 + sum(widths) + 0.9 * len(widths), height), layout="constrained")
        axes = picture.subplots(1, len(widths), squeeze=False, sharey=True, width_ratios=widths)[0]
        for axis, item in zip(axes, reading.vectors, strict=True):
            top = max(1e-9, float(item.cosines.abs().max()))
            shown = axis.imshow(
                item.cosines.numpy(), aspect="auto", cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest"
            )
            axis.set_title(item.label, fontweight="bold")
            axis.set_xlabel("layer")
            step = max(1, len(item.layers) // 8)
            axis.set_xticks(range(0, len(item.layers), step), [str(layer) for layer in item.layers[::step]])
            picture.colorbar(shown, ax=axis, label="cosine", shrink=min(1.0, 2.0 / height + 0.3))
            for turn in reading.turns[1:]:
                axis.axhline(turn.start - 0.5, color="0.2", linewidth=0.8)
        if count <= _LABELED:
            axes[0].set_yticks(range(count), list(reading.tokens))
        else:
            axes[0].set_ylabel("token")
        with writing(path.absolute()) as file:
            metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
            picture.savefig(file, format=path.suffix.lower()[1:], dpi=150, metadata=metadata)
