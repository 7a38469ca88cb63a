from __future__ import annotations

from pathlib import Path

import pytest

from personality.manifests.errors import DataError, UsageError
from personality.manifests.evaluation import Figure
from personality.manifests.steering_record import Calibration, DosePoint, LayerFigures, Proof, SteeringRecord
from personality.proving.plot import plot_steering

pytest.importorskip("matplotlib")


def record(*, figures: bool = True, curve: bool = True) -> SteeringRecord:
    layers = tuple(
        LayerFigures(
            layer=layer,
            strength=1.0,
            activation=10.0,
            consistency=0.2 * layer - 0.1,
            separation=Figure(value=0.5 + 0.1 * layer, low=0.4, high=0.95, n=40) if layer else None,
            effect=0.1 * layer if layer != 2 else None,
        )
        for layer in range(4)
    )
    points = tuple(
        DosePoint(
            scale=scale,
            kl_95=scale**2 if scale < 3 else None,
            perplexity=2.0,
            repetition=0.1 * scale,
            coherent=scale < 2,
            probes={"kind.says": scale / 3, "general.sums": 1 - scale / 4, "general.facts": 1.0},
        )
        for scale in (0.5, 1.0, 2.0, 3.0)
    )
    return SteeringRecord(
        positions="decision",
        mode="add",
        layers=(3,),
        figures=layers if figures else (),
        proof=Proof(proven=False, reasons=("too weak",)),
        calibration=Calibration(tokens=10, kl_95=1.0, text="x", curve=points if curve else (), coherent_to=1.0),
    )


def test_both_panels_are_drawn_with_what_the_record_says(tmp_path: Path) -> None:
    plot_steering(record(), "kind@1", tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for words in (
        "kind@1: not proven; add at the decision position",
        "separation, held out",
        "consistency (cosine)",
        "kind.says",
        "general probes, mean",
        "text falls apart",
        "tested at 1",
    ):
        assert words in text, words
    plot_steering(record(), "kind@1", tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "a.svg").read_bytes()


def test_a_panel_without_anything_in_it_is_left_out(tmp_path: Path) -> None:
    plot_steering(record(curve=False), "kind@1", tmp_path / "layers.svg")
    text = (tmp_path / "layers.svg").read_text()
    assert "consistency (cosine)" in text
    assert "dose and response" not in text
    plot_steering(record(figures=False), "kind@1", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="no figures to draw"):
        plot_steering(record(figures=False, curve=False), "kind@1", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="png"):
        plot_steering(record(), "kind@1", tmp_path / "a.pdf")
