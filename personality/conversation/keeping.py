"""What becomes of a conversation: a transcript, a row of a probe, or an example to train on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from personality.conversation.conversation import Conversation
from personality.manifests.atomic import write_bytes
from personality.manifests.errors import NotFoundError, UsageError
from personality.manifests.names import inside
from personality.manifests.repository import Repository
from personality.vectors.training.examples import Side, parse_example


def save_transcript(conversation: Conversation, path: Path) -> int:
    """Write the first version's conversation, one message a line, as `persona read --transcript` reads it.

    Returns:
        How many messages.

    Raises:
        UsageError: when nothing was said, or the file is there.
    """
    if path.exists():
        raise UsageError(f"{path} is there already", "choose another name")
    chat = conversation.chat(conversation.answer().version)
    write_bytes(path, "".join(_line(message) for message in chat).encode())
    return len(chat)


def add_probe_row(
    repository: Repository, conversation: Conversation, probe: str, passes: str, preferred: str = ""
) -> Path:
    """Add the last turn to a probe of a behavior: its prompt, what a good reply matches, and both replies where one
    was given that is better than the model's.

    Args:
        repository: where.
        conversation: whose last turn it is.
        probe: `listening.accept`; the behavior's file must declare it.
        passes: regular expression that a good reply matches.
        preferred: a better reply; empty for none.

    Returns:
        The probe's file.

    Raises:
        UsageError: for an expression that is none, or a better reply that it does not match.
        NotFoundError: when there is no such probe.
    """
    try:
        pattern = re.compile(passes)
    except re.error as error:
        raise UsageError(f"`{passes}` is not a regular expression: {error}", "such as `^Okay`") from error
    if preferred and not pattern.search(preferred):
        raise UsageError(f"the better reply does not match `{passes}`", "mend one of the two")
    path = _probe_file(repository, probe)
    row: dict[str, Any] = {"prompt": _prompt(conversation), "pass": passes}
    if preferred:
        row["chosen"] = [{"role": "assistant", "content": preferred}]
        row["rejected"] = [{"role": "assistant", "content": conversation.answer().text}]
    _append(path, row)
    return path


def add_example(
    conversation: Conversation, path: Path, *, chosen: str, rejected: str = "", side: Side | None = None
) -> None:
    """Add the last turn to a file of training data, in TRL's form.

    Args:
        conversation: whose last turn it is.
        path: JSONL; made when it is not there.
        chosen: the reply to learn.
        rejected: the reply to unlearn; empty for none.
        side: whether the reply accepts a direction or pushes back.

    Raises:
        DataError: when `train` would refuse it, such as two equal replies.
    """
    row: dict[str, Any] = {
        "prompt": _prompt(conversation),
        "chosen": [{"role": "assistant", "content": chosen}],
    }
    if rejected:
        row["rejected"] = [{"role": "assistant", "content": rejected}]
    if side:
        row["side"] = side
    parse_example(row, where="this turn", need_rejected=False)
    _append(path, row)


def _prompt(conversation: Conversation) -> list[dict[str, str]]:
    last = conversation.last
    before = conversation.chat(last.answers[0].version, len(conversation.exchanges) - 1)
    return [*before, {"role": "user", "content": last.asked}]


def _probe_file(repository: Repository, probe: str) -> Path:
    files = repository.behaviors()
    known = {f"{name}.{entry.name}": entry for name, file in files.items() for entry in file.probes}
    if probe not in known:
        raise NotFoundError(
            f"there is no probe `{probe}`",
            f"there are: {', '.join(sorted(known)) or 'none'}; declare it with [[probes]] in behaviors/NAME.toml",
        )
    return inside(repository.root / "behaviors", known[probe].file)


def _append(path: Path, row: dict[str, Any]) -> None:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text and not text.endswith("\n"):
        text += "\n"
    write_bytes(path, (text + _line(row)).encode())


def _line(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False) + "\n"
