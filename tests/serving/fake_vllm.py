"""vLLM's routes on a thread, with the plugin or stock, and with the ways in which a server can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.live.fake_server import MAX_LENGTH, FakeServer


class RefusalError(Exception):
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
        port: to listen at; 0 for any.

    Attributes:
        calls: every POST but completions, in order; of `/collective_rpc` the folder too.
        unreadable: folders whose weights the server cannot load.
        dying: whether it stops answering in the middle of the next switch.
        key: that requests must bring.
        paused: whether it is paused.
        told: overrides of what it says of itself.
    """

    def __init__(self, folder: Path, *, plugin: bool = True, dev: bool = False, port: int = 0) -> None:
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
                        raise RefusalError(401, "Unauthorized")
                    data = outer.get(path) if body is None else outer.post(path, body)
                    if data is None:
                        raise RefusalError(404, "Not Found")
                except RefusalError as refusal:
                    status, data = refusal.status, {"error": {"message": str(refusal)}}
                if outer.away:
                    self.close_connection = True
                    return
                content = json.dumps(data).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name of the class above
                pass

        if not port:
            self._server.RequestHandlerClass = Handler
            return
        self._server.server_close()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

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
            raise RefusalError(status, f"cannot load {folder}")


def main() -> None:
    """What a test puts in the place of the `vllm` command: `vllm serve FOLDER --host H --port P …`.

    Like vLLM it has a process of its own that a killed parent leaves behind; its id is in `child-PID` beside the log.
    """
    folder, port = Path(sys.argv[2]), int(sys.argv[sys.argv.index("--port") + 1])
    if "--broken" in sys.argv:
        sys.stderr.write("ValueError: no room for the cache\n")
        sys.exit(3)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    Path(f"child-{os.getpid()}").write_text(str(child.pid))
    dev = bool(int(os.environ.get("VLLM_SERVER_DEV_MODE", "0")))
    with FakeVllm(folder, plugin=os.environ["VLLM_PLUGINS"] == "persona", dev=dev, port=port):
        time.sleep(300)


if __name__ == "__main__":
    main()
