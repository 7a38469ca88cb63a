"""The picture of a reading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from personality.manifests.errors import UsageError
from personality.reading.map_plot import plot_reading
from personality.reading.reading import Reading, Turn, VectorReading

pytest.importorskip("matplotlib")


def reading(tokens: int = 5) -> Reading:
    cosines = torch.linspace(-0.5, 0.9, tokens * 3, dtype=torch.float64).reshape(tokens, 3)
    vectors = tuple(VectorReading(name, (4, 5, 6), (5,), "all", cosines, cosines, {}) for name in ("warm@1", "cool@2"))
    turns = (Turn(0, "user", "a", 0, 2), Turn(1, "assistant", "b", 2, tokens))
    names = ("$x$", "<|end|>", "·the", "⏎", "&")
    return Reading(tuple(names[n % 5] for n in range(tokens)), tuple(range(tokens)), turns, vectors)


def test_it_has_all_tokens_and_vectors_and_equal_readings_give_equal_files(tmp_path: Path) -> None:
    plot_reading(reading(), tmp_path / "a.svg")
    plot_reading(reading(), tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    for word in ("warm@1", "cool@2", "&lt;|end|&gt;", "$x$", "layer"):
        assert word in text


def test_a_long_text_stays_drawable(tmp_path: Path) -> None:
    plot_reading(reading(3000), tmp_path / "long.png")
    assert (tmp_path / "long.png").read_bytes().startswith(b"\x89PNG")


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"as \.png or \.svg, not as `x\.pdf`"):
        plot_reading(reading(), tmp_path / "x.pdf")
