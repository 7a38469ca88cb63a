"""`ask`: one prompt to one or several versions, composed in memory."""

from __future__ import annotations

from personality.composition.opening import composer_of
from personality.evaluation.replies import replies
from personality.manifests.repository import Repository
from personality.manifests.version import Version
from personality.model import load_composed, load_tokenizer, threads_for


def ask(
    repository: Repository,
    version: Version,
    prompt: str,
    *,
    system: str = "",
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """A version's answer.

    Args:
        repository: where.
        version: which.
        prompt: the user's turn.
        system: a system turn before it; empty for none.
        max_new_tokens: longest answer.
        temperature: 0 for greedy.
        seed: of sampling.
    """
    chat = [{"role": "user", "content": prompt}]
    if system:
        chat.insert(0, {"role": "system", "content": system})
    composer = composer_of(repository, version.personality)
    model, tokenizer = load_composed(composer), load_tokenizer(composer.base.folder)
    with threads_for(model):
        answers = replies(model, tokenizer, [chat], max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    return answers[0]
