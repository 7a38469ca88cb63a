"""`gradients` on a playground's base: what the method of frozen contexts claims, measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from personality.making.gradients import report_gradients
from personality.manifests.errors import DataError, UsageError
from personality.manifests.repository import Repository
from personality.vectors.training.settings import make_settings


@pytest.mark.parametrize("method", ["sft", "dpo", "orpo", "sft-dpo"])
def test_every_method(repository_copy: Path, method: Any) -> None:
    repository = Repository(repository_copy)
    settings = make_settings(**{**repository.config().training, "method": method})
    report = report_gradients(repository, repository_copy / "data/listening.jsonl", settings, examples=20)
    groups = {group.group: group for group in report.groups}
    assert groups["attention.q"].cosine > 0.9
    assert groups["attention.k"].cosine < 0.7
    assert groups["attention.v"].norm_ratio < 0.7
    assert groups["mlp.down"].cosine > 0.9
    assert "norm" not in groups  # is not trained either
    assert report.frozen.memory_bytes < 0.8 * report.full.memory_bytes
    assert report.batches == 4


def test_only_what_is_asked_for(repository_copy: Path) -> None:
    repository = Repository(repository_copy)
    data = repository_copy / "data/listening.jsonl"
    report = report_gradients(repository, data, make_settings(only=("attention.q", "norm"), layers="1"), examples=5)
    assert [group.group for group in report.groups] == ["attention.q", "norm", "all"]
    with pytest.raises(UsageError, match="gdn"):
        report_gradients(repository, data, make_settings(only=("gdn",)))


def test_data_without_pairs(repository_copy: Path) -> None:
    repository = Repository(repository_copy)
    data = repository_copy / "plain.jsonl"
    record = {"prompt": [{"role": "user", "content": "Hi."}], "chosen": [{"role": "assistant", "content": "Okay."}]}
    data.write_text(json.dumps(record) + "\n", encoding="utf-8")
    assert report_gradients(repository, data, make_settings(method="sft")).batches == 1
    with pytest.raises(DataError, match=r"plain\.jsonl:1"):
        report_gradients(repository, data, make_settings(method="orpo"))
