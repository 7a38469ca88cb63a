"""A personality: a base, a set of uses of vectors, and the method that composes them."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from personality.manifests.base_identity import BaseIdentity
from personality.manifests.canonical import digest
from personality.manifests.errors import UsageError
from personality.manifests.names import BEHAVIOR_PATTERN
from personality.manifests.record import Frozen


class LayerRange(Frozen):
    """Layers `first` to `last`, both included."""

    first: int = Field(ge=0)
    last: int = Field(ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"layer range {self} ends before it begins")
        return self

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def __contains__(self, layer: int) -> bool:
        return self.first <= layer <= self.last

    @classmethod
    def parse(cls, text: str) -> LayerRange:
        """Read `10-20` or `7`.

        Raises:
            UsageError: when the text is neither.
        """
        first, dash, last = text.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(first) > int(last or first):
            raise UsageError(f"`{text}` is not a range of layers", "write the first and the last, such as `10-20`")
        return cls(first=int(first), last=int(last or first))


class Composition(Frozen):
    """How the uses become one change of the weights; see docs/composition.md for the formulas.

    Attributes:
        method: `linear` (task arithmetic) or `ties`.
        density: share of each vector's elements that TIES keeps, in (0, 1]; a use can have its own.
        normalize: what TIES divides by: `sum` 1, `mean` the number of agreeing vectors, `weighted` their |scale|s.
        trim_scope: one trimming threshold per whole `vector` or per `tensor`.
        lam: factor on the TIES result (λ); 1 leaves scales as typed.
        steering: how several steering vectors act in one layer: they add up (`sum`), or are made `orthogonal` first.
    """

    method: Literal["linear", "ties"] = "linear"
    density: float = Field(default=0.2, gt=0, le=1)
    normalize: Literal["sum", "mean", "weighted"] = "sum"
    trim_scope: Literal["vector", "tensor"] = "vector"
    lam: float = Field(default=1.0, alias="lambda")
    steering: Literal["sum", "orthogonal"] = "sum"

    model_config = {**Frozen.model_config, "populate_by_name": True}

    def effective(self) -> dict[str, Any]:
        """Only the fields that change the result: `linear` has no settings, and adding directions up is the usual."""
        found = self.as_json()
        if self.method == "linear":
            found = {key: value for key, value in found.items() if key in ("method", "steering")}
        return found

    @model_serializer(mode="wrap")
    def _without_usual(self, default: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Left out where it is the usual one: ids of versions that know nothing of steering stay what they are.
        found: dict[str, Any] = default(self)
        if self.steering == "sum":
            del found["steering"]
        return found

    def __str__(self) -> str:
        steering = "" if self.steering == "sum" else ", steering vectors made orthogonal"
        if self.method == "linear":
            return f"linear{steering}"
        lam = "" if self.lam == 1 else f", lambda {self.lam:g}"
        return f"ties (density {self.density:g}, {self.normalize}, per {self.trim_scope}{lam}){steering}"


class Use(Frozen):
    """One vector in a personality.

    Attributes:
        behavior: name of the behavior; a personality uses at most one vector of each.
        number: the vector's number within its behavior, as in `listening@3`.
        vector: the vector's id.
        scale: finite factor; negative negates.
        layers: where it acts; None for everywhere.
        density: TIES density of this use; None for the composition's.
    """

    behavior: str = Field(pattern=BEHAVIOR_PATTERN)
    number: int = Field(ge=1)
    vector: str = Field(pattern=r"^[0-9a-f]{64}$")
    scale: float
    layers: LayerRange | None = None
    density: float | None = Field(default=None, gt=0, le=1)

    @field_validator("scale")
    @classmethod
    def _finite(cls, scale: float) -> float:
        if not math.isfinite(scale):
            raise ValueError(f"a scale must be finite, got {scale}")
        return scale + 0.0  # -0.0 becomes 0.0, so that equal scales have equal digests

    @property
    def label(self) -> str:
        """Such as `listening@3`."""
        return f"{self.behavior}@{self.number}"

    def __str__(self) -> str:
        layers = f", layers {self.layers}" if self.layers else ""
        density = f", density {self.density:g}" if self.density is not None else ""
        return f"{self.label} × {self.scale:g}{layers}{density}"


class Personality(Frozen):
    """Base + uses + composition. Its identity says what the weights are, not where the base lies."""

    base: BaseIdentity
    composition: Composition = Composition()
    uses: tuple[Use, ...] = ()

    @model_validator(mode="after")
    def _one_use_per_behavior(self) -> Self:
        names = [use.behavior for use in self.uses]
        if names != sorted(set(names)):
            raise ValueError(f"uses must be sorted by behavior, each once; got {names}")
        return self

    @property
    def id(self) -> str:
        """Digest of what determines the weights."""
        return digest(
            {
                "base": self.base.fingerprint,
                "composition": self.composition.effective(),
                "uses": [use.as_json() for use in self.uses],
            }
        )

    def use_of(self, behavior: str) -> Use | None:
        """The use of a behavior, or None."""
        return next((use for use in self.uses if use.behavior == behavior), None)

    def with_use(self, use: Use) -> Personality:
        """A copy in which this use replaces any other of the same behavior."""
        others = [other for other in self.uses if other.behavior != use.behavior]
        uses = tuple(sorted([*others, use], key=lambda item: item.behavior))
        return self.model_copy(update={"uses": uses})

    def without(self, behavior: str) -> Personality:
        """A copy without the behavior."""
        return self.model_copy(update={"uses": tuple(use for use in self.uses if use.behavior != behavior)})

    def __str__(self) -> str:
        return " + ".join(str(use) for use in self.uses) or "the base alone"
