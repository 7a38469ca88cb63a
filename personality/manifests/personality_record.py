"""A personality: a base, a set of uses of vectors, and the method that composes them."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from personality.manifests.base_identity import BaseIdentity
from personality.manifests.canonical import canonical_json, digest
from personality.manifests.composition_methods import METHODS, NATIVE, Value, method_of
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
        method: its name, see `composition_methods`; `linear` is task arithmetic.
        density: share of each vector's elements that TIES keeps, in (0, 1]; a use can have its own.
        normalize: what TIES divides by: `sum` 1, `mean` the number of agreeing vectors, `weighted` their |scale|s.
        trim_scope: one trimming threshold per whole `vector` or per `tensor`.
        lam: factor on the TIES result (λ); 1 leaves scales as typed.
        steering: how several steering vectors act in one layer: they add up (`sum`), or are made `orthogonal` first.
        seed: of a method that draws at random.
        parameters: every setting of a method other than `linear` and `ties`, which have the fields above.
    """

    method: str = "linear"
    density: float = Field(default=0.2, gt=0, le=1)
    normalize: Literal["sum", "mean", "weighted"] = "sum"
    trim_scope: Literal["vector", "tensor"] = "vector"
    lam: float = Field(default=1.0, alias="lambda")
    steering: Literal["sum", "orthogonal"] = "sum"
    seed: int = Field(default=0, ge=0)
    parameters: dict[str, Any] = Field(default={}, validate_default=True)

    model_config = {**Frozen.model_config, "populate_by_name": True}

    @model_validator(mode="before")
    @classmethod
    def _own_settings(cls, data: Any) -> Any:
        if isinstance(data, dict) and (method := data.get("method")) in [*METHODS] and method not in NATIVE:
            for name in _OF_TIES:
                if name in data:
                    raise ValueError(f"{name} of `{method}` belongs under `parameters`")
        return data

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        return method_of(method).name

    @field_validator("seed")
    @classmethod
    def _drawing(cls, seed: int, info: ValidationInfo) -> int:
        method = METHODS.get(info.data.get("method", ""))
        if seed and method and not method.random:
            raise ValueError(f"`{method.name}` draws nothing at random: it has no seed")
        return seed

    @field_validator("parameters")
    @classmethod
    def _complete(cls, parameters: dict[str, Any], info: ValidationInfo) -> dict[str, Value]:
        # Every setting is recorded, so that another default in a later version changes nothing recorded.
        method = METHODS.get(info.data.get("method", ""))
        return method.complete(parameters) if method else parameters

    @property
    def drops(self) -> bool:
        """Whether the method keeps a share of each vector only, so that a use may have a density of its own."""
        return self.method == "ties" or any(item.name == "density" for item in METHODS[self.method].parameters)

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
        # Each method has its own settings only; a copy with another method may still carry those of the former.
        native = self.method in NATIVE
        drop = {"parameters", "seed"} if native else {*_OF_TIES, *(() if METHODS[self.method].random else ("seed",))}
        if not native and not self.parameters:
            drop.add("parameters")
        return {key: value for key, value in found.items() if key not in drop}

    def __hash__(self) -> int:
        return hash(canonical_json(self.as_json()))

    def __str__(self) -> str:
        steering = "" if self.steering == "sum" else ", steering vectors made orthogonal"
        if self.method == "linear":
            return f"linear{steering}"
        if self.method == "ties":
            lam = "" if self.lam == 1 else f", lambda {self.lam:g}"
            return f"ties (density {self.density:g}, {self.normalize}, per {self.trim_scope}{lam}){steering}"
        settings = [f"{name} {_shown(value)}" for name, value in sorted(self.parameters.items())]
        if METHODS[self.method].random:
            settings.append(f"seed {self.seed}")
        listed = f" ({', '.join(settings)})" if settings else ""
        return f"{self.method}{listed}{steering}"


_OF_TIES = ("density", "normalize", "trim_scope", "lambda", "lam")


def _shown(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


class Use(Frozen):
    """One vector in a personality.

    Attributes:
        behavior: name of the behavior; a personality uses at most one vector of each.
        number: the vector's number within its behavior, as in `listening@3`.
        vector: the vector's id.
        scale: finite factor; negative negates.
        layers: where it acts; None for everywhere.
        density: share of the vector that the method keeps; None for the composition's.
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
