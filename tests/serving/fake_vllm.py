"""vLLM's routes on a thread, with the plugin or stock, and with the ways in which a server can fail."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.live.fake_server import MAX_LENGTH, FakeServer


class Refusal(Exception):
    """An answer that is an error: status and what it says."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class FakeVllm(FakeServer):
    """A server whose answers transformers computes from the folder that it serves.

    Args:
        folder: an export.
        plugin: with the plugin's routes.
        dev: with vLLM's development routes.

    Attributes:
        calls: every POST but completions, in order; of `/collective_rpc` the folder too.
        unreadable: folders whose weights the server cannot load.
        dying: whether it stops answering in the middle of the next switch.
        key: that requests must bring.
        paused: whether it is paused.
        told: overrides of what it says of itself.
    """

    def __init__(self, folder: Path, *, plugin: bool = True, dev: bool = False) -> None:
        self.plugin, self.dev = plugin, dev
        self.calls: list[str] = []
        self.unreadable: set[str] = set()
        self.dying = False
        self.key = ""
        self.paused = False
        self.weight_version = "default"
        self.told: dict[str, Any] = {}
        self.started_with = folder
        super().__init__(folder)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"] or 0))
                self._answer(json.loads(content) if content else {})

            def _answer(self, body: dict[str, Any] | None) -> None:
                path = urlsplit(self.path).path
                status = 200
                try:
                    if outer.key and self.headers.get("Authorization") != f"Bearer {outer.key}":
                        raise Refusal(401, "Unauthorized")
                    data = outer.get(path) if body is None else outer.post(path, body)
                    if data is None:
                        raise Refusal(404, "Not Found")
                except Refusal as refusal:
                    status, data = refusal.status, {"error": {"message": str(refusal)}}
                if outer.away:
                    self.close_connection = True
                    return
                content = json.dumps(data).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server.RequestHandlerClass = Handler

    def get(self, path: str) -> dict[str, Any] | None:
        if path == "/v1/models":
            model = {"id": "persona", "root": str(self.started_with), "max_model_len": MAX_LENGTH, "parent": None}
            return {"data": [model]}
        if path == "/persona/version":
            return {**self._describe(), **self.told} if self.plugin else None
        if self.dev and path == "/weight_info":
            return {"weight_version": self.weight_version}
        if self.dev and path == "/is_paused":
            return {"is_paused": self.paused}
        if self.dev and path == "/server_info":
            return {"vllm_config": {"model_config": {"dtype": "torch.float32"}}}
        return super().get(path)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if path == "/v1/completions":
            return super().post(path, body)
        self.calls.append(path)
        if path == "/persona/version" and self.plugin:
            self._die_or_refuse(body["folder"], 409)
            return super().post(path, body)
        return self._develop(path, body) if self.dev else None

    def _develop(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if path in ("/pause", "/resume"):
            self.paused = path == "/pause"
            return {"status": path[1:]}
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            folder = body["kwargs"]["weights_path"]
            self.calls[-1] = f"reload {Path(folder).name}"
            self._die_or_refuse(folder, 500)
            self._load(Path(folder))
            return {"results": [None]}
        if path == "/reset_prefix_cache":
            return {"success": True}
        if path == "/update_weight_version":
            self.weight_version = body["new_version"]
            return {"success": True}
        return None

    def _die_or_refuse(self, folder: str, status: int) -> None:
        if self.dying:
            self.away = True
        if folder in self.unreadable:
            raise Refusal(status, f"cannot load {folder}")
