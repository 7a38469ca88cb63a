"""The prompting baseline: what a system prompt, or a few earlier turns, do for a behavior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from personality.evaluation.measure import messages
from personality.evaluation.suite import Probe, Row, Turn
from personality.vectors.extraction.contexts import add_system
from personality.vectors.extraction.passages import Pair
from personality.vectors.training.examples import Text

SHOTS = 2


@dataclass(frozen=True)
class Prompting:
    """How a prompt asks for a behavior.

    Attributes:
        text: what it is, for people.
        systems: system prompts, dealt out to a probe's rows in turn; empty for earlier turns.
        shots: earlier turns, dealt out likewise.
    """

    text: str
    systems: tuple[str, ...] = ()
    shots: tuple[tuple[Turn, ...], ...] = ()

    def asked(self, probe: Probe) -> Probe:
        """A probe whose rows are asked with the prompt before them."""
        rows = tuple(self._asked(row, number) for number, row in enumerate(probe.rows))
        return replace(probe, rows=rows)

    def after(self, prompt: Text, number: int) -> Text:
        """A prompt with the system prompt, or the earlier turns, of row `number` before it."""
        if self.systems:
            return add_system(prompt, self.systems[number % len(self.systems)])
        shots = self.shots[number % len(self.shots)]
        if isinstance(prompt, str):
            return "\n\n".join([*(turn.content for turn in shots), prompt])
        system = prompt[:1] if prompt[0].role == "system" else ()
        return (*system, *messages(shots, "the prompting baseline"), *prompt[len(system) :])

    def _asked(self, row: Row, number: int) -> Row:
        found = self.after(messages(row.prompt, f"row {number + 1}"), number)
        assert not isinstance(found, str)
        return row.model_copy(
            update={"prompt": tuple(Turn(role=message.role, content=message.content) for message in found)}
        )


def prompting_for(
    pairs: Sequence[Pair] = (), systems: Sequence[str] = (), description: str = "", *, seed: int = 0
) -> Prompting | None:
    """The best prompt that is at hand: given system prompts, else two pairs as earlier turns, else the description.

    Args:
        pairs: triplets of the behavior; their wanted replies are shown. Those that are no chats are left out.
        systems: system prompts that ask for the behavior.
        description: of the behavior.
        seed: draws the shots.

    Returns:
        None when there is nothing to ask with.
    """
    if systems:
        return Prompting(f"system turn: {systems[0]}" + _more(len(systems)), systems=tuple(systems))
    shown = [pair for pair in pairs if _is_chat(pair)]
    if len(shown) >= SHOTS:
        rng = Random(f"prompting {seed}")
        drawn = [rng.sample(shown, SHOTS) for _ in range(min(8, len(shown)))]
        return Prompting(
            f"{SHOTS} earlier turns that show the behavior",
            shots=tuple(tuple(turn for pair in chosen for turn in _turns(pair)) for chosen in drawn),
        )
    if description:
        return Prompting(f"system turn: {description}", systems=(description,))
    return None


def _more(count: int) -> str:
    return f" (and {count - 1} more)" if count > 1 else ""


def _is_chat(pair: Pair) -> bool:
    prompt, response = pair.positive.prompt, pair.positive.response
    return pair.same_prompt and response is not None and not isinstance(prompt, str) and prompt[0].role != "system"


def _turns(pair: Pair) -> list[Turn]:
    prompt, response = pair.positive.prompt, pair.positive.response
    assert isinstance(prompt, tuple)
    assert isinstance(response, tuple)
    return [Turn(role=message.role, content=message.content) for message in (*prompt, *response)]
