"""From a version to something that can be composed: its base and vectors, opened and checked."""

from __future__ import annotations

from personality.composition.composer import Composer
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.errors import IncompatibleError
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.vectors.base import open_base
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.task_vector import open_task_vector


def base_of(repository: Repository, *, reread: bool = False) -> Checkpoint:
    """The repository's base, opened and checked against its fingerprint.

    Args:
        repository: where.
        reread: hash every byte even when no file was touched since the last time.
    """
    return open_base(repository.config().base, repository.root, None if reread else repository.cache)


def composer_of(repository: Repository, personality: Personality) -> Composer:
    """A composer for a personality of this repository.

    Raises:
        IncompatibleError: when it is for another base than the repository's.
        NotFoundError, CorruptError: when base or vectors are missing or damaged.
    """
    base = repository.config().base
    _check(personality.base, base)
    vectors = {
        use.vector: open_task_vector(repository, use.vector, use.label) for use in personality.uses if use.scale != 0
    }
    return Composer(base_of(repository), personality, vectors)


def _check(wanted: BaseIdentity, present: BaseIdentity) -> None:
    if wanted.fingerprint != present.fingerprint:
        raise IncompatibleError(
            f"the version is for the base {wanted}, this repository uses {present}",
            "check out the commit whose persona.toml names that base, or make a repository for it",
        )
