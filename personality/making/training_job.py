"""What one `persona train` is asked to do."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from personality.manifests.canonical import digest
from personality.manifests.personality_record import LayerRange
from personality.manifests.record import Frozen, Record
from personality.vectors.training.settings import TrainSettings


class AvoidOptions(Frozen):
    """A direction in weight space that a run's updates are kept out of.

    Attributes:
        vector: id of a task vector of this repository.
        label: its label, for people.
        two_sided: remove movements away from the direction too.
        keep_magnitude: stretch what is left of an update to its old length.
        top: denoise the direction to the space of so many singular vectors of each weight; None for as it is.
        placebo: also train with a random direction of the same norm, to see whether that does the same.
    """

    vector: str
    label: str
    two_sided: bool = False
    keep_magnitude: bool = False
    top: int | None = Field(default=16, ge=1)
    placebo: bool = True


class PreventOptions(Frozen):
    """A direction in activation space that acts while a run trains, so that the weights need not learn it.

    Attributes:
        vector: id of a steering vector of this repository.
        label: its label, for people.
        scale: at which it acts.
        layers: in which it acts; None for its own.
    """

    vector: str
    label: str
    scale: float = 1.0
    layers: LayerRange | None = None


class TrainingJob(Record):
    """A run, from its data to its vector; kept beside its checkpoints so that it can be resumed.

    Attributes:
        behavior: its name.
        data: JSONL of examples.
        general: JSONL of general examples; None only with `settings.general_ratio` 0.
        settings: hyper-parameters.
        skip: leave out so many examples at the beginning of `data`.
        examples: then use so many; None for all.
        fresh: leave out examples that were used before instead of refusing them.
        allow_repeats: train on examples that were used before.
        contrastive: train toward the behavior and away from it, and keep the difference.
        avoid: keep the updates out of a direction.
        prevent: let a direction act while training, in both arms of a contrastive run.
        promotes: id of the steering vector that the result is to stand in for; None for none.
        preflight: diagnose first.
        force: train even when the diagnosis says no-go.
        probe_rows: rows of each probe for the measures before and after; 0 for none.
    """

    noun: ClassVar[str] = "training job"
    mend: ClassVar[str] = "remove the folder of the unfinished run that FILE lies in"

    behavior: str
    data: Path
    general: Path | None
    settings: TrainSettings
    skip: int = Field(default=0, ge=0)
    examples: int | None = Field(default=None, ge=1)
    fresh: bool = False
    allow_repeats: bool = False
    contrastive: bool = False
    avoid: AvoidOptions | None = None
    prevent: PreventOptions | None = None
    promotes: str | None = None
    preflight: bool = True
    force: bool = False
    probe_rows: int | None = Field(default=40, ge=0)

    @property
    def lineage(self) -> tuple[str, ...]:
        """Ids of the vectors that the result owes something to, each once."""
        given = (
            self.avoid.vector if self.avoid is not None else None,
            self.prevent.vector if self.prevent is not None else None,
            self.promotes,
        )
        return tuple(dict.fromkeys(vector for vector in given if vector is not None))

    def key(self, base: str, behavior_digest: str, general_digest: str, tools: dict[str, str]) -> str:
        """Identity of the run: equal jobs on equal data give equal bits, wherever the files lie.

        Args:
            base: fingerprint of the base.
            behavior_digest: of the examples that are used.
            general_digest: of the general data.
            tools: versions of the libraries.
        """
        what = self.as_json() | {"data": behavior_digest, "general": general_digest}
        # These decide whether a run takes place and what is looked at, not what comes out.
        for name in ("force", "preflight", "probe_rows", "allow_repeats", "fresh", "skip", "examples", "promotes"):
            del what[name]
        if self.prevent is None:  # runs that know nothing of it keep their identity
            del what["prevent"]
        return digest({"job": what, "base": base, "tools": tools})[:16]
