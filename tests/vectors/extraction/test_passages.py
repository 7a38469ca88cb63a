from __future__ import annotations

import pytest

from personality.manifests.errors import DataError
from personality.vectors.extraction.passages import Pair, Passage, digest_pairs, on_side, passage_of
from personality.vectors.training.examples import Message

ASKED = (Message("user", "Rename a."),)
YES = (Message("assistant", "Okay."),)


def pair(text: str, side: object = None, where: str = "") -> Pair:
    return Pair(Passage(f"{text} +"), Passage(f"{text} -"), side=side, where=where)  # type: ignore[arg-type]


def test_a_chat_is_split_before_its_reply() -> None:
    assert passage_of(ASKED + YES, "x") == Passage(ASKED, YES)
    assert passage_of(ASKED + YES + ASKED, "x") == Passage(ASKED + YES + ASKED)
    assert passage_of("plain", "x") == Passage("plain")


def test_chats_without_a_question_or_with_an_empty_reply_are_refused() -> None:
    with pytest.raises(DataError, match="x begins with the assistant"):
        passage_of(YES, "x")
    with pytest.raises(DataError, match="x ends with an empty reply"):
        passage_of((*ASKED, Message("assistant", " \n")), "x")


def test_the_accepting_side_is_taken_by_default() -> None:
    pairs = [pair("a", "accept"), pair("b", "push_back"), pair("c")]
    assert on_side(pairs) == [pairs[0], pairs[2]]
    assert on_side(pairs, "push_back") == [pairs[1], pairs[2]]
    assert on_side(pairs, "both") == pairs
    with pytest.raises(DataError, match="none of the 1 pairs is on the side `accept`") as caught:
        on_side([pairs[1]])
    assert "--side both" in caught.value.hint


def test_the_digest_is_of_content_and_order() -> None:
    a, b = pair("a", where="one:1"), pair("b")
    assert digest_pairs([a, b]) == digest_pairs([pair("a", where="two:7"), b])
    others = ([b, a], [a], [pair("a", "accept"), b], [Pair(a.negative, a.positive), b])
    assert len({digest_pairs(pairs) for pairs in ([a, b], *others)}) == 5
    chat = Pair(Passage(ASKED, YES), Passage(ASKED, ASKED))
    assert chat.to_record() == {
        "positive": {
            "prompt": [{"role": "user", "content": "Rename a."}],
            "response": [{"role": "assistant", "content": "Okay."}],
        },
        "negative": {
            "prompt": [{"role": "user", "content": "Rename a."}],
            "response": [{"role": "user", "content": "Rename a."}],
        },
    }
    assert chat.same_prompt
    assert not a.same_prompt
