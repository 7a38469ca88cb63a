from __future__ import annotations

import dataclasses

import pytest
import torch

from personality.manifests.errors import IncompatibleError
from personality.vectors.extraction.capture import pair_activations
from personality.vectors.extraction.directions import extract_directions
from personality.vectors.extraction.reading import ReadPair
from personality.vectors.extraction.separation import Separation, measure_separation
from tests.tiny_readings import make_pairs, marked_pairs, tiny_model


def made(projections: list[tuple[float, float]]) -> Separation:
    """One layer with midpoint 1 and gap 10."""
    places = tuple(f"p:{n}" for n in range(len(projections)))
    return Separation(torch.tensor(projections)[..., None], torch.tensor([1.0]), torch.tensor([10.0]), places)


def test_counts_texts_and_pairs() -> None:
    found = made([(3.0, -2.0), (4.0, 2.0), (0.0, 5.0), (1.0, 1.0), (2.0, 1.5)])
    assert (found.texts, found.pairs) == (10, 5)
    # Positive above 1: 3, 4, 2; negative below 1: -2. On the midpoint is on no side.
    assert found.correct.tolist() == [4]
    assert found.ordered.tolist() == [3]
    assert found.flips(0) == ["p:2"]
    assert found.near_zero(0) == ["p:3", "p:4"]
    assert found.near_zero(0, share=0.3) == ["p:1", "p:3", "p:4"]


def test_projects_every_pair_in_its_place() -> None:
    model, pairs = tiny_model("qwen3_5"), make_pairs(9)
    extraction = extract_directions(model, marked_pairs(8))
    found = measure_separation(model, pairs, extraction, batch_tokens=40)
    for rows, acts in pair_activations(model, pairs):
        expected = (acts * extraction.directions).sum(-1)
        torch.testing.assert_close(found.projections[rows], expected, atol=1e-4, rtol=1e-4)
    assert found.where == tuple(pair.where for pair in pairs)


def test_tells_marked_texts_apart_and_others_not() -> None:
    model = tiny_model("llama")
    extraction = extract_directions(model, marked_pairs(60))
    held_out = measure_separation(model, marked_pairs(100, seed=1), extraction)
    assert int(held_out.ordered.max()) >= 97
    assert int(held_out.correct.max()) >= 120  # topics move single texts about the midpoint, not pairs
    swapped = [ReadPair(pair.negative, pair.positive, pair.where) for pair in marked_pairs(100, seed=1)]
    assert int(measure_separation(model, swapped, extraction).ordered.max()) <= 40
    layer = int(held_out.ordered.argmax())
    assert len(held_out.flips(layer)) == 100 - int(held_out.ordered[layer])
    unrelated = measure_separation(model, make_pairs(100), extraction)
    assert int(unrelated.ordered.max()) < 75


def test_refuses_directions_of_another_model() -> None:
    model = tiny_model("llama")
    extraction = extract_directions(model, marked_pairs(4))
    other = dataclasses.replace(extraction, directions=extraction.directions[:2])
    with pytest.raises(IncompatibleError, match=r"\(2, 32\).*\(3, 32\)"):
        measure_separation(model, marked_pairs(4), other)
