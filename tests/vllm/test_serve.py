"""`persona serve`, `persona deploy` and `persona status --server` with the real `vllm serve`; it is started twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from personality.composition.opening import composer_of
from personality.manifests.errors import IncompatibleError
from personality.manifests.repository import Repository
from personality.playground.repository import base_folder
from personality.serving.client import Client
from personality.serving.deploy import Deployed, DeployError, deploy
from personality.serving.deploying import deploy_version
from personality.serving.exports import export_for_server, exports_folder
from personality.serving.server_state import ServerState
from personality.serving.server_status import server_status
from personality.serving.steering_table import table_of, to_bytes
from personality.serving.vllm_environment import VllmEnvironment
from personality.vectors.steering.injection import Injection
from tests.conftest import run_persona
from tests.vllm.versions import add_steering, weights_repository

pytestmark = pytest.mark.timeout(1500)

_READY_SECONDS = 600.0
_OPENAI = """
import json, sys
from openai import OpenAI

client = OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
ask = {"model": client.models.list().data[0].id, "max_tokens": 12, "temperature": 0}
chat = [{"role": "user", "content": "What is the capital of France?"}]
slot = {"vllm_xargs": {"persona": "test"}}
parts = client.chat.completions.create(messages=chat, stream=True, **ask)
print(json.dumps({
    "model": ask["model"],
    "chat": client.chat.completions.create(messages=chat, **ask).choices[0].message.content,
    "steered": client.chat.completions.create(messages=chat, extra_body=slot, **ask).choices[0].message.content,
    "streamed": "".join(part.choices[0].delta.content or "" for part in parts),
    "completion": client.completions.create(prompt="The capital of France is", **ask).choices[0].text,
}))
"""


class Serving:
    """A `persona serve` process."""

    def __init__(self, repository: Repository, vllm: VllmEnvironment, *options: str) -> None:
        self.repository = repository
        with socket.socket() as trial:
            trial.bind(("127.0.0.1", 0))
            self.port: int = trial.getsockname()[1]
        arguments = ["serve", "v2", "--port", str(self.port), "--vllm", str(vllm), "--dtype", "float32", *options]
        limits = ["--max-model-len", "128", "--json", "--", "--enforce-eager"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "personality", *arguments, *limits],
            cwd=repository.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.told: dict[str, Any] = json.loads(self._object()).get("data", {})
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self.versions = {version.label: version for version in repository.versions().values()}

    def _object(self) -> str:
        assert self.process.stdout is not None and self.process.stderr is not None
        lines: list[str] = []
        while not lines or lines[-1] != "}\n":
            lines.append(self.process.stdout.readline())
            assert lines[-1], self.process.stderr.read()
        return "".join(lines)

    @property
    def state(self) -> ServerState:
        found = ServerState.running(exports_folder(self.repository), self.port)
        assert found is not None
        return found

    def deploy(self, label: str, **options: Any) -> Deployed:
        return deploy_version(self.repository, self.versions[label], self.client, **options)

    def serves(self, label: str) -> bool:
        found = server_status(self.client, self.repository)
        return found.true and found.label == label

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """On the playground's base: v2 moves every tensor, v3 some more linear layers, v4 also steers replies."""
    found = weights_repository("playground", tmp_path_factory.mktemp("served"))
    add_steering(found, positions="response")
    return found


@pytest.fixture(scope="module")
def plugin(repository: Repository, vllm: VllmEnvironment) -> Iterator[Serving]:
    serving = Serving(repository, vllm, "--positions")
    yield serving
    if serving.process.poll() is None:
        serving.process.kill()


@pytest.fixture(scope="module")
def stock(repository: Repository, vllm: VllmEnvironment) -> Iterator[Serving]:
    serving = Serving(repository, vllm, "--no-plugin")
    yield serving
    if serving.process.poll() is None:
        serving.process.kill()


def under_load(serving: Serving, work: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Do something while four clients ask without pause: the result, and every answer's text.

    Any request that fails fails the test.
    """
    question = {
        "model": "persona",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 16,
        "temperature": 0,
    }
    done, answers, failures = threading.Event(), list[str](), list[BaseException]()

    def ask() -> None:
        while not done.is_set():
            try:
                found = serving.client.ask("POST", "/v1/chat/completions", question)
                answers.append(found["choices"][0]["message"]["content"])
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(1)
        result = work()
        time.sleep(1)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures, failures
    return result, answers


def test_a_served_version_is_verified_and_says_so(plugin: Serving) -> None:
    assert plugin.told["label"] == "v2" and plugin.told["plugin"] is True
    assert plugin.told["greatest_difference"] <= plugin.told["allowed"] == 1e-4 and plugin.told["greedy"] == 1
    code, out, err = run_persona("status", "--server", plugin.client.url, cwd=plugin.repository.root)
    assert code == 0, out + err
    assert "says it serves v2" in out and "it is what it claims" in out


def test_an_openai_client_talks_to_it(plugin: Serving, vllm: VllmEnvironment) -> None:
    composer = composer_of(plugin.repository, plugin.versions["v2"].personality)
    width = int(json.loads((composer.folder / "config.json").read_bytes())["hidden_size"])
    layers = int(json.loads((composer.folder / "config.json").read_bytes())["num_hidden_layers"])
    direction = torch.randn(width, generator=torch.Generator().manual_seed(0)) * 4
    table = table_of([Injection(1, direction, "all", "add", label="test@1")], layers, width)
    plugin.client.ask("PUT", "/persona/steering", to_bytes(table), query={"slot": "test"})
    asked = subprocess.run(
        [str(vllm.python), "-P", "-c", _OPENAI, plugin.client.url], capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0, asked.stderr
    found = json.loads(asked.stdout.splitlines()[-1])
    plugin.client.ask("DELETE", "/persona/steering", query={"slot": "test"})
    assert found["model"] == "persona"
    assert found["chat"] and found["chat"] == found["streamed"] and found["completion"]
    assert found["steered"] != found["chat"]
    assert plugin.serves("v2")


def test_versions_are_switched_under_load_and_back(plugin: Serving) -> None:
    for label in ("v1", "v4", "v3", "v2"):
        result, answers = under_load(plugin, partial(plugin.deploy, label))
        assert result.verification.ok and result.verification.agreement.greedy > 0.99
        assert result.sharp
        # A request is answered by one version, from its first token to its last.
        assert 1 <= len(set(answers)) <= 2
        assert plugin.state.label == label
        assert plugin.serves(label)


def test_another_base_is_refused_and_nothing_is_touched(plugin: Serving, tmp_path: Path) -> None:
    root = tmp_path / "other"
    shutil.copytree(base_folder(), root / "base", ignore=shutil.ignore_patterns("__*"))
    settings = json.loads((root / "base/config.json").read_bytes())
    settings["rms_norm_eps"] = 1e-4
    (root / "base/config.json").write_text(json.dumps(settings))
    code, _, err = run_persona("init", "--base", "base", cwd=root)
    assert code == 0, err
    other = Repository(root)
    (version,) = other.versions().values()
    folder, _ = export_for_server(other, version, plugin=True)
    with pytest.raises(IncompatibleError, match="serves the base"):
        deploy(plugin.client, folder)
    # The server refuses it too, whoever asks.
    body = json.dumps({"folder": str(folder)}).encode()
    request = urllib.request.Request(f"{plugin.client.url}/persona/version", body, method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 409
    assert plugin.serves("v2")


def test_what_it_serves_is_not_believed(plugin: Serving) -> None:
    composer = composer_of(plugin.repository, plugin.versions["v2"].personality)
    settings = json.loads((composer.folder / "config.json").read_bytes())
    width, layers = settings["hidden_size"], settings["num_hidden_layers"]
    table = table_of([Injection(1, torch.ones(width), "all", "add", label="test@1")], layers, width)
    plugin.client.ask("PUT", "/persona/steering", to_bytes(table))
    code, out, _ = run_persona("status", "--server", plugin.client.url, cwd=plugin.repository.root)
    assert code == 3 and "IT IS NOT v2" in out
    assert plugin.deploy("v2").verification.ok
    assert plugin.serves("v2")


def test_an_export_with_wrong_weights_is_taken_back(plugin: Serving, tmp_path: Path) -> None:
    folder, _ = export_for_server(plugin.repository, plugin.versions["v3"], plugin=True)
    lying = shutil.copytree(folder, tmp_path / "lying")
    other, _ = export_for_server(plugin.repository, plugin.versions["v1"], plugin=True)
    shutil.copyfile(other / "model.safetensors", lying / "model.safetensors")
    with pytest.raises(DeployError, match=r"not those of v3.*; v2 serves, as verified") as caught:
        deploy(plugin.client, lying)
    assert caught.value.restored is True
    assert plugin.serves("v2")


def test_vllm_dies_in_the_middle_of_a_switch_and_comes_back(plugin: Serving) -> None:
    before = plugin.state

    def kill(stage: str) -> None:
        if stage.startswith("switching"):
            threading.Timer(0.05, os.killpg, (before.vllm_pid, signal.SIGKILL)).start()

    with pytest.raises(DeployError, match="was lost while it switched to v1") as caught:
        plugin.deploy("v1", on_stage=kill)
    assert caught.value.restored is None and "starts it again with v2" in caught.value.hint
    deadline = time.monotonic() + _READY_SECONDS
    while plugin.state.restarts == 0 or not plugin.client.healthy():
        assert time.monotonic() < deadline and plugin.process.poll() is None
        time.sleep(0.5)
    assert plugin.state.vllm_pid != before.vllm_pid
    assert plugin.serves("v2")


def test_the_end_leaves_nothing_behind(plugin: Serving) -> None:
    group = plugin.state.vllm_pid
    assert plugin.end() == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
    assert not plugin.client.healthy()


def test_stock_vllm_takes_versions_by_its_development_routes(stock: Serving) -> None:
    assert stock.told["plugin"] is False
    for label in ("v3", "v2"):
        result, answers = under_load(stock, partial(stock.deploy, label))
        assert result.before.way == "reload" and result.verification.ok and result.sharp
        assert 1 <= len(set(answers)) <= 2
        assert stock.serves(label)


def test_stock_vllm_that_cannot_see_the_folder(stock: Serving, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="v2 serves, as verified") as caught:
        stock.deploy("v3", seen_as=tmp_path / "nowhere")
    assert caught.value.restored is True and "--vllm-folder" in caught.value.hint
    assert stock.serves("v2")


def test_what_stock_vllm_does_not_reload_is_noticed(stock: Serving) -> None:
    """On a processor it keeps a packed copy of an output layer that shares the embedding's weights."""
    with pytest.raises(DeployError, match=r"not those of v1: .*; v2 serves, as verified"):
        stock.deploy("v1")
    assert stock.serves("v2")
    assert stock.end() == 0
