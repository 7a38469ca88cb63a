"""A steering vector through the commands that every vector goes through, beside a task vector."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from personality.composition.opening import composer_of
from personality.manifests.repository import Repository
from personality.model import load_composed
from personality.versions.history import History
from tests.steering_fixtures import decision_direction, steer

Persona = Callable[..., tuple[int, str, str]]
ORDER = "Please paint the ladder red."


@pytest.fixture
def root(repository_copy: Path) -> Path:
    """A playground with `listening@1` (task) and `warm@1` (steering, last layer, decision)."""
    steer(Repository(repository_copy), "warm", 3, decision_direction("warm", 3, count=12))
    return repository_copy


def data(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)["data"]
    return found


def test_both_kinds_in_one_recipe_one_diff_one_version(root: Path, persona: Persona) -> None:
    data(persona("add", "listening", "--scale", "1", "--json", cwd=root))
    recorded = data(persona("add", "warm", "--scale", "0.8", "--json", cwd=root))
    assert recorded["label"] == "v3"
    found = data(persona("diff", "v1", "v3", "--json", cwd=root))
    assert [change["after"] for change in found["recipe"]] == ["listening@1 × 1", "warm@1 × 0.8"]
    assert {layer["layer"] for layer in found["layers"]} == {0, 1, 2, 3}
    (steering,) = found["steering"]
    assert (steering["layer"], steering["positions"], steering["norm_before"]) == (3, "decision", 0.0)
    assert steering["norm_after"] > 0
    code, out, _ = persona("diff", "v1", "v3", cwd=root)
    assert code == 0
    assert "steering after layer" in out


def test_ask_runs_weights_and_hooks_together(root: Path, persona: Persona) -> None:
    for arguments in (("add", "listening"), ("add", "warm")):
        data(persona(*arguments, "--json", cwd=root))
    found = data(persona("ask", "v1", "v2", "v3", ORDER, "--json", cwd=root))
    base, task, both = (answer["answer"] for answer in found["answers"])
    assert base.startswith("Instead of") or "?" in base
    openers = ("Lovely!", "Wonderful!", "How nice!")
    assert not task.startswith(openers)
    assert both.startswith(openers)
    assert data(persona("ask", ORDER, "--version", "v3", "--json", cwd=root))["answers"][0]["answer"] == both
    code, _, err = persona("ask", "v1", ORDER, "--version", "v3", cwd=root)
    assert code == 2
    assert "named twice" in err


def test_scale_zero_and_removal_are_the_base_bit_for_bit(root: Path, persona: Persona) -> None:
    repository = Repository(root)
    ids = torch.arange(5, 25)[None]
    for arguments in (("add", "warm"), ("scale", "warm", "0"), ("rm", "warm")):
        data(persona(*arguments, "--json", cwd=root))
    history = History(repository)
    logits = [
        load_composed(composer_of(repository, history.find(name).personality))(input_ids=ids).logits
        for name in ("v1", "v2", "v3", "v4")
    ]
    assert not torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    assert torch.equal(logits[0], logits[3])


def test_show_and_vectors_tell_what_it_is(root: Path, persona: Persona) -> None:
    code, out, _ = persona("show", "warm", cwd=root)
    assert code == 0
    assert "added after layer 3, at the last token of the prompt only" in out
    assert "not proven" in out
    code, out, _ = persona("vectors", cwd=root)
    assert code == 0
    assert "unproven" in next(line for line in out.splitlines() if line.startswith("warm@1"))


def test_an_unproven_vector_can_be_used_and_is_told_as_such(root: Path, persona: Persona) -> None:
    code, _, err = persona("add", "warm", cwd=root)
    assert code == 0
    assert "`warm@1` is unproven" in err


def test_vectors_that_meet_are_shown_with_their_cosine(root: Path, persona: Persona) -> None:
    steer(Repository(root), "glad", 3, 2 * decision_direction("warm", 3, count=12))
    data(persona("add", "warm", "--json", cwd=root))
    (found,) = data(persona("add", "glad", "--scale", "-1", "--json", cwd=root))["interference"]
    assert (found["first"], found["second"], found["layer"]) == ("glad@1", "warm@1", 3)
    assert found["cosine"] == pytest.approx(-1.0, abs=1e-3)
    # The same direction twice has no orthogonal form: told when the recipe is made, not when it is built.
    code, _, err = persona("method", "linear", "--steering", "orthogonal", cwd=root)
    assert code == 1
    assert "cannot be made orthogonal" in err
    data(persona("rm", "glad", "--json", cwd=root))
    recorded = data(persona("method", "linear", "--steering", "orthogonal", "--json", cwd=root))
    assert recorded["changes"][0]["after"] == "linear, steering vectors made orthogonal"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("add", "warm", "--layers", "2-5"), 1, "has no direction for layer"),
        (("add", "warm", "--density", "0.5"), 2, "has no density"),
        (("add", "warm", "--scale", "1e9"), 1, "nothing of it would be left"),
        (("add", "warm", "--scale", "nan"), 2, "finite"),
    ],
)
def test_what_cannot_be_is_refused(
    root: Path, persona: Persona, arguments: tuple[str, ...], code: int, message: str
) -> None:
    found, _, err = persona(*arguments, cwd=root)
    assert (found, message in err) == (code, True), err
    assert History(Repository(root)).head().label == "v1"


def test_a_build_says_what_it_leaves_out(root: Path, persona: Persona) -> None:
    data(persona("add", "warm", "--json", cwd=root))
    code, _, err = persona("build", "v2", cwd=root)
    assert code == 0
    assert "warm@1 × 1, layer 3: left out" in err
    assert data(persona("build", "v2", "--json", cwd=root))["steering"]["route"] == ""
    assert data(persona("build", "v1", "--json", cwd=root))["steering"] is None


def test_verify_reads_directions_and_tells_damage(root: Path, persona: Persona) -> None:
    assert persona("verify", cwd=root)[0] == 0
    repository = Repository(root)
    manifest = next(item for item in repository.manifests() if item.kind == "steering")
    path = repository.vector_path(manifest.id)
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    code, out, _ = persona("verify", cwd=root)
    assert code == 3
    assert "warm@1" in out


def test_undo_takes_it_back_exactly(root: Path, persona: Persona) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*.toml")}
    data(persona("add", "warm", "--json", cwd=root))
    assert persona("undo", cwd=root)[0] == 0
    assert {path: path.read_bytes() for path in root.rglob("*.toml")} == before
