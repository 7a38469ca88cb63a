"""The plugin's routes of vLLM's server. They change what it serves: see docs/plugin.md on who may reach them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from personality.manifests.errors import PersonaError
from personality.serving.plugin.exported_folder import ExportedFolder
from personality.serving.plugin.server_steering import ServerSteering, SwitchError
from personality.serving.plugin.settings import DEFAULT
from personality.serving.steering_table import from_bytes

_WAIT = 30.0
_GREATEST = 1 << 30


class PersonaRoutes:
    """An endpoint plugin of vLLM; see `vllm.plugins.endpoint_plugins.interface.EndpointPlugin`."""

    name = "persona"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._server: ServerSteering | None = None
        self._keys: list[bytes] = []

    def attach_router(self, app: Any) -> None:
        """Add the routes to the server's application."""
        from starlette.routing import Route

        answers = {
            ("/persona/version", "GET"): self._version,
            ("/persona/version", "POST"): self._switch,
            ("/persona/steering", "GET"): self._steering,
            ("/persona/steering", "PUT"): self._set,
            ("/persona/steering", "DELETE"): self._clear,
        }
        for (path, method), answer in answers.items():
            app.router.routes.append(Route(path, self._guarded(answer), methods=[method]))

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Begin with what the engine was started on.

        Raises:
            ValueError: for several processes that answer requests: a change made by one would be unknown to the others.
        """
        if (getattr(args, "api_server_count", None) or 1) > 1:
            raise ValueError("persona: needs one process that answers requests: start it with --api-server-count 1")
        keys = [key for key in (args.api_key or [os.environ.get("VLLM_API_KEY")]) if key]
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]
        server = ServerSteering(engine_client, ExportedFolder(Path(engine_client.vllm_config.model_config.model)))
        await server.start()
        self._server = server

    def _guarded(self, answer: Callable[[ServerSteering, Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        from starlette.responses import JSONResponse

        async def guarded(request: Any) -> Any:
            # vLLM's own check covers `/v1` and the like, not routes of plugins.
            if not self._allowed(request.headers.get("Authorization", "")):
                return JSONResponse({"error": "Unauthorized"}, 401)
            if self._server is None:
                return JSONResponse({"error": "there is no engine"}, 503)
            try:
                # A change is carried through even when the one who asked for it has hung up.
                return JSONResponse(await asyncio.shield(asyncio.ensure_future(answer(self._server, request))))
            except PersonaError as error:
                content = {"error": error.message, "hint": error.hint, "kind": error.kind}
                return JSONResponse(content | {"serves": self._server.describe()}, _status(error))

        return guarded

    def _allowed(self, header: str) -> bool:
        scheme, _, given = header.partition(" ")
        found = hashlib.sha256(given.encode()).digest()
        right = [secrets.compare_digest(found, key) for key in self._keys]
        return not self._keys or (scheme.lower() == "bearer" and any(right))

    async def _version(self, server: ServerSteering, request: Any) -> Any:
        return server.describe()

    async def _switch(self, server: ServerSteering, request: Any) -> Any:
        try:
            body = json.loads(await request.body())
            folder, wait = body["folder"], float(body.get("wait_s", _WAIT))
        except (ValueError, KeyError, TypeError, AttributeError):
            folder, wait = None, 0.0
        if not isinstance(folder, str) or not Path(folder).is_absolute() or not 0 <= wait < float("inf"):
            raise RequestError('the body is no {"folder": absolute path on the server\'s disk, "wait_s": seconds}')
        return await server.switch(Path(folder), wait)

    async def _steering(self, server: ServerSteering, request: Any) -> Any:
        found = server.describe()
        return {key: found[key] for key in ("steering", "as_exported", "slots", "positions")}

    async def _set(self, server: ServerSteering, request: Any) -> Any:
        data = await request.body()
        if len(data) > _GREATEST:
            raise RequestError(f"the body has {len(data)} bytes")
        return await server.steer(_slot(request), from_bytes(data, "the body"), _wait(request))

    async def _clear(self, server: ServerSteering, request: Any) -> Any:
        return await server.steer(_slot(request), None, _wait(request))


class RequestError(PersonaError):
    """A request that is not what the route takes."""

    kind = "request"


def plugin() -> PersonaRoutes:
    """What vLLM calls to get the routes."""
    return PersonaRoutes()


def _status(error: PersonaError) -> int:
    if isinstance(error, RequestError):
        return 400
    return 500 if isinstance(error, SwitchError) else 409


def _slot(request: Any) -> str:
    return str(request.query_params.get("slot", DEFAULT))


def _wait(request: Any) -> float:
    try:
        found = float(request.query_params.get("wait_s", _WAIT))
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise RequestError("`wait_s` is no number of seconds")
    return found
