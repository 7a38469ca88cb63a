from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from personality.manifests.errors import IncompatibleError, UsageError
from personality.vectors.extraction.denoising import output_subspaces
from personality.vectors.steering.decoder_layers import decoder_layers
from tests.conftest import ARCHITECTURES
from tests.tiny_readings import tiny_model


def joined(block: nn.Module) -> Tensor:
    """(d, inner of all experts): all down projections side by side."""
    parts = [parameter for name, parameter in block.named_parameters() if "down_proj" in name and parameter.dim() > 1]
    return torch.cat([weight for part in parts for weight in (part if part.dim() == 3 else [part])], dim=1).detach()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_as_singular_vectors_of_the_joined_weight(kind: str) -> None:
    model = tiny_model(kind)
    found = list(output_subspaces(model, 5))
    assert len(found) == 3
    for block, basis in zip(decoder_layers(model), found, strict=True):
        U = torch.linalg.svd(joined(block).double())[0][:, :5]
        torch.testing.assert_close(basis @ basis.T, U @ U.T, atol=1e-4, rtol=0)
        torch.testing.assert_close(basis.T @ basis, torch.eye(5, dtype=torch.float64), atol=1e-9, rtol=0)


def test_experts_that_are_modules_of_their_own() -> None:
    model = tiny_model("qwen3_moe")
    packed = list(output_subspaces(model, 3))
    for block in decoder_layers(model):
        weights = block.get_submodule("mlp.experts").get_parameter("down_proj")
        experts = nn.ModuleList()
        for weight in weights:
            expert = nn.Module()
            expert.down_proj = nn.Linear(16, 32, bias=False)
            expert.down_proj.weight = nn.Parameter(weight.detach().clone())
            experts.append(expert)
        block.get_submodule("mlp").experts = experts
    for before, after in zip(packed, output_subspaces(model, 3), strict=True):
        torch.testing.assert_close(before @ before.T, after @ after.T)


@pytest.mark.parametrize("inner", [48, 32])
def test_weights_stored_by_input(inner: int) -> None:
    """GPT-2's way; with inner = d only the kind of module tells."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_inner=inner, n_layer=2, n_head=2, vocab_size=50, n_positions=32))
    with torch.no_grad():
        for block in model.transformer.h:
            block.mlp.c_proj.weight.normal_()
    for block, basis in zip(model.transformer.h, output_subspaces(model, 4), strict=True):
        U = torch.linalg.svd(block.mlp.c_proj.weight.detach().double().T)[0][:, :4]
        torch.testing.assert_close(basis @ basis.T, U @ U.T, atol=1e-4, rtol=0)


def test_transposed_experts() -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_local_experts": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 60}
    model = GptOssForCausalLM(GptOssConfig(**sizes, **heads, num_experts_per_tok=2))
    with torch.no_grad():
        for block in decoder_layers(model):
            block.get_submodule("mlp.experts").get_parameter("down_proj").normal_()
    for block, basis in zip(decoder_layers(model), output_subspaces(model, 4), strict=True):
        weights = block.get_submodule("mlp.experts").get_parameter("down_proj").detach().double()
        U = torch.linalg.svd(torch.cat([weight.T for weight in weights], dim=1))[0][:, :4]
        torch.testing.assert_close(basis @ basis.T, U @ U.T, atol=1e-4, rtol=0)


def test_refuses_what_it_cannot_find_or_read() -> None:
    model = tiny_model("llama")
    for wrong in (0, 33):
        with pytest.raises(UsageError, match=f"{wrong} components: the residual stream has 32"):
            next(output_subspaces(model, wrong))
    weight = model.model.layers[1].mlp.down_proj
    weight.weight = nn.Parameter(weight.weight.detach().to(torch.uint8).flatten()[:, None], requires_grad=False)
    with pytest.raises(IncompatibleError, match=r"layer 1: `mlp\.down_proj\.weight` is .* of torch\.uint8"):
        list(output_subspaces(model, 2))
    model.model.layers[1].mlp = nn.Identity()
    with pytest.raises(IncompatibleError, match="layer 1 has no feed-forward output weight"):
        list(output_subspaces(model, 2))
