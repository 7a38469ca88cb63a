"""What is warned of, and that what is advised is better by the same figures."""

from __future__ import annotations

from dataclasses import replace

from personality.composition.steering_diff import Interference
from personality.forecast.advice import KEPT, STRAINED, advise, cautions
from personality.forecast.figures import Pair, PairFigures, UseFigures
from personality.forecast.forecast import Forecast
from personality.forecast.steering_against import SteeringAgainst
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.personality_record import Composition, Personality, Use

BASE = BaseIdentity(source="base", fingerprint="0" * 64)


def forecast(strain: float, *kept: float, composition: Composition | None = None, scale: float = 1.0) -> Forecast:
    names = ["aged", "brisk", "calm"][: len(kept)]
    uses = tuple(Use(behavior=name, number=1, vector="0" * 64, scale=scale) for name in names)
    figures = tuple(UseFigures(use.label, scale, 0.2, 0.7, k, k * scale) for use, k in zip(uses, kept, strict=True))
    personality = Personality(base=BASE, composition=composition or Composition(), uses=uses)
    return Forecast(personality, 0.2, strain, figures, ())


def never(personality: Personality) -> Forecast:
    raise AssertionError("nothing had to be tried")


def test_nothing_to_warn_of() -> None:
    found = forecast(STRAINED - 0.01, KEPT, 1.2)
    assert cautions(found) == [] and advise(found, never) is None


def test_every_kind_of_warning_has_its_figures() -> None:
    pair = PairFigures(cosine=-0.2, overlap=0.3, opposed=0.7, lost=0.2)
    found = replace(
        forecast(1.9, 0.5, 0.9),
        pairs=(Pair("aged@1", "brisk@1", pair, {0: pair, 1: replace(pair, cosine=0.0), 2: pair, 3: pair}),),
        directions=(Interference("cool@1", "warm@1", 4, -0.5), Interference("cool@1", "warm@1", 5, -0.1)),
        against=(
            SteeringAgainst("warm@1", "aged@1", 4, "add", -0.4, -0.2, 0.25),
            SteeringAgainst("warm@1", "aged@1", 5, "add", -0.4, -0.2, 0.5),
            SteeringAgainst("warm@1", "aged@1", 6, "add", 0.4, 0.2, 0.25),
            SteeringAgainst("cool@1", "aged@1", 6, "project", 0.4, 0.2, 0.25),
        ),
    )
    texts = [item.text for item in cautions(found)]
    assert [item.kind for item in cautions(found)] == ["strain", "lost", "opposed", *["steering"] * 3]
    assert "1.90× the longest vector" in texts[0]
    assert "50% of `aged@1`" in texts[1] and "acts as at 0.5" in texts[1]
    assert "`aged@1` and `brisk@1` oppose each other in layers 0, 2-3 (cosine -0.20" in texts[2]
    assert "layer 4 (cosine -0.50)" in texts[3]
    assert "`warm@1` pushes against" in texts[4] and "layer 4" in texts[4]
    assert "`cool@1` takes out" in texts[5]


def test_two_doses_of_one_thing_are_told() -> None:
    pair = PairFigures(cosine=0.75, overlap=0.4, opposed=0.01, lost=0.01)
    found = replace(forecast(1.0, 1.8, 1.6), pairs=(Pair("aged@1", "brisk@1", pair, {}),))
    (told,) = cautions(found)
    assert told.kind == "aligned"
    assert "(cosine +0.75): `aged@1` acts as at 1.8, `brisk@1` acts as at 1.6" in told.text
    assert cautions(replace(found, pairs=(Pair("aged@1", "brisk@1", replace(pair, cosine=0.49), {}),))) == []


def test_the_worst_hit_acts_at_the_least_scale_whatever_its_sign() -> None:
    found = forecast(1.0, 0.9, 0.7)
    assert found.worst is not None and found.worst.label == "brisk@1"
    uses = (replace(found.uses[0], scale=-0.5, effective=-0.45), found.uses[1])
    worst = replace(found, uses=uses).worst
    assert worst is not None and worst.label == "aged@1"
    assert forecast(1.0, 0.9).worst is None


def test_another_method_is_advised_where_it_mends_everything() -> None:
    tried = []

    def other(personality: Personality) -> Forecast:
        tried.append(personality.composition)
        good = personality.composition.method == "ties" and personality.composition.density == 0.1
        return forecast(1.1 if good else 1.6, 0.8, 0.9, composition=personality.composition)

    now = Composition(method="ties", density=0.4, normalize="mean")
    advice = advise(forecast(0.9, 0.4, 0.9, composition=now), other)
    assert advice is not None and advice.personality.composition == Composition(method="ties", density=0.1)
    assert tried[0] == Composition(method="ties", density=0.4)  # the least change first
    assert advice.text.startswith("`persona method ties --density 0.1 --normalize sum --lambda 1`: ")
    assert "1.10×" in advice.text and "80%" in advice.text


def test_lower_scales_are_advised_where_no_method_mends_the_strain() -> None:
    def other(personality: Personality) -> Forecast:
        return forecast(2.5, 0.5, 0.9, composition=personality.composition)

    advice = advise(forecast(2.0, 0.9, 1.0, scale=1.2), other)
    assert advice is not None and advice.text.startswith("scales × 0.65: the sum would be 1.30×")
    assert [use.scale for use in advice.personality.uses] == [0.78, 0.78]
    assert advice.personality.composition == Composition()


def test_no_advice_where_nothing_helps() -> None:
    assert advise(forecast(1.0, 0.2, 0.3), lambda other: forecast(1.0, 0.2, 0.3, composition=other.composition)) is None
