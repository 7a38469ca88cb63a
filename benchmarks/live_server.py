"""A real vLLM, served and switched as a user does it, while the playground trains."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from personality.live.live_report import LiveReport
from personality.live.publishing import LiveOptions
from personality.making.training_job import TrainingJob
from personality.making.training_run import train_behavior
from personality.playground.repository import make_playground
from personality.vectors.training.settings import make_settings


@contextlib.contextmanager
def serving(root: Path, vllm: Path) -> Iterator[str]:
    """`persona serve head`; yields the URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ("--port", port, "--vllm", str(vllm.absolute()), "--dtype", "float32", "--json")
    process = subprocess.Popen(
        [sys.executable, "-m", "personality", "serve", "head", *options, "--", "--enforce-eager"],
        cwd=root,
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


def published(vllm: Path, every: Sequence[int]) -> list[tuple[int, LiveReport]]:
    """What became of snapshots every so many steps, in runs on one server."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "play"
        repository = make_playground(root, probe_rows=2).repository
        with serving(root, vllm) as url:
            for number, steps in enumerate(every):
                job = TrainingJob(
                    behavior="listening",
                    data=root / "data/listening.jsonl",
                    general=root / "data/general.jsonl",
                    settings=make_settings(**{**repository.config().training, "seed": number}),
                    allow_repeats=True,
                    probe_rows=0,
                    preflight=False,
                )
                report = train_behavior(repository, job, live=LiveOptions(url, every=steps)).live
                assert report is not None
                found.append((steps, report))
    return found
