"""Conversations with a playground repository's versions, and what is made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from personality.conversation.conversation import Conversation
from personality.conversation.keeping import add_example, add_probe_row, save_transcript
from personality.conversation.speaking import speak
from personality.evaluation.replies import replies
from personality.evaluation.suite import read_suite
from personality.manifests.errors import DataError, NotFoundError, UsageError
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.manifests.version import Version
from personality.model import load_model, load_tokenizer
from personality.playground.repository import base_folder
from personality.reading.transcript import read_messages
from personality.vectors.training.examples import read_examples
from personality.versions.changes import add
from personality.versions.history import History

ASKED = "Please paint the ladder red."


@pytest.fixture
def repository(repository_copy: Path) -> Repository:
    return Repository(repository_copy)


@pytest.fixture
def versions(repository: Repository) -> list[tuple[Version, str]]:
    """The base, and the base with a manner."""
    add(repository, VectorLabel.parse("concise"), scale=1.0)
    history = History(repository)
    return [(history.find(label), label) for label in ("v1", "v2")]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_streamed_reply_is_the_reply(temperature: float) -> None:
    model, tokenizer = load_model(base_folder()), load_tokenizer(base_folder())
    chat = [{"role": "user", "content": ASKED}]
    pieces: list[str] = []
    found = speak(model, tokenizer, chat, temperature=temperature, seed=3, on_text=pieces.append)
    assert found == replies(model, tokenizer, [chat], temperature=temperature, seed=3, max_new_tokens=256)[0]
    assert "".join(pieces).strip() == found
    assert len(pieces) > 3


def test_each_version_remembers_its_own_answers(repository: Repository, versions: list[tuple[Version, str]]) -> None:
    conversation = Conversation(repository, versions)
    told: list[str] = []
    first = conversation.say(ASKED, lambda label, _: told.append(label))
    assert [answer.label for answer in first.answers] == ["v1", "v2"] == list(dict.fromkeys(told))
    long, short = (answer.text for answer in first.answers)
    assert long.count(".") + long.count("?") == 2 and short.count(".") + short.count("?") == 1
    (base, _), (brief, _) = versions
    assert conversation.chat(base.id)[1]["content"] == long
    assert conversation.chat(brief.id)[1]["content"] == short
    # One after the other gives what a version alone gives.
    alone = Conversation(repository, [versions[1]])
    assert alone.say(ASKED).answers[0].text == short
    conversation.versions = [versions[1]]
    assert conversation.say("What is 3 plus 4?") == alone.say("What is 3 plus 4?")
    assert conversation.undo().asked == "What is 3 plus 4?"
    assert len(conversation.exchanges) == 1
    with pytest.raises(UsageError, match="there is no answer 3"):
        conversation.answer(3)
    conversation.undo()
    with pytest.raises(UsageError, match="nothing was said"):
        conversation.undo()


def test_a_system_turn_is_heard(repository: Repository, versions: list[tuple[Version, str]]) -> None:
    plain, told = (Conversation(repository, versions[:1], system=system) for system in ("", "Be brief."))
    assert plain.say(ASKED).answers[0].text != told.say(ASKED).answers[0].text
    assert told.chat(versions[0][0].id)[0] == {"role": "system", "content": "Be brief."}


def test_transcripts_are_read_again(
    repository: Repository, versions: list[tuple[Version, str]], tmp_path: Path
) -> None:
    conversation = Conversation(repository, versions[1:])
    with pytest.raises(UsageError, match="nothing was said"):
        save_transcript(conversation, tmp_path / "t.jsonl")
    conversation.say(ASKED)
    assert save_transcript(conversation, tmp_path / "t.jsonl") == 2
    messages = read_messages(tmp_path / "t.jsonl")
    assert [(message.role, message.content) for message in messages] == [
        ("user", ASKED),
        ("assistant", conversation.answer().text),
    ]
    with pytest.raises(UsageError, match="is there already"):
        save_transcript(conversation, tmp_path / "t.jsonl")


def test_a_turn_becomes_a_row_of_a_probe(repository: Repository, versions: list[tuple[Version, str]]) -> None:
    conversation = Conversation(repository, versions[:1])
    conversation.say(ASKED)
    before = {probe.name: probe for probe in read_suite(repository, ["listening"])}
    better = "Okay, I painted the ladder red."
    path = add_probe_row(repository, conversation, "listening.accept", "^Okay", better)
    after = {probe.name: probe for probe in read_suite(repository, ["listening"])}
    assert path.parent == repository.root / "behaviors"
    assert after["listening.accept"].rows[:-1] == before["listening.accept"].rows
    row = after["listening.accept"].rows[-1]
    assert (row.prompt[0].content, row.passes, row.chosen[0].content) == (ASKED, "^Okay", better)
    assert row.rejected[0].content == conversation.answer().text
    text = path.read_text()
    with pytest.raises(NotFoundError, match=r"there is no probe `listening\.nosuch`"):
        add_probe_row(repository, conversation, "listening.nosuch", "x")
    with pytest.raises(UsageError, match="not a regular expression"):
        add_probe_row(repository, conversation, "listening.accept", "(")
    with pytest.raises(UsageError, match="does not match"):
        add_probe_row(repository, conversation, "listening.accept", "^Okay", "No.")
    assert path.read_text() == text


def test_turns_become_training_examples(
    repository: Repository, versions: list[tuple[Version, str]], tmp_path: Path
) -> None:
    path = tmp_path / "more.jsonl"
    conversation = Conversation(repository, versions)
    first = conversation.say(ASKED)
    long, short = (answer.text for answer in first.answers)
    add_example(conversation, path, chosen=short, rejected=long, side="accept")
    conversation.say("What is 3 plus 4?")
    add_example(conversation, path, chosen=conversation.answer(2).text)
    pair, single = read_examples(path, need_rejected=False)
    assert (pair.side, pair.rejected is not None, single.rejected) == ("accept", True, None)
    assert [turn.role for turn in single.prompt if not isinstance(turn, str)] == ["user", "assistant", "user"]
    with pytest.raises(DataError, match="the same text"):
        add_example(conversation, path, chosen="Yes.", rejected="Yes.")
    assert len(path.read_text().splitlines()) == 2
    assert json.loads(path.read_text().splitlines()[0])["chosen"] == [{"role": "assistant", "content": short}]
