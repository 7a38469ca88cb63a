"""Which pairs make a direction and which ones test it."""

from __future__ import annotations

from collections.abc import Sequence

from personality.manifests.errors import DataError, UsageError
from personality.vectors.extraction.reading import ReadPair
from personality.vectors.extraction.statistics import by_digest, pair_digest

_LEAST = 4


def split_pairs(
    pairs: Sequence[ReadPair], held_out: float = 0.25, seed: int = 0
) -> tuple[list[ReadPair], list[ReadPair]]:
    """Part pairs in those that make a direction and those that test it.

    Chosen by a digest of each pair's tokens and the seed: the same pairs are parted alike in whatever order they are
    listed. Pairs of the same tokens stay together, so none is tested that was learned from.

    Args:
        pairs: at least 4, of at least 2 kinds.
        held_out: share to test with, between 0 and 1; rounded, at least 1 pair, and 2 always remain.
        seed: of the choice.

    Returns:
        Pairs to learn from and held-out ones, each in the order given.

    Raises:
        DataError: too few pairs, or all alike.
        UsageError: a share that is not between 0 and 1.
    """
    if not 0 < held_out < 1:
        raise UsageError(f"a held-out share of {held_out}", "give a number between 0 and 1, such as 0.25")
    if len(pairs) < _LEAST:
        raise DataError(
            f"{len(pairs)} usable pairs: at least {_LEAST} are needed, some of them to test the direction with",
            "give more pairs; some dozens are usual",
        )
    wanted = min(max(1, round(len(pairs) * held_out)), len(pairs) - 2)
    kinds: dict[bytes, list[int]] = {}
    for index in by_digest(pairs, seed):
        kinds.setdefault(pair_digest(pairs[index], seed), []).append(index)
    test: set[int] = set()
    for same in kinds.values():
        if len(test) + len(same) <= wanted:
            test.update(same)
    fewest = min(kinds.values(), key=len)
    if not test and len(pairs) - len(fewest) >= 2:  # every kind is listed more often than was to be held out
        test.update(fewest)
    if not test:
        raise DataError(
            f"{len(pairs)} pairs of only {len(kinds)} kinds: none can be held out that is not learned from",
            "give pairs that differ from each other",
        )
    return (
        [pair for index, pair in enumerate(pairs) if index not in test],
        [pair for index, pair in enumerate(pairs) if index in test],
    )
