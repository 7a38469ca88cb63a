"""What a steering vector's manifest says, for people: where it acts, how it was proven, what its scale means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from personality.cli.output import Output, percent
from personality.cli.tables import change_text

if TYPE_CHECKING:
    from personality.manifests.manifest import Manifest
    from personality.manifests.steering_record import Contrast, Proof, SteeringRecord

_WHERE = {
    "all": "at every position",
    "response": "at every position that predicts a token of the reply",
    "decision": "at the last token of the prompt only",
}
_HOW = {"add": "added", "project": "projected out", "norm-preserving": "added, length kept"}


def kind_text(manifest: Manifest) -> str:
    """`task`, or of a steering vector where it acts and whether it is proven."""
    record = manifest.steering
    if record is None:
        return manifest.kind
    layers = ", ".join(map(str, record.layers))
    return f"steering after {layers}, {record.positions}, {'proven' if record.proven else 'unproven'}"


def show_steering(out: Output, manifest: Manifest, indent: str) -> None:
    """The steering part of a manifest; nothing for a task vector."""
    record = manifest.steering
    if record is None:
        return
    layers = ", ".join(map(str, record.layers))
    word = "layer" if len(record.layers) == 1 else "layers"
    out.line(f"{indent}{_HOW[record.mode]} after {word} {layers}, {_WHERE[record.positions]}")
    if record.condition is not None:
        side = "above" if record.condition.above else "below"
        found = record.condition.accuracy
        told = f" (right for {percent(found.value)} of {found.n} held-out prompts)" if found is not None else ""
        out.line(
            f"{indent}only where the prompt's projection after layer {record.condition.layer} is {side} "
            f"{record.condition.threshold:.4g}{told}"
        )
    if record.contrast is not None:
        out.line(f"{indent}{_contrast_text(record.contrast)}")
    _show_layers(out, record, indent)
    _show_calibration(out, record, indent)
    if record.proof is None:
        out.line(f"{indent}not proven: nothing was measured when it was made", "bold")
    else:
        _show_proof(out, record.proof, indent)


def _contrast_text(contrast: Contrast) -> str:
    denoised = f", denoised to {contrast.denoise} directions" if contrast.denoise else ""
    text = (
        f"read by {contrast.method}{denoised} from {contrast.pairs} pairs ({contrast.format}, by {contrast.context}) "
        f"at `{contrast.read}`, tested on {contrast.held_out} others"
    )
    if contrast.degenerate:
        text += f"; {len(contrast.degenerate)} pairs say nothing, such as {contrast.degenerate[0]}"
    if contrast.flips:
        text += f"; {len(contrast.flips)} held-out pairs point the other way, such as {contrast.flips[0]}"
    return text


def _show_layers(out: Output, record: SteeringRecord, indent: str) -> None:
    if not record.figures:
        return
    rows = [
        (
            f"{indent}{'*' if item.layer in record.layers else ' '}{item.layer}",
            "–" if item.separation is None else percent(item.separation.value),
            f"{item.consistency:+.2f}",
            f"{item.strength:.3g}",
            f"{item.activation:.3g}",
            "–" if item.coefficient is None else f"{item.coefficient:.3g}",
            " ".join(percent(share) for share in item.spectrum[:3]),
            "–" if item.redundancy is None else f"{item.redundancy:.2f}",
            "–" if item.effect is None else percent(item.effect),
        )
        for item in record.figures
    ]
    columns = [
        f"{indent}layer", ">separation", ">consistency", ">difference", ">activation", ">scale 1",
        ">spectrum", ">R²", ">effect",
    ]  # fmt: skip
    out.table(columns, rows)


def _show_calibration(out: Output, record: SteeringRecord, indent: str) -> None:
    found = record.calibration
    if found is None:
        out.line(f"{indent}strength: the file's own, not calibrated")
        return
    reach = f", text holds together up to scale {found.coherent_to:g}" if found.coherent_to is not None else ""
    out.line(
        f"{indent}scale 1: 95% of {found.tokens} tokens (of {found.texts} texts) move by at most "
        f"{found.kl_95:.2f} nats (KL from the base)"
        f"{reach}"
    )
    if found.curve:
        probes = sorted({name for point in found.curve for name in point.probes})
        out.table(
            [f"{indent}scale", ">KL 95%", ">perplexity", ">repetition", *(f">{name}" for name in probes), ""],
            [
                (
                    f"{indent}{point.scale:g}",
                    _number(point.kl_95),
                    _number(point.perplexity),
                    percent(point.repetition),
                    *(percent(point.probes[name]) if name in point.probes else "" for name in probes),
                    "" if point.coherent else "falls apart",
                )
                for point in found.curve
            ],
        )


def _show_proof(out: Output, proof: Proof, indent: str) -> None:
    if proof.effects:
        rows = [
            (
                f"{indent}{item.probe}",
                percent(item.base.value),
                percent(item.steered.value),
                change_text(item.change),
                "" if item.placebo is None else percent(item.placebo),
                "" if item.placebo_best is None else percent(item.placebo_best),
                percent(item.prompted.value) if item.prompted else "",
            )
            for item in proof.effects
        ]
        out.table(
            [f"{indent}probe", ">base", ">steered", ">change (95% interval)", ">placebo", ">best placebo", ">prompt"],
            rows,
        )
        out.line(f"{indent}at scale {proof.scale:g}, against {proof.placebos} random directions of the same norm")
    if proof.prompt:
        out.line(f"{indent}prompt: {proof.prompt}{_prompt_text(proof)}")
    side = proof.side_effects
    if side is not None:
        out.line(
            f"{indent}general text ({side.tokens} tokens): KL from the base {_number(side.kl_mean)} nats on average, "
            f"{_number(side.kl_95)} at the 95th percentile; perplexity {_number(side.perplexity_before)} → "
            f"{_number(side.perplexity_after)}"
        )
    out.line(f"{indent}{'proven' if proof.proven else 'unproven'}", "bold")
    for reason in proof.reasons:
        out.line(f"{indent}  {reason}")


def _prompt_text(proof: Proof) -> str:
    """How the prompt does beside the vector."""
    if proof.prompt_wins is None:
        return ""
    alike = all(item.prompted is None or item.prompted.value == item.steered.value for item in proof.effects)
    if alike:
        return f"; as many replies as the vector, {'more' if proof.prompt_wins else 'less'} surely (log-probability)"
    return "; the prompt does more" if proof.prompt_wins else "; the vector does more"


def _number(value: float | None) -> str:
    """Three digits; `–` where the model gave no number."""
    return "–" if value is None else f"{value:.3g}"
