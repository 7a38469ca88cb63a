from __future__ import annotations

import pytest

from personality.manifests.errors import DataError
from personality.proving.general_text import encode_general
from personality.vectors.training.examples import Example
from tests.vectors.training.conftest import make_tokenizer


def example(number: int, reply: str = "fine") -> Example:
    return Example(f"question {number}", f" {reply} {number}")


def test_every_fourth_example_is_held_out_and_none_is_lost() -> None:
    found = encode_general(make_tokenizer(), [example(number) for number in range(9)])
    assert (len(found.texts), len(found.held_out)) == (7, 2)
    assert not set(found.texts) & set(found.held_out)


def test_the_digest_is_that_of_what_is_used() -> None:
    tokenizer = make_tokenizer()
    plain = [example(number) for number in range(4)]
    found = encode_general(tokenizer, plain, max_length=60)
    with_long = encode_general(tokenizer, [*plain, example(5, "long " * 50)], max_length=60)
    assert with_long.digest == found.digest
    assert encode_general(tokenizer, plain[:3], max_length=60).digest != found.digest


def test_too_little_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"only 1 of 2 .*; .* tokens, the limit is 60"):
        encode_general(make_tokenizer(), [example(1), example(2, "long " * 50)], max_length=60)
