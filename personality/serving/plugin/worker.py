"""What vLLM's workers get: steering installed when a model is loaded, and methods to change and read it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from personality.manifests.errors import PersonaError
from personality.serving.plugin import settings
from personality.serving.plugin.exported_folder import ExportedFolder
from personality.serving.plugin.model_steering import ModelSteering, decoder_layers
from personality.serving.plugin.reloading import extend_reloading
from personality.serving.plugin.slots import KNOWN
from personality.serving.steering_table import from_bytes


def extend(worker: type[Any]) -> None:
    """Give a class of workers (`vllm.v1.worker.gpu_worker.Worker`) the methods below.

    Args:
        worker: its subclasses inherit them.
    """
    load_model = worker.load_model

    def load_and_install(self: Any, *args: Any, **options: Any) -> Any:
        found = load_model(self, *args, **options)
        install(self)
        return found

    worker.load_model = load_and_install
    extend_reloading(worker)
    for method in (persona_set_steering, persona_clear_steering, persona_steering, persona_weights):
        setattr(worker, method.__name__, method)


def install(worker: Any) -> None:
    """Put steering into a worker's model, before anything is compiled; what its folder brings acts at once.

    Raises:
        RuntimeError: where it cannot be applied as it should be.
    """
    runner, config = worker.model_runner, worker.vllm_config
    if worker.use_v2_model_runner:
        raise RuntimeError("persona: needs vLLM's first model runner: start it with VLLM_USE_V2_MODEL_RUNNER=0")
    parallel = config.parallel_config
    if parallel.use_ubatching or getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        raise RuntimeError(
            "persona: a pass that is cut into parts (`--enable-dbo`, `--ubatch-size`, "
            "`--prefill-context-parallel-size`) cannot be steered: start it without"
        )
    model, text = runner.get_model(), config.model_config.hf_text_config
    count = text.num_hidden_layers
    worker.persona = ModelSteering(
        decoder_layers(model, count),
        count,
        text.hidden_size,
        config.model_config.dtype,
        worker.device,
        # A pass may be padded to the next size that a graph was made for.
        tokens=max(runner.max_num_tokens, config.compilation_config.max_cudagraph_capture_size or 0),
        slots=settings.slot_count(),
        positional=settings.positions(),
    )
    _schedule_with(runner, worker.persona)
    # Where requests are taken in this process too, none may name a slot yet.
    KNOWN.replace([])
    folder = Path(config.model_config.model)
    if folder.is_dir():
        table = ExportedFolder(folder).steering()
        if table is not None:
            worker.persona.set(settings.DEFAULT, table)


def _schedule_with(runner: Any, steering: ModelSteering) -> None:
    import torch

    prepare = runner._prepare_inputs

    def prepare_and_schedule(scheduler_output: Any, scheduled: Any, *args: Any, **options: Any) -> Any:
        prepared = prepare(scheduler_output, scheduled, *args, **options)
        batch = runner.input_batch
        names = [settings.slot_of(runner.requests[name].sampling_params) for name in batch.req_ids]
        steering.schedule(
            names,
            torch.from_numpy(batch.num_computed_tokens_cpu[: len(names)]).long(),
            torch.from_numpy(batch.num_prompt_tokens[: len(names)]).long(),
            torch.from_numpy(scheduled[: len(names)]).long(),
        )
        return prepared

    runner._prepare_inputs = prepare_and_schedule


def persona_set_steering(self: Any, encoded: str, slot: str = settings.DEFAULT) -> dict[str, Any]:
    """Method of workers: steer a slot's requests by a table (its file's bytes in base64); see `ModelSteering.set`."""
    try:
        self.persona.set(slot, from_bytes(base64.b64decode(encoded)))
    except PersonaError as error:
        raise ValueError(f"{error.message}; {error.hint}") from error
    return persona_steering(self)


def persona_clear_steering(self: Any, slot: str = settings.DEFAULT) -> dict[str, Any]:
    """Method of workers: steer a slot's requests no more."""
    self.persona.clear(slot)
    return persona_steering(self)


def persona_steering(self: Any) -> dict[str, Any]:
    """Method of workers: what is held; see `ModelSteering.describe`."""
    found: dict[str, Any] = self.persona.describe()
    return found


def persona_weights(self: Any) -> dict[str, Any]:
    """Method of workers: how many `parameters` there are, and names of those `not_finite` among them.

    What a kernel has packed away is no parameter any more and is not seen here.
    """
    named = list(self.model_runner.get_model().named_parameters())
    # Quantized tensors have no notion of infinity and are left out.
    bad = [
        name
        for name, tensor in named
        if tensor.is_floating_point() and tensor.element_size() > 1 and not bool(tensor.isfinite().all())
    ]
    return {"parameters": len(named), "not_finite": bad}
