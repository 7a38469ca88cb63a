"""From a version to something that can be composed: its base and vectors, opened and checked."""

from __future__ import annotations

from personality.composition.composer import Composer
from personality.composition.engine import Engine
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.errors import IncompatibleError
from personality.manifests.personality_record import Personality, Use
from personality.manifests.repository import Repository
from personality.manifests.vector_store import vector_kind
from personality.vectors.base import open_base
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.steering.injection import Injection, injections, orthogonalized
from personality.vectors.steering.steering_file import open_steering
from personality.vectors.task_vector import open_task_vector


def base_of(repository: Repository, *, reread: bool = False) -> Checkpoint:
    """The repository's base, opened and checked against its fingerprint.

    Args:
        repository: where.
        reread: hash every byte even when no file was touched since the last time.
    """
    return open_base(repository.config().base, repository.root, None if reread else repository.cache)


def composer_of(repository: Repository, personality: Personality, engine: Engine | None = None) -> Composer:
    """A composer for a personality of this repository.

    Args:
        repository: where.
        personality: for its base.
        engine: how blocks are composed; None for the usual way.

    Raises:
        IncompatibleError: when it is for another base than the repository's.
        NotFoundError, CorruptError: when base or vectors are missing or damaged.
    """
    _check(personality.base, repository.config().base)
    steering = steering_of(repository, personality)
    steered = {item.label for item in steering}
    base = base_of(repository)
    vectors = {
        use.vector: open_task_vector(repository, use.vector, use.label, base=base)
        for use in personality.uses
        if use.scale != 0 and use.label not in steered
    }
    return Composer(base, personality, vectors, steering, engine=engine, cache=repository.cache)


def steering_of(repository: Repository, personality: Personality) -> tuple[Injection, ...]:
    """What a personality's steering vectors do to a model in memory; empty when it uses none.

    Raises:
        IncompatibleError: a layer for which a vector has no direction; directions that cannot be made orthogonal.
        NotFoundError, CorruptError: when a vector is missing or damaged.
    """
    found = [
        item
        for use in personality.uses
        if use.scale != 0 and _steers(repository, use)
        for item in injections(open_steering(repository, use.vector, use.label), use.scale, use.layers, use.label)
    ]
    return orthogonalized(found) if personality.composition.steering == "orthogonal" else tuple(found)


def _steers(repository: Repository, use: Use) -> bool:
    return vector_kind(repository, use.vector, use.label) == "steering"


def _check(wanted: BaseIdentity, present: BaseIdentity) -> None:
    if wanted.fingerprint != present.fingerprint:
        raise IncompatibleError(
            f"the version is for the base {wanted}, this repository uses {present}",
            "check out the commit whose persona.toml names that base, or make a repository for it",
        )
