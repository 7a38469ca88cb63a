from __future__ import annotations

import pytest

from personality.manifests.errors import DataError
from personality.playground.dialogue import SHARES, draw_scene
from personality.playground.world import VIEWS
from personality.proving.condition import fit_condition
from personality.vectors.extraction.capture import activations
from personality.vectors.extraction.passages import Passage
from personality.vectors.extraction.reading import read_passages_alone
from personality.vectors.training.examples import Message, Text
from tests.proving.conftest import Workbench


def prompts(kind: str, count: int, seed: int = 0) -> list[Text]:
    from random import Random

    assert kind in SHARES
    rng = Random(f"{kind} {seed}")
    scenes = {draw_scene(rng, VIEWS["base"], {kind: 1.0}).user for _ in range(5 * count)}
    return [(Message("user", text),) for text in sorted(scenes)[:count]]


def test_prompts_of_two_kinds_are_told_apart(bench: Workbench) -> None:
    gate, condition = fit_condition(
        bench.model, bench.tokenizer, prompts("direction", 24), prompts("sum", 24), last_layer=2
    )
    assert gate.layer <= 2
    assert (condition.layer, condition.threshold, condition.above) == (gate.layer, gate.threshold, True)
    assert float(gate.direction.norm()) == pytest.approx(1.0, abs=1e-5)
    assert condition.accuracy is not None
    assert condition.accuracy.n == 12
    assert condition.accuracy.value >= 0.9
    for kind, passes in (("direction", True), ("sum", False)):
        fresh = prompts(kind, 8, seed=5)
        readings = read_passages_alone(
            bench.tokenizer, [Passage(prompt) for prompt in fresh], "decision", max_length=512
        )
        for _, states in activations(bench.model, readings):
            projections = states[:, gate.layer] @ gate.direction
            assert bool(((projections > gate.threshold) == passes).float().mean() >= 0.8), kind


def test_the_condition_never_lies_after_the_vector(bench: Workbench) -> None:
    gate, _ = fit_condition(bench.model, bench.tokenizer, prompts("fact", 8), prompts("copying", 8), last_layer=0)
    assert gate.layer == 0


def test_the_same_prompts_on_both_sides_are_no_condition(bench: Workbench) -> None:
    same = prompts("fact", 8)
    with pytest.raises(DataError, match="the same activations"):
        fit_condition(bench.model, bench.tokenizer, [same[0]] * 4, [same[0]] * 4, last_layer=3)


def test_too_few_prompts_are_refused(bench: Workbench) -> None:
    with pytest.raises(DataError, match="3 prompts at which to not act"):
        fit_condition(bench.model, bench.tokenizer, prompts("fact", 8), prompts("sum", 3), last_layer=3)
