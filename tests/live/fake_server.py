"""A server that speaks the routes that publishing needs, on a thread: what it serves is computed by transformers from
the folder it was told to serve, so a wrong folder gives wrong answers.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from personality.builds.certificate import Certificate
from personality.model import load_model

MAX_LENGTH = 512


class FakeServer:
    """vLLM with the plugin, as far as a client can tell.

    Args:
        folder: an export.

    Attributes:
        labels: of everything that it was switched to, in order.
        away: drop every connection, as if it were gone.
        garbled: spoil the weights of the next so many switches, so that verification fails.
        slow: seconds that a switch takes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.away = False
        self.garbled = 0
        self.slow = 0.0
        self.labels: list[str] = []
        self._model: Any = None
        self._lock = threading.Lock()
        self._load(folder)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(outer.get(self.path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(outer.post(self.path, body))

            def _answer(self, data: dict[str, Any] | None) -> None:
                if outer.away:
                    self.close_connection = True
                    return
                content = json.dumps(data or {"error": "not found"}).encode()
                self.send_response(200 if data else 404)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def label(self) -> str:
        return Certificate.read(self.folder / Certificate.file_name).label

    def get(self, path: str) -> dict[str, Any] | None:
        if path == "/v1/models":
            return {"data": [{"id": "served", "root": str(self.folder), "max_model_len": MAX_LENGTH, "parent": None}]}
        if path == "/persona/version":
            return self._describe()
        return {"ok": True} if path == "/health" else None

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        with self._lock:
            if path == "/persona/version":
                time.sleep(self.slow)
                self._load(Path(body["folder"]))
                self.labels.append(self.label)
                return self._describe()
            if path == "/v1/completions":
                return self._complete(body["prompt"], body["max_tokens"])
        return None

    def _load(self, folder: Path) -> None:
        self._model = load_model(folder)
        if self.garbled:
            self.garbled -= 1
            with torch.no_grad():
                for parameter in self._model.parameters():
                    parameter.mul_(1.05)
        self.folder = folder

    def _describe(self) -> dict[str, Any]:
        found = Certificate.read(self.folder / Certificate.file_name)
        return {
            "version": found.version,
            "label": found.label,
            "base": found.base,
            "model_folder": str(self.folder),
            "dtype": "float32",
            "steering": None,
            "switching": False,
        }

    @torch.inference_mode()
    def _complete(self, prompt: list[int], count: int) -> dict[str, Any]:
        ids = list(prompt)
        for _ in range(count):
            ids.append(int(self._model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        table = self._model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        best = table.argmax(-1).tolist()
        places: list[dict[str, Any] | None] = [None]
        for at, token in enumerate(prompt[1:]):
            places.append({str(each): {"logprob": float(table[at, each])} for each in {token, best[at]}})
        start = len(prompt) - 1
        told = [float(table[start + at, token]) for at, token in enumerate(ids[len(prompt) :])]
        choice = {"token_ids": ids[len(prompt) :], "prompt_logprobs": places, "logprobs": {"token_logprobs": told}}
        return {"choices": [choice]}
