"""Examples as token ids, with the tokens marked that the model itself must produce."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from personality.manifests.errors import DataError
from personality.vectors.training.examples import Example, Message, Text

Tokenizer = Any  # transformers ships no type for "any fast or slow tokenizer"

ANY_LENGTH = 1 << 30
"""For texts that are only scored: no limit."""


def pad_id(tokenizer: Tokenizer) -> int:
    """A token id for padding; any serves, since padding is masked everywhere."""
    return next((int(token) for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


@dataclass(frozen=True)
class Encoded:
    """One dialogue as tokens.

    Attributes:
        ids: all tokens, prompt first.
        start: index of the first response token.
        stop: index after the last response token (the end-of-turn token); what follows is the template's.
    """

    ids: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class EncodedExample:
    """An example's chosen dialogue and, for pairs, the rejected one."""

    chosen: Encoded
    rejected: Encoded | None


def encode_examples(
    tokenizer: Tokenizer, examples: Sequence[Example], max_length: int, *, with_rejected: bool
) -> list[EncodedExample]:
    """Tokenize examples; nothing is ever cut off.

    Args:
        tokenizer: of the model, with a chat template when examples are chats.
        examples: any number.
        max_length: tokens that a dialogue may have.
        with_rejected: also encode the rejected answers, which must be there.

    Returns:
        One entry for each example, in order.

    Raises:
        DataError: a dialogue is too long, a tokenizer lacks what an example needs, or the template changes
            the prompt when the answer follows.
    """
    encoded = []
    for number, example in enumerate(examples, start=1):
        where = example.where or f"example {number}"
        rejected = None
        if with_rejected:
            if example.rejected is None:
                raise DataError(f"{where}: no rejected answer", "give pairs, or train with `--method sft`")
            rejected = encode(tokenizer, example.prompt, example.rejected, max_length, where=where)
        chosen = encode(tokenizer, example.prompt, example.chosen, max_length, where=where)
        encoded.append(EncodedExample(chosen, rejected))
    return encoded


def encode(tokenizer: Tokenizer, prompt: Text, response: Text, max_length: int, *, where: str = "text") -> Encoded:
    """Tokenize one dialogue and find its response.

    The response is what follows the tokens of the prompt *with* the header of the answer, up to and with the
    end-of-turn token: exactly what the model has to generate.

    Args:
        tokenizer: of the model.
        prompt: messages or text.
        response: one assistant message or text, of the prompt's form.
        max_length: tokens that the dialogue may have.
        where: "file:line", for messages.

    Returns:
        Token ids and the bounds of the response.

    Raises:
        DataError: see `encode_examples`.
    """
    if isinstance(prompt, str) or isinstance(response, str):
        if not (isinstance(prompt, str) and isinstance(response, str)):
            raise DataError(f"{where}: a chat and a plain text in one example", "use the same form for both")
        head, ids, stop = _encode_plain(tokenizer, prompt, response, where)
    else:
        head, ids, stop = _encode_chat(tokenizer, prompt, response, where)
    start = len(head)
    if ids[:start] != head:
        raise DataError(
            f"{where}: the prompt's {start} tokens change when the response follows, so the response has no "
            "beginning of its own",
            "chat templates must render the prompt alike with and without the answer; in plain text let the "
            "response begin with a space or a line break",
        )
    if start == 0:
        raise DataError(f"{where}: the prompt has no tokens, nothing predicts the first one", "give it a prompt")
    if stop <= start:
        raise DataError(f"{where}: the response has no tokens", "give it a text or remove the line")
    if len(ids) > max_length:
        raise DataError(
            f"{where}: {len(ids)} tokens, the limit is {max_length}",
            f"shorten it, or raise the limit with `--max-length {len(ids)}` (nothing is cut off silently)",
        )
    return Encoded(ids=tuple(ids), start=start, stop=stop)


def _encode_plain(tokenizer: Tokenizer, prompt: str, response: str, where: str) -> tuple[list[int], list[int], int]:
    end = tokenizer.eos_token_id
    if end is None:
        raise DataError(f"{where}: the tokenizer has no end-of-text token", "set `eos_token` in its configuration")
    head = list(tokenizer(prompt)["input_ids"])
    ids = list(tokenizer(prompt + response)["input_ids"])
    # Some tokenizers close every text themselves; the prompt goes on, so there it must be open.
    if head and head[-1] == end:
        head.pop()
    if not ids or ids[-1] != end:
        ids.append(end)
    return head, ids, len(ids)


def _encode_chat(
    tokenizer: Tokenizer, prompt: tuple[Message, ...], response: tuple[Message, ...], where: str
) -> tuple[list[int], list[int], int]:
    head = _render(tokenizer, prompt, where, open_turn=True)
    ids = _render(tokenizer, prompt + response, where, open_turn=False)
    return head, ids, _end_of_turn(tokenizer, ids, len(head))


def _render(tokenizer: Tokenizer, messages: tuple[Message, ...], where: str, *, open_turn: bool) -> list[int]:
    text = render_chat(tokenizer, messages, open_turn=open_turn, where=where)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def render_chat(tokenizer: Tokenizer, messages: tuple[Message, ...], *, open_turn: bool, where: str) -> str:
    """A chat as its template writes it.

    Args:
        tokenizer: of the model.
        messages: of the chat.
        open_turn: end with the header of the next answer.
        where: "file:line", for messages.

    Returns:
        The text, with all special tokens in it: tokenize it without adding any.

    Raises:
        DataError: there is no template, or it refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{where}: chat messages, but the tokenizer has no chat template",
            "use a base with a chat template, or give `prompt` and answers as plain strings",
        )
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        # Answers in the data hold no reasoning, so no template may open a block for it.
        return str(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=open_turn, enable_thinking=False)
        )
    except Exception as error:  # templates are programs and raise what they like
        raise DataError(
            f"{where}: the chat template refuses these messages: {error}", "change the roles or their order"
        ) from error


def _end_of_turn(tokenizer: Tokenizer, ids: list[int], start: int) -> int:
    """Index after the token that ends the answer; templates often add a line break that nobody generates."""
    special = set(tokenizer.all_special_ids)
    for ends in ({tokenizer.eos_token_id}, special):
        for index in range(len(ids) - 1, start - 1, -1):
            if ids[index] in ends:
                return index + 1
    return len(ids)
