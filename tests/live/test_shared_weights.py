"""Shared weights: the layout, what counts as torn, and a writer and a reader that know nothing of each other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from personality.live.shared_weights import Reading, SharedWeights, reading
from personality.manifests.errors import CorruptError, PersonaError

WRITER = """
import sys
import torch
from personality.live.shared_weights import SharedWeights
shared = SharedWeights(int(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for step in range(1, 10_000_000):
    shared.write(step, {name: torch.full_like(shared.tensors[name], step % 1000) for name in shared.changing})
    if step % 100 == 0 and shared.closed:
        break
"""


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "embed": torch.randn(5, 3, generator=generator).to(torch.bfloat16),
        "up": torch.randn(7, generator=generator),
        "down": torch.randn(2, 2, 2, generator=generator, dtype=torch.float64),
    }


def test_the_memory_holds_the_tensors_and_another_view_sees_what_is_written() -> None:
    given = some_tensors()
    shared = SharedWeights.create(given, {"up", "down"})
    other = SharedWeights(os.dup(shared.descriptor))
    assert shared.changing == ["up", "down"] and list(other.tensors) == list(given)
    for name, tensor in given.items():
        assert other.tensors[name].dtype == tensor.dtype and torch.equal(other.tensors[name], tensor)
        assert other.tensors[name].data_ptr() % 64 == shared.tensors[name].data_ptr() % 64
    shared.write(3, {"up": torch.ones(7), "down": torch.zeros(2, 2, 2)})
    assert other.tensors["up"].tolist() == [1.0] * 7 and not other.tensors["down"].any()
    assert torch.equal(other.tensors["embed"], given["embed"])
    assert other.step == 3 and not other.closed
    shared.finish()
    assert other.closed
    assert sum(tensor.nbytes for tensor in given.values()) < shared.nbytes < 4096
    for each in (shared, other):
        each.close()


def test_a_foreign_descriptor_is_refused() -> None:
    descriptor = os.memfd_create("other")
    os.ftruncate(descriptor, 100)
    with pytest.raises(CorruptError, match="no shared weights"):
        SharedWeights(descriptor)
    os.close(descriptor)


def test_what_is_read_around_a_write_is_torn() -> None:
    shared = SharedWeights.create(some_tensors(), {"up", "down"})
    at_rest = shared.stamp()
    assert reading(at_rest, shared.stamp()) == Reading(0, 0)
    with shared.writing(1):
        during = shared.stamp()
        assert reading(during, shared.stamp()) == Reading(0, 1)
    assert reading(during, shared.stamp()).torn  # what was begun before the first stamp counts
    assert reading(at_rest, shared.stamp()) == Reading(0, 1)
    now = shared.stamp()
    assert reading(now, shared.stamp()) == Reading(1, 1) and not reading(now, shared.stamp()).torn
    shared.write(2, {name: shared.tensors[name].clone() for name in shared.changing})
    shared.write(5, {name: shared.tensors[name].clone() for name in shared.changing})
    assert reading(now, shared.stamp()) == Reading(1, 5)
    shared.close()


def test_a_writer_in_another_process_is_caught_in_the_act() -> None:
    shapes = {f"layer.{number}": torch.zeros(64, 64) for number in range(12)}
    shared = SharedWeights.create(shapes, shapes)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(shared.descriptor)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(shared.descriptor,),
    )
    try:
        assert writer.stdout is not None and writer.stdin is not None
        assert writer.stdout.readline() == b"ready\n"
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
        whole, torn, mixed, rounds = 0, 0, 0, 0
        while rounds < 200_000 and (min(torn, mixed) < 20 or whole < 20):
            before = shared.stamp()
            values = {float(tensor.min()) for tensor in shared.tensors.values()}
            values |= {float(tensor.max()) for tensor in shared.tensors.values()}
            found = reading(before, shared.stamp())
            rounds += 1
            mixed += len(values) > 1
            if found.torn:
                torn += 1
                assert shared.step >= found.first
            else:  # what is called whole is whole, and of the step that it is said to be of
                whole += 1
                assert values == {float(found.first % 1000)}
            if rounds % 50 == 0:
                writer.send_signal(
                    signal.SIGSTOP if rounds % 100 else signal.SIGCONT
                )  # pauses, as between the steps of a training
        assert torn >= mixed > 0 and whole > 0
    finally:
        shared.finish()
        writer.kill()
        writer.wait()
        shared.close()


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 4)
        self.down = nn.Linear(4, 3)


def test_an_adopted_model_is_the_memory() -> None:
    model, other = Small(), Small()
    named = dict(model.named_parameters())
    shared = SharedWeights.create(named, named)
    kept = named["up.weight"].detach().clone()
    shared.adopt(model)
    assert torch.equal(named["up.weight"], kept)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.down(model.up(torch.ones(2, 3))).sum().backward()
    with shared.writing(1):
        optimizer.step()
    assert not torch.equal(shared.tensors["up.weight"], kept)
    assert torch.equal(shared.tensors["up.weight"], named["up.weight"])
    assert shared.copy_into(other) == (1, 0)
    assert all(torch.equal(named[name], tensor) for name, tensor in other.named_parameters())
    with pytest.raises(CorruptError, match=r"0\.weight"):
        shared.adopt(nn.Sequential(nn.Linear(3, 3)))
    with shared.writing(2), pytest.raises(PersonaError, match="never at rest"):
        shared.copy_into(other, patience=0.05)
    shared.close()


def test_too_little_memory_is_told() -> None:
    with pytest.raises(PersonaError, match="no room for"):
        SharedWeights.create({"w": torch.empty(1).expand(1 << 50)}, {"w"})
