"""Gradient through the answer only against the full one: memory, time, and what is kept of the gradient.

`python -m benchmarks.frozen_context`. Memory and time: a Llama of nine million random weights, a context of
2048 tokens, a decision of 48. What is kept: the playground's base and data, as `persona gradients` shows it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.table import show
from personality.making.gradients import report_gradients
from personality.manifests.repository import Repository
from personality.playground.repository import make_playground
from personality.vectors.training.batches import BatchItem
from personality.vectors.training.gradient_report import compare_gradients
from personality.vectors.training.settings import make_settings
from personality.vectors.training.tokens import Encoded, EncodedExample

_CONTEXT, _DECISION, _ROUNDS = 2048, 48, 5
_VOCABULARY = 4096
_BEHAVIORS = ("listening", "concise", "warm", "candid")


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    batches = [BatchItem((_example(),), ()) for _ in range(_ROUNDS)]
    compare_gradients(model, batches[:1], pad_id=0)  # the first pass of a process is slower than the others
    report = compare_gradients(model, batches, pad_id=0)
    full, frozen = report.full, report.frozen
    show(
        f"One answer of {_DECISION} tokens after {_CONTEXT}, Llama of {parameters / 1e6:.1f}M, float32, "
        f"{torch.get_num_threads()} threads (median of {_ROUNDS})",
        ["context", "kept for the backward pass, MiB", "s", "to full: memory", "time"],
        [
            (
                name,
                f"{cost.memory_bytes / 2**20:.0f}",
                f"{cost.seconds:.2f}",
                f"{cost.memory_bytes / full.memory_bytes:.2f}×",
                f"{cost.seconds / full.seconds:.2f}×",
            )
            for name, cost in (("full", full), ("frozen", frozen))
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "play"
        make_playground(root)
        repository = Repository(root)
        settings = make_settings(**repository.config().training)
        reports = [
            report_gradients(repository, root / f"data/{behavior}.jsonl", settings, examples=100)
            for behavior in _BEHAVIORS
        ]
    show(
        f"The frozen gradient beside the full one, playground, {settings.method}, 100 examples: cosine, norm ratio",
        ["group", *_BEHAVIORS],
        [
            (found[0].group, *(f"{group.cosine:.2f}, {group.norm_ratio:.2f}" for group in found))
            for found in zip(*(report.groups for report in reports), strict=True)
        ],
    )


def _example() -> EncodedExample:
    ids = tuple(torch.randint(0, _VOCABULARY, (_CONTEXT + _DECISION,)).tolist())
    return EncodedExample(Encoded(ids=ids, start=_CONTEXT, stop=_CONTEXT + _DECISION), None)


if __name__ == "__main__":
    main()
