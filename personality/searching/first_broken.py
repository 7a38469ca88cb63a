"""Finding the first broken version between a good and a bad one, through merges, as `git bisect` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


def ancestors(parents: Mapping[str, Sequence[str]], name: str) -> set[str]:
    """A version, and all that it was made from."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        if (here := waiting.pop()) not in found:
            found.add(here)
            waiting += parents[here]
    return found


def first_broken(
    parents: Mapping[str, Sequence[str]],
    good: str,
    bad: str,
    look: Callable[[str], bool | None],
) -> list[str]:
    """The version that broke something: itself broken, its parents not.

    Every look halves what is left as nearly as the graph allows: the version is chosen whose number of ancestors among
    the candidates is nearest to half of them. What stays broken once it is broken is found for certain; where it broke
    and was mended several times, one of the breaks is.

    Args:
        parents: of every version; a merge has several.
        good, bad: where it works and where it is broken; `good` is an ancestor of `bad`. Neither is looked at.
        look: whether a version is broken; None when that cannot be told, and then others are looked at instead.

    Returns:
        One version; or several when those between cannot be told: the first that is known to be broken comes first,
        then the skipped ones, any of which may have broken it before.
    """
    candidates = ancestors(parents, bad) - ancestors(parents, good)
    order = {name: number for number, name in enumerate(parents)}
    skipped: set[str] = set()
    while left := candidates - skipped - {bad}:
        found = min(left, key=lambda name: (_imbalance(parents, name, candidates), order[name]))
        broken = look(found)
        if broken is None:
            skipped.add(found)
        elif broken:
            bad = found
            candidates &= ancestors(parents, found)
        else:
            candidates -= ancestors(parents, found)
    return [bad, *sorted(candidates - {bad}, key=lambda name: order[name])]


def _imbalance(parents: Mapping[str, Sequence[str]], name: str, candidates: set[str]) -> int:
    """How far a look at this version is from halving the candidates."""
    below = len(ancestors(parents, name) & candidates)
    return abs(len(candidates) - 2 * below)
