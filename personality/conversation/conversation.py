"""A conversation with one or several versions, each of which remembers its own answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from personality.changing_model import ChangingModel
from personality.conversation.speaking import speak
from personality.manifests.errors import UsageError
from personality.manifests.repository import Repository
from personality.manifests.version import Version

Chat = list[dict[str, str]]


@dataclass(frozen=True)
class Answer:
    """What one version answered.

    Attributes:
        version: its id.
        label: its label.
        text: the answer.
    """

    version: str
    label: str
    text: str


@dataclass(frozen=True)
class Exchange:
    """A user's turn and every version's answer to it, in the order of the versions then."""

    asked: str
    answers: tuple[Answer, ...]


class Conversation:
    """Turns that go on while versions change.

    What a version said is its own memory; a version that was not there yet has the first version's.

    Args:
        repository: where.
        versions: with their labels; at least one. They may be replaced by others meanwhile; what was said stays.
        max_new_tokens: longest answer.
        temperature: 0 for greedy.
        seed: of sampling; turn n is sampled with seed + n.
    """

    def __init__(
        self,
        repository: Repository,
        versions: Sequence[tuple[Version, str]],
        *,
        system: str = "",
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.system = system
        self.exchanges: list[Exchange] = []
        self.versions = list(versions)
        self._model = ChangingModel(repository)
        self._max_new_tokens = max_new_tokens
        self._temperature = temperature
        self._seed = seed

    def say(self, text: str, on_text: Callable[[str, str], None] | None = None) -> Exchange:
        """A user's turn: every version answers it.

        Args:
            text: of the user.
            on_text: told the label of the version and each piece of its answer as it comes.

        Raises:
            DataError: when the base has no chat template.
            PersonaError: when a version cannot be composed, or has fallen apart; the turn is not kept.
        """
        answers = []
        for version, label in self.versions:
            with self._model.taking(version.personality) as (model, tokenizer):
                answer = speak(
                    model,
                    tokenizer,
                    [*self.chat(version.id), {"role": "user", "content": text}],
                    max_new_tokens=self._max_new_tokens,
                    temperature=self._temperature,
                    seed=self._seed + len(self.exchanges),
                    on_text=(lambda piece, label=label: on_text(label, piece)) if on_text else None,  # type: ignore[misc]
                )
            answers.append(Answer(version.id, label, answer))
        exchange = Exchange(text, tuple(answers))
        self.exchanges.append(exchange)
        return exchange

    def chat(self, version: str, upto: int | None = None) -> Chat:
        """The turns so far as a version remembers them.

        Args:
            version: its id.
            upto: so many exchanges; None for all.
        """
        turns = [{"role": "system", "content": self.system}] if self.system else []
        for exchange in self.exchanges[:upto]:
            own = next((item for item in exchange.answers if item.version == version), exchange.answers[0])
            turns += [{"role": "user", "content": exchange.asked}, {"role": "assistant", "content": own.text}]
        return turns

    def undo(self) -> Exchange:
        """Take the last turn back.

        Raises:
            UsageError: when there is none.
        """
        last = self.last
        self.exchanges.pop()
        return last

    @property
    def last(self) -> Exchange:
        """The last turn.

        Raises:
            UsageError: when nothing was said.
        """
        if not self.exchanges:
            raise UsageError("nothing was said yet", "say something first")
        return self.exchanges[-1]

    def answer(self, number: int = 1) -> Answer:
        """The answer of the n-th version to the last turn, from 1.

        Raises:
            UsageError: when there is none.
        """
        answers = self.last.answers
        if not 1 <= number <= len(answers):
            raise UsageError(f"there is no answer {number}: the last turn has {len(answers)}", "count from 1")
        return answers[number - 1]
