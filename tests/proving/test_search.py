from __future__ import annotations

import pytest
import torch

from personality.evaluation.suite import Probe, Row, Turn
from personality.manifests.errors import DataError
from personality.proving.candidates import Candidate, Source, effort, neighbors, spread_layers, varied
from personality.proving.roles import Roles, roles, score
from personality.proving.search import Found, halves, search
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
    assert found.rows[0]["probes"]["listening.accept"] >= 0.9
    assert found.by_positions == {"all": found.best}
    assert round(found.scores["all"], 4) == found.rows[0]["score"]
    assert found.vector.layers == found.best.layers
    assert set(found.vector.tensors) == set(found.best.layers)


def test_the_halves_of_a_probe_share_no_row() -> None:
    def numbered(count: int) -> Probe:
        rows = tuple(
            Row(prompt=(Turn(role="user", content=str(number)),), passes=f"^{number}$") for number in range(count)
        )
        return Probe("x.y", None, rows)

    for count in (2, 3, 24, 70):
        probe = numbered(count)
        (first,), (second,) = halves([probe])
        texts = [[row.prompt[0].content for row in half.rows] for half in (first, second)]
        assert texts[0] == [str(number) for number in range(0, count, 2)][:24]
        assert texts[1] == [str(number) for number in range(1, count, 2)]
    (first,), (second,) = halves([numbered(1)])
    assert first.rows == second.rows == numbered(1).rows


def test_its_rows_are_json_and_the_winner_comes_first(found: Found) -> None:
    first = found.rows[0]
    assert (first["contrast"], first["scale"]) == (found.best.source, found.best.scale)
    assert first["score"] >= max(row["score"] for row in found.rows) - 0.02
    assert {"listening.accept", "listening.push_back"} <= set(first["probes"])
    assert found.evaluations < 120


def test_without_anything_to_gain_there_is_no_search(bench: Workbench) -> None:
    general = [probe for probe in bench.probes if probe.name.startswith("general.")]
    with pytest.raises(DataError, match="no probe of `listening`"):
        search(bench.model, bench.tokenizer, "listening", general, [], bench.general)


def test_probes_that_only_replies_can_show_are_searched_by_replies_to_the_first_half(bench: Workbench) -> None:
    accept = next(probe for probe in playground_probes("listening", 8) if probe.name == "listening.accept")
    # Whoever looks at the other half finds no effect.
    rows = tuple(
        Row(prompt=row.prompt, passes="^never$" if number % 2 else row.passes) for number, row in enumerate(accept.rows)
    )
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
    assert one.rows[0]["probes"]["listening.accept"] > 0.8


def test_without_directions_there_is_no_search(bench: Workbench) -> None:
    nothing = Source("none", torch.zeros(4, 96), torch.ones(4), torch.ones(4))
    with pytest.raises(DataError, match="no direction"):
        search(bench.model, bench.tokenizer, "listening", bench.probes, [nothing], bench.general)
