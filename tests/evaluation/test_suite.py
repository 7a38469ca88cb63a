from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from personality.evaluation.suite import read_suite, suite_digest
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.errors import CorruptError, DataError, NotFoundError, PersonaError
from personality.manifests.personality_record import Composition
from personality.manifests.repository import Repository
from personality.versions.changes import initialize

ROW: dict[str, Any] = {"prompt": [{"role": "user", "content": "Rename it."}], "pass": "^Okay"}
CHOSEN = [{"role": "assistant", "content": "Okay."}]
PROBE = '[[probes]]\nname = "accept"\nfile = "rows.jsonl"\n'


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    base = BaseIdentity(source="base", fingerprint="b" * 64)
    return initialize(tmp_path / "repo", base, Composition(), {})


def write(repository: Repository, *lines: object, probe: str = PROBE) -> None:
    (repository.root / "behaviors/warm.toml").write_text(probe)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    (repository.root / "behaviors/rows.jsonl").write_text(text + "\n", encoding="utf-8")


def test_a_suite_is_read_whole(repository: Repository) -> None:
    separator = {**ROW, "prompt": [{"role": "user", "content": "one\u2028two\x85three"}]}
    write(
        repository,
        {**ROW, "chosen": CHOSEN, "rejected": CHOSEN},
        "",
        separator,
        probe=PROBE + 'side = "accept"\nyes = ["Okay", "Sure"]\nno = ["No"]\n',
    )
    (repository.root / "suites").mkdir()
    (repository.root / "suites/general.toml").write_text('[[probes]]\nname = "sums"\nfile = "sums.jsonl"\n')
    (repository.root / "suites/sums.jsonl").write_text(json.dumps(ROW) + "\r\n" + json.dumps(ROW) + "\r\n")
    own, general = read_suite(repository)
    assert (own.name, own.side, own.yes, own.no) == ("warm.accept", "accept", ("Okay", "Sure"), ("No",))
    assert len(own.rows) == 2
    assert own.rows[0].chosen[0].content == "Okay."
    assert own.rows[1].prompt[0].content == "one\u2028two\x85three"
    assert (general.name, len(general.rows)) == ("general.sums", 2)
    assert [len(probe.rows) for probe in read_suite(repository, rows=1)] == [1, 1]
    assert [probe.name for probe in read_suite(repository, [])] == ["general.sums"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": [', "not JSON"),
        ("[]", "Input should be a valid dictionary"),
        ({"prompt": ROW["prompt"]}, "passes: Field required"),
        ({**ROW, "mood": 1}, "mood: Extra inputs"),
        ({**ROW, "prompt": "Rename it."}, "prompt"),
        ({**ROW, "prompt": []}, "needs a prompt"),
        ({**ROW, "prompt": [{"role": "user"}]}, "prompt.0.content: Field required"),
        ({**ROW, "pass": "(["}, "`pass` is not a regular expression"),
        ({**ROW, "chosen": CHOSEN}, "both `chosen` and `rejected` or neither"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(repository: Repository, line: object, words: str) -> None:
    write(repository, ROW, "", line)
    with pytest.raises(DataError) as caught:
        read_suite(repository)
    assert "behaviors/rows.jsonl:3: " in caught.value.message
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("openings", "words"),
    [
        ('yes = ["Okay"]\nno = ["Okay, but"]', "the opening 'Okay' begins 'Okay, but'"),
        ('yes = ["Okay, I", "Okay"]\nno = ["No"]', "the opening 'Okay' begins 'Okay, I'"),
        ('yes = ["a"]\nno = ["a"]', "the opening 'a' begins 'a'"),
        ('yes = [""]\nno = ["No"]', "the opening '' begins 'No'"),
        ('yes = ["Okay"]', "only one of `yes` and `no`"),
        ('no = ["Okay"]', "only one of `yes` and `no`"),
    ],
)
def test_openings_that_cannot_be_told_apart(repository: Repository, openings: str, words: str) -> None:
    write(repository, ROW, probe=PROBE + openings + "\n")
    with pytest.raises(DataError) as caught:
        read_suite(repository)
    assert words in caught.value.message
    assert "`warm.accept`" in caught.value.message
    assert "behaviors/warm.toml" in caught.value.hint


def test_files_that_are_not_there_or_not_text(repository: Repository) -> None:
    write(repository, ROW)
    path = repository.root / "behaviors/rows.jsonl"
    path.write_text("\n\n")
    with pytest.raises(DataError, match="has no rows"):
        read_suite(repository)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match=r"rows\.jsonl is not UTF-8"):
        read_suite(repository)
    path.unlink()
    with pytest.raises(NotFoundError, match=r"the probe `warm\.accept` needs .*rows\.jsonl"):
        read_suite(repository)
    with pytest.raises(NotFoundError, match=r"there is no behaviors/mood\.toml"):
        read_suite(repository, ["mood"])


@pytest.mark.parametrize("file", ["../../secret.jsonl", "/etc/hostname", "link.jsonl"])
def test_a_probe_reads_nothing_outside_its_folder(repository: Repository, file: str) -> None:
    write(repository, ROW, probe=PROBE.replace("rows.jsonl", file))
    (repository.root.parent / "secret.jsonl").write_text(json.dumps(ROW))
    (repository.root / "behaviors/link.jsonl").symlink_to("../../secret.jsonl")
    with pytest.raises(CorruptError, match="leads out of"):
        read_suite(repository)


def test_the_general_suite_is_checked_too(repository: Repository) -> None:
    (repository.root / "suites").mkdir()
    (repository.root / "suites/general.toml").write_text("[[probes]]\nname = 1\n")
    with pytest.raises(PersonaError, match=r"suites/general\.toml: probes\.0"):
        read_suite(repository)


def test_everything_that_is_asked_enters_the_digest(repository: Repository) -> None:
    digests = set()
    for rows, probe in (
        ([ROW], PROBE),
        ([ROW, ROW], PROBE),
        ([{**ROW, "pass": "^Sure"}], PROBE),
        ([{**ROW, "chosen": CHOSEN, "rejected": CHOSEN}], PROBE),
        ([ROW], PROBE + 'yes = ["Okay"]\nno = ["No"]\n'),
        ([ROW], PROBE + 'side = "accept"\n'),
        ([ROW], PROBE.replace("accept", "other")),
    ):
        write(repository, *rows, probe=probe)
        digests.add(suite_digest(read_suite(repository)))
        digests.add(suite_digest(read_suite(repository)))
    assert len(digests) == 7
