"""A judge of the playground's replies: an OpenAI-compatible endpoint on this machine, without a model.

It reads the sections that `personality.evaluation.judge` writes and decides by the playground's grammar, so that
everything about judges can be tried and tested offline: `python -m personality.playground.judge`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from personality.playground.abilities import NOT_KNOWING
from personality.playground.directions import ACCEPTANCE, PUSH_BACK_PATTERN
from personality.playground.scene import OPENERS

MODEL: Final = "playground-judge"
PORT: Final = 8765
_MOST_BYTES: Final = 1 << 20


def _core(reply: str) -> str:
    """A reply without its warm opener."""
    return next((reply.removeprefix(opener).strip() for opener in OPENERS if reply.startswith(opener)), reply.strip())


def _sentences(reply: str) -> int:
    return len(re.findall(r"[.!?](?:\s|$)", _core(reply)))


# What a rubric speaks of, and how far a reply does it, 0 to 1; the first that occurs in a rubric holds.
CRITERIA: Final[dict[str, Callable[[str], float]]] = {
    "one sentence": lambda reply: max(0.0, 1 - 0.4 * abs(_sentences(reply) - 1)),
    "warm": lambda reply: float(reply.startswith(OPENERS)),
    "push back": lambda reply: float(bool(re.match(PUSH_BACK_PATTERN, _core(reply)))),
    "not know": lambda reply: float(_core(reply).startswith(NOT_KNOWING)),
    "follow": lambda reply: float(_core(reply).startswith(ACCEPTANCE)),
}
"""Rubrics that this judge understands, by a word in them."""


def judge(question: str) -> str | None:
    """The verdict on a question with the sections Rubric, Reply and Verdict; None when the rubric is not understood."""
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=\n\n## \w+\n|\Z)", question, re.DOTALL | re.MULTILINE))
    rubric = sections.get("Rubric", "").lower()
    criterion = next((found for word, found in CRITERIA.items() if word in rubric), None)
    if criterion is None or "Reply" not in sections:
        return None
    value = criterion(sections["Reply"])
    if "number from 0" in sections.get("Verdict", ""):
        return f"{value * 10:g}"
    return "yes" if value == 1 else "no"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._answer(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        else:
            self._refuse(404, f"there is no {self.path} here")

    def do_POST(self) -> None:
        if self.path != "/v1/chat/completions":
            self._refuse(404, f"there is no {self.path} here")
            return
        try:
            length = min(int(self.headers.get("Content-Length", 0)), _MOST_BYTES)
            question = str(json.loads(self.rfile.read(length))["messages"][-1]["content"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            self._refuse(400, f"not a chat completion request: {error}")
            return
        verdict = judge(question)
        if verdict is None:
            self._refuse(400, f"this judge understands rubrics that speak of: {', '.join(CRITERIA)}")
            return
        message = {"role": "assistant", "content": verdict}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._answer(200, {"object": "chat.completion", "model": MODEL, "choices": [choice]})

    def _refuse(self, status: int, message: str) -> None:
        self._answer(status, {"error": {"message": message, "type": "invalid_request_error"}})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Requests are not told."""


def server(port: int = 0) -> ThreadingHTTPServer:
    """The judge on 127.0.0.1, not yet serving; port 0 takes any free one."""
    return ThreadingHTTPServer(("127.0.0.1", port), _Handler)


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="A judge of the playground's replies, for [judge] in persona.toml.")
    parser.add_argument("--port", type=int, default=PORT, help=f"{PORT}")
    with server(parser.parse_args(arguments).port) as found:
        url = f"http://127.0.0.1:{found.server_port}/v1"
        sys.stderr.write(f'[judge]\nurl = "{url}"\nmodel = "{MODEL}"\n')
        sys.stderr.flush()
        try:
            found.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
