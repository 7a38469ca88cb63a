"""What requests are to the plugin: keys of their cached blocks, and refusals of slots that are not there."""

from __future__ import annotations

from typing import Any

import pytest

from personality.serving.plugin.prefix_keys import keys_of
from personality.serving.plugin.slots import KnownSlots, extend_core


class Parameters:
    def __init__(self, slot: object = None) -> None:
        self.extra_args = None if slot is None else {"persona": slot}


class Request:
    def __init__(self, prompt: int, slot: object = None) -> None:
        self.num_prompt_tokens, self.sampling_params = prompt, Parameters(slot)


def test_blocks_are_told_apart() -> None:
    assert keys_of(Request(20), 0, 16, positional=True) == []
    assert keys_of(Request(20), 16, 32, positional=True) == [("persona-end", 19)]
    assert keys_of(Request(16), 0, 16, positional=True) == [("persona-end", 15)]
    assert keys_of(Request(17), 0, 16, positional=True) == []
    assert keys_of(Request(20), 16, 32, positional=False) == []
    assert keys_of(Request(40, "warm"), 0, 16, positional=False) == [("persona", "warm")]
    assert keys_of(Request(40, "warm"), 16, 32, positional=False) == []


def test_requests_for_unknown_slots_are_refused() -> None:
    known = KnownSlots()
    assert known.refusal(Parameters("warm")) == ""  # nobody has told yet: the engine decides
    known.replace(["", "warm"])
    assert known.refusal(Parameters()) == known.refusal(Parameters("warm")) == known.refusal(None) == ""
    assert "no slot `cold`" in known.refusal(Parameters("cold"))
    for wrong in ("", 3, ["warm"]):
        assert "name of a slot" in known.refusal(Parameters(wrong))


class Engine:
    """What is extended of vLLM's engine: it schedules requests, and passes calls on to workers."""

    def __init__(self) -> None:
        self.scheduler = self
        self.requests: dict[str, Any] = {}
        self.slots: dict[str, str] = {}
        self.refused: list[str] = []

    def collective_rpc(self, method: str, timeout: Any = None, args: Any = (), kwargs: Any = None) -> list[Any]:
        if method == "persona_set_steering":
            self.slots[args[1]] = args[0]
        elif method == "persona_clear_steering":
            self.slots.pop(args[0], None)
        return [{"slots": dict(self.slots)}]

    def add_request(self, request: Any, wave: int = 0) -> None:
        self.requests[request.request_id] = request


class Process(Engine):
    """The engine in a process of its own, which sends errors to where requests come from."""

    def _send_error_outputs_to_client(self, names: list[str], client: int) -> None:
        self.refused += names


class Asked(Request):
    def __init__(self, name: str, slot: object = None) -> None:
        super().__init__(9, slot)
        self.request_id, self.client_index = name, 0


@pytest.fixture(scope="module", autouse=True)
def _extended() -> None:
    extend_core(Engine)


def test_the_engine_takes_only_requests_for_slots_that_are_set() -> None:
    engine = Process()
    engine.add_request(Asked("first", "warm"))
    engine.collective_rpc("persona_set_steering", None, ("table", "warm"))
    engine.add_request(Asked("second", "warm"))
    engine.add_request(Asked("third"))
    assert (engine.refused, [*engine.requests]) == (["first"], ["second", "third"])
    with pytest.raises(ValueError, match="no slot `cold`"):
        Engine().add_request(Asked("first", "cold"))


def test_a_slot_that_requests_wait_for_is_not_cleared() -> None:
    engine = Process()
    engine.collective_rpc("persona_set_steering", None, ("table", "warm"))
    engine.add_request(Asked("first", "warm"))
    with pytest.raises(ValueError, match="1 requests are to be steered by `warm`"):
        engine.collective_rpc("persona_clear_steering", None, ("warm",))
    assert engine.slots == {"warm": "table"}
    engine.requests.clear()
    engine.collective_rpc("persona_clear_steering", None, ("warm",))
    engine.add_request(Asked("second", "warm"))
    assert engine.refused == ["second"]
