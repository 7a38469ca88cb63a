from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from personality.manifests.base_identity import BaseIdentity, Fingerprint
from personality.manifests.errors import CorruptError, NotFoundError, PersonaError, SchemaError
from personality.manifests.evaluation import Evaluation, Figure, ProbeResult
from personality.manifests.manifest import Making, Manifest, Rounding
from personality.manifests.operation import Change, Operation
from personality.manifests.personality_record import Personality
from personality.manifests.record import Record
from personality.manifests.version import Version

BASE = BaseIdentity(source="base", fingerprint="b" * 64)


def version() -> Version:
    return Version.make(number=1, parents=(), personality=Personality(base=BASE), message="the “base”", time="2026")


def manifest() -> Manifest:
    return Manifest(
        id="a" * 64,
        behavior="listening",
        number=1,
        encoding="delta",
        base=BASE,
        tensors={"w": "BF16 [2, 2]"},
        bytes=8,
        norm=0.1,
        making=Making(how="train", settings={"lr": 1e-05}),
        rounding=Rounding(share_changed=0.5, cosine=0.9),
        created="2026",
    )


def operation() -> Operation:
    return Operation(number=1, command="add", time="2026", changes=(Change(path="a", before=None, after="x"),))


def evaluation() -> Evaluation:
    figure = Figure(value=0.5, low=0.1, high=0.9, n=2)
    return Evaluation(
        id=Evaluation.key("p", {"torch": "2"}, "s", 0),
        version="v",
        personality="p",
        environment={"torch": "2"},
        suite="s",
        seed=0,
        results=(ProbeResult(probe="x", passed=figure, outcomes=(True, False)),),
        time="2026",
    )


MAKERS: list[Callable[[], Record]] = [version, manifest, operation, evaluation]


@pytest.mark.parametrize("make", MAKERS)
def test_round_trip(make: Callable[[], Record], tmp_path: Path) -> None:
    record = make()
    path = tmp_path / "record.json"
    path.write_bytes(record.to_bytes())
    assert type(record).read(path) == record
    assert record.to_bytes() == type(record).read(path).to_bytes()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) > len(record.as_json())  # one field a line
    top = [line.split('"')[1] for line in lines if line.startswith(' "')]
    assert top == sorted(top)


def test_a_manifest_from_before_there_were_residuals() -> None:
    data = manifest().as_json()
    del data["residual"]
    assert Manifest.from_bytes(json.dumps(data).encode(), "old.json") == manifest()


def broken(record: Record, how: str) -> bytes:
    data: dict[str, Any] = record.as_json()
    if how == "truncated":
        return record.to_bytes()[:-20]
    if how == "binary":
        return b"\xff\xfe\x00"
    if how == "list":
        return b"[]"
    if how == "other format":
        data["format"] = 2
    if how == "no format":
        del data["format"]
    if how == "extra field":
        data["mood"] = "good"
    if how == "missing field":
        del data["time" if "time" in data else "created"]
    return json.dumps(data).encode()


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("truncated", CorruptError, "not readable JSON"),
        ("binary", CorruptError, "not readable JSON"),
        ("list", SchemaError, "format None"),
        ("other format", SchemaError, "has format 2; this persona reads format 1"),
        ("no format", SchemaError, "format None"),
        ("extra field", CorruptError, "mood: Extra inputs are not permitted"),
        ("missing field", CorruptError, "Field required"),
    ],
)
@pytest.mark.parametrize("make", MAKERS)
def test_what_cannot_be_read_names_the_file(
    make: Callable[[], Record], how: str, error: type[PersonaError], words: str, tmp_path: Path
) -> None:
    record = make()
    path = tmp_path / "the-file.json"
    path.write_bytes(broken(record, how))
    with pytest.raises(error) as caught:
        type(record).read(path)
    assert str(path) in caught.value.message
    assert words in caught.value.message
    assert "`" in caught.value.hint


def test_no_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no version at"):
        Version.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("field", "value"), [("message", "another"), ("number", 2), ("time", "2027"), ("parents", ["c" * 64])]
)
def test_a_changed_version_is_corrupt(field: str, value: object, tmp_path: Path) -> None:
    data = version().as_json()
    data[field] = value
    path = tmp_path / "v.json"
    path.write_text(json.dumps(data))
    with pytest.raises(CorruptError, match=r"is not the digest of its fields.*it was changed") as caught:
        Version.read(path)
    assert str(path) in caught.value.message


def test_a_changed_scale_in_a_version_is_corrupt() -> None:
    data = version().as_json()
    data["personality"]["composition"]["density"] = 0.3
    with pytest.raises(CorruptError, match="it was changed"):
        Version.from_bytes(json.dumps(data).encode(), "v.json")


def test_an_evaluation_moved_to_another_suite_is_corrupt() -> None:
    data = evaluation().as_json()
    data["suite"] = "other"
    with pytest.raises(CorruptError, match="it was changed"):
        Evaluation.from_bytes(json.dumps(data).encode(), "e.json")


def test_results_are_found_by_probe() -> None:
    found = evaluation().result("x")
    assert found is not None
    assert found.passed.n == 2
    assert evaluation().result("y") is None


def test_records_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        version().message = "other"


def test_nan_in_a_record_is_corrupt() -> None:
    data = manifest().as_json()
    data["norm"] = float("nan")
    with pytest.raises(CorruptError, match="norm"):
        Manifest.from_bytes(json.dumps(data).encode(), "m.json")


def test_fingerprints_name_what_differs() -> None:
    one = Fingerprint(weights="w", config="c", tokenizer="t", chat_template="x")
    other = one.model_copy(update={"chat_template": "y", "weights": "v"})
    assert one.differences(one) == []
    assert one.differences(other) == ["weights", "chat template"]
    assert one.id != other.id
    assert str(BaseIdentity(source="base", fingerprint=one.id)) == f"base ({one.id[:12]})"
