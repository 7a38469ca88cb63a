"""Changes of a server, with an engine that fails where it is told to: what was served before is served again."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch

from personality.manifests.errors import IncompatibleError
from personality.serving.plugin.exported_folder import ExportedFolder
from personality.serving.plugin.model_steering import ModelSteering
from personality.serving.plugin.server_steering import BusyError, ServerSteering, SwitchError
from personality.serving.steering_table import SteeringTable, from_bytes
from tests.serving.plugin.folders import exported, table


class EngineClient:
    """What the routes call of vLLM's engine, with one worker; `fails` names calls that fail, once each."""

    def __init__(self, folder: ExportedFolder) -> None:
        layers: dict[int, torch.nn.Module] = {0: torch.nn.Identity(), 1: torch.nn.Identity()}
        self.steering = ModelSteering(
            layers, 2, 4, torch.float32, torch.device("cpu"), tokens=8, slots=2, positional=False
        )
        self.weights, self.version = str(folder.path), ""
        self.fails: list[str] = []
        self.paused, self.cached, self.drained = False, True, True
        self.not_finite: list[str] = []

    def _step(self, name: str) -> None:
        if name in self.fails:
            self.fails.remove(name)
            raise RuntimeError(f"{name} failed")

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        assert mode == "wait"
        self.paused = True
        while not self.drained:
            await asyncio.sleep(0.01)

    async def resume_generation(self) -> None:
        self.paused = False

    async def reset_prefix_cache(self, *, reset_connector: bool) -> bool:
        self._step("reset_prefix_cache")
        self.cached = False
        return True

    async def reset_encoder_cache(self) -> None:
        pass

    async def update_weight_version(self, version: str) -> None:
        self._step("update_weight_version")
        self.version = version

    async def collective_rpc(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        assert self.paused or method == "persona_steering"
        self._step(method)
        if method == "reload_weights":
            self.weights = kwargs["weights_path"]
            # A reload that breaks off leaves something between the two.
            self._step("end of reload_weights")
            return [None]
        if method == "persona_weights":
            bad = self.not_finite if self.weights.endswith("v2") else []
            return [{"parameters": 2, "not_finite": bad}]
        if method == "persona_set_steering":
            self.steering.set(args[1], from_bytes(base64.b64decode(args[0])))
        if method == "persona_clear_steering":
            self.steering.clear(args[0])
        return [self.steering.describe()]

    def state(self) -> tuple[Any, ...]:
        return self.weights, self.steering.describe()["slots"], self.version, self.paused


def run(steps: Coroutine[Any, Any, None]) -> None:
    asyncio.run(steps)


async def started(path: Path, steering: SteeringTable | None = None) -> tuple[ServerSteering, EngineClient, Path]:
    served = exported(path / "v1", version="v1", steering=steering)
    other = exported(path / "v2", version="v2", steering=table(2.0), weights=1.0)
    engine = EngineClient(served)
    held = served.steering()
    if held:
        engine.steering.set("", held)
    server = ServerSteering(engine, served)
    await server.start()
    return server, engine, other.path


def test_there_and_back(tmp_path: Path) -> None:
    async def steps() -> None:
        server, engine, other = await started(tmp_path, table(1.0))
        before = engine.state()
        found = await server.switch(other, 1)
        assert found["version"] == "v2" and found["steering"]["digest"] == table(2.0).digest
        assert engine.state()[0::2] == (str(other), "v2") and not engine.cached
        engine.cached = True
        await server.switch(tmp_path / "v1", 1)
        assert engine.state() == before and not engine.cached

    run(steps())


@pytest.mark.parametrize(
    "step",
    [
        "reload_weights",
        "end of reload_weights",
        "persona_weights",
        "persona_set_steering",
        "reset_prefix_cache",
        "update_weight_version",
    ],
)
def test_what_fails_is_taken_back(tmp_path: Path, step: str) -> None:
    async def steps() -> None:
        server, engine, other = await started(tmp_path, table(1.0))
        before = engine.state()
        engine.fails = [step]
        with pytest.raises(SwitchError, match=rf"v1 serves as before: {step} failed"):
            await server.switch(other, 1)
        assert engine.state() == before and not engine.cached
        assert server.describe()["version"] == "v1" and server.describe()["as_exported"]
        await server.switch(other, 1)
        assert server.describe()["version"] == "v2"

    run(steps())


def test_weights_that_are_not_finite_are_not_served(tmp_path: Path) -> None:
    async def steps() -> None:
        server, engine, other = await started(tmp_path)
        before = engine.state()
        engine.not_finite = ["weight"]
        with pytest.raises(SwitchError, match="`weight`"):
            await server.switch(other, 1)
        assert engine.state() == before

    run(steps())


def test_with_no_way_back_nothing_is_answered(tmp_path: Path) -> None:
    async def steps() -> None:
        server, engine, other = await started(tmp_path)
        engine.fails = ["persona_weights", "reload_weights"]
        calls = iter([None, RuntimeError("the disk is gone")])

        def reload_fails_second() -> None:
            error = next(calls)
            if error:
                raise error

        step = engine._step

        def fail(name: str) -> None:
            if name == "reload_weights":
                reload_fails_second()
            else:
                step(name)

        engine._step = fail  # type: ignore[method-assign]
        with pytest.raises(SwitchError, match=r"answers nothing any more: .*the disk is gone"):
            await server.switch(other, 1)
        assert engine.paused and "the disk is gone" in server.describe()["broken"]
        with pytest.raises(SwitchError, match="nothing any more"):
            await server.steer("", None, 1)

    run(steps())


def test_one_change_at_a_time_and_only_when_requests_have_ended(tmp_path: Path) -> None:
    async def steps() -> None:
        server, engine, other = await started(tmp_path)
        before = engine.state()
        engine.drained = False
        with pytest.raises(BusyError, match=r"still running after 0\.05 s"):
            await server.switch(other, 0.05)
        assert engine.state() == before
        first = asyncio.ensure_future(server.switch(other, 5))
        await asyncio.sleep(0.05)
        assert server.describe()["switching"]
        with pytest.raises(BusyError, match="under way"):
            await server.switch(other, 5)
        engine.drained = True
        assert (await first)["version"] == "v2"

    run(steps())


def test_equal_weights_are_not_read_again(tmp_path: Path) -> None:
    async def steps() -> None:
        server, engine, _ = await started(tmp_path)
        exported(tmp_path / "v3", version="v3", steering=table(3.0))
        engine.fails = ["reload_weights"]
        assert (await server.switch(tmp_path / "v3", 1))["version"] == "v3"
        assert engine.fails == ["reload_weights"]

    run(steps())


def test_steering_by_hand_is_told_apart(tmp_path: Path) -> None:
    async def steps() -> None:
        server, engine, _ = await started(tmp_path, table(1.0))
        found = await server.steer("", table(5.0), 1)
        assert not found["as_exported"] and engine.version == f"v1+{table(5.0).digest[:12]}"
        found = await server.steer("", None, 1)
        assert not found["as_exported"] and engine.version == "v1+unsteered"
        assert (await server.steer("", table(1.0), 1))["as_exported"] and engine.version == "v1"
        assert [*(await server.steer("warm", table(2.0), 1))["slots"]] == ["warm"]
        with pytest.raises(IncompatibleError, match="all 2 slots"):
            await server.steer("cold", table(2.0), 1)
        with pytest.raises(IncompatibleError, match="acts on replies") as refused:
            await server.steer("", table(2.0, positional=True), 1)
        assert "PERSONA_STEERING=positions" in refused.value.hint
        assert (await server.steer("warm", None, 1))["slots"] == {}

    run(steps())
