from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from personality.manifests.errors import PersonaError
from personality.serving.client import Client
from personality.serving.deploy import deploy
from personality.serving.exports import exports_folder
from personality.serving.served import what_serves
from personality.serving.server_state import ServerState, server_url
from personality.serving.supervisor import Ready, Supervisor
from personality.serving.vllm_environment import find_vllm
from personality.serving.vllm_server import ServerOptions
from tests.conftest import run_persona
from tests.serving.conftest import Versions

_ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        found: int = trial.getsockname()[1]
        return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A folder that looks like vLLM's environment; its `vllm` is a program of the tests."""
    binaries = tmp_path / "environment/bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to(sys.executable)
    command = binaries / "vllm"
    command.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(_ROOT)!r})\n"
        "from tests.serving.fake_vllm import main\nmain()\n"
    )
    command.chmod(0o755)
    return tmp_path / "environment"


class Running:
    """A supervisor on a thread, and what it told."""

    def __init__(self, options: ServerOptions, folder: Path, exports: Path) -> None:
        self.exports, self.port = exports, options.port
        self.events: list[str] = []
        self.ready: list[Ready] = []
        self.problem: PersonaError | None = None
        self.stop = threading.Event()
        self._supervisor = Supervisor(options, folder, exports, on_event=self.events.append, on_ready=self.ready.append)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._supervisor.run(self.stop)
        except PersonaError as error:
            self.problem = error

    @property
    def state(self) -> ServerState:
        return ServerState.read(ServerState.path(self.exports, self.port))

    def until_ready(self, times: int = 1) -> ServerState:
        wait_for(lambda: len(self.ready) >= times or not self.thread.is_alive())
        assert self.problem is None, self.problem
        return self.state

    def child(self, pid: int) -> int:
        return int((self.exports / f"child-{pid}").read_text())


Serve = Callable[..., Running]


@pytest.fixture
def serve(copied: Versions, environment: Path) -> Iterator[Serve]:
    running: list[Running] = []

    def start(label: str, **options: object) -> Running:
        settings = ServerOptions(find_vllm(environment), port=free_port(), dtype="float32", **options)  # type: ignore[arg-type]
        found = Running(settings, copied.folders[label], exports_folder(copied.repository))
        running.append(found)
        return found

    yield start
    for each in running:
        each.stop.set()
        each.thread.join()


@pytest.mark.parametrize("plugin", [True, False])
def test_started_verified_noted_and_ended_whole(serve: Serve, copied: Versions, plugin: bool) -> None:
    running = serve("v2", plugin=plugin)
    state = running.until_ready()
    ready = running.ready[0]
    assert ready.verification.ok and ready.state == state
    assert (state.label, state.version, state.plugin) == ("v2", copied.versions["v2"].id, plugin)
    assert server_url(running.exports) == state.url
    served = what_serves(Client(state.url))
    assert served.version == state.version and served.state == state
    assert served.way == ("plugin" if plugin else "reload")
    child = running.child(state.vllm_pid)
    assert alive(child)
    running.stop.set()
    running.thread.join()
    assert not alive(state.vllm_pid) and not alive(child)
    assert not ServerState.path(running.exports, running.port).exists()
    assert not Client(state.url).healthy()


def test_a_killed_vllm_comes_back_on_the_last_verified_version(serve: Serve, copied: Versions) -> None:
    running = serve("v1")
    first = running.until_ready()
    client = Client(first.url)
    deploy(client, copied.folders["v2"])
    assert running.state.label == "v2" and running.state.vllm_pid == first.vllm_pid
    child = running.child(first.vllm_pid)
    os.kill(first.vllm_pid, signal.SIGKILL)
    again = running.until_ready(2)
    assert again.label == "v2" and again.restarts == 1 and again.vllm_pid != first.vllm_pid
    assert what_serves(client).version == copied.versions["v2"].id
    assert not alive(child), "what the dead vLLM left behind still runs"
    assert any("vLLM ended with code -9; starting it again in 1 s" in event for event in running.events)


def test_a_vllm_that_does_not_start_is_told_with_its_last_words(serve: Serve) -> None:
    running = serve("v1", extra=("--broken",))
    running.thread.join()
    assert running.problem is not None
    assert "ended with code 3 while it loaded v1" in running.problem.message
    assert "ValueError: no room for the cache" in running.problem.hint
    assert not running.ready


def test_wrong_answers_at_the_start_are_not_served(serve: Serve, copied: Versions) -> None:
    # The certificate says v2, the weights are v1's.
    weights = copied.folders["v2"] / "model.safetensors"
    weights.unlink()
    weights.write_bytes((copied.folders["v1"] / "model.safetensors").read_bytes())
    running = serve("v2")
    running.thread.join()
    assert running.problem is not None and "otherwise than v2 answers" in running.problem.message
    assert not Client(f"http://127.0.0.1:{running.port}").healthy()


@pytest.mark.skipif(sys.platform != "linux", reason="only there the kernel tells a child of its parent's death")
def test_vllm_does_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    script = (
        "import os, sys, time; from pathlib import Path\n"
        "from personality.serving.vllm_server import VllmServer\n"
        "command = [sys.executable, '-c', 'import time; time.sleep(300)']\n"
        f"print(VllmServer(command, dict(os.environ), Path(sys.executable), Path({str(tmp_path / 'log')!r})).pid,"
        " flush=True)\n"
        "time.sleep(300)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=_ROOT) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        wait_for(lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes(), 30)
        supervisor.kill()
    wait_for(lambda: not alive(pid), 30)


def test_a_taken_port_is_told_before_anything_is_built(copied: Versions, environment: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, err = run_persona(
            "serve", "v3", "--port", port, "--vllm", str(environment), cwd=copied.repository.root
        )
    assert code == 1 and f"cannot listen at 127.0.0.1:{port}: Address already in use" in err and "--port" in err
    folders = {path.name for path in exports_folder(copied.repository).iterdir() if path.is_dir()}
    assert folders == {path.name for path in copied.folders.values()}


def test_a_port_that_this_repository_serves_at(serve: Serve, copied: Versions) -> None:
    state = serve("v1").until_ready()
    port = state.url.rsplit(":", 1)[1]
    code, _, err = run_persona("serve", "v2", "--port", port, cwd=copied.repository.root)
    assert code == 2 and "serves v1 at" in err and f"persona deploy v2 --server {state.url}" in err


def test_serving_without_vllm(copied: Versions, tmp_path: Path) -> None:
    code, _, err = run_persona(
        "serve", "v1", "--port", str(free_port()), "--vllm", str(tmp_path), cwd=copied.repository.root
    )
    assert code == 1 and "there is no vLLM in" in err
    code, _, err = run_persona("serve", "v1", "--dtype", "int8", cwd=copied.repository.root)
    assert code == 2 and "is no dtype to serve in" in err


def test_the_command_ends_in_order_when_it_is_told_to(copied: Versions, environment: Path) -> None:
    port = free_port()
    arguments = ["serve", "v2", "--port", str(port), "--vllm", str(environment), "--no-plugin", "--dtype", "float32"]
    command = [sys.executable, "-m", "personality", *arguments, "--json"]
    with subprocess.Popen(
        command, cwd=copied.repository.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_for(lambda: Client(f"http://127.0.0.1:{port}").healthy() or process.poll() is not None)
            assert process.stdout is not None
            lines: list[str] = []
            while not lines or lines[-1] != "}\n":
                lines.append(process.stdout.readline())
                assert lines[-1], process.stderr.read() if process.stderr else ""
            assert '"label": "v2"' in "".join(lines)
            state = ServerState.running(exports_folder(copied.repository), port)
            assert state is not None and state.pid == process.pid
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert not alive(state.vllm_pid)


@pytest.mark.parametrize(
    "extra", [("--api-key", "secret"), ("--api-key=secret",), ("--seed", "1", "--api-key", "secret")]
)
def test_the_supervisor_knows_the_key_that_it_gave(environment: Path, extra: tuple[str, ...]) -> None:
    options = ServerOptions(find_vllm(environment), extra=extra)
    assert options.key == "secret"
    assert options.command(Path("v1"))[-len(extra) :] == list(extra)


def test_what_vllm_is_started_with(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    vllm = find_vllm(environment)
    options = ServerOptions(vllm, host="::", port=8001, dtype="float32", max_length=64, positions=True)
    command = options.command(Path("exports/v1"), ["--model-impl", "transformers"])
    assert command[1:3] == ["serve", "exports/v1"] and "--model-impl" in command
    assert command[command.index("--dtype") + 1] == "float32" and command[command.index("--max-model-len") + 1] == "64"
    with_plugin, without = options.variables(), replace(options, plugin=False, positions=False).variables()
    assert (with_plugin["VLLM_PLUGINS"], with_plugin["PERSONA_STEERING"]) == ("persona", "positions")
    assert "VLLM_SERVER_DEV_MODE" not in with_plugin and without["VLLM_SERVER_DEV_MODE"] == "1"
    assert without["VLLM_PLUGINS"] == "" and "PYTHONPATH" not in with_plugin
    assert options.url == "http://127.0.0.1:8001"
