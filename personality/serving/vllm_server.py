"""One `vllm serve` process: its command, its environment, its end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from personality.manifests.errors import PersonaError
from personality.serving import launch
from personality.serving.vllm_environment import VllmEnvironment

MODEL_NAME = "persona"
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
_LAUNCH = Path(launch.__file__)
_STOP_SECONDS = 20.0
_GONE_SECONDS = 5.0
_LAST_LINES = 12
_PLUGIN_QUESTION = (
    "from importlib.metadata import entry_points as e;"
    "import sys; sys.exit(not e(group='vllm.general_plugins', name='persona'))"
)


@dataclass(frozen=True)
class ServerOptions:
    """How vLLM is to serve.

    Attributes:
        environment: where vLLM is.
        host, port: to listen at.
        dtype: in which to compute; vLLM itself would quietly take bfloat16 for a float32 model.
        max_length: of prompt and reply, tokens; None for what the model was made for.
        plugin: load the plugin.
        positions: steer by where a token is (decision and response steering).
        extra: more arguments of `vllm serve`.
    """

    environment: VllmEnvironment
    host: str = "127.0.0.1"
    port: int = 8000
    dtype: str = "auto"
    max_length: int | None = None
    plugin: bool = True
    positions: bool = False
    extra: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Where this machine reaches it."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "", "::") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def key(self) -> str | None:
        """The `--api-key` among the extra arguments, the first where there are several, or VLLM_API_KEY; else None."""
        for place, argument in enumerate(self.extra):
            name, equals, value = argument.partition("=")
            if name == "--api-key":
                return value if equals else next(iter(self.extra[place + 1 :]), None)
        return os.environ.get("VLLM_API_KEY")

    def command(self, folder: Path, serve_with: Sequence[str] = ()) -> list[str]:
        """`vllm serve` with its arguments."""
        length = ["--max-model-len", str(self.max_length)] if self.max_length else []
        return [
            str(self.environment.command),
            *("serve", str(folder)),
            *("--host", self.host, "--port", str(self.port)),
            *("--served-model-name", MODEL_NAME, "--dtype", self.dtype),
            *length,
            *serve_with,
            *self.extra,
        ]

    def variables(self) -> dict[str, str]:
        """The whole environment of the process."""
        # PYTHONPATH would let packages of this program's environment win over vLLM's own.
        inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        own = {"VLLM_PLUGINS": "persona" if self.plugin else "", "VLLM_NO_USAGE_STATS": "1"}
        if self.plugin:
            # The plugin's hooks are for this model runner.
            own |= {
                "VLLM_USE_V2_MODEL_RUNNER": "0",
                "PERSONA_STEERING": "positions" if self.positions else "everywhere",
            }
        else:
            # Without the plugin, only vLLM's development routes can change weights.
            own |= {"VLLM_SERVER_DEV_MODE": "1"}
        return {**inherited, **own}


def has_plugin(environment: VllmEnvironment) -> bool:
    """Whether this package is installed beside vLLM, so that vLLM finds the plugin."""
    asked = subprocess.run(
        [str(environment.python), "-P", "-c", _PLUGIN_QUESTION],
        capture_output=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")},
    )
    return asked.returncode == 0


def check_port(host: str, port: int) -> None:
    """Make sure that nobody listens at an address.

    Raises:
        PersonaError: when somebody does, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was left a moment ago is free
        try:
            trial.bind((host, port))
        except OSError as error:
            raise PersonaError(
                f"cannot listen at {host}:{port}: {error.strerror or error}",
                f"choose another port with `--port`, or see what serves there: `persona status --server {host}:{port}`",
            ) from None


class VllmServer:
    """A running `vllm serve`, in a process group of its own.

    Args:
        command: see `ServerOptions.command`.
        variables: its whole environment.
        python: vLLM's interpreter.
        log: file that its output is appended to.
    """

    def __init__(self, command: Sequence[str], variables: dict[str, str], python: Path, log: Path) -> None:
        self._log = log
        with log.open("ab") as into:
            self._start = into.tell()
            self._process = subprocess.Popen(
                [str(python), "-P", str(_LAUNCH), str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=into,
                stderr=subprocess.STDOUT,
                env=variables,
                cwd=log.parent,
                start_new_session=True,  # Ctrl-C is the supervisor's to pass on, and the whole group can be ended
            )

    @property
    def pid(self) -> int:
        """Its process id, which is its group's too."""
        return self._process.pid

    def ended(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def stop(self, seconds: float = _STOP_SECONDS) -> None:
        """End it and every process that it started."""
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=seconds)
        # Whatever is left of the group: engine processes of a vLLM that died do not always go with it.
        self._signal(signal.SIGKILL)
        self._process.wait()
        deadline = time.monotonic() + _GONE_SECONDS
        while self._signal(0) and time.monotonic() < deadline:  # memory and ports are free only when they are gone
            time.sleep(0.02)

    def _signal(self, number: int) -> bool:
        """Signal the whole group; whether there was one left."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True

    def last_words(self) -> str:
        """The end of what it has printed, errors first where there are some."""
        with self._log.open("rb") as log:
            log.seek(self._start)
            lines = log.read().decode(errors="replace").splitlines()
        errors = [line for line in lines if "Error" in line and "EngineCore failed to start" not in line]
        return "\n".join((errors or lines)[-_LAST_LINES if not errors else -3 :])
