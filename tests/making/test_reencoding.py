"""Imported, encoded, used, shown: the encodings through the command line, on real architectures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from personality.builds.build import build
from personality.composition.opening import base_of, composer_of
from personality.manifests.manifest import Manifest
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import Composition
from personality.manifests.repository import Repository
from personality.vectors.exact import ExactVector
from personality.vectors.task_vector import open_task_vector
from personality.vectors.tensors import matrix_shape
from personality.versions.changes import add, compose_by
from personality.versions.history import History
from personality.versions.recipe import find_vector, working_personality
from tests.adapters import random_adapter
from tests.conftest import ARCHITECTURES, fine_tuned, run_persona, tiny_checkpoint
from tests.vectors.encoded import same_bits, whole


def read(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    return found


def persona(*arguments: str) -> dict[str, Any]:
    code, out, err = run_persona(*arguments, "--json")
    assert code == 0, out + err
    data: dict[str, Any] = json.loads(out)["data"]
    return data


def refused(*arguments: str) -> tuple[int, str]:
    code, _, err = run_persona(*arguments)
    assert code != 0
    return code, err


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`polite@1` is the dense difference of a fine-tune."""
    root = tmp_path_factory.mktemp("reencoding")
    tiny_checkpoint("llama", root / "base")
    fine_tuned(root / "base", root / "tuned")
    persona("init", "--base", str(root / "base"), str(root / "repository"))
    persona("import", "polite", str(root / "tuned"), "-C", str(root / "repository"))
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "case")
    return tmp_path / "case"


def manifest(repository: Repository, label: str) -> Manifest:
    return find_vector(repository, VectorLabel.parse(label))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_fine_tune_comes_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    base = tiny_checkpoint(kind, tmp_path / "base", shard_size="40KB")
    tuned = fine_tuned(base, tmp_path / "tuned")
    # What a dense difference cannot carry: the sign of a zero, and a difference of more than 24 bits.
    (path,) = sorted(tuned.glob("*.safetensors"))[:1]
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    tensors[name].view(-1)[:3] = torch.tensor([-0.0, 2.0**-100, 3e38])
    save_file(tensors, path, {"format": "pt"})
    persona("init", "--base", str(base), str(tmp_path / "repository"))
    data = persona("import", "polite", str(tuned), "--encoding", "exact", "-C", str(tmp_path / "repository"))
    assert data["vector"]["encoding"] == "exact"
    assert data["vector"]["residual"] == {"whole": 0.0, "tensors": {}}
    assert data["vector"]["making"]["settings"] == {"encoding": "exact"}
    repository = Repository(tmp_path / "repository")
    vector = open_task_vector(repository, data["vector"]["id"], "polite@1", base=base_of(repository))
    assert isinstance(vector, ExactVector)
    wanted, old = read(tuned), read(base)
    assert set(vector.shapes) == {name for name in old if not same_bits(old[name], wanted[name])}
    for name, shape in vector.shapes.items():
        found = vector.restored_rows(name, 0, matrix_shape(shape)[0])
        assert same_bits(found.reshape(shape), wanted[name]), name


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_composition_of_the_same_values_is_the_same(root: Path, method: str) -> None:
    """Dense and exact say the same float32 numbers, so every recipe of them gives the same bits."""
    repository = Repository(root / "repository")
    exact = persona("encode", "polite", "--as", "exact", "-C", str(repository.root))["vector"]
    assert exact["residual"]["whole"] == 0.0
    dense = persona("encode", "polite@2", "--as", "delta", "-C", str(repository.root))
    assert not dense["new"]
    assert dense["vector"]["id"] == manifest(repository, "polite@1").id
    persona("import", "other", str(fine_tuned(root / "base", root / "other", seed=5)), "-C", str(repository.root))
    built = []
    for number in (1, 2):
        add(repository, VectorLabel("polite", number), 0.7)
        add(repository, VectorLabel("other", 1), -0.4)
        compose_by(repository, Composition(method="ties", density=0.3) if method == "ties" else Composition())
        built.append(read(build(repository, History(repository).head()).path))
    assert built[0].keys() == built[1].keys()
    assert all(same_bits(built[0][name], built[1][name]) for name in built[0])
    assert not all(same_bits(built[0][name], read(root / "base")[name]) for name in built[0])


@pytest.mark.parametrize("scope", ["vector", "tensor"])
def test_a_sparse_vector_composes_as_the_trimmed_one(root: Path, scope: Literal["vector", "tensor"]) -> None:
    """TIES of the dense vector and of the trimmed one agree, since zeros count where they are not stored."""
    repository = Repository(root / "repository")
    arguments = ("--as", "sparse", "--density", "0.3", "--trim-scope", scope, "-C", str(repository.root))
    trimmed = persona("encode", "polite", *arguments)["vector"]
    assert trimmed["encoding"] == "sparse"
    assert 0.2 < trimmed["residual"]["whole"] < 1
    assert trimmed["bytes"] < manifest(repository, "polite@1").bytes * 0.7
    assert trimmed["making"]["settings"] == {"encoding": "sparse", "density": 0.3, "trim_scope": scope}
    results = []
    for density in (0.3, 0.5):
        for number in (1, 2):
            add(repository, VectorLabel("polite", number), 0.7)
            compose_by(repository, Composition(method="ties", density=density, trim_scope=scope))
            composer = composer_of(repository, working_personality(repository))
            results.append({name: composer.tensor(name).clone() for name in composer.specs})
    dense, sparse, _, looser = results
    assert all(same_bits(dense[name], sparse[name]) for name in dense)
    # At a density above its own, trimming finds zeros enough to keep everything.
    assert all(same_bits(sparse[name], looser[name]) for name in dense)


def test_low_rank_is_recorded_with_what_it_lost(root: Path) -> None:
    repository = Repository(root / "repository")
    code, out, err = run_persona("encode", "polite@1", "--as", "low-rank", "--rank", "4", "-C", str(repository.root))
    assert code == 0, err
    found, old = manifest(repository, "polite@2"), manifest(repository, "polite@1")
    assert found.residual is not None
    assert 0 < found.residual.whole < 1
    assert "low-rank" in out
    assert "that have none are carried dense" in out
    assert f"residual {found.residual.whole:.3g} of the norm" in out
    assert found.lineage == (old.id,)
    assert found.making.how == "encode"
    assert found.making.source == "polite@1"
    assert found.tensors.keys() == old.tensors.keys()
    code, shown, _ = run_persona("show", "polite@2", "-C", str(repository.root))
    assert f"{found.residual.whole:.3g} of the norm" in shown
    assert "made from" in shown
    assert "encode polite@1" in shown
    code, listed, _ = run_persona("vectors", "-C", str(repository.root))
    assert f"{found.residual.whole:.2g}" in listed
    code, out, err = run_persona("verify", "-C", str(repository.root))
    assert code == 0, out + err
    # Composed, what it says is base + vector.
    vector = open_task_vector(repository, found.id, found.label)
    add(repository, VectorLabel("polite", 2), 1.0)
    composer = composer_of(repository, working_personality(repository))
    base = read(root / "base")
    for name in vector.shapes:
        wanted = (base[name].float() + whole(vector, name).float()).bfloat16()
        assert same_bits(composer.tensor(name), wanted), name
    dense = [name for name in composer.touched if len(composer.specs[name].shape) == 1]
    assert dense
    assert all(composer.factors(name) is None for name in dense)
    factored = next(name for name in composer.touched if len(composer.specs[name].shape) == 2)
    assert composer.factors(factored) is not None


def test_exact_of_a_trained_vector_is_the_build_at_scale_one(repository_copy: Path) -> None:
    """And what rounding loses of it is said."""
    repository = Repository(repository_copy)
    data = persona("encode", "listening@1", "--as", "exact", "-C", str(repository_copy))
    assert data["vector"]["residual"]["whole"] >= 0
    add(repository, VectorLabel("listening", 1), 1.0)
    built = read(build(repository, History(repository).head()).path)
    vector = open_task_vector(repository, data["vector"]["id"], "x", base=base_of(repository))
    assert isinstance(vector, ExactVector)
    for name, shape in vector.shapes.items():
        assert same_bits(vector.restored_rows(name, 0, matrix_shape(shape)[0]).reshape(shape), built[name])


def test_a_vector_of_another_base(root: Path) -> None:
    repository = Repository(root / "repository")
    old = manifest(repository, "polite@1")
    other = old.model_copy(update={"base": old.base.model_copy(update={"fingerprint": "0" * 64})})
    repository.manifest_path(old.id).write_bytes(other.to_bytes())
    code, err = refused("encode", "polite", "--as", "exact", "-C", str(repository.root))
    assert code == 1
    assert "`polite@1` was made for the base" in err


def test_undo_takes_an_encoding_back(root: Path) -> None:
    repository = Repository(root / "repository")
    persona("encode", "polite", "--as", "exact", "-C", str(repository.root))
    persona("undo", "-C", str(repository.root))
    assert [item.label for item in repository.manifests()] == ["polite@1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--as", "sparse", "--density", "0"], "a density is in (0, 1], got 0.0"),
        (["--as", "sparse", "--density", "nan"], "a density is in (0, 1], got nan"),
        (["--as", "sparse", "--rank", "4"], "a rank goes with the encoding `low-rank`"),
        (["--as", "exact", "--density", "0.2"], "a density goes with the encoding `sparse`"),
        (["--as", "low-rank"], "a rank goes with the encoding `low-rank`, and it needs one"),
        (["--as", "low-rank", "--rank", "0"], "a rank is at least 1"),
    ],
)
def test_settings_that_make_no_sense(made: Path, arguments: list[str], message: str) -> None:
    code, err = refused("encode", "polite", *arguments, "-C", str(made / "repository"))
    assert code == 2
    assert message in err
    assert "hint:" in err


def test_what_cannot_be_encoded(root: Path, tmp_path: Path) -> None:
    where = ("-C", str(root / "repository"))
    adapter = random_adapter(root / "base", tmp_path / "adapter", rank=2)
    code, err = refused("import", "calm", str(adapter), "--encoding", "exact", *where)
    assert code == 2
    assert "is kept as it is: `low-rank`, at its own rank" in err
    code, err = refused("import", "calm", str(root / "tuned"), "--density", "0.2", *where)
    assert code == 2
    assert "belong to an encoding" in err
    code, err = refused("encode", "loud", "--as", "exact", *where)
    assert "there is no" in err
    code, err = refused("import", "calm", str(root / "base"), "--encoding", "exact", *where)
    assert "holds exactly the base's weights" in err
