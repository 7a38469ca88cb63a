"""A real vLLM that answers while a behavior is trained, and is taken back at the end."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from personality.live.publishing import LiveOptions
from personality.making.training_job import TrainingJob
from personality.making.training_run import train_behavior
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.serving.client import Client, ServerError
from personality.serving.served import what_serves
from personality.serving.vllm_environment import VllmEnvironment
from personality.vectors.training.settings import make_settings
from personality.versions.changes import add


@pytest.fixture
def repository(repository_copy: Path) -> Repository:
    found = Repository(repository_copy)
    add(found, VectorLabel.parse("concise"), scale=0.5)
    return found


@pytest.fixture
def url(repository: Repository, vllm: VllmEnvironment) -> Iterator[str]:
    """A server of the newest version, as a user starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ("--port", port, "--vllm", str(vllm), "--dtype", "float32", "--max-model-len", "256", "--json")
    process = subprocess.Popen(
        [sys.executable, "-m", "personality", "serve", "head", *options, "--", "--enforce-eager"],
        cwd=repository.root,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if line.startswith("}"):
                break
        yield str(json.loads(text)["data"]["url"])
    finally:
        process.terminate()
        process.wait(timeout=60)


@dataclass
class Load:
    """Somebody who asks the server the same all the while."""

    url: str
    answers: list[tuple[int, ...]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def ask(self, client: Client) -> tuple[int, ...]:
        question: dict[str, Any] = {"model": "persona", "prompt": list(range(20, 40)), "max_tokens": 8}
        found = client.ask("POST", "/v1/completions", {**question, "temperature": 0, "return_token_ids": True})
        return tuple(found["choices"][0]["token_ids"])

    def run(self) -> None:
        client = Client(self.url)
        while not self.over.is_set():
            try:
                self.answers.append(self.ask(client))
            except ServerError as error:
                self.errors.append(error.message)


@pytest.mark.timeout(900)
def test_it_answers_while_a_behavior_is_trained(repository: Repository, url: str) -> None:
    client = Client(url)
    before = what_serves(client)
    load = Load(url)
    first = load.ask(client)
    asking = threading.Thread(target=load.run)
    asking.start()
    data = repository.root / "data"
    job = TrainingJob(
        behavior="warm",
        data=data / "warm.jsonl",
        general=data / "general-warm.jsonl",
        settings=make_settings(lr=3e-3, rank=8, batch_size=5, max_length=256),
        examples=120,
        probe_rows=0,
    )
    try:
        report = train_behavior(repository, job, live=LiveOptions(url, every=5)).live
    finally:
        load.over.set()
        asking.join()
    assert report is not None
    # Each snapshot that counts as published was verified over HTTP against the version composed in transformers.
    assert len(report.published) >= 1, report
    assert {item.outcome for item in report.snapshots} <= {"published", "passed over"}
    assert (report.after, report.problem) == ("v2", "")
    after = what_serves(client)
    assert (after.version, after.folder) == (before.version, before.folder)
    assert not load.errors and len(load.answers) > 5
    assert load.ask(client) == first
    assert not list((repository.local / "live").glob("*"))
