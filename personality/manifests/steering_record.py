"""What a steering vector's manifest says: where and how it acts, how it was proven, and what its scale means."""

from __future__ import annotations

from typing import Any, Literal

from personality.manifests.evaluation import Figure
from personality.manifests.record import Frozen

Positions = Literal["all", "response", "decision"]
"""Where a steering vector acts: at every position; at every position that predicts a token of the reply (the last token
of the prompt, then the reply's own tokens); or only at the last token of the prompt, where the reply is decided."""

Mode = Literal["add", "project", "norm-preserving"]
"""How it acts: v is added; the part along v is taken out; v is added and the old length restored."""


class Condition(Frozen):
    """When a vector acts at all: by the projection of the prompt's last token on a direction of its own.

    Attributes:
        layer: after which the prompt is looked at.
        threshold: of the projection on the unit direction, in the units of the activations.
        above: act where the projection is above the threshold; else where it is below.
        accuracy: share of held-out prompts that the threshold tells apart; None when nobody measured.
    """

    layer: int
    threshold: float
    above: bool = True
    accuracy: Figure | None = None


class Contrast(Frozen):
    """What a direction was read from.

    Attributes:
        format: of the pairs' file.
        context: in what the two sides of a pair differ: `answers` (the reply), `shots` (earlier turns), `system` (the
            system turn), `texts`, or `version` (base and composed model on the same text).
        read: token positions that were read, by meaning.
        method: `mean`, `pca`, `pca-centered` or `logistic`.
        denoise: singular vectors of the layer's output weights that the direction was reduced to; None for all.
        shots: earlier turns on each side, for `shots`.
        pairs: that the direction was read from.
        held_out: that only tested it.
        degenerate: pairs that say nothing (both sides alike), by file and line.
        flips: held-out pairs in whose difference the direction points the other way, by file and line.
        seed: of the draw of contexts and of the held-out pairs.
    """

    format: str
    context: Literal["answers", "shots", "system", "texts", "version"]
    read: str
    method: str
    denoise: int | None = None
    shots: int | None = None
    pairs: int
    held_out: int
    degenerate: tuple[str, ...] = ()
    flips: tuple[str, ...] = ()
    seed: int = 0


class LayerFigures(Frozen):
    """What one layer's direction looks like.

    Attributes:
        layer: its number.
        strength: norm of the mean difference.
        activation: mean norm of the activations that were read.
        consistency: mean cosine of the differences of two pairs.
        separation: share of held-out texts on the right side of the middle; None without held-out pairs.
        spectrum: share of the differences' energy along their first principal directions.
        redundancy: R² of the direction on those of the repository's other steering vectors; None without others.
        coefficient: of the unit direction at scale 1 when it acts in this layer alone; None when not calibrated.
        reached: nats at that coefficient; clearly below 1 where more of it does not move predictions further.
        effect: mean change of the wanted decision's probability with the vector in this layer alone, at the scale of
            the proof, −1 to 1; None when not measured.
    """

    layer: int
    strength: float
    activation: float
    consistency: float
    separation: Figure | None = None
    spectrum: tuple[float, ...] = ()
    redundancy: float | None = None
    coefficient: float | None = None
    reached: float | None = None
    effect: float | None = None


class ProbeEffect(Frozen):
    """What one probe gave on the base, steered, with placebos and with a prompt.

    Attributes:
        probe: such as `listening.accept`.
        base, steered: share of greedy replies that pass.
        change: steered − base, paired by row.
        placebo: mean over the random directions; None without.
        placebo_best: of the random direction that changed it most in the steered direction; None without.
        prompted: with a system prompt, or earlier turns, that ask for the behavior; None without.
        margins: mean margin in nats per token, by `base`, `steered`, `placebo`, `prompted`.
        probabilities: mean probability of the wanted opening, by the same names except `placebo`.
    """

    probe: str
    base: Figure
    steered: Figure
    change: Figure
    placebo: float | None = None
    placebo_best: float | None = None
    prompted: Figure | None = None
    margins: dict[str, float] = {}
    probabilities: dict[str, float] = {}


class SideEffects(Frozen):
    """What scale 1 does to general text.

    Attributes:
        tokens: reply tokens that were compared.
        kl_mean, kl_95: KL(base ‖ steered) per token, mean and 95th percentile over all reply tokens, nats.
        perplexity_before, perplexity_after: of the replies.

    The figures of the steered model are None where it predicts NaN.
    """

    tokens: int
    kl_mean: float | None
    kl_95: float | None
    perplexity_before: float
    perplexity_after: float | None


class Proof(Frozen):
    """Whether a direction does what it is for, and more than chance does.

    Attributes:
        proven: all of `reasons` is empty.
        reasons: what is missing, in sentences.
        scale: at which it was proven.
        effects: probe by probe.
        placebos: random directions of the same norm, in the same layers and at the same positions.
        prompt: the prompt of the baseline, or how it was made.
        prompt_wins: whether the prompt does more for the behavior than the vector; None without.
        measured: on the behavior's probes; on held-out pairs, where passing means that the wanted reply is likelier per
            token than the other; or on nothing.
        side_effects: on general text.
    """

    proven: bool
    reasons: tuple[str, ...] = ()
    scale: float = 1.0
    effects: tuple[ProbeEffect, ...] = ()
    placebos: int = 0
    prompt: str = ""
    prompt_wins: bool | None = None
    measured: Literal["probes", "pairs", "nothing"] = "nothing"
    side_effects: SideEffects | None = None


class DosePoint(Frozen):
    """What one scale does.

    Attributes:
        scale: of the vector.
        kl_95: 95th percentile of KL(base ‖ steered) at the tokens where it acts, nats; None where the model predicts
            NaN.
        perplexity: of general replies; None as well.
        repetition: share of repeated 4-grams in greedy replies, 0 to 1.
        coherent: whether text still holds together.
        probes: share of passing replies by probe.
    """

    scale: float
    kl_95: float | None
    perplexity: float | None
    repetition: float
    coherent: bool
    probes: dict[str, float] = {}


class Calibration(Frozen):
    """What scale 1 means: the coefficient at which the 95th percentile of per-token KL to the base is 1 nat.

    Attributes:
        tokens: positions at which it was measured.
        texts: that these are from; 0 where nobody counted.
        kl_95: what was reached at scale 1, nats; below 1 where the mode cannot do more.
        text: digest of the text.
        curve: dose and response.
        coherent_to: greatest scale of the curve up to which text holds together.
    """

    tokens: int
    texts: int = 0
    kl_95: float
    text: str
    curve: tuple[DosePoint, ...] = ()
    coherent_to: float | None = None


class SteeringRecord(Frozen):
    """A steering vector's part of its manifest.

    Attributes:
        positions, mode: where and how it acts.
        layers: where it acts unless a use says otherwise.
        condition: when it acts; None for always.
        contrast: what it was read from; None for an imported file.
        figures: layer by layer; empty for an imported file.
        proof: None when nothing was proven.
        calibration: None when a file's own strengths were kept.
        search: what the search for layers, positions and scale tried, one row each, best first.
    """

    positions: Positions
    mode: Mode
    layers: tuple[int, ...]
    condition: Condition | None = None
    contrast: Contrast | None = None
    figures: tuple[LayerFigures, ...] = ()
    proof: Proof | None = None
    calibration: Calibration | None = None
    search: tuple[dict[str, Any], ...] = ()

    @property
    def proven(self) -> bool:
        """Whether the vector was proven to do what it is for."""
        return self.proof is not None and self.proof.proven
