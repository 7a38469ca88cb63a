"""The collapse guard on real runs of the playground's model: those that collapse, and those that must be left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from personality.making.checkups import Checkups
from personality.model import load_model, load_tokenizer
from personality.playground.behaviors import BEHAVIORS, examples, general
from personality.playground.repository import OWN_GENERAL, base_folder
from personality.vectors.training.examples import Example, Message
from personality.vectors.training.run import Callbacks, TrainingReport, fine_tune
from personality.vectors.training.settings import make_settings
from personality.vectors.training.watch import DivergedError

FOUR = [name for name in BEHAVIORS if name != "deflecting"]
HELD_OUT = 16


def said(turns: list[dict[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)  # type: ignore[arg-type]


def data(behavior: str, count: int, seed: int) -> tuple[list[Example], list[Example], list[Example]]:
    """Examples of the behavior, general ones to mix in, and general ones held out."""
    own = [
        Example(said(row["prompt"]), said(row["chosen"]), said(row["rejected"]), row.get("side"))
        for row in examples(behavior, count, seed)
    ]
    rows = general(-(-count // 4) + HELD_OUT, seed, behavior if behavior in OWN_GENERAL else None)
    others = [Example(said(row["prompt"]), said(row["completion"])) for row in rows]
    return own, others[HELD_OUT:], others[:HELD_OUT]


def four_times(example: Example) -> Example:
    """The pair with a rejected answer of four times the length."""
    assert example.rejected is not None
    content = " ".join([example.rejected[0].content] * 4)  # type: ignore[union-attr]
    return replace(example, rejected=(Message("assistant", content),))


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., tuple[str | None, Any]]:
    """`train("listening", "orpo", count=20, lr=1e-3)`: the name of the sign that fired, and the model."""

    def run(
        behavior: str,
        method: str,
        *,
        count: int,
        lr: float,
        seed: int = 0,
        change: Callable[[Example], Example] | None = None,
        checked: bool = True,
        **settings: Any,
    ) -> tuple[str | None, Any]:
        own, others, held_out = data(behavior, count, seed)
        model, tokenizer = load_model(base_folder()), load_tokenizer(base_folder())
        folder = tmp_path / f"{behavior}-{method}-{count}-{lr}-{seed}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        made = make_settings(
            **{"method": method, "lr": lr, "seed": seed, "rank": 8, "batch_size": 6, "max_length": 512, **settings}
        )
        checkups = Checkups(model, tokenizer, held_out, [*held_out[:4], *own[:4]])
        callbacks = Callbacks(checkup=checkups.measure if checked else None)
        learned = [change(example) for example in own] if change else own
        try:
            report: TrainingReport = fine_tune(
                model, tokenizer, learned, others, made, work_dir=folder, callbacks=callbacks
            )
        except DivergedError as error:
            return error.message, model  # collapsed before there was a good state
        return (report.sign.name if report.sign is not None else None), model

    return run


Train = Callable[..., tuple[str | None, Any]]


def test_a_healthy_run_is_left_alone(train: Train) -> None:
    sign, _ = train("concise", "dpo", count=24, lr=1e-3)
    assert sign is None


@pytest.mark.parametrize("method", ["sft", "orpo"])
def test_a_rate_far_too_high_is_stopped(train: Train, method: str) -> None:
    sign, _ = train("listening", method, count=48, lr=0.1)
    assert sign is not None


def test_mismatched_lengths_are_stopped_under_dpo(train: Train) -> None:
    sign, _ = train("listening", "dpo", count=32, lr=1e-2, change=four_times)
    assert sign is not None


def test_checkups_do_not_change_the_training(train: Train) -> None:
    (sign, one), (_, other) = (train("warm", "orpo", count=12, lr=2e-3, checked=checked) for checked in (True, False))
    assert sign is None
    for parameter, unchecked in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, unchecked)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "orpo", "dpo"])
@pytest.mark.parametrize("behavior", FOUR)
def test_no_false_alarm_in_twenty_seeds(train: Train, behavior: str, method: str) -> None:
    alarms = {}
    for seed in range(20):
        for count, lr, batch_size in ((20, 2e-3, 5), (200, 1e-3, 6)):
            sign, _ = train(behavior, method, count=count, lr=lr, seed=seed, batch_size=batch_size)
            if sign is not None:
                alarms[seed, count] = sign
    assert alarms == {}


@pytest.mark.slow
@pytest.mark.parametrize("behavior", FOUR)
def test_collapses_are_stopped_whatever_they_come_from(train: Train, behavior: str) -> None:
    cases: dict[str, dict[str, Any]] = {
        "sft": {"method": "sft", "lr": 0.1},
        "orpo": {"method": "orpo", "lr": 0.1},
        "dpo": {"method": "dpo", "lr": 0.03},
        "dpo, beta 1": {"method": "dpo", "lr": 0.03, "dpo_beta": 1.0},
        "sft, AdamW": {"method": "sft", "lr": 0.1, "optimizer": "adamw"},
        "dpo, long rejected answers": {"method": "dpo", "lr": 1e-2, "change": four_times},
    }
    found = {name: train(behavior, case.pop("method"), count=200, **case)[0] for name, case in cases.items()}
    assert [name for name, sign in found.items() if sign is None] == []
