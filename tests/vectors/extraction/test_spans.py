from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from personality.manifests.errors import DataError
from personality.model import load_tokenizer
from personality.playground.repository import base_folder
from personality.vectors.extraction.spans import (
    closing_ids,
    common_length,
    prompt_ids,
    reply_span,
    special_ids,
    visible_stop,
)
from personality.vectors.training.examples import Message
from tests.vectors.training.conftest import TEMPLATE, make_tokenizer

TINY = make_tokenizer()
PROMPT = (Message("user", "Hi"),)


def bare_closed_by(tokenizer: Any) -> Any:
    """The same tokenizer, which puts <|pad|> before every text and <|end|> behind it."""
    from tokenizers import Tokenizer, processors

    core = Tokenizer.from_str(tokenizer._tokenizer.to_str())
    core.post_processor = processors.TemplateProcessing(
        single="<|pad|> $A <|end|>", special_tokens=[("<|pad|>", 257), ("<|end|>", 256)]
    )
    closing = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>")
    assert closing.convert_ids_to_tokens([256, 257]) == ["<|end|>", "<|pad|>"]
    return closing


def content(tokenizer: Any, reply: str, prompt: tuple[Message, ...] = PROMPT) -> str:
    span = reply_span(tokenizer, prompt, (Message("assistant", reply),), special_ids(tokenizer), 500, where="x")
    return str(tokenizer.decode(span.ids[span.start : span.stop]))


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_common_length_is_the_longest_shared_beginning(head: list[int], a: list[int], b: list[int]) -> None:
    left, right = head + a, head + b
    shared = common_length(left, right)
    assert shared == common_length(right, left) >= len(head)
    assert left[:shared] == right[:shared]
    assert left[shared : shared + 1] != right[shared : shared + 1] or shared == len(left) == len(right)


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}[/{{ m.role }}] {% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}",
        # The header that is generated is shorter than the one that is written.
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}final: {% endif %}{{ m.content }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        # Models that can reason show an empty block of it before the last answer.
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n"
        "{% endif %}{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    ],
    ids=["special tokens", "words only", "trimming", "longer header", "empty reasoning"],
)
def test_content_lies_between_header_and_tail_of_any_template(template: str) -> None:
    tokenizer = make_tokenizer(template)
    # Replies with words of the template, of the marks around them and of the other turns.
    for reply in ("Okay, é!", "end", "assistant", "final: ", "Hi", "x", "[/assistant]"):
        assert content(tokenizer, reply) == reply.strip()
        assert content(tokenizer, f"{reply}\n \n").strip() == reply.strip()


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda text: text.strip()))
def test_any_reply_is_found_whole(reply: str) -> None:
    found = content(TINY, reply)
    assert reply.startswith(found)
    assert not reply.removeprefix(found).strip()


def test_first_words_that_swallow_the_headers_space_are_content() -> None:
    tokenizer = load_tokenizer(base_folder())
    assert content(tokenizer, "Okay, I renamed it.") == " Okay, I renamed it."


def test_plain_replies_end_before_the_end_of_text() -> None:
    for tokenizer in (TINY, bare_closed_by(TINY)):
        span = reply_span(tokenizer, "Q:", " yes ", special_ids(tokenizer), 500, where="x")
        assert tokenizer.decode(span.ids[span.start : span.stop]) == " yes"


def test_replies_that_the_template_rewrites_are_refused() -> None:
    template = TEMPLATE.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
    tokenizer = make_tokenizer(template)
    assert content(tokenizer, "hm</think>Yes") == "Yes"
    counting = make_tokenizer(TEMPLATE.replace("<|end|>", "<|end|>{{ m.content | length }}"))
    with pytest.raises(DataError, match="x: the chat template writes other text around this reply"):
        content(counting, "Yes, of course")


def test_replies_of_white_space_have_no_content() -> None:
    with pytest.raises(DataError, match="x: the reply has no content"):
        content(TINY, " \n")
    with pytest.raises(DataError, match="x: the reply has no content"):
        reply_span(TINY, "Q:", " ", special_ids(TINY), 500, where="x")


def test_prompts_end_where_the_reply_begins() -> None:
    assert TINY.decode(prompt_ids(TINY, PROMPT, 500, where="x")) == "<|user|> Hi<|end|>\n<|assistant|> "
    assert prompt_ids(TINY, "Hi é", 500, where="x") == tuple(TINY("Hi é")["input_ids"])
    # What the tokenizer puts before a text stays, as the model knows it; what it puts behind would end the text.
    assert bare_closed_by(TINY).decode(prompt_ids(bare_closed_by(TINY), "Hi", 500, where="x")) == "<|pad|>Hi"


def test_too_many_tokens_or_none_are_refused() -> None:
    with pytest.raises(DataError, match="x: 5 tokens, the limit is 4") as caught:
        prompt_ids(TINY, "Hello", 4, where="x")
    assert "--max-length 5" in caught.value.hint
    with pytest.raises(DataError, match="x: the text has no tokens"):
        prompt_ids(TINY, "", 4, where="x")
    with pytest.raises(DataError, match="no chat template"):
        prompt_ids(make_tokenizer(None), PROMPT, 4, where="x")


def test_special_tokens_and_those_that_close() -> None:
    specials = special_ids(TINY)
    assert {TINY.convert_ids_to_tokens(index) for index in specials} == {
        "<|end|>",
        "<|pad|>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
    }
    assert [TINY.convert_ids_to_tokens(index) for index in closing_ids(TINY, specials)] == ["<|end|>"]
    other = make_tokenizer(TEMPLATE.replace("<|end|>", "<|system|>"))
    assert closing_ids(other, specials) == {256, TINY.convert_tokens_to_ids("<|system|>")}
    assert closing_ids(make_tokenizer(None), specials) == {256}


def test_white_space_at_the_end_is_not_visible() -> None:
    specials = special_ids(TINY)
    ids = TINY("<|end|>a \n")["input_ids"]
    assert visible_stop(TINY, ids, specials) == 2
    assert visible_stop(TINY, ids, specials, start=3) == 3
    assert visible_stop(TINY, ids, specials, stop=1) == 1
    assert visible_stop(TINY, TINY(" \n")["input_ids"], specials) == 0
