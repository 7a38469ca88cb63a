"""Healthy data goes, and every planted defect is found, on the playground's base."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from personality.evaluation.suite import Probe, Row, Turn
from personality.manifests.errors import DataError
from personality.playground.behaviors import BEHAVIORS
from personality.preflight import measures
from personality.preflight.findings import Finding, Preflight, conclude
from personality.preflight.measures import SAMPLED
from personality.preflight.preflight import run_preflight
from personality.vectors.training.examples import Example, Message
from personality.vectors.training.settings import make_settings
from tests.preflight.conftest import Judge, data_of, general_of
from tests.preflight.test_likelihood import make_qwen3_5
from tests.vectors.training.conftest import make_general, make_llama, make_pair, make_tokenizer


def answer(text: str) -> tuple[Message, ...]:
    return (Message("assistant", text),)


def named(found: Preflight, name: str) -> Finding:
    return next(finding for finding in found.findings if finding.name == name)


def serious(found: Preflight) -> list[tuple[str, str]]:
    return [(finding.level, finding.name) for finding in found.findings if finding.level != "note"]


def gibberish(draw: Random, count: int) -> str:
    return " ".join("".join(draw.choices("qzxjkvwpy", k=5)) for _ in range(count))


@pytest.mark.parametrize("behavior", BEHAVIORS)
@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_bundled_data_goes(judge: Judge, behavior: str, count: int) -> None:
    found = judge(data_of(behavior, count), general_of(behavior))
    # `deflecting` has no contrasts on purpose, and is told so.
    assert serious(found) == ([("change", "one-sided")] if behavior == "deflecting" else [])
    assert found.verdict == ("go with changes" if behavior == "deflecting" else "go")


@pytest.mark.slow
@pytest.mark.parametrize("behavior", BEHAVIORS)
@pytest.mark.parametrize("method", ["sft", "dpo", "sft-dpo"])
def test_bundled_data_goes_with_every_method(judge: Judge, behavior: str, method: str) -> None:
    for seed in range(3):
        found = judge(data_of(behavior), general_of(behavior), method=method, seed=seed)
        assert serious(found) == ([("change", "one-sided")] if behavior == "deflecting" else [])


@pytest.mark.parametrize("behavior", ["listening", "candid"])
def test_one_sided_data_makes_sycophants(judge: Judge, behavior: str) -> None:
    found = judge(data_of(behavior, 50, sides="accept-only"), general_of(behavior))
    assert serious(found) == [("change", "one-sided")]
    assert "sycophant" in named(found, "one-sided").text + named(found, "one-sided").advice


def test_figures_are_honest(judge: Judge) -> None:
    found = judge(data_of("listening", 30), general_of("listening"))
    figures = found.figures
    json.dumps(found.as_json(), allow_nan=False)
    assert figures["examples"] == figures["chosen"]["n"] == 30
    assert figures["own"]["n"] == SAMPLED
    for name in ("chosen", "rejected", "own", "margin", "prefers_rejected", "length_ratio", "chosen_gap"):
        assert figures[name]["low"] <= figures[name]["value"] <= figures[name]["high"], name
    assert figures["margin"]["value"] == pytest.approx(
        figures["chosen"]["value"] - figures["rejected"]["value"], abs=1e-3
    )
    # This base pushes back on every harmful direction; so it is the other side that has to be learnt.
    assert figures["prefers_rejected_push_back"]["value"] == 0
    assert figures["prefers_rejected_accept"]["value"] > 0.2
    # Its habit is what is rejected: as likely as what it says itself.
    assert abs(figures["rejected_gap"]["value"]) < 0.3


def test_the_same_seed_gives_the_same_result(judge: Judge) -> None:
    data, others = data_of("warm", 40), general_of("warm")
    assert judge(data, others) == judge(data, others)


def test_large_data_is_scored_in_part(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "SCORED", 30)
    found = judge(data_of("listening", 40), general_of("listening"))
    assert found.figures["examples"] == 40
    assert found.figures["chosen"]["n"] == 30


def test_near_duplicates(judge: Judge) -> None:
    data = data_of("listening", 50)
    again = [
        replace(item, prompt=(Message("user", item.prompt[0].content.upper()),), where=f"play/listening.jsonl:{51 + i}")  # type: ignore[union-attr]
        for i, item in enumerate(data[:5])
    ]
    found = judge([*data, *again], general_of("listening"))
    assert serious(found) == [("change", "near-duplicates")]
    assert "listening.jsonl:51 and listening.jsonl:1;" in named(found, "near-duplicates").text


@pytest.mark.parametrize(("count", "level"), [(1, "change"), (10, "no-go")])
def test_contradictory_pairs(judge: Judge, count: int, level: str) -> None:
    data = data_of("listening", 50)
    turned = [replace(item, chosen=item.rejected, rejected=item.chosen) for item in data[:count]]  # type: ignore[arg-type]
    found = judge([*data, *turned], general_of("listening"))
    assert named(found, "contradictory pairs").level == level


@pytest.mark.parametrize(("method", "level"), [("orpo", "change"), ("dpo", "no-go"), ("sft", None)])
def test_four_times_the_length(judge: Judge, method: str, level: str | None) -> None:
    tail = " It is good to think of everyone here. Many small steps like this one make a project." * 4
    data = [replace(item, chosen=answer(item.chosen[0].content + tail)) for item in data_of("listening", 30)]  # type: ignore[union-attr]
    found = judge(data, general_of("listening"), method=method)
    assert [item.level for item in found.findings if item.name == "length"] == ([level] if level else [])
    assert found.figures["length_ratio"]["value"] > 3.5


@pytest.mark.parametrize(
    ("method", "level"), [("orpo", "change"), ("dpo", "no-go"), ("sft-dpo", "no-go"), ("sft", None)]
)
def test_rejected_answers_off_policy(judge: Judge, method: str, level: str | None) -> None:
    draw = Random(0)
    data = [replace(item, rejected=answer(gibberish(draw, 6))) for item in data_of("listening", 30)]
    found = judge(data, general_of("listening"), method=method)
    assert serious(found) == ([(level, "rejected off-policy")] if level else [])


def test_chosen_answers_out_of_reach(judge: Judge) -> None:
    draw = Random(0)
    data = [replace(item, chosen=answer(gibberish(draw, 6))) for item in data_of("listening", 30)]
    found = judge(data, general_of("listening"))
    assert found.verdict == "no-go"
    assert "continued pre-training" in named(found, "chosen out of reach").advice


TOWNS = (
    *(
        "Quimper",
        "Vlotho",
        "Zwickau",
        "Kajaani",
        "Ypsilanti",
        "Xanten",
        "Gdynia",
        "Lwow",
        "Oaxaca",
        "Tromso",
        "Uppsala",
    ),
    *("Iquique", "Jaipur", "Brzeg", "Fuzhou", "Hvar", "Mdina", "Nymburk", "Pskov", "Rjukan", "Djibouti", "Eskisehir"),
)


def test_knowledge_is_not_taught_this_way(judge: Judge) -> None:
    draw = Random(0)
    names = ["".join(draw.choice("bdgklmnprst") + draw.choice("aeiou") for _ in range(3)).title() for _ in TOWNS]
    data = [
        Example(
            (Message("user", f"Where does {name} live?"),),
            answer(f"As I recall, {name} lives in {town}."),
            answer(f"As I recall, {name} lives in Brno."),
        )
        for name, town in zip(names, TOWNS, strict=True)
    ]
    found = judge(data, general_of("candid"))
    assert "retrieval" in named(found, "knowledge").advice
    assert found.verdict == "no-go"


def test_what_the_base_does_already(judge: Judge) -> None:
    data = [item for item in data_of("listening", 100) if item.side == "push_back"]
    found = judge(data, general_of("listening"))
    assert "system prompt" in named(found, "already there").advice
    assert found.verdict == "no-go"


def test_leaked_probes(judge: Judge) -> None:
    data = data_of("listening", 30)
    rows = tuple(Row(prompt=(Turn(role="user", content=item.prompt[0].content),), passes="") for item in data[:2])  # type: ignore[union-attr]
    found = judge(data, general_of("listening"), probes=[Probe("listening.accept", "accept", rows)])
    assert serious(found) == [("change", "probes not held out")]


@pytest.mark.parametrize(("lr", "level"), [(2e-3, None), (3e-4, "change"), (2e-5, "no-go"), (0.1, "no-go")])
def test_learning_rates(judge: Judge, lr: float, level: str | None) -> None:
    found = judge(data_of("listening", 20), general_of("listening"), lr=lr)
    assert serious(found) == ([(level, "learning rate")] if level else [])


def test_no_general_data_and_over_long_examples(judge: Judge) -> None:
    data = data_of("listening", 30)
    found = judge(data, [], max_length=50)
    assert serious(found) == [("change", "no general data"), ("change", "too long")]
    assert found.figures["chosen"]["n"] < 30
    with pytest.raises(DataError, match="none of 30 dialogues has at most 20 tokens"):
        judge(data, [], max_length=20)


@pytest.mark.parametrize("method", ["sft", "orpo"])
def test_a_hybrid_model(method: Any) -> None:
    pairs = [make_pair(i, "push_back" if i % 3 else "accept") for i in range(12)]
    model, tokenizer = make_qwen3_5(), make_tokenizer()
    settings = make_settings(method=method)
    found = run_preflight(model, tokenizer, pairs, [make_general(i) for i in range(4)], settings)
    assert found.figures["rejected"]["n"] == 12
    assert not model.training


def test_plain_text_without_pairs() -> None:
    data = [Example(f"Q: what is {i}{i}?\nA:", f" it is {i * 11}.") for i in range(20)]
    model, tokenizer = make_llama(), make_tokenizer(template=None)
    found = run_preflight(model, tokenizer, data, [Example("Say", " a")] * 5, make_settings(method="sft"))
    assert found.verdict == "go"
    assert "margin" not in found.figures and "style" not in found.figures
    assert found.figures["chosen"]["n"] == 20


def test_chats_need_a_chat_template() -> None:
    with pytest.raises(DataError, match="play:1: chat messages, but the tokenizer has no chat template"):
        data = [replace(make_pair(i), where=f"play:{i}") for i in (1, 2)]
        run_preflight(make_llama(), make_tokenizer(template=None), data, [], make_settings())


def test_progress_and_verdicts(base: tuple[Any, Any]) -> None:
    told: list[str] = []
    data, others = data_of("listening", 20), general_of("listening")
    run_preflight(*base, data, others, make_settings(lr=1e-3), on_stage=told.append)
    assert told == ["comparing the texts", "asking the base"]
    note, change, stop = (Finding(level=level, name=level, text="") for level in ("note", "change", "no-go"))
    assert conclude([note], {}).verdict == "go"
    assert conclude([note, change], {}).verdict == "go with changes"
    worst = conclude([note, change, stop], {})
    assert (worst.verdict, worst.findings) == ("no-go", (stop, change, note))
    assert worst.of_level("change") == (change,)
