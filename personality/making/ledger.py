"""The ledger: which examples a behavior was trained on already."""

from __future__ import annotations

from collections.abc import Sequence

from personality.manifests.errors import DataError
from personality.manifests.repository import Repository
from personality.vectors.training.examples import Example, example_digest


def trained_on(repository: Repository, behavior: str) -> dict[str, str]:
    """Digests of the examples that a behavior's vectors were trained on, with the label of the first such vector.

    The manifests are the ledger: it merges with them, and a vector that is gone has used nothing.

    Args:
        repository: where.
        behavior: its name.
    """
    found: dict[str, str] = {}
    for manifest in repository.manifests():
        if manifest.behavior == behavior:
            for data in manifest.making.data:
                for digest in data.ledger:
                    found.setdefault(digest, manifest.label)
    return found


def repeated(repository: Repository, behavior: str, examples: Sequence[Example]) -> dict[str, list[Example]]:
    """The examples that were used before, by the label of the vector that was trained on them."""
    known = trained_on(repository, behavior)
    found: dict[str, list[Example]] = {}
    for example in examples:
        label = known.get(example_digest(example))
        if label is not None:
            found.setdefault(label, []).append(example)
    return found


def check_fresh(repository: Repository, behavior: str, examples: Sequence[Example], *, allow: bool) -> int:
    """Make sure that no example is used twice, unless that is wanted.

    Returns:
        How many were used before.

    Raises:
        DataError: when there are any and `allow` is false.
    """
    found = repeated(repository, behavior, examples)
    count = sum(len(items) for items in found.values())
    if count and not allow:
        label, items = next(iter(found.items()))
        fresh = len(examples) - count
        raise DataError(
            f"{count} of {len(examples)} examples were trained on already, such as {items[0].where} for `{label}`: "
            "each is meant to be used once",
            (f"use the other {fresh} (`--fresh`), write new ones" if fresh else "write new ones")
            + ", or train on them again: `--allow-repeats`",
        )
    return count


def only_fresh(repository: Repository, behavior: str, examples: Sequence[Example]) -> list[Example]:
    """The examples that were never used, in their order."""
    known = trained_on(repository, behavior)
    return [example for example in examples if example_digest(example) not in known]
