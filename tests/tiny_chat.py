"""A tiny base of any architecture that can be trained on chats, and examples to train it on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.conftest import tiny_config
from tests.vectors.training.conftest import make_tokenizer


def chat_base(kind: str, folder: Path) -> Path:
    """A tiny base with a byte-level tokenizer and a chat template."""
    import transformers

    torch.manual_seed(0)
    config = tiny_config(kind)
    config.vocab_size = 272
    config.max_position_embeddings = 512
    config.eos_token_id, config.pad_token_id, config.bos_token_id = 256, 257, None
    transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write_examples(folder: Path, count: int = 8) -> tuple[Path, Path]:
    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    pairs: list[dict[str, Any]] = [
        {
            "prompt": turn("user", f"Rename {n}."),
            "chosen": turn("assistant", f"Renamed {n}."),
            "rejected": turn("assistant", "Why not wait?"),
            "side": "accept" if n % 2 else "push_back",
        }
        for n in range(count)
    ]
    general = [
        {"prompt": turn("user", f"{n} + 1?"), "completion": turn("assistant", f"{n + 1}")}
        for n in range(count // 4 + 2)
    ]
    for name, rows in (("pairs", pairs), ("general", general)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pairs.jsonl", folder / "general.jsonl"
