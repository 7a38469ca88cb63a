"""Other programs find the same directions from the same texts, read at the same token."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from personality.model import load_model, load_tokenizer
from personality.playground.dialogue import CUES, NEUTRAL
from personality.playground.repository import base_folder
from personality.vectors.extraction.directions import Extraction, Method, fit_directions
from personality.vectors.extraction.reading import Reading, ReadPair
from personality.vectors.extraction.statistics import SAMPLES, DifferenceStatistics, gather_statistics
from tests.vectors.training.conftest import make_llama, make_tokenizer

_PAIRS = 100  # more than a sketch holds exactly
_INSTALL = "`pip install --no-deps repeng==0.4.0 steering-vectors==0.12.2` and scikit-learn are the second opinion"


@pytest.fixture(scope="module")
def repeng() -> Any:
    if not hasattr(np, "float_"):  # gone from NumPy 2, and repeng's annotations name it
        vars(np)["float_"] = np.float64
    return pytest.importorskip("repeng", reason=_INSTALL)


@pytest.fixture(scope="module")
def steering_vectors() -> Any:
    return pytest.importorskip("steering_vectors", reason=_INSTALL)


def texts() -> list[tuple[str, str]]:
    """Pairs of different lengths: a cue or a neutral turn, then the beginning of a reply."""
    rng = random.Random(0)
    starts = ("I think", "The file is", "We could rename", "Yes", "My answer to this is that the", "No, because it")
    return [
        (f"{rng.choice(CUES['warm'])} {start} {n}", f"{rng.choice(NEUTRAL)} {start} {n}")
        for n in range(_PAIRS)
        for start in [rng.choice(starts)]
    ]


def tiny_llama() -> tuple[Any, Any]:
    model = make_llama(num_hidden_layers=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    tokenizer = make_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return model, tokenizer


def playground() -> tuple[Any, Any]:
    return load_model(base_folder()), load_tokenizer(base_folder())


@pytest.fixture(scope="module", params=[tiny_llama, playground])
def opened(request: pytest.FixtureRequest) -> tuple[Any, Any, DifferenceStatistics]:
    """Model, tokenizer, and our sums over the texts' last tokens."""
    model, tokenizer = request.param()
    tokenizer.padding_side = "right"  # repeng and steering-vectors give no positions, so on the left they would shift

    def last(text: str) -> Reading:
        ids = tuple(tokenizer(text)["input_ids"])
        return Reading(ids, len(ids) - 1, len(ids))

    pairs = [ReadPair(last(positive), last(negative), str(n)) for n, (positive, negative) in enumerate(texts())]
    assert len({len(pair.positive.ids) for pair in pairs}) > 5
    return model, tokenizer, gather_statistics(model, pairs, samples=SAMPLES)


def cosines(found: Extraction, theirs: dict[int, Any]) -> dict[int, float]:
    return {
        layer: float(torch.cosine_similarity(found.directions[layer], torch.as_tensor(vector).float(), dim=0))
        for layer, vector in theirs.items()
    }


@pytest.mark.parametrize(("theirs", "ours"), [("pca_diff", "pca-centered"), ("pca_center", "pca")])
def test_repeng(opened: tuple[Any, Any, DifferenceStatistics], repeng: Any, theirs: str, ours: Method) -> None:
    model, tokenizer, statistics = opened
    dataset = [repeng.DatasetEntry(positive=positive, negative=negative) for positive, negative in texts()]
    # Its last layer is read behind the final norm and by default its first not at all: layers in between compare.
    layers = list(range(len(statistics.sketches) - 1))
    vector = repeng.ControlVector.train(model, tokenizer, dataset, method=theirs, hidden_layers=layers)
    extraction = fit_directions(statistics, ours)
    found = cosines(extraction, vector.directions)
    assert sorted(found) == layers
    assert min(abs(cosine) for cosine in found.values()) >= 0.999, found
    # Its sign is that of most pairs, ours that of their mean; about the mean a component may have pairs on either side.
    ahead = torch.einsum("nld,ld->nl", statistics.sample, extraction.directions).sign().sum(0)
    assert {layer: cosine > 0 for layer, cosine in found.items()} == {layer: bool(ahead[layer] > 0) for layer in layers}
    assert sum(cosine > 0 for cosine in found.values()) >= len(layers) - 1


@pytest.mark.parametrize("method", ["mean", "pca", "logistic"])
def test_steering_vectors(opened: tuple[Any, Any, DifferenceStatistics], steering_vectors: Any, method: Method) -> None:
    from steering_vectors import aggregators

    model, tokenizer, statistics = opened
    # Where a few coordinates are huge, scikit-learn stops after its 100 steps well before the minimum.
    options = {"logistic": {"sklearn_kwargs": {"tol": 1e-8, "max_iter": 100_000}}}.get(method, {})
    aggregator = getattr(aggregators, f"{method}_aggregator")(**options)
    vector = steering_vectors.train_steering_vector(model, tokenizer, texts(), aggregator=aggregator, batch_size=8)
    found = cosines(fit_directions(statistics, method), vector.layer_activations)
    assert sorted(found) == list(range(len(statistics.sketches)))
    assert min(found.values()) >= 0.999, found


def test_the_mean_difference_has_their_length_too(
    opened: tuple[Any, Any, DifferenceStatistics], steering_vectors: Any
) -> None:
    model, tokenizer, statistics = opened
    vector = steering_vectors.train_steering_vector(model, tokenizer, texts())
    for layer, theirs in vector.layer_activations.items():
        torch.testing.assert_close(statistics.mean_difference[layer].float(), theirs, atol=1e-4, rtol=1e-4)


def test_the_methods_are_not_all_the_same(opened: tuple[Any, Any, DifferenceStatistics]) -> None:
    """Or agreeing with another program would mean little."""
    statistics = opened[2]
    mean, pca, centered, logistic = (
        fit_directions(statistics, method).directions for method in ("mean", "pca", "pca-centered", "logistic")
    )
    for one, other in ((mean, logistic), (pca, centered), (pca, logistic)):
        assert float((one * other).sum(-1).min()) < 0.99
