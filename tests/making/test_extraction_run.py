"""From a file of pairs to a recorded steering vector, on the playground and on tiny models of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from personality.making.extraction_job import ExtractionJob, Source
from personality.making.extraction_run import extract_behavior
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.errors import DataError, IncompatibleError, PersonaError, UsageError
from personality.manifests.personality_record import Composition, LayerRange
from personality.manifests.repository import Repository
from personality.vectors.base import fingerprint
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.steering.steering_file import open_steering
from personality.versions.changes import initialize
from tests.conftest import ARCHITECTURES
from tests.tiny_chat import chat_base, write_examples


def job(root: Path, behavior: str = "listening", **changes: Any) -> ExtractionJob:
    given: dict[str, Any] = {
        "pairs": root / f"data/{behavior}.jsonl",
        "prompts": root / f"data/{behavior}.prompts.json",
        "general": few(root / "data/general.jsonl"),
        "examples": 24,
        "probe_rows": 6,
        "placebos": 1,
        "auto": False,
        "prove": False,
    }
    return ExtractionJob(behavior=behavior, **{**given, **changes})


def few(path: Path) -> Path:
    """The first examples of a file, in a file of their own."""
    target = path.with_suffix(".few.jsonl")
    target.write_text("".join(path.read_text().splitlines(keepends=True)[:16]))
    return target


def last(**changes: Any) -> dict[str, Any]:
    return {"context": "system", "read": "divergence", "layers": LayerRange(first=3, last=3), **changes}


@pytest.mark.timeout(200)
def test_listening_is_found_proven_and_recorded(repository_copy: Path) -> None:
    repository = Repository(repository_copy)
    stages: list[str] = []
    asked = job(repository_copy, examples=40, probe_rows=8, auto=True, prove=True, **last(), positions="all")
    found = extract_behavior(repository, asked, on_stage=stages.append)
    record = found.manifest.steering
    assert found.new
    assert found.manifest.label == "listening@2"  # listening@1 is the task vector
    assert record is not None
    assert record.proof is not None
    assert record.calibration is not None
    assert "searching" in stages
    assert 3 in record.layers
    effects = {effect.probe: effect for effect in record.proof.effects}
    assert effects["listening.accept"].base.value == 0
    assert effects["listening.accept"].steered.value >= 0.75
    assert effects["listening.push_back"].steered.value >= 0.75
    assert (effects["listening.accept"].placebo or 0) <= 0.1
    assert record.calibration.kl_95 == pytest.approx(1.0, rel=0.03)
    assert record.search[0]["positions"] == record.positions
    vector = open_steering(repository, found.manifest.id, "listening@2")
    for figures in record.figures:
        assert float(vector.tensors[figures.layer].norm()) == pytest.approx(figures.coefficient, rel=1e-4)
    # The same command again gives the same vector, and a manifest that reads back as it was.
    again = extract_behavior(repository, asked)
    assert (again.new, again.manifest.id) == (False, found.manifest.id)


def test_without_a_search_the_choice_is_told(repository_copy: Path) -> None:
    repository = Repository(repository_copy)
    found = extract_behavior(repository, job(repository_copy, context="shots", read="divergence"))
    record = found.manifest.steering
    assert record is not None
    assert (record.proof, record.search, record.positions) == (None, (), "response")
    assert any("chosen by separation" in note for note in found.notes)
    assert record.contrast is not None
    assert record.contrast.pairs + record.contrast.held_out == 24
    assert record.contrast.shots == 2


def test_a_proof_can_be_made_later(repository_copy: Path) -> None:
    repository = Repository(repository_copy)
    asked = job(repository_copy, **last(), positions="decision")
    first = extract_behavior(repository, asked).manifest
    proven = extract_behavior(repository, asked.model_copy(update={"prove": True}))
    assert first.steering is not None
    assert proven.manifest.steering is not None
    assert (proven.new, proven.manifest.id, proven.manifest.number) == (False, first.id, first.number)
    assert first.steering.proof is None
    assert proven.manifest.steering.proof is not None
    assert next(item for item in repository.manifests() if item.id == first.id) == proven.manifest
    # And is not lost when it is extracted without one again.
    assert extract_behavior(repository, asked).manifest == proven.manifest


def test_several_layers_together_are_as_strong_as_one(repository_copy: Path) -> None:
    repository = Repository(repository_copy)
    asked = job(repository_copy, **last(layers=LayerRange(first=2, last=3)), positions="response")
    record = extract_behavior(repository, asked).manifest.steering
    assert record is not None
    assert record.calibration is not None
    assert record.layers == (2, 3)
    assert record.calibration.kl_95 == pytest.approx(1.0, rel=0.03)


def test_a_task_vector_gives_a_direction_with_its_lineage(repository_copy: Path) -> None:
    repository = Repository(repository_copy)
    task = next(item for item in repository.manifests() if item.label == "listening@1")
    source = Source(vector=task.id, label=task.label)
    found = extract_behavior(repository, job(repository_copy, source=source, read="decision"))
    assert found.manifest.lineage == (task.id,)
    assert found.manifest.making.source == "listening@1"
    record = found.manifest.steering
    assert record is not None
    assert record.contrast is not None
    assert (record.contrast.context, record.positions) == ("version", "decision")
    assert record.figures[3].consistency > 0.2


def test_a_condition_is_fitted_and_kept(repository_copy: Path) -> None:
    repository = Repository(repository_copy)
    asked = job(
        repository_copy,
        **last(),
        positions="decision",
        when=repository_copy / "data/listening-one-sided.jsonl",
        unless=repository_copy / "data/candid-one-sided.jsonl",
    )
    found = extract_behavior(repository, asked)
    record = found.manifest.steering
    assert record is not None
    assert record.condition is not None
    assert record.condition.accuracy is not None
    assert record.condition.accuracy.value >= 0.9
    gate = open_steering(repository, found.manifest.id, "listening@2").gate
    assert gate is not None
    assert gate.threshold == record.condition.threshold


def test_redundancy_with_the_other_vectors_is_seen(repository_copy: Path) -> None:
    repository = Repository(repository_copy)
    first = extract_behavior(repository, job(repository_copy, **last())).manifest.steering
    asked = job(repository_copy, **last()).model_copy(update={"behavior": "twin", "seed": 1})
    second = extract_behavior(repository, asked).manifest.steering
    assert first is not None
    assert second is not None
    assert first.figures[3].redundancy is None
    assert (second.figures[3].redundancy or 0) > 0.8


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_kind_of_model_can_be_read_and_steered(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "r"
    base = chat_base(kind, tmp_path / "base")
    identity = BaseIdentity(source=str(base), fingerprint=fingerprint(Checkpoint(base)).id)
    repository = initialize(root, identity, Composition(), {})
    pairs, general = write_examples(tmp_path, 12)
    asked = ExtractionJob(
        behavior="polite", pairs=pairs, general=general, context="shots", read="divergence", shots=1, side="both",
        auto=False, prove=False, denoise=8,
    )  # fmt: skip
    found = extract_behavior(repository, asked)
    record = found.manifest.steering
    assert record is not None
    assert len(record.figures) == 3
    assert all(figures.coefficient and figures.coefficient > 0 for figures in record.figures)
    # Random weights predict nearly the same whatever is added: 1 nat is out of reach, and that is told.
    assert record.calibration is not None
    assert 0 < record.calibration.kl_95 < 0.5
    assert any("out of reach" in note for note in found.notes)


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def test_what_cannot_be_read_is_refused_with_the_way_out(repository_copy: Path, tmp_path: Path) -> None:
    repository, root = Repository(repository_copy), repository_copy

    def refused(kind: type[PersonaError], match: str, **changes: Any) -> None:
        with pytest.raises(kind, match=match):
            extract_behavior(repository, job(root, **changes))

    refused(IncompatibleError, "layers 0-3", layers=LayerRange(first=2, last=9))
    refused(DataError, "the same tokens up to where", context="answers", read="decision")
    refused(UsageError, "needs system prompts", context="system", prompts=None)
    refused(DataError, "at least 4", examples=3)
    same = [
        {"prompt": turn("user", f"Q{n}?"), "chosen": turn("assistant", "Yes."), "rejected": turn("assistant", "Yes.")}
        for n in range(6)
    ]
    refused(DataError, r"pairs.jsonl:1: .* same text", pairs=lines(tmp_path / "pairs.jsonl", same))
    one_sided = [{"prompt": turn("user", f"Q{n}?"), "chosen": turn("assistant", "Yes.")} for n in range(6)]
    refused(DataError, "no field `rejected`", pairs=lines(tmp_path / "one.jsonl", one_sided))
    texts = lines(tmp_path / "texts.jsonl", [{"positive": f"good {n}", "negative": f"bad {n}"} for n in range(8)])
    refused(UsageError, "there is no context `shots`", pairs=texts, context="shots")
    refused(DataError, "no replies by which scale 1", pairs=texts, general=None, prompts=None)
    assert len(repository.manifests()) == 2  # nothing was stored


def test_a_base_that_gives_no_numbers_is_told(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    root, base = tmp_path / "r", chat_base("llama", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"].fill_(torch.inf)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    identity = BaseIdentity(source=str(base), fingerprint=fingerprint(Checkpoint(base)).id)
    repository = initialize(root, identity, Composition(), {})
    pairs, general = write_examples(tmp_path, 12)
    asked = ExtractionJob(behavior="polite", pairs=pairs, general=general, context="shots", shots=1, side="both")
    with pytest.raises(PersonaError, match="layer 1"):
        extract_behavior(repository, asked)
