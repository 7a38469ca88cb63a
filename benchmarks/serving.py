"""Switching a running vLLM between two versions while clients ask without pause, beside starting it again.

    python -m benchmarks.serving [--vllm ENV] [--rounds 5] [--clients 4] [--no-plugin]

On the playground: v1 is the base, v2 answers concisely. Greedy replies to one question, so that every answer can be
told to be the old version's, the new one's, or neither's.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.table import median, show
from personality.making.training_job import TrainingJob
from personality.making.training_run import train_behavior
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.playground.repository import general_file, make_playground
from personality.serving.client import Client, ServerError
from personality.serving.deploy import Deployed, deploy
from personality.serving.exports import export_for_server, exports_folder
from personality.serving.supervisor import Ready, Supervisor
from personality.serving.vllm_environment import find_vllm
from personality.serving.vllm_server import ServerOptions
from personality.vectors.training.settings import make_settings
from personality.versions.changes import add

BEHAVIOR = "concise"
QUESTION = {
    "model": "persona",
    "messages": [{"role": "user", "content": "Please rename the banner to river."}],
    "max_tokens": 32,
    "temperature": 0,
}


@dataclass
class Request:
    """One request of one client: when it began and ended (seconds), and the answer; None when it was lost."""

    client: int
    begun: float
    ended: float
    text: str | None


def make_repository(root: Path) -> Repository:
    """v1, the playground's base, and v2, trained to be concise."""
    make_playground(root, probe_rows=12)
    repository = Repository(root)
    job = TrainingJob(
        behavior=BEHAVIOR,
        data=root / f"data/{BEHAVIOR}.jsonl",
        general=root / general_file(BEHAVIOR),
        settings=make_settings(**repository.config().training),
        examples=80,
        probe_rows=0,
    )
    train_behavior(repository, job)
    add(repository, VectorLabel(BEHAVIOR), 1.0)
    return repository


def ask(client: Client) -> str:
    found = client.ask("POST", "/v1/chat/completions", QUESTION)
    return str(found["choices"][0]["message"]["content"])


def under_load(client: Client, clients: int, work: Callable[[], object]) -> list[Request]:
    """Every request of clients that ask without pause from two seconds before some work to two seconds after."""
    done, found = threading.Event(), list[Request]()

    def go(number: int) -> None:
        while not done.is_set():
            begun = time.monotonic()
            try:
                text = ask(client)
            except ServerError:
                text = None
                time.sleep(0.05)
            found.append(Request(number, begun, time.monotonic(), text))

    threads = [threading.Thread(target=go, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    work()
    time.sleep(2)
    done.set()
    for thread in threads:
        thread.join()
    return found


class Server:
    """A supervised vLLM on a thread."""

    def __init__(self, options: ServerOptions, folder: Path, exports: Path) -> None:
        self.ready: list[Ready] = []
        self.stop = threading.Event()
        supervisor = Supervisor(options, folder, exports, on_event=print, on_ready=self.ready.append)
        self.thread = threading.Thread(target=supervisor.run, args=(self.stop,))
        self.thread.start()

    def wait(self, times: int) -> Ready:
        while len(self.ready) < times:
            if not self.thread.is_alive():
                raise SystemExit("the server did not start")
            time.sleep(0.1)
        return self.ready[times - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--port", type=int, default=8199)
    parser.add_argument("--no-plugin", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        repository = make_repository(Path(temporary) / "play")
        plugin = not arguments.no_plugin
        versions = {version.label: version for version in repository.versions().values()}
        folders = {name: export_for_server(repository, versions[name], plugin=plugin)[0] for name in ("v1", "v2")}
        options = ServerOptions(
            find_vllm(arguments.vllm),
            port=arguments.port,
            dtype="float32",
            max_length=128,
            plugin=plugin,
            extra=("--enforce-eager",),
        )
        server = Server(options, folders["v1"], exports_folder(repository))
        try:
            measure(server, Client(options.url), folders, arguments.rounds, arguments.clients)
        finally:
            server.stop.set()
            server.thread.join()


def measure(server: Server, client: Client, folders: dict[str, Path], rounds: int, clients: int) -> None:
    first = server.wait(1)
    texts = {}
    for name in ("v2", "v1"):
        deploy(client, folders[name])
        texts[name] = ask(client)
    print({name: text[:60] for name, text in texts.items()})
    switches, whole, every, pauses, usual, moments = [], [], list[Request](), [], [], list[list[str]]()
    for index in range(2 * rounds):
        old, new = ("v1", "v2") if index % 2 == 0 else ("v2", "v1")
        results: list[tuple[float, Deployed]] = []

        def work(new: str = new, results: list[tuple[float, Deployed]] = results) -> None:
            begun = time.monotonic()
            results.append((begun, deploy(client, folders[new])))
            whole.append(time.monotonic() - begun)

        requests = under_load(client, clients, work)
        begun, result = results[0]
        switches.append(result.seconds)
        every += requests
        during = [r for r in requests if r.begun < begun + result.seconds and r.ended > begun]
        pauses.append(max((r.ended - r.begun for r in during), default=0.0))
        usual.append(median([r.ended - r.begun for r in requests if r not in during]))
        kinds = [
            "lost" if r.text is None else old if r.text == texts[old] else new if r.text == texts[new] else "?"
            for r in sorted(requests, key=lambda r: r.ended)
        ]
        moments.append(["old" if kind == old else "new" if kind == new else kind for kind in kinds])
    restart = [r for r in under_load(client, clients, lambda: restart_of(server)) if r.text is None]
    again = server.ready[-1]
    counted = [kind for kinds in moments for kind in kinds]
    # Old after the first new: an answer that was begun before the switch must not come after one begun behind it.
    late = sum("old" in kinds[kinds.index("new") :] for kinds in moments if "new" in kinds)
    show(
        f"Switching under load: {clients} clients, {2 * rounds} switches (medians; the longest in brackets)",
        ("what", "figure"),
        [
            ("switch, seconds", f"{median(switches):.2f} ({max(switches):.2f})"),
            ("deploy with verification, seconds", f"{median(whole):.2f} ({max(whole):.2f})"),
            ("start of vLLM to its first verified answer, seconds", f"{first.seconds:.1f}, again {again.seconds:.1f}"),
            ("requests", str(len(every))),
            ("lost", str(counted.count("lost"))),
            ("answers of the old version / of the new", f"{counted.count('old')} / {counted.count('new')}"),
            ("answers that are neither's", str(counted.count("?"))),
            ("switches after which an old answer came behind a new one", f"{late} of {2 * rounds}"),
            ("a request's usual time, seconds", f"{median(usual):.2f}"),
            ("longest time of a request at a switch, seconds", f"{median(pauses):.2f} ({max(pauses):.2f})"),
            ("requests lost by a restart", str(len(restart))),
        ],
    )


def restart_of(server: Server) -> None:
    """End vLLM as a crash would, and wait for the supervisor to bring it back."""
    import os
    import signal

    os.killpg(server.ready[-1].state.vllm_pid, signal.SIGKILL)
    server.wait(len(server.ready) + 1)


if __name__ == "__main__":
    main()
