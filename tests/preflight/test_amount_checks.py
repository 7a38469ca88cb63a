from __future__ import annotations

from typing import Any

import pytest

from personality.preflight.amount_checks import check_count, check_general, check_rates, check_sides, check_too_long
from personality.vectors.training.examples import Example
from personality.vectors.training.settings import make_settings
from tests.vectors.training.conftest import make_general, make_pair

BILLION = 1_000_000_000


def sided(accept: int, push_back: int, unlabeled: int = 0) -> list[Example]:
    sides: list[Any] = ["accept"] * accept + ["push_back"] * push_back + [None] * unlabeled
    return [make_pair(number, side) for number, side in enumerate(sides)]


@pytest.mark.parametrize(("count", "level"), [(9, "change"), (10, "note"), (49, "note"), (50, None)])
def test_counts(count: int, level: str | None) -> None:
    assert [found.level for found in check_count(sided(count, 0))] == ([level] if level else [])


@pytest.mark.parametrize(
    ("accept", "push_back", "says"),
    [(20, 0, "sycophants"), (90, 10, "sycophants"), (0, 20, "push back on everything"), (10, 90, "push back on ever")],
)
def test_one_sided(accept: int, push_back: int, says: str) -> None:
    (found,) = check_sides(sided(accept, push_back))
    assert (found.level, found.name) == ("change", "one-sided")
    assert says in found.text and f"{accept} examples accept and {push_back} push back" in found.text


def test_both_sides() -> None:
    assert list(check_sides(sided(85, 15))) == []
    (found,) = check_sides(sided(60, 20, 5))
    assert (found.level, found.text) == ("note", "5 of 85 examples have no `side`")


def test_without_labels_the_words_tell_whether_pairs_point_one_way() -> None:
    pairs = [make_pair(i, None) for i in range(20)]
    (found,) = check_sides(pairs)
    assert (found.level, found.name) == ("change", "one-sided")
    turned = [Example(p.prompt, p.rejected, p.chosen) if i % 4 == 0 else p for i, p in enumerate(pairs)]  # type: ignore[arg-type]
    (found,) = check_sides(turned)
    assert (found.level, found.name) == ("note", "unlabeled examples")
    (found,) = check_sides([Example(p.prompt, p.chosen) for p in pairs])  # nothing to compare with
    assert found.level == "note"


@pytest.mark.parametrize(
    ("given", "ratio", "name"),
    [
        (0, 0.25, "no general data"),
        (10, 0.0, "no general data"),
        (4, 0.25, "too little general data"),
        (9, 0.1, "too little general data"),
        (5, 0.25, None),
    ],
)
def test_general_data(given: int, ratio: float, name: str | None) -> None:
    found = list(check_general(sided(20, 0), [make_general(i) for i in range(given)], ratio))
    assert [item.name for item in found] == ([name] if name else [])
    assert all(item.level == "change" and "--general" in item.advice for item in found)


def test_too_long() -> None:
    assert list(check_too_long([5, 8], ["a:1", "a:2"], 8)) == []
    (found,) = check_too_long([5, 8, 12], ["a:1", "a:2", "a:3"], 7)
    assert "2 of 3" in found.text and "a:2 (8), a:3 (12)" in found.text
    assert "--max-length 12" in found.advice


@pytest.mark.parametrize(
    ("settings", "parameters", "level", "advice"),
    [
        ({}, BILLION, None, ""),
        ({"method": "orpo", "lr": 4e-5}, BILLION, None, ""),
        ({"method": "orpo", "lr": 6e-5}, BILLION, "change", "--lr 1e-05"),
        ({"method": "orpo", "lr": 1e-6}, BILLION, "change", "--lr 1e-05"),
        ({"method": "dpo", "lr": 2e-5}, BILLION, "no-go", "--lr 5e-07"),  # the rate of SFT
        ({"method": "sft", "lr": 2e-5}, 500_000, "no-go", "--lr 0.002"),  # a large model's rate on a tiny one
        ({"method": "sft-dpo", "lr": 2e-5, "dpo_lr": 2e-5}, BILLION, "no-go", "--dpo-lr 5e-07"),
        ({"method": "sft", "lr": 2e-4, "lora_rank": 8}, BILLION, None, ""),  # adapters want larger rates
        ({"method": "sft", "lr": 2e-4}, BILLION, "change", "--lr 2e-05"),
    ],
)
def test_rates(settings: dict[str, Any], parameters: int, level: str | None, advice: str) -> None:
    found = list(check_rates(make_settings(**settings), parameters))
    assert [item.level for item in found] == ([level] if level else [])
    assert all(advice in item.advice for item in found)
