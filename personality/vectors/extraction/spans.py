"""Where in a text's tokens its content lies, apart from what a chat template or a tokenizer puts around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from personality.manifests.errors import DataError
from personality.vectors.training.examples import Message, Text
from personality.vectors.training.tokens import Tokenizer, encode, render_chat

_MARK = "xqzv"  # stands for a reply, to see what a template puts before and behind it


@dataclass(frozen=True)
class Span:
    """Token ids, and the part [start, stop) of them that is content."""

    ids: tuple[int, ...]
    start: int
    stop: int


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two texts share from their beginning."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that are no text: those with a role, and all others that the tokenizer marks as special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(tokenizer.all_special_ids) | {index for index, token in added.items() if token.special}


def reply_span(
    tokenizer: Tokenizer, prompt: Text, response: Text, specials: frozenset[int], max_length: int, *, where: str
) -> Span:
    """A dialogue's tokens and the reply's content among them.

    Args:
        tokenizer: of the model.
        prompt: messages or text.
        response: the reply, of the prompt's form.
        specials: from `special_ids`.
        max_length: tokens that the dialogue may have.
        where: "file:line", for messages.

    Returns:
        The span without the template's header and tail, the end-of-turn token, and white space at its end.

    Raises:
        DataError: see `encode`; or the content cannot be told from the template, or there is none.
    """
    encoded = encode(tokenizer, prompt, response, max_length, where=where)
    start, stop = encoded.start, encoded.stop
    if isinstance(prompt, str):
        if encoded.ids[-1] == tokenizer.eos_token_id:
            stop -= 1  # put there by `encode` or the tokenizer; a plain text has no other tail
    else:
        assert not isinstance(response, str)
        begin, end = _content_tokens(tokenizer, prompt, response, encoded.ids, where)
        start, stop = max(start, begin), min(stop, end)
    stop = visible_stop(tokenizer, encoded.ids, specials, start=start, stop=stop)
    if stop <= start:
        raise DataError(f"{where}: the reply has no content", "give it a text or remove the line")
    return Span(encoded.ids, start, stop)


def prompt_ids(tokenizer: Tokenizer, prompt: Text, max_length: int, *, where: str) -> tuple[int, ...]:
    """A prompt's tokens up to the place at which the reply begins.

    Args:
        tokenizer: of the model.
        prompt: messages, which the header of the answer follows; or text, as the tokenizer encodes it, but
            without what it may add behind.
        max_length: tokens that it may have.
        where: "file:line", for messages.

    Raises:
        DataError: the template refuses the messages, or there are too many tokens or none.
    """
    if isinstance(prompt, str):
        ids = _open_text(tokenizer, prompt)
    else:
        text = render_chat(tokenizer, prompt, open_turn=True, where=where)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise DataError(f"{where}: the text has no tokens", "give it a text or remove the line")
    if len(ids) > max_length:
        raise DataError(
            f"{where}: {len(ids)} tokens, the limit is {max_length}",
            f"shorten it, or raise the limit with `--max-length {len(ids)}` (nothing is cut off silently)",
        )
    return tuple(ids)


def closing_ids(tokenizer: Tokenizer, specials: frozenset[int]) -> frozenset[int]:
    """Those of the special tokens that end a text or a turn."""
    found = {tokenizer.eos_token_id} - {None}
    try:
        _, tail = _around(tokenizer, (Message("user", "a"),), where="")
    except DataError:  # no template, or a refusal: then the end of text is all there is
        return frozenset(found)
    return frozenset(found | (specials & set(tokenizer(tail, add_special_tokens=False)["input_ids"])))


def visible_stop(
    tokenizer: Tokenizer, ids: Sequence[int], specials: frozenset[int], *, start: int = 0, stop: int | None = None
) -> int:
    """Index after the last token that is more than white space; `start` when there is none.

    Args:
        tokenizer: of the ids.
        ids: of a text.
        specials: from `special_ids`; these count as visible whatever they look like.
        start, stop: the part to look at, by default all.
    """
    stop = len(ids) if stop is None else stop
    while stop > start and ids[stop - 1] not in specials and not str(tokenizer.decode([ids[stop - 1]])).strip():
        stop -= 1
    return stop


def _content_tokens(
    tokenizer: Tokenizer, prompt: tuple[Message, ...], response: tuple[Message, ...], ids: Sequence[int], where: str
) -> tuple[int, int]:
    """Bounds of the tokens between the template's header and its tail.

    A token in which the header's last space and the first word are one is content; one in which the last word
    and the tail are one is not.
    """
    head, tail = _around(tokenizer, prompt, where=where)
    whole = render_chat(tokenizer, prompt + response, open_turn=False, where=where)
    end = len(whole) - len(tail)
    if not (whole.startswith(head) and whole.endswith(tail) and len(head) <= end):
        raise DataError(
            f"{where}: the chat template writes other text around this reply than around others, so the reply's "
            "own tokens cannot be told from the template's",
            "leave out of the replies what the template treats in its own way, such as blocks of reasoning",
        )
    bounds = [
        common_length(tokenizer(text, add_special_tokens=False)["input_ids"], ids) for text in (head, whole[:end])
    ]
    return bounds[0], bounds[1]


def _around(tokenizer: Tokenizer, prompt: tuple[Message, ...], *, where: str) -> tuple[str, str]:
    """What a template puts before and behind a reply, the prompt included."""
    whole = render_chat(tokenizer, (*prompt, Message("assistant", _MARK)), open_turn=False, where=where)
    head, _, tail = whole.rpartition(_MARK)
    return head, tail


def _open_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text that could go on: what the tokenizer adds before it, but not what it adds behind."""
    ids = list(tokenizer(text)["input_ids"])
    bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    for before in range(len(ids) - len(bare) + 1):
        if ids[before : before + len(bare)] == bare:
            return ids[: before + len(bare)]
    return ids
