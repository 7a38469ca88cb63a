"""What requests are to the plugin: keys of their cached blocks, and refusals of slots that are not there."""

from __future__ import annotations

from personality.serving.plugin.prefix_keys import keys_of
from personality.serving.plugin.slots import KnownSlots


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
