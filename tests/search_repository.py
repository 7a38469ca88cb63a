"""A repository for the searches' tests: nine versions of the playground, of which one has a vector that only obeys."""

from __future__ import annotations

import shutil
from pathlib import Path

from personality.making.training_job import TrainingJob
from personality.making.training_run import train_behavior
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.vectors.training.settings import make_settings
from personality.versions.changes import add, remove, rescale

PLANTED = "v6"


def make_history(playground: Path, root: Path) -> Repository:
    """A copy of the tests' playground with v1 to v9: `listening` and `concise` go in and out, and v6 adds `obeying`,
    trained on clear directions alone, after which harmful ones are followed too.
    """
    shutil.copytree(playground, root)
    repository = Repository(root)
    settings = make_settings(**{**repository.config().training, "lr": 0.003, "general_ratio": 0})
    job = TrainingJob(
        behavior="obeying",
        data=root / "data/listening-one-sided.jsonl",
        general=None,
        settings=settings,
        examples=40,
        allow_repeats=True,
        force=True,
        probe_rows=0,
    )
    train_behavior(repository, job)
    add(repository, VectorLabel("listening"), 0.8)
    rescale(repository, "listening", 1.0)
    add(repository, VectorLabel("concise"), 0.6)
    rescale(repository, "concise", 1.0)
    add(repository, VectorLabel("obeying"), 0.9, message="follows directions better")
    rescale(repository, "concise", 0.9)
    rescale(repository, "listening", 0.9)
    remove(repository, "concise")
    return repository
