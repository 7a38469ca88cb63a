"""The terminal's picture of a reading: tokens downward, layers across, readable with colors and without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from personality.cli.output import Output

if TYPE_CHECKING:
    from personality.reading.reading import Reading, VectorReading

_LABEL = 14  # columns for a token, at most
_NUMBER, _DIGIT = 7, 2  # columns of a cell with two decimals, and of one with a digit
_TENTHS = 9


def show_heat_map(out: Output, reading: Reading) -> None:
    """Print a reading.

    Where all layers of all vectors have room, cells are cosines with two decimals. Otherwise each vector has a map of
    its own, whose cells are ninths of the largest cosine in it, with its sign: `+9` is the largest, `-4` almost half of
    it the other way. Layers that do not fit follow in a further block.
    """
    label = min(_LABEL, max(cell_len(token) for token in reading.tokens)) + 1
    if label + sum(_block(item) for item in reading.vectors) <= out.width:
        _numbers(out, reading, label)
        return
    for item in reading.vectors:
        _digits(out, reading, item, label)


def _block(item: VectorReading) -> int:
    """Columns of a vector's cells, or of its name where that is longer."""
    return max(_NUMBER * len(item.layers), cell_len(item.label) + 2)


def _numbers(out: Output, reading: Reading, label: int) -> None:
    out.line(" " * label + "".join(f"{item.label:>{_block(item)}}" for item in reading.vectors), "bold")
    numbers = ["".join(f"{_layer(item, layer):>{_NUMBER}}" for layer in item.layers) for item in reading.vectors]
    out.line(
        " " * label + "".join(f"{text:>{_block(item)}}" for item, text in zip(reading.vectors, numbers, strict=True))
    )
    tops = [_largest(item) for item in reading.vectors]
    for row, token in enumerate(reading.tokens):
        text = Text(_fit(token, label))
        for item, top in zip(reading.vectors, tops, strict=True):
            text.append(" " * (_block(item) - _NUMBER * len(item.layers)))
            for value in item.cosines[row].tolist():
                text.append(" ")
                text.append(f"{value:>+{_NUMBER - 1}.2f}", _style(value / top))
        out.line(text)
    out.note("cosine of the activation after each layer with the vector's direction; * the vector acts there")


def _digits(out: Output, reading: Reading, item: VectorReading, label: int) -> None:
    room = max(1, (out.width - label) // _DIGIT)
    top = _largest(item)
    for begin in range(0, len(item.layers), room):
        layers = item.layers[begin : begin + room]
        where = f"layers {layers[0]}-{layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"
        acting = ", ".join(str(layer) for layer in item.acting if layer in layers)
        out.line(f"{item.label}, {where}; 9 is a cosine of {top:.2f}{f'; acts in {acting}' if acting else ''}", "bold")
        ruler = "".join(f"{layer:<{5 * _DIGIT}}"[: 5 * _DIGIT] for layer in layers[::5])
        out.line(" " * (label + 1) + ruler.rstrip())
        for row, token in enumerate(reading.tokens):
            text = Text(_fit(token, label))
            for value in item.cosines[row, begin : begin + room].tolist():
                text.append(_cell(value / top), _style(value / top))
            out.line(text)


def _largest(item: VectorReading) -> float:
    return max(1e-9, float(item.cosines.abs().max()))


def _layer(item: VectorReading, layer: int) -> str:
    return f"{'*' if layer in item.acting else ''}{layer}"


def _cell(share: float) -> str:
    """A sign and a digit; a dot for what rounds to nothing."""
    digit = round(abs(share) * _TENTHS)
    return f"{'+' if share > 0 else '-'}{digit}" if digit else " ·"


def _style(share: float) -> str:
    """Red for along the direction, blue for against it, the stronger the fuller; no color in the middle."""
    strength = min(1.0, abs(share))
    if strength < 0.5 / _TENTHS:
        return ""
    faint = int(235 - 190 * strength)
    return f"black on rgb(255,{faint},{faint})" if share > 0 else f"black on rgb({faint},{faint},255)"


def _fit(token: str, width: int) -> str:
    """A token in its column, one column of space behind it, with `…` where it is cut."""
    if cell_len(token) > width - 1:
        token = set_cell_size(token, width - 2) + "…"
    return set_cell_size(token, width)
