"""`gradients`: what a frozen context would keep of the gradient that the base gets from a file of examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from personality.composition.opening import composer_of
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.model import load_composed, load_tokenizer, threads_for
from personality.vectors.training.batch_loss import References, batch_loss
from personality.vectors.training.batches import BatchItem
from personality.vectors.training.examples import read_examples
from personality.vectors.training.frozen_context import check_frozen_context
from personality.vectors.training.gradient_report import GradientReport, compare_gradients
from personality.vectors.training.objectives import sum_log_probs
from personality.vectors.training.presets import PRESETS, phases_of
from personality.vectors.training.settings import TrainSettings
from personality.vectors.training.tokens import encode_examples
from personality.vectors.training.trainable import chosen_parameters

_ANY_TOKEN = 0  # for padding, which is masked everywhere


def report_gradients(
    repository: Repository,
    data: Path,
    settings: TrainSettings,
    *,
    examples: int = 40,
    on_batch: Callable[[int, int], None] | None = None,
) -> GradientReport:
    """Compare the gradient at the beginning of a training, with the context frozen and without, on the base.

    Args:
        repository: whose base.
        data: JSONL of examples, with `rejected` replies for objectives on pairs.
        settings: of that training; what counts are its first objective, the size of a batch, the longest dialogue, and
            which parameters are trained, since only those are compared.
        examples: most examples to use, from the top.
        on_batch: told how many batches of how many are done.

    Returns:
        The report.

    Raises:
        DataError: for data that cannot be used, naming file and line.
        UsageError: parameters that the model does not have, or an architecture that cannot do it.
    """
    objective = phases_of(settings.method)[0]
    pairs = PRESETS[objective].needs_rejected
    wanted = read_examples(data, need_rejected=pairs)[:examples]
    composer = composer_of(repository, Personality(base=repository.config().base))
    model, tokenizer = load_composed(composer), load_tokenizer(composer.base.folder)
    encoded = encode_examples(tokenizer, wanted, settings.max_length, with_rejected=pairs)
    size = settings.batch_size
    batches = [BatchItem(tuple(encoded[i : i + size]), ()) for i in range(0, len(encoded), size)]

    def loss(log_probs: Tensor, mask: Tensor, item: BatchItem) -> Tensor:
        references = None
        if objective == "dpo":  # the reference is the base itself, as at the beginning of every run
            sums = sum_log_probs(log_probs, mask).detach()
            references = References(chosen=sums[: item.pairs], rejected=sums[item.pairs :])
        return batch_loss(log_probs, mask, item, item, objective, settings, references=references).loss

    selected = chosen_parameters(model, settings)
    with threads_for(model):
        check_frozen_context(model, _ANY_TOKEN)
        return compare_gradients(
            model, batches, pad_id=_ANY_TOKEN, selected=selected, objective=loss, on_batch=on_batch
        )
