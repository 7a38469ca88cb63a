"""What keeps a method's bits the same everywhere: its own random numbers, one thread, no remark on the terminal."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

from personality.manifests.canonical import digest

_RANDOM = threading.Lock()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute in the calling thread alone: a sum over a whole tensor depends on how many threads share it.

    Several tensors can be composed at the same time, each in a thread of its own.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def drawing(seed: int, name: str, vector: str) -> Iterator[None]:
    """Draw numbers that depend on these three only, and leave the global generator as it was.

    Args:
        seed: the recipe's.
        name: of the tensor.
        vector: id of the vector; empty for what does not belong to one.
    """
    generator = torch.default_generator
    with _RANDOM:  # mergekit draws from the one generator of the process
        before = generator.get_state()
        generator.manual_seed(int(digest([seed, name, vector])[:15], 16))
        try:
            yield
        finally:
            generator.set_state(before)
