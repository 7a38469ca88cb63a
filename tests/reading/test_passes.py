"""What is put through a model when a transcript is read: every turn in the text in which it was written."""

from __future__ import annotations

from typing import Any

import pytest

from personality.manifests.errors import DataError
from personality.reading.passes import Pass, Span, merged, text_pass, transcript_passes
from personality.vectors.training.examples import Message
from tests.vectors.training.conftest import make_tokenizer

CHAT = (
    Message("user", "Hi."),
    Message("assistant", "Hello."),
    Message("user", "Bye."),
    Message("assistant", "See you."),
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def text_of(tokenizer: Any, item: Pass, span: Span) -> str:
    return str(tokenizer.decode(list(item.ids[span.start : span.stop])))


def test_a_text_is_read_as_it_is_or_as_a_turn(tokenizer: Any) -> None:
    plain = text_pass(tokenizer, "abc", as_turn=False)
    assert plain.spans == (Span(0, 0, 3),) and plain.reply is None
    turn = text_pass(tokenizer, "abc", as_turn=True)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "abc"}], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(list(turn.ids)) == rendered
    with pytest.raises(DataError, match="no tokens"):
        text_pass(tokenizer, "", as_turn=False)


def test_turns_follow_each_other_without_gap_and_replies_know_where_they_were_decided(tokenizer: Any) -> None:
    passes = transcript_passes(tokenizer, CHAT)
    assert [span.turn for item in passes for span in item.spans] == [0, 1, 2, 3]
    pieces = [text_of(tokenizer, item, item.spans[0]) for item in passes]
    whole = tokenizer.apply_chat_template([{"role": m.role, "content": m.content} for m in CHAT], tokenize=False)
    assert whole.startswith("".join(pieces))
    assert "Hi." in pieces[0] and "Hello." in pieces[1] and "Bye." in pieces[2] and "See you." in pieces[3]
    replies = [item for item in passes if item.spans[0].is_reply]
    assert [item.reply for item in replies] == [item.spans[0].start for item in replies] and len(replies) == 2
    # A user's turn that is answered ends with the header of the answer, where the model is to reply.
    assert passes[0].reply is None and passes[0].ids == passes[1].ids[: len(passes[0].ids)]


def test_where_no_reply_follows_nothing_is_decided(tokenizer: Any) -> None:
    passes = transcript_passes(tokenizer, (Message("user", "One."), Message("user", "Two.")))
    assert passes[0].reply == len(passes[0].ids) + 1 and passes[1].reply is None


def test_one_pass_serves_all_turns_that_begin_alike(tokenizer: Any) -> None:
    passes = transcript_passes(tokenizer, CHAT)
    once = merged(passes)
    assert len(once) == 1 and once[0].ids == passes[-1].ids and once[0].reply is None
    assert once[0].spans == tuple(span for item in passes for span in item.spans)
    apart = [Pass((1, 2), (Span(0, 0, 2),)), Pass((1, 3, 4), (Span(1, 1, 3),), 2)]
    assert [item.ids for item in merged(apart)] == [(1, 2), (1, 3, 4)]


def test_a_turn_that_the_template_refuses_alone_is_read_with_the_next(tokenizer: Any) -> None:
    picky = make_tokenizer()
    picky.chat_template = (
        "{% if messages|length == 1 and messages[0].role == 'system' %}{{ raise_exception('no user') }}{% endif %}"
        + picky.chat_template
    )
    passes = transcript_passes(picky, (Message("system", "Be brief."), *CHAT))
    assert [item.spans[0].turn for item in passes] == [1, 2, 3, 4]
    assert "Be brief." in text_of(picky, passes[0], passes[0].spans[0])
    with pytest.raises(DataError, match="no user"):
        transcript_passes(picky, (Message("system", "Be brief."),))


def test_a_transcript_that_cannot_be_rendered_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no messages"):
        transcript_passes(tokenizer, ())
    bare = make_tokenizer()
    bare.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        transcript_passes(bare, CHAT)
