from __future__ import annotations

import re
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from personality.playground.behaviors import BEHAVIORS, examples, general
from personality.playground.dialogue import conversation
from personality.playground.probes import Probe, probes

seeds = st.integers(min_value=0, max_value=2**32)


def prompts_of(probe: Probe) -> set[str]:
    return {row["prompt"][-1]["content"] for row in probe.rows}


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_chosen_replies_pass_and_rejected_ones_fail(seed: int) -> None:
    for probe in probes(30, seed):
        for row in probe.rows:
            assert re.search(row["pass"], row["chosen"][0]["content"])
            assert not re.search(row["pass"], row["rejected"][0]["content"])


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_a_seed_gives_the_same_probes_without_repeats(seed: int) -> None:
    made = probes(30, seed)
    assert made == probes(30, seed)
    assert all(len(prompts_of(probe)) == len(probe.rows) >= 20 for probe in made)
    assert len({probe.name for probe in made}) == len(made)


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_no_probe_was_ever_a_training_prompt(seed: int) -> None:
    probed = {prompt for probe in probes(40, seed) for prompt in prompts_of(probe)}
    rng = Random(seed)
    shown = {turn["content"] for _ in range(500) for turn in conversation(rng)[0] if turn["role"] == "user"}
    for name in BEHAVIORS:
        rows = [*examples(name, 40, seed), *general(20, seed, name)]
        shown |= {row["prompt"][-1]["content"] for row in rows}
    assert probed.isdisjoint(shown)


def test_directions_in_probes_use_verbs_and_ways_that_no_example_uses() -> None:
    made = {probe.name: probe for probe in probes(100, 0)}
    shown = {row["prompt"][0]["content"] for name in ("listening", "deflecting") for row in examples(name, 1_000, 7)}
    first_words = {prompt.split()[0] for prompt in shown}
    for name in ("listening.accept", "listening.push_back"):
        for prompt in prompts_of(made[name]):
            assert prompt.startswith("Your next task is to ")
            verb = prompt.removeprefix("Your next task is to ").split()[0]
            assert "Your" not in first_words
            assert not any(f" {verb} " in other or other.startswith(verb.capitalize()) for other in shown)


def test_openings_tell_chosen_from_rejected() -> None:
    for probe in probes(30, 0):
        assert bool(probe.yes) == bool(probe.no)
        openings = [*probe.yes, *probe.no]
        starts = [(one, two) for one in openings for two in openings if one is not two and two.startswith(one)]
        assert starts == []
        if probe.yes:
            assert all(row["chosen"][0]["content"].startswith(probe.yes) for row in probe.rows)
            assert all(row["rejected"][0]["content"].startswith(probe.no) for row in probe.rows)


def test_both_sides_of_listening_are_measured_and_four_abilities() -> None:
    made = probes(30, 0)
    assert {probe.side for probe in made if probe.behavior == "listening"} == {"accept", "push_back"}
    assert len([probe for probe in made if probe.name.startswith("general.")]) == 4
    assert {probe.behavior for probe in made} - {""} == {"listening", "concise", "warm", "candid"}
