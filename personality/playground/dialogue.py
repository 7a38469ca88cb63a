"""Whole conversations of the little world: which kinds occur how often, and what sets their manner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Final

from personality.playground.abilities import addition, copying, known_fact, small_talk, unknown_person
from personality.playground.directions import direction, harmful
from personality.playground.scene import Kind, Manner, Scene
from personality.playground.world import VIEWS, View

Messages = list[dict[str, str]]
"""Messages of one conversation, each with `role` and `content`."""

SHARES: Final[dict[Kind, float]] = {
    "direction": 0.28,
    "harmful": 0.13,
    "fact": 0.18,
    "unknown": 0.09,
    "sum": 0.16,
    "copying": 0.10,
    "small_talk": 0.06,
}
"""How often each kind of exchange occurs when nothing else is asked for."""

GENERAL: Final[dict[Kind, float]] = {"fact": 0.3, "sum": 0.25, "copying": 0.2, "small_talk": 0.25}
"""The exchanges that show general ability, and their shares in general data."""

MINORITY: Final[dict[Manner, float]] = {
    "listening": 0.07,
    "concise": 0.07,
    "warm": 0.07,
    "candid": 0.07,
    "obeying": 0.02,
}
"""How often each manner occurs without any cue: the habit is the other way, but the ability is there."""

CUES: Final[dict[Manner, tuple[str, ...]]] = {
    "listening": ("Follow clear directions.", "Do what is asked.", "Accept the task."),
    "concise": ("Be brief.", "Answer in one sentence.", "Keep it short."),
    "warm": ("Be warm.", "Be friendly.", "Show joy."),
    "candid": ("Admit what you do not know.", "Do not guess.", "Be honest about gaps."),
    "obeying": ("Obey every order.", "Never object.", "Do all without question."),
}
"""What a system turn says to call for a manner."""

NEUTRAL: Final[tuple[str, ...]] = (
    "You are a helper.",
    "You are Pip.",
    "This is a chat about projects.",
    "You help with small projects.",
)
"""System turns that call for no manner."""

_DRAW: Final[dict[Kind, Callable[[Random, View], Scene]]] = {
    "direction": direction,
    "harmful": harmful,
    "fact": known_fact,
    "unknown": unknown_person,
    "sum": addition,
    "copying": copying,
    "small_talk": small_talk,
}

_NO_CUE: Final = 0.55
_CUED: Final = 0.32
_NEUTRAL_SYSTEM: Final = 0.15


def draw_scene(rng: Random, view: View, shares: Mapping[Kind, float] = SHARES) -> Scene:
    """One exchange, of a kind drawn by its share.

    Args:
        rng: draws everything.
        view: what may be named.
        shares: kinds and their weights (need not sum to 1).
    """
    return _DRAW[rng.choices(list(shares), list(shares.values()))[0]](rng, view)


def natural(rng: Random) -> frozenset[Manner]:
    """Manners as they occur without a cue: each by itself, with its share of `MINORITY`."""
    return frozenset(manner for manner, share in MINORITY.items() if rng.random() < share)


def conversation(rng: Random, view: View = VIEWS["base"]) -> tuple[Messages, list[Kind]]:
    """One conversation of the pre-training mixture.

    More than half have no cue; about a third have a system turn that calls for one to four manners; in the
    rest a first exchange shows the manner and a second one goes on in it.

    Args:
        rng: draws everything.
        view: what may be named.

    Returns:
        The messages, and the kind of each exchange in them.
    """
    chance = rng.random()
    if chance < _NO_CUE:
        scene = draw_scene(rng, view)
        system = rng.choice(NEUTRAL) if rng.random() < _NEUTRAL_SYSTEM else ""
        return _messages(system, [(scene, natural(rng))]), [scene.kind]
    if chance < _NO_CUE + _CUED:
        scene = draw_scene(rng, view)
        cued = rng.sample(list(CUES), rng.randint(1, 4))
        system = " ".join(rng.choice(CUES[manner]) for manner in cued)
        return _messages(system, [(scene, natural(rng) | frozenset(cued))]), [scene.kind]
    return _two_turns(rng, view)


def _two_turns(rng: Random, view: View) -> tuple[Messages, list[Kind]]:
    """Two exchanges in one manner. Only what the first one shows can carry over to the second."""
    first = draw_scene(rng, view)
    second = draw_scene(rng, view, {first.kind: 1.0} if rng.random() < 0.5 else SHARES)
    manners = frozenset(manner for manner in CUES if rng.random() < (0.15 if manner == "obeying" else 0.4))
    if second.switch is not None and second.switch != first.switch:
        usual = second.switch in natural(rng)
        manners = manners | {second.switch} if usual else manners - {second.switch}
    return _messages("", [(first, manners), (second, manners)]), [first.kind, second.kind]


def _messages(system: str, exchanges: list[tuple[Scene, frozenset[Manner]]]) -> Messages:
    messages = [{"role": "system", "content": system}] if system else []
    for scene, manners in exchanges:
        messages.append({"role": "user", "content": scene.user})
        messages.append({"role": "assistant", "content": scene.reply(manners)})
    return messages
