"""Requests that name a slot which is not there are refused, before they reach a batch."""

from __future__ import annotations

from typing import Any

from personality.serving.plugin import settings

_SETS, _CLEARS = "persona_set_steering", "persona_clear_steering"


class KnownSlots:
    """Names that requests may use, as one process knows them."""

    def __init__(self) -> None:
        self.names: set[str] | None = None

    def replace(self, names: list[str]) -> None:
        """Know exactly these; before the first call anything may be there."""
        self.names = set(names)

    def refusal(self, parameters: Any) -> str:
        """Why a request with these sampling parameters is refused; empty when it is not."""
        found = (getattr(parameters, "extra_args", None) or {}).get(settings.ARGUMENT)
        if found is None:
            return ""
        if not isinstance(found, str) or found == settings.DEFAULT:
            return f"`{settings.ARGUMENT}` is {found!r}: it is the name of a slot of steering"
        if self.names is not None and found not in self.names:
            names = ", ".join(f"`{name}`" for name in sorted(self.names - {settings.DEFAULT})) or "none"
            return f"there is no slot `{found}` of steering; set: {names}"
        return ""


KNOWN = KnownSlots()
"""Of the process that takes requests; the routes tell it, or the engine where that is the same process."""


def extend_processor(processor: type[Any]) -> None:
    """Refuse in the process that takes requests (`vllm.v1.engine.input_processor.InputProcessor`)."""
    validate = processor._validate_params

    def validate_slot(self: Any, params: Any, *args: Any, **options: Any) -> Any:
        refusal = KNOWN.refusal(params)
        if refusal:
            from vllm.exceptions import VLLMValidationError

            raise VLLMValidationError(refusal, parameter=settings.ARGUMENT)
        return validate(self, params, *args, **options)

    processor._validate_params = validate_slot


def extend_core(core: type[Any]) -> None:
    """Refuse in the process that schedules (`vllm.v1.engine.core.EngineCore`), which sees every change in order.

    A request that was taken before its slot was cleared ends here, with an error, and not in a batch.
    """
    rpc, add = core.collective_rpc, core.add_request

    def rpc_and_note(self: Any, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None) -> Any:
        if method == _CLEARS and args and args[0] != settings.DEFAULT:
            waiting = sum(
                settings.slot_of(request.sampling_params) == args[0] for request in self.scheduler.requests.values()
            )
            if waiting:
                raise ValueError(f"{waiting} requests are to be steered by `{args[0]}`: wait for them, then clear it")
        answers = rpc(self, method, timeout, args, kwargs)
        if method in (_SETS, _CLEARS):
            for known in (_known(self), KNOWN):
                known.replace([*answers[0]["slots"]])
        return answers

    def add_checked(self: Any, request: Any, *args: Any, **options: Any) -> Any:
        refusal = _known(self).refusal(request.sampling_params)
        if not refusal:
            return add(self, request, *args, **options)
        if not hasattr(self, "_send_error_outputs_to_client"):
            raise ValueError(refusal)
        self._send_error_outputs_to_client([request.request_id], request.client_index)
        return None

    core.collective_rpc = rpc_and_note
    core.add_request = add_checked


def _known(core: Any) -> KnownSlots:
    if not hasattr(core, "persona_slots"):
        core.persona_slots = KnownSlots()
        core.persona_slots.replace([])
    found: KnownSlots = core.persona_slots
    return found
