"""Constraints on a recipe, such as `general>=-2%` or `push_back>=0.9`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from personality.evaluation.goals import Goal
from personality.manifests.errors import UsageError
from personality.manifests.evaluation import ProbeResult

_FORM = re.compile(r"\s*([a-z][a-z0-9_.-]*)\s*(>=|<=)\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*(%?)\s*", re.IGNORECASE)
_EXACT = 1e-9  # what sums of shares may be off by


@dataclass(frozen=True)
class Constraint:
    """A limit on the share of replies that pass.

    Attributes:
        goal: what is limited.
        at_least: whether the limit is the least that is allowed; else the most.
        limit: a share, or a difference of shares.
        against_base: whether the difference from the base is limited, paired by row.
    """

    goal: str
    at_least: bool
    limit: float
    against_base: bool

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{self.goal}{sign}{self.limit * 100:+g}%" if self.against_base else f"{self.goal}{sign}{self.limit:g}"

    def slack(self, goal: Goal, base: Sequence[ProbeResult], results: Sequence[ProbeResult]) -> float:
        """How far the constraint is kept, as a share; negative where it is broken."""
        value = goal.passed(results).value - (goal.passed(base).value if self.against_base else 0.0)
        slack = value - self.limit if self.at_least else self.limit - value
        return 0.0 if abs(slack) < _EXACT else slack


def parse_constraints(texts: Sequence[str]) -> list[Constraint]:
    """Read constraints, each text one or several with commas between.

    `GOAL>=SHARE` limits the share of replies that pass, 0 to 1; `GOAL>=POINTS%` its difference from the base.

    Raises:
        UsageError: for a text that is no constraint, a limit out of range, or the same limit twice.
    """
    found = [_parse(part) for text in texts for part in text.split(",")]
    sides = [(item.goal, item.at_least, item.against_base) for item in found]
    for item, side in zip(found, sides, strict=True):
        if sides.count(side) > 1:
            raise UsageError(f"two constraints limit `{item.goal}` on the same side", "keep the stricter one")
    return found


def _parse(text: str) -> Constraint:
    match = _FORM.fullmatch(text)
    if match is None:
        raise UsageError(
            f"`{text.strip()}` is not a constraint",
            "write `general>=-2%` (points against the base) or `push_back>=0.9` (a share of replies)",
        )
    goal, sign, number, percent = match.groups()
    limit = float(number) / 100 if percent else float(number)
    if percent and not -1 <= limit <= 1:
        raise UsageError(f"`{text.strip()}`: a difference lies between -100% and 100%", "such as `general>=-2%`")
    if not percent and not 0 <= limit <= 1:
        hint = f"such as `{goal}{sign}0.9`; with a % sign it is the difference from the base in points"
        raise UsageError(f"`{text.strip()}`: a share lies between 0 and 1", hint)
    return Constraint(goal, sign == ">=", limit, bool(percent))
