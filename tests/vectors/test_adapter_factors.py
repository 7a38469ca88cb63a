"""PEFT's own merge as the oracle for adapters of experts, embeddings, tied heads, and classes with other names."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from personality.composition.composer import Composer
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.errors import CorruptError, IncompatibleError, PersonaError
from personality.manifests.personality_record import Personality, Use
from personality.manifests.repository import Repository
from personality.manifests.vector_store import stored_ids
from personality.vectors.adapter import CONFIG, WEIGHTS, store_adapter
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.stored import StoredTask
from personality.vectors.task_vector import open_task_vector
from tests.adapters import to_float32
from tests.conftest import fused, tiny_checkpoint

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def base_of(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A float32 checkpoint, so that the comparison sees the factors and not the rounding."""
    name, _, variant = kind.partition("/")
    to_float32(tiny_checkpoint(name, folder))
    path = folder / "model.safetensors"
    if variant == "fused":
        save_file(
            {name: tensor.contiguous() for name, tensor in fused(load_file(path)).items()}, path, {"format": "pt"}
        )
    return folder


def adapted(base: Path, out: Path, **settings: Any) -> Any:
    """A PEFT model with random factors, saved as an adapter."""
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options = {"r": 3, "lora_alpha": 5, "task_type": "CAUSAL_LM", "init_lora_weights": False, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied embeddings, and an old name of transformers'
        model = get_peft_model(model, LoraConfig(**options))
        with torch.no_grad():
            for parameter in model.parameters():
                if (
                    parameter.requires_grad
                ):  # as if trained: copies of modules, biases and magnitudes start at the base's
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(out)
    return model


def composed(root: Path, base: Path, adapter: Path) -> tuple[Composer, StoredTask]:
    repository = Repository(root)
    checkpoint = Checkpoint(base)
    stored = store_adapter(repository, checkpoint, adapter)
    use = Use(behavior="b", number=1, vector=stored.id, scale=1.0)
    personality = Personality(base=BaseIdentity(source="base", fingerprint="0" * 64), uses=(use,))
    return Composer(checkpoint, personality, {stored.id: open_task_vector(repository, stored.id, "b@1")}), stored


CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "stacked experts, (in, out)": ("gpt_oss", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}, 9),
    "one layer of stacked experts": (
        "gpt_oss",
        {"target_modules": [], "target_parameters": ["1.mlp.experts.down_proj"]},
        1,
    ),
    "stacked experts, (out, in)": (
        "qwen3_5_moe/fused",
        {"target_modules": ["v_proj"], "target_parameters": EXPERTS},
        5,
    ),
    "experts one by one": ("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}, 39),
    "all-linear": ("qwen3_moe", {"target_modules": "all-linear"}, 51),
    "experts with patterns": (
        "qwen3_moe",
        {
            "target_modules": ["o_proj"],
            "target_parameters": EXPERTS,
            "use_rslora": True,
            "rank_pattern": {".*gate_up_proj": 2, "o_proj": 4},
            "alpha_pattern": {"layers.1.mlp.experts.down_proj": 11},
        },
        39,
    ),
    "experts of DeepSeek-V3": ("deepseek_v3", {"target_modules": ["kv_b_proj"], "target_parameters": EXPERTS}, 27),
    "experts of Qwen3-Next": ("qwen3_next", {"target_modules": ["in_proj_qkvz"], "target_parameters": EXPERTS}, 25),
    "Gated-DeltaNet": ("qwen3_5", {"target_modules": ["in_proj_qkv", "in_proj_a", "out_proj"]}, 6),
    "embeddings and head": ("llama-bias", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}, 5),
    "embeddings, rank-stabilized": (
        "llama-bias",
        {"target_modules": ["embed_tokens"], "use_rslora": True, "rank_pattern": {"embed_tokens": 2}},
        1,
    ),
    "embeddings that are the head too": ("gemma3", {"target_modules": ["embed_tokens", "q_proj"]}, 4),
    "the head that is the embeddings too": ("gemma3", {"target_modules": ["lm_head"]}, 1),
    "DoRA": ("llama-bias", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}, 6),
    "DoRA of embeddings": ("llama-bias", {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}, 2),
    "DoRA of embeddings that are the head too": ("gemma3", {"target_modules": ["embed_tokens"], "use_dora": True}, 1),
    "trained biases": ("llama-bias", {"target_modules": ["q_proj"], "bias": "all"}, 24),
    "biases of adapted layers": ("llama-bias", {"target_modules": ["q_proj"], "bias": "lora_only"}, 6),
    "whole modules": (
        "llama-bias",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "input_layernorm"]},
        7,
    ),
    "whole modules and experts": (
        "qwen3_moe",
        {"target_modules": [], "target_parameters": EXPERTS, "modules_to_save": ["q_norm"]},
        39,
    ),
    "a text class of a model that sees": ("qwen3_5_moe", {"target_modules": ["q_proj", "k_proj"]}, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_scale_one_is_what_peft_merges(tmp_path: Path, name: str) -> None:
    kind, settings, tensors = CASES[name]
    base = base_of(kind, tmp_path / "base")
    model = adapted(base, tmp_path / "adapter", **settings)
    composer, stored = composed(tmp_path / "repository", base, tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = Checkpoint(tmp_path / "merged")
    assert stored.encoding == "low-rank"
    assert len(stored.tensors) == len(composer.touched) == tensors
    for tensor in merged.specs:
        own = composer.tensor(tensor)
        torch.testing.assert_close(own, merged.tensor(tensor), rtol=0, atol=2e-6, msg=tensor)
        assert torch.equal(own, composer.base.tensor(tensor)) == (tensor not in composer.touched)
    assert set(composer.touched) <= merged.specs.keys() <= composer.base.specs.keys()


def test_names_that_a_checkpoint_spells_otherwise(tmp_path: Path) -> None:
    """Gemma 3's files say `language_model.model.layers`, its class `model.language_model.layers`."""
    import transformers

    text = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    seeing = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    tokens = {"image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92, "mm_tokens_per_image": 4}
    config = transformers.Gemma3Config(text_config=text, vision_config=seeing, **tokens)
    torch.manual_seed(1)
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    model = adapted(tmp_path / "base", tmp_path / "adapter", target_modules=r".*language_model.*(q_proj|down_proj)")
    assert any("model.language_model.layers.1" in key for key in load_file(tmp_path / "adapter" / WEIGHTS))
    composer, stored = composed(tmp_path / "repository", tmp_path / "base", tmp_path / "adapter")
    assert set(stored.tensors) == {
        f"language_model.model.layers.{layer}.{name}.weight"
        for layer in range(2)
        for name in ("self_attn.q_proj", "mlp.down_proj")
    }
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = Checkpoint(tmp_path / "merged")
    assert merged.specs.keys() == composer.base.specs.keys()
    for name in merged.specs:
        torch.testing.assert_close(composer.tensor(name), merged.tensor(name), rtol=0, atol=2e-6)


def test_square_experts_lie_as_their_class_says(tmp_path: Path) -> None:
    """gpt-oss-20b's down projections are 2880 × 2880: their shape does not tell rows from columns."""
    import transformers

    config = transformers.GptOssConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=3,
        num_experts_per_tok=1,
        layer_types=["full_attention"],
        sliding_window=16,
    )
    torch.manual_seed(2)
    transformers.GptOssForCausalLM(config).save_pretrained(tmp_path / "base")
    model = adapted(tmp_path / "base", tmp_path / "adapter", target_modules=[], target_parameters=EXPERTS)
    composer, _ = composed(tmp_path / "repository", tmp_path / "base", tmp_path / "adapter")
    merged = model.merge_and_unload().state_dict()
    for name in composer.touched:
        torch.testing.assert_close(composer.tensor(name), merged[name], rtol=0, atol=2e-6)


def test_stacked_factors_block_by_block(tmp_path: Path) -> None:
    """Rows that begin and end inside an expert's matrix are the same bits as those of the whole tensor."""
    base = base_of("gpt_oss", tmp_path / "base")
    adapted(base, tmp_path / "adapter", target_modules=[], target_parameters=EXPERTS)
    _, stored = composed(tmp_path / "repository", base, tmp_path / "adapter")
    assert stored.bytes == sum(
        tensor.numel() * tensor.element_size() for tensor in load_file(tmp_path / "adapter" / WEIGHTS).values()
    )
    vector = open_task_vector(Repository(tmp_path / "repository"), stored.id, "b@1")
    for name, shape in vector.shapes.items():
        rows = shape[0] * shape[1]
        whole = vector.rows(name, 0, rows)
        assert whole.shape == (rows, shape[2])
        cuts = [*range(0, rows, 7), rows]
        parts = [vector.rows(name, start, stop) for start, stop in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat(parts), whole)


def test_a_tied_model_with_both_ends_adapted(tmp_path: Path) -> None:
    """With `ensure_weight_tying` both ends have the same factors: one change of one tensor, as the adapter acts.

    PEFT's merge adds it to that tensor twice; the adapter before the merge is the oracle here.
    """
    import transformers

    base = base_of("gemma3", tmp_path / "base")
    model = adapted(base, tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True)
    composer, stored = composed(tmp_path / "repository", base, tmp_path / "adapter")
    assert f"one tensor, `{EMBEDDINGS}`: the change acts in both, as the adapter does" in stored.notes[1]
    ids = torch.arange(24).reshape(2, 12) + 5
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    state = {name: composer.tensor(name) for name in composer.base.specs}
    plain.load_state_dict(state, strict=False)
    plain.tie_weights()
    with torch.inference_mode():
        torch.testing.assert_close(plain(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_copied_head_changes_with_the_embeddings(tmp_path: Path) -> None:
    base = base_of("qwen3-tied", tmp_path / "base")
    path = base / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, HEAD: tensors[EMBEDDINGS].clone()}, path, {"format": "pt"})
    adapted(base, tmp_path / "adapter", target_modules=["embed_tokens"])
    composer, stored = composed(tmp_path / "repository", base, tmp_path / "adapter")
    assert set(stored.tensors) == {EMBEDDINGS, HEAD}
    assert torch.equal(composer.tensor(HEAD), composer.tensor(EMBEDDINGS))
    assert "unmerged, the adapter acts in one of them only" in stored.notes[1]


def test_an_adapter_of_a_quantized_base_is_taken(tmp_path: Path) -> None:
    """QLoRA: the factors belong to the 16-bit base just as well; where they were trained is only a name."""
    base = base_of("llama", tmp_path / "base")
    adapted(base, tmp_path / "adapter", target_modules=["q_proj"])
    path = tmp_path / "adapter" / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "someone/llama-bnb-4bit"}))
    assert composed(tmp_path / "repository", base, tmp_path / "adapter")[1].encoding == "low-rank"


def refused(root: Path, base: Path, adapter: Path, error: type[PersonaError], message: str) -> None:
    """Refused with these words, and nothing stored."""
    repository = Repository(root / "repository")
    with pytest.raises(error, match=message):
        store_adapter(repository, Checkpoint(base), adapter)
    assert stored_ids(repository) == {}
    assert not (root / "repository/vectors").exists()


def edit(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def test_two_changes_of_one_tensor(tmp_path: Path) -> None:
    base = base_of("gemma3", tmp_path / "base")
    adapted(base, tmp_path / "adapter", target_modules=["embed_tokens", "lm_head"])
    refused(tmp_path, base, tmp_path / "adapter", IncompatibleError, "embeddings and output head in two ways")


def test_embeddings_that_the_adapter_changed_beside_its_factors(tmp_path: Path) -> None:
    """PEFT saves embeddings with the adapter; where they are not the base's, they are a change of their own."""
    base = base_of("llama", tmp_path / "base")
    adapted(base, tmp_path / "adapter", target_modules=["embed_tokens"])
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    edit(tmp_path / "adapter" / WEIGHTS, lambda tensors: tensors[name].add_(1))
    refused(
        tmp_path, base, tmp_path / "adapter", IncompatibleError, rf"1 tensor \(`{name}`\) that are not LoRA factors"
    )


def test_a_new_head_of_a_tied_model(tmp_path: Path) -> None:
    base = base_of("gemma3", tmp_path / "base")
    adapted(base, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    refused(tmp_path, base, tmp_path / "adapter", IncompatibleError, f"holds a new `{EMBEDDINGS}`, and in the base")


def test_an_adapter_with_more_tokens_than_its_base(tmp_path: Path) -> None:
    base = base_of("llama", tmp_path / "base")
    adapted(base, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["lm_head"])
    name = "base_model.model.lm_head.weight"
    edit(tmp_path / "adapter" / WEIGHTS, lambda tensors: tensors.update({name: torch.ones(99, 32)}))
    message = r"the adapter's own `lm_head.weight` has the shape \[99, 32\], the base's has \[97, 32\]"
    refused(tmp_path, base, tmp_path / "adapter", IncompatibleError, message)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.0.self_attn.q_proj.lora_magnitude_vector"])
def test_what_is_saved_whole_must_be_finite(tmp_path: Path, name: str) -> None:
    base = base_of("llama", tmp_path / "base")
    adapted(base, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["lm_head"], use_dora=True)
    name = f"base_model.model.{name}"
    edit(tmp_path / "adapter" / WEIGHTS, lambda tensors: tensors[name].view(-1)[3].fill_(float("nan")))
    refused(tmp_path, base, tmp_path / "adapter", IncompatibleError, f"`{name}` has NaN or infinite values")


def test_dora_of_a_sixteen_bit_base_is_kept_in_sixteen_bits(tmp_path: Path) -> None:
    base = tiny_checkpoint("llama", tmp_path / "base")
    model = adapted(base, tmp_path / "adapter", target_modules=["q_proj"], use_dora=True)
    composer, stored = composed(tmp_path / "repository", base, tmp_path / "adapter")
    vector = open_task_vector(Repository(tmp_path / "repository"), stored.id, "b@1")
    assert {spec.dtype for spec in vector.specs.values()} == {"BF16"}
    assert "3 tensors" in stored.notes[-1]
    merged = model.merge_and_unload().state_dict()
    for name in composer.touched:
        change = merged[name].double() - composer.base.tensor(name).double()
        error = (composer.delta(name).double() - change).abs()
        assert bool((error <= change.abs() * 2**-8 + 1e-6).all())


def test_experts_of_another_rank_than_stated(tmp_path: Path) -> None:
    base = base_of("qwen3_moe", tmp_path / "base")
    adapted(base, tmp_path / "adapter", target_modules=[], target_parameters=EXPERTS)
    path = tmp_path / "adapter" / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 6}))
    refused(tmp_path, base, tmp_path / "adapter", CorruptError, "have rank 3, adapter_config.json says 6")


def test_experts_that_the_base_does_not_have(tmp_path: Path) -> None:
    base = base_of("qwen3_moe", tmp_path / "base")
    adapted(base, tmp_path / "adapter", target_modules=[], target_parameters=EXPERTS)
    dense = base_of("qwen3", tmp_path / "dense")
    refused(tmp_path, dense, tmp_path / "adapter", IncompatibleError, "that the base does not have")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_base_that_is_not_finite(tmp_path: Path, value: float) -> None:
    base = base_of("llama", tmp_path / "base")
    adapted(base, tmp_path / "adapter", target_modules=["q_proj"])
    name = "model.layers.2.self_attn.q_proj.weight"
    edit(base / "model.safetensors", lambda tensors: tensors[name][3].fill_(value))
    refused(tmp_path, base, tmp_path / "adapter", IncompatibleError, f"`{name}` has NaN or infinite values in the base")
