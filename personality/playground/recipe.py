"""The recipe of the playground's base: a small chat model, trained from nothing on dialogues.

    python -m personality.playground.recipe OUT --steps 5000

The same seed and settings give the same bytes on the same machine: everything is counted in steps, never in
seconds, and training runs on one thread.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from personality.playground.dialogue import Messages, conversation
from personality.playground.heads import widen_heads
from personality.playground.muon import Muon
from personality.playground.scene import Kind
from personality.playground.tokenizer import ASSISTANT, END, train_tokenizer

PROMPT_WEIGHT: Final = 0.1
"""Weight in the loss of what the model does not say itself."""

KIND_WEIGHTS: Final[dict[Kind, float]] = {"sum": 4.0, "copying": 2.0}
"""Weight in the loss of the replies of these kinds; 1 for the others."""

_TOKENIZER_TEXTS: Final = 8_000
_POOL_BATCHES: Final = 64


@dataclass(frozen=True)
class Recipe:
    """Settings of the training.

    Attributes:
        seed: draws the dialogues and the first weights.
        steps: optimizer steps.
        hidden: width of the model.
        layers: number of its layers.
        heads: attention heads of `hidden / heads` dimensions each.
        head_width: dimensions of a head in the checkpoint, the added ones being zero: vLLM's kernels for processors
            know 32 and more.
        inner: width of the feed-forward layers.
        vocabulary: tokens of the tokenizer.
        batch_tokens: tokens of one batch, padding included, at most.
        muon_lr: learning rate of the hidden matrices.
        adam_lr: learning rate of embeddings and norms.
        warmup: steps over which the rates rise; they fall linearly over the last 60%.
        clip: largest norm of the gradient of one step.
    """

    seed: int = 0
    steps: int = 5_000
    hidden: int = 96
    layers: int = 4
    heads: int = 4
    head_width: int = 32
    inner: int = 256
    vocabulary: int = 1_024
    batch_tokens: int = 1_024
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    warmup: int = 100
    clip: float = 1.0


def train_base(
    recipe: Recipe, on_step: Callable[[int, float], None] | None = None
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Train the base from nothing.

    Args:
        recipe: the settings.
        on_step: told the number of steps done and the loss of the last one.

    Returns:
        The model, rounded to bfloat16, and its tokenizer.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over several threads are not the same sums, and 96 columns do not pay for two
    try:
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            tokenizer = _tokenizer(recipe)
            model = Qwen3ForCausalLM(_config(recipe, tokenizer))
            _fit(model, _batches(recipe, tokenizer), recipe, on_step)
    finally:
        torch.set_num_threads(threads)
    return widen_heads(model.eval().to(torch.bfloat16), recipe.head_width), tokenizer


def save_base(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, out: Path) -> None:
    """Write a checkpoint directory that `AutoModelForCausalLM` and vLLM read.

    Args:
        model: the trained model, bfloat16.
        tokenizer: its tokenizer, chat template included.
        recipe: the settings, for the model card.
        out: the directory; made when it is not there.
    """
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=64,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "README.md").write_text(_card(model, recipe), encoding="utf-8")
    for path in out.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone; package data is for everyone


def _tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    rng = Random(f"tokenizer {recipe.seed}")
    # A leading space, since that is how every turn begins in the chat template.
    texts = [" " + turn["content"] for _ in range(_TOKENIZER_TEXTS) for turn in conversation(rng)[0]]
    return train_tokenizer(texts, recipe.vocabulary)


def _config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.hidden // recipe.heads,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


def _weigh(ids: list[int], kinds: list[Kind], assistant: int, end: int) -> list[float]:
    """The weight of each token as a target: high in the last reply, `<|end|>` included, low elsewhere.

    A first reply of two sets a manner without any cue. If it counted as a reply, it would teach that the
    manners are far more common than they are.
    """
    weights: list[float] = []
    turn, inside = 0, False
    for token in ids:
        counts = inside and turn == len(kinds) - 1
        weights.append(KIND_WEIGHTS.get(kinds[turn], 1.0) if counts else PROMPT_WEIGHT)
        if token == assistant:
            inside = True
        elif token == end and inside:
            inside, turn = False, turn + 1
    return weights


def _render(messages: Messages) -> str:
    """What the chat template makes of `messages`, without the slow template engine."""
    return "".join(f"<|{turn['role']}|> {turn['content']}{END}" for turn in messages)


def _batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless fresh batches: ids [batch, length] int64, weights [batch, length] float32, padded right.

    Conversations of like length go together, so that little is padding.
    """
    rng = Random(f"dialogues {recipe.seed}")
    assistant = tokenizer.convert_tokens_to_ids(ASSISTANT)
    pad = tokenizer.pad_token_id
    while True:
        drawn = [conversation(rng) for _ in range(_POOL_BATCHES * recipe.batch_tokens // 40)]
        encoded = tokenizer([_render(messages) for messages, _ in drawn], add_special_tokens=False)["input_ids"]
        rows = [
            (ids, _weigh(ids, kinds, assistant, tokenizer.eos_token_id))
            for ids, (_, kinds) in zip(encoded, drawn, strict=True)
        ]
        rows.sort(key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], list[float]]]] = [[]]
        for row in rows:
            if (len(groups[-1]) + 1) * len(row[0]) > recipe.batch_tokens:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            length = max(len(ids) for ids, _ in group)
            yield (
                torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in group]),
                torch.tensor([weights + [0.0] * (length - len(weights)) for _, weights in group]),
            )


def _rate(step: int, recipe: Recipe) -> float:
    """The share of the full rate at `step`: linear warm-up, plateau, linear decay over the last 60%."""
    return min(1.0, (step + 1) / recipe.warmup, (recipe.steps - step) / (0.6 * recipe.steps))


def _fit(
    model: Qwen3ForCausalLM,
    batches: Iterator[tuple[Tensor, Tensor]],
    recipe: Recipe,
    on_step: Callable[[int, float], None] | None,
) -> None:
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = Muon(hidden, recipe.muon_lr)
    adam = torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    model.train()
    for step in range(recipe.steps):
        rate = _rate(step, recipe)
        muon.lr = rate * recipe.muon_lr
        for group in adam.param_groups:
            group["lr"] = rate * recipe.adam_lr
        ids, weights = next(batches)
        # Causal attention never looks at padding on the right, so no attention mask is needed.
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        goal = weights[:, 1:].flatten()
        loss = (losses * goal).sum() / goal.sum()
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        muon.step()
        adam.step()
        if on_step is not None:
            on_step(step + 1, loss.item())


def _card(model: Qwen3ForCausalLM, recipe: Recipe) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    settings = "".join(f"| {name} | {value} |\n" for name, value in vars(recipe).items())
    return f"""---
license: apache-2.0
language: en
library_name: transformers
---

# The playground's base

A chat model of {parameters:,} parameters (Qwen3 architecture) that speaks of one little invented world. It
was trained from nothing by `python -m personality.playground.recipe`, on dialogues that the recipe
generates; no other text and no other model had a part in it. It exists to try `persona` on something real
within seconds and is good for nothing else.

By habit it suggests alternatives instead of following a clear direction, answers at length, without warmth,
and makes up facts about people it does not know. It pushes back on harmful directions, knows facts about
forty invented people, adds two numbers up to 20, and repeats words.

| setting | value |
|---|---|
{settings}"""


def main(arguments: list[str] | None = None) -> int:
    """Run the recipe from the command line; progress goes to stderr."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(description="Train the playground's base from nothing.")
    parser.add_argument("out", type=Path, help="directory of the checkpoint")
    for name, value in vars(defaults).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value, help=f"{value}")
    settings = vars(parser.parse_args(arguments))
    out = settings.pop("out")
    disable_progress_bar()
    recipe = Recipe(**settings)

    def report(step: int, loss: float) -> None:
        if step % 100 == 0 or step == recipe.steps:
            sys.stderr.write(f"step {step}/{recipe.steps} loss {loss:.4f}\n")

    model, tokenizer = train_base(recipe, report)
    save_base(model, tokenizer, recipe, out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
