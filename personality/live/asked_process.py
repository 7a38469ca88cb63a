"""A module of this program in a process of its own, asked questions: one JSON object a line, one answer each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from personality.manifests.errors import PersonaError

_LAST_WORDS = 2000  # characters


class AskedProcess:
    """A process that answers; a context manager.

    It gets the descriptor to write its answers to as its first argument, ends with its stdin, and so with this process,
    however that goes. A Ctrl-C is not for it.

    Args:
        what: it is, for errors.
        module: to run.
        arguments: of the module, behind the descriptor.
        descriptors: that it inherits.
        variables: of its environment besides the inherited ones.
    """

    def __init__(
        self,
        what: str,
        module: str,
        arguments: Sequence[str],
        *,
        descriptors: Sequence[int] = (),
        variables: dict[str, str] | None = None,
    ) -> None:
        self._what = what
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        read, write = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, str(write), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=(*descriptors, write),
            env={**os.environ, **(variables or {})},
            start_new_session=True,
        )
        os.close(write)
        self._answers = os.fdopen(read, encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, question: dict[str, Any]) -> None:
        """Ask without waiting.

        Raises:
            PersonaError: when the process has ended.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer.

        Raises:
            PersonaError: when it is `{"error": …, "hint": …}`, or the process has ended.
        """
        line = self._answers.readline()
        if not line:
            raise self._ended()
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise PersonaError(found["error"], found.get("hint", ""))
        return found

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Ask and wait; errors as `send` and `answer`."""
        self.send(question)
        return self.answer()

    def close(self) -> None:
        """End the process; harmless when it has ended."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(timeout=10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self._answers.close()
        self._errors.close()

    def _ended(self) -> PersonaError:
        code = self.process.wait()
        self._errors.seek(0)
        last = self._errors.read()[-_LAST_WORDS:].decode(errors="replace").strip()
        return PersonaError(f"{self._what} ended with code {code}", f"its last words: {last}" if last else "")
