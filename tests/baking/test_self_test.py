"""Every route on every architecture of its table: the reloaded checkpoint is the model that hooks steer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from personality.baking.existing_bias import OUTPUT_BIAS
from personality.baking.mlp_bias import MODEL_TYPES
from personality.baking.routes import ROUTES
from personality.baking.self_test import self_test
from personality.baking.swiglu_widening import NORM_OFFSET
from personality.manifests.errors import IncompatibleError
from tests.baking.architectures import config_of

# By route: the architectures, and the greatest difference as a share of what steering changes.
PLAIN = (
    "llama",
    "llama-attention-bias",
    "arcee",
    "cwm",
    "doge",
    "ernie4_5",
    "helium",
    "iquestcoder",
    "nemotron",
    "seed_oss",
    "smollm3",
)
SCALED = ("granite", "granite_swa", "minicpm3")
EXISTING = (
    *("llama-bias", "granite-bias", "ernie4_5-bias", "jais2", "starcoder2", "phi", "gpt_neox"),
    *("gpt2", "gpt_bigcode", "gptj", "codegen", "bloom", "gpt_neo"),
)
RELABELED = ("qwen2", "mistral")
WIDENED = ("qwen2-window", "qwen3", "qwen3-tied", "qwen3_5", "mistral-window", "gemma")
CASES = [
    *((case, "mlp-bias", 2e-6) for case in PLAIN),
    *((case, "mlp-bias", 5e-3) for case in SCALED),
    *((case, "existing-bias", 5e-3) for case in EXISTING),
    ("gpt_oss", "expert-bias", 5e-3),
    *((case, "relabeling", 2e-6) for case in RELABELED),
    *((case, "swiglu-widening", 1e-3) for case in WIDENED),
]


@pytest.mark.parametrize(("case", "route", "share"), CASES, ids=[case for case, _, _ in CASES])
def test_a_baked_checkpoint_is_the_hooked_model(case: str, route: str, share: float, tmp_path: Path) -> None:
    found = self_test(config_of(case), tmp_path)
    assert found.route == route
    assert found.comparison.same
    assert found.comparison.effect > 0.3  # what would be missing without the vectors
    assert found.comparison.agreement.greatest_difference < share * found.comparison.effect
    assert found.comparison.agreement.greedy > 0.98


@pytest.mark.parametrize("case", ["llama", "granite", "llama-bias", "gpt_oss", "qwen2", "qwen3", "qwen3_5"])
def test_in_float32_every_route_is_exact(case: str, tmp_path: Path) -> None:
    found = self_test(config_of(case), tmp_path, dtype=torch.float32)
    # Widening falls short by ε / (mean square of the hidden state); the others differ by the order of additions.
    limit = 5e-4 if found.route == "swiglu-widening" else 5e-6
    assert found.comparison.agreement.greatest_difference < limit


def test_every_type_in_a_table_is_tested() -> None:
    tested = {str(config_of(case).model_type) for case, _, _ in CASES}
    assert {*MODEL_TYPES, *OUTPUT_BIAS, *NORM_OFFSET, "gpt_oss"} <= tested
    assert {route for _, route, _ in CASES} | {"mlp-bias-for-vllm"} == {route.name for route in ROUTES}


def test_biases_for_vllm_alone_are_lost_on_transformers(tmp_path: Path) -> None:
    """Why such a folder must not be exported for transformers; vLLM's own reading is tested with vLLM."""
    found = self_test(config_of("mistral-window"), tmp_path, route="mlp-bias-for-vllm").comparison
    assert not found.same
    assert found.agreement.greatest_difference == pytest.approx(found.effect, rel=1e-3)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("gemma2", "sandwich norm"),
        ("gemma3", "sandwich norm"),
        ("glm4", "sandwich norm"),
        ("hyperclovax-post-norm", "sandwich norm"),
        ("olmo2", "post-norm"),
        ("olmo3", "post-norm"),
        ("exaone4", "post-norm"),
        ("qwen3_moe", "its experts have no output bias"),
    ],
)
def test_without_a_route_it_is_refused_and_the_alternatives_are_named(case: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match=reason) as caught:
        self_test(config_of(case), tmp_path)
    assert str(config_of(case).model_type) in caught.value.message
    for way in ("persona promote", "persona ask", "--without-steering"):
        assert way in caught.value.hint
    assert not list((tmp_path / "baked").iterdir())
