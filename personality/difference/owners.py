"""The changes of a recipe, one by one, so that the change of the weights can be attributed to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from personality.composition.composer import Composer
from personality.composition.weight_diff import Part
from personality.manifests.errors import IncompatibleError
from personality.manifests.personality_record import Personality

Compose = Callable[[Personality], Composer]

COMPOSITION = "composition"
"""What stands for a change of the composition method, beside the behaviors' names."""

_BOTH_WAYS = 2
"""Changes up to which the mean of first and last is Shapley's value."""


def parts_of(before: Personality, after: Personality, compose: Compose) -> list[Part]:
    """One part for each behavior whose use differs, and one for the composition where its method or settings do.

    A single change is the whole of it, and so are several together where a recipe in between cannot be composed.
    Under `linear` a behavior's contribution is s_B·τ_B − s_A·τ_A, which is exact. Every other method is joint: what a
    change does depends on the others. There its contribution is the mean of what it does first (A with this change
    alone − A) and of what it does last (B − B without this change). Of two changes that is Shapley's value (Shapley
    1953), whose shares add up to 1; of three and more it is an approximation.

    Args:
        before, after: on the same base.
        compose: makes a composer of any recipe on that base.
    """
    ends = {
        name: (compose(_only(before, name)), compose(_only(after, name)))
        for name in sorted({use.behavior for use in (*before.uses, *after.uses)})
        if before.use_of(name) != after.use_of(name)
    }
    changed = [name for name, (old, new) in ends.items() if old.touched or new.touched]  # steering changes no weights
    linear = before.composition.method == after.composition.method == "linear"
    if _of_weights(before) != _of_weights(after):
        changed.append(COMPOSITION)
    if len(changed) == 1:
        return [Part(changed[0], 1.0)]
    if linear:
        return [Part(name, 0.0, ((1.0, ends[name][1]), (-1.0, ends[name][0]))) for name in changed]
    exact = len(changed) <= _BOTH_WAYS
    try:
        ways = [(name, compose(_with(before, after, name)), compose(_with(after, before, name))) for name in changed]
    except IncompatibleError:  # such as two vectors where the method composes one: the change cannot be taken apart
        return [Part(" and ".join(changed), 1.0)]
    # ½ (A with it − A) + ½ (B − B without it) = ½ (B − A) + ½ (A with it) − ½ (B without it)
    return [Part(name, 0.5, ((0.5, alone), (-0.5, without)), exact) for name, alone, without in ways]


def _of_weights(personality: Personality) -> dict[str, Any]:
    """What of the composition changes weights."""
    return {key: value for key, value in personality.composition.effective().items() if key != "steering"}


def _only(personality: Personality, behavior: str) -> Personality:
    use = personality.use_of(behavior)
    return personality.model_copy(update={"uses": (use,) if use else ()})


def _with(personality: Personality, other: Personality, what: str) -> Personality:
    """A personality with one thing as another has it."""
    if what == COMPOSITION:
        return personality.model_copy(update={"composition": other.composition})
    use = other.use_of(what)
    return personality.with_use(use) if use else personality.without(what)
