"""Signs that a run is collapsing, from what each step and each checkup shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Checkup:
    """A look at the model itself.

    Attributes:
        step: after which it was made.
        kl: mean Kullback-Leibler divergence per token of the model from the base on held-out text, nats.
        repetition: share of repeated 4-grams in greedy replies, 0 to 1.
        base_repetition: the same of the base's replies.
    """

    step: int
    kl: float
    repetition: float
    base_repetition: float


@dataclass(frozen=True)
class Sign:
    """A sign of collapse: the run should stop.

    Attributes:
        name: of the sign, such as `chosen-falls`; two names with `+` when two weak signs came together.
        step: at which it fired.
        value: what was seen (of two signs, the stronger one's).
        limit: what it was held against.
        text: one sentence with both figures.
    """

    name: str
    step: int
    value: float
    limit: float
    text: str


@dataclass(frozen=True)
class GuardLimits:
    """How far a run may go.

    Figures named "measured" come from the model of the playground (0.5M parameters; SFT, ORPO and DPO of four
    behaviors): 306 runs at healthy rates, in 20 seeds with 20 examples and in 10 with 200, and 188 at rates 3 to 300
    times too high, with answers of four times the length, with DPO's beta at 0.1 and 1, and with AdamW. The other
    figures are those commonly watched in DPO runs. None was measured on a large model.

    Signs that suffice alone:

    Attributes:
        kl: nats per token. Measured: healthy runs up to 1.3 (a behavior that shows in every reply moves general text
            as well, and the model becomes certain of it), those that lost two thirds of their abilities 4 and more
            at their worst.
        repetition: share of repeated 4-grams beyond the base's. Measured: healthy 0, collapsing 0.3 to 1.
        chosen_fall: nats per token by which the chosen answers have become less likely than at the beginning of the
            phase, where the objective itself raises them (ORPO). Measured: healthy runs never fell by more than 0.01 in
            a window; runs that lost a tenth to all of their abilities fell by 0.2 to 12.
        chosen_fall_dpo: the same for DPO, which may lower both answers in a run that does what it should (arXiv
            2410.08847). Measured: healthy 0.01, collapsing 0.4 to 13.
        nll_rise: the same for runs without pairs, where only the losses of different examples can be compared: more is
            left for their differences.
        margin_won: DPO's reward margin. Beyond it the loss's gradient is below 1/150 of its full size: there is
            nothing left to learn, and whatever still moves is not the preference.

    Signs that need company. A model may become *sure* without harm (a healthy DPO run with beta 0.1 reached a margin
    of 2.8 in one leap, and a tiny model's loss begins below 0.3), or do a little *worse* for a while; a run that has
    become sure and does worse is collapsing. Sure:

    Attributes:
        loss: the loss is below this…
        loss_share: …and below this share of its first window…
        early: …within this share of the phase.
        margin: DPO's reward margin; 1.5 to 2 are the figures in use.
        acceleration: factor by which the margin's rise over a window exceeds that over the one before. A healthy margin
            levels off.

    Worse:

    Attributes:
        chosen_dip: nats per token, the weak form of both.
        stutter: the weak form of `repetition`.

    And:

    Attributes:
        window: share of the phase over which figures of steps are averaged; never fewer than 3 steps.
    """

    kl: float = 2.0
    repetition: float = 0.2
    chosen_fall: float = 0.2
    chosen_fall_dpo: float = 0.4
    nll_rise: float = 1.0
    margin_won: float = 5.0
    loss: float = 0.3
    loss_share: float = 0.5
    early: float = 1 / 3
    margin: float = 1.5
    acceleration: float = 1.5
    chosen_dip: float = 0.1
    stutter: float = 0.1
    window: float = 0.1


class StepFigures(Protocol):
    """What the guard looks at in a step's report, `StepReport`."""

    @property
    def step(self) -> int:
        """From 1."""
        ...

    @property
    def loss(self) -> float:
        """The objective, nats per token."""
        ...

    @property
    def nll(self) -> float:
        """Mean loss of the answers to learn, nats per token."""
        ...

    @property
    def chosen_gain(self) -> float | None:
        """Rise of the chosen answers' log-probability since the phase began, nats per token; None without pairs."""
        ...

    @property
    def reward_margin(self) -> float | None:
        """What the preference objective raises; None without one."""
        ...


class CollapseGuard:
    """Watches one phase of a run.

    Every step sees other examples, few of them, so single figures mean little: all are averaged over a window of the
    last steps (a tenth of the phase, at least 3), and compared with the first window or, where the same examples were
    scored at the beginning of the phase, with themselves.

    Measured (see `GuardLimits`): no alarm in the healthy runs; of the others every one that lost more than half of its
    general abilities was stopped, most within a sixth of its steps, and 15 of the 23 that lost a fifth to a half.
    The guard is there for collapse; slow forgetting shows in the measures after the run.

    Args:
        limits: how far the run may go.
        steps: of the phase.
        method: "sft", "dpo" or "orpo". Margins are judged for DPO alone: ORPO's, scaled by its lambda of 0.1, would
            need a difference of 15 nats per token to reach the limit.

    Attributes:
        log: JSON-able entries, for the manifest: each checkup (`{"checkup": …}`), each weak sign when it first shows
            (`{"weak": …}`) and the sign that fired (`{"sign": …}`).
    """

    def __init__(self, limits: GuardLimits, steps: int, method: str) -> None:
        self.limits = limits
        self.steps = steps
        self.method = method
        self.log: list[dict[str, Any]] = []
        self._window = max(3, round(limits.window * steps))
        self._seen: dict[str, list[float]] = {"loss": [], "nll": [], "chosen_gain": [], "reward_margin": []}
        self._weak: dict[str, Sign] = {}
        self._warnings: list[Sign] = []

    def observe(self, report: StepFigures) -> Sign | None:
        """Judge a step.

        Args:
            report: of the step, in order.

        Returns:
            The sign that fired, or None.
        """
        self._warnings = []
        if not math.isfinite(report.loss):
            return self.not_finite(report.step)
        for name, values in self._seen.items():
            value = getattr(report, name)
            if value is not None:
                values.append(float(value))
        self._loss(report.step)
        return self._fire(self._chosen(report.step) or self._margin(report.step) or self._together())

    def check(self, checkup: Checkup) -> Sign | None:
        """Judge a checkup.

        Args:
            checkup: of the model after a step that has been observed.

        Returns:
            The sign that fired, or None.
        """
        limits, step = self.limits, checkup.step
        finite = math.isfinite(checkup.kl)
        self.log.append({"checkup": {**asdict(checkup), "kl": checkup.kl if finite else None}})  # JSON has no NaN
        if not finite:
            return self.not_finite(step)
        if checkup.kl > limits.kl:
            text = f"the model has moved {checkup.kl:.2f} nats per token from the base (limit {limits.kl:g})"
            return self._fire(Sign("kl", step, checkup.kl, limits.kl, text))
        more = checkup.repetition - checkup.base_repetition
        text = f"{checkup.repetition:.0%} of the 4-grams in replies repeat, {checkup.base_repetition:.0%} in the base's"
        if more > limits.repetition:
            return self._fire(Sign("repetition", step, more, limits.repetition, text))
        if more > limits.stutter:
            self._note("worse", Sign("stutter", step, more, limits.stutter, text))
        return self._fire(self._together())

    @property
    def warning(self) -> Sign | None:
        """A weak sign that shows at the last step observed, its checkup included; None when nothing is wrong with it.

        A weak sign alone stops nothing, and may pass; a state that shows one is no state to answer people with.
        """
        return self._warnings[0] if self._warnings else None

    def not_finite(self, step: int) -> Sign:
        """Fire because loss, weights or predictions are no longer numbers.

        Args:
            step: at which it was seen.

        Returns:
            The sign; its value is 0, since JSON has no NaN.
        """
        sign = Sign("not-finite", step, 0.0, 0.0, "loss, weights or predictions are NaN or infinite")
        self._fire(sign)
        return sign

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, JSON-able."""
        return {
            "seen": {name: list(values) for name, values in self._seen.items()},
            "weak": {name: asdict(sign) for name, sign in self._weak.items()},
            "log": list(self.log),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another guard of the same phase stood.

        Args:
            state: from `state_dict`.
        """
        self._seen = {name: [float(value) for value in state["seen"][name]] for name in self._seen}
        self._weak = {name: Sign(**sign) for name, sign in state["weak"].items()}
        self.log = list(state["log"])

    def _fire(self, sign: Sign | None) -> Sign | None:
        if sign is not None:
            self.log.append({"sign": asdict(sign)})
        return sign

    def _note(self, kind: str, sign: Sign) -> None:
        """Keep the first weak sign of each kind: two that come one after the other count as well."""
        self._warnings.append(sign)
        if kind not in self._weak:
            self._weak[kind] = sign
            self.log.append({"weak": asdict(sign)})

    def _together(self) -> Sign | None:
        if len(self._weak) < 2:
            return None
        one, other = sorted(self._weak.values(), key=lambda sign: sign.step)
        return Sign(f"{one.name} + {other.name}", other.step, other.value, other.limit, f"{one.text}; {other.text}")

    def _recent(self, name: str, back: int = 0) -> float | None:
        """Mean over a window, the last one or that which ended `back` windows earlier; None where it is not full."""
        end = len(self._seen[name]) - back * self._window
        if end < self._window:
            return None
        return sum(self._seen[name][end - self._window : end]) / self._window

    def _first(self, name: str) -> float:
        return sum(self._seen[name][: self._window]) / self._window

    def _chosen(self, step: int) -> Sign | None:
        """The answers to learn have become less likely."""
        limits = self.limits
        gain, nll = self._recent("chosen_gain"), self._recent("nll")
        if self._seen["chosen_gain"]:
            fall, name = -(gain or 0.0), "chosen-falls"
            limit = limits.chosen_fall_dpo if self.method == "dpo" else limits.chosen_fall
        else:
            fall, name, limit = (nll - self._first("nll") if nll is not None else 0.0), "nll-rises", limits.nll_rise
        text = f"the answers to learn have become {fall:.2f} nats per token less likely"
        if fall > limit:
            return Sign(name, step, fall, limit, f"{text} (limit {limit:g})")
        if name == "chosen-falls" and fall > limits.chosen_dip:
            self._note("worse", Sign("chosen-dips", step, fall, limits.chosen_dip, text))
        return None

    def _loss(self, step: int) -> None:
        """The loss is low before there was much to learn from."""
        limits, loss = self.limits, self._recent("loss")
        if loss is None or step > limits.early * self.steps:
            return
        limit = min(limits.loss, limits.loss_share * self._first("loss"))
        if loss < limit:
            text = f"the loss is {loss:.2f} after {step} of {self.steps} steps"
            self._note("sure", Sign("loss-low-early", step, loss, limit, text))

    def _margin(self, step: int) -> Sign | None:
        """The reward margin is beyond what the preference needs, or rises faster and faster."""
        limits, margin = self.limits, self._recent("reward_margin")
        if self.method != "dpo" or margin is None:
            return None
        text = f"the reward margin is {margin:.2f}"
        if margin > limits.margin_won:
            return Sign("margin-won", step, margin, limits.margin_won, f"{text} (limit {limits.margin_won:g})")
        if margin > limits.margin:
            self._note("sure", Sign("margin-large", step, margin, limits.margin, text))
        older, oldest = self._recent("reward_margin", 1), self._recent("reward_margin", 2)
        if older is not None and oldest is not None and margin > limits.margin / 2:
            # Every margin accelerates at first, while the rate warms up: it matters once it is halfway to the limit.
            before, now = older - oldest, margin - older
            limit = limits.acceleration * max(before, limits.margin / 4)
            if now > limit:
                text = (
                    f"the reward margin rose by {now:.2f} in {self._window} steps, after {before:.2f} in as many before"
                )
                self._note("sure", Sign("margin-accelerates", step, now, limit, text))
        return None
