"""The manifest: the record of one vector."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from personality.manifests.base_identity import BaseIdentity
from personality.manifests.names import BEHAVIOR_PATTERN
from personality.manifests.record import Frozen, Record
from personality.manifests.training_record import TrainingRecord

_WARN_BELOW = 0.9


class DataUsed(Frozen):
    """A file of examples that a vector was made from.

    Attributes:
        role: `behavior` or `general`.
        name: the file's name, without its folder.
        digest: over the behavior's examples that were used, or over all general data that was given, in order.
        examples: how many of them.
        sides: how many of each `side`; empty when the examples name none.
        ledger: digests of the examples that were used, sorted: a behavior is trained on each once (docs/training.md).
            Empty for general data.
    """

    role: Literal["behavior", "general"]
    name: str
    digest: str
    examples: int
    sides: dict[str, int] = {}
    ledger: tuple[str, ...] = ()


class Making(Frozen):
    """How a vector came to be.

    Attributes:
        how: `train`, `import-checkpoint` or `import-lora`.
        source: file name of what was imported; empty for training.
        settings: every hyper-parameter, seeds included.
        data: the examples used.
        tools: versions of Python, torch, transformers and this program.
        seconds: time spent making it.
        training: diagnosis, guards and verdict of a training run; None for imports.
    """

    how: Literal["train", "import-checkpoint", "import-lora"]
    source: str = ""
    settings: dict[str, Any] = {}
    data: tuple[DataUsed, ...] = ()
    tools: dict[str, str] = {}
    seconds: float = 0.0
    training: TrainingRecord | None = None


class Rounding(Frozen):
    """What is lost when the vector, at scale 1, is rounded into the base's dtype (see docs/composition.md).

    Attributes:
        share_changed: share of the touched elements that change at all, 0 to 1.
        cosine: cosine of the applied to the intended update.
    """

    share_changed: float
    cosine: float

    @property
    def warning_due(self) -> bool:
        """Whether so much is lost that the rounded model is not the one that was made."""
        return self.cosine < _WARN_BELOW


class Manifest(Record):
    """The record of one vector; its file is `manifests/<id>.json`.

    Attributes:
        id: the vector's logical digest.
        behavior, number: `listening` and 3 for `listening@3`.
        kind: `task` (weight space).
        encoding: `delta` (a dense difference per tensor) or `low-rank` (two factors per tensor).
        base: what it is relative to.
        tensors: dtype and shape of each base tensor that it changes, such as `BF16 [96, 96]`.
        bytes: size of its tensors.
        norm: Euclidean norm of the whole vector.
        making: how it was made.
        rounding: the lost-update meter.
        measures: figures before and after, by measure.
        lineage: ids of vectors that it was made from.
        suggested_scale: range in which it was found useful, or None when nobody measured.
        created: ISO 8601 in UTC.
    """

    noun: ClassVar[str] = "manifest"

    id: str = Field(pattern=r"^[0-9a-f]{64}$")
    behavior: str = Field(pattern=BEHAVIOR_PATTERN)
    number: int = Field(ge=1)
    description: str = ""
    kind: Literal["task"] = "task"
    encoding: Literal["delta", "low-rank"]
    base: BaseIdentity
    tensors: dict[str, str]
    bytes: int
    norm: float
    making: Making
    rounding: Rounding
    measures: dict[str, dict[str, float]] = {}
    lineage: tuple[str, ...] = ()
    suggested_scale: tuple[float, float] | None = None
    created: str

    @property
    def label(self) -> str:
        """Such as `listening@3`."""
        return f"{self.behavior}@{self.number}"
