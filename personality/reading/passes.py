"""What goes through a model when a text or a transcript is read, and which of its tokens are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from personality.manifests.errors import DataError
from personality.vectors.extraction.spans import common_length
from personality.vectors.training.examples import Message
from personality.vectors.training.tokens import ANY_LENGTH, Tokenizer, encode, render_chat


@dataclass(frozen=True)
class Span:
    """Tokens [start, stop) of a pass that belong to a turn.

    Attributes:
        turn: its number in the transcript, from 0; 0 for a plain text.
        start, stop: among the tokens of the pass.
        is_reply: the model was to write them, and decided at the token before `start`.
    """

    turn: int
    start: int
    stop: int
    is_reply: bool = False


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Attributes:
        ids: tokens.
        spans: what is looked at, in order.
        reply: index of the first token of the reply, beyond the tokens where none follows them directly; None when the
            model is to reply next.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    reply: int | None = None


def text_pass(tokenizer: Tokenizer, text: str, *, as_turn: bool) -> Pass:
    """A text as it is, or as a user's turn up to where the reply begins.

    Raises:
        DataError: it has no tokens; or there is no chat template to make a turn of it.
    """
    if as_turn:
        rendered = render_chat(tokenizer, (Message("user", text),), open_turn=True, where="the text")
        ids = tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    else:
        ids = tuple(tokenizer(text)["input_ids"])
    if not ids:
        raise DataError("the text has no tokens", "give a text with something in it")
    return Pass(ids, (Span(0, 0, len(ids)),))


def transcript_passes(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[Pass]:
    """A pass for each turn, with the conversation up to it as the model saw it then.

    Templates may write a turn differently once others follow (they drop its reasoning, say), and a steering vector that
    acts on a reply acts only while that reply is written. So each turn is read in the text that it was written in. A
    turn that a reply follows has the header of that reply, at whose last token the reply is decided.

    Args:
        tokenizer: with a chat template.
        messages: of the transcript.

    Returns:
        The passes, in order. A turn that the template refuses without the next one (a system turn on its own) is read
        together with that.

    Raises:
        DataError: no messages, or the template refuses them.
    """
    if not messages:
        raise DataError("the transcript has no messages", 'a line is {"role": "user", "content": "…"}')
    passes: list[Pass] = []
    before: tuple[int, ...] = ()
    for number, message in enumerate(messages):
        where = f"turn {number + 1}"
        earlier = tuple(messages[:number])
        reply = None
        if message.role == "assistant" and earlier:
            encoded = encode(tokenizer, earlier, (message,), ANY_LENGTH, where=where)
            ids, start, reply = encoded.ids[: encoded.stop], encoded.start, encoded.start
        else:
            last = number + 1 == len(messages)
            opens = last or messages[number + 1].role == "assistant"
            try:
                rendered = render_chat(tokenizer, (*earlier, message), open_turn=opens, where=where)
            except DataError:
                if last or not getattr(tokenizer, "chat_template", None):
                    raise
                continue
            ids = tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])
            start = min(common_length(before, ids), len(ids) - 1)
            reply = None if opens else len(ids) + 1
        passes.append(Pass(ids, (Span(number, start, len(ids), reply == start),), reply))
        before = ids
    return passes


def merged(passes: Sequence[Pass]) -> list[Pass]:
    """The same spans in fewer passes: where a pass is the beginning of the next one, the longer one has its states.

    Only for models that are not steered: with the reply's place forgotten, vectors would act elsewhere.
    """
    kept: list[Pass] = []
    for item in passes:
        if kept and item.ids[: len(kept[-1].ids)] == kept[-1].ids:
            kept.append(Pass(item.ids, (*kept.pop().spans, *item.spans)))
        else:
            kept.append(Pass(item.ids, item.spans))
    return kept
