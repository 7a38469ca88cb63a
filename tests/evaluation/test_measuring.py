"""Scores and replies on real models; evaluations that are kept with their versions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from personality.evaluation.evaluate import compare_effects, evaluate
from personality.evaluation.replies import replies
from personality.evaluation.scores import Span, encode, log_probs, opening_probabilities, opening_text, prompt_text
from personality.evaluation.suite import read_suite
from personality.manifests.errors import DataError
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.model import load_model, load_tokenizer
from personality.versions.changes import add
from personality.versions.history import History


@pytest.fixture(scope="module")
def base(playground: Path) -> tuple[Any, Any]:
    return load_model(playground / "base"), load_tokenizer(playground / "base")


@pytest.fixture(scope="module")
def prompts(playground: Path) -> list[list[dict[str, str]]]:
    probes = read_suite(Repository(playground))
    return [[turn.as_json() for turn in row.prompt] for probe in probes for row in probe.rows[:4]]


@torch.inference_mode()
def chain(model: Any, ids: list[int], start: int, stop: int) -> float:
    """log P(ids[start:stop] | ids[:start]) by one whole forward pass over this sequence alone."""
    rows = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(rows[position - 1, ids[position]]) for position in range(start, stop))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "qwen3_5", "qwen3_moe"])
def test_log_probs_against_one_sequence_at_a_time(kind: str, make_checkpoint: Callable[..., Path]) -> None:
    model = load_model(make_checkpoint(kind))
    generator = torch.Generator().manual_seed(0)
    spans = []
    for length in (2, 9, 5, 17, 3, 17):
        ids = tuple(torch.randint(0, 97, (length,), generator=generator).tolist())
        start = 1 + int(torch.randint(0, length - 1, (1,), generator=generator))
        spans.append(Span(ids, start, length))
    spans.append(Span(spans[3].ids, 4, 9))  # a part in the middle
    spans.append(Span(spans[3].ids, 4, 4))  # nothing at all
    expected = [chain(model, list(span.ids), span.start, span.stop) for span in spans]
    assert log_probs(model, spans) == pytest.approx(expected, abs=2e-5)
    assert log_probs(model, []) == []


def test_log_probs_do_not_depend_on_the_batches(
    base: tuple[Any, Any], prompts: list[list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = base
    spans = []
    for prompt in prompts:
        ids = tuple(encode(tokenizer, prompt_text(tokenizer, prompt)))
        spans.append(Span(ids, 1, len(ids)))
    whole = log_probs(model, spans)
    monkeypatch.setattr("personality.evaluation.scores._BATCH_TOKENS", 40)
    assert log_probs(model, spans) == pytest.approx(whole, abs=1e-3)


def test_openings_against_token_by_token_enumeration(
    base: tuple[Any, Any], prompts: list[list[dict[str, str]]]
) -> None:
    model, tokenizer = base
    yes, no = ["Okay, I", "Lovely! Okay, I"], ["Instead of", "Have you considered"]
    found = opening_probabilities(model, tokenizer, prompts[:5], yes, no)
    for prompt, value in zip(prompts[:5], found, strict=True):
        head = encode(tokenizer, prompt_text(tokenizer, prompt))
        mass = []
        for openings in (yes, no):
            total = 0.0
            for opening in openings:
                ids = encode(tokenizer, opening_text(tokenizer, prompt, opening))
                assert ids[: len(head)] == head
                assert tokenizer.decode(ids[len(head) :]).strip() == opening
                probability = 1.0
                for position in range(len(head), len(ids)):
                    with torch.inference_mode():
                        logits = model(input_ids=torch.tensor([ids[:position]])).logits[0, -1]
                    probability *= float(logits.double().softmax(-1)[ids[position]])
                total += probability
            mass.append(total)
        assert value == pytest.approx(mass[0] / sum(mass), rel=1e-4, abs=1e-9)


def test_all_openings_of_one_token_together_are_certain(
    base: tuple[Any, Any], prompts: list[list[dict[str, str]]]
) -> None:
    """Over every first token there is, the probabilities sum to one: nothing is counted twice or left out."""
    model, tokenizer = base
    head = encode(tokenizer, prompt_text(tokenizer, prompts[0]))
    spans = [Span((*head, token), len(head), len(head) + 1) for token in range(len(tokenizer))]
    assert math.fsum(math.exp(score) for score in log_probs(model, spans)) == pytest.approx(1, abs=1e-4)


def test_a_template_that_hides_the_reply(
    base: tuple[Any, Any], prompts: list[list[dict[str, str]]], playground: Path
) -> None:
    tokenizer = load_tokenizer(playground / "base")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A{{ messages | length }}{% endif %}{{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}A1{% endif %}"
    )
    with pytest.raises(DataError, match="openings cannot be scored") as caught:
        opening_probabilities(base[0], tokenizer, prompts[:1], ["Okay"], ["No"])
    assert "`yes` and `no`" in caught.value.hint
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="has no chat template"):
        replies(base[0], tokenizer, prompts[:1])


def test_replies_do_not_depend_on_the_batch(base: tuple[Any, Any], prompts: list[list[dict[str, str]]]) -> None:
    model, tokenizer = base
    mixed = sorted(prompts[:16], key=lambda prompt: prompt[-1]["content"][::-1])  # short and long ones side by side
    lengths = {len(encode(tokenizer, prompt_text(tokenizer, prompt))) for prompt in mixed}
    assert len(lengths) > 3
    alone = replies(model, tokenizer, mixed, batch_size=1)
    assert replies(model, tokenizer, mixed, batch_size=8) == alone
    assert replies(model, tokenizer, mixed[::-1], batch_size=5) == alone[::-1]
    assert all(alone)
    assert not any("<|" in answer for answer in alone)


def test_sampling_follows_its_seed(base: tuple[Any, Any], prompts: list[list[dict[str, str]]]) -> None:
    model, tokenizer = base

    def sample(seed: int) -> list[str]:
        return replies(model, tokenizer, prompts[:8], temperature=1.5, seed=seed, max_new_tokens=12)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


@pytest.fixture
def repository(repository_copy: Path) -> Repository:
    repository = Repository(repository_copy)
    add(repository, VectorLabel("listening"), 1.0)
    return repository


def test_an_evaluation_is_measured_once(repository: Repository) -> None:
    version = History(repository).head()
    measured: list[str] = []
    first = evaluate(
        repository, version, behaviors=["listening"], rows=6, on_probe=lambda index, count, name: measured.append(name)
    )
    assert [result.probe for result in first.results][:2] == ["listening.accept", "listening.push_back"]
    assert measured[1:] == [result.probe for result in first.results]
    assert repository.evaluations(version.id) == [first]
    accept = first.result("listening.accept")
    assert accept is not None
    assert accept.probability is not None
    assert accept.passed.n == len(accept.outcomes) == len(accept.probabilities) == 6
    assert accept.passed.value == sum(accept.outcomes) / 6

    measured.clear()
    again = evaluate(
        repository, version, behaviors=["listening"], rows=6, on_probe=lambda index, count, name: measured.append(name)
    )
    assert again == first
    assert measured == []
    forced = evaluate(repository, version, behaviors=["listening"], rows=6, again=True)
    assert forced.results == first.results
    assert forced.time > first.time
    assert repository.evaluations(version.id) == [first, forced]
    assert evaluate(repository, version, behaviors=["listening"], rows=6) == forced


def test_changed_probes_are_measured_anew_and_not_compared(repository: Repository) -> None:
    version = History(repository).head()
    first = evaluate(repository, version, behaviors=["listening"], rows=4)
    path = repository.root / "behaviors/listening.accept.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["pass"] = "no answer has this"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    second = evaluate(repository, version, behaviors=["listening"], rows=4)
    assert second.suite != first.suite
    assert len(repository.evaluations(version.id)) == 2
    old, new = first.result("listening.accept"), second.result("listening.accept")
    assert old is not None
    assert new is not None
    assert new.outcomes == (False, *old.outcomes[1:])
    with pytest.raises(DataError, match="used different probes") as caught:
        compare_effects(first, second)
    assert "persona eval" in caught.value.hint


def test_effects_of_a_version_on_itself_and_on_the_base(repository: Repository) -> None:
    history = History(repository)
    base, head = (
        evaluate(repository, version, behaviors=["listening"]) for version in (history.find("base"), history.head())
    )
    assert not any(effect.shown for effect in compare_effects(head, head))
    effects = {effect.probe: effect for effect in compare_effects(base, head)}
    accept = effects["listening.accept"]
    assert accept.shown
    assert accept.change.value == pytest.approx(accept.after.value - accept.before.value)
    assert accept.probability_change is not None
    assert accept.probability_change.low > 0


def test_a_repository_without_probes(repository: Repository) -> None:
    for path in (repository.root / "behaviors").glob("*.toml"):
        path.write_text("")
    (repository.root / "suites/general.toml").unlink()
    with pytest.raises(DataError, match="has no probes"):
        evaluate(repository, History(repository).find("base"))
