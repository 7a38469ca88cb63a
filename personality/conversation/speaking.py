"""A reply as it comes, word by word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from personality.evaluation.replies import end_ids, reply_ids, until_end
from personality.evaluation.scores import Chat, encode, prompt_text
from personality.model import threads_for


def speak(
    model: Any,
    tokenizer: Any,
    chat: Chat,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """A model's reply to a chat; the same text as `replies` gives.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer.
        chat: up to the reply.
        max_new_tokens: longest reply.
        temperature: 0 for greedy; otherwise sampled, the same for the same seed.
        seed: of sampling.
        on_text: told each piece of the reply as soon as it holds whole words.

    Raises:
        DataError: when the tokenizer has no chat template.
        PersonaError: when the model has fallen apart.
    """
    heads = [encode(tokenizer, prompt_text(tokenizer, chat))]
    with threads_for(model):
        found = reply_ids(
            model,
            tokenizer,
            heads,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            streamer=_streamer(tokenizer, on_text) if on_text else None,
        )[0]
    return str(tokenizer.decode(until_end(found, end_ids(model, tokenizer)), skip_special_tokens=True)).strip()


def _streamer(tokenizer: Any, on_text: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Told(TextStreamer):  # type: ignore[misc]
        """Hands text on instead of printing it; what stands before the first word is left out."""

        def __init__(self) -> None:
            super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
            self._begun = False

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if not self._begun:
                text = text.lstrip()
            if text:
                self._begun = True
                on_text(text)

    return Told()
