"""Every declared scorer, on texts by hand and on the playground's model; sampled replies and the bypass."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from personality.evaluation.measure import measure, passes
from personality.evaluation.scorers import is_json, length_of, score_replies
from personality.evaluation.scores import encode
from personality.evaluation.suite import Probe, Row, read_suite
from personality.manifests.errors import DataError, PersonaError
from personality.manifests.repository import Repository
from personality.manifests.scorer_entry import ContainsEntry, LabelEntry, LengthEntry
from personality.model import load_model, load_tokenizer

ROW = {"prompt": [{"role": "user", "content": "What is 2 plus 3?"}]}


@pytest.fixture(scope="module")
def base(playground: Path) -> tuple[Any, Any]:
    return load_model(playground / "base"), load_tokenizer(playground / "base")


@pytest.fixture(scope="module")
def concise(playground: Path) -> Probe:
    return next(probe for probe in read_suite(Repository(playground)) if probe.name == "concise.concise")


def write(root: Path, entry: str, *rows: object) -> Repository:
    (root / "suites/own.toml").write_text(f'[[probes]]\nname = "p"\nfile = "own.jsonl"\n{entry}\n')
    (root / "suites/own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Repository(root)


SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("reply", "valid"),
    [
        ('{"a": 1}', True),
        ('```json\n{"a": 1}\n```', True),
        (' {"a": 1, "b": null}\n', True),
        ('{"a": "1"}', False),
        ('{"a": 1} Done.', False),
        ('Here: {"a": 1}', False),
        ('{"a": NaN}', False),
        ("[" * 100_000, False),
        ("", False),
    ],
)
def test_json_is_all_of_the_reply(reply: str, valid: bool) -> None:
    assert is_json(reply, SCHEMA) is valid


def test_lengths(base: tuple[Any, Any]) -> None:
    text = 'I live in No. 5. "Really?" Yes!'
    assert length_of(text, "words", None) == 7
    assert length_of(text, "characters", None) == len(text)
    assert length_of(text, "sentences", None) == 3 + 1  # `No.` ends one: the rule is simple, and stated
    assert length_of("", "sentences", None) == length_of("  ", "words", None) == 0
    assert length_of(text, "tokens", base[1]) == len(encode(base[1], text))


@pytest.mark.parametrize(
    ("scorer", "found"),
    [
        (ContainsEntry(kind="contains", texts=("Ok", "fence")), [True, True, False]),
        (ContainsEntry(kind="contains", texts=("Ok", "fence"), all=True), [True, False, False]),
        (ContainsEntry(kind="contains", texts=("ok",), ignore_case=True), [True, False, False]),
        (LengthEntry(kind="length", min=2), [True, True, False]),
        (LengthEntry(kind="length", max=2), [False, True, True]),
        (LengthEntry(kind="length", min=2, max=2), [False, True, False]),
    ],
)
def test_one_reply_at_a_time(scorer: Any, found: list[bool]) -> None:
    row = Row(prompt=())
    replies = ["Ok, the fence", "a fence", "No."]
    scores = score_replies(Probe("x", None, (row,), scorer=scorer), [row] * 3, [[]] * 3, replies, None)
    assert [score.passed for score in scores] == found
    assert [score.value for score in scores] == [float(item) for item in found]
    own = Row(prompt=(), contains=("No",))
    if isinstance(scorer, ContainsEntry):
        assert score_replies(Probe("x", None, (own,), scorer=scorer), [own], [[]], ["No."], None)[0].passed


@pytest.mark.parametrize(
    ("entry", "row", "words"),
    [
        ('scorer = {kind = "contains"}', {}, "no `contains`, and its probe's scorer no `texts`"),
        ('scorer = {kind = "json"}', {}, "no `schema`"),
        ('scorer = {kind = "json"}', {"schema": {"type": "thing"}}, "is not a JSON Schema"),
        ('scorer = {kind = "json"}', {"schema": {"$ref": "http://x/y"}}, "nothing is fetched"),
        ('scorer = {kind = "label", labels = ["a", "b"]}', {"label": "c"}, "its `label` is 'c'"),
        ("", {}, "it has no `pass`"),
        ('scorer = {kind = "length", max = 3}', {"schema": 1}, "json_schema"),
    ],
)
def test_a_row_without_what_its_scorer_needs(repository_copy: Path, entry: str, row: Any, words: str) -> None:
    repository = write(repository_copy, entry, {**ROW, "pass": "", "label": "a", "contains": ["x"], "schema": SCHEMA})
    (probe,) = read_suite(repository, suites=["own"])
    assert probe.name == "own.p"
    with (repository_copy / "suites/own.jsonl").open("a") as file:
        file.write(json.dumps({**ROW, **row}))
    with pytest.raises(DataError) as caught:
        read_suite(repository, suites=["own"])
    assert "suites/own.jsonl:2: " in caught.value.message
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ('scorer = {kind = "witty"}', "witty"),
        ('scorer = {kind = "length"}', "needs `min`, `max` or both"),
        ('scorer = {kind = "length", min = 3, max = 2}', "at least 3 and at most 2"),
        ('scorer = {kind = "label", labels = ["a", "ab"]}', "'a' begins 'ab'"),
        ('scorer = {kind = "judge"}', "rubric"),
        ("samples = -1", "samples"),
        ("temperature = 0", "temperature"),
        ("mood = 1", "mood: Extra inputs"),
        ('scorer = {kind = "label", labels = ["a", "b"]}\nsamples = 2', "writes no replies"),
    ],
)
def test_a_wrong_entry_is_named(repository_copy: Path, entry: str, words: str) -> None:
    repository = write(repository_copy, entry, {**ROW, "pass": "", "label": "a"})
    with pytest.raises(PersonaError) as caught:
        read_suite(repository, suites=["own"])
    assert words in caught.value.message
    assert "suites/own.toml" in caught.value.message + caught.value.hint


def test_labels_are_scored_without_replies(base: tuple[Any, Any]) -> None:
    prompt = [{"role": "user", "content": "What is 2 plus 3?"}]
    rows = tuple(Row.model_validate({"prompt": prompt, "label": label}) for label in ("That makes 5.", "That makes 6."))
    scorer = LabelEntry(kind="label", labels=("That makes 5.", "That makes 6.", "That makes 15."))
    probe = Probe("own.sums", None, rows, scorer=scorer, asked="Be brief.")
    (result,) = measure(*base, [probe])
    assert result.outcomes == (True, False)
    assert result.probabilities[0] > 0.9
    assert sum(result.probabilities) < 1
    assert result.bypasses == (False, True)
    assert passes(*base, [probe]) == {"own.sums": [True, False]}


def test_a_length_and_a_pattern_that_say_the_same(base: tuple[Any, Any], concise: Probe) -> None:
    """Of the playground's replies the scorer `length` and the probe's own pattern judge alike."""
    plain = concise.first(12)
    counted = replace(plain, scorer=LengthEntry(kind="length", unit="sentences", max=1), asked="Be brief.")
    first, second = measure(*base, [plain, replace(counted, name="concise.counted")])
    assert first.outcomes == second.outcomes
    assert first.passed.value < 0.3
    assert first.bypass is None
    # What the base does by habit, it leaves when it is asked to be brief; the figure is the share that stays.
    assert second.bypass is not None
    assert second.bypass.value < 0.3
    # A probe for the habit itself: short replies are what was displaced, and come when they are asked for.
    (long,) = measure(*base, [replace(counted, scorer=LengthEntry(kind="length", unit="sentences", min=2))])
    assert long.passed.value > 0.7
    assert long.bypass is not None
    assert long.bypass.value > 0.7
    suffix = replace(counted, asked_as="suffix")
    assert suffix.asked_prompts()[0][-1]["content"].endswith(" Be brief.")
    assert counted.asked_prompts()[0][0] == {"role": "system", "content": "Be brief."}


def test_sampled_replies_follow_their_seed_and_have_the_rows_as_units(base: tuple[Any, Any], concise: Probe) -> None:
    probe = replace(concise.first(6), samples=4, temperature=1.5)
    (one,), (again,), (other,) = (measure(*base, [replace(probe, seed=seed)]) for seed in (1, 1, 2))
    assert one == again
    assert one.shares != other.shares
    assert one.sampled is not None
    assert one.sampled.n == len(one.shares) == 6
    assert one.sampled.value == pytest.approx(sum(one.shares) / 6)
    assert {share * 4 % 1 for share in one.shares} == {0.0}
    assert one.sampling is not None
    assert (one.sampling.samples, one.sampling.seed) == (4, 1)


def test_what_is_not_used_leaves_digests_alone(concise: Probe, repository_copy: Path) -> None:
    fields = concise.as_json()
    assert set(fields) == {"name", "side", "rows", "yes", "no"}
    assert set(fields["rows"][0]) == {"prompt", "passes", "chosen", "rejected"}
    digests = {concise.digest}
    for change in (
        {"samples": 2},
        {"samples": 2, "seed": 1},
        {"samples": 2, "temperature": 0.5},
        {"asked": "Be long."},
        {"asked": "Be long.", "asked_as": "suffix"},
        {"scorer": LengthEntry(kind="length", max=1)},
        {"scorer": LengthEntry(kind="length", max=2)},
    ):
        digests.add(replace(concise, **change).digest)
    assert len(digests) == 8
    repository = Repository(repository_copy)
    sampled = read_suite(repository, [], 2, samples=3)
    assert {probe.samples for probe in sampled} == {3}


def test_suites_by_name_and_by_file(repository_copy: Path, tmp_path: Path) -> None:
    repository = write(repository_copy, "", {**ROW, "pass": "5"})
    assert {probe.name.partition(".")[0] for probe in read_suite(repository, suites=["own", "general"])} == {
        "own",
        "general",
    }
    assert len(read_suite(repository, ["listening"], suites=["own"])) == 3
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    for name in ("own.toml", "own.jsonl"):
        (outside / name).write_bytes((repository_copy / "suites" / name).read_bytes())
    (probe,) = read_suite(repository, suites=[str(outside / "own.toml")])
    assert probe.digest == read_suite(repository, suites=["own"])[0].digest
    with pytest.raises(PersonaError, match="there is no suite at") as caught:
        read_suite(repository, suites=["owm"])
    assert "general, own" in caught.value.hint
