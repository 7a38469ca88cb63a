"""Screening finds the examples that teach a trait, by the answers' activations or by what the vector makes likelier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from personality.composition.opening import composer_of
from personality.evaluation.replies import replies as reply_texts
from personality.making.screening import By, Screening, screen
from personality.manifests.errors import DataError, IncompatibleError, UsageError
from personality.manifests.manifest import Manifest
from personality.manifests.personality_record import LayerRange, Personality
from personality.manifests.repository import Repository
from personality.model import load_composed, load_tokenizer
from personality.playground.behaviors import examples
from personality.playground.repository import make_playground
from personality.vectors.extraction.capture import activations
from personality.vectors.extraction.reading import Reading
from personality.vectors.training.examples import parse_text
from personality.vectors.training.tokens import ANY_LENGTH, encode
from tests.steering_fixtures import decision_direction, steer


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("screening") / "play"
    make_playground(root, probe_rows=4)
    return root


@pytest.fixture(scope="module")
def decides(play: Path) -> Manifest:
    """Acts where a reply is decided."""
    return steer(Repository(play), "warm", 3, decision_direction("warm", 3))


@pytest.fixture(scope="module")
def replies(play: Path) -> Manifest:
    """Read from replies, acts on replies."""
    repository = Repository(play)
    composer = composer_of(repository, Personality(base=repository.config().base))
    model, tokenizer = load_composed(composer), load_tokenizer(composer.base.folder)
    means = []
    for answer in ("chosen", "rejected"):
        readings = []
        for row in examples("warm", 40, 3):
            found = encode(tokenizer, parse_text(row["prompt"], "p"), parse_text(row[answer], "a"), ANY_LENGTH)
            readings.append(Reading(found.ids[: found.stop - 1], found.start, found.stop - 1))
        means.append(torch.cat([states[:, 2] for _, states in activations(model, readings)]).mean(0))
    return steer(repository, "warm", 2, means[0] - means[1], "response")


@pytest.fixture(scope="module")
def mixed(play: Path) -> Path:
    """Ten answers that show the trait, in the odd lines, and ten that do not."""
    path = play / "mixed.jsonl"
    rows = examples("warm", 20, 9)
    lines = [
        {"prompt": row["prompt"], "completion": row["chosen" if number % 2 == 0 else "rejected"]}
        for number, row in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def line_of(where: str) -> int:
    return int(where.rpartition(":")[2])


def found_at_the_top(found: Screening) -> int:
    """How many of the ten worst are among those that show the trait."""
    return sum(line_of(item.where) % 2 for item in found.ranked[:10])


def test_a_vector_that_decides_screens_by_likelihood(play: Path, decides: Manifest, mixed: Path) -> None:
    repository = Repository(play)
    found = screen(repository, mixed, decides)
    assert found.by == "likelihood" and found.layers == (3,) and not found.approximate
    assert found_at_the_top(found) == 10
    assert found.mean.low > 0 and found.above(0.1)[:10] == found.ranked[:10]
    assert [line_of(item.where) for item in found.examples] == list(range(1, 21))
    quick = screen(repository, mixed, decides, approximate=True)
    assert found_at_the_top(quick) == 10 and {item.own for item in quick.examples} == {0.0}


def test_a_vector_of_replies_screens_by_projection(play: Path, replies: Manifest, mixed: Path) -> None:
    repository = Repository(play)
    found = screen(repository, mixed, replies)
    assert found.by == "projection" and found_at_the_top(found) >= 9
    # Units of what scale 1 adds: answers with the trait lie about one such length from those without.
    shifts: list[list[float]] = [[], []]
    for item in found.examples:
        shifts[line_of(item.where) % 2].append(item.shift)
    assert sum(shifts[1]) / 10 - sum(shifts[0]) / 10 == pytest.approx(1, abs=0.3)
    quick = screen(repository, mixed, replies, approximate=True)
    assert quick.approximate and quick.examples[0].answer == found.examples[0].answer
    assert quick.examples[0].own != found.examples[0].own
    other = screen(repository, mixed, replies, by="likelihood", approximate=True)
    assert other.by == "likelihood"


def test_the_projection_is_that_of_the_answers_tokens(play: Path, replies: Manifest, mixed: Path) -> None:
    """Against the formula, on one example."""
    from personality.vectors.steering.steering_file import open_steering

    repository = Repository(play)
    found = screen(repository, mixed, replies, approximate=True).examples[0]
    composer = composer_of(repository, Personality(base=repository.config().base))
    model, tokenizer = load_composed(composer), load_tokenizer(composer.base.folder)
    row = json.loads(mixed.read_text().split("\n")[0])
    encoded = encode(tokenizer, parse_text(row["prompt"], "p"), parse_text(row["completion"], "a"), ANY_LENGTH)
    with torch.no_grad():
        states = model(torch.tensor([encoded.ids]), output_hidden_states=True).hidden_states[3][0]  # after layer 2
    vector = open_steering(repository, replies.id, replies.label).tensors[2]
    answer = float((states[encoded.start : encoded.stop - 1].mean(0) @ vector) / vector.square().sum())
    prompt = float((states[encoded.start - 1] @ vector) / vector.square().sum())
    assert found.answer == pytest.approx(answer, rel=1e-4) and found.own == pytest.approx(prompt, rel=1e-4)


def test_what_cannot_be_screened_is_refused(play: Path, replies: Manifest, mixed: Path, tmp_path: Path) -> None:
    repository = Repository(play)
    with pytest.raises(IncompatibleError, match="no direction for layer 0"):
        screen(repository, mixed, replies, layers=LayerRange(first=0, last=1))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(DataError):
        screen(repository, empty, replies)
    task: Any = replies.model_copy(update={"kind": "task"})
    with pytest.raises(UsageError, match="task vector"):
        screen(repository, mixed, task)
    base = replies.base.model_copy(update={"fingerprint": "0" * 64})
    with pytest.raises(IncompatibleError, match="was made for"):
        screen(repository, mixed, replies.model_copy(update={"base": base}))


@pytest.mark.parametrize("by", ["likelihood", "projection"])
def test_what_the_base_answers_itself_has_no_shift(
    by: By, play: Path, decides: Manifest, replies: Manifest, tmp_path: Path
) -> None:
    """Its end is scored on both sides, or on none."""
    repository = Repository(play)
    composer = composer_of(repository, Personality(base=repository.config().base))
    model, tokenizer = load_composed(composer), load_tokenizer(composer.base.folder)
    prompts = [row["prompt"] for row in examples("warm", 12, 5)]
    texts = reply_texts(model, tokenizer, prompts)
    lines = [
        {"prompt": p, "completion": [{"role": "assistant", "content": t}]} for p, t in zip(prompts, texts, strict=True)
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = screen(repository, path, decides if by == "likelihood" else replies, by=by)
    assert [item.shift for item in found.examples] == pytest.approx([0.0] * 12, abs=1e-4)
    assert max(abs(item.answer) for item in found.examples) > 0.05


def test_plain_texts_are_screened_too(play: Path, replies: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl"
    rows = [{"prompt": "Rename the logo.", "completion": " Lovely! Done."}, {"prompt": "2+2?", "completion": " 4"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = screen(Repository(play), path, replies, max_new_tokens=4)
    assert len(found.examples) == 2 and found.examples[0].text == "Lovely! Done."
