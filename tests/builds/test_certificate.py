"""What a version answers, and how an engine's answers are held against it."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import pytest
import torch

from personality.baking.bake import bake
from personality.builds.certificate import Certificate
from personality.builds.export import export
from personality.builds.reference import REPLY_TOKENS, Reference, Row, compare, probe_prompts, reference_of, rows_of
from personality.composition.opening import composer_of
from personality.manifests.errors import CorruptError, IncompatibleError, UsageError
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.manifests.version import Version
from personality.model import load_composed, load_tokenizer
from personality.serving.steering_table import STEERING_FILE, load
from personality.vectors.steering.hooks import steered
from personality.vectors.steering.injection import Injection
from personality.versions.changes import add
from personality.versions.history import History
from tests.conftest import run_persona
from tests.steering_fixtures import steer
from tests.tiny_chat import chat_base


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a vector that acts at the end of a prompt, and one that acts everywhere."""
    root = tmp_path_factory.mktemp("certificate")
    chat_base("llama", root / "base")
    assert run_persona("init", "--base", "base", cwd=root)[0] == 0
    repository = Repository(root)
    generator = torch.Generator().manual_seed(0)
    steer(repository, "brief", 1, torch.randn(32, generator=generator), "decision")
    steer(repository, "candid", 1, torch.randn(32, generator=generator), "all")
    return root


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Repository:
    return Repository(Path(shutil.copytree(template, tmp_path / "repository")))


def version_with(repository: Repository, *behaviors: str) -> Version:
    for behavior in behaviors:
        add(repository, VectorLabel(behavior), 0.5)
    return History(repository).head()


def test_what_a_version_answers_is_what_generate_gives(repository: Repository) -> None:
    composer = composer_of(repository, version_with(repository, "brief", "candid").personality)
    reference = reference_of(composer)
    model, tokenizer = load_composed(composer), load_tokenizer(composer.folder)
    assert len(reference.rows) == 6  # four of random tokens, two of text
    assert tokenizer.decode(reference.prompts[-1]).endswith("<|assistant|> ")
    for row in reference.rows:
        ids = torch.tensor([row.prompt])
        wanted = model.generate(
            ids, max_new_tokens=REPLY_TOKENS, min_new_tokens=REPLY_TOKENS, do_sample=False, eos_token_id=None
        )
        assert tuple(wanted[0, ids.shape[1] :].tolist()) == row.reply
        assert len(row.log_probabilities) == len(row.greedy) == len(row.margins) == len(row.prompt) - 1 + REPLY_TOKENS
        assert row.greedy[-REPLY_TOKENS:] == row.reply
        assert min(row.margins) >= 0
        with torch.inference_mode():
            first = model(ids).logits[0, 0].log_softmax(-1)
        assert row.log_probabilities[0] == pytest.approx(float(first[row.prompt[1]]), abs=1e-5)
    assert 1e-4 < reference.bfloat16_loss < 0.5
    assert reference.allowed("float32") == 1e-4
    assert reference.allowed("torch.bfloat16") == pytest.approx(2 * reference.bfloat16_loss)
    slack = reference.model_copy(update={"baking_loss": 0.5})
    assert slack.allowed("float32") == pytest.approx(0.5001)


def test_what_steers_a_reply_alone_is_seen_in_the_reply(repository: Repository) -> None:
    """Prompt tokens before the last are the same with and without; the reply is not."""
    version = version_with(repository, "brief")
    composer = composer_of(repository, version.personality)
    reference = reference_of(composer)
    without = rows_of(load_composed(composer.without_steering()), reference.prompts)
    assert compare(reference, without).greatest_difference > 0.01
    for wanted, got in zip(reference.rows, without, strict=True):
        inside = len(wanted.prompt) - 1
        assert wanted.log_probabilities[:inside] == pytest.approx(got.log_probabilities[:inside], abs=1e-5)


def row(log_probabilities: tuple[float, ...], greedy: tuple[int, ...], reply: tuple[int, ...] = (5, 6)) -> Row:
    return Row(prompt=(1, 2, 3), reply=reply, log_probabilities=log_probabilities, greedy=greedy, margins=(0.2,) * 4)


EXPECTED = row((-1.0, -2.0, -0.5, -0.6), (2, 4, 5, 6))


@pytest.mark.parametrize(
    ("found", "difference", "greedy", "positions"),
    [
        (EXPECTED, 0, 1, 4),
        (row((-1.0, -2.5, -0.5, -0.6), (2, 4, 5, 6)), 0.5, 1, 4),
        # Another most likely token is a difference of half of what the reference's was ahead, at least.
        (row((-1.0, -2.0, -0.5, -0.6), (2, 9, 5, 6)), 0.1, 0.75, 4),
        # A reply is compared up to where it turns off.
        (row((-1.0, -2.0, -0.5, -3.0), (2, 4, 9, 6), (9, 6)), 0.1, 2 / 3, 3),
        (row((-1.0, math.nan, -0.5, -0.6), (2, 4, 5, 6)), math.inf, 1, 4),
        (row((-1.0, -2.0, math.nan, -3.0), (2, 4, 9, 6), (9, 6)), math.inf, 2 / 3, 3),
    ],
)
def test_answers_beside_the_reference(found: Row, difference: float, greedy: float, positions: int) -> None:
    same = compare(Reference(rows=(EXPECTED,), bfloat16_loss=0.01), [found])
    assert same.greatest_difference == pytest.approx(difference)
    assert same.greedy == pytest.approx(greedy)
    assert same.positions == positions


def test_other_questions_are_no_answer() -> None:
    reference = Reference(rows=(EXPECTED,), bfloat16_loss=0.01)
    with pytest.raises(ValueError, match="other prompts or shorter replies"):
        compare(reference, [EXPECTED.model_copy(update={"prompt": (1, 2, 4)})])
    with pytest.raises(ValueError, match="other prompts or shorter replies"):
        compare(reference, [EXPECTED.model_copy(update={"log_probabilities": (-1.0,)})])


def test_a_base_without_tokenizer_is_asked_about_tokens_alone(repository: Repository) -> None:
    composer = composer_of(repository, History(repository).head().personality)
    assert len(probe_prompts(composer, 272)) == 6
    bare = repository.root / "bare"
    shutil.copytree(composer.folder, bare)
    for path in bare.glob("*token*"):
        path.unlink()
    composer.base.folder = bare
    assert len(probe_prompts(composer, 272)) == 4


def test_the_certificate_of_a_baked_folder(repository: Repository, tmp_path: Path) -> None:
    version = version_with(repository, "candid")
    done = export(repository, version, "vllm", tmp_path / "out", bake_unproven=True)
    certificate = Certificate.read(tmp_path / "out" / Certificate.file_name)
    assert certificate == done.certificate
    assert (certificate.version, certificate.label) == (version.id, version.label)
    assert certificate.base == repository.config().base.fingerprint
    assert certificate.personality == version.personality.id
    assert certificate.in_weights == ("candid@1 × 0.5, layer 1: baked by the route `mlp-bias`",)
    assert (certificate.needs_plugin, certificate.left_out, certificate.steering_file) == ((), (), "")
    (check,) = certificate.checks
    assert check.engine.startswith("transformers ")
    assert check.what == "the version"
    assert check.greatest_difference <= check.allowed
    assert "vLLM itself was not started" in certificate.not_verified[0]
    assert {"personality", "torch", "transformers", "cpu"} <= certificate.versions.keys()
    # A folder that is itself a base hands on no record.
    assert run_persona("init", "--base", str(tmp_path / "out"), str(tmp_path / "next"))[0] == 0
    following = Repository(tmp_path / "next")
    export(following, History(following).head(), "vllm", tmp_path / "again")
    assert Certificate.read(tmp_path / "again" / Certificate.file_name).version == History(following).head().id


def test_what_is_left_to_the_plugin(repository: Repository, tmp_path: Path) -> None:
    version = version_with(repository, "brief", "candid")
    done = export(repository, version, "vllm", tmp_path / "out", steering="plugin")
    certificate = done.certificate
    assert certificate.needs_plugin == ("brief@1 × 0.5, layer 1", "candid@1 × 0.5, layer 1")
    assert certificate.in_weights == ()
    assert certificate.steering_file == STEERING_FILE
    assert certificate.checks[0].what == "the version without its steering vectors"
    assert any("the plugin was not asked" in text for text in certificate.not_verified)
    # The weights are the base's, and the table has no name that engines would take for one of weights.
    assert (tmp_path / "out/config.json").read_bytes() == (repository.root / "base/config.json").read_bytes()
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == {"model.safetensors"}
    assert "**Left to the plugin for vLLM: brief@1" in (tmp_path / "out/README.md").read_text()
    # A second export finds nothing of the user's in the way, and verify knows the folder.
    with pytest.raises(Exception, match="holds an earlier export"):
        export(repository, version, "vllm", tmp_path / "out", steering="plugin")
    export(repository, version, "vllm", tmp_path / "out", steering="plugin", force=True)
    code, out, err = run_persona("verify", version.label, str(tmp_path / "out"), "-C", str(repository.root))
    assert code == 0, err
    assert "its steering vectors are not in it" in out


def test_the_plugin_adds_to_the_bit_what_hooks_add(repository: Repository, tmp_path: Path) -> None:
    """The table by itself steers a model without hooks to the same answers."""
    version = version_with(repository, "brief", "candid")
    done = export(repository, version, "vllm", tmp_path / "out", steering="plugin")
    table = load(tmp_path / "out" / STEERING_FILE)
    assert (table.version, table.label, table.positional) == (version.id, version.label, True)
    composer = composer_of(repository, version.personality)
    injections = [
        Injection(layer, rows[1] - rows[0], "decision", "add", label="decision")
        for layer, rows in enumerate(table.table)
        if bool(rows.any())
    ]
    everywhere = [
        Injection(layer, rows[0], "all", "add", label="all") for layer, rows in enumerate(table.table) if rows.any()
    ]
    model = load_composed(composer.without_steering())
    with steered(model, [*everywhere, *injections]):
        found = rows_of(model, done.certificate.reference.prompts)
    assert compare(done.certificate.reference, found).greatest_difference < 1e-5


def test_what_cannot_be_baked_names_the_plugin(repository: Repository, tmp_path: Path) -> None:
    version = version_with(repository, "brief")
    with pytest.raises(IncompatibleError, match="`brief@1` cannot be baked") as caught:
        export(repository, version, "vllm", tmp_path / "out")
    assert caught.value.hint.startswith("`--steering plugin` leaves it to a server with the plugin")
    with pytest.raises(IncompatibleError) as caught:
        export(repository, version, "hf", tmp_path / "out")
    assert caught.value.hint.startswith("`--to vllm --steering plugin`")


def test_the_plugin_is_not_named_where_it_cannot_help_either(repository: Repository, tmp_path: Path) -> None:
    steer(repository, "turned", 1, torch.ones(32), "all", mode="norm-preserving")
    version = version_with(repository, "turned")
    with pytest.raises(IncompatibleError, match="acts by `norm-preserving`") as caught:
        export(repository, version, "vllm", tmp_path / "out")
    assert "plugin" not in caught.value.hint
    with pytest.raises(IncompatibleError, match="norm-preserving"):
        export(repository, version, "vllm", tmp_path / "out", steering="plugin")


def test_options_that_do_not_go_together(repository: Repository, tmp_path: Path) -> None:
    version = version_with(repository, "candid")
    with pytest.raises(UsageError, match="leaves steering to a vLLM with the plugin"):
        export(repository, version, "hf", tmp_path / "out", steering="plugin")
    with pytest.raises(UsageError, match="bakes nothing"):
        export(repository, version, "vllm", tmp_path / "out", steering="plugin", route="mlp-bias")
    with pytest.raises(UsageError, match="has no steering vectors to bake"):
        export(repository, History(repository).find("v1"), "vllm", tmp_path / "out", route="mlp-bias")
    with pytest.raises(IncompatibleError, match="no-such-route"):
        export(repository, version, "vllm", tmp_path / "out", route="no-such-route", bake_unproven=True)
    assert not (tmp_path / "out").exists()


def test_a_route_that_transformers_cannot_read_needs_vllm(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from personality.builds import steering_part

    def unreadable(*arguments: object, **options: object) -> object:
        baked = bake(*arguments, **options)  # type: ignore[arg-type]
        baked.plan = dataclasses.replace(baked.plan, readable_by_transformers=False)
        return baked

    monkeypatch.setattr(steering_part, "bake", unreadable)
    version = version_with(repository, "candid")
    with pytest.raises(IncompatibleError, match="only vLLM can tell") as caught:
        export(repository, version, "vllm", tmp_path / "out", bake_unproven=True)
    assert "--verify" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_certificate_that_says_too_much(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"format": 1, "version": "v"}')
    with pytest.raises(CorruptError, match="is not a valid certificate"):
        Certificate.read(tmp_path / "c.json")
