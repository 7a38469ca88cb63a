"""What the environment tells the plugin."""

from __future__ import annotations

import os
from typing import Any

VARIABLE = "PERSONA_STEERING"
SLOTS_VARIABLE = "PERSONA_SLOTS"
ARGUMENT = "persona"
"""A request's own argument (`vllm_xargs`) that names the slot it is steered by."""
DEFAULT = ""
"""Name of the slot that steers requests which name none."""
_FORMAT = 1
"""Changes with what the plugin adds to a model's graph: compiled artifacts of another one are not used."""


def positions() -> bool:
    """Whether steering may depend on where a token is (`PERSONA_STEERING=positions`).

    Raises:
        ValueError: for another value than `positions` or `everywhere`.
    """
    found = os.environ.get(VARIABLE, "everywhere")
    if found not in ("everywhere", "positions"):
        raise ValueError(f"{VARIABLE}={found}: it is `everywhere` (the default) or `positions`")
    return found == "positions"


def slot_count() -> int:
    """Slots of the server, the default one included (`PERSONA_SLOTS`).

    Raises:
        ValueError: when it is no number from 1 on.
    """
    found = os.environ.get(SLOTS_VARIABLE, "8")
    if not found.isdecimal() or int(found) < 1:
        raise ValueError(f"{SLOTS_VARIABLE}={found}: it is a number of slots, 1 or more")
    return int(found)


def graph_salt() -> str:
    """What tells graphs with the plugin from graphs without, or of other tables."""
    return f"persona-{_FORMAT}-{slot_count()}"


def slot_of(parameters: Any) -> str:
    """Slot that a request's sampling parameters name; the default one for none, and for what is not generated."""
    found = (getattr(parameters, "extra_args", None) or {}).get(ARGUMENT)
    return DEFAULT if found is None else str(found)
