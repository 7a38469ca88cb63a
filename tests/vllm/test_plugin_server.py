"""The plugin's routes on a real `vllm serve`: switching under load, refusals, failures, slots, keys."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from personality.manifests.steering_record import Positions
from personality.serving.plugin.exported_folder import CERTIFICATE
from personality.serving.steering_table import STEERING_FILE, save, table_of, to_bytes
from personality.serving.vllm_environment import VllmEnvironment
from personality.vectors.steering.injection import Injection
from tests.vllm.models import vllm_checkpoint

KEY = "a-key"
WIDTH, LAYERS = 64, 3
STARTS_WITHIN = 240.0  # seconds


def injection(layer: int, positions: Positions, size: float = 1.0) -> Injection:
    vector = size * torch.randn(WIDTH, generator=torch.Generator().manual_seed(layer))
    return Injection(layer, vector, positions, "add", label="candid@1")


@dataclass
class Server:
    """A running server, and its exports."""

    port: int
    folder: Path
    exports: dict[str, Path] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: Any = None, key: str = KEY) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        finally:
            connection.close()

    def answer(self, prompt: list[int], tokens: int, slot: str = "") -> tuple[int, Any]:
        """Status and answer of a greedy request."""
        question: dict[str, Any] = {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        question |= {"logprobs": 1, "ignore_eos": True, "return_token_ids": True}
        question |= {"vllm_xargs": {"persona": slot}} if slot else {}
        return self.ask("POST", "/v1/completions", question)

    def complete(self, prompt: list[int], tokens: int = 24, slot: str = "") -> Any:
        """Tokens and log-probabilities of a greedy reply; status and answer when it is none."""
        status, answer = self.answer(prompt, tokens, slot)
        return reply_of(answer) if status == 200 else (status, answer)

    def switch(self, name: str, **more: Any) -> tuple[int, Any]:
        return self.ask("POST", "/persona/version", {"folder": str(self.exports[name]), **more})


def reply_of(answer: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Tokens and their log-probabilities (nats)."""
    choice = answer["choices"][0]
    return tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"])


def certify(folder: Path, version: str, items: list[Injection] | None = None, base: str = "b" * 64) -> Path:
    """Make an export of a checkpoint: what the plugin reads of a certificate, and its steering file."""
    table = replace(table_of(items, LAYERS, WIDTH), version=version * 32, label=version) if items else None
    certificate = {
        "version": version * 32,
        "label": version,
        "base": base,
        "personality": version * 32,
        "needs_plugin": ["candid@1 × 1"] if items else [],
        "steering_file": STEERING_FILE if items else "",
        "serve_with": [],
    }
    (folder / CERTIFICATE).write_text(json.dumps(certificate))
    if table:
        save(table, folder / STEERING_FILE)
    return folder


@pytest.fixture(scope="module")
def server(vllm: VllmEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = Server(port, folder)
    found.exports["v1"] = certify(vllm_checkpoint("llama", folder / "v1"), "v1")
    found.exports["v2"] = certify(vllm_checkpoint("llama", folder / "v2", seed=1), "v2")
    shutil.copytree(found.exports["v2"], folder / "v3")
    found.exports["v3"] = certify(folder / "v3", "v3", [injection(0, "all"), injection(1, "decision")])
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(vllm.command), "serve", str(found.exports["v1"]), "--served-model-name", "m", "--port", str(port),
             "--host", "127.0.0.1", "--api-key", KEY, "--enforce-eager", "--max-model-len", "512",
             "--dtype", "float32", "--enable-prompt-tokens-details"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "VLLM_PLUGINS": "persona",
                "PERSONA_STEERING": "positions",
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
            },
        )  # fmt: skip
    try:
        until = time.monotonic() + STARTS_WITHIN
        while True:
            try:
                if found.ask("GET", "/v1/models")[0] == 200:
                    break
            except OSError:
                pass
            words = (folder / "log").read_text(errors="replace")[-6000:]
            assert process.poll() is None, words
            assert time.monotonic() < until, words
            time.sleep(0.5)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def prompt(seed: int, length: int = 20) -> list[int]:
    found: list[int] = torch.randint(0, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return found


def test_it_says_what_it_serves(server: Server) -> None:
    status, found = server.ask("GET", "/persona/version")
    assert status == 200
    assert (found["label"], found["version"], found["base"]) == ("v1", "v1" * 32, "b" * 64)
    assert found["model_folder"] == str(server.exports["v1"])
    assert found["steering"] is None and found["as_exported"] and not found["switching"] and found["positions"]


def test_the_servers_key_guards_the_routes(server: Server) -> None:
    for method, path in (("GET", "/persona/version"), ("POST", "/persona/version"), ("PUT", "/persona/steering")):
        assert server.ask(method, path, b"{}", key="another")[0] == 401


def test_switches_under_load(server: Server) -> None:
    """No request is lost, and each answer is wholly that of a version that served between its start and its end."""
    prompts = [prompt(seed) for seed in range(4)]
    expected: dict[str, list[Any]] = {}
    for name in ("v2", "v3", "v1"):
        assert server.switch(name)[0] == 200
        expected[name] = [server.complete(row)[0] for row in prompts]
    assert all(len({expected[name][i] for name in expected}) == 3 for i in range(4))
    answers: list[tuple[float, float, int, Any]] = []
    stop = threading.Event()

    def client(number: int) -> None:
        while not stop.is_set():
            begin = time.monotonic()
            found = server.complete(prompts[number])
            answers.append((begin, time.monotonic(), number, found[0]))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    spans: list[tuple[float, float, str]] = []  # from when a version may answer to when it no longer can
    begin = 0.0
    for name, following in (("v1", "v2"), ("v2", "v3"), ("v3", "v1"), ("v1", "")):
        time.sleep(2.0)
        asked = time.monotonic()
        if following:
            status, answer = server.switch(following)
            assert status == 200 and answer["label"] == following
        spans.append((begin, time.monotonic(), name))
        begin = asked
    stop.set()
    for thread in threads:
        thread.join()
    spans[-1] = (spans[-1][0], time.monotonic(), spans[-1][2])
    assert len(answers) > 20
    seen = set()
    for begin, end, number, found in answers:
        fitting = {name for start, over, name in spans if begin <= over and end >= start}
        matching = {name for name in fitting if expected[name][number] == found}
        assert matching, (fitting, found)
        seen |= matching
    assert seen == {"v1", "v2", "v3"}


def test_folders_that_do_not_fit_are_refused(server: Server) -> None:
    before = server.complete(prompt(7))
    folder = server.folder
    foreign = folder / "foreign"
    shutil.copytree(server.exports["v2"], foreign)
    server.exports["foreign"] = certify(foreign, "v4", base="c" * 64)
    server.exports["shape"] = certify(vllm_checkpoint("llama-bias", folder / "shape"), "v5")
    server.exports["missing"] = folder / "missing"
    cut = folder / "cut"
    shutil.copytree(server.exports["v2"], cut)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-100])
    server.exports["cut"] = cut
    for name, words in {
        "foreign": "made from the base cccc",
        "shape": "while it runs",
        "missing": "there is no folder",
        "cut": "not a whole safetensors file",
    }.items():
        status, answer = server.switch(name)
        assert status == 409 and words in answer["error"], answer
        assert answer["hint"] and answer["serves"]["label"] == "v1"
    for body in (b"", b"[]", b'{"folder": "relative"}', b'{"folder": "/tmp", "wait_s": "soon"}', b'{"folder": 3}'):
        assert server.ask("POST", "/persona/version", body)[0] == 400
    for table in (b"nothing", to_bytes(table_of([], 2, WIDTH)), to_bytes(table_of([], LAYERS, 32))):
        assert server.ask("PUT", "/persona/steering", table)[0] == 409
    assert server.complete(prompt(7)) == before


def test_a_version_with_broken_weights_is_refused(server: Server) -> None:
    before = server.complete(prompt(7))
    broken = server.folder / "broken"
    shutil.copytree(server.exports["v2"], broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    server.exports["broken"] = broken
    status, answer = server.switch("broken")
    assert status == 409 and "`model.layers.1.mlp.down_proj.weight`" in answer["error"]
    assert answer["serves"]["label"] == "v1" and not answer["serves"]["broken"]
    assert server.complete(prompt(7)) == before


def test_steering_is_set_read_and_cleared(server: Server) -> None:
    before = server.complete(prompt(7))
    table = replace(table_of([injection(1, "all")], LAYERS, WIDTH), label="a trial")
    status, answer = server.ask("PUT", "/persona/steering", to_bytes(table))
    assert status == 200 and answer["steering"]["digest"] == table.digest and not answer["as_exported"]
    assert server.ask("GET", "/persona/steering")[1]["steering"]["label"] == "a trial"
    assert server.complete(prompt(7)) != before
    status, answer = server.ask("DELETE", "/persona/steering")
    assert status == 200 and answer["steering"] is None and answer["as_exported"]
    assert server.complete(prompt(7)) == before


def test_requests_choose_their_slot(server: Server) -> None:
    plain = server.complete(prompt(8, 200))
    table = table_of([injection(1, "response", 3.0)], LAYERS, WIDTH)
    assert server.ask("PUT", "/persona/steering?slot=warm", to_bytes(table))[1]["slots"].keys() == {"warm"}
    warm = server.complete(prompt(8, 200), slot="warm")
    assert warm != plain
    assert server.complete(prompt(8, 200)) == plain
    # Another table under the same name: nothing computed with the one before is used.
    other = table_of([injection(1, "all", 3.0)], LAYERS, WIDTH)
    assert server.ask("PUT", "/persona/steering?slot=warm", to_bytes(other))[0] == 200
    assert server.complete(prompt(8, 200), slot="warm") != warm
    assert server.ask("PUT", "/persona/steering?slot=warm", to_bytes(table))[0] == 200
    assert server.complete(prompt(8, 200), slot="warm") == warm
    status, answer = server.complete(prompt(8), slot="cold")
    assert status == 400 and "no slot `cold`" in json.dumps(answer)
    assert server.ask("DELETE", "/persona/steering?slot=warm")[1]["slots"] == {}
    assert server.complete(prompt(8), slot="warm")[0] == 400
    assert server.complete(prompt(8, 200)) == plain


@pytest.mark.parametrize(("length", "reusable"), [(200, 128), (128, 0), (100, 0)])
def test_a_second_turn_does_not_take_what_was_steered_as_a_reply(server: Server, length: int, reusable: int) -> None:
    """Blocks of 128 tokens: those before the end of the first prompt are used again, those from there on are not."""
    data = to_bytes(table_of([injection(0, "response", 3.0), injection(1, "decision", 3.0)], LAYERS, WIDTH))
    assert server.ask("PUT", "/persona/steering", data)[0] == 200
    first = prompt(9, length)
    reply = server.complete(first, 160)[0]
    second = [*first, *reply, *prompt(10, 40)]
    _, answer = server.answer(second, 8)
    assert ((answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0) == reusable
    tokens, values = reply_of(answer)
    assert server.ask("PUT", "/persona/steering", data)[0] == 200
    fresh = server.complete(second, 8)
    assert server.ask("DELETE", "/persona/steering")[0] == 200
    assert tokens == fresh[0]
    assert max(abs(a - b) for a, b in zip(values, fresh[1], strict=True)) < 1e-5


def test_a_switch_that_cannot_wait_changes_nothing(server: Server) -> None:
    before = server.complete(prompt(7))
    running: list[Any] = []
    thread = threading.Thread(target=lambda: running.append(server.complete(prompt(7, 30), 400)))
    thread.start()
    time.sleep(0.3)
    status, answer = server.switch("v2", wait_s=0)
    assert status == 409 and answer["kind"] == "busy" and answer["serves"]["label"] == "v1"
    thread.join()
    assert len(running[0][0]) == 400
    assert server.complete(prompt(7)) == before
    assert server.switch("v2")[0] == 200
    assert server.switch("v1")[0] == 200
    assert server.complete(prompt(7)) == before
