"""PEFT as the oracle for LoRA adapters, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from personality.composition.composer import Composer
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.errors import CorruptError, IncompatibleError, NotFoundError, PersonaError
from personality.manifests.personality_record import Personality, Use
from personality.manifests.repository import Repository
from personality.manifests.vector_store import stored_ids
from personality.vectors.adapter import CONFIG, WEIGHTS, is_adapter, store_adapter
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.task_vector import open_task_vector
from tests.conftest import tiny_checkpoint

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module", params=["llama", "qwen3", "llama-bias"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(request.param, tmp_path_factory.mktemp("adapter") / request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("adapter") / "llama")


def load(folder: Path, dtype: torch.dtype) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def adapted(base: Path, out: Path, dtype: torch.dtype = torch.bfloat16, **settings: Any) -> Any:
    """A PEFT model with random factors, saved as an adapter."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    options = {"r": 4, "lora_alpha": 6, "target_modules": ALL, "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(load(base, dtype), LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zeros until trained
                parameter.copy_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(out)
    return model


def composed(root: Path, base: Path, adapter: Path, scale: float) -> Composer:
    repository = Repository(root)
    checkpoint = Checkpoint(base)
    stored = store_adapter(repository, checkpoint, adapter)
    assert stored.encoding == "low-rank"
    use = Use(behavior="b", number=1, vector=stored.id, scale=scale)
    personality = Personality(base=BaseIdentity(source="base", fingerprint="0" * 64), uses=(use,))
    return Composer(checkpoint, personality, {stored.id: open_task_vector(repository, stored.id, "b@1")})


def half_ulp(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    exponent = value.double().abs().clamp_min(1e-30).log2().floor()
    return torch.exp2(exponent) * torch.finfo(dtype).eps


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "some modules": {"target_modules": ["q_proj", "down_proj"]},
    "some layers": {"layers_to_transform": [1]},
    "rank-stabilized": {"use_rslora": True},
    "rank pattern": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}},
    "alpha pattern": {"alpha_pattern": {"v_proj": 11, "layers.0.self_attn.o_proj": 1}},
    "all patterns": {
        "use_rslora": True,
        "rank_pattern": {r".*\.1\.self_attn\.q_proj": 3},
        "alpha_pattern": {"^model.layers.2.mlp.gate_proj": 9},
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_scale_one_is_what_peft_merges(tmp_path: Path, base: Path, kind: str) -> None:
    """Within one rounding of bfloat16, and the factors' own dtype (float32) in between."""
    model = adapted(base, tmp_path / "adapter", **KINDS[kind])
    composer = composed(tmp_path / "repository", base, tmp_path / "adapter", 1.0)
    merged = model.merge_and_unload().state_dict()
    _agree(composer, merged, torch.bfloat16)


def _agree(composer: Composer, merged: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    assert composer.touched
    elements = different = 0
    for name, spec in composer.base.specs.items():
        own, theirs = composer.tensor(name), merged[name]
        assert theirs.dtype == own.dtype == dtype, spec
        assert bool(((own.double() - theirs.double()).abs() <= half_ulp(theirs, dtype) + 1e-7).all()), name
        if name in composer.touched:
            assert not torch.equal(own, composer.base.tensor(name))
        else:
            assert torch.equal(own, composer.base.tensor(name))
        elements += own.numel()
        different += int((own != theirs).sum())
    if dtype == torch.bfloat16:
        assert different <= elements / 1000


@pytest.mark.parametrize("kind", ["plain", "rank-stabilized", "all patterns"])
def test_scale_one_half_is_half_of_peft_s_scaling(tmp_path: Path, llama: Path, kind: str) -> None:
    model = adapted(llama, tmp_path / "adapter", **KINDS[kind])
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(0.5)
    composer = composed(tmp_path / "repository", llama, tmp_path / "adapter", 0.5)
    _agree(composer, model.merge_and_unload().state_dict(), torch.bfloat16)


def test_a_float32_base(tmp_path: Path) -> None:
    folder = tiny_checkpoint("qwen3", tmp_path / "base")
    path = folder / "model.safetensors"
    save_file({name: tensor.float() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    model = adapted(folder, tmp_path / "adapter", torch.float32)
    composer = composed(tmp_path / "repository", folder, tmp_path / "adapter", 1.0)
    _agree(composer, model.merge_and_unload().state_dict(), torch.float32)


def test_conv1d_is_transposed(tmp_path: Path) -> None:
    import transformers

    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=97, n_positions=64)
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    adapter = tmp_path / "adapter"
    model = adapted(tmp_path / "base", adapter, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    if not all(f"{name}.weight" in Checkpoint(tmp_path / "base").specs for name in ("transformer.h.0.attn.c_attn",)):
        pytest.fail("the checkpoint's names are not the model's")
    composer = composed(tmp_path / "repository", tmp_path / "base", adapter, 1.0)
    _agree(composer, model.merge_and_unload().state_dict(), torch.bfloat16)


def test_factors_keep_their_dtype_and_size(tmp_path: Path, llama: Path) -> None:
    adapted(llama, tmp_path / "adapter")
    repository = Repository(tmp_path / "repository")
    stored = store_adapter(repository, Checkpoint(llama), tmp_path / "adapter")
    factors = load_file(tmp_path / "adapter" / WEIGHTS)
    assert stored.bytes == sum(tensor.numel() * tensor.element_size() for tensor in factors.values())
    assert len(stored.tensors) == len(factors) / 2 == 21
    assert stored.notes == ("rank 4 on 21 tensors",)
    assert stored.norm > 0


def test_is_adapter(tmp_path: Path, llama: Path) -> None:
    adapted(llama, tmp_path / "adapter")
    assert is_adapter(tmp_path / "adapter")
    assert not is_adapter(llama)


def refused(root: Path, base: Path, adapter: Path, error: type[PersonaError], message: str, hint: str) -> None:
    repository = Repository(root / "repository")
    with pytest.raises(error, match=message) as caught:
        store_adapter(repository, Checkpoint(base), adapter)
    assert hint in caught.value.hint
    assert stored_ids(repository) == {}


MORE_THAN_LORA: dict[str, tuple[dict[str, Any], str]] = {
    "lora bias": ({"lora_bias": True}, "has biases in the factors"),
    "olora": ({"init_lora_weights": "olora"}, r"an initialization that changed the base's own weights \(olora\)"),
    "pissa": ({"init_lora_weights": "pissa"}, r"changed the base's own weights \(pissa\)"),
}


@pytest.mark.parametrize("kind", MORE_THAN_LORA)
def test_more_than_plain_lora(tmp_path: Path, make_checkpoint: Callable[..., Path], kind: str) -> None:
    settings, message = MORE_THAN_LORA[kind]
    folder = make_checkpoint("llama-bias")
    dtype = torch.float32 if "init_lora_weights" in settings else torch.bfloat16
    adapted(folder, tmp_path / "adapter", dtype, **settings)
    refused(tmp_path, folder, tmp_path / "adapter", IncompatibleError, message, "merge_and_unload")


def edit_config(adapter: Path, **changes: Any) -> None:
    path = adapter / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(adapter: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, adapter / WEIGHTS)


Q = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"


@pytest.fixture
def adapter(tmp_path: Path, llama: Path) -> Path:
    adapted(llama, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_another_method_of_peft(tmp_path: Path, llama: Path, adapter: Path) -> None:
    edit_config(adapter, peft_type="IA3")
    refused(tmp_path, llama, adapter, IncompatibleError, "of the type IA3; only LORA", "merge_and_unload")


def test_an_activated_adapter(tmp_path: Path, llama: Path, adapter: Path) -> None:
    edit_config(adapter, alora_invocation_tokens=[1, 2])
    refused(tmp_path, llama, adapter, IncompatibleError, "the variant `alora_invocation_tokens`", "")


def test_a_config_that_is_not_json(tmp_path: Path, llama: Path, adapter: Path) -> None:
    (adapter / CONFIG).write_text("{")
    refused(tmp_path, llama, adapter, CorruptError, f"{CONFIG} is not JSON", "save the adapter again")


def test_missing_weights(tmp_path: Path, llama: Path, adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    torch.save({}, adapter / "adapter_model.bin")
    refused(tmp_path, llama, adapter, NotFoundError, f"has no {WEIGHTS}", "pickled weights are not opened")


def test_truncated_weights(tmp_path: Path, llama: Path, adapter: Path) -> None:
    data = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(data[:-10])
    refused(tmp_path, llama, adapter, CorruptError, "is not a whole safetensors file", "fetch or rebuild")


def test_another_base(tmp_path: Path, adapter: Path) -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    message = (
        r"the factors of `model\.layers\.0\.[a-z_.]+` make a change of shape \[\d+, \d+\], the base has \[\d+, \d+\]"
    )
    refused(tmp_path, tmp_path / "wide", adapter, IncompatibleError, message, "another base")


def test_a_module_that_the_base_lacks(tmp_path: Path, llama: Path, adapter: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for side in "AB":
            tensors[Q.format(side).replace("layers.1", "layers.8")] = tensors.pop(Q.format(side))

    edit_weights(adapter, rename)
    message = r"changes 1 tensor \(`model\.layers\.8\.self_attn\.q_proj\.weight`\) that the base does not have"
    refused(tmp_path, llama, adapter, IncompatibleError, message, "another base")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(tmp_path: Path, llama: Path, adapter: Path, value: float) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q.format("B")][2, 1] = value

    edit_weights(adapter, poison)
    message = r"`base_model\..*layers\.1\.self_attn\.q_proj\.lora_B\.weight` has NaN or infinite values"
    refused(tmp_path, llama, adapter, IncompatibleError, message, "earlier checkpoint")


def test_one_factor_only(tmp_path: Path, llama: Path, adapter: Path) -> None:
    edit_weights(adapter, lambda tensors: tensors.pop(Q.format("A")))
    message = r"1 tensor \(`model\.layers\.1\.self_attn\.q_proj`\) with one factor only"
    refused(tmp_path, llama, adapter, IncompatibleError, message, "merge")


def test_a_tensor_that_is_no_factor(tmp_path: Path, llama: Path, adapter: Path) -> None:
    edit_weights(adapter, lambda tensors: tensors.update({"base_model.model.lm_head.weight": torch.ones(2)}))
    refused(tmp_path, llama, adapter, IncompatibleError, r"has 1 tensor \(`base_model.model.lm_head.weight`\)", "merge")


def test_no_factors(tmp_path: Path, llama: Path, adapter: Path) -> None:
    edit_weights(adapter, lambda tensors: tensors.clear())
    refused(tmp_path, llama, adapter, IncompatibleError, "0 tensors that are not LoRA factors", "merge")


def test_a_rank_that_the_config_denies(tmp_path: Path, llama: Path, adapter: Path) -> None:
    edit_config(adapter, r=8)
    refused(tmp_path, llama, adapter, CorruptError, f"have rank 4, {CONFIG} says 8", "do not belong together")


def test_a_quantized_base(tmp_path: Path, llama: Path, adapter: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "quantized"))
    path = folder / "model.safetensors"
    name = "model.layers.1.self_attn.q_proj.weight"
    tensors = load_file(path)
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, path, {"format": "pt"})
    refused(tmp_path, folder, adapter, IncompatibleError, f"`{name}` is I8 in the base: a quantized", "16-bit release")
