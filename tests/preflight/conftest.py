"""The playground's base in memory, and its data as examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from personality.model import load_model, load_tokenizer
from personality.playground.behaviors import examples, general
from personality.playground.repository import GENERAL_EXAMPLES, OWN_GENERAL, TRAINING, base_folder
from personality.preflight.findings import Preflight
from personality.preflight.preflight import run_preflight
from personality.vectors.training.examples import Example, parse_example
from personality.vectors.training.settings import fitting, make_settings

Judge = Callable[..., Preflight]


def data_of(behavior: str, count: int = 200, **options: Any) -> list[Example]:
    rows = examples(behavior, count, 0, **options)
    return [parse_example(row, where=f"play/{behavior}.jsonl:{i}", need_rejected=True) for i, row in enumerate(rows, 1)]


def general_of(behavior: str, count: int = GENERAL_EXAMPLES) -> list[Example]:
    rows = general(count, 0, behavior if behavior in OWN_GENERAL else None)
    return [parse_example(row, where=f"play/general.jsonl:{i}", need_rejected=False) for i, row in enumerate(rows, 1)]


@pytest.fixture(scope="session")
def base() -> tuple[Any, Any]:
    return load_model(base_folder()), load_tokenizer(base_folder())


@pytest.fixture(scope="session")
def judge(base: tuple[Any, Any]) -> Judge:
    """`judge(examples, general, probes=…, method="dpo")`: a preflight with the playground's own settings."""

    def run(wanted: list[Example], others: list[Example], *, probes: Any = (), **changes: Any) -> Preflight:
        settings = make_settings(**fitting(TRAINING, changes))
        return run_preflight(*base, wanted, others, settings, probes=probes)

    return run
