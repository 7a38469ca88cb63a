"""The reading process: it answers by the weights in the memory, and nothing stays behind when either side is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from personality.live.reader import ReaderProcess
from personality.live.shared_weights import SharedWeights
from personality.manifests.errors import PersonaError
from personality.model import load_model
from tests.conftest import tiny_checkpoint

PROMPT = [5, 17, 40, 8]
OWNER = """
import sys
from pathlib import Path
from personality.live.reader import ReaderProcess
from personality.live.shared_weights import SharedWeights
from personality.model import load_model
folder = Path(sys.argv[1])
parameters = dict(load_model(folder).named_parameters())
shared = SharedWeights.create(parameters, parameters)
reader = ReaderProcess(folder, shared)
reader.ask({"generate": [5, 17, 40, 8], "max_tokens": 2})
reader.send({"serve": [[5, 17]], "max_tokens": 4, "into": str(folder / "replies.safetensors")})
print(reader.process.pid, flush=True)
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("reader") / "base")


def greedy(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_it_answers_by_what_is_in_the_memory(base: Path, tmp_path: Path) -> None:
    model = load_model(base)
    parameters = dict(model.named_parameters())
    shared = SharedWeights.create(parameters, parameters)
    question = {"generate": PROMPT, "max_tokens": 6}
    with ReaderProcess(base, shared) as in_place, ReaderProcess(base, shared, "copied") as copied:
        old = greedy(model, PROMPT, 6)
        assert in_place.ask(question)["ids"] == copied.ask(question)["ids"] == old
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.mul_(-1.5)
        assert in_place.ask(question)["ids"] == old  # nobody has told them yet
        shared.write(7, parameters)
        new = greedy(model, PROMPT, 6)
        assert new != old
        for reader in (in_place, copied):
            answer = reader.ask(question)
            assert answer["ids"] == new and answer["passes"] == [[7, 7]] * 6
        # While a step is being written the one reads on, and says so; the other waits for a whole copy.
        into = tmp_path / "replies.safetensors"
        for reader, torn in ((copied, False), (in_place, True)):
            with shared.writing(shared.step + 1):
                reader.send({"serve": [PROMPT], "max_tokens": 3, "into": str(into)})
                time.sleep(0.3)
            time.sleep(0.3)
            shared.finish()
            assert reader.answer()["replies"] > 0
            found = load_file(into)
            assert bool((found["first"] != found["last"]).any()) is torn
            assert found["log_probabilities"].shape == (len(found["ids"]), 97)
            shared._flags[0] = 0
    shared.close()


def test_a_killed_reader_breaks_nothing(base: Path) -> None:
    parameters = dict(load_model(base).named_parameters())
    shared = SharedWeights.create(parameters, parameters)
    with ReaderProcess(base, shared) as reader:
        reader.process.kill()
        with pytest.raises(PersonaError, match="ended with code -9"):
            reader.ask({"generate": PROMPT, "max_tokens": 1})
    shared.write(1, parameters)
    with ReaderProcess(base, shared) as reader:
        assert reader.ask({"generate": PROMPT, "max_tokens": 1})["passes"] == [[1, 1]]
    shared.close()


def test_a_killed_writer_leaves_nothing_behind(base: Path) -> None:
    before = set(Path("/dev/shm").iterdir())
    for _ in range(2):  # the second start finds nothing in its way
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(base)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert owner.stdout is not None
        reader = int(owner.stdout.readline())
        assert _holds_shared_weights(reader)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        for _ in range(600):
            if not _holds_shared_weights(reader):
                break
            time.sleep(0.05)
        else:
            os.kill(reader, signal.SIGKILL)
            raise AssertionError("the reader outlived its writer by half a minute")
    assert set(Path("/dev/shm").iterdir()) <= before


def _holds_shared_weights(process: int) -> bool:
    try:
        return "persona-weights" in Path(f"/proc/{process}/maps").read_text()
    except OSError:
        return False


def test_why_it_cannot_start_is_told(tmp_path: Path) -> None:
    shared = SharedWeights.create({"w": torch.ones(1)}, {"w"})
    with pytest.raises(PersonaError, match="ended with code 1") as caught:
        ReaderProcess(tmp_path, shared)
    assert str(tmp_path) in caught.value.hint
    assert json.dumps(caught.value.message)
    shared.close()
