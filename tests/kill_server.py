"""Runs `persona` commands in forked children and kills them, on request: `python kill_server.py OUTPUT`.

Importing torch and transformers takes seconds; this process does it once, and a child forked from it starts a command
in milliseconds. Requests come as lines of JSON on stdin, answers leave as lines of JSON on stdout:

    {"argv": [...], "cwd": DIR, "after": SECONDS | null, "at": N | null, "calls": [NAME, ...], "limit": BYTES | null}
    {"killed": true, "code": null, "seconds": 0.2, "count": 17, "output": ""}

`after` sends SIGKILL so long after the start; `at` lets the child kill itself when it is about to make its n-th call
of the named functions of `os`, or when `_write` is named of those that put a part of a tensor into its file. `limit` is
the greatest size of a file, beyond which writing fails as on a full disk. `count` is how many of those calls it made,
`output` what the command wrote (by way of the file OUTPUT).
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from personality.manifests.hashed_stream import HashedStream

OUTPUT = Path(sys.argv[1])


def serve() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"code": _run(request["argv"], request["cwd"])} if request.get("warm") else _forked(**request)
        print(json.dumps(answer), file=sys.__stdout__, flush=True)


def _run(argv: list[str], cwd: str) -> int:
    from personality.cli.main import run

    os.chdir(cwd)
    with OUTPUT.open("w") as file:
        before = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = file
        try:
            return run(argv)
        finally:
            sys.stdout, sys.stderr = before


def _forked(
    argv: list[str], cwd: str, after: float | None, at: int | None, calls: Sequence[str], limit: int | None
) -> dict[str, Any]:
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(argv, cwd, at, calls, limit, writing)
    os.close(writing)
    timer = threading.Timer(1e9 if after is None else after, os.kill, (child, signal.SIGKILL))
    if after is not None:
        timer.start()
    with os.fdopen(reading, "rb") as pipe:
        count = len(pipe.read())  # ends when the child has ended and with it the pipe's other end
    # The child is reaped only when the timer can no longer fire: until then its number belongs to nobody else.
    timer.cancel()
    if after is not None:
        timer.join()
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    return {
        "killed": killed,
        "code": None if killed else os.WEXITSTATUS(status),
        "seconds": time.monotonic() - started,
        "count": count,
        "output": OUTPUT.read_text(),
    }


def _child(argv: list[str], cwd: str, at: int | None, calls: Sequence[str], limit: int | None, writing: int) -> None:
    code = 99
    holders: dict[str, Any] = {"_write": HashedStream}
    try:
        # torch renews its thread pool at the first such call after a fork, and that must not happen in two threads.
        torch.set_num_threads(1)
        for name in calls:
            holder = holders.get(name, os)
            setattr(holder, name, _counted(getattr(holder, name), at, writing))
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        code = _run(argv, cwd)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


_made = 0


def _counted(call: Callable[..., Any], at: int | None, writing: int) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        global _made  # noqa: PLW0603 - one count over all patched functions of this short-lived process
        _made += 1
        if _made == at:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(writing, b".")
        return call(*arguments, **options)

    return counted


if __name__ == "__main__":
    serve()
