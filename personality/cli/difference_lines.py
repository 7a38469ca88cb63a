"""How `persona diff` shows modules, owners and replies on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from personality.cli.output import Output, percent
from personality.cli.tables import change_text, layer_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from personality.composition.weight_diff import WeightDiff
    from personality.difference.difference import Difference
    from personality.difference.transcripts import ScoredReply, Transcript
    from personality.evaluation.evaluate import Effect
    from personality.manifests.evaluation import Figure


def module_rows(weights: WeightDiff) -> list[tuple[str, ...]]:
    """Table rows: each layer, then its modules."""
    rows = []
    for layer in weights.layers:
        parts = [layer, *(module for module in weights.modules if module.layer == layer.layer)]
        for part, (name, *figures) in zip(parts, layer_rows(parts), strict=True):
            shares = percent(part.changed), percent(part.changed_rounded)
            rows.append((name if part is layer else "", part.module or "all", *figures, *shares))
    return rows


def further_rows(effects: Sequence[Effect]) -> list[tuple[str, ...]]:
    """Table rows of what probes measure beside replies and openings."""
    rows = []
    for effect in effects:
        for name, (before, after, change) in effect.others.items():
            nats = name == "margin"
            ends = [f"{figure.value:+.2f}" if nats else percent(figure.value) for figure in (before, after)]
            moved = nats_text(change) if nats else change_text(change)
            rows.append((effect.probe, "margin, nats" if nats else name, *ends, moved))
    return rows


def nats_text(change: Figure) -> str:
    """A difference in nats with its interval; `≈` where none was shown."""
    sign = "" if change.shows_change else "≈ "
    return f"{sign}{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"


def owner_lines(found: Difference) -> list[str]:
    """One line for each change of the recipe that changed weights."""
    changes = {change.what: str(change) for change in found.recipe}
    owners = found.weights.owners
    lines = [
        f"{percent(owner.share)} of ‖change‖² is owned by  {changes.get(owner.what, owner.what)}" for owner in owners
    ]
    if any(not owner.exact for owner in owners):
        rest = 1 - sum(owner.share for owner in owners)
        lines.append(f"{percent(rest)} by none alone: three and more changes act jointly (docs/diff.md)")
    return lines


def show_transcript(out: Output, transcript: Transcript, labels: tuple[str, str]) -> None:
    """Print one prompt with both replies side by side."""
    out.line(f"{transcript.probe}, row {transcript.row}", "bold")
    for turn in transcript.prompt:
        out.line(f"  {turn.role}: {turn.content}")
    both = transcript.before, transcript.after
    out.table(["", *labels], [("reply", *(reply.text for reply in both)), ("scored", *(map(scored, both)))])


def scored(reply: ScoredReply) -> str:
    """What the evaluation gave a reply."""
    words = ["passes" if reply.passed else "fails"]
    if reply.probability is not None:
        words.append(f"P {percent(reply.probability)}")
    if reply.margin is not None:
        words.append(f"margin {reply.margin:+.2f}")
    return ", ".join(words)
