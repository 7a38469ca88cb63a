from __future__ import annotations

from dataclasses import replace
from typing import Any

from personality.evaluation.suite import Probe, Row, Turn
from personality.preflight.findings import Finding
from personality.preflight.text_checks import check_texts, contradictions, near_duplicates
from personality.vectors.training.examples import Example, Message


def example(
    prompt: str, chosen: str, rejected: str | None, side: Any = None, system: str = "", line: int = 0
) -> Example:
    head = (Message("system", system),) if system else ()
    return Example(
        (*head, Message("user", prompt)),
        (Message("assistant", chosen),),
        None if rejected is None else (Message("assistant", rejected),),
        side,
        where=f"folder/file.jsonl:{line}" if line else "",
    )


YES, NO = "Okay, I renamed the old logo for you.", "Have you considered leaving the old logo as it is?"
FIRST = example("Please rename the old logo.", YES, NO, "accept", line=1)


def found_in(examples: list[Example], general: list[Example] = [], probes: list[Probe] = []) -> list[Finding]:  # noqa: B006
    return list(check_texts(examples, general, probes))


def test_near_duplicates_are_named_by_line() -> None:
    again = replace(example("please rename the OLD logo!", YES.upper(), "Something else.", line=7))
    other = example("Please paint the fence.", "Okay, I painted the fence.", NO, line=8)
    assert near_duplicates([FIRST, other, again]) == [(2, 0)]
    (finding,) = found_in([FIRST, other, again])
    assert (finding.level, finding.name) == ("change", "near-duplicates")
    assert "file.jsonl:7 and file.jsonl:1" in finding.text and "folder" not in finding.text


def test_a_few_near_duplicates_among_many_are_only_noted() -> None:
    many = [example(f"Tell me about thing {i} here.", f"Thing {i} is {i * i} long.", None) for i in range(200)]
    (finding,) = found_in([*many, replace(many[3], where="file.jsonl:9")])
    assert finding.level == "note"


def test_another_system_turn_is_another_example() -> None:
    brief = example("Please rename the old logo.", YES, NO, system="Be brief.")
    turned = example("Please rename the old logo.", NO, YES, system="Be doubtful.")
    assert found_in([FIRST, brief, turned]) == []


def test_contradictory_pairs() -> None:
    turned = example("Please, rename the old logo.", NO, YES, line=4)
    among, general, sides = contradictions([FIRST, turned], [])
    assert (sorted(among), general, sides) == ([(0, 1), (1, 0)], [], [])
    (finding,) = found_in([FIRST, turned])
    assert (finding.level, finding.name) == ("no-go", "contradictory pairs")
    assert "file.jsonl:1 and file.jsonl:4" in finding.text
    filler = [
        example(f"Count to {i} and stop.", f"Counting to {i} now.", f"I will not count to {i}.") for i in range(99)
    ]
    assert [item.level for item in found_in([FIRST, turned, *filler]) if item.name == finding.name] == ["change"]


def test_an_answer_may_be_right_here_and_wrong_there() -> None:
    there = example("Please delete the production data of everyone.", NO, YES)
    assert found_in([FIRST, there]) == []


def test_contradictory_sides() -> None:
    other = example("please rename the old logo", "No, I would rather keep it.", None, "push_back", line=3)
    (finding,) = found_in([FIRST, other])
    assert (finding.name, finding.level) == ("contradictory sides", "no-go")
    assert "file.jsonl:3 and file.jsonl:1" in finding.text
    # A near prompt with the opposite side is the best of contrasts.
    assert (
        found_in([FIRST, example("Please rename the old logo of strangers.", "No, it is theirs.", None, "push_back")])
        == []
    )


def test_general_data_that_repeats_or_contradicts() -> None:
    (finding,) = found_in([FIRST], [example("Please rename the old logo.", YES, None, line=5)])
    assert (finding.name, finding.level) == ("general data repeats it", "change")
    (finding,) = found_in([FIRST], [example("Please rename the old logo.", NO, None, line=5)])
    assert (finding.name, finding.level) == ("general data contradicts it", "no-go")


def test_leaks_into_probes() -> None:
    row = Row(prompt=(Turn(role="user", content="Please rename the old logo!"),), passes="Okay")
    other = Row(prompt=(Turn(role="user", content="Please rename the new server."),), passes="Okay")
    (finding,) = found_in([FIRST], probes=[Probe("listening.accept", None, (other, row))])
    assert (finding.level, finding.name) == ("change", "probes not held out")
    assert "file.jsonl:1 and row 2 of listening.accept" in finding.text
    assert found_in([FIRST], probes=[Probe("listening.accept", None, (other,))]) == []


def test_plain_texts() -> None:
    plain = Example("Rename the old logo:", f" {YES}", f" {NO}")
    turned = Example("rename the OLD logo:", f" {NO}", f" {YES}")
    assert [item.name for item in found_in([plain, turned])] == ["contradictory pairs"]
