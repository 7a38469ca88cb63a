"""Which probes a behavior should raise, which it must keep, and which are other abilities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from personality.evaluation.suite import Probe

PASSES = 0.75
"""Share of a probe's rows from which on the base counts as doing it already."""


GENERAL_LOSS = 0.02
"""General ability that may go without a penalty: chance alone takes as much."""


@dataclass(frozen=True)
class Roles:
    """The names of a behavior's probes, by what they are there for.

    Attributes:
        wanted: what the vector should raise.
        held: the other side of a judgment, and what the base does already: it can only be lost.
        general: abilities that have nothing to do with the behavior.
    """

    wanted: tuple[str, ...]
    held: tuple[str, ...]
    general: tuple[str, ...]

    @property
    def own(self) -> tuple[str, ...]:
        """The behavior's own probes."""
        return self.wanted + self.held


def roles(behavior: str, probes: Sequence[Probe], base: Mapping[str, float]) -> Roles:
    """Sort probes.

    Args:
        behavior: its own probes are those named `<behavior>.…`.
        probes: any.
        base: share of the base's greedy replies that pass, by probe.
    """
    found: dict[str, list[str]] = {"wanted": [], "held": [], "general": []}
    for probe in probes:
        role = "general"
        if probe.name.startswith(f"{behavior}."):
            role = "held" if probe.side == "push_back" or base[probe.name] >= PASSES else "wanted"
        found[role].append(probe.name)
    return Roles(tuple(found["wanted"]), tuple(found["held"]), tuple(found["general"]))


def score(shares: Mapping[str, float], base: Mapping[str, float], parts: Roles) -> float:
    """Mean gain of the wanted probes − losses of the held ones − loss of general ability beyond `GENERAL_LOSS`.

    Args:
        shares: figures by probe, 0 to 1.
        base: the base's.
        parts: which probe is there for what.
    """
    gain = _mean(shares[name] - base[name] for name in parts.wanted)
    loss = sum(max(0.0, base[name] - shares[name]) for name in parts.held)
    general = _mean(base[name] - shares[name] for name in parts.general)
    return gain - loss - max(0.0, general - GENERAL_LOSS)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
