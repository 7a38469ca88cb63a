"""A user's own base of every architecture: fine-tune in, checkpoint out, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from personality.builds.build import build
from personality.builds.export import export
from personality.making.importing import import_vector
from personality.manifests.errors import CorruptError, IncompatibleError, NotFoundError, PersonaError, UsageError
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import Composition, LayerRange
from personality.manifests.repository import Repository
from personality.manifests.vector_store import stored_ids
from personality.versions.changes import add, compose_by, remove
from personality.versions.history import History
from tests.conftest import ARCHITECTURES, fine_tuned, run_persona, tiny_checkpoint


def read(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    return found


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype
        and tensor.shape == second[name].shape
        and torch.equal(tensor.contiguous().view(torch.uint8), second[name].contiguous().view(torch.uint8))
        for name, tensor in first.items()
    )


@dataclass
class Case:
    """A repository on a base, with `polite@1` imported from a fine-tune."""

    kind: str
    base: Path
    tuned: Path
    repository: Repository

    def built(self) -> dict[str, Tensor]:
        """The newest version's weights."""
        return read(build(self.repository, History(self.repository).head()).path)


def make_case(kind: str, root: Path, shard_size: str = "5GB", tuned: Path | None = None) -> Case:
    base = tiny_checkpoint(kind, root / "base", shard_size=shard_size)
    tuned = tuned or fine_tuned(base, root / "tuned")
    code, _, err = run_persona("init", "--base", str(base), str(root / "repository"))
    assert code == 0, err
    code, _, err = run_persona("import", "polite", str(tuned), "-C", str(root / "repository"))
    assert code == 0, err
    return Case(kind, base, tuned, Repository(root / "repository"))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def case(made: Case, tmp_path: Path) -> Case:
    """A copy of the repository to write to; base and fine-tune are only read."""
    shutil.copytree(made.repository.root, tmp_path / "repository")
    return Case(made.kind, made.base, made.tuned, Repository(tmp_path / "repository"))


POLITE = VectorLabel("polite")


def test_scale_one_is_the_fine_tune_and_removal_the_base(case: Case) -> None:
    base, tuned = read(case.base), read(case.tuned)
    assert not same_bits(base, tuned)
    assert same_bits(case.built(), base)
    add(case.repository, POLITE, 1.0)
    assert same_bits(case.built(), tuned)
    compose_by(case.repository, Composition(method="ties", density=1.0))
    assert same_bits(case.built(), tuned)
    add(case.repository, POLITE, 0.0)
    assert same_bits(case.built(), base)
    add(case.repository, POLITE, -1.0)
    assert not same_bits(case.built(), base)
    remove(case.repository, "polite")
    assert same_bits(case.built(), base)


def test_every_tensor_is_accounted_for(case: Case) -> None:
    manifest = case.repository.manifests()[0]
    base = read(case.base)
    assert manifest.label == "polite@1"
    assert manifest.making.how == "import-checkpoint"
    assert manifest.making.source == "tuned"
    assert manifest.tensors.keys() == base.keys()
    for name, tensor in base.items():
        assert manifest.tensors[name].endswith(str(list(tensor.shape)))


def test_layers_restrict(case: Case) -> None:
    add(case.repository, POLITE, 1.0, layers=LayerRange(first=1, last=2))
    base, tuned, built = read(case.base), read(case.tuned), case.built()
    inside = {name for name in base if ".layers.1." in name or ".layers.2." in name}
    assert 0 < len(inside) < len(base)
    assert same_bits(built, {name: (tuned if name in inside else base)[name] for name in base})


def test_shards_of_the_base_change_nothing(made: Case, tmp_path: Path) -> None:
    spread = make_case(made.kind, tmp_path, shard_size="30KB", tuned=made.tuned)
    assert len(list(spread.base.glob("*.safetensors"))) > 1
    assert [item.id for item in spread.repository.manifests()] == [item.id for item in made.repository.manifests()]
    add(spread.repository, POLITE, 1.0)
    assert same_bits(spread.built(), read(made.tuned))


def test_an_export_reloads_with_plain_transformers(case: Case, tmp_path: Path) -> None:
    import transformers

    add(case.repository, POLITE, 1.0)
    result = export(case.repository, History(case.repository).head(), "vllm", tmp_path / "out", shard_bytes=40_000)
    assert result.agreement is not None
    assert result.agreement.greatest_difference <= 1e-5
    assert result.agreement.greedy == 1.0
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == read(case.base).keys()
    assert same_bits(read(tmp_path / "out"), read(case.tuned))
    ids = torch.arange(24).reshape(2, 12) + 5
    predictions = []
    for folder in (tmp_path / "out", case.tuned, case.base):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.inference_mode():
            predictions.append(model(input_ids=ids).logits.log_softmax(-1))
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert tied == (case.kind == "qwen3-tied")
    torch.testing.assert_close(predictions[0], predictions[1], rtol=0, atol=1e-6)
    assert float((predictions[0] - predictions[2]).abs().max()) > 1e-3


@pytest.fixture
def llama(tmp_path: Path) -> Case:
    return make_case("llama", tmp_path / "llama")


def test_importing_again_gives_the_same_vector(llama: Case) -> None:
    before = stored_ids(llama.repository)
    manifest, new, _ = import_vector(llama.repository, "polite", llama.tuned)
    assert (manifest.label, new) == ("polite@1", False)
    assert stored_ids(llama.repository) == before
    another = fine_tuned(llama.base, llama.base.parent / "another", seed=5)
    manifest, new, _ = import_vector(llama.repository, "polite", another)
    assert (manifest.label, new) == ("polite@2", True)


def test_the_same_tensors_for_another_behavior(llama: Case) -> None:
    with pytest.raises(PersonaError, match="are stored as `polite@1`") as caught:
        import_vector(llama.repository, "rude", llama.tuned)
    assert "persona add polite@1" in caught.value.hint


def nothing_new(case: Case, path: Path, error: type[PersonaError], message: str, hint: str) -> None:
    """Refused, and neither a manifest nor a file more than before."""
    before = [item.id for item in case.repository.manifests()], stored_ids(case.repository)
    operations = len(case.repository.operations())
    with pytest.raises(error, match=message) as caught:
        import_vector(case.repository, "rude", path)
    assert hint in caught.value.hint
    assert ([item.id for item in case.repository.manifests()], stored_ids(case.repository)) == before
    assert len(case.repository.operations()) == operations
    assert list(case.repository.root.rglob(".tmp-*")) == []


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


NORM = "model.norm.weight"


def test_wrong_checkpoints_leave_nothing(llama: Case, tmp_path: Path) -> None:
    def copy() -> Path:
        target = tmp_path / "wrong"
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(llama.tuned, target))

    nothing_new(
        llama,
        edit(copy(), lambda tensors: tensors.update({NORM: torch.ones(31)})),
        IncompatibleError,
        rf"`{NORM}` has the shape \[31\]",
        "another size of model",
    )
    nothing_new(
        llama,
        edit(copy(), lambda tensors: tensors.pop(NORM)),
        IncompatibleError,
        rf"1 tensor \(`{NORM}`\) missing",
        "base's own tensor names",
    )
    nothing_new(
        llama,
        edit(copy(), lambda tensors: tensors.update({"extra": torch.ones(1)})),
        IncompatibleError,
        r"1 tensor \(`extra`\) too many",
        "base's own tensor names",
    )
    nothing_new(
        llama,
        edit(copy(), lambda tensors: tensors[NORM].fill_(float("nan"))),
        IncompatibleError,
        f"`{NORM}` has 32 NaN or infinite values",
        "earlier checkpoint",
    )
    path = copy() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    nothing_new(llama, path.parent, CorruptError, "the file has 5000", "fetch or rebuild")
    nothing_new(llama, tmp_path / "gone", NotFoundError, "the model folder .* is not there", "")
    with pytest.raises(UsageError, match="`Rude One` cannot be a behavior's name"):
        import_vector(llama.repository, "Rude One", llama.tuned)


def test_a_base_that_was_replaced(llama: Case) -> None:
    edit(llama.base, lambda tensors: tensors[NORM].add_(1))
    nothing_new(llama, llama.tuned, IncompatibleError, "this repository is made for", "put the original base back")


def test_an_adapter_through_the_command_line(llama: Case, tmp_path: Path) -> None:
    """Kept low-rank, added beside a dense vector, layers respected."""
    import transformers
    from peft import LoraConfig, get_peft_model

    model = transformers.AutoModelForCausalLM.from_pretrained(llama.base, dtype=torch.bfloat16)
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    root = str(llama.repository.root)
    code, out, err = run_persona("import", "brief", str(tmp_path / "lora"), "-C", root, "--json")
    assert code == 0, err
    found = json.loads(out)
    vector = found.get("data", found)["vector"]
    assert (vector["encoding"], vector["making"]["how"], len(vector["tensors"])) == ("low-rank", "import-lora", 6)
    for arguments in (["polite", "--scale", "0.5"], ["brief", "--scale", "1", "--layers", "1-1"]):
        code, _, err = run_persona("add", *arguments, "-C", root)
        assert code == 0, err
    both = llama.built()
    remove(llama.repository, "brief")
    alone = llama.built()
    differing = {name for name in both if not torch.equal(both[name], alone[name])}
    assert differing == {"model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"}
