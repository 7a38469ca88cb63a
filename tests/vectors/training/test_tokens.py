from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from personality.manifests.errors import DataError
from personality.vectors.training.examples import Example, Message
from personality.vectors.training.tokens import Encoded, encode, encode_examples

PROMPT = (Message("user", "Hi é"),)
ANSWER = (Message("assistant", "Hello you"),)


def with_template(tokenizer: Any, template: str | None, **changes: Any) -> Any:
    copy = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer,
        **{"eos_token": "<|end|>", "pad_token": "<|pad|>", **changes},
    )
    copy.chat_template = template
    return copy


def response(tokenizer: Any, encoded: Encoded) -> str:
    return str(tokenizer.decode(encoded.ids[encoded.start : encoded.stop]))


def test_the_response_is_what_the_model_must_generate(tokenizer: Any) -> None:
    encoded = encode(tokenizer, PROMPT, ANSWER, 100)
    assert tokenizer.decode(encoded.ids[: encoded.start]) == "<|user|> Hi é<|end|>\n<|assistant|> "
    # With the end-of-turn token, without the line break that the template adds behind it.
    assert response(tokenizer, encoded) == "Hello you<|end|>"
    assert tokenizer.decode(encoded.ids[encoded.stop :]) == "\n"


def test_earlier_turns_are_context_only(tokenizer: Any) -> None:
    prompt = (
        Message("system", "Be brief."),
        Message("user", "One?"),
        Message("assistant", "One."),
        Message("user", "Two?"),
    )
    encoded = encode(tokenizer, prompt, ANSWER, 200)
    assert response(tokenizer, encoded) == "Hello you<|end|>"
    context = tokenizer.decode(encoded.ids[: encoded.start])
    assert context.startswith("<|system|> Be brief.<|end|>")
    assert "<|assistant|> One.<|end|>" in context
    assert context.endswith("<|assistant|> ")


def test_an_answer_that_names_the_end_of_turn_is_kept_whole(tokenizer: Any) -> None:
    encoded = encode(tokenizer, PROMPT, (Message("assistant", "a<|end|>b"),), 100)
    assert response(tokenizer, encoded) == "a<|end|>b<|end|>"


def test_a_template_with_another_end_of_turn_token(tokenizer: Any) -> None:
    template = tokenizer.chat_template.replace("<|end|>\n", "<|turn|>\n")
    other = with_template(tokenizer, template, extra_special_tokens=["<|turn|>"])
    encoded = encode(other, PROMPT, ANSWER, 100)
    assert response(other, encoded) == "Hello you<|turn|>"


def test_a_template_without_an_end_of_turn(tokenizer: Any) -> None:
    other = with_template(
        tokenizer,
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
    )
    encoded = encode(other, PROMPT, ANSWER, 100)
    assert response(other, encoded) == "Hello you\n"


def test_templates_that_can_think_do_not_open_a_block(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}<|{{ m.role }}|> "
        "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
        "{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|> "
        "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
    )
    other = with_template(tokenizer, template)
    assert response(other, encode(other, PROMPT, ANSWER, 100)) == "Hello you<|end|>"


def test_plain_texts_end_with_the_end_of_text(tokenizer: Any) -> None:
    encoded = encode(tokenizer, "Question:", " answer", 100)
    assert tokenizer.decode(encoded.ids[: encoded.start]) == "Question:"
    assert response(tokenizer, encoded) == " answer<|end|>"
    assert encoded.stop == len(encoded.ids)


def test_what_the_tokenizer_lacks_is_named(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"data:3: chat messages, but the tokenizer has no chat template"):
        encode(with_template(tokenizer, None), PROMPT, ANSWER, 100, where="data:3")
    without_end = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer)
    with pytest.raises(DataError, match="no end-of-text token"):
        encode(without_end, "a", "b", 100)


def test_a_template_that_changes_the_prompt_is_refused(tokenizer: Any) -> None:
    template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(DataError, match="tokens change when the response follows"):
        encode(with_template(tokenizer, template), PROMPT, ANSWER, 100)


def test_a_template_that_raises_is_quoted(tokenizer: Any) -> None:
    template = "{{ raise_exception('no system turns here') }}"
    with pytest.raises(DataError, match="no system turns here"):
        encode(with_template(tokenizer, template), PROMPT, ANSWER, 100)


def test_long_examples_are_refused_and_never_cut(tokenizer: Any) -> None:
    examples = [Example("a", "b", "c"), Example("a", "b", "c" * 50, where="data.jsonl:9")]
    with pytest.raises(DataError, match=r"data.jsonl:9: 52 tokens, the limit is 51") as caught:
        encode_examples(tokenizer, examples, 51, with_rejected=True)
    assert "--max-length 52" in caught.value.hint
    assert len(encode_examples(tokenizer, examples, 52, with_rejected=True)) == 2
    assert [e.rejected for e in encode_examples(tokenizer, examples, 51, with_rejected=False)] == [None, None]


def test_pairs_need_both_answers(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="example 2: no rejected answer"):
        encode_examples(tokenizer, [Example("a", "b", "c"), Example("a", "b")], 50, with_rejected=True)


def test_mixed_forms_are_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="a chat and a plain text"):
        encode(tokenizer, PROMPT, "plain", 100)
