from __future__ import annotations

import torch

from personality.evaluation.suite import Probe, Row
from personality.proving.layer_effects import layer_effects
from personality.proving.quick_figures import QuickFigures
from personality.vectors.steering.injection import Injection
from personality.vectors.steering.steering_vector import SteeringVector
from tests.proving.conftest import Workbench


def test_figures_follow_the_fork_between_two_replies(bench: Workbench) -> None:
    quick = QuickFigures(bench.model, bench.tokenizer, bench.probes)
    assert quick.base["listening.accept"].share == 0.0
    assert quick.base["listening.push_back"].share == 1.0
    assert quick.base["general.copying"].probability > 0.9
    helps = quick.measure([Injection(3, bench.directions[3] * 1100, "all", "add")])
    assert helps["listening.accept"].probability > quick.base["listening.accept"].probability + 0.3
    away = quick.measure([Injection(3, bench.directions[3] * -1100, "all", "add")])
    assert away["listening.accept"].probability < quick.base["listening.accept"].probability


def test_one_row_is_the_two_likelihoods_at_the_fork(bench: Workbench) -> None:
    from personality.evaluation.measure import reply_span

    probe = next(probe for probe in bench.probes if probe.name == "listening.accept").first(1)
    row = probe.rows[0]
    chosen = reply_span(bench.tokenizer, row, row.chosen, "row").ids
    rejected = reply_span(bench.tokenizer, row, row.rejected, "row").ids
    fork = next(i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    with torch.no_grad():
        logits = bench.model(input_ids=torch.tensor([chosen[:fork]])).logits[0, -1]
    expected = torch.softmax(logits[[chosen[fork], rejected[fork]]], 0)[0]
    found = QuickFigures(bench.model, bench.tokenizer, [probe]).base[probe.name]
    torch.testing.assert_close(torch.tensor(found.probability), expected.float(), atol=1e-4, rtol=1e-3)


def test_text_that_falls_apart_counts_nothing(bench: Workbench) -> None:
    quick = QuickFigures(bench.model, bench.tokenizer, bench.probes)
    noise = torch.randn(96, generator=torch.Generator().manual_seed(0)) * 3000
    broken = quick.measure([Injection(2, noise, "all", "add")])
    assert broken["general.copying"].probability < 0.2
    lost = quick.measure([Injection(2, torch.full((96,), 3e38), "all", "add")])
    assert all(figure.probability == 0 for figure in lost.values())


def test_rows_without_replies_count_by_their_openings(bench: Workbench) -> None:
    probe = next(probe for probe in bench.probes if probe.name == "listening.accept")
    bare = Probe(
        probe.name,
        probe.side,
        tuple(Row(prompt=row.prompt, passes=row.passes) for row in probe.rows[:4]),
        probe.yes,
        probe.no,
    )
    quick = QuickFigures(bench.model, bench.tokenizer, [bare, Probe("x.none", None, bare.rows)])
    assert set(quick.base) == {probe.name}  # neither replies nor openings: no figure
    helps = quick.measure([Injection(3, bench.directions[3] * 1100, "all", "add")])
    assert helps[probe.name].probability > quick.base[probe.name].probability


def test_only_the_last_layer_has_an_effect_here(bench: Workbench) -> None:
    tensors = {layer: direction * 1100 for layer, direction in bench.directions.items() if layer in (0, 3)}
    wanted = [probe for probe in bench.probes if probe.name == "listening.accept"]
    vector = SteeringVector(tensors, "decision", "add", (3,))
    found = layer_effects(bench.model, bench.tokenizer, wanted, vector)
    assert set(found) == {0, 3}
    assert found[3] > 0.2
    assert found[3] > found[0] + 0.1
