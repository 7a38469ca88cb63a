"""A small server of transformers on shared weights, in a process of its own: `reader.py` starts it.

    python -m personality.live.reader_process ANSWERS MODEL_FOLDER DESCRIPTOR in-place|copied

Questions are lines of JSON on stdin, answers leave on the descriptor ANSWERS:

    {"generate": [ids], "max_tokens": N}      one greedy reply
    {"serve": [[ids]], "max_tokens": N, "into": FILE}
                                              replies to one prompt after the other until the writer has finished;
                                              what was answered, and by which weights, goes into FILE

`in-place` lets the model's parameters be views on the shared memory, whatever is being written there; `copied` copies
the weights of one step before each reply. It ends with its stdin.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from personality.live.shared_weights import Reading, SharedWeights, reading
from personality.model import load_model


@dataclass(frozen=True)
class Reply:
    """One greedy reply.

    Attributes:
        ids: its tokens, the one that ended it included.
        log_probabilities: of the whole vocabulary at each of its positions, float32 (tokens, vocabulary), nats.
        passes: what each forward pass read.
        seconds: from the question to the last token, a copy of the weights included.
        copying: of these, seconds spent on copying weights.
        behind: steps that the writer had taken since, when the reply was done.
    """

    ids: list[int]
    log_probabilities: Tensor
    passes: list[Reading]
    seconds: float
    copying: float
    behind: int


class Reader:
    """A model that answers from shared weights.

    Args:
        folder: of the base: configuration, and what is not among the shared weights.
        shared: the weights.
        copied: answer from a copy of one step's weights, made before each reply, instead of from the memory itself.
    """

    def __init__(self, folder: Path, shared: SharedWeights, *, copied: bool) -> None:
        self.shared = shared
        self.copied = copied
        self.model: Any = load_model(folder).to("cpu")
        ends = self.model.generation_config.eos_token_id
        self._ends = {ends} if isinstance(ends, int) else set(ends or ())
        if not copied:
            shared.adopt(self.model)

    @torch.inference_mode()
    def reply(self, prompt: list[int], max_tokens: int) -> Reply:
        """Answer greedily.

        Args:
            prompt: token ids.
            max_tokens: longest reply.
        """
        began = time.perf_counter()
        copied: Reading | None = None
        if self.copied:
            step, _ = self.shared.copy_into(self.model)
            copied = Reading(step, step)
        copying = time.perf_counter() - began
        ids: list[int] = []
        rows: list[Tensor] = []
        passes: list[Reading] = []
        given, cache = torch.tensor([prompt]), None
        while len(ids) < max_tokens and not (ids and ids[-1] in self._ends):
            before = self.shared.stamp()
            output = self.model(input_ids=given, past_key_values=cache, use_cache=True)
            row = output.logits[0, -1].float().log_softmax(-1)
            passes.append(copied or reading(before, self.shared.stamp()))
            cache = output.past_key_values
            rows.append(row)
            ids.append(int(row.argmax()))
            given = torch.tensor([ids[-1:]])
        seconds = time.perf_counter() - began
        return Reply(ids, torch.stack(rows), passes, seconds, copying, self.shared.step - passes[-1].first)

    def serve(self, prompts: list[list[int]], max_tokens: int) -> list[tuple[int, Reply]]:
        """Answer one prompt after the other until the writer has finished, or is gone.

        Args:
            prompts: token ids of each.
            max_tokens: longest reply.

        Returns:
            Number of the prompt, and the reply.
        """
        writer = os.getppid()
        found: list[tuple[int, Reply]] = []
        while not self.shared.closed and os.getppid() == writer:
            number = len(found) % len(prompts)
            found.append((number, self.reply(prompts[number], max_tokens)))
        return found


def save(replies: list[tuple[int, Reply]], into: Path) -> None:
    """Write replies as tensors: `log_probabilities` (tokens, vocabulary), and for each token `prompt`, `reply`, `ids`,
    `first` and `last` (see `Reading`); for each reply `seconds`, `copying` and `behind`.
    """
    tokens = [(row, at, reading) for row, (_, reply) in enumerate(replies) for at, reading in enumerate(reply.passes)]
    save_file(
        {
            "log_probabilities": torch.cat([reply.log_probabilities for _, reply in replies]),
            "prompt": torch.tensor([replies[row][0] for row, _, _ in tokens]),
            "reply": torch.tensor([row for row, _, _ in tokens]),
            "ids": torch.tensor([replies[row][1].ids[at] for row, at, _ in tokens]),
            "first": torch.tensor([item.first for _, _, item in tokens]),
            "last": torch.tensor([item.last for _, _, item in tokens]),
            "seconds": torch.tensor([reply.seconds for _, reply in replies]),
            "copying": torch.tensor([reply.copying for _, reply in replies]),
            "behind": torch.tensor([reply.behind for _, reply in replies]),
        },
        str(into),
    )


def answer(reader: Reader, question: dict[str, Any]) -> dict[str, Any]:
    """What a question asks for, as JSON data."""
    if "serve" in question:
        replies = reader.serve(question["serve"], question["max_tokens"])
        if replies:
            save(replies, Path(question["into"]))
        return {"replies": len(replies)}
    found = reader.reply(question["generate"], question["max_tokens"])
    return {
        "ids": found.ids,
        "passes": [[item.first, item.last] for item in found.passes],
        "log_probability": float(found.log_probabilities.amax(-1).sum()),
        "seconds": found.seconds,
    }


def main(arguments: list[str], questions: Iterable[str]) -> int:
    """Answer until the questions end."""
    answers, folder, descriptor, how = arguments
    torch.set_num_threads(1)
    reader = Reader(Path(folder), SharedWeights(int(descriptor)), copied=how == "copied")
    with os.fdopen(int(answers), "w", encoding="utf-8") as out:
        out.write(json.dumps({"ready": os.getpid()}) + "\n")
        out.flush()
        for line in questions:
            out.write(json.dumps(answer(reader, json.loads(line))) + "\n")
            out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdin))
