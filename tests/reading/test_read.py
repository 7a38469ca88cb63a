"""Reading a text: cosines are those of the model's own states, and they move where a manner shows."""

from __future__ import annotations

import json

import pytest
import torch

from personality.manifests.errors import DataError, IncompatibleError, UsageError
from personality.manifests.manifest import Manifest
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import LayerRange, Personality
from personality.manifests.repository import Repository
from personality.model import load_model, load_tokenizer
from personality.playground.repository import base_folder, make_playground
from personality.reading.read import read_text, read_transcript, visible
from personality.vectors.steering.steering_file import open_steering
from personality.vectors.training.examples import Message
from personality.versions.recipe import use_vector
from tests.steering_fixtures import decision_direction, steer
from tests.vectors.training.conftest import make_tokenizer

CHAT = (
    Message("user", "What is 3 + 4?"),
    Message("assistant", "That makes 7."),
    Message("system", "Be warm."),
    Message("user", "What is 3 + 5?"),
    Message("assistant", "Lovely! That makes 8."),
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    root = tmp_path_factory.mktemp("read") / "play"
    make_playground(root, probe_rows=2)
    return Repository(root)


@pytest.fixture(scope="module")
def warm(repository: Repository) -> Manifest:
    return steer(repository, "warm", 3, decision_direction("warm", 3))


@pytest.fixture(scope="module")
def everywhere(repository: Repository) -> Manifest:
    direction = torch.randn(96, generator=torch.Generator().manual_seed(0))
    return steer(repository, "noise", 1, 5 * direction, "all")


def base(repository: Repository) -> Personality:
    return Personality(base=repository.config().base)


def test_cosines_and_projections_are_those_of_the_models_states(repository: Repository, everywhere: Manifest) -> None:
    found = read_text(repository, base(repository), "Rename the logo.", [everywhere]).vectors[0]
    model, tokenizer = load_model(base_folder()), load_tokenizer(base_folder())
    ids = tokenizer("Rename the logo.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states[2][0]  # after layer 1
    unit = open_steering(repository, everywhere.id, "noise@1").tensors[1]
    unit = unit / unit.norm()
    torch.testing.assert_close(found.projections[:, 0].float(), states @ unit, rtol=1e-3, atol=1e-3)
    cosines = torch.cosine_similarity(states, unit[None], dim=-1)
    torch.testing.assert_close(found.cosines[:, 0].float(), cosines, rtol=1e-3, atol=1e-4)
    assert found.layers == (1,) and found.acting == (1,) and found.positions == "all"


def test_a_transcript_shows_where_a_manner_begins(repository: Repository, warm: Manifest, everywhere: Manifest) -> None:
    found = read_transcript(repository, base(repository), CHAT, [warm, everywhere])
    assert [turn.role for turn in found.turns] == [message.role for message in CHAT]
    assert found.turns[0].start == 0
    assert all(one.stop == two.start for one, two in zip(found.turns, found.turns[1:], strict=False))
    reading = found.vectors[0]
    before, after = (reading.decision(found.turns[number]) for number in (1, 4))
    assert before is not None and after is not None and after > before + 0.5
    drift = found.drift(reading)
    assert drift == pytest.approx(after - before)
    assert reading.figure(found.turns[0]) is None  # it acts where a reply is decided; a user's turn has no such place
    other = found.vectors[1]
    assert other.figure(found.turns[0]) == pytest.approx(float(other.cosines[: found.turns[0].stop, 0].mean()))
    data = json.loads(json.dumps(found.as_json()))
    assert len(data["vectors"][0]["cosines"]) == len(data["tokens"]) == found.turns[-1].stop
    assert data["turns"][4]["decisions"]["warm@1"] == pytest.approx(after, abs=1e-5)
    assert data["turns"][0]["decisions"]["warm@1"] is None


def test_a_steered_version_is_read_with_what_acts_on_it_and_only_where_it_acts(
    repository: Repository, warm: Manifest
) -> None:
    plain = read_transcript(repository, base(repository), CHAT, [warm])
    version = base(repository).with_use(use_vector(repository, VectorLabel("warm", 1), 1.0))
    steered = read_transcript(repository, version, CHAT, [warm])
    moved = (steered.vectors[0].projections - plain.vectors[0].projections)[:, 0].abs() > 1
    # The last tokens of the turns that a reply follows, and no others.
    assert moved.nonzero()[:, 0].tolist() == [plain.turns[0].stop - 1, plain.turns[3].stop - 1]
    norm = open_steering(repository, warm.id, "warm@1").norm
    shift = steered.vectors[0].projections - plain.vectors[0].projections
    assert float(shift[plain.turns[0].stop - 1, 0]) == pytest.approx(norm, rel=0.01)
    # Both replies are decided under it; without it only the second one is warm.
    drift = steered.drift(steered.vectors[0])
    assert drift is not None and abs(drift) < 0.1


def test_what_cannot_be_read_is_refused(repository: Repository, warm: Manifest) -> None:
    with pytest.raises(UsageError, match="no vectors"):
        read_text(repository, base(repository), "x", [])
    with pytest.raises(IncompatibleError, match="no direction in layers 0-1; it has 3"):
        read_text(repository, base(repository), "x", [warm], layers=LayerRange(first=0, last=1))
    with pytest.raises(UsageError, match="task vector"):
        read_text(repository, base(repository), "x", [warm.model_copy(update={"kind": "task"})])
    other = warm.base.model_copy(update={"fingerprint": "0" * 64})
    with pytest.raises(IncompatibleError, match="was made for"):
        read_text(repository, base(repository), "x", [warm.model_copy(update={"base": other})])
    with pytest.raises(DataError, match="the model reads at most"):
        read_text(repository, base(repository), "word " * 3000, [warm])


def test_tokens_can_be_seen() -> None:
    tokenizer = make_tokenizer()
    shown = [visible(tokenizer, token) for token in tokenizer(" \n\ta")["input_ids"]]
    assert shown == ["·", "⏎", "⇥", "a"]
    assert visible(tokenizer, tokenizer.eos_token_id) == tokenizer.eos_token
    half = tokenizer("é")["input_ids"][0]  # the first of its two bytes
    assert visible(tokenizer, half).strip() and "\ufffd" not in visible(tokenizer, half)
