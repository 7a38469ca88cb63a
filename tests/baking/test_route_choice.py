"""Which route is taken, why, and what happens when one is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from personality.baking.architecture import Architecture
from personality.baking.route import BakePlan
from personality.baking.routes import fitting, plan_for
from personality.manifests.errors import IncompatibleError
from personality.manifests.tensor_file import TensorSpec


def small(model_type: str, *, biased: bool = False, **config: Any) -> Architecture:
    shapes: dict[str, tuple[int, ...]] = {
        "mlp.gate_proj.weight": (6, 4),
        "mlp.up_proj.weight": (6, 4),
        "mlp.down_proj.weight": (4, 6),
        "post_attention_layernorm.weight": (4,),
    }
    if biased:
        shapes["mlp.down_proj.bias"] = (4,)
    specs = {(name := f"model.layers.0.{key}"): TensorSpec(name, "F32", shape) for key, shape in shapes.items()}
    return Architecture({"model_type": model_type, "hidden_size": 4, "num_attention_heads": 2, **config}, specs)


def plan(architecture: Architecture, route: str | None = None) -> BakePlan:
    return plan_for(architecture, {0: torch.ones(4)}, route)


@pytest.mark.parametrize(
    ("architecture", "route", "reason"),
    [
        (small("llama"), "mlp-bias", "a setting gives the MLPs of its class biases"),
        (
            small("llama", biased=True, mlp_bias=True),
            "existing-bias",
            "its MLP's output projection has a bias already",
        ),
        (
            small("qwen2"),
            "relabeling",
            "it computes what `llama` computes, and the MLPs of `llama` can have biases",
        ),
        (
            small("mistral", sliding_window=512),
            "swiglu-widening",
            "its gated MLP behind an RMSNorm can be widened by neurons whose sum is the vector, and its class stays; "
            "`relabeling` does not fit: it attends in a sliding window (512 tokens), `llama` does not",
        ),
    ],
    ids=["llama", "llama-bias", "qwen2", "mistral"],
)
def test_the_cheapest_that_fits_is_taken_and_says_why(architecture: Architecture, route: str, reason: str) -> None:
    found = plan(architecture)
    assert (found.route, found.reason) == (route, reason)
    assert found.readable_by_transformers
    assert found.dropped_by == ()


def test_one_that_is_asked_for_is_taken() -> None:
    found = plan(small("qwen2"), "swiglu-widening")
    assert found.route == "swiglu-widening"
    assert found.reason.startswith("asked for; its gated MLP")
    assert found.reason.endswith("; `relabeling` would be cheaper")
    assert found.config["model_type"] == "qwen2"


def test_what_transformers_cannot_read_is_taken_only_when_asked_for_and_says_so() -> None:
    architecture = small("mistral", sliding_window=512)
    assert fitting(architecture) == ["swiglu-widening", "mlp-bias-for-vllm"]
    found = plan(architecture, "mlp-bias-for-vllm")
    assert not found.readable_by_transformers
    assert found.dropped_by == ("hf",)
    assert "only vLLM reads these biases" in found.notes[0]
    assert (found.config["model_type"], found.config["mlp_bias"]) == ("mistral", True)


@pytest.mark.parametrize(
    ("route", "message"),
    [
        (
            "relabeling",
            r"the route `relabeling` does not fit this `mistral` checkpoint: it attends in a slid",
        ),
        ("mlp-bias", r"the route `mlp-bias` does not fit this `mistral` checkpoint: it is for arcee, cwm, .*smollm3"),
        ("mlp", r"there is no route `mlp`"),
    ],
)
def test_one_that_does_not_fit_is_refused_and_those_that_fit_are_named(route: str, message: str) -> None:
    with pytest.raises(IncompatibleError, match=message) as caught:
        plan(small("mistral", sliding_window=512), route)
    assert caught.value.hint == "routes that fit: `swiglu-widening`, `mlp-bias-for-vllm`"


def test_asking_for_one_where_none_fits_names_the_alternatives() -> None:
    with pytest.raises(IncompatibleError, match="it is for gpt_oss") as caught:
        plan(small("gemma3_text"), "expert-bias")
    assert caught.value.hint.startswith("no route fits it; `persona promote")


@pytest.mark.parametrize(
    ("kind", "note", "dropped_by"),
    [
        ("llama", "vLLM 0.32 was tried on a small model of this kind and agrees", ()),
        ("seed_oss", "(it runs the class of transformers)", ()),
        ("minicpm3", "vLLM 0.32 leaves the vectors out without a word", ("vllm",)),
        ("doge", "differ from those of transformers, steered or not", ()),
        ("iquestcoder", "could not be tried on this architecture", ()),
    ],
)
def test_what_is_known_of_vllm_is_told(kind: str, note: str, dropped_by: tuple[str, ...]) -> None:
    found = plan(small(kind, num_hidden_layers=1))
    assert note in found.notes[-1]
    assert found.dropped_by == dropped_by
    assert found.serve_with == ()


@pytest.mark.parametrize("biased", [False, True])
def test_a_class_that_reads_them_only_when_asked_says_how(biased: bool) -> None:
    found = plan(small("ernie4_5", biased=biased, use_bias=biased))
    assert found.serve_with == ("--model-impl", "transformers")
    assert "vLLM needs `--model-impl transformers`" in found.notes[-1]
    assert found.dropped_by == ()
