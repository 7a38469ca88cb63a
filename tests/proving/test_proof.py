from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from personality.evaluation.suite import Probe
from personality.playground.dialogue import CUES
from personality.proving import proof as proof_module
from personality.proving.calibration import Calibrated, calibrate
from personality.proving.effects import PAIRS, Outcome
from personality.proving.proof import prove, share_of
from personality.vectors.extraction.passages import Pair, Passage
from tests.proving.conftest import Workbench

SCALE = 0.6


@pytest.fixture(scope="session")
def calibrated(bench: Workbench) -> Calibrated:
    return calibrate(
        bench.model,
        bench.tokenizer,
        bench.general,
        {3: bench.directions[3]},
        positions="all",
        mode="add",
        layers=(3,),
        activations=bench.activations,
        probes=bench.probes,
        scales=(0.5, 0.6, 3.0),
    )


def test_a_planted_effect_is_proven(bench: Workbench, calibrated: Calibrated) -> None:
    seen: list[tuple[int, int]] = []
    proof = prove(
        bench.model,
        bench.tokenizer,
        "listening",
        calibrated.vector,
        bench.general,
        bench.probes,
        scale=SCALE,
        separation=bench.separation,
        systems=CUES["listening"],
        count=2,
        on_step=lambda number, of, what: seen.append((number, of)),
    )
    assert proof.proven, proof.reasons
    assert proof.measured == "probes"
    assert proof.scale == SCALE
    effects = {effect.probe: effect for effect in proof.effects}
    accept = effects["listening.accept"]
    assert accept.base.value < 0.2
    assert accept.steered.value > 0.8
    assert accept.change.low > 0
    assert accept.placebo is not None
    assert accept.placebo_best is not None
    assert accept.placebo <= accept.placebo_best < 0.5
    assert effects["listening.push_back"].steered.value > 0.9
    assert effects["general.copying"].placebo is None  # placebos are measured on the behavior's own probes
    # The continuous figures say the same.
    assert accept.margins["steered"] > accept.margins["base"]
    assert accept.margins["steered"] > accept.margins["placebo"]
    assert accept.probabilities["steered"] > accept.probabilities["base"] + 0.2
    # On the playground a cue is the stronger means, and the report says so.
    assert accept.prompted is not None
    assert accept.prompted.value > 0.9
    assert proof.prompt.startswith("system turn: ")
    assert proof.prompt_wins is True
    assert proof.placebos == 2
    assert proof.side_effects is not None
    assert proof.side_effects.kl_95 is not None
    assert 0 < proof.side_effects.kl_95 < 1
    assert seen == [(number, 6) for number in range(6)]


def test_a_random_direction_is_not_proven(bench: Workbench, calibrated: Calibrated) -> None:
    direction = torch.randn(96, generator=torch.Generator().manual_seed(7))
    length = calibrated.vector.tensors[3].norm()
    null = replace(calibrated.vector, tensors={3: direction / direction.norm() * length})
    proof = prove(
        bench.model,
        bench.tokenizer,
        "listening",
        null,
        bench.general,
        bench.probes,
        scale=SCALE,
        separation={3: share_of(16, 32)},
        count=2,
    )
    assert not proof.proven
    said = " ".join(proof.reasons)
    assert "tells 50% of 32 held-out texts apart" in said
    assert "no effect was shown" in said
    assert proof.prompt_wins is None


def test_what_random_directions_do_as_well_is_not_proven(
    bench: Workbench, calibrated: Calibrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = replace(calibrated.vector, tensors={3: torch.zeros(96)})
    monkeypatch.setattr(proof_module, "placebos", lambda vector, count, seed: [weak, vector])
    proof = prove(
        bench.model,
        bench.tokenizer,
        "listening",
        calibrated.vector,
        bench.general,
        bench.probes,
        scale=SCALE,
        separation=bench.separation,
        systems=["you see the tower ."],  # asks for nothing
        count=2,
    )
    assert not proof.proven
    (reason,) = proof.reasons
    assert reason.startswith("a random direction of the same norm does as much")
    assert proof.prompt_wins is False


def test_the_prompt_wins_by_replies_and_then_by_margin() -> None:
    def arm(passed: int, margin: float) -> dict[str, Outcome]:
        return {"b.x": Outcome((True,) * passed + (False,) * (10 - passed), margin)}

    wins = proof_module._wins
    assert wins(arm(9, 0.1), arm(8, 3.0), ["b.x"]) is True
    assert wins(arm(8, 3.0), arm(9, 0.1), ["b.x"]) is False
    assert wins(arm(8, 0.2), arm(8, 0.1), ["b.x"]) is True
    assert wins(arm(8, 0.1), arm(8, 0.1), ["b.x"]) is False
    assert wins(None, arm(8, 0.1), ["b.x"]) is None


def test_a_few_texts_or_pairs_prove_nothing(calibrated: Calibrated) -> None:
    few = proof_module._separation(calibrated.vector, {3: share_of(19, 19)})
    assert few == ["only 19 held-out texts: at least 20 are needed to prove anything"]
    assert proof_module._separation(calibrated.vector, {3: share_of(20, 20)}) == []
    both = proof_module._separation(calibrated.vector, {3: share_of(9, 18)})
    assert [reason[:7] for reason in both] == ["only 18", "layer 3"]

    def arm(count: int, margin: float) -> dict[str, Outcome]:
        return {PAIRS: Outcome((margin > 0,) * count, margin, (margin,) * count)}

    for count, expected in ((1, 1), (9, 1), (10, 0)):
        reasons = proof_module._effect("pairs", arm(count, -1.0), arm(count, 1.0), [arm(count, -0.9)], [PAIRS])
        assert len(reasons) == expected, reasons
        assert all(reason.startswith(f"only {count} held-out pairs") for reason in reasons)


def test_too_much_breaks_sides_and_abilities(bench: Workbench, calibrated: Calibrated) -> None:
    proof = prove(
        bench.model,
        bench.tokenizer,
        "listening",
        calibrated.vector,
        bench.general,
        bench.probes,
        scale=2.0,
        separation=bench.separation,
        count=0,
    )
    said = " ".join(proof.reasons)
    assert "listening.push_back falls from 100% to " in said
    assert "general ability falls by" in said
    assert "does not hold together" in said
    assert "not compared with random directions" in said


def test_without_probes_the_pairs_are_the_measure(bench: Workbench, calibrated: Calibrated) -> None:
    proof = prove(
        bench.model,
        bench.tokenizer,
        "listening",
        calibrated.vector,
        bench.general,
        scale=SCALE,
        separation=bench.separation,
        held_out=bench.pairs[:16],
        pairs=bench.pairs[16:],
        count=2,
    )
    assert proof.measured == "pairs"
    assert [effect.probe for effect in proof.effects] == [PAIRS]
    effect = proof.effects[0]
    assert effect.base.n == 16
    assert effect.margins["steered"] > effect.margins["placebo"]
    assert proof.prompt == "2 earlier turns that show the behavior"
    assert proof.proven, proof.reasons


def test_without_replies_nothing_is_shown(bench: Workbench, calibrated: Calibrated) -> None:
    bare = [Pair(Passage("one text"), Passage("another"))]
    proof = prove(
        bench.model,
        bench.tokenizer,
        "listening",
        calibrated.vector,
        bench.general,
        separation={},
        held_out=bare,
        count=1,
    )
    assert proof.measured == "nothing"
    assert proof.effects == ()
    assert any("nothing shows what the vector does" in reason for reason in proof.reasons)
    assert any("nothing was held out" in reason for reason in proof.reasons)
    assert proof.side_effects is not None


def test_what_the_base_does_already_cannot_be_proven(bench: Workbench, calibrated: Calibrated) -> None:
    done = [replace(probe, name="polite.asks") for probe in bench.probes if probe.side == "push_back"]
    done = [Probe(probe.name, None, probe.rows) for probe in done]
    proof = prove(
        bench.model,
        bench.tokenizer,
        "polite",
        calibrated.vector,
        bench.general,
        done,
        scale=SCALE,
        separation=bench.separation,
        count=1,
    )
    assert any("there is nothing to gain" in reason for reason in proof.reasons)


def test_a_vector_that_gives_nan_is_refused_in_words(bench: Workbench, calibrated: Calibrated) -> None:
    endless = replace(calibrated.vector, tensors={3: torch.full((96,), 3e38)})
    proof = prove(
        bench.model,
        bench.tokenizer,
        "listening",
        endless,
        bench.general,
        bench.probes,
        scale=5.0,
        separation=bench.separation,
    )
    assert not proof.proven
    assert "NaN" in proof.reasons[0]
    assert proof.side_effects is not None
    assert proof.side_effects.perplexity_after is None


def test_the_curve_shows_the_effect_and_where_text_breaks(bench: Workbench, calibrated: Calibrated) -> None:
    assert calibrated.calibration.texts == len(bench.general.texts)
    assert calibrated.calibration.kl_95 == pytest.approx(1.0, rel=0.021)
    assert calibrated.vector.joint == 1.0
    low, middle, high = calibrated.calibration.curve
    assert middle.probes["listening.accept"] > 0.8
    assert middle.coherent
    assert low.coherent
    assert not high.coherent
    assert high.repetition > low.repetition + 0.2
    assert low.kl_95 is not None
    assert middle.kl_95 is not None
    assert high.kl_95 is not None
    assert low.kl_95 < middle.kl_95 < 1 < high.kl_95
    assert low.perplexity is not None
    assert high.perplexity is not None
    assert high.perplexity > 2 * low.perplexity
    assert calibrated.calibration.coherent_to == 0.6
