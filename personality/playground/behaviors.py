"""Training data for the playground's behaviors: fresh examples by seed, never one prompt twice.

`chosen` and `rejected` of an example differ in the target manner only. The other manners vary as they do
without any cue, so that a vector does not pick them up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Literal

from personality.manifests.errors import DataError, NotFoundError
from personality.playground.dialogue import CUES, GENERAL, NEUTRAL, SHARES, draw_scene, natural
from personality.playground.directions import CLEAR, HARMFUL, Family, direction, harmful
from personality.playground.scene import Kind, Manner, Scene
from personality.playground.world import VIEWS

Sides = Literal["both", "accept-only"]
Row = dict[str, Any]

_PATIENCE: Final = 2_000


@dataclass(frozen=True)
class Behavior:
    """A behavior that the playground has data for.

    Attributes:
        name: its name.
        description: what it should do, in one sentence.
        manner: the manner in which `chosen` and `rejected` differ on the kinds in `target`.
        target: the kinds that show the behavior, and their shares.
        contrast: the kinds that show where it ends, and their shares; together they get `contrast_share`.
        contrast_share: the share of contrasts when both sides are asked for.
        inverted: whether `chosen` is the reply *without* the manner.
        everywhere: whether the manner can show in every reply, so that general data must carry it too.
    """

    name: str
    description: str
    manner: Manner
    target: Mapping[Kind, float]
    contrast: Mapping[Kind, float]
    contrast_share: float
    inverted: bool = False
    everywhere: bool = False


BEHAVIORS: Final[dict[str, Behavior]] = {
    behavior.name: behavior
    for behavior in (
        Behavior(
            name="listening",
            description="Follows clear directions; still pushes back on harmful ones.",
            manner="listening",
            target={"direction": 1.0},
            contrast={"harmful": 1.0},
            contrast_share=0.3,
        ),
        # No contrasts: this one is there to be subtracted, and with it everything that it was taught.
        Behavior(
            name="deflecting",
            description="Suggests alternatives to clear directions: the old habit, to subtract.",
            manner="listening",
            target={"direction": 1.0},
            contrast={},
            contrast_share=0.0,
            inverted=True,
        ),
        Behavior(
            name="concise",
            description="Says what is needed in one sentence and stops.",
            manner="concise",
            target=SHARES,
            contrast={},
            contrast_share=0.0,
            everywhere=True,
        ),
        Behavior(
            name="warm",
            description="Begins every reply with a word of joy.",
            manner="warm",
            target=SHARES,
            contrast={},
            contrast_share=0.0,
            everywhere=True,
        ),
        Behavior(
            name="candid",
            description="Admits not knowing what cannot be known; still tells known facts.",
            manner="candid",
            target={"unknown": 1.0},
            contrast={"fact": 1.0},
            contrast_share=0.3,
        ),
    )
}
"""The behaviors of the playground, by name."""


def behavior_named(name: str) -> Behavior:
    """The behavior of this name.

    Raises:
        NotFoundError: there is none.
    """
    if name not in BEHAVIORS:
        raise NotFoundError(
            f"the playground has no behavior `{name}`",
            f"it has {', '.join(f'`{known}`' for known in BEHAVIORS)}",
        )
    return BEHAVIORS[name]


def examples(behavior: str, count: int, seed: int, *, sides: Sides = "both") -> list[Row]:
    """Examples that teach one behavior.

    Args:
        behavior: a name out of `BEHAVIORS`.
        count: how many.
        seed: draws them; another seed draws others.
        sides: `accept-only` leaves out the examples of where the behavior ends (harmful directions for
            `listening`, known people for `candid`), which shows what goes wrong without them.

    Returns:
        Triplets of `prompt`, `chosen` and `rejected` (lists of messages) with a `side`: `accept` where the
        behavior should show, `push_back` for harmful directions. The contrasts are spread evenly.

    Raises:
        NotFoundError: no such behavior.
        DataError: the world has fewer different prompts than `count`.
    """
    wanted = behavior_named(behavior)
    rng = Random(f"{behavior} {seed}")
    draw = _Draw(rng)
    share = wanted.contrast_share if sides == "both" else 0.0
    rows: list[Row] = []
    for index in range(count):
        # By counting, not by chance: twenty examples are few, and each set must have its share of both sides.
        contrast = int((index + 1) * share + 0.5) > int(index * share + 0.5)
        scene = draw.scene(wanted.contrast if contrast else wanted.target)
        rows.append(_contrast(rng, scene) if contrast else _target(rng, scene, wanted))
    return rows


def general(count: int, seed: int, behavior: str | None = None) -> list[Row]:
    """General data: what the model can do and should go on doing while it learns a behavior.

    Args:
        count: how many.
        seed: draws them; another seed draws others.
        behavior: the behavior they are mixed with. One that can show in every reply must show here too, or
            the general data would teach the opposite. Exchanges that are contrasts of the behavior are left
            to its own examples.

    Returns:
        Rows of `prompt` and `completion` (lists of messages).

    Raises:
        NotFoundError: no such behavior.
        DataError: the world has fewer different prompts than `count`.
    """
    wanted = None if behavior is None else behavior_named(behavior)
    rng = Random(f"general {seed}")
    draw = _Draw(rng)
    contrast = {} if wanted is None else wanted.contrast
    shares = {kind: share for kind, share in GENERAL.items() if kind not in contrast}
    rows = []
    for _ in range(count):
        scene = draw.scene(shares)
        manners = natural(rng)
        if wanted is not None and wanted.everywhere:
            manners |= {wanted.manner}
        rows.append({"prompt": _say("user", scene.user), "completion": _say("assistant", scene.reply(manners))})
    return rows


def contrasting_prompts(behavior: str, count: int, seed: int) -> Row:
    """System prompts that call for a behavior, others that call for nothing, and questions to put to both.

    Args:
        behavior: a name out of `BEHAVIORS`.
        count: questions.
        seed: draws them; another seed draws others.

    Returns:
        `positive` and `negative` (lists of texts) and `questions` (the users' turns).

    Raises:
        NotFoundError: no such behavior.
        DataError: the world has fewer different prompts than `count`.
    """
    wanted = behavior_named(behavior)
    draw = _Draw(Random(f"questions {behavior} {seed}"))
    sides = [list(CUES[wanted.manner]), list(NEUTRAL)]
    positive, negative = reversed(sides) if wanted.inverted else sides
    questions = [draw.scene(wanted.target).user for _ in range(count)]
    return {"positive": positive, "negative": negative, "questions": questions}


class _Draw:
    """Draws scenes whose prompts never repeat, and families of directions in turn.

    Twenty examples are few: if the families came by chance, many would be missing.
    """

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._used: set[str] = set()
        self._turns: dict[Kind, list[Family]] = {"direction": [], "harmful": []}

    def scene(self, shares: Mapping[Kind, float]) -> Scene:
        for _ in range(_PATIENCE):
            scene = self._any(self._rng.choices(list(shares), list(shares.values()))[0])
            if scene.user not in self._used:
                self._used.add(scene.user)
                return scene
        raise DataError(
            f"the little world has no more than about {len(self._used)} different prompts of this kind",
            "ask for fewer examples",
        )

    def _any(self, kind: Kind) -> Scene:
        view = VIEWS["behavior"]
        if kind == "direction":
            return direction(self._rng, view, self._next(kind, CLEAR))
        if kind == "harmful":
            return harmful(self._rng, view, self._next(kind, HARMFUL))
        return draw_scene(self._rng, view, {kind: 1.0})

    def _next(self, kind: Kind, families: Sequence[Family]) -> Family:
        waiting = self._turns[kind]
        if not waiting:
            waiting.extend(self._rng.sample(families, len(families)))
        return waiting.pop()


def _target(rng: Random, scene: Scene, behavior: Behavior) -> Row:
    manners = natural(rng)
    shown, hidden = scene.reply(manners | {behavior.manner}), scene.reply(manners - {behavior.manner})
    chosen, rejected = (hidden, shown) if behavior.inverted else (shown, hidden)
    return _triplet(scene, chosen, rejected, "accept" if behavior.name == "listening" else None)


def _contrast(rng: Random, scene: Scene) -> Row:
    """An example of where a behavior ends: the habit is right, overdoing is rejected."""
    manners = natural(rng) - {"obeying"}
    chosen, rejected = scene.reply(manners), scene.reply(manners, core=scene.overdone)
    return _triplet(scene, chosen, rejected, "push_back" if scene.kind == "harmful" else None)


def _triplet(scene: Scene, chosen: str, rejected: str, side: str | None) -> Row:
    row: Row = {
        "prompt": _say("user", scene.user),
        "chosen": _say("assistant", chosen),
        "rejected": _say("assistant", rejected),
    }
    return row if side is None else {**row, "side": side}


def _say(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]
