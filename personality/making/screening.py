"""Screening of training data: which examples pull a model toward a trait, told before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from personality.composition.opening import composer_of
from personality.evaluation.intervals import mean
from personality.evaluation.replies import DEFAULT_NEW_TOKENS, end_ids, reply_ids, until_end
from personality.evaluation.scores import Span, log_probs
from personality.manifests.errors import DataError
from personality.manifests.evaluation import Figure
from personality.manifests.manifest import Manifest
from personality.manifests.personality_record import LayerRange, Personality
from personality.manifests.repository import Repository
from personality.model import load_composed, load_tokenizer, threads_for
from personality.vectors.extraction.capture import activations
from personality.vectors.extraction.reading import Reading
from personality.vectors.extraction.spans import reply_span, special_ids, visible_stop
from personality.vectors.steering.hooks import steered
from personality.vectors.steering.injection import injections
from personality.vectors.steering.steering_file import open_steering
from personality.vectors.steering.steering_vector import SteeringVector
from personality.vectors.training.examples import Example, read_examples
from personality.vectors.training.tokens import ANY_LENGTH, Tokenizer, encode
from personality.versions.recipe import own_steering

By = Literal["projection", "likelihood"]
"""What an example is judged by:

- `projection`: how far the activations of its answer lie along the direction, mean over the answer's tokens (Chen et
  al. 2025, arXiv 2507.21509, the projection difference), in units of what scale 1 adds in a layer. For directions that
  were read from replies and act on them.
- `likelihood`: how much likelier the vector, acting at scale 1, makes its answer, nats per token. For directions that
  act where the reply is decided: the answer's own activations say little of them.

Both are differences to the same figure of the base's own greedy answer to the same prompt.
"""


@dataclass(frozen=True)
class ScreenedExample:
    """One example of the data.

    Attributes:
        where: "file:line".
        answer: figure of its answer.
        own: figure of the base's own greedy answer; of the prompt's last token (`projection`) or 0 (`likelihood`) where
            that was not asked for.
        shift: answer − own; above 0 it pulls toward the trait.
        text: how the answer begins.
    """

    where: str
    answer: float
    own: float
    shift: float
    text: str


@dataclass(frozen=True)
class Screening:
    """A file of examples, screened.

    Attributes:
        vector: label of the vector.
        by: what the examples were judged by.
        approximate: the base did not have to answer.
        layers: that were looked at, or in which the vector acted.
        examples: in the file's order.
        mean: shift over the file, with its interval over examples; it says which way the trait goes in training.
    """

    vector: str
    by: By
    approximate: bool
    layers: tuple[int, ...]
    examples: tuple[ScreenedExample, ...]
    mean: Figure

    @property
    def ranked(self) -> list[ScreenedExample]:
        """Those that pull most toward the trait first; equal ones in the file's order."""
        return sorted(self.examples, key=lambda item: -item.shift)

    def above(self, threshold: float) -> list[ScreenedExample]:
        """Those whose shift is greater, worst first."""
        return [item for item in self.ranked if item.shift > threshold]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data, worst example first."""
        return {
            "vector": self.vector,
            "by": self.by,
            "unit": "scale-1 lengths" if self.by == "projection" else "nats per token",
            "approximate": self.approximate,
            "layers": list(self.layers),
            "mean": self.mean.as_json(),
            "examples": [
                {
                    "where": item.where,
                    "shift": round(item.shift, 6),
                    "answer": round(item.answer, 6),
                    "own": round(item.own, 6),
                    "text": item.text,
                }
                for item in self.ranked
            ],
        }


def screen(
    repository: Repository,
    data: Path,
    manifest: Manifest,
    *,
    by: By | None = None,
    layers: LayerRange | None = None,
    approximate: bool = False,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    on_stage: Callable[[str], None] | None = None,
) -> Screening:
    """Judge each example of a file by what its chosen answer has of a trait.

    Args:
        repository: where.
        data: JSONL of examples, as for training.
        manifest: of the trait's steering vector.
        by: see `By`; None for `likelihood` where the vector acts at the decision alone, else `projection`.
        layers: to look at, or to act in; None for the vector's own.
        approximate: do without the base's answers, which take longest.
        max_new_tokens: longest answer of the base.
        on_stage: told what is being done.

    Raises:
        DataError: data that cannot be used, naming file and line.
        UsageError: a task vector.
        IncompatibleError: a vector of another base, or without a direction for one of the layers.
        NotFoundError, CorruptError: file, base or vector are missing or damaged.
    """
    told = on_stage or (lambda stage: None)
    own_steering(repository, manifest)
    vector = open_steering(repository, manifest.id, manifest.label)
    acting = tuple(vector.acting(layers, manifest.label))
    examples = read_examples(data, need_rejected=False)
    if not examples:
        raise DataError(f"{data} has no examples", "give at least one")
    judge = by or ("likelihood" if vector.positions == "decision" else "projection")
    told("loading the base")
    composer = composer_of(repository, Personality(base=repository.config().base))
    tokenizer = load_tokenizer(composer.base.folder)
    model = load_composed(composer)
    with threads_for(model):
        spans = _answers(tokenizer, examples, content_only=judge == "projection")
        own = None
        if not approximate:
            told("answering as the base")
            own = _own(model, tokenizer, spans, max_new_tokens, content_only=judge == "projection")
        told("screening")
        if judge == "projection":
            heads = [Span(item.ids[: item.start], item.start - 1, item.start) for item in spans]
            first, second = (_projections(model, each, vector, acting) for each in (spans, own or heads))
        else:
            first = _gains(model, spans, vector, layers, manifest.label)
            second = _gains(model, own, vector, layers, manifest.label) if own else torch.zeros_like(first)
    rows = tuple(
        ScreenedExample(example.where, float(answer), float(base_answer), float(answer - base_answer), _text(example))
        for example, answer, base_answer in zip(examples, first, second, strict=True)
    )
    return Screening(
        vector=manifest.label,
        by=judge,
        approximate=approximate,
        layers=acting,
        examples=rows,
        mean=mean([row.shift for row in rows]),
    )


def _answers(tokenizer: Tokenizer, examples: Sequence[Example], *, content_only: bool) -> list[Span]:
    """Each example's chosen answer: its content alone, or all that the model would have to write."""
    specials = special_ids(tokenizer)
    spans = []
    for example in examples:
        where = example.where
        encoded = encode(tokenizer, example.prompt, example.chosen, ANY_LENGTH, where=where)
        stop = encoded.stop
        if content_only:
            content = reply_span(tokenizer, example.prompt, example.chosen, specials, ANY_LENGTH, where=where)
            stop = content.stop
        spans.append(Span(encoded.ids[:stop], encoded.start, stop))
    return spans


def _own(
    model: Any, tokenizer: Tokenizer, answers: Sequence[Span], max_new_tokens: int, *, content_only: bool
) -> list[Span]:
    """The base's greedy answers to the same prompts, with and without what `_answers` takes them with and without."""
    heads = [item.ids[: item.start] for item in answers]
    ends = end_ids(model, tokenizer)
    spans = []
    found = reply_ids(model, tokenizer, heads, max_new_tokens=max_new_tokens)
    specials = special_ids(tokenizer)
    for answer, head, reply in zip(answers, heads, found, strict=True):
        stop = len(until_end(reply, ends))
        if content_only:
            stop = visible_stop(tokenizer, reply, specials, stop=stop)
        elif answer.ids[-1] in ends:
            stop += 1  # as the data's answer does; one that was cut off has no end to score
        kept = reply[: max(stop, 1)]  # a base that says nothing still ends its turn
        spans.append(Span((*head, *kept), len(head), len(head) + len(kept)))
    return spans


def _projections(model: Any, spans: Sequence[Span], vector: SteeringVector, layers: Sequence[int]) -> Tensor:
    """Float64 (n,): mean over tokens and layers of h·v / ‖v‖², with v what scale 1 adds in a layer on its own."""
    result = torch.zeros(len(spans), dtype=torch.float64)
    readings = [Reading(item.ids[: item.stop], item.start, item.stop) for item in spans]
    directions = torch.stack([vector.tensors[layer].double() for layer in layers])
    directions = directions / directions.square().sum(-1, keepdim=True)
    for indices, states in activations(model, readings):
        result[indices] = torch.einsum("nld,ld->nl", states[:, list(layers)].double(), directions).mean(-1)
    return result


def _gains(model: Any, spans: Sequence[Span], vector: SteeringVector, layers: LayerRange | None, label: str) -> Tensor:
    """Float64 (n,): log-probability per token with the vector at scale 1 minus that without it."""
    lengths = torch.tensor([item.stop - item.start for item in spans], dtype=torch.float64)
    before = torch.tensor(log_probs(model, spans), dtype=torch.float64)
    with steered(model, injections(vector, 1.0, layers, label)):
        after = torch.tensor(log_probs(model, spans), dtype=torch.float64)
    return (after - before) / lengths


def _text(example: Example) -> str:
    chosen = example.chosen
    return " ".join((chosen if isinstance(chosen, str) else chosen[0].content).split())
