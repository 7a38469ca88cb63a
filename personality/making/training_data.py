"""The examples of a run: those to learn, general ones to mix in, and general ones that stay out of the training."""

from __future__ import annotations

from dataclasses import dataclass

from personality.making.ledger import only_fresh
from personality.making.training_job import TrainingJob
from personality.manifests.errors import DataError
from personality.manifests.repository import Repository
from personality.vectors.training.batches import general_needed
from personality.vectors.training.examples import Example, read_examples
from personality.vectors.training.presets import needs_rejected, phases_of

_HELD_OUT = 32  # general examples that a run is judged by, at most


@dataclass(frozen=True)
class TrainingData:
    """What a run works with.

    Attributes:
        behavior: examples to learn.
        general: examples to draw the general share of each batch from.
        held_out: general examples that are never trained on; empty when there are only as many as are mixed in.
    """

    behavior: list[Example]
    general: list[Example]
    held_out: list[Example]

    @property
    def unseen(self) -> list[Example]:
        """General examples to compare a model with its base by: those held out, or a few others if there are none."""
        return self.held_out or self.general[:_HELD_OUT]


def read_data(repository: Repository, job: TrainingJob) -> TrainingData:
    """Read and divide a job's data.

    Raises:
        DataError: for data that cannot be used, naming file and line; with `job.fresh`, when all of it was used before.
        NotFoundError: there is no such file.
    """
    pairs = needs_rejected(job.settings.method) or job.contrastive
    examples = read_examples(job.data, need_rejected=pairs)[job.skip :]
    if job.fresh:
        known = len(examples)
        examples = only_fresh(repository, job.behavior, examples)
        if known and not examples:
            raise DataError(
                f"`{job.behavior}` has been trained on all {known} examples of {job.data}",
                "write new ones, or train on them again: `--allow-repeats` without `--fresh`",
            )
    count = job.examples or len(examples)
    if not examples:
        raise DataError(f"{job.data} has no examples after the first {job.skip}", "skip fewer (`--skip`)")
    if count > len(examples):
        place = f" after the first {job.skip}" if job.skip else ""
        word = "fresh examples" if job.fresh else "examples"
        raise DataError(f"{job.data} has {len(examples)} {word}{place}, not {count}", "ask for fewer, or write more")
    examples = examples[:count]
    others = read_examples(job.general, need_rejected=False) if job.general else []
    # Two phases may round up twice.
    needed = general_needed(len(examples), job.settings.general_ratio) + len(phases_of(job.settings.method)) - 1
    spare = min(_HELD_OUT, max(0, len(others) - needed))
    return TrainingData(examples, others[: len(others) - spare], others[len(others) - spare :])
