from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality.manifests.canonical import SHORT, canonical_json, digest, digest_bytes, pretty_json, short

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def reordered(value: Any) -> Any:
    """An equal value whose keys were put in in the opposite order."""
    if isinstance(value, dict):
        return {key: reordered(item) for key, item in reversed(value.items())}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@given(JSON)
def test_order_of_keys_does_not_enter(value: Any) -> None:
    assert canonical_json(value) == canonical_json(reordered(value))
    assert pretty_json(value) == pretty_json(reordered(value))
    assert digest(value) == digest(reordered(value))


@given(JSON)
def test_both_forms_carry_the_whole_value(value: Any) -> None:
    assert json.loads(canonical_json(value)) == value
    assert json.loads(pretty_json(value)) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_round_trip_to_the_last_bit(value: float) -> None:
    back = json.loads(canonical_json(value))
    assert back == value
    assert math.copysign(1, back) == math.copysign(1, value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_carry_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"scale": [value]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        pretty_json(value)


def test_the_form_is_fixed() -> None:
    value = {"ä": 1, "a": [1.0, None, True], "b": {"d": "“x”", "c": 1e-07}}
    assert canonical_json(value).decode() == '{"a":[1.0,null,true],"b":{"c":1e-07,"d":"“x”"},"ä":1}'
    assert pretty_json({"b": 1, "a": 2}) == b'{\n "a": 2,\n "b": 1\n}\n'


def test_digest_is_sha256_of_the_canonical_form() -> None:
    assert digest({"b": 1, "a": 2}) == hashlib.sha256(b'{"a":2,"b":1}').hexdigest()
    assert digest_bytes(memoryview(b"abc")) == digest_bytes(b"abc") == hashlib.sha256(b"abc").hexdigest()
    assert short(digest(1)) == digest(1)[:SHORT]


@given(JSON, JSON)
def test_different_values_have_different_digests(one: Any, other: Any) -> None:
    assert (digest(one) == digest(other)) == (canonical_json(one) == canonical_json(other))
