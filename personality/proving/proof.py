"""Proving a steering vector: against its base, placebos and a prompt, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from personality.evaluation.intervals import share
from personality.evaluation.suite import Probe
from personality.manifests.evaluation import Figure
from personality.manifests.steering_record import Proof
from personality.proving.candidates import SEPARATES
from personality.proving.dose_response import Coherence
from personality.proving.effects import (
    PAIRS,
    Arm,
    Outcome,
    effect_of,
    pair_arm,
    pooled_change,
    probe_arm,
    usable,
    without_openings,
)
from personality.proving.general_text import GeneralText
from personality.proving.placebo import PLACEBOS, placebos
from personality.proving.prompting import Prompting, prompting_for
from personality.proving.roles import Roles, roles
from personality.proving.side_effects import side_effects
from personality.vectors.extraction.passages import Pair
from personality.vectors.steering.hooks import steered
from personality.vectors.steering.injection import injections
from personality.vectors.steering.steering_vector import SteeringVector

SIDE_FALL = 0.1
GENERAL_FALL = 0.05
"""A vector is not proven when it tells less than 90% of held-out texts apart in a layer where it acts, when another
side of the behavior falls by more than a tenth, or general ability by more than a twentieth."""

LEAST_TEXTS = 20
LEAST_PAIRS = 10
"""Of fewer held-out texts, or pairs, nothing follows: an interval of a few that happen to agree has no width."""

OnStep = Callable[[int, int, str], None]


def share_of(correct: int, texts: int) -> Figure:
    """A count as a share with its interval."""
    return share([True] * correct + [False] * (texts - correct))


def prove(
    model: Any,
    tokenizer: Any,
    behavior: str,
    vector: SteeringVector,
    general: GeneralText,
    probes: Sequence[Probe] = (),
    *,
    scale: float = 1.0,
    separation: Mapping[int, Figure],
    held_out: Sequence[Pair] = (),
    pairs: Sequence[Pair] = (),
    systems: Sequence[str] = (),
    description: str = "",
    count: int = PLACEBOS,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> Proof:
    """Measure a vector and say what is missing for it to be proven.

    The behavior is measured on its probes. Without any, on held-out pairs: by how much more probable, per token, the
    wanted reply is than the other one. Placebos and the prompt are measured on the behavior's own probes only.

    Args:
        model: the base, unsteered, in evaluation mode.
        tokenizer: its tokenizer.
        behavior: its own probes are those named `<behavior>.…`.
        vector: calibrated.
        general: its held-out part shows side effects.
        probes: the behavior's and general ones.
        scale: to prove it at.
        separation: share of held-out texts told apart, by layer.
        held_out: pairs as they stand in the file, without contexts.
        pairs: that the direction was read from, to show to the model as a prompt.
        systems: system prompts that ask for the behavior.
        description: of the behavior, as the last resort of a prompt.
        count: placebos.
        seed: of placebos and shots.
        on_step: called before each step with its number, the number of steps, and what it is.
    """
    acting = injections(vector, scale)
    coherence = Coherence(model, tokenizer, general)
    effects_elsewhere = side_effects(model, coherence.predictions, acting)
    if effects_elsewhere.perplexity_after is None:
        return Proof(
            proven=False,
            reasons=(f"at scale {scale:g} the model predicts NaN or infinite probabilities",),
            scale=scale,
            side_effects=effects_elsewhere,
        )
    bench = _Bench(model, tokenizer, behavior, list(probes), usable(held_out))
    steps = 4 + count

    def step(number: int, what: str) -> None:
        if on_step:
            on_step(number, steps, what)

    step(0, "the base")
    base = bench.measure()
    parts = bench.parts(base)
    step(1, "the vector")
    with steered(model, acting):
        after = bench.measure()
    idle = []
    for number, placebo in enumerate(placebos(vector, count, seed)):
        step(2 + number, f"placebo {number + 1} of {count}")
        with steered(model, injections(placebo, scale)):
            idle.append(bench.measure(parts.own))
    step(2 + count, "a prompt")
    prompting = prompting_for(pairs, systems, description, seed=seed) if bench.measured != "nothing" else None
    prompted = bench.asked(prompting, parts.own) if prompting is not None else None
    step(3 + count, "general text")
    reasons = [
        *_separation(vector, separation),
        *_effect(bench.measured, base, after, idle, parts.wanted),
        *_losses(base, after, parts),
    ]
    if not coherence.look(acting)[2]:
        reasons.append(f"at scale {scale:g} text does not hold together: it repeats itself, or is twice as perplexing")
    return Proof(
        proven=not reasons,
        reasons=tuple(reasons),
        scale=scale,
        effects=tuple(effect_of(name, base, after, idle, prompted) for name in base),
        placebos=len(idle) if bench.measured != "nothing" else 0,
        prompt=prompting.text if prompting is not None and prompted is not None else "",
        prompt_wins=_wins(prompted, after, parts.wanted),
        measured=bench.measured,
        side_effects=effects_elsewhere,
    )


@dataclass(frozen=True)
class _Bench:
    """What a behavior is measured on."""

    model: Any
    tokenizer: Any
    behavior: str
    probes: list[Probe]
    held_out: list[Pair]

    @property
    def measured(self) -> Literal["probes", "pairs", "nothing"]:
        if any(probe.name.startswith(f"{self.behavior}.") for probe in self.probes):
            return "probes"
        return "pairs" if self.held_out else "nothing"

    def measure(self, names: Sequence[str] | None = None) -> dict[str, Outcome]:
        """The model as it is now; only some of the probes, and those without openings, where names are given."""
        chosen = self.probes if names is None else [without_openings(p) for p in self.probes if p.name in names]
        found: dict[str, Outcome] = {}
        if self.measured == "pairs":
            found |= pair_arm(self.model, self.tokenizer, self.held_out)
        if chosen:
            found |= probe_arm(self.model, self.tokenizer, chosen)
        return found

    def asked(self, prompting: Prompting, names: Sequence[str]) -> dict[str, Outcome]:
        """The base, asked with a prompt."""
        if self.measured == "pairs":
            return pair_arm(self.model, self.tokenizer, self.held_out, prompting)
        return probe_arm(self.model, self.tokenizer, [prompting.asked(p) for p in self.probes if p.name in names])

    def parts(self, base: Arm) -> Roles:
        """Which figure is there for what."""
        found = roles(self.behavior, self.probes, {name: outcome.share for name, outcome in base.items()})
        return found if self.measured == "probes" else Roles((PAIRS,) * (PAIRS in base), (), found.general)


def _separation(vector: SteeringVector, separation: Mapping[int, Figure]) -> list[str]:
    missing = [layer for layer in vector.layers if layer not in separation]
    if missing:
        return [f"nothing was held out to see whether the direction of layer {missing[0]} tells texts apart"]
    worst = min(vector.layers, key=lambda layer: separation[layer].value)
    fewest = min(separation[layer].n for layer in vector.layers)
    few = [f"only {fewest} held-out texts: at least {LEAST_TEXTS} are needed to prove anything"]
    if fewest >= LEAST_TEXTS:
        few = []
    found = separation[worst]
    if found.value >= SEPARATES:
        return few
    few.append(f"layer {worst} tells {found.value:.0%} of {found.n} held-out texts apart, {SEPARATES:.0%} are wanted")
    return few


def _effect(measured: str, base: Arm, after: Arm, idle: Sequence[Arm], wanted: Sequence[str]) -> list[str]:
    """What is missing of the effect itself."""
    if measured == "nothing":
        return ["the behavior has no probes and the pairs have no replies: nothing shows what the vector does"]
    if not wanted:
        return ["the base does already what the behavior's probes measure: there is nothing to gain"]
    found = []
    change = pooled_change(base, after, wanted)
    size, unit = (1, " nats per token") if measured == "pairs" else (100, " points")
    if measured == "pairs" and change.n < LEAST_PAIRS:
        found.append(f"only {change.n} held-out pairs show an effect or none: at least {LEAST_PAIRS} are needed")
    if change.low <= 0:
        found.append(
            f"no effect was shown: {change.value * size:+.3g}{unit} "
            f"(95% interval {change.low * size:+.3g} to {change.high * size:+.3g})"
        )
    others = [pooled_change(base, placebo, wanted).value for placebo in idle]
    if not others:
        found.append("it was not compared with random directions")
    elif change.value <= max(others):
        found.append(
            f"a random direction of the same norm does as much: {max(others) * size:+.3g}{unit}, "
            f"the vector {change.value * size:+.3g}"
        )
    return found


def _losses(base: Arm, after: Arm, parts: Roles) -> list[str]:
    """Sides and abilities that were lost."""
    found = []
    for name in parts.held:
        fall = base[name].share - after[name].share
        if fall > SIDE_FALL:
            found.append(f"{name} falls from {base[name].share:.0%} to {after[name].share:.0%}")
    if parts.general:
        change = pooled_change(base, after, parts.general)
        if change.value < -GENERAL_FALL:
            found.append(f"general ability falls by {-change.value * 100:.0f} points")
    return found


def _wins(prompted: Arm | None, after: Arm, wanted: Sequence[str]) -> bool | None:
    """Whether the prompt does more than the vector; the margin decides where the replies do not."""
    if prompted is None or not wanted:
        return None

    def rank(arm: Arm) -> tuple[float, float]:
        shares = sum(arm[name].share for name in wanted) / len(wanted)
        return round(shares, 6), sum(arm[name].margin or 0.0 for name in wanted) / len(wanted)

    return rank(prompted) > rank(after)
