"""What vLLM calls in each of its processes when the plugin is on."""

from __future__ import annotations

import os
from typing import Any

from personality.serving.plugin import prefix_keys, settings, slots, worker

_done: list[bool] = []


def register() -> None:
    """Extend vLLM; called again, it does nothing.

    Raises:
        ValueError: when the environment's settings are wrong.
    """
    if _done:
        return
    settings.positions(), settings.slot_count()
    # Tokens' rows are told through the first model runner; set before any configuration is made.
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")

    from vllm.config import VllmConfig
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.gpu_worker import Worker

    worker.extend(Worker)
    prefix_keys.extend(kv_cache_utils)
    slots.extend_core(EngineCore)
    slots.extend_processor(InputProcessor)
    _salt(VllmConfig)
    _done.append(True)


def _salt(config: type[Any]) -> None:
    """Give compiled artifacts made with the plugin names of their own: a graph without it knows no steering."""
    compute = config.compute_hash

    def salted(self: Any, *args: Any, **options: Any) -> str:
        import hashlib

        found: str = compute(self, *args, **options)
        return hashlib.sha256(f"{found}{settings.graph_salt()}".encode()).hexdigest()[: len(found)]

    config.compute_hash = salted
