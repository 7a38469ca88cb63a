"""Starting the reading process and asking it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from personality.live.shared_weights import SharedWeights
from personality.manifests.errors import PersonaError


class ReaderProcess:
    """A process that answers from shared weights; a context manager. See `reader_process` for the questions.

    Args:
        folder: of the base.
        shared: the weights; this process writes them.
        how: `in-place` reads whatever is in the memory, `copied` copies one step's weights before each reply.

    Raises:
        PersonaError: when it cannot start.
    """

    def __init__(self, folder: Path, shared: SharedWeights, how: Literal["in-place", "copied"] = "in-place") -> None:
        read, write = os.pipe()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "personality.live.reader_process"),
                *(str(folder.absolute()), str(shared.descriptor), str(write), how),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=(shared.descriptor, write),
        )
        os.close(write)
        self._answers = os.fdopen(read, encoding="utf-8")
        self.answer()

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
            PersonaError: when the process has ended.
        """
        line = self._answers.readline()
        if not line:
            raise self._ended()
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Ask and wait; errors as `send` and `answer`."""
        self.send(question)
        return self.answer()

    def close(self) -> None:
        """End the process; harmless when it has ended."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._answers.close()
        self._errors.close()

    def _ended(self) -> PersonaError:
        code = self.process.wait()
        self._errors.seek(0)
        last = self._errors.read()[-2000:].decode(errors="replace").strip()
        return PersonaError(f"the reading process ended with code {code}", f"its last words: {last}" if last else "")
