from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personality.manifests.errors import DataError, UsageError
from personality.vectors.extraction.reading import ReadPair
from personality.vectors.extraction.split import split_pairs
from tests.tiny_readings import make_pairs


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(4, 60),
    held_out=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
    copies=st.lists(st.integers(0, 59), max_size=10),
    shuffle=st.integers(0, 9),
)
def test_parts_alike_in_any_order(count: int, held_out: float, seed: int, copies: list[int], shuffle: int) -> None:
    pairs = make_pairs(count)
    pairs += [ReadPair(pairs[i % count].positive, pairs[i % count].negative, f"copy {i}") for i in copies]
    train, test = split_pairs(pairs, held_out, seed)
    assert len(test) >= 1 and len(train) >= 2
    assert sorted(pair.where for pair in train + test) == sorted(pair.where for pair in pairs)
    assert not {(pair.positive, pair.negative) for pair in train} & {(pair.positive, pair.negative) for pair in test}
    assert [pair for pair in pairs if pair in train] == train
    mixed = list(pairs)
    random.Random(shuffle).shuffle(mixed)
    again = split_pairs(mixed, held_out, seed)
    assert {pair.where for pair in again[1]} == {pair.where for pair in test}


def test_holds_out_the_share_and_a_seed_moves_it() -> None:
    pairs = make_pairs(100)
    first, second = split_pairs(pairs)[1], split_pairs(pairs, seed=1)[1]
    assert len(first) == len(second) == 25
    assert {pair.where for pair in first} != {pair.where for pair in second}


def test_pairs_that_come_twice() -> None:
    pairs = make_pairs(2) * 2
    train, test = split_pairs(pairs)
    assert len(train) == len(test) == 2


def test_refuses_what_cannot_be_parted() -> None:
    with pytest.raises(DataError, match="3 usable pairs: at least 4"):
        split_pairs(make_pairs(3))
    with pytest.raises(DataError, match="5 pairs of only 1 kinds"):
        split_pairs(make_pairs(1) * 5)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(UsageError, match="held-out share"):
            split_pairs(make_pairs(8), share)
