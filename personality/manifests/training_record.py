"""What a vector's manifest keeps of the training run that made it."""

from __future__ import annotations

from typing import Any

from personality.manifests.record import Frozen


class UpdateMeter(Frozen):
    """What rounding lost while weights kept in bfloat16 were trained.

    Attributes:
        share_changed: share of the elements meant to move that did, from the first step to the last, 0 to 1.
        cosine: cosine of the way they went to the way they were meant to go.
    """

    share_changed: float
    cosine: float


class TrainingRecord(Frozen):
    """The diagnosis before a run, the guards during, and the verdict after.

    Attributes:
        run: id of the run; its log is `.persona/runs/<run>/log.jsonl` in the repository where it was made.
        steps: that count: all, or those before the state that was kept.
        processes: that shared the work.
        repeated: examples that an earlier vector of this behavior had been trained on.
        preflight: the diagnosis before training; empty when it was left out.
        forced: the run went on although the diagnosis said no-go.
        stopped: the sign of collapse at which the guard stopped the run, with the `arm`; None for a whole run.
        guard: the guard's log: its checkups, by arm and phase.
        updates: the lost-update meter of bfloat16 weights, of the phase that lost most; None for float32 weights.
        avoided: what the updates were kept out of, what that did to them, and the placebo arm; None without.
        prevented: the steering vector that acted while the weights were trained (`vector`, `label`, `scale`, `layers`);
            what was measured is the model without it. None without.
        arms: for a contrastive vector, what each of its two arms did.
        health: held-out general text before and after: `nll before`, `nll after` (nats per token), `kl` from the base.
        verdict: in one word; `advice` says what to do.
        advice: in sentences.
    """

    run: str
    steps: int
    processes: int = 1
    repeated: int = 0
    preflight: dict[str, Any] = {}
    forced: bool = False
    stopped: dict[str, Any] | None = None
    guard: tuple[dict[str, Any], ...] = ()
    updates: UpdateMeter | None = None
    avoided: dict[str, Any] | None = None
    prevented: dict[str, Any] | None = None
    arms: dict[str, dict[str, Any]] = {}
    health: dict[str, float] = {}
    verdict: str = ""
    advice: tuple[str, ...] = ()
