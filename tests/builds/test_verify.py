from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from personality.builds.build import BuildRecord, build
from personality.builds.comparison import agreement, greatest_ulps, log_probabilities, probe_tokens
from personality.builds.verify import verify_folder, verify_repository
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import digest_file
from personality.manifests.version import Version
from personality.versions.changes import add
from personality.versions.history import History
from tests.conftest import fine_tuned, run_persona, tiny_checkpoint

NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verify")
    base = tiny_checkpoint("llama", root / "repository/base")
    tuned = fine_tuned(base, root / "tuned")
    for arguments in (["init", "--base", "base"], ["import", "polite", str(tuned)]):
        code, _, err = run_persona(*arguments, cwd=root / "repository")
        assert code == 0, err
    return root / "repository"


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Repository:
    repository = Repository(Path(shutil.copytree(template, tmp_path / "repository")))
    add(repository, VectorLabel("polite"), 0.6)
    return repository


@pytest.fixture
def version(repository: Repository) -> Version:
    return History(repository).head()


@pytest.fixture
def built(repository: Repository, version: Version) -> Path:
    return build(repository, version).path


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object], *, record: str = "mend") -> None:
    """Change a build's tensors; `mend` its record to fit, `remove` it, or `leave` it."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    note = folder / BuildRecord.file_name
    if record == "mend":
        data = json.loads(note.read_text())
        data["files"]["model.safetensors"] = digest_file(path)
        note.write_text(json.dumps(data))
    elif record == "remove":
        note.unlink()


def nudge(tensor: Tensor, units: int) -> None:
    tensor.view(torch.int16)[3] += units


def test_a_build_as_written(repository: Repository, version: Version, built: Path) -> None:
    finding = verify_folder(repository, version, built)
    assert (finding.status, finding.good) == ("ok", True)
    assert finding.detail == "all 30 tensors agree bit for bit with v2"


@pytest.mark.parametrize("record", ["mend", "remove"])
@pytest.mark.parametrize("units", [1, -1])
def test_one_unit_in_the_last_place(
    repository: Repository, version: Version, built: Path, record: str, units: int
) -> None:
    edit(built, lambda tensors: nudge(tensors[NORM], units), record=record)
    finding = verify_folder(repository, version, built)
    assert (finding.status, finding.good) == ("within-tolerance", True)
    assert f"1 tensor (`{NORM}`) differ by up to 1 units in the last place" in finding.detail


def test_the_sign_of_zero_is_no_bit_for_bit_agreement(repository: Repository, tmp_path: Path) -> None:
    base = repository.root / "base"
    edit(base, lambda tensors: tensors[NORM].__setitem__(0, 0.0), record="leave")
    code, _, err = run_persona("init", str(tmp_path / "zero"), "--base", str(base))
    assert code == 0, err
    zero = Repository(tmp_path / "zero")
    head = History(zero).head()
    folder = build(zero, head).path
    assert verify_folder(zero, head, folder).status == "ok"
    edit(folder, lambda tensors: tensors[NORM].__setitem__(0, -0.0))
    finding = verify_folder(zero, head, folder)
    assert finding.status == "within-tolerance"
    assert NORM in finding.detail


def test_two_units_are_different(repository: Repository, version: Version, built: Path) -> None:
    edit(built, lambda tensors: nudge(tensors[NORM], 2))
    finding = verify_folder(repository, version, built)
    assert (finding.status, finding.good) == ("different", False)
    assert "by up to 2 units" in finding.detail
    assert "export v2 again" in finding.hint


def test_another_version_is_different(repository: Repository, version: Version, built: Path) -> None:
    add(repository, VectorLabel("polite"), 0.7)
    finding = verify_folder(repository, History(repository).head(), built)
    assert finding.status == "different"
    assert verify_folder(repository, version, built).status == "ok"


def test_names_shapes_and_dtypes(repository: Repository, version: Version, built: Path) -> None:
    edit(built, lambda tensors: tensors.update({NORM: tensors[NORM].float()}))
    assert f"`{NORM}` is F32 [32], the version has BF16 [32]" in verify_folder(repository, version, built).detail
    edit(built, lambda tensors: tensors.update({NORM: tensors[NORM][:5].bfloat16()}))
    assert f"`{NORM}` is BF16 [5]" in verify_folder(repository, version, built).detail
    edit(built, lambda tensors: tensors.update({"new": tensors.pop(NORM)}))
    finding = verify_folder(repository, version, built)
    assert finding.status == "different"
    assert finding.detail == f"1 tensor (`{NORM}`) missing, 1 tensor (`new`) too many"


def test_not_what_was_written_is_corrupt(repository: Repository, version: Version, built: Path) -> None:
    edit(built, lambda tensors: nudge(tensors[NORM], 1), record="leave")
    finding = verify_folder(repository, version, built)
    assert (finding.status, finding.good) == ("corrupt", False)
    assert finding.detail == "model.safetensors is not what was written"
    assert finding.hint
    (built / "model.safetensors").unlink()
    assert verify_folder(repository, version, built).detail == "model.safetensors is missing"


def test_a_truncated_file_without_a_record_is_corrupt(repository: Repository, version: Version, built: Path) -> None:
    (built / BuildRecord.file_name).unlink()
    path = built / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    finding = verify_folder(repository, version, built)
    assert finding.status == "corrupt"
    assert "is not a whole safetensors file" in finding.detail


def test_no_folder(repository: Repository, version: Version, tmp_path: Path) -> None:
    finding = verify_folder(repository, version, tmp_path / "gone")
    assert (finding.status, finding.good) == ("missing", False)
    assert "persona build v2" in finding.hint


def statuses(repository: Repository) -> dict[str, str]:
    return {finding.what: finding.status for finding in verify_repository(repository)}


def test_the_whole_repository(repository: Repository, built: Path) -> None:
    assert statuses(repository) == {
        "base": "ok",
        "versions": "ok",
        "operation log": "ok",
        "polite@1": "ok",
        f"build {built.name}": "ok",
    }
    code, _, _ = run_persona("verify", "-C", str(repository.root))
    assert code == 0


def test_a_flipped_bit_anywhere_is_found(repository: Repository, built: Path) -> None:
    vector = repository.vector_path(repository.manifests()[0].id)
    for path, what in (
        (vector, "polite@1"),
        (built / "model.safetensors", f"build {built.name}"),
        (repository.root / "base/model.safetensors", "base"),
    ):
        whole = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert [name for name, status in statuses(repository).items() if status != "ok"] == [what]
        code, _, _ = run_persona("verify", "-C", str(repository.root))
        assert code == 3
        path.write_bytes(whole)
    assert set(statuses(repository).values()) == {"ok"}


def test_a_missing_vector(repository: Repository) -> None:
    repository.vector_path(repository.manifests()[0].id).unlink()
    assert statuses(repository)["polite@1"] == "missing"


FLOATS = {
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float64: torch.int64,
}


@pytest.mark.parametrize("dtype", FLOATS)
def test_units_in_the_last_place(dtype: torch.dtype) -> None:
    one = torch.ones(4, dtype=dtype)
    above = one.clone()
    above.view(FLOATS[dtype])[2] += 5
    assert greatest_ulps(one, above) == greatest_ulps(above, one) == 5
    assert greatest_ulps(one, one) == 0
    tiny = torch.zeros(1, dtype=dtype)
    tiny.view(FLOATS[dtype])[0] = 1  # the smallest positive number
    assert greatest_ulps(tiny, -tiny) == 2
    assert greatest_ulps(torch.zeros(1, dtype=dtype), -torch.zeros(1, dtype=dtype)) == 0
    assert greatest_ulps(torch.zeros(0, dtype=dtype), torch.zeros(0, dtype=dtype)) == 0


@given(first=st.floats(allow_nan=False), second=st.floats(allow_nan=False))
def test_units_of_float64_never_wrap_around(first: float, second: float) -> None:
    found = greatest_ulps(*[torch.tensor([value], dtype=torch.float64) for value in (first, second)])
    assert (found == 0) == (first == second)
    if found == 1:
        assert math.nextafter(first, second) == second


def test_two_far_apart_in_float64() -> None:
    assert greatest_ulps(torch.tensor([2.0], dtype=torch.float64), torch.tensor([-2.0], dtype=torch.float64)) > 2**60


def test_agreement() -> None:
    first = torch.tensor([[0.0, -1.0], [-2.0, -3.0]]).reshape(1, 2, 2)
    second = torch.tensor([[-0.5, -1.0], [-3.0, -2.5]]).reshape(1, 2, 2)
    found = agreement(first, second)
    assert (found.greatest_difference, found.greedy, found.positions) == (1.0, 0.5, 2)
    assert agreement(first, second.fill_(float("nan"))).greatest_difference == float("inf")


def test_probe_tokens_are_always_the_same() -> None:
    assert torch.equal(probe_tokens(97), probe_tokens(97))
    assert probe_tokens(97).shape == (4, 32)
    assert int(probe_tokens(97).max()) < 97


def test_log_probabilities_sum_to_one(template: Path) -> None:
    from personality.model import load_model

    found = log_probabilities(load_model(template / "base"), probe_tokens(97))
    assert found.shape == (4, 32, 97)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(4, 32))
