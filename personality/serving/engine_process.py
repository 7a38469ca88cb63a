"""Runs inside vLLM's environment: loads a model folder and answers questions about it, one JSON object a line.

    python engine_process.py            (needs nothing but vLLM; questions on stdin, answers on the file descriptor
                                         that the variable PERSONA_ANSWERS names: engines print on stdout)

Questions: `{"load": FOLDER, ...arguments of vllm.LLM}`; `{"log_probabilities": [[ids]], "top": K, "into": FILE}`;
`{"answers": [[ids]], "max_tokens": N}`; `{"generate": [[ids]], "max_tokens": N}` (all three with `"lora": FOLDER`);
`{"call": NAME, "args": [...]}` (a method of the workers). Answers: `{"ok": ...}` or `{"error": TEXT}`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


class Engine:
    """One loaded model at a time."""

    def __init__(self) -> None:
        self._llm: Any = None
        self._adapters: dict[tuple[str, int], Any] = {}

    def answer(self, question: dict[str, Any]) -> Any:
        """What a question asks for, as JSON data."""
        if "load" in question:
            return self.load(question)
        if self._llm is None:
            raise RuntimeError("no model is loaded")
        if "log_probabilities" in question:
            into, lora = question["into"], question.get("lora")
            return self.log_probabilities(question["log_probabilities"], question.get("top"), into, lora)
        if "answers" in question:
            return self.answers(question["answers"], question["max_tokens"], question.get("lora"))
        if "generate" in question:
            extra, lora = question.get("extra_args"), question.get("lora")
            return self.generate(question["generate"], question["max_tokens"], extra, lora)
        if "reset_prefix_cache" in question:
            return bool(self._llm.reset_prefix_cache())
        return self._llm.collective_rpc(question["call"], args=tuple(question.get("args", ())))

    def load(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Load a folder in place of the one before."""
        import vllm

        if self._llm is not None:
            from vllm.distributed import cleanup_dist_env_and_memory

            self._llm = None
            gc.collect()
            cleanup_dist_env_and_memory()
        options = {name: value for name, value in arguments.items() if name != "load"}
        self._llm = vllm.LLM(arguments["load"], **options)
        config = self._llm.llm_engine.vllm_config.model_config
        return {"vllm": vllm.__version__, "dtype": str(config.dtype), "vocabulary": int(config.get_vocab_size())}

    def log_probabilities(
        self, rows: list[list[int]], top: int | None, into: str, lora: str | None = None
    ) -> dict[str, Any]:
        """Write the log-probabilities of what follows each token but the last of each row.

        `tokens` int64 and `values` float32, both (rows, positions, K): the K most likely tokens at each position, and
        the token that is there; -1 and -inf where that is one of the K, so that the last place is left over. With an
        adapter each beginning of a row is a prompt of its own, and the token that is there may not be among the K.
        """
        import torch
        from safetensors.torch import save_file
        from vllm import SamplingParams

        count = -1 if top is None else top
        if lora is None:
            parameters = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=count)
            outputs = self._ask(rows, parameters)
            found = [[_entries(position) for position in output.prompt_logprobs[1:]] for output in outputs]
        else:
            # On a processor vLLM cannot tell a prompt's own with an adapter, where its class adapts the output head.
            parameters = SamplingParams(max_tokens=1, temperature=0, logprobs=count, ignore_eos=True)
            beginnings = [[row[: end + 1] for end in range(len(row) - 1)] for row in rows]
            found = [
                [_entries(output.outputs[0].logprobs[0]) for output in self._ask(prompts, parameters, lora)]
                for prompts in beginnings
            ]
        width = max(len(entries) for row in found for entries in row)
        shape = (len(rows), len(rows[0]) - 1, width)
        tokens = torch.full(shape, -1, dtype=torch.int64)
        values = torch.full(shape, float("-inf"))
        for i, row in enumerate(found):
            for j, entries in enumerate(row):
                tokens[i, j, : len(entries)] = torch.tensor([token for token, _ in entries])
                values[i, j, : len(entries)] = torch.tensor([value for _, value in entries])
        save_file({"tokens": tokens, "values": values}, into)
        return {"rows": len(rows)}

    def generate(
        self,
        rows: list[list[int]],
        max_tokens: int,
        extra_args: list[dict[str, Any]] | None = None,
        lora: str | None = None,
    ) -> list[list[int]]:
        """Greedy continuations, end-of-text included."""
        from vllm import SamplingParams

        parameters = [
            SamplingParams(max_tokens=max_tokens, temperature=0, extra_args=extra)
            for extra in extra_args or [{} for _ in rows]
        ]
        return [list(output.outputs[0].token_ids) for output in self._ask(rows, parameters, lora)]

    def answers(self, rows: list[list[int]], max_tokens: int, lora: str | None = None) -> list[dict[str, Any]]:
        """Greedy replies, and the log-probabilities of every token of prompt and reply but the first.

        `reply`, `log_probabilities`, and `greedy`: the most likely token in the place of each of these.
        """
        from vllm import SamplingParams

        parameters = SamplingParams(
            max_tokens=max_tokens, temperature=0, ignore_eos=True, prompt_logprobs=1, logprobs=1, detokenize=False
        )
        found = []
        for row, output in zip(rows, self._ask(rows, parameters, lora), strict=True):
            reply = list(output.outputs[0].token_ids)
            places = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
            actual = [float(place[token].logprob) for place, token in zip(places, [*row[1:], *reply], strict=True)]
            greedy = [next(token for token, entry in place.items() if entry.rank == 1) for place in places]
            found.append({"reply": reply, "log_probabilities": actual, "greedy": greedy})
        return found

    def _ask(self, rows: list[list[int]], parameters: Any, lora: str | None = None) -> list[Any]:
        prompts = [{"prompt_token_ids": row} for row in rows]
        outputs: list[Any] = self._llm.generate(
            prompts, parameters, use_tqdm=False, lora_request=self._adapter(lora) if lora else None
        )
        return outputs

    def _adapter(self, folder: str) -> Any:
        """The request for an adapter; a folder that was written anew is another adapter."""
        from vllm.lora.request import LoRARequest

        key = (folder, Path(folder, "adapter_model.safetensors").stat().st_mtime_ns)
        if key not in self._adapters:
            number = len(self._adapters) + 1
            self._adapters[key] = LoRARequest(f"adapter-{number}", number, folder)
        return self._adapters[key]


def _entries(position: dict[int, Any]) -> list[tuple[int, float]]:
    return [(token, float(entry.logprob)) for token, entry in position.items()]


def main() -> int:
    """Answer until stdin ends."""
    # Children inherit stdout and may print; answers go where nobody else writes.
    engine = Engine()
    with os.fdopen(int(os.environ["PERSONA_ANSWERS"]), "w", encoding="utf-8") as answers:
        for line in sys.stdin:
            try:
                answer: dict[str, Any] = {"ok": engine.answer(json.loads(line))}
            except BaseException as error:
                traceback.print_exc()
                answer = {"error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
