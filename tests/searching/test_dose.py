"""Curves over one scale."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality.manifests.errors import UsageError
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.searching.dose import ScalePoint, coherent_range, dose, parse_span, suggest
from personality.versions.history import History
from personality.versions.recipe import find_vector
from personality.versions.undoing import undo


def _points(holds: dict[float, bool]) -> list[ScalePoint]:
    return [ScalePoint(scale, {}, {}, None, None, () if good else ("bad",)) for scale, good in holds.items()]


def test_the_coherent_range_grows_from_the_smallest_dose() -> None:
    assert coherent_range(_points({0: True, 0.5: True, 1: False, 1.5: True})) == (0, 0.5)
    assert coherent_range(_points({-1: False, -0.5: True, 0: True, 0.5: True})) == (-0.5, 0.5)
    assert coherent_range(_points({0.5: False, 1: True})) is None
    assert coherent_range([]) is None


@given(st.floats(-100, 100), st.floats(-100, 100))
def test_spans_are_read_as_written(low: float, high: float) -> None:
    if low < high:
        assert parse_span(f"{low!r}..{high!r}") == (low, high)
    else:
        with pytest.raises(UsageError, match="is not a span of scales"):
            parse_span(f"{low!r}..{high!r}")


@pytest.mark.parametrize("text", ["0-1", "0..", "..1", "a..b", "0..inf", "nan..1", "1..0", ""])
def test_what_is_no_span(text: str) -> None:
    with pytest.raises(UsageError, match=r"such as `0\.\.1\.5`|is not a span"):
        parse_span(text)


def test_a_curve_of_a_behavior_in_a_recipe(history_repository: Repository) -> None:
    head = History(history_repository).find("v5")
    seen: list[float] = []
    found = dose(
        history_repository,
        VectorLabel("listening"),
        (0.0, 1.0),
        head,
        points=3,
        rows=6,
        on_point=lambda _, scale: seen.append(scale),
    )
    assert [point.scale for point in found.points] == seen == [0, 0.5, 1]
    assert list(found.points[0].values) == ["listening", "push_back", "general"]
    assert found.points[0].changes["listening"].value == 0
    assert found.points[2].changes["listening"].value > 0.3
    assert found.points[2].values["listening"].value > found.points[1].values["listening"].value
    assert all(point.perplexity is not None and point.repetition is not None for point in found.points)
    assert found.label == "listening@1"
    assert found.suggested is None or found.suggested[0] > 0


def test_what_falls_apart_does_not_hold_together(history_repository: Repository) -> None:
    head = History(history_repository).find("v1")
    found = dose(history_repository, VectorLabel("concise"), (0.0, 1e38), head, points=2, goal="general", rows=2)
    assert found.points[1].values == {}
    assert found.points[1].faults == ("the model predicts nothing any more",)
    assert found.coherent == (0, 0)
    assert found.suggested is None


def test_the_range_goes_into_the_manifest_and_out_again(history_repository: Repository, tmp_path: Path) -> None:
    shutil.copytree(history_repository.root, tmp_path / "play")
    own = Repository(tmp_path / "play")
    before = find_vector(own, VectorLabel("listening"))
    suggest(own, "listening@1", (0.25, 1.25))
    after = find_vector(own, VectorLabel("listening"))
    assert after.suggested_scale == (0.25, 1.25)
    assert after.id == before.id
    undo(own)
    assert find_vector(own, VectorLabel("listening")) == before


def test_wrong_words(history_repository: Repository) -> None:
    head = History(history_repository).find("v1")
    with pytest.raises(UsageError, match="at least 2 points, not 1"):
        dose(history_repository, VectorLabel("listening"), (0.0, 1.0), head, points=1)
    with pytest.raises(UsageError, match="nothing to measure called `obeying`"):
        dose(history_repository, VectorLabel("obeying"), (0.0, 1.0), head)
