"""Contrastive vectors: the difference of two trainings, kept as one vector with both lineages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from personality.composition.opening import composer_of
from personality.making.arm import Bench, subtract, swapped
from personality.making.training_data import read_data
from personality.making.training_job import TrainingJob
from personality.making.training_run import train_behavior
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.model import load_composed, load_tokenizer
from personality.vectors.task_vector import open_task_vector
from personality.vectors.training.examples import digest_examples
from personality.vectors.training.settings import make_settings


def contrastive_job(root: Path, **settings: Any) -> TrainingJob:
    repository = Repository(root)
    return TrainingJob(
        behavior="attentive",
        data=root / "data/listening.jsonl",
        general=root / "data/general.jsonl",
        settings=make_settings(**{**repository.config().training, "lr": 2e-3, **settings}),
        examples=10,
        contrastive=True,
        preflight=False,
        probe_rows=0,
    )


def arms(repository: Repository, job: TrainingJob, folder: Path) -> tuple[Any, Any, Any]:
    """Toward, away and the base, trained one by one without the run's own machinery."""
    composer = composer_of(repository, Personality(base=repository.config().base))
    data = read_data(repository, job.model_copy(update={"allow_repeats": True}))
    bench = Bench(composer, load_tokenizer(composer.base.folder), job.settings, data.general, None, None, None, False)
    toward = bench.train(data.behavior, folder / "toward").model
    away = bench.train(swapped(data.behavior), folder / "away").model
    return toward, away, load_composed(composer)


def merged(model: Any) -> dict[str, Tensor]:
    """The weights that a model computes with, adapters merged in, in float32."""
    own = copy.deepcopy(model)
    if hasattr(own, "merge_and_unload"):
        own = own.merge_and_unload()
    return {name: parameter.detach().float() for name, parameter in own.named_parameters()}


@pytest.mark.parametrize("rank", [None, 4])
def test_the_vector_is_the_difference_of_two_models(repository_copy: Path, tmp_path: Path, rank: int | None) -> None:
    repository = Repository(repository_copy)
    job = contrastive_job(repository_copy, lora_rank=rank)
    trained = train_behavior(repository, job)
    toward, away, _ = arms(repository, job, tmp_path)
    vector = open_task_vector(repository, trained.manifest.id, trained.manifest.label)
    one, other = merged(toward), merged(away)
    moved = {name for name in one if not torch.equal(one[name], other[name])}
    assert moved == set(vector.shapes)
    for name in sorted(moved):
        difference = one[name] - other[name]
        # A vector is kept in bfloat16 or as factors: eight bits of each element.
        found = vector.rows(name, 0, vector.shapes[name][0]).float().reshape(difference.shape)
        assert (found - difference).norm() / difference.norm() < 2**-8, name


def test_in_float32_the_difference_is_exact(repository_copy: Path, tmp_path: Path) -> None:
    repository = Repository(repository_copy)
    toward, away, base = arms(repository, contrastive_job(repository_copy), tmp_path)
    wanted = {
        name: start + (new - old)
        for (name, start), new, old in zip(
            merged(base).items(), merged(toward).values(), merged(away).values(), strict=True
        )
    }
    subtract(toward, away, base)
    found = merged(toward)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_joined_adapters_are_the_difference(repository_copy: Path, tmp_path: Path) -> None:
    repository = Repository(repository_copy)
    toward, away, base = arms(repository, contrastive_job(repository_copy, lora_rank=4), tmp_path)
    start, new, old = merged(base), merged(toward), merged(away)
    subtract(toward, away, None)
    found = merged(toward)
    for name, tensor in start.items():
        torch.testing.assert_close(found[name], tensor + new[name] - old[name], rtol=0, atol=1e-6)


def test_swapped_is_the_opposite_lesson(repository_copy: Path) -> None:
    data = read_data(Repository(repository_copy), contrastive_job(repository_copy)).behavior
    other = swapped(data)
    assert [(item.chosen, item.rejected) for item in other] == [(item.rejected, item.chosen) for item in data]
    assert swapped(other) == data


def test_the_manifest_keeps_both_lineages(repository_copy: Path, persona: Callable[..., tuple[int, str, str]]) -> None:
    repository = Repository(repository_copy)
    job = contrastive_job(repository_copy)
    manifest = train_behavior(repository, job).manifest
    record = manifest.making.training
    assert record is not None
    data = read_data(repository, job.model_copy(update={"allow_repeats": True})).behavior
    assert set(record.arms) == {"toward", "away"}
    assert record.arms["toward"]["data"] == digest_examples(data)
    assert record.arms["away"]["data"] == digest_examples(swapped(data))
    for arm in record.arms.values():
        assert arm["examples"] == 10
        assert arm["sides"]["accept"] + arm["sides"]["push_back"] == 10
        assert arm["settings"]["lr"] == 2e-3
        assert arm["steps"] > 0
        assert arm["stopped"] is None
    code, out, err = persona("add", "attentive", "--scale", "0.8", cwd=repository_copy)
    assert code == 0, err
    assert "attentive" in out
