"""The real vLLM beside the version composed in transformers: task, low-rank and steering vectors together."""

from __future__ import annotations

from pathlib import Path

import pytest

from personality.builds.certificate import Certificate
from personality.builds.comparison import agreement, log_probabilities, probe_tokens
from personality.builds.engine_check import check_folder
from personality.builds.export import export
from personality.builds.reference import compare, rows_of
from personality.composition.opening import composer_of
from personality.model import load_composed, load_model
from personality.serving.engine import Engine
from personality.serving.vllm_environment import VllmEnvironment
from personality.versions.history import History
from tests.vllm.versions import add_steering, weights_repository

KINDS = ("llama", "qwen3", "qwen2", "mistral", "gpt_oss", "qwen3_5", "playground")


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_all_kinds_together(kind: str, tmp_path: Path, stock: Engine, vllm: VllmEnvironment) -> None:
    repository = weights_repository(kind, tmp_path)
    add_steering(repository)
    version = History(repository).head()
    exported = export(repository, version, "vllm", tmp_path / "out", bake_unproven=True)
    assert exported.steering is not None
    assert exported.steering.baked
    certificate = Certificate.read(tmp_path / "out" / Certificate.file_name)
    assert len(certificate.in_weights) == 3
    reference = certificate.reference
    check = check_folder(tmp_path / "out", reference, vllm, engine=stock, serve_with=certificate.serve_with)
    assert check.positions > 150

    # It means something: without any one of the vectors the answers are others, by far more than is allowed.
    for use in version.personality.uses:
        fewer = tuple(other for other in version.personality.uses if other != use)
        composer = composer_of(repository, version.personality.model_copy(update={"uses": fewer}))
        without = compare(reference, rows_of(load_composed(composer), reference.prompts))
        assert without.greatest_difference > 3 * check.allowed, use.label

    if check.dtype == "float32":  # the whole vocabulary, not only what was said, and the same weights to the bit
        model = load_model(tmp_path / "out")
        ids = probe_tokens(model.get_input_embeddings().num_embeddings)
        same = agreement(stock.all_log_probabilities(ids), log_probabilities(model, ids)[:, :-1])
        assert same.greatest_difference < 1e-4
        assert same.greedy == 1
