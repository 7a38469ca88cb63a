"""vLLM for tests: its environment, and one engine process that loads one model after another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from personality.manifests.errors import PersonaError
from personality.serving.engine import Engine
from personality.serving.vllm_environment import VARIABLE, VllmEnvironment, find_vllm

# vLLM would bind to processors and take nine tenths of the memory, beside other engines of these tests.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

_OURS = Path(__file__).parents[2] / ".venv-vllm"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)


@pytest.fixture(scope="session")
def vllm() -> VllmEnvironment:
    """The environment of `make test-vllm`, or the one that PERSONA_VLLM names."""
    try:
        return find_vllm(None if os.environ.get(VARIABLE) else _OURS)
    except PersonaError as error:
        pytest.fail(f"{error}: `make test-vllm` makes one")


@pytest.fixture(scope="session")
def stock(vllm: VllmEnvironment) -> Iterator[Engine]:
    """vLLM without plugins; `load` puts another model in place of the one before."""
    with Engine(vllm) as engine:
        yield engine
