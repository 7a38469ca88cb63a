"""The plain verdict on a training run: too small, right, too large, or forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from personality.evaluation.intervals import paired_difference, paired_share_difference, share
from personality.evaluation.suite import Probe
from personality.making.dose import Dose
from personality.making.health import Health
from personality.manifests.evaluation import Figure, ProbeResult

Verdict = Literal["too small", "right", "too large", "forgetting", "unknown"]
Role = Literal["wanted", "held", "ability"]

HOLDS, SURE = 3 / 4, 2 / 3
"""A behavior is there when its figure is three quarters or more and the lower end of its interval two thirds or more.
Greedy replies follow a probability of one half; the rest is what composing takes away again. On the playground vectors
with a probability of 0.79 to 0.82 still give 98% of greedy replies at scale 0.8, those with 0.72 give 88 to 93%, those
with 0.60 to 0.64 give 58 to 60% (docs/sweep.md)."""

FALL = 0.1
POOLED_FALL = 0.05
"""A probe that should hold has fallen when its interval excludes no change *and* it lost more than a tenth; general
ability as a whole, whose rows are several times as many, when it lost more than half of that. With many rows an
interval excludes no change for differences that nobody would notice: the playground's good runs cost up to eight points
of the probability, and none of the replies, that push back (docs/sweep.md)."""

NLL_RISE = 0.05
"""Nats per token by which held-out general text must have become less likely, its interval excluding no change: e^0.05,
so five percent more perplexity. On the playground runs that keep the abilities rise by 0.012 at most, one that lost a
quarter of them by 0.18 (docs/sweep.md)."""

OPENING = "wanted opening"
"""What `Change.word` says of a probability."""

GENERAL_RATIO = 0.4
"""What to raise the share of general data to when abilities are lost."""


@dataclass(frozen=True)
class Change:
    """What a run did to one probe, in the figure that shows it soonest.

    Attributes:
        probe: its name.
        word: what is counted, for people.
        before, after: the figure.
        change: paired difference, row by row.
        limit: fall beyond which it counts as lost.
    """

    probe: str
    word: str
    before: Figure
    after: Figure
    change: Figure
    limit: float = FALL

    @property
    def there(self) -> bool:
        """Whether the behavior can be relied on."""
        return is_there(self.after)

    @property
    def fell(self) -> bool:
        """Whether it was lost, beyond chance and beyond what matters."""
        return self.change.high < 0 and self.change.value < -self.limit

    def __str__(self) -> str:
        change = self.change
        return (
            f"{self.probe}: {self.word} {self.before.value:.0%} → {self.after.value:.0%} "
            f"({change.value * 100:+.0f} points, 95% interval {change.low * 100:+.0f} to {change.high * 100:+.0f})"
        )


@dataclass(frozen=True)
class Effects:
    """Everything that a run did.

    Attributes:
        wanted: what the behavior is meant to raise.
        held: what belongs to it and must not be lowered.
        abilities: probes of general ability.
        ability: all of these together; None without any.
        nll: rise of the negative log-likelihood of held-out general text, nats per token; None without any.
    """

    wanted: tuple[Change, ...]
    held: tuple[Change, ...]
    abilities: tuple[Change, ...]
    ability: Change | None
    nll: Figure | None


@dataclass(frozen=True)
class Judgment:
    """What to think of a run.

    Attributes:
        verdict: in a word; "unknown" when there is nothing to judge by.
        advice: what was seen and what to do, in sentences.
    """

    verdict: Verdict
    advice: tuple[str, ...]


def is_there(figure: Figure) -> bool:
    """Whether a behavior can be relied on, by a probability or share."""
    return figure.value >= HOLDS and figure.low >= SURE


def role_of(behavior: str, probe: Probe, before: ProbeResult) -> Role:
    """What a probe is there for.

    Args:
        behavior: whose run is judged; its own probes are those named `<behavior>.…`.
        probe: any.
        before: its result on the base.

    Returns:
        "ability" for probes of anything else; of its own, "held" for the side that pushes back and for what the base
        does already, which can only be lost; "wanted" for what is to be learned.
    """
    if not probe.name.startswith(f"{behavior}."):
        return "ability"
    return "held" if probe.side == "push_back" or is_there(before.probability or before.passed) else "wanted"


def compare(
    behavior: str,
    probes: Sequence[Probe],
    before: Sequence[ProbeResult],
    after: Sequence[ProbeResult],
    health_before: Health | None,
    health_after: Health | None,
) -> Effects:
    """What a run did, probe by probe, paired by row.

    Args:
        behavior: whose run.
        probes: that were measured.
        before: the base's results, in the order of the probes.
        after: the results of base and vector at scale 1.
        health_before, health_after: on the same held-out general examples.
    """
    changes: dict[Role, list[Change]] = {"wanted": [], "held": [], "ability": []}
    general = []
    for probe, old, new in zip(probes, before, after, strict=True):
        role = role_of(behavior, probe, old)
        opening, passed = _opening(old, new), _passed(probe.name, [old], [new])
        if role == "wanted":
            changes[role] += opening or [passed]
        elif role == "held":
            # Either may show it first: the opening's probability moves before the reply does, but a reply can also
            # open well and go wrong.
            changes[role] += [*opening, passed]
        else:
            changes[role].append(passed)
            general.append((old, new))
    pooled = None
    if general:
        pooled = _passed("general ability", [old for old, _ in general], [new for _, new in general], POOLED_FALL)
    nll = None
    if health_before is not None and health_after is not None:
        nll = paired_difference(health_before.per_example, health_after.per_example)
    return Effects(tuple(changes["wanted"]), tuple(changes["held"]), tuple(changes["ability"]), pooled, nll)


def judge(effects: Effects | None, dose: Dose) -> Judgment:
    """Judge a run by what it did.

    What was lost counts before what was gained: a guard's sign, then push-back, then abilities.

    Args:
        effects: from `compare`; None when the run left nothing to measure.
        dose: what was given.
    """
    lower = f"lower the learning rate (`--lr {dose.rate / 2:.2g}`, it was {dose.rate:g}) or use fewer examples"
    if dose.sign is not None:
        return Judgment("too large", (f"the guard stopped the run: {dose.sign.text}", lower))
    assert effects is not None
    fallen = [change for change in effects.held if change.fell]
    forgotten = _forgotten(effects)
    if fallen:
        return _judge_sides(fallen, forgotten, dose, lower)
    if forgotten:
        return Judgment("forgetting", (*forgotten, _against_forgetting(effects, dose, lower)))
    if not effects.wanted:
        why = (
            "the base does already what this behavior's probes measure"
            if effects.held
            else "this behavior has no probes, or they were left out (`--probe-rows 0`)"
        )
        return Judgment("unknown", (f"nothing to judge by: {why}; docs/on-disk.md shows how to add [[probes]]",))
    weak = [change for change in effects.wanted if not change.there]
    if weak:
        return Judgment("too small", (*(str(change) for change in weak), _more(dose)))
    return Judgment("right", tuple(str(change) for change in effects.wanted))


def _judge_sides(fallen: list[Change], forgotten: list[str], dose: Dose, lower: str) -> Judgment:
    """It goes too far, such as giving in where it should push back."""
    seen = (*(str(change) for change in fallen), *forgotten)
    other = "examples of the other side (`side: push_back`)"
    if dose.sides.get("push_back"):
        return Judgment("too large", (*seen, f"{lower}; check for sycophancy: more {other} and more probes of it"))
    if dose.sides.get("unlabeled"):
        return Judgment("too large", (*seen, f"{lower}; if the data has no {other}, add some"))
    return Judgment("too large", (*seen, f"the data has no {other}, so it teaches to give in: add some"))


def _forgotten(effects: Effects) -> list[str]:
    """What was lost of general ability, in sentences."""
    lost = [change for change in effects.abilities if change.fell]
    if not lost and effects.ability is not None and effects.ability.fell:
        lost = [effects.ability]
    found = [str(change) for change in lost]
    nll = effects.nll
    if nll is not None and nll.low > 0 and nll.value > NLL_RISE:
        found.append(
            f"held-out general text: {nll.value:+.3f} nats per token (95% interval {nll.low:+.3f} to {nll.high:+.3f})"
        )
    return found


def _against_forgetting(effects: Effects, dose: Dose, lower: str) -> str:
    lost = [change.probe for change in effects.abilities if change.fell]
    add = f"add examples of {' and '.join(lost)} to it" if lost else "make it more like what was forgotten"
    if dose.general_ratio < GENERAL_RATIO:
        return f"raise general data to {GENERAL_RATIO:.0%} (`--general-ratio {GENERAL_RATIO:g}`), and {add}"
    return f"general data is at {dose.general_ratio:.0%} already: {add}, or {lower}"


def _more(dose: Dose) -> str:
    more = f"try more examples (`--examples {2 * dose.examples} --fresh`, or with `--allow-repeats`)"
    if dose.rate >= dose.highest_rate:
        return f"{more}; the learning rate {dose.rate:g} is as high as it should be"
    return f"{more}, or a learning rate of up to {dose.highest_rate:g} (`--lr`, it was {dose.rate:g})"


def _opening(old: ProbeResult, new: ProbeResult) -> list[Change]:
    """The change of the wanted opening's probability; nothing where the probe declares none."""
    if old.probability is None or new.probability is None:
        return []
    change = paired_difference(old.probabilities, new.probabilities)
    return [Change(new.probe, OPENING, old.probability, new.probability, change)]


def _passed(name: str, old: Sequence[ProbeResult], new: Sequence[ProbeResult], limit: float = FALL) -> Change:
    """The change of the share of passing replies, over the rows of one probe or several."""
    before = [outcome for result in old for outcome in result.outcomes]
    after = [outcome for result in new for outcome in result.outcomes]
    return Change(name, "replies pass", share(before), share(after), paired_share_difference(before, after), limit)
