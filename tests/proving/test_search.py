from __future__ import annotations

import pytest
import torch

from personality.evaluation.suite import Probe, Row
from personality.manifests.errors import DataError
from personality.proving.candidates import Candidate, Source, effort, neighbors, spread_layers, varied
from personality.proving.roles import Roles, roles, score
from personality.proving.search import Found, search
from tests.proving.conftest import Workbench, playground_probes


def source(name: str, layers: int, merit: list[float] | None = None) -> Source:
    return Source(name, torch.ones(layers, 4), torch.ones(layers), torch.tensor(merit or [1.0] * layers))


def test_a_deep_model_is_tried_at_twelve_layers_that_lie_apart() -> None:
    merit = [0.0] * 48
    merit[7] = merit[30] = 1.0
    found = spread_layers(source("a", 48, merit), None)
    assert len(found) == 12
    assert {7, 30} <= set(found)
    assert [layer // 4 for layer in found] == list(range(12))
    assert spread_layers(source("a", 5), None) == [0, 1, 2, 3, 4]
    assert spread_layers(source("a", 48), [3, 9]) == [3, 9]
    empty = source("a", 3)
    empty.directions[1] = 0
    assert spread_layers(empty, None) == [0, 2]


def test_neighbors_stay_within_the_model_and_come_once() -> None:
    ranked = [Candidate("a", "all", (2,), 1.0), Candidate("a", "all", (2,), 0.5), Candidate("a", "all", (1,), 1.0)]
    found = [(place, layers) for _, place, layers in neighbors(ranked, [source("a", 3)], 2)]
    assert found == [("all", (1, 2)), ("all", (0, 1))]
    assert [layers for _, _, layers in neighbors(ranked, [source("a", 3)], 2, layers=(1, 2))] == [(1, 2)]


def test_the_simpler_comes_first_and_a_setting_takes_two_places_at_most() -> None:
    everywhere, decision = Candidate("a", "all", (1, 2), 2.0), Candidate("a", "decision", (1,), 0.5)
    assert min([decision, everywhere], key=effort) is everywhere
    scales = [Candidate("a", "all", (1,), scale) for scale in (1.0, 0.5, 2.0)]
    assert varied([*scales, decision], 4) == [*scales[:2], decision]
    alike = [Candidate(name, "all", (1,), 1.0) for name in "abcd"]
    assert varied([*alike, decision], 4) == [*alike[:3], decision]


def test_a_direction_that_does_not_separate_is_not_trusted() -> None:
    unknown = source("a", 3)
    known = Source("b", torch.ones(3, 4), torch.ones(3), torch.ones(3), torch.tensor([0.5, 0.95, 1.0]))
    assert unknown.separates((0, 1))
    assert known.separates((1, 2))
    assert not known.separates((0, 1))


def test_the_score_weighs_gain_against_loss() -> None:
    parts = Roles(("b.yes",), ("b.no",), ("general.x",))
    base = {"b.yes": 0.1, "b.no": 1.0, "general.x": 1.0}
    assert score({"b.yes": 0.9, "b.no": 1.0, "general.x": 0.98}, base, parts) == pytest.approx(0.8)
    assert score({"b.yes": 0.9, "b.no": 0.7, "general.x": 0.9}, base, parts) == pytest.approx(0.8 - 0.3 - 0.08)
    # A side that gets better does not make up for anything.
    assert score({"b.yes": 0.1, "b.no": 1.0, "general.x": 1.0}, {**base, "b.no": 0.2}, parts) == 0


def test_roles_come_from_names_sides_and_what_the_base_does() -> None:
    probes = playground_probes("listening", 1) + playground_probes("candid", 1)[:2]
    base = {probe.name: 0.0 for probe in probes} | {"candid.known": 0.9}
    found = roles("listening", probes, base)
    assert found.wanted == ("listening.accept",)
    assert found.held == ("listening.push_back",)
    assert "candid.known" in found.general
    assert roles("candid", probes, base).held == ("candid.known",)


@pytest.fixture(scope="module")
def found(bench: Workbench) -> Found:
    extraction = bench.extraction
    random = torch.randn(4, 96, generator=torch.Generator().manual_seed(1))
    sources = [
        Source("noise", torch.nn.functional.normalize(random, dim=1), extraction.activation_norm, torch.ones(4)),
        Source("system/divergence", extraction.directions, extraction.activation_norm, extraction.consistency),
    ]
    probes = playground_probes("listening", 12)
    return search(
        bench.model,
        bench.tokenizer,
        "listening",
        probes,
        sources,
        bench.general,
        positions=("all",),
        layers=(2, 3),
        scales=(0.5, 0.6),
    )


def test_the_planted_direction_is_found_where_it_works(found: Found) -> None:
    assert found.best.source == "system/divergence"
    assert 3 in found.best.layers
    assert found.best.scale in (0.5, 0.6)
    assert found.selection["listening.accept"] >= 0.9
    assert found.by_positions == {"all": found.best}
    assert found.vector.layers == found.best.layers
    assert set(found.vector.tensors) == set(found.best.layers)


def test_it_is_reported_on_rows_that_it_was_not_chosen_on(found: Found) -> None:
    before, after = found.report["listening.accept"]
    assert before < 0.1
    assert after > 0.8
    assert found.report["listening.push_back"][1] > 0.9


def test_its_rows_are_json_and_the_winner_comes_first(found: Found) -> None:
    first = found.rows[0]
    assert (first["contrast"], first["scale"]) == (found.best.source, found.best.scale)
    assert first["score"] >= max(row["score"] for row in found.rows) - 0.02
    assert set(first["probes"]) == set(found.report)
    assert found.evaluations < 120


def test_without_anything_to_gain_there_is_no_search(bench: Workbench) -> None:
    general = [probe for probe in bench.probes if probe.name.startswith("general.")]
    with pytest.raises(DataError, match="no probe of `listening`"):
        search(bench.model, bench.tokenizer, "listening", general, [], bench.general)


def test_probes_that_only_replies_can_show_are_searched_by_replies(bench: Workbench) -> None:
    accept = next(probe for probe in playground_probes("listening", 8) if probe.name == "listening.accept")
    rows = tuple(Row(prompt=row.prompt, passes=row.passes) for row in accept.rows)
    extraction = bench.extraction
    sources = [Source("system/divergence", extraction.directions, extraction.activation_norm, extraction.consistency)]
    one = search(
        bench.model,
        bench.tokenizer,
        "listening",
        [Probe("listening.accept", "accept", rows)],
        sources,
        bench.general,
        positions=("decision",),
        layers=(3,),
        scales=(0.9,),
    )
    assert one.rows[0]["quick"] > 0.8
    assert one.report["listening.accept"][1] > 0.8


def test_without_directions_there_is_no_search(bench: Workbench) -> None:
    nothing = Source("none", torch.zeros(4, 96), torch.ones(4), torch.ones(4))
    with pytest.raises(DataError, match="no direction"):
        search(bench.model, bench.tokenizer, "listening", bench.probes, [nothing], bench.general)
