"""`ask`: one prompt to one version, composed in memory."""

from __future__ import annotations

from personality.conversation.conversation import Conversation
from personality.manifests.repository import Repository
from personality.manifests.version import Version


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
    conversation = Conversation(
        repository,
        [(version, version.label)],
        system=system,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    return conversation.say(prompt).answers[0].text
