"""The manifest: the record of one vector."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from personality.manifests.base_identity import BaseIdentity
from personality.manifests.names import BEHAVIOR_PATTERN
from personality.manifests.record import Frozen, Record
from personality.manifests.steering_record import SteeringRecord
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
        how: `train`, `extract`, `import-checkpoint`, `import-lora`, `import-directions` or `encode`.
        source: file name of what was imported, or the vector that a direction was derived from, or that was stored in
            another encoding; else empty.
        settings: every hyper-parameter, seeds included; of an encoding that was asked for, its density or rank.
        data: the examples used.
        tools: versions of Python, torch, transformers and this program.
        seconds: time spent making it.
        training: diagnosis, guards and verdict of a training run; None for imports.
    """

    how: Literal["train", "extract", "import-checkpoint", "import-lora", "import-directions", "encode"]
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


class Residual(Frozen):
    """What a vector lacks of what it was made of: ‖wanted − stored‖ / ‖wanted‖, Frobenius norms, 0 to about 1.

    Attributes:
        whole: over all tensors together.
        tensors: of each tensor that is not stored as it was; empty when nothing was lost.
    """

    whole: float
    tensors: dict[str, float] = {}


class Manifest(Record):
    """The record of one vector; its file is `manifests/<id>.json`.

    Attributes:
        id: the vector's logical digest.
        behavior, number: `listening` and 3 for `listening@3`.
        kind: `task` (weight space) or `steering` (activation space).
        encoding: `delta` (a dense difference per tensor), `exact` (the fine-tuned bits, relative to the base's),
            `sparse` (the elements that survived a trim), `low-rank` (two factors per tensor) or `directions` (one per
            layer).
        base: what it is relative to.
        tensors: dtype and shape of each base tensor that a task vector changes, such as `BF16 [96, 96]`; of a steering
            vector's own tensors, such as `layer.3`.
        bytes: size of its tensors.
        norm: Euclidean norm of the whole vector; for a steering vector, of what acts at scale 1 in its own layers.
        making: how it was made.
        rounding: the lost-update meter; None for a steering vector, which changes no weights.
        residual: what its encoding lost; None where nobody looked, as for a difference that is stored as it was made.
        steering: where and how a steering vector acts and how it was proven; None for a task vector.
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
    kind: Literal["task", "steering"] = "task"
    encoding: Literal["delta", "exact", "sparse", "low-rank", "directions"]
    base: BaseIdentity
    tensors: dict[str, str]
    bytes: int
    norm: float
    making: Making
    rounding: Rounding | None = None
    residual: Residual | None = None
    steering: SteeringRecord | None = None
    measures: dict[str, dict[str, float]] = {}
    lineage: tuple[str, ...] = ()
    suggested_scale: tuple[float, float] | None = None
    created: str

    @model_validator(mode="after")
    def _kind_fits(self) -> Self:
        steering = self.kind == "steering"
        if steering != (self.steering is not None) or steering != (self.encoding == "directions"):
            raise ValueError(f"a {self.kind} vector cannot have the encoding `{self.encoding}` and this record")
        if not steering and self.rounding is None:
            raise ValueError("a task vector's manifest says what rounding loses (`rounding`)")
        return self

    @property
    def label(self) -> str:
        """Such as `listening@3`."""
        return f"{self.behavior}@{self.number}"
