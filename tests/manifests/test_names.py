from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality.manifests.errors import CorruptError, UsageError
from personality.manifests.names import (
    VectorLabel,
    check_behavior_name,
    check_tag_name,
    did_you_mean,
    inside,
    is_id_prefix,
    version_number,
)

RESERVED = ("base", "composition", "general", "head")
NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,20}", fullmatch=True).filter(
    lambda name: name not in RESERVED and version_number(name) is None
)


@given(NAMES, st.integers(1, 10**6), st.from_regex(r"[0-9a-f]{4,12}", fullmatch=True))
def test_labels_round_trip(name: str, number: int, prefix: str) -> None:
    for label in (VectorLabel(name), VectorLabel(name, number), VectorLabel(name, number, prefix)):
        assert VectorLabel.parse(str(label)) == label


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@1",
        "a@",
        "a@0",
        "a@-1",
        "a@x",
        "a@1:",
        "a@1:abc",
        "a@1:XYZW",
        "A",
        "a b",
        "../a",
        "a/b",
        "a@1@2",
        "1a",
        "ä",
    ],
)
def test_what_is_no_label(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        VectorLabel.parse(text)
    assert "`" in caught.value.hint


@pytest.mark.parametrize("name", ["", "Loud", "-x", "a.b", "a/b", "..", "x" * 64, "tab\t", "a\n"])
def test_names_that_no_behavior_may_bear(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a behavior's name"):
        check_behavior_name(name)
    assert check_behavior_name("x" * 63) == "x" * 63


@pytest.mark.parametrize("name", ["", "v7", "base", "head", "abcd", "deadbeef", "1st", "a/b", "a b", "..", "x" * 64])
def test_names_that_no_tag_may_bear(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a tag"):
        check_tag_name(name)


@pytest.mark.parametrize("name", ["stable", "v7.1", "Release-2", "abc", "vv7"])
def test_names_that_a_tag_may_bear(name: str) -> None:
    assert check_tag_name(name) == name


def test_version_labels_and_ids() -> None:
    assert version_number("v12") == 12
    assert version_number("v1.2") is None
    assert version_number("12") is None
    assert is_id_prefix("abcd")
    assert not is_id_prefix("abc")
    assert not is_id_prefix("abcx")


def test_did_you_mean() -> None:
    known = ["listening", "concise"]
    assert did_you_mean("lisening", known) == "did you mean `listening`?"
    assert did_you_mean("zzzz", known) == "there is: `concise`, `listening`"
    assert did_you_mean("x", []) == ""


@pytest.mark.parametrize("relative", ["/etc/passwd", "../secret", "a/../../secret", "..", "a/.."])
def test_paths_that_lead_out(tmp_path: Path, relative: str) -> None:
    with pytest.raises(CorruptError, match="leads out of"):
        inside(tmp_path / "root", relative)


def test_a_link_that_leads_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.jsonl").write_text("x")
    (root / "link").symlink_to(tmp_path)
    (root / "file.jsonl").symlink_to("../secret.jsonl")
    (root / "own").symlink_to(root)
    for relative in ("link/secret.jsonl", "file.jsonl"):
        with pytest.raises(CorruptError, match="leads out of"):
            inside(root, relative)
    assert inside(root, "own/file") == root / "own/file"


@given(st.lists(st.sampled_from(["a", "b", "..", ".", "", "c.txt", "/"]), min_size=1, max_size=6))
def test_what_is_inside_stays_inside(parts: list[str]) -> None:
    root = Path("/nowhere/root")
    try:
        found = inside(root, "/".join(parts))
    except CorruptError:
        return
    assert found.resolve().is_relative_to(root)


@pytest.mark.parametrize("name", ["base", "composition", "general", "head", "v4"])
def test_names_that_mean_something_else(name: str) -> None:
    with pytest.raises(UsageError, match="means something else here"):
        check_behavior_name(name)
