from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from personality.manifests.errors import IncompatibleError, NotFoundError, PersonaError
from personality.serving.client import Client, ServerError
from personality.serving.deploy import DeployError, deploy
from personality.serving.deploying import deploy_version
from personality.serving.exports import export_path
from personality.serving.server_status import server_status
from tests.conftest import run_persona
from tests.serving.conftest import Versions, make_versions
from tests.serving.fake_vllm import FakeVllm

Start = Callable[..., FakeVllm]
WAYS = ["plugin", "reload"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a fake server on a folder; they end with the test."""
    running: list[FakeVllm] = []

    def run(folder: Path, way: str = "plugin") -> FakeVllm:
        server = FakeVllm(folder, plugin=way == "plugin", dev=way == "reload")
        running.append(server.__enter__())
        return server

    yield run
    for server in running:
        server.__exit__(None, None, None)


@pytest.mark.parametrize("way", WAYS)
def test_there_and_back(exported: Versions, start: Start, way: str) -> None:
    server = start(exported.folders["v1"], way)
    client = Client(server.url)
    there = deploy(client, exported.folders["v2"])
    assert there.verification.ok and there.verification.agreement.greedy == 1
    assert (there.before.version, there.before.way) == (exported.versions["v1"].id, way)
    assert there.sharp
    assert server.folder == exported.folders["v2"]
    back = deploy(client, exported.folders["v1"])
    assert back.before.version == exported.versions["v2"].id
    assert back.version == exported.versions["v1"].id
    assert not server.paused


def test_stock_vllm_is_paused_loaded_emptied_named_and_resumed(exported: Versions, start: Start) -> None:
    server = start(exported.folders["v1"], "reload")
    deploy(Client(server.url), exported.folders["v2"])
    name = exported.folders["v2"].name
    assert server.calls == ["/pause", f"reload {name}", "/reset_prefix_cache", "/update_weight_version", "/resume"]


@pytest.mark.parametrize("way", WAYS)
def test_wrong_answers_are_taken_back(exported: Versions, start: Start, way: str) -> None:
    server = start(exported.folders["v1"], way)
    server.garbled = 1
    with pytest.raises(
        DeployError, match=r"not those of v2: log-probabilities differ by up to .*; v1 serves"
    ) as caught:
        deploy(Client(server.url), exported.folders["v2"])
    assert caught.value.restored is True
    assert server.folder == exported.folders["v1"]
    assert server_status(Client(server.url), exported.repository).true


@pytest.mark.parametrize("way", WAYS)
def test_wrong_answers_that_stay_wrong_are_told(exported: Versions, start: Start, way: str) -> None:
    server = start(exported.folders["v1"], way)
    server.garbled = 2
    with pytest.raises(DeployError, match="does not serve v1 either") as caught:
        deploy(Client(server.url), exported.folders["v2"])
    assert caught.value.restored is False


@pytest.mark.parametrize("way", WAYS)
def test_a_folder_that_the_server_cannot_load(exported: Versions, start: Start, way: str) -> None:
    server = start(exported.folders["v1"], way)
    server.unreadable.add(str(exported.folders["v2"]))
    with pytest.raises(DeployError, match=r"cannot load .*; v1 serves, as verified") as caught:
        deploy(Client(server.url), exported.folders["v2"])
    assert caught.value.restored is True
    assert "--vllm-folder" in caught.value.hint
    assert not server.paused


def test_a_path_of_the_servers_own(exported: Versions, start: Start, tmp_path: Path) -> None:
    server = start(exported.folders["v1"])
    seen = shutil.copytree(exported.folders["v2"], tmp_path / "elsewhere")
    deploy(Client(server.url), exported.folders["v2"], seen_as=seen)
    assert server.folder == seen


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_dies_on_the_way(exported: Versions, start: Start, way: str) -> None:
    server = start(exported.folders["v1"], way)
    server.dying = True
    with pytest.raises(DeployError, match="lost while it switched to v2") as caught:
        deploy(Client(server.url), exported.folders["v2"])
    assert caught.value.restored is None


@pytest.mark.parametrize("way", WAYS)
def test_another_base_is_refused_before_anything_is_touched(
    exported: Versions, start: Start, way: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    stranger = make_stranger(other)
    server = start(exported.folders["v1"], way)
    with pytest.raises(IncompatibleError, match="serves the base"):
        deploy(Client(server.url), stranger.folders["v2"])
    with pytest.raises(IncompatibleError, match="serves the base"):
        deploy_version(stranger.repository, stranger.versions["v3"], Client(server.url))
    assert server.calls == []
    assert not export_path(stranger.repository, stranger.versions["v3"], plugin=True).exists()


def make_stranger(root: Path) -> Versions:
    """The same on a base of which one thing differs: its configuration and how it generates."""

    def change(base: Path) -> None:
        with (base / "generation_config.json").open("a") as file:
            file.write("\n")
        config = base / "config.json"
        config.write_text(config.read_text().replace('"model_type"', '"other": 1,\n  "model_type"'))

    return make_versions(root, seed=2, change=change)


@pytest.mark.parametrize("way", WAYS)
def test_a_version_with_missing_objects_leaves_the_server_alone(copied: Versions, start: Start, way: str) -> None:
    server = start(copied.folders["v1"], way)
    for path in (copied.repository.root / "vectors").rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(NotFoundError):
        deploy_version(copied.repository, copied.versions["v3"], Client(server.url))
    assert server.calls == []
    # What is exported, whole, can still be gone back to.
    assert deploy_version(copied.repository, copied.versions["v2"], Client(server.url)).verification.ok


def test_an_export_that_lost_a_file_is_made_again(copied: Versions, start: Start) -> None:
    server = start(copied.folders["v1"])
    (copied.folders["v2"] / "model.safetensors").unlink()
    assert deploy_version(copied.repository, copied.versions["v2"], Client(server.url)).verification.ok
    assert (copied.folders["v2"] / "model.safetensors").is_file()


def test_another_form_needs_a_restart(copied: Versions, start: Start) -> None:
    server = start(copied.folders["v1"], "reload")
    config = copied.folders["v2"] / "config.json"
    config.write_text(config.read_text().replace('"mlp_bias": false', '"mlp_bias": true'))
    with pytest.raises(IncompatibleError, match="while it runs"):
        deploy(Client(server.url), copied.folders["v2"])
    assert server.calls == []


def test_vllm_without_routes_takes_nothing(exported: Versions, start: Start) -> None:
    server = start(exported.folders["v1"], "none")
    with pytest.raises(IncompatibleError, match="takes no versions"):
        deploy_version(exported.repository, exported.versions["v2"], Client(server.url))
    assert server_status(Client(server.url), exported.repository).true


def test_somebody_else_switches_it(exported: Versions, start: Start) -> None:
    stock = start(exported.folders["v1"], "reload")
    stock.paused = True
    with pytest.raises(ServerError, match="is paused"):
        deploy(Client(stock.url), exported.folders["v2"])
    assert stock.paused and stock.calls == []
    other = start(exported.folders["v1"])
    other.told = {"switching": True}
    with pytest.raises(ServerError, match="being switched"):
        deploy_version(exported.repository, exported.versions["v2"], Client(other.url))


def test_the_server_wants_a_key(exported: Versions, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(exported.folders["v1"])
    server.key = "secret"
    with pytest.raises(ServerError) as caught:
        deploy(Client(server.url), exported.folders["v2"])
    assert caught.value.status == 401 and "PERSONA_API_KEY" in caught.value.hint
    monkeypatch.setenv("PERSONA_API_KEY", "secret")
    assert deploy(Client(server.url), exported.folders["v2"]).verification.ok


def test_a_server_is_not_what_it_claims(exported: Versions, start: Start) -> None:
    server = start(exported.folders["v1"])
    server.told = {"version": exported.versions["v2"].id, "label": "v2"}
    found = server_status(Client(server.url), exported.repository)
    assert found.label == "v2" and not found.true and found.source == "cache"
    assert found.verification is not None and found.verification.agreement.greatest_difference > 0.1


def test_a_version_that_was_never_exported_here_is_computed(exported: Versions, start: Start) -> None:
    server = start(exported.folders["v1"])
    server.told = {"version": exported.versions["v3"].id, "label": "v3"}
    found = server_status(Client(server.url), exported.repository)
    assert found.source == "computed" and not found.true


def test_the_status_on_the_command_line(exported: Versions, start: Start, tmp_path: Path) -> None:
    root = exported.repository.root
    server = start(exported.folders["v2"])
    code, out, err = run_persona("status", "--server", server.url, cwd=root)
    assert code == 0, err
    assert "says it serves v2" in out and "it is what it claims" in out and "this repository's export" in out
    code, out, _ = run_persona("status", "--server", server.url, "--json", cwd=tmp_path)
    assert code == 0 and '"source": "folder"' in out
    server.told = {"version": exported.versions["v1"].id, "label": "v1"}
    code, out, _ = run_persona("status", "--server", server.url, cwd=root)
    assert code == 3 and "IT IS NOT v1" in out
    server.told = {"version": "0" * 64, "label": "v9", "model_folder": "/nowhere"}
    code, out, _ = run_persona("status", "--server", server.url, cwd=root)
    assert code == 3 and "not in this repository" in out


def test_a_deploy_on_the_command_line(copied: Versions, start: Start) -> None:
    server = start(copied.folders["v1"])
    code, out, err = run_persona("deploy", "v2", "--server", server.url, cwd=copied.repository.root)
    assert code == 0, err
    assert "v1 → v2 in" in out and "persona deploy v1" in err
    server.garbled = 1
    code, _, err = run_persona("deploy", "v3", "--server", server.url, cwd=copied.repository.root)
    assert code == 1 and "v2 serves, as verified" in err


def test_an_unknown_dtype_is_held_to_less(exported: Versions, start: Start) -> None:
    server = start(exported.folders["v1"])
    server.told = {"dtype": ""}
    found = deploy(Client(server.url), exported.folders["v2"])
    assert found.verification.allowed > 1e-4 and "unknown dtype" in str(found.verification)


def test_a_server_for_short_prompts_only(exported: Versions, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(exported.folders["v1"])
    monkeypatch.setattr("tests.serving.fake_vllm.MAX_LENGTH", 45)
    found = deploy(Client(server.url), exported.folders["v2"])
    assert found.verification.left_out > 0 and found.verification.ok
    monkeypatch.setattr("tests.serving.fake_vllm.MAX_LENGTH", 8)
    with pytest.raises(PersonaError, match="takes 8 tokens") as caught:
        deploy(Client(server.url), exported.folders["v1"])
    assert "--max-model-len" in caught.value.hint
