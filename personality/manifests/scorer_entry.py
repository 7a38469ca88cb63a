"""How a probe's replies are scored: the `scorer` of a `[[probes]]` table."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from personality.manifests.record import Frozen


class ContainsEntry(Frozen):
    """A reply passes when it holds texts.

    Attributes:
        texts: for every row that has no `contains` of its own.
        all: whether it must hold all of them, or any one.
        ignore_case: whether upper and lower case are the same.
    """

    kind: Literal["contains"]
    texts: tuple[str, ...] = ()
    all: bool = False
    ignore_case: bool = False


class JsonEntry(Frozen):
    """A reply passes when all of it is JSON that a JSON Schema (2020-12 unless it names another) allows.

    Attributes:
        json_schema: for every row that has no `schema` of its own; in the file it is called `schema`.
    """

    model_config = ConfigDict(**Frozen.model_config, populate_by_name=True)

    kind: Literal["json"]
    json_schema: dict[str, Any] = Field(default={}, alias="schema")


class LengthEntry(Frozen):
    """A reply passes when it is neither too short nor too long.

    Attributes:
        unit: what is counted; tokens are the model's own, sentences end in `.`, `!` or `?` before a space or the end.
        min, max: both included.
    """

    kind: Literal["length"]
    unit: Literal["words", "characters", "tokens", "sentences"] = "words"
    min: int | None = Field(default=None, ge=0)
    max: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a length needs `min`, `max` or both")
        if self.min is not None and self.max is not None and self.max < self.min:
            raise ValueError(f"no length is at least {self.min} and at most {self.max}")
        return self


class LabelEntry(Frozen):
    """The model is the classifier: no reply is written, each label is scored as the reply, and the likeliest one must
    be the row's `label`.

    Attributes:
        labels: none the beginning of another.
    """

    kind: Literal["label"]
    labels: tuple[str, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _apart(self) -> Self:
        for i, first in enumerate(self.labels):
            for j, second in enumerate(self.labels):
                if i != j and second.startswith(first):
                    raise ValueError(f"the label {first!r} begins {second!r}: their probabilities cannot be compared")
        return self


class JudgeEntry(Frozen):
    """A judge model says whether a reply does what a rubric asks.

    Attributes:
        rubric: what to judge, in words.
        verdict: what the judge must answer with.
        at_least: the lowest grade that passes, for `0-10`.
    """

    kind: Literal["judge"]
    rubric: str = Field(min_length=1)
    verdict: Literal["yes-no", "0-10"] = "yes-no"
    at_least: float = Field(default=6, ge=0, le=10)


ScorerEntry = Annotated[ContainsEntry | JsonEntry | LengthEntry | LabelEntry | JudgeEntry, Field(discriminator="kind")]


class JudgeEndpoint(Frozen):
    """`[judge]` of `persona.toml`: a model behind an OpenAI-compatible endpoint.

    Attributes:
        url: up to and with `/v1`; PERSONA_JUDGE_URL goes before it. The key comes from PERSONA_JUDGE_KEY alone.
        model: its name there; PERSONA_JUDGE_MODEL goes before it.
        timeout: seconds for one answer.
        attempts: how often one question is put before the judge counts as dead.
        parallel: questions at a time.
    """

    url: str = ""
    model: str = ""
    timeout: float = Field(default=60, gt=0)
    attempts: int = Field(default=4, ge=1, le=20)
    parallel: int = Field(default=4, ge=1, le=64)
