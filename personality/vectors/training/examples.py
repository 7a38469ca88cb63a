"""Training data: one dialogue with the answer wanted and, for pairs, the answer not wanted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from personality.manifests.canonical import digest
from personality.manifests.errors import DataError, NotFoundError

Role = Literal["system", "user", "assistant", "tool"]
Side = Literal["accept", "push_back"]


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str


Text = tuple[Message, ...] | str


@dataclass(frozen=True)
class Example:
    """A prompt with its responses.

    Attributes:
        prompt: chat messages (all turns before the answer) or plain text.
        chosen: the answer to learn: one assistant message, or plain text when the prompt is.
        rejected: the answer to unlearn, of the same form; None for general data.
        side: what the chosen answer does with the user's direction: accepts it or pushes back.
        where: "file:line" for messages; not part of the example's identity.
    """

    prompt: Text
    chosen: Text
    rejected: Text | None = None
    side: Side | None = None
    where: str = field(default="", compare=False)

    def to_record(self) -> dict[str, Any]:
        """The example as one JSON object, in the form that `read_examples` accepts.

        Returns:
            prompt, chosen and, where there are any, rejected and side.
        """
        record: dict[str, Any] = {"prompt": plain_text(self.prompt), "chosen": plain_text(self.chosen)}
        if self.rejected is not None:
            record["rejected"] = plain_text(self.rejected)
        if self.side is not None:
            record["side"] = self.side
        return record


def digest_examples(examples: Sequence[Example]) -> str:
    """Digest of a data set: the same examples in the same order, whatever the file's formatting.

    Args:
        examples: in the order in which they were read.

    Returns:
        SHA-256 in hex over the canonical JSON of all records.
    """
    return digest([example.to_record() for example in examples])


def example_digest(example: Example) -> str:
    """Identity of one example in the ledger of what a behavior was trained on.

    Returns:
        The first 16 hexadecimal digits of SHA-256 over the example's canonical JSON.
    """
    return digest(example.to_record())[:16]


def count_sides(examples: Sequence[Example]) -> dict[str, int]:
    """How many examples accept, push back, or do not say.

    Args:
        examples: of one behavior.

    Returns:
        Counts under "accept", "push_back" and "unlabeled", always all three.
    """
    counts = {"accept": 0, "push_back": 0, "unlabeled": 0}
    for example in examples:
        counts[example.side or "unlabeled"] += 1
    return counts


def read_examples(path: Path, *, need_rejected: bool) -> list[Example]:
    """Read a JSONL file of triplets or of general data.

    One object a line: `prompt` and `chosen` (or `completion`), optionally `rejected` and `side`; each text
    is a string or a list of {"role", "content"}. Other fields are left to their owners and ignored. Blank
    lines are skipped.

    Args:
        path: the file, UTF-8.
        need_rejected: every line must have `rejected` (pairs for a preference objective).

    Returns:
        Examples in the file's order, at least one.

    Raises:
        NotFoundError: there is no such file.
        DataError: something in it cannot be used; the message begins with file and line.
    """
    text = read_data(path)
    examples: list[Example] = []
    seen: dict[Example, int] = {}
    # Not splitlines(): JSON strings may hold U+2028 and the like, which are no line ends in JSONL.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        example = parse_example(_load(line, where), where=where, need_rejected=need_rejected)
        if example in seen:
            raise DataError(
                f"{where}: the same example as line {seen[example]}",
                "remove one of the two lines; every example is used once",
            )
        seen[example] = number
        examples.append(example)
    if not examples:
        raise DataError(f"{path} holds no examples", "write one JSON object a line")
    return examples


def read_data(path: Path) -> str:
    """The text of a data file.

    Raises:
        NotFoundError: there is no such file.
        DataError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise NotFoundError(f"no data file at {path}", "check the path: a JSONL file, one object a line") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}", "save it as UTF-8") from error


def parse_example(record: Any, *, where: str, need_rejected: bool) -> Example:
    """Check one JSON object and make an example of it.

    Args:
        record: what the JSON parser returned.
        where: "file:line", for messages.
        need_rejected: refuse a record without `rejected`.

    Returns:
        The example.

    Raises:
        DataError: a field is missing, of the wrong type, empty, or contradicts another.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON {json_kind(record)} instead of an object", _FORM_HINT)
    if "chosen" in record and "completion" in record:
        raise DataError(f"{where}: both `chosen` and `completion`", "keep one of the two fields")
    answer = "completion" if "completion" in record else "chosen"
    for name in ("prompt", answer, "rejected") if need_rejected else ("prompt", answer):
        if name not in record:
            present = ", ".join(f"`{key}`" for key in record) or "none"
            raise DataError(f"{where}: no field `{name}` (fields: {present})", _FORM_HINT)
    prompt = parse_text(record["prompt"], f"{where}: `prompt`")
    chosen = _answer(record[answer], prompt, f"{where}: `{answer}`")
    rejected = None
    if record.get("rejected") is not None:
        rejected = _answer(record["rejected"], prompt, f"{where}: `rejected`")
    elif need_rejected:
        raise DataError(f"{where}: `rejected` is null", "pairs need both answers; or train with `--method sft`")
    if not isinstance(prompt, str) and prompt[-1].role == "assistant":
        raise DataError(
            f"{where}: `prompt` ends with an assistant turn",
            "the answer belongs into `chosen`, not into `prompt`",
        )
    if chosen == rejected:
        raise DataError(f"{where}: `{answer}` and `rejected` are the same text", "a pair must differ; remove the line")
    side = record.get("side")
    if side is not None and side not in get_args(Side):
        raise DataError(f"{where}: `side` is {side!r}", "`side` is `accept` or `push_back`, or left out")
    return Example(prompt=prompt, chosen=chosen, rejected=rejected, side=side, where=where)


_FORM_HINT = (
    'a line is {"prompt": …, "chosen": …, "rejected": …} or {"prompt": …, "completion": …}, '
    "each a string or a list of messages"
)


def _load(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno})", _FORM_HINT) from error
    except RecursionError as error:
        raise DataError(f"{where}: JSON nested too deeply", _FORM_HINT) from error


def parse_text(value: Any, what: str) -> Text:
    """Check one text and make messages of it where it is a list.

    Args:
        value: what the JSON parser returned.
        what: "file:line: `field`", for messages.

    Returns:
        A non-empty string, or a non-empty tuple of messages.

    Raises:
        DataError: it is neither, or a message is malformed.
    """
    if isinstance(value, str):
        if not value:
            raise DataError(f"{what} is empty", "give it a text or remove the line")
        _check_unicode(value, what)
        return value
    if not isinstance(value, list):
        raise DataError(f"{what} is a JSON {json_kind(value)}", "a text is a string or a list of messages")
    if not value:
        raise DataError(f"{what} is an empty list", "give it a message or remove the line")
    return tuple(_message(item, f"{what}, message {number}") for number, item in enumerate(value, start=1))


def _check_unicode(text: str, what: str) -> None:
    """JSON's escapes allow half a surrogate pair, which is no text: tokenizers and digests fail on it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} has half a surrogate pair at character {error.start}", "mend the text") from error


def _message(value: Any, what: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{what} is a JSON {json_kind(value)}", 'a message is {"role": …, "content": …}')
    role: Any = value.get("role")
    content: Any = value.get("content")
    if role not in get_args(Role):
        raise DataError(f"{what}: `role` is {role!r}", f"a role is one of {', '.join(get_args(Role))}")
    if not isinstance(content, str):
        raise DataError(f"{what}: `content` is a JSON {json_kind(content)}", "`content` is a string")
    _check_unicode(content, what)
    return Message(role=role, content=content)


def _answer(value: Any, prompt: Text, what: str) -> Text:
    """A response of the prompt's form: a string, or exactly one assistant message that says something."""
    text = parse_text(value, what)
    if isinstance(text, str) != isinstance(prompt, str):
        forms = {True: "a string", False: "a list of messages"}
        raise DataError(
            f"{what} is {forms[isinstance(text, str)]} but `prompt` is {forms[isinstance(prompt, str)]}",
            "use the same form for both",
        )
    if isinstance(text, str):
        return text
    if len(text) != 1 or text[0].role != "assistant":
        roles = ", ".join(message.role for message in text)
        raise DataError(
            f"{what} has the turns {roles}",
            "an answer is one assistant message; earlier turns go into `prompt`",
        )
    if not text[0].content:
        raise DataError(f"{what} is an empty message", "give it a text or remove the line")
    return text


def plain_text(text: Text) -> str | list[dict[str, str]]:
    """A text in the form that JSON has for it, and `parse_text` reads."""
    if isinstance(text, str):
        return text
    return [{"role": message.role, "content": message.content} for message in text]


def json_kind(value: Any) -> str:
    """JSON's own word for the type of a parsed value."""
    if value is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names[type(value)]
