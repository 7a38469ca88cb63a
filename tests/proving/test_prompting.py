from __future__ import annotations

from personality.evaluation.suite import Probe, Row, Turn
from personality.proving.prompting import prompting_for
from personality.vectors.extraction.passages import Pair, Passage
from personality.vectors.training.examples import Message


def row(text: str, system: str = "") -> Row:
    turns = [Turn(role="system", content=system)] if system else []
    return Row(prompt=(*turns, Turn(role="user", content=text)), passes="x")


def triplet(number: int) -> Pair:
    prompt = (Message("user", f"ask {number}"),)
    return Pair(
        Passage(prompt, (Message("assistant", f"yes {number}"),)), Passage(prompt, (Message("assistant", "no"),))
    )


PROBE = Probe("kind.says", "accept", (row("a"), row("b", "You are Pip."), row("c")), ("Yes",), ("No",))


def test_given_system_prompts_are_dealt_out_in_turn() -> None:
    prompting = prompting_for([triplet(1), triplet(2)], ["Be kind.", "Be good."], "Kind.")
    assert prompting is not None
    asked = prompting.asked(PROBE)
    assert [turn.content for turn in asked.rows[0].prompt] == ["Be kind.", "a"]
    # A row's own system turn stays, and there is only one.
    assert [(turn.role, turn.content) for turn in asked.rows[1].prompt] == [
        ("system", "You are Pip.\n\nBe good."),
        ("user", "b"),
    ]
    assert asked.rows[2].prompt[0].content == "Be kind."
    assert (asked.name, asked.side, asked.yes, asked.no) == (PROBE.name, PROBE.side, PROBE.yes, PROBE.no)
    assert "Be kind." in prompting.text
    assert "1 more" in prompting.text


def test_without_system_prompts_pairs_are_shown() -> None:
    prompting = prompting_for([triplet(number) for number in range(5)], description="Kind.")
    assert prompting is not None
    first = prompting.asked(PROBE).rows[0].prompt
    assert [turn.role for turn in first] == ["user", "assistant", "user", "assistant", "user"]
    assert all(turn.content.startswith("yes ") for turn in first if turn.role == "assistant")
    second = prompting.asked(PROBE).rows[1].prompt
    assert second[0].content == "You are Pip."
    assert second[-1].content == "b"
    # The same pairs are shown every time.
    assert prompting_for([triplet(number) for number in range(5)]) == prompting


def test_the_description_is_the_last_resort() -> None:
    plain = Pair(Passage("good text"), Passage("bad text"))
    prompting = prompting_for([plain, plain], description="Kind to all.")
    assert prompting is not None
    assert prompting.asked(PROBE).rows[0].prompt[0].content == "Kind to all."
    assert prompting_for([plain, plain]) is None
