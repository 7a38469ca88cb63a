"""What real vLLM makes of every route's checkpoints, beside transformers with hooks: the table in `vllm_reading`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from personality.baking.bake import bake
from personality.baking.baked_comparison import TOLERANCE, BakedComparison, compare_baked
from personality.baking.route import BakePlan
from personality.baking.self_test import random_model
from personality.baking.vllm_reading import ASK, READINGS, VERSION, reading_of
from personality.builds.comparison import agreement, log_probabilities, probe_tokens
from personality.builds.writer import write_checkpoint
from personality.model import load_model
from personality.serving.engine import Engine
from personality.vectors.checkpoint import Checkpoint
from tests.baking.architectures import config_of

IDS = probe_tokens(128)
# By route: the architectures, by the names that the tests of baking have for them.
CASES = {
    "mlp-bias": (
        *("llama", "llama-attention-bias", "granite", "granite_swa", "nemotron"),
        *("arcee", "cwm", "helium", "seed_oss", "smollm3", "ernie4_5", "minicpm3", "doge"),
    ),
    "mlp-bias-for-vllm": ("mistral", "mistral-window"),
    "existing-bias": (
        *("llama-bias", "granite-bias", "ernie4_5-bias", "gpt2", "gptj", "gpt_bigcode", "jais2", "phi", "starcoder2"),
        *("gpt_neox", "bloom"),
    ),
    "expert-bias": ("gpt_oss",),
    "relabeling": ("qwen2", "mistral"),
    "swiglu-widening": (*("qwen2", "qwen3", "qwen3-tied", "qwen3_5", "mistral", "mistral-window", "gemma"),),
}
FLAT = [(route, case) for route, cases in CASES.items() for case in cases]
BACKEND = [
    *(("mlp-bias", "ernie4_5"), ("existing-bias", "ernie4_5-bias")),  # which vLLM's own class loses
    *(("mlp-bias", "llama"), ("mlp-bias", "granite"), ("relabeling", "qwen2")),
]
HALF = ("qwen3_5",)
"""vLLM has no float32 for Gated DeltaNet on a processor."""
HALF_TOLERANCE = 0.1
"""Nats: of bfloat16 arithmetic, where what steering changes is about 3."""


def asked(engine: Engine, folder: Path, *, half: bool = False, impl: str = "auto") -> Tensor:
    """vLLM's log-probabilities (4, 31, 128)."""
    dtype = "bfloat16" if half else "float32"
    engine.load(folder, dtype=dtype, skip_tokenizer_init=True, model_impl=impl)
    return engine.all_log_probabilities(IDS)


def baked_in_vllm(
    engine: Engine, case: str, route: str, folder: Path, impl: str = "auto"
) -> tuple[BakePlan, BakedComparison]:
    """A small random model, baked, in stock vLLM; beside the one that hooks steer in transformers."""
    half = case in HALF
    dtype = torch.bfloat16 if half else torch.float32
    steering = random_model(config_of(case, servable=True), folder / "base", dtype=dtype)
    baked = bake(Checkpoint(folder / "base"), steering, dtype, route)
    (folder / "baked").mkdir()
    write_checkpoint(baked, folder / "baked", config=baked.plan.config)
    found = asked(engine, folder / "baked", half=half, impl=impl)
    model = load_model(folder / "base")
    return baked.plan, compare_baked(found, model, steering, IDS, tolerance=baked.plan.tolerance, rounding=dtype)


@pytest.mark.parametrize(("route", "case"), FLAT, ids=[f"{route}-{case}" for route, case in FLAT])
def test_vllm_reads_a_route_as_the_table_says(route: str, case: str, stock: Engine, tmp_path: Path) -> None:
    plan, found = baked_in_vllm(stock, case, route, tmp_path)
    how = reading_of(route, str(config_of(case).model_type)).how
    difference = found.agreement.greatest_difference
    assert found.effect > 0.3  # what would be missing without the vectors
    assert ("vllm" in plan.dropped_by) == (how == "dropped")
    assert plan.serve_with == (ASK if how == "asked" else ())
    if how in ("dropped", "asked") and route == "existing-bias":
        assert difference > 0.3  # the base's own biases are lost with the vectors
    elif how in ("dropped", "asked"):
        assert difference == pytest.approx(found.effect, rel=1e-3)
    elif how == "inexact":
        base = agreement(asked(stock, tmp_path / "base"), log_probabilities(load_model(tmp_path / "base"), IDS)[:, :-1])
        assert base.greatest_difference > TOLERANCE  # without any steering
        assert difference < 0.1 * found.effect
    elif case in HALF:
        assert difference < HALF_TOLERANCE
        assert found.agreement.greedy > 0.95
    else:
        assert found.same
        assert found.agreement.greedy == 1
        if plan.tolerance == 0:
            assert difference < 1e-5


def test_every_entry_of_the_table_was_tried(stock: Engine, tmp_path: Path) -> None:
    assert {(route, str(config_of(case).model_type)) for route, case in FLAT} | {
        ("mlp-bias", "jais2")  # its checkpoints have the biases already, unless somebody made one without
    } == set(READINGS)
    random_model(config_of("llama", servable=True), tmp_path, dtype=torch.float32)
    told = stock.load(tmp_path, skip_tokenizer_init=True)["vllm"]
    assert told.startswith(VERSION)


@pytest.mark.parametrize(("route", "case"), BACKEND)
def test_the_transformers_backend_reads_what_transformers_reads(
    route: str, case: str, stock: Engine, tmp_path: Path
) -> None:
    assert baked_in_vllm(stock, case, route, tmp_path, impl="transformers")[1].same


def test_the_transformers_backend_loses_what_vllms_own_class_reads(stock: Engine, tmp_path: Path) -> None:
    _, found = baked_in_vllm(stock, "mistral", "mlp-bias-for-vllm", tmp_path, impl="transformers")
    assert found.agreement.greatest_difference == pytest.approx(found.effect, rel=1e-3)
