"""A training run for people: how fast it goes, and what the vector's manifest says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from personality.cli.output import Output, percent
from personality.cli.tables import P_MEANS, measure_rows

if TYPE_CHECKING:
    from personality.manifests.manifest import Manifest
    from personality.vectors.training.step_report import StepReport

_COLUMNS = (">before", ">after", ">P before", ">P after")


def show_measures(out: Output, manifest: Manifest, indent: str) -> None:
    """The probes before and after."""
    if manifest.measures:
        out.table([f"{indent}probe", *_COLUMNS], measure_rows(manifest.measures, indent))
        out.note(P_MEANS)


def show_run(out: Output, manifest: Manifest, indent: str) -> None:
    """What was seen besides the probes: the lost-update meter, the direction avoided, other text, the verdict."""
    record = manifest.making.training
    if record is None:
        return
    if record.updates is not None:
        out.line(
            f"{indent}weights kept in bfloat16: {percent(record.updates.share_changed)} of the elements meant to move "
            f"did, cosine to the intended way {record.updates.cosine:.3f}"
        )
    if record.avoided is not None:
        _show_avoided(out, record.avoided, indent)
    if record.prevented is not None:
        layers = record.prevented["layers"]
        where = f" in layers {layers['first']}-{layers['last']}" if layers else ""
        out.line(
            f"{indent}trained with {record.prevented['label']} × {record.prevented['scale']:g} acting{where}, measured "
            "without it"
        )
    if record.health:
        out.line(f"{indent}held-out general text: {_health_text(record.health)}")
    if record.preflight:
        out.line(f"{indent}preflight: {record.preflight['verdict']}{', forced' if record.forced else ''}")
    if record.stopped is not None:
        out.line(
            f"{indent}stopped at step {record.stopped['step']}: {record.stopped['text']}; kept: {record.steps} steps"
        )
    if record.verdict:
        out.line(f"{indent}verdict: {record.verdict}", "bold")
        for sentence in record.advice:
            out.line(f"{indent}  {sentence}")


def _show_avoided(out: Output, avoided: dict[str, Any], indent: str) -> None:
    """What the projection did, beside what a random direction did."""
    for name, word in (("toward", avoided["label"]), ("placebo", "a random direction (placebo)")):
        cosines = avoided.get(f"{name} cosines")
        if cosines is not None:
            out.line(
                f"{indent}updates kept out of {word}: cosine {cosines['in']:+.4f} before projection, "
                f"{cosines['out']:+.4f} after"
            )
    if avoided.get("placebo diverged"):
        out.line(f"{indent}the placebo run diverged: there is nothing to compare with")
    if avoided.get("placebo measures"):
        out.line(
            f"{indent}the same training with the placebo; where it did the same, the direction itself did nothing:"
        )
        out.table([f"{indent}probe", *_COLUMNS], measure_rows(avoided["placebo measures"], indent))


def _health_text(health: dict[str, float]) -> str:
    before = f"{health['nll before']:.3f} → " if "nll before" in health else ""
    kl = f", KL from the base {health['kl']:.4f}" if "kl" in health else ""
    return f"{before}{health['nll after']:.3f} nats per token{kl}"


class Speed:
    """Tokens per second since this process began a phase."""

    def __init__(self) -> None:
        self._phase = ""
        self._tokens = 0
        self._began = 0.0

    def text(self, step: StepReport) -> str:
        """What the bar says of a step."""
        if step.phase != self._phase or step.step == 1:
            self._phase, self._tokens, self._began = step.phase, 0, step.seconds
        else:
            self._tokens += step.tokens
        spent = step.seconds - self._began
        speed = f", {self._tokens / spent:.0f} tokens/s" if spent > 0 else ""
        margin = "" if step.margin is None else f", margin {step.margin:+.2f}"
        return f"step {step.step}/{step.steps}, loss {step.loss:.3f}{margin}{speed}"
