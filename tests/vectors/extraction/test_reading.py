from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from personality.manifests.errors import DataError, UsageError
from personality.model import load_tokenizer
from personality.playground.behaviors import examples
from personality.playground.dialogue import CUES, NEUTRAL
from personality.playground.repository import base_folder
from personality.vectors.extraction.contexts import with_shots, with_system
from personality.vectors.extraction.formats import read_passages
from personality.vectors.extraction.passages import Pair, Passage, on_side
from personality.vectors.extraction.reading import Read, Reading, read_pairs
from personality.vectors.training.examples import Message
from tests.vectors.training.conftest import make_llama, make_tokenizer

PIP = load_tokenizer(base_folder())
TINY = make_tokenizer()
ASKED = (Message("user", "Rename a."),)


def chat(positive: str, negative: str, where: str = "f:1") -> Pair:
    return Pair(
        Passage(ASKED, (Message("assistant", positive),)),
        Passage(ASKED, (Message("assistant", negative),)),
        where=where,
    )


def texts(positive: str, negative: str, where: str = "f:1") -> Pair:
    return Pair(Passage(positive), Passage(negative), where=where)


def shown(tokenizer: Any, pair: Pair, read: Read) -> list[tuple[str, str]]:
    """Of each side the text before the tokens that are read, and these."""
    ((found,), degenerate) = read_pairs(tokenizer, [pair], read, max_length=500)
    assert not degenerate
    sides = []
    for reading in (found.positive, found.negative):
        assert reading.stop == len(reading.ids)
        before, read_ids = reading.ids[: reading.start], reading.ids[reading.start :]
        sides.append((str(tokenizer.decode(before)), str(tokenizer.decode(read_ids))))
    return sides


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    path = tmp_path_factory.mktemp("pairs") / "listening.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in examples("listening", 30, 0)))
    return on_side(read_passages(path).pairs)


def test_replies_are_read_inside_the_template() -> None:
    pair = chat("Okay, done.", "Why not wait?")
    head = "<|user|> Rename a.<|end|><|assistant|>"
    assert shown(PIP, pair, "response") == [(head, " Okay, done."), (head, " Why not wait?")]
    assert shown(PIP, pair, "content") == [(f"{head} Okay, done", "."), (f"{head} Why not wait", "?")]
    assert [read for _, read in shown(PIP, pair, "first")] == [" Okay", " W"]
    head = "<|user|> Rename a.<|end|>\n<|assistant|> "
    assert shown(TINY, pair, "response") == [(head, "Okay, done."), (head, "Why not wait?")]
    assert shown(TINY, pair, "content") == [(f"{head}Okay, done", "."), (f"{head}Why not wait", "?")]
    assert shown(TINY, pair, "first") == [(head, "O"), (head, "W")]


def test_replies_of_plain_texts_are_read_without_the_end_of_text() -> None:
    pair = Pair(Passage("Q:", " yes"), Passage("Q:", " no"))
    assert shown(TINY, pair, "response") == [("Q:", " yes"), ("Q:", " no")]
    assert shown(TINY, pair, "content") == [("Q: ye", "s"), ("Q: n", "o")]


def test_the_letter_of_a_choice_is_read(tmp_path: Path) -> None:
    row = {"question": "Rename a?", "answer_matching_behavior": " (A)", "answer_not_matching_behavior": " (B)"}
    path = tmp_path / "choices.json"
    path.write_text(json.dumps([row]))
    for chats, before in ((True, "<|user|> Rename a?<|end|>\n<|assistant|> ("), (False, "Rename a? (")):
        (pair,) = read_passages(path, chat=chats).pairs
        assert shown(TINY, pair, "content") == [(before, "A"), (before, "B")]


def test_contexts_are_read_before_the_reply(listening: list[Pair]) -> None:
    shots = with_shots(listening, shots=1)
    system = with_system(listening, CUES["listening"], NEUTRAL)
    for pairs in (shots, system):
        for read in ("decision", "divergence"):
            found, degenerate = read_pairs(PIP, pairs, read, max_length=512)
            assert (len(found), degenerate) == (len(pairs), [])
            for pair, original in zip(found, listening, strict=True):
                question = original.positive.prompt[-1]
                assert isinstance(question, Message)
                end = f"<|user|> {question.content}<|end|><|assistant|>"
                for reading in (pair.positive, pair.negative):
                    assert (reading.start, reading.stop) == (len(reading.ids) - 1, len(reading.ids))
                    if read == "decision":
                        assert PIP.decode(reading.ids).endswith(end)
                    else:
                        assert end in PIP.decode(reading.ids)
                assert pair.positive.ids != pair.negative.ids


def test_divergence_is_the_last_token_that_the_replies_share() -> None:
    pair = chat("Lovely, okay, a.", "Lovely, okay; a.")
    (pair,) = with_system([pair], ["Obey."], [None])
    assert shown(PIP, pair, "divergence") == [
        ("<|system|> Obey.<|end|><|user|> Rename a.<|end|><|assistant|> Lovely, o", "kay"),
        ("<|user|> Rename a.<|end|><|assistant|> Lovely, o", "kay"),
    ]
    # A reply that goes on where the other ends is read at the end's last content token.
    (pair,) = with_system([chat("Okay.", "Okay. More.")], ["Be brief."], ["Be long."])
    assert [read for _, read in shown(PIP, pair, "divergence")] == [".", "."]
    assert [before[-6:] for before, _ in shown(TINY, pair, "divergence")] == ["> Okay", "> Okay"]
    (pair,) = with_system([chat("Yes", "No")], ["Obey."], [None])
    assert [read for _, read in shown(PIP, pair, "divergence")] == ["<|assistant|>"] * 2


words = st.text(st.characters(codec="utf-8", exclude_characters="<|>"), min_size=1, max_size=6).filter(str.strip)


@given(head=words, left=words, right=words)
def test_divergence_splits_what_is_shared_from_what_is_not(head: str, left: str, right: str) -> None:
    if left == right:
        right += "!"
    (pair,) = with_system([chat(head + left, head + right)], ["Obey."], [None])
    (found,), _ = read_pairs(TINY, [pair], "divergence", max_length=500)
    for reading, system in ((found.positive, "<|system|> Obey.<|end|>\n"), (found.negative, "")):
        start = f"{system}<|user|> Rename a.<|end|>\n<|assistant|> "
        both = [list(TINY(f"{start}{head}{tail}<|end|>\n")["input_ids"]) for tail in (left, right)]
        assert all(tuple(ids[: reading.stop]) == reading.ids for ids in both)
        assert both[0][reading.stop] != both[1][reading.stop]
        assert reading.start == reading.stop - 1


@given(positive=words, negative=words)
def test_plain_texts_are_read_at_their_very_last_token(positive: str, negative: str) -> None:
    if positive == negative:
        negative += "!"
    for read in ("content", "decision"):
        (found,), _ = read_pairs(TINY, [texts(positive, negative)], read, max_length=500)
        for reading, text in ((found.positive, positive), (found.negative, negative)):
            ids = tuple(TINY(text)["input_ids"])
            assert reading == Reading(ids, len(ids) - 1, len(ids))


def test_what_is_cut_off_changes_no_state() -> None:
    model = make_llama()
    pair = chat("Okay, done.", "Why not wait?")
    whole = TINY("<|user|> Rename a.<|end|>\n<|assistant|> Okay, done.<|end|>\n")["input_ids"]
    for read in ("response", "content", "first"):
        (found,), _ = read_pairs(TINY, [pair], read, max_length=500)
        with torch.no_grad():
            cut = model.model(torch.tensor([found.positive.ids])).last_hidden_state
            full = model.model(torch.tensor([whole])).last_hidden_state
        torch.testing.assert_close(cut[0], full[0, : found.positive.stop])


@pytest.mark.parametrize(
    "text", ["<|user|> Hi<|end|><|assistant|> {}<|end|>", "{}<|end|>\n", "{}<|pad|>", "{}<|assistant|> "]
)
def test_the_tail_of_a_template_is_never_read_as_content(text: str) -> None:
    pairs = [
        texts(text.format(a), text.format(b), f"f:{n}") for n, (a, b) in enumerate([("yes", "no"), ("up", "down")])
    ]
    with pytest.raises(
        DataError, match=r"f:0: the text ends with the special token '<\|(end|pad|assistant)\|>'"
    ) as caught:
        read_pairs(TINY, pairs, "content", max_length=500)
    assert "remove the tokens at the end" in caught.value.hint


def test_before_a_reply_a_header_may_end_the_text_but_no_end_of_turn() -> None:
    open_turn = texts("Be warm.<|user|> Hi<|end|><|assistant|>", "Be cold.<|user|> Hi<|end|><|assistant|>")
    assert [read for _, read in shown(PIP, open_turn, "decision")] == ["<|assistant|>"] * 2
    with pytest.raises(DataError, match=r"ends with the special token '<\|end\|>', so `decision` would read"):
        read_pairs(PIP, [texts("Hi<|assistant|> yes<|end|>", "Hi<|assistant|> no<|end|>")], "decision", max_length=99)


@pytest.mark.parametrize("read", ["response", "content"])
def test_replies_with_the_templates_tokens_in_them_are_refused(read: Read) -> None:
    with pytest.raises(DataError, match=rf"f:1: `{read}` would read the special token '<\|end\|>'"):
        read_pairs(TINY, [chat("Okay.<|end|>", "Why?<|end|>")], read, max_length=500)
    plain = Pair(Passage("Q:", " yes<|user|>"), Passage("Q:", " no<|user|>"), where="f:1")
    with pytest.raises(DataError, match=rf"f:1: `{read}` would read the special token '<\|user\|>'"):
        read_pairs(TINY, [plain], read, max_length=500)
    with pytest.raises(DataError, match=r"`first` would read the special token '<\|user\|>'"):
        read_pairs(TINY, [chat("<|user|> Okay.", "<|user|> Why?")], "first", max_length=500)


@pytest.mark.parametrize("read", ["decision", "divergence"])
def test_before_the_reply_triplets_are_the_same(listening: list[Pair], read: Read) -> None:
    with pytest.raises(
        DataError, match=f"in all {len(listening)} pairs .* `{read}` reads; .*listening.jsonl:1: "
    ) as caught:
        read_pairs(PIP, listening, read, max_length=512)
    assert "--context shots" in caught.value.hint


def test_degenerate_pairs_are_named_and_the_others_read() -> None:
    pairs = [chat("Okay, a.", "Okay, b.", "f:1"), chat("Okay.", "Why?", "f:2"), chat("On.", "Off.", "f:3")]
    found, degenerate = read_pairs(TINY, pairs, "first", max_length=500)
    assert [pair.where for pair in found] == ["f:2"]
    assert degenerate == [f"f:{n}: both sides are the same tokens up to there (16), read at `first`" for n in (1, 3)]
    trimming = make_tokenizer(TINY.chat_template.replace("m.content", "m.content | trim"))
    same = [chat("Okay.", "Okay. ", "f:1"), chat("Okay.", "Why?", "f:2")]
    found, degenerate = read_pairs(trimming, same, "response", max_length=500)
    assert len(found) == 1
    assert degenerate[0].startswith("f:1: both sides are the same tokens (")
    alike = with_system([*same], ["a"], ["b"])
    _, degenerate = read_pairs(trimming, alike, "divergence", max_length=500)
    assert degenerate == ["f:1: both replies are the same tokens, so they nowhere part"]
    with pytest.raises(DataError, match="in all 1 pairs both are the same tokens"):
        read_pairs(trimming, same[:1], "content", max_length=500)


@pytest.mark.parametrize("read", [read for read in get_args(Read) if read != "decision"])
def test_prompts_alone_have_no_reply_to_read(read: Read) -> None:
    pair = Pair(Passage((Message("system", "Be warm."), *ASKED)), Passage(ASKED), where="f:1")
    with pytest.raises(DataError, match=f"f:1: `{read}` reads a reply, and this passage has none") as caught:
        read_pairs(TINY, [pair], read, max_length=500)
    assert "--read decision" in caught.value.hint
    assert [read for _, read in shown(PIP, pair, "decision")] == ["<|assistant|>"] * 2


@pytest.mark.parametrize("read", get_args(Read))
def test_long_passages_are_refused_and_never_cut(read: Read) -> None:
    (short, long) = with_system([chat("Okay.", "Why?"), chat("Okay." * 50, "Why?" * 50, "f:2")], ["a" * 60], ["b" * 60])
    limit = 150 if read != "decision" else 70
    with pytest.raises(DataError, match=r"f:[12]: \d+ tokens, the limit is"):
        read_pairs(TINY, [short, long], read, max_length=limit)
    assert len(read_pairs(TINY, [short, long], read, max_length=500)[0]) == 2


def test_nothing_to_read_and_unknown_positions_are_refused() -> None:
    with pytest.raises(DataError, match="no pairs"):
        read_pairs(TINY, [], "content", max_length=500)
    with pytest.raises(UsageError, match="no position `last`"):
        read_pairs(TINY, [texts("a", "b")], "last", max_length=500)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="f:1: the text is only white space"):
        read_pairs(TINY, [texts(" \n", "b")], "content", max_length=500)
    with pytest.raises(DataError, match="no chat template"):
        read_pairs(make_tokenizer(None), [chat("a", "b")], "content", max_length=500)
