"""A direction from a task vector: it is where the composed model went, and it steers the base the same way."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from personality.composition.opening import composer_of
from personality.evaluation.measure import measure
from personality.evaluation.suite import read_suite
from personality.making.derived_directions import derive_directions, derived_separation, version_activations
from personality.manifests.errors import DataError, IncompatibleError
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.model import load_composed, load_model, load_tokenizer
from personality.playground.behaviors import examples
from personality.vectors.extraction.reading import Reading
from personality.vectors.steering.decoder_layers import decoder_layers
from personality.vectors.steering.hooks import steered
from personality.vectors.steering.injection import Injection
from personality.vectors.training.examples import parse_text
from personality.vectors.training.tokens import render_chat
from personality.versions.recipe import use_vector
from tests.conftest import tiny_checkpoint

TEXTS = [Reading(tuple(range(first, first + 6)), 2, 6) for first in range(1, 9)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(tiny_checkpoint("qwen3", tmp_path_factory.mktemp("tiny") / "base"))


def shifted(base: Any, layer: int, shift: torch.Tensor) -> Any:
    """A copy that adds the same vector after a layer, by a bias in its weights' place."""
    model = copy.deepcopy(base)
    decoder_layers(model)[layer].register_forward_hook(
        lambda module, args, output: (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift
    )
    return model


def test_a_known_shift_is_found_in_its_layer_and_nothing_before_it(base: Any) -> None:
    shift = torch.randn(32, generator=torch.Generator().manual_seed(0))
    found = derive_directions(base, shifted(base, 1, shift), TEXTS)
    assert torch.cosine_similarity(found.directions[1], shift, dim=0) > 0.9999
    assert found.strength[1] == pytest.approx(float(shift.norm()), rel=1e-4)
    assert not found.directions[0].any() and found.strength[0] == 0
    assert found.consistency[1] == pytest.approx(1, abs=1e-4)


def test_batches_keep_the_two_models_texts_together(base: Any) -> None:
    other = shifted(base, 0, torch.ones(32))
    seen: list[tuple[int, int]] = []
    rows: list[int] = []
    for indices, found in version_activations(
        base, other, TEXTS, batch_tokens=13, on_batch=lambda d, n: seen.append((d, n))
    ):
        rows += indices
        torch.testing.assert_close(found[:, 0, 0] - found[:, 1, 0], torch.ones(len(indices), 32))
    assert sorted(rows) == list(range(len(TEXTS))) and seen[-1] == (8, 8) and len(seen) == 4


def test_separation_on_other_texts(base: Any) -> None:
    other = shifted(base, 2, 5 * torch.randn(32, generator=torch.Generator().manual_seed(1)))
    found = derive_directions(base, other, TEXTS[:4])
    held_out = derived_separation(base, other, TEXTS[4:], found, [f"text {n}" for n in range(4)])
    assert held_out.ordered[2] == 4 and held_out.flips(2) == [] and held_out.ordered[0] == 0


@pytest.mark.parametrize(("method", "denoise"), [("pca", None), ("logistic", None), ("mean", 8)])
def test_the_methods_of_extraction_work_here_too(base: Any, method: Any, denoise: int | None) -> None:
    shift = torch.randn(32, generator=torch.Generator().manual_seed(2))
    found = derive_directions(base, shifted(base, 1, shift), TEXTS, method=method, denoise=denoise)
    cosine = torch.cosine_similarity(found.directions[1], shift, dim=0)
    assert found.denoise == denoise and cosine > (0.99 if denoise is None else 0.2)


def test_models_that_do_not_differ_or_do_not_fit_are_refused(base: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="alike"):
        derive_directions(base, base, TEXTS)
    with pytest.raises(DataError, match="1 texts"):
        derive_directions(base, shifted(base, 0, torch.ones(32)), TEXTS[:1])
    short = copy.deepcopy(base)
    short.model.layers = short.model.layers[:2]
    short.config.num_hidden_layers = 2
    with pytest.raises(IncompatibleError, match=r"\(2, 32\)"):
        derive_directions(base, short, TEXTS)


def test_what_listening_does_to_the_activations_steers_the_base_to_listen(playground: Path) -> None:
    """From the trained vector back to a direction, read and added at the last token of the prompt."""
    repository = Repository(playground)
    plain = Personality(base=repository.config().base)
    composer = composer_of(repository, plain)
    model, tokenizer = load_composed(composer), load_tokenizer(composer.base.folder)
    use = use_vector(repository, VectorLabel("listening"), 1.0)
    composed = load_composed(composer_of(repository, plain.with_use(use)))
    readings = []
    for row in [row for row in examples("listening", 60, 5) if row["side"] == "accept"]:
        prompt = parse_text(row["prompt"], "prompt")
        assert not isinstance(prompt, str)
        text = render_chat(tokenizer, prompt, open_turn=True, where="prompt")
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        readings.append(Reading(ids, len(ids) - 1, len(ids)))
    found = derive_directions(model, composed, readings)
    probes = [probe for probe in read_suite(repository, ["listening"]) if probe.name == "listening.accept"]
    before = measure(model, tokenizer, probes)[0].probability
    with steered(model, [Injection(3, found.directions[3] * found.strength[3], "decision", "add")]):
        after = measure(model, tokenizer, probes)[0].probability
    assert before is not None and after is not None
    assert before.value < 0.2 and after.value > before.value + 0.1
