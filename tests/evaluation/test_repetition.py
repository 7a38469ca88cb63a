from __future__ import annotations

from typing import Any

import pytest
import torch

from personality.evaluation.repetition import repeated_grams, repetition


class Parrot(torch.nn.Module):
    """Answers every prompt with the same tokens, then with padding."""

    def __init__(self, *answers: list[int]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self._answers = answers
        self.generation_config = None

    def generate(self, input_ids: torch.Tensor, max_new_tokens: int, **_: Any) -> torch.Tensor:
        width = max(map(len, self._answers))
        rows = [answer + [7] * (width - len(answer)) for answer in self._answers]
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)


class Words:
    eos_token_id = 7
    pad_token_id = 7

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"asked for {name}")


def test_replies_count_up_to_their_end() -> None:
    echo, fresh = [1, 2, 3, 4, 1, 2, 3, 4], [1, 2, 3, 4, 5]
    found = repetition(Parrot(fresh, echo), Words(), [[9], [9]])
    assert found == pytest.approx((0.0 + repeated_grams(echo)) / 2)
    # What stands behind the end of a reply, padding above all, is no repetition.
    assert repetition(Parrot([1, 2, 7, 7, 7, 7, 7, 7, 7, 7]), Words(), [[9]]) == 0.0


def test_grams_that_occurred_before() -> None:
    assert repeated_grams([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repeated_grams([5] * 10) == pytest.approx(6 / 7)
    assert repeated_grams([1, 2, 3]) == 0.0
