"""Checkpoints of nine architectures as they are published: every tensor comes out, composed or copied, and loads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from personality.builds.mergekit_recipe import check_carried
from personality.builds.writer import write_checkpoint
from personality.composition.composer import Composer
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.errors import IncompatibleError
from personality.manifests.personality_record import Composition, Personality, Use
from personality.manifests.repository import Repository
from personality.vectors.checkpoint import INDEX, Checkpoint
from personality.vectors.difference import store_difference
from personality.vectors.task_vector import open_task_vector
from tests.composition.conftest import same_bits
from tests.conftest import fine_tuned, fused, tiny_checkpoint

DROPPED_BY_MERGEKIT = {
    "llama-bias": 21,
    "deepseek_v3": 24,
    "qwen3_moe": 36,
    "qwen3_next": 24,
    "qwen3_5_moe": 24,
    "qwen3": 0,
    "qwen3_5": 0,
    "gemma3": 0,
    "gpt_oss": 0,
}
"""Tensors of each tiny checkpoint that mergekit 0.1.5 does not write; it says so of none."""
SPREAD = {"qwen3": "no index", "gemma3": "single file", "llama-bias": "single file"}
"""How the weights lie; all others are shards with an index."""
SCALES = (0.75, -0.5)
"""Numbers of few bits, so that float32 holds every product exactly and one rounding is all that happens."""
WIDE = ("A_log", "dt_bias", "e_score_correction_bias", "router.weight", "mlp.gate.weight", "model.norm.weight")
"""Endings of names that are float32 here within bfloat16 models, as several publishers keep them."""


def read(folder: Path) -> dict[str, Tensor]:
    checkpoint = Checkpoint(folder)
    return {name: checkpoint.tensor(name) for name in checkpoint.specs}


def published(kind: str, folder: Path) -> Path:
    """A tiny checkpoint with what `save_pretrained` does not write: tensors of several dtypes, a head for several
    tokens and a buffer of integers that the class does not load, fused experts, shards.
    """
    tensors = {name: tensor.clone() for name, tensor in read(tiny_checkpoint(kind, folder)).items()}
    tensors = {name: tensor.float() if name.endswith(WIDE) else tensor for name, tensor in tensors.items()}
    if kind == "qwen3_5_moe":
        tensors = fused(tensors)
    if kind in ("qwen3_next", "qwen3_5", "qwen3_5_moe"):
        tensors["mtp.fc.weight"] = torch.randn(32, 64, generator=torch.Generator().manual_seed(7)).bfloat16()
        tensors["mtp.layers.0.input_layernorm.weight"] = torch.ones(32)
    if kind == "deepseek_v3":
        tensors["model.layers.61.eh_proj.weight"] = torch.randn(32, 64, generator=torch.Generator().manual_seed(7))
    tensors["model.table"] = torch.arange(5)
    (folder / "model.safetensors").unlink()
    spread = SPREAD.get(kind, "index")
    names = list(tensors)
    parts = [names] if spread == "single file" else [names[0::2], names[1::2]]
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        name = "model.safetensors" if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        save_file({item: tensors[item].contiguous() for item in part}, folder / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, name))
    if spread == "index":
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@dataclass
class Case:
    """A base with two imported fine-tunes: one changed every float tensor, one those of layer 1 only."""

    kind: str
    root: Path
    base: Path
    tuned: tuple[Path, Path]
    vectors: tuple[str, str]

    def composer(self, composition: Composition) -> Composer:
        """Both at the scales above."""
        repository = Repository(self.root / "repository")
        uses = tuple(
            Use(behavior=name, number=1, vector=vector, scale=scale)
            for name, vector, scale in zip(("aged", "brisk"), self.vectors, SCALES, strict=True)
        )
        personality = Personality(
            base=BaseIdentity(source="base", fingerprint="0" * 64), composition=composition, uses=uses
        )
        opened = {use.vector: open_task_vector(repository, use.vector, use.label) for use in uses}
        return Composer(Checkpoint(self.base), personality, opened)


@pytest.fixture(scope="module", params=DROPPED_BY_MERGEKIT)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp(request.param)
    base = published(request.param, root / "base")
    tuned = (
        fine_tuned(base, root / "all", seed=1),
        fine_tuned(base, root / "some", seed=2, only="layers.1."),
    )
    repository = Repository(root / "repository")
    first, second = (store_difference(repository, Checkpoint(base), Checkpoint(folder)).id for folder in tuned)
    return Case(request.param, root, base, tuned, (first, second))


def reference(case: Case, composition: Composition) -> dict[str, Tensor]:
    """The formulas of docs/composition.md in float64 over whole tensors, by sorting; rounded once, at the end."""
    base = read(case.base)
    scaled: list[dict[str, Tensor]] = []
    for folder, scale in zip(case.tuned, SCALES, strict=True):
        change = {name: tensor.double() - base[name].double() for name, tensor in read(folder).items()}
        change = {name: tensor for name, tensor in change.items() if tensor.any()}
        if composition.method == "ties":
            magnitudes = torch.cat([tensor.abs().flatten() for tensor in change.values()])
            keep = max(1, int(composition.density * magnitudes.numel()))
            limit = magnitudes.sort(descending=True).values[keep - 1]
            change = {name: tensor * (tensor.abs() >= limit) for name, tensor in change.items()}
        scaled.append({name: scale * tensor for name, tensor in change.items()})
    found = {}
    for name, tensor in base.items():
        terms = [change[name] for change in scaled if name in change]
        if terms:
            x = torch.stack(terms)
            if composition.method == "ties":
                x = x * (x.sign() == x.sum(0).sign())
            found[name] = (tensor.double() + x.sum(0)).to(tensor.dtype)
    return found


@pytest.mark.parametrize(
    "composition", [Composition(), Composition(method="ties", density=0.5)], ids=["linear", "ties"]
)
def test_every_tensor_is_composed_or_copied(case: Case, composition: Composition, tmp_path: Path) -> None:
    composer = case.composer(composition)
    out = tmp_path / "out"
    out.mkdir()
    write_checkpoint(composer, out, shard_bytes=30_000)
    base, written = Checkpoint(case.base), Checkpoint(out)
    assert {name: str(spec) for name, spec in written.specs.items()} == {
        name: str(spec) for name, spec in base.specs.items()
    }
    wanted = reference(case, composition)
    assert wanted.keys() == {name for name, spec in base.specs.items() if spec.dtype != "I64"}
    assert composer.touched == [name for name in base.specs if name in wanted]
    for name, tensor in wanted.items():
        # Into 16 bits there is one rounding; sums of a float32 tensor are themselves rounded to float32 on the way.
        slack = (2e-7, 2e-7) if tensor.dtype == torch.float32 else (0.0, 0.0)
        torch.testing.assert_close(written.tensor(name), tensor, rtol=slack[0], atol=slack[1], msg=name)
    assert written.bytes_of("model.table") == base.bytes_of("model.table")


def test_what_a_vector_leaves_alone_is_the_base_bit_for_bit(case: Case, tmp_path: Path) -> None:
    repository = Repository(case.root / "repository")
    use = Use(behavior="brisk", number=1, vector=case.vectors[1], scale=1.0)
    personality = Personality(base=BaseIdentity(source="base", fingerprint="0" * 64), uses=(use,))
    composer = Composer(
        Checkpoint(case.base), personality, {use.vector: open_task_vector(repository, use.vector, use.label)}
    )
    write_checkpoint(composer, tmp_path)
    base, tuned, written = read(case.base), read(case.tuned[1]), read(tmp_path)
    assert written.keys() == base.keys()
    assert all(same_bits(tensor, tuned[name]) for name, tensor in written.items())
    left = [name for name in base if "layers.1." not in name]
    assert len(left) > 3
    assert all(same_bits(written[name], base[name]) for name in left)


def test_transformers_loads_it(case: Case, tmp_path: Path) -> None:
    import transformers

    composed = case.composer(Composition())
    ids = torch.arange(24).reshape(2, 12) + 5
    logits = []
    for name, composer in (("composed", composed), ("base", composed.keeping(lambda *_: False))):
        folder = tmp_path / name
        folder.mkdir()
        write_checkpoint(composer, folder, shard_bytes=30_000)
        kind = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
        model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["mismatched_keys"]
        with torch.inference_mode():
            logits.append(model.eval()(input_ids=ids).logits)
    assert bool(torch.isfinite(logits[0]).all())
    assert float((logits[0] - logits[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", DROPPED_BY_MERGEKIT)
def test_what_mergekit_would_carry(kind: str, tmp_path: Path) -> None:
    """Planned by mergekit 0.1.5 for the checkpoint as `save_pretrained` writes it, before anything is added."""
    personality = Personality(base=BaseIdentity(source="base", fingerprint="0" * 64), uses=())
    composer = Composer(Checkpoint(tiny_checkpoint(kind, tmp_path)), personality, {})
    lost = DROPPED_BY_MERGEKIT[kind]
    if not lost:
        assert check_carried(composer) == "BF16"
        return
    with pytest.raises(IncompatibleError, match=f"would drop {lost} tensors"):
        check_carried(composer)
