from __future__ import annotations

from pathlib import Path

import pytest

from personality.evaluation.gate import Check, Gate, Measures, check_gate, needed_probes, read_gate
from personality.evaluation.intervals import mean, share
from personality.evaluation.probe import Probe
from personality.manifests.errors import NotFoundError, PersonaError, UsageError
from personality.manifests.evaluation import Figure, HealthResult, ProbeResult

SUITE = [
    Probe("listening.accept", "accept", ()),
    Probe("listening.push_back", "push_back", ()),
    Probe("general.sums", None, ()),
]


def health(kl: float) -> HealthResult:
    figure = Figure(value=0, low=0, high=0, n=2)
    rows = dict.fromkeys(("nll", "repetition", "distinct_1", "distinct_2", "ended"), (0.0, 0.0))
    kls = (kl - 0.01, kl + 0.01)
    return HealthResult(
        digest="d",
        nll=figure,
        kl=mean(kls),
        kl_95=figure,
        repetition=figure,
        distinct_1=figure,
        distinct_2=figure,
        ended=figure,
        rows={**rows, "kl": kls},
    )


def measures(accept: int, push_back: int, sums: int, kl: float | None = None) -> Measures:
    results = []
    for probe, passed in zip(SUITE, (accept, push_back, sums), strict=True):
        outcomes = tuple(i < passed for i in range(50))
        likely = tuple(0.01 + 0.98 * outcome for outcome in outcomes) if probe.side else ()
        results.append(
            ProbeResult(
                probe=probe.name,
                passed=share(outcomes),
                outcomes=outcomes,
                probability=mean(likely) if likely else None,
                probabilities=likely,
            )
        )
    return Measures(results, health(kl) if kl is not None else None)


def check(text: str, tmp_path: Path, before: Measures | None = None, after: Measures | None = None) -> list[Check]:
    path = tmp_path / "gate.toml"
    path.write_text(f"[[require]]\n{text}\n")
    before = before or measures(0, 50, 50, 0.0)
    return check_gate(read_gate(path), SUITE, before, after or measures(45, 40, 49, 0.1))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('goal = "general"\nat_least = 0.98', True),
        ('goal = "general"\nat_least = 0.98\nsure = true', False),
        ('goal = "general"\nat_least = 0.85\nsure = true', True),
        ('goal = "general"\nchange_at_least = -0.02', True),
        ('goal = "general"\nchange_at_least = -0.01', False),
        ('goal = "listening"\nat_least = 0.9', True),
        ('goal = "listening"\nat_least = 0.9\nby = "probability"', False),
        ('goal = "listening"\nat_least = 0.89\nby = "probability"', True),
        ('goal = "listening"\nchange_at_least = 0.5\nsure = true', True),
        ('goal = "listening"\nchange_at_least = 0.88\nby = "probability"', True),
        ('goal = "push_back"\nat_least = 0.9', False),
        ('goal = "listening.push_back"\nat_most = 0.8', True),
        ('goal = "listening.sycophancy"\nat_most = 0.1', False),
        ('goal = "listening.sycophancy"\nat_most = 0.21\nby = "probability"', True),
        ('goal = "listening.discrimination"\nat_least = 0.7', True),
        ('goal = "listening.discrimination"\nchange_at_least = 0.71', False),
        ('goal = "health.kl"\nat_most = 0.1', True),
        ('goal = "health.kl"\nat_most = 0.1\nsure = true', False),
        ('goal = "health.kl"\nchange_at_most = 0.05', False),
    ],
)
def test_bounds(text: str, kept: bool, tmp_path: Path) -> None:
    (found,) = check(text, tmp_path)
    assert found.kept is kept, str(found)
    assert f"n = {found.figure.n}" in str(found)


def test_only_what_a_gate_rests_on_is_measured() -> None:
    def needed(*goals: str) -> list[str]:
        gate = Gate.model_validate({"require": [{"goal": goal, "at_least": 0} for goal in goals]})
        return [probe.name for probe in needed_probes(gate, SUITE)]

    assert needed("general") == ["general.sums"]
    assert needed("listening.sycophancy") == ["listening.accept", "listening.push_back"]
    assert needed("general", "push_back") == ["listening.push_back", "general.sums"]
    assert needed("health.kl") == []
    with pytest.raises(UsageError, match="`listning`"):
        needed("listning")


def test_two_bounds_on_one_goal(tmp_path: Path) -> None:
    found = check('goal = "general"\nat_least = 0.9\nat_most = 0.95', tmp_path)
    assert [(item.bound, item.kept) for item in found] == [("at_least", True), ("at_most", False)]
    assert "general: at_most 0.95, measured 0.98 [" in str(found[1])


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ('goal = "listning"\nat_least = 1', "nothing to measure called `listning`", "did you mean `listening`"),
        ('goal = "general.sycophancy"\nat_most = 1', "`general` has not both sides", 'side = "push_back"'),
        ('goal = "health.mood"\nat_most = 1', "nothing to measure called `health.mood`", "health.kl_95"),
        ('goal = "health.kl_95"\nchange_at_most = 1', "the change of `health.kl_95` is not measured", "kl"),
    ],
)
def test_what_the_suite_does_not_measure(text: str, words: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        check(text, tmp_path)
    assert hint in caught.value.hint
    with pytest.raises(UsageError, match="health was not measured"):
        check('goal = "health.kl"\nat_most = 1', tmp_path, after=measures(1, 1, 1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('goal = "general"', "no bound: give one of `at_least`"),
        ('goal = "general"\nat_lest = 1', "at_lest: Extra inputs"),
        ("at_least = 1", "goal: Field required"),
        ("goal = [", "not valid TOML"),
        ('goal = "general"\nat_least = nan', "finite"),
    ],
)
def test_a_gate_that_cannot_be_read(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(PersonaError) as caught:
        check(text, tmp_path)
    assert words in caught.value.message
    assert "gate.toml" in caught.value.message


def test_no_gate_at_all(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="cannot read the gate"):
        read_gate(tmp_path / "none.toml")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(PersonaError, match="require: Field required"):
        read_gate(tmp_path / "empty.toml")
    assert Gate.model_validate({"require": [{"goal": "general", "at_least": 1}]}).require[0].bounds() == {"at_least": 1}
