"""What a running server serves, and how it goes over to something else: one change at a time, all of it or nothing."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from personality import __version__
from personality.manifests.errors import IncompatibleError, PersonaError
from personality.serving.plugin.exported_folder import ExportedFolder
from personality.serving.plugin.settings import DEFAULT
from personality.serving.plugin.slots import KNOWN
from personality.serving.steering_table import SteeringTable, to_bytes


class BusyError(PersonaError):
    """Another change is under way, or requests did not end in time; nothing was changed."""

    kind = "busy"


class SwitchError(PersonaError):
    """A change failed after it had begun; what was served before is served again, if the message does not say other."""

    kind = "switch"


class ServerSteering:
    """One server's engine.

    Args:
        engine: vLLM's `EngineClient`.
        folder: that it was started on.
    """

    def __init__(self, engine: Any, folder: ExportedFolder) -> None:
        self._engine, self._folder = engine, folder
        self._default = folder.steering()
        self._workers: dict[str, Any] = {}
        self._lock = asyncio.Lock()
        self._broken = ""

    async def start(self) -> None:
        """Ask the workers what they hold, and tell the engine which version its answers are of."""
        self._note(await self._call("persona_steering"))
        if self._folder.certificate is not None:
            await self._engine.update_weight_version(self._weight_version())

    def describe(self) -> dict[str, Any]:
        """What is served, as JSON data.

        Returns:
            `version`, `label`, `base`, `personality` (empty without a certificate), `model_folder`; `steering`, that of
            requests that name no slot, or None; `as_exported`, whether it is what the version's export says; `slots` by
            name; `positions`, whether steering may depend on them; `switching`; `broken`, why nothing is answered any
            more, empty when all is well; `plugin`, its version.
        """
        held = self._workers.get("slots", {})
        return {
            **{key: self._folder[key] for key in ("version", "label", "base", "personality")},
            "model_folder": str(self._folder.path),
            "steering": held.get(DEFAULT),
            "as_exported": self._as_exported(),
            "slots": {name: held[name] for name in sorted(held) if name != DEFAULT},
            "positions": self._workers.get("positions", False),
            "switching": self._lock.locked(),
            "broken": self._broken,
            "plugin": __version__,
        }

    async def switch(self, path: Path, wait: float) -> dict[str, Any]:
        """Serve another export in place of this one.

        Args:
            path: its folder.
            wait: seconds that running requests have to end.

        Returns:
            See `describe`.

        Raises:
            NotFoundError, CorruptError, IncompatibleError: when the folder cannot be served here; nothing was changed.
            BusyError: nothing was changed.
            SwitchError: it failed on the way.
        """
        async with self._alone():
            other = await asyncio.to_thread(ExportedFolder, path)
            await asyncio.to_thread(self._folder.check_successor, other)
            table = await asyncio.to_thread(other.steering)
            self._check(table)
            mine, theirs = self._folder.weights(), other.weights()
            same = self._folder.path == other.path or (mine is not None and mine == theirs)
            if not same:
                await asyncio.to_thread(other.check_finite)
            async with self._paused(wait):
                before = self._folder, self._default
                try:
                    await self._serve(other, table, reload=not same)
                except Exception as error:
                    await self._restore(*before, reload=not same, because=error)
        return self.describe()

    async def steer(self, slot: str, table: SteeringTable | None, wait: float) -> dict[str, Any]:
        """Set a slot's steering, or clear it.

        Args:
            slot: which; `DEFAULT` for that of all requests that name none.
            table: None to clear.
            wait: seconds that running requests have to end.

        Returns:
            See `describe`.

        Raises:
            IncompatibleError, BusyError: nothing was changed.
            SwitchError: it failed on the way.
        """
        async with self._alone():
            self._check(table, slot)
            async with self._paused(wait):
                if slot == DEFAULT:
                    before = self._folder, self._default
                    try:
                        await self._serve(self._folder, table, reload=False)
                    except Exception as error:
                        await self._restore(*before, reload=False, because=error)
                else:
                    try:
                        await self._set(slot, table)
                    except Exception as error:
                        raise BusyError(f"the slot `{slot}` was not changed: {error}") from error
                    await self._forget()
        return self.describe()

    async def _serve(self, folder: ExportedFolder, table: SteeringTable | None, *, reload: bool) -> None:
        if reload:
            await self._call("reload_weights", weights_path=str(folder.path))
            for found in await self._call("persona_weights"):
                if found["not_finite"]:
                    names = "`, `".join(found["not_finite"][:3])
                    raise SwitchError(f"{len(found['not_finite'])} tensors of {folder.path} are not finite: `{names}`")
        await self._set(DEFAULT, table)
        await self._forget()
        self._folder, self._default = folder, table
        if folder.certificate is not None:
            await self._engine.update_weight_version(self._weight_version())

    async def _restore(
        self, folder: ExportedFolder, table: SteeringTable | None, *, reload: bool, because: Exception
    ) -> None:
        try:
            await self._serve(folder, table, reload=reload)
        except Exception as error:
            self._broken = f"{because}; and going back to {folder.path} failed: {error}"
            raise SwitchError(
                f"the server holds neither version and answers nothing any more: {self._broken}", "restart it"
            ) from error
        label = folder["label"] or str(folder.path)
        raise SwitchError(f"it failed, and {label} serves as before: {because}") from because

    async def _set(self, slot: str, table: SteeringTable | None) -> None:
        if table is None:
            self._note(await self._call("persona_clear_steering", slot))
        else:
            self._note(await self._call("persona_set_steering", base64.b64encode(to_bytes(table)).decode(), slot))

    async def _forget(self) -> None:
        """Empty the caches of what was computed before."""
        if not await self._engine.reset_prefix_cache(reset_connector=True):
            raise SwitchError("the prefix cache could not be emptied: requests hold blocks of it")
        await self._engine.reset_encoder_cache()

    async def _call(self, method: str, *arguments: Any, **named: Any) -> list[Any]:
        found: list[Any] = await self._engine.collective_rpc(method, args=arguments, kwargs=named)
        return found

    def _note(self, answers: list[Any]) -> None:
        self._workers = answers[0]
        KNOWN.replace(list(self._workers["slots"]))

    def _check(self, table: SteeringTable | None, slot: str = DEFAULT) -> None:
        if table is None:
            return
        workers = self._workers
        if (table.layers, table.width) != (workers["layers"], workers["width"]):
            raise IncompatibleError(
                f"the steering is for {table.layers} layers of width {table.width}, the model has {workers['layers']} "
                f"of width {workers['width']}",
                "it was made for another base",
            )
        if table.positional and not workers["positions"]:
            raise IncompatibleError(
                "the steering acts on replies, or on the prompt's end, and the server was started for steering that is "
                "the same everywhere",
                "restart it with PERSONA_STEERING=positions",
            )
        named = set(workers["slots"]) | {DEFAULT}
        if slot not in named and len(named) >= workers["capacity"]:
            raise IncompatibleError(
                f"all {workers['capacity']} slots are taken", "clear one, or restart it with a greater PERSONA_SLOTS"
            )

    def _as_exported(self) -> bool:
        try:
            exported = self._folder.steering()
        except PersonaError:
            return False
        held = self._workers.get("slots", {}).get(DEFAULT)
        return (exported.digest if exported else None) == (held["digest"] if held else None)

    def _weight_version(self) -> str:
        if self._as_exported():
            return self._folder["version"]
        return f"{self._folder['version']}+{self._default.digest[:12] if self._default else 'unsteered'}"

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        if self._broken:
            raise SwitchError(f"the server answers nothing any more: {self._broken}", "restart it")
        if self._lock.locked():
            raise BusyError("another change is under way; nothing was changed", "ask again in a moment")
        async with self._lock:
            yield

    @asynccontextmanager
    async def _paused(self, wait: float) -> AsyncIterator[None]:
        """Hold new requests back and wait for the running ones; go on at the end."""
        # Not cancelled when time is up: vLLM would answer into nothing.
        pause = asyncio.ensure_future(self._engine.pause_generation(mode="wait", clear_cache=False))
        done, _ = await asyncio.wait([pause], timeout=wait)
        try:
            if not done:
                raise BusyError(
                    f"requests were still running after {wait:g} s; nothing was changed",
                    "give a greater `wait_s`, or wait until they end",
                )
            pause.result()
            yield
        finally:
            # Weights of which nobody knows whose they are answer nothing.
            if not self._broken:
                await self._engine.resume_generation()
