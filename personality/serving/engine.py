"""A vLLM engine in a process of its own, asked for predictions: how exports and deployments are checked."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor

from personality.manifests.errors import PersonaError
from personality.serving import engine_process
from personality.serving.vllm_environment import VllmEnvironment

_SCRIPT = Path(engine_process.__file__)
_QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_LOG_LINES = 12


class Engine:
    """A process with vLLM's offline engine; a context manager.

    Args:
        environment: where vLLM is.
        plugins: plugins to load, by name; none is stock vLLM.
        variables: more environment variables.
    """

    def __init__(
        self, environment: VllmEnvironment, *, plugins: Sequence[str] = (), variables: dict[str, str] | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="persona-engine-")
        self._log = Path(self._folder.name) / "log"
        read, write = os.pipe()
        own = {"VLLM_PLUGINS": ",".join(plugins), "PERSONA_ANSWERS": str(write)}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                # Isolated from the script's folder: its modules must not shadow the standard library's.
                [str(environment.python), "-P", str(_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**without_paths(), **_QUIET, **own, **(variables or {})},
                pass_fds=(write,),
                cwd=self._folder.name,
            )
        os.close(write)
        self._answers: IO[str] = os.fdopen(read, encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process; harmless when it has ended."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        self._folder.cleanup()

    def load(self, folder: Path, *, dtype: str = "float32", max_length: int = 128, **options: Any) -> dict[str, Any]:
        """Load a model folder in place of the one before.

        Args:
            folder: the model.
            dtype: in which vLLM computes, `float32` or `bfloat16`.
            max_length: of prompt and reply, tokens.
            options: more arguments of `vllm.LLM`.

        Returns:
            `vllm` (its version), `dtype`, `vocabulary`.

        Raises:
            PersonaError: when vLLM cannot load it, with what it said.
        """
        settings = {
            "dtype": dtype,
            "max_model_len": max_length,
            "distributed_executor_backend": "uni",
            "enforce_eager": True,
            "max_logprobs": -1,
            "disable_log_stats": True,
            **options,
        }
        answer: dict[str, Any] = self.ask({"load": str(folder.absolute()), **settings})
        return answer

    def log_probabilities(
        self, rows: Tensor, top: int | None = None, *, lora: Path | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the model expects after each token but the last.

        Args:
            rows: token ids (rows, positions), int64.
            top: how many of the most likely tokens to tell; None for the whole vocabulary.
            lora: folder of an adapter to answer with; the model must be loaded with `enable_lora=True`. Each beginning
                of a row is a prompt of its own then.

        Returns:
            Token ids int64 and log-probabilities float32 (nats), both (rows, positions − 1, K), the most likely in no
            certain order; without an adapter the token that follows is always among them. Places left over hold −1 and
            −inf.
        """
        into = Path(self._folder.name) / "log-probabilities.safetensors"
        self.ask({"log_probabilities": rows.tolist(), "top": top, "into": str(into), "lora": _text(lora)})
        found = load_file(into)
        into.unlink()
        return found["tokens"], found["values"]

    def all_log_probabilities(self, rows: Tensor, *, lora: Path | None = None) -> Tensor:
        """Log-probabilities (rows, positions − 1, vocabulary), float32: for small vocabularies."""
        tokens, values = self.log_probabilities(rows, lora=lora)
        size = int(tokens.max()) + 1
        dense = torch.full((*tokens.shape[:2], size), float("nan"))
        return dense.scatter_(-1, tokens.clamp_min(0), values)

    def answers(
        self, rows: Sequence[Sequence[int]], max_tokens: int, *, lora: Path | None = None
    ) -> list[dict[str, list[Any]]]:
        """Greedy replies, and what the model expected on the way.

        Args:
            rows: prompts of token ids, of any length.
            max_tokens: of each reply; end-of-text does not end it.
            lora: as in `log_probabilities`.

        Returns:
            For each prompt `reply`, token ids; `log_probabilities` (nats) of every token of prompt and reply but the
            first; and `greedy`, the most likely token in the place of each of these.
        """
        question = {"answers": [list(row) for row in rows], "max_tokens": max_tokens, "lora": _text(lora)}
        found: list[dict[str, list[Any]]] = self.ask(question)
        return found

    def generate(
        self,
        rows: Sequence[Sequence[int]],
        max_tokens: int,
        extra_args: Sequence[dict[str, Any] | None] | None = None,
        *,
        lora: Path | None = None,
    ) -> list[list[int]]:
        """Greedy continuations of prompts of token ids.

        Args:
            rows: the prompts.
            max_tokens: of each reply.
            extra_args: of each request's sampling parameters, for plugins.
            lora: as in `log_probabilities`.
        """
        question: dict[str, Any] = {
            "generate": [list(row) for row in rows],
            "max_tokens": max_tokens,
            "lora": _text(lora),
        }
        found: list[list[int]] = self.ask({**question, "extra_args": list(extra_args) if extra_args else None})
        return found

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of the engine's workers by name; JSON data in and out, one answer a worker."""
        found: list[Any] = self.ask({"call": method, "args": list(arguments)})
        return found

    def reset_prefix_cache(self) -> None:
        """Forget what was computed of earlier prompts."""
        self.ask({"reset_prefix_cache": True})

    def ask(self, question: dict[str, Any]) -> Any:
        """Ask one question of `engine_process`.

        Raises:
            PersonaError: with what vLLM said when it failed or died.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": f"it ended with code {self._process.wait()}"}
        if "error" in answer:
            raise PersonaError(f"vLLM failed: {answer['error']}", f"its last words:\n{self.last_words()}")
        return answer["ok"]

    def last_words(self) -> str:
        """The end of what the process has printed."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-_LOG_LINES:])


def without_paths() -> dict[str, str]:
    """The environment without what would let packages of this program's environment win over vLLM's own."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())
