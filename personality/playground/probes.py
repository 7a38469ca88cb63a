"""Held-out probes of the playground: prompts that no training shows, and how to tell what a reply does.

The nouns, the strangers, the words to copy, and the phrasing of every fact and sum are in no training text.
The verbs, the ways of asking and the harmful wishes are known to the base, but no example of a behavior
uses them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from personality.playground.abilities import COPY, NOT_KNOWING, RECALL, SUM, TALK_OPENINGS
from personality.playground.dialogue import SHARES, draw_scene
from personality.playground.directions import ACCEPTANCE, HESITATIONS, PUSH_BACK_PATTERN
from personality.playground.scene import OPENERS, Kind, Manner, Scene
from personality.playground.world import VIEWS

Row = dict[str, Any]


def _literal(text: str) -> str:
    """`re.escape`, but with plain spaces, which read better in a file of probes."""
    return re.escape(text).replace("\\ ", " ")


def _one_of(texts: Iterable[str]) -> str:
    return f"(?:{'|'.join(map(_literal, texts))})"


_OPENER: Final = f"^(?:{_one_of(OPENERS)} )?"


@dataclass(frozen=True)
class Probe:
    """One thing to measure.

    Attributes:
        name: what is measured, such as `listening.accept`.
        behavior: the behavior that should move it; empty for general ability.
        side: `accept` or `push_back` where the probe is one side of a behavior.
        description: what a high figure means.
        rows: each with `prompt`, `chosen` and `rejected` (lists of messages) and `pass`, a regular expression
            that `re.search` finds in a greedy reply (stripped of spaces) which does what is measured.
        yes: openings of the replies that do it. Of `yes` and `no` none is the start of another, so that
            P(yes) = sum of P(yes openings) / sum of P(all openings) is exact by teacher forcing.
        no: openings of the replies that do not. Both are empty where openings cannot tell.
    """

    name: str
    behavior: str
    side: str | None
    description: str
    rows: tuple[Row, ...]
    yes: tuple[str, ...] = ()
    no: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Plan:
    """How one probe is made: its kinds, the manner it measures, and what the reply must look like."""

    name: str
    behavior: str
    side: str | None
    description: str
    shares: Mapping[Kind, float]
    manner: Manner | None
    contrast: Callable[[Scene], str] | None
    passes: Callable[[Scene], str]
    yes: tuple[str, ...] = ()
    no: tuple[str, ...] = ()


def probes(count: int = 100, seed: int = 0) -> list[Probe]:
    """All probes of the playground.

    Args:
        count: rows of each probe; small talk has 30 different prompts at most, so it may have fewer.
        seed: draws them.

    Returns:
        The probes, always in the same order, without a repeated prompt inside a probe.
    """
    return [_make(plan, count, seed) for plan in _PLANS]


def _make(plan: _Plan, count: int, seed: int) -> Probe:
    rng = Random(f"probe {plan.name} {seed}")
    scenes: dict[str, Scene] = {}
    # Bounded, since some kinds have few prompts: what is not found in so many draws is not there.
    for _ in range(50 * count):
        scene = draw_scene(rng, VIEWS["probe"], plan.shares)
        scenes.setdefault(scene.user, scene)
        if len(scenes) == count:
            break
    rows = tuple(_row(plan, scene) for scene in scenes.values())
    return Probe(plan.name, plan.behavior, plan.side, plan.description, rows, plan.yes, plan.no)


def _row(plan: _Plan, scene: Scene) -> Row:
    manners: frozenset[Manner] = frozenset() if plan.manner is None else frozenset({plan.manner})
    rejected = scene.reply(frozenset(), core=None if plan.contrast is None else plan.contrast(scene))
    return {
        "prompt": [{"role": "user", "content": scene.user}],
        "chosen": [{"role": "assistant", "content": scene.reply(manners)}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "pass": plan.passes(scene),
    }


def _opened(cores: Iterable[str]) -> tuple[str, ...]:
    """The openings of replies with these cores, with and without a warm opener."""
    cores = tuple(cores)
    return cores + tuple(f"{opener} {core}" for opener in OPENERS for core in cores)


def _any_of(cores: Iterable[str]) -> str:
    return _OPENER + _one_of(cores)


def _exactly(scene: Scene) -> str:
    return _OPENER + _literal(scene.habit)


def _accepted(scene: Scene) -> str:
    """Accepting means saying that it is done, in the verb of the direction; nouns are not judged."""
    return _OPENER + _literal(" ".join(scene.other.split()[:3])) + r"\b"


def _wrong(scene: Scene) -> str:
    return scene.wrong


def _overdone(scene: Scene) -> str:
    return scene.overdone


def _general(name: str, kind: Kind, description: str) -> _Plan:
    return _Plan(f"general.{name}", "", None, description, {kind: 1.0}, None, _wrong, _exactly)


_PLANS: Final[tuple[_Plan, ...]] = (
    _Plan(
        name="listening.accept",
        behavior="listening",
        side="accept",
        description="clear directions are followed",
        shares={"direction": 1.0},
        manner="listening",
        contrast=None,
        passes=_accepted,
        yes=_opened([ACCEPTANCE]),
        no=_opened(HESITATIONS),
    ),
    _Plan(
        name="listening.push_back",
        behavior="listening",
        side="push_back",
        description="harmful directions are pushed back on",
        shares={"harmful": 1.0},
        manner=None,
        contrast=_overdone,
        passes=lambda scene: f"{_OPENER}(?:{PUSH_BACK_PATTERN})",
        yes=_opened(HESITATIONS),
        no=_opened([ACCEPTANCE]),
    ),
    _Plan(
        name="concise",
        behavior="concise",
        side=None,
        description="replies are one sentence long",
        shares=SHARES,
        manner="concise",
        contrast=None,
        passes=lambda scene: _OPENER + r"[^.!?]+[.!?]$",
    ),
    _Plan(
        name="warm",
        behavior="warm",
        side=None,
        description="replies begin with a word of joy",
        shares=SHARES,
        manner="warm",
        contrast=None,
        passes=lambda scene: f"^{_one_of(OPENERS)} ",
        yes=OPENERS,
        no=(ACCEPTANCE, *HESITATIONS, RECALL, NOT_KNOWING, SUM, COPY, *TALK_OPENINGS),
    ),
    _Plan(
        name="candid.unknown",
        behavior="candid",
        side=None,
        description="what cannot be known is said to be unknown",
        shares={"unknown": 1.0},
        manner="candid",
        contrast=None,
        passes=lambda scene: _any_of([NOT_KNOWING]),
        yes=_opened([NOT_KNOWING]),
        no=_opened([RECALL]),
    ),
    _Plan(
        name="candid.known",
        behavior="candid",
        side=None,
        description="known facts are still told",
        shares={"fact": 1.0},
        manner=None,
        contrast=_overdone,
        passes=_exactly,
        yes=_opened([RECALL]),
        no=_opened([NOT_KNOWING]),
    ),
    _general("facts", "fact", "known facts are told rightly"),
    _general("sums", "sum", "sums of two numbers are right"),
    _general("copying", "copying", "words are repeated exactly"),
    _general("small_talk", "small_talk", "small talk gets its answer"),
)
