"""An exported folder loaded again with transformers, beside the version that is composed in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from personality.baking.baked_comparison import TOLERANCE, BakedComparison, compare_baked
from personality.baking.route import BakePlan
from personality.builds.comparison import Agreement, agreement, log_probabilities, probe_tokens
from personality.builds.reference import Reference, Row, compare, probe_prompts, rows_of, with_loss
from personality.builds.steering_part import SteeringPart
from personality.composition.composer import Composer
from personality.evaluation.scores import check_finite
from personality.manifests.errors import CorruptError
from personality.model import load_composed, load_model, read_config
from personality.vectors.steering.hooks import steered


@dataclass(frozen=True)
class Reloaded:
    """What came of it.

    Attributes:
        agreement: of the folder's predictions with those of the version; None where transformers does not read it.
        compared: the folder beside the model that hooks steer; None when nothing was baked, or not read.
        allowed: greatest difference at which the two agree, nats.
        reference: what a server of the folder should answer, with the plugin when something is left to it.
        plain: what it should answer without the plugin; None when nothing is left to it.
        effect: greatest |Δ log-probability| that steering makes in the reference; None without.
    """

    agreement: Agreement | None
    compared: BakedComparison | None
    allowed: float
    reference: Reference
    plain: Reference | None = None
    effect: float | None = None


def reload_and_compare(composer: Composer, folder: Path, part: SteeringPart) -> Reloaded:
    """Compare a folder's predictions with the version's, and keep what the version answers.

    Args:
        composer: of the version.
        folder: as written.
        part: what became of its steering.

    Raises:
        CorruptError: when they differ.
        PersonaError: when the version predicts NaN or infinite values.
    """
    vocabulary = int(read_config(composer.folder).get_text_config().vocab_size)
    ids, prompts = probe_tokens(vocabulary), probe_prompts(composer, vocabulary)
    read: tuple[Tensor, tuple[Row, ...]] | None = None
    if part.baked is None or part.baked.plan.readable_by_transformers:
        model = load_model(folder)
        read = log_probabilities(model, ids), rows_of(model, prompts)
        del model  # one model in memory at a time
    model = load_composed(composer.without_steering())
    same, compared, allowed = None, None, TOLERANCE
    if part.baked is not None and read is not None:
        compared = _compare_baked(composer, read[0], model, ids, part.baked.plan)
        same, allowed = compared.agreement, compared.allowed
    elif read is not None:
        same = _compare(read[0], log_probabilities(model, ids))
    unsteered = rows_of(model, prompts) if composer.steering else ()
    steering = () if part.left_out else composer.steering
    with steered(model, steering, rounding=composer.layer_dtype):
        rows = rows_of(model, prompts)
    del model
    reference = with_loss(rows, composer.without_steering() if part.left_out else composer)
    plain = reference.model_copy(update={"rows": unsteered}) if part.table else None
    effect = compare(reference, unsteered).greatest_difference if steering else None
    if part.baked is not None and effect is not None:
        loss = compare(reference, read[1]).greatest_difference if read else part.baked.plan.tolerance * effect
        reference = reference.model_copy(update={"baking_loss": loss})
    return Reloaded(same, compared, allowed, reference, plain, effect)


def _compare(from_disk: Tensor, wanted: Tensor) -> Agreement:
    result = agreement(from_disk, wanted)
    check_finite(wanted)
    if result.greatest_difference > TOLERANCE:
        raise CorruptError(
            f"the exported folder, reloaded, is not the version: log-probabilities differ by up to "
            f"{result.greatest_difference:.2g} nats, greedy tokens agree at {result.greedy:.1%}",
            "nothing was kept; check the disk, then `persona verify`",
        )
    return result


def _compare_baked(composer: Composer, from_disk: Tensor, model: Any, ids: Tensor, plan: BakePlan) -> BakedComparison:
    compared = compare_baked(
        from_disk, model, composer.steering, ids, tolerance=plan.tolerance, rounding=composer.layer_dtype
    )
    if not compared.same:
        same = compared.agreement
        raise CorruptError(
            f"the exported folder, reloaded, does not do what the hooks do: log-probabilities differ by up to "
            f"{same.greatest_difference:.2g} nats (allowed: {compared.allowed:.2g}; steering itself changes up to "
            f"{compared.effect:.2g}), greedy tokens agree at {same.greedy:.1%}",
            f"nothing was kept. Either a tensor of the route `{plan.route}` was not loaded, or the vectors are "
            "so weak beside what they are added to that rounding loses them: `persona promote`, `--without-steering`",
        )
    return compared
