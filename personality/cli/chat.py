"""`persona chat`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from personality.cli.options import (
    DirectoryOption,
    JsonOption,
    LongestAnswerOption,
    SamplingSeedOption,
    SystemOption,
    TemperatureOption,
    examples,
    find_versions,
    open_repository,
)
from personality.cli.output import Output
from personality.manifests.errors import PersonaError, UsageError

if TYPE_CHECKING:
    from personality.conversation.conversation import Conversation
    from personality.manifests.repository import Repository
    from personality.vectors.training.examples import Side

_HELP = """\
/version v3 [v4 …]              go on with other versions; what was said stays
/system TEXT                    another system turn, from here on
/undo   /reset                  take the last turn, or all of them, back
/save FILE                      the conversation as a transcript, one message a line
/probe NAME.PROBE REGEX [TEXT]  the last turn as a row of a probe: what a good reply matches, and a better reply
/example FILE [TEXT] [SIDE]     the last turn as a training example: TEXT is the better reply; none: the answer is good
/prefer FILE N [SIDE]           the same, where answer N is better than the other one of two
/quit"""


@examples("persona chat", "persona chat v3 v4", 'persona chat stable --system "Be brief." --temperature 0.7')
def chat(
    versions: Annotated[list[str] | None, typer.Argument(help="One or more versions.", show_default="head")] = None,
    system: SystemOption = "",
    temperature: TemperatureOption = 0.0,
    seed: SamplingSeedOption = 0,
    max_new_tokens: LongestAnswerOption = 256,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Talk to one or several versions side by side; `/help` tells what else can be typed, such as `/version v3`.

    With --json each turn gives one object.
    """
    from personality.conversation.conversation import Conversation

    out = Output("chat", as_json=as_json)
    repository = open_repository(directory)
    found = find_versions(out, repository, versions or ["head"])
    conversation = Conversation(
        repository, found, system=system, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
    )
    out.note(f"{', '.join(label for _, label in found)}; /help for commands, /quit or Ctrl-D to end")
    session = _Session(out, repository, conversation)
    while (text := _read(session.prompt)) is not None:
        if not text:
            continue
        try:
            if not session.take(text):
                break
        except PersonaError as error:  # a conversation does not end with a mistake
            out.error(error.message, error.hint, kind=error.kind, exit_code=1)


class _Session:
    """What each line does."""

    def __init__(self, out: Output, repository: Repository, conversation: Conversation) -> None:
        self._out = out
        self._repository = repository
        self._conversation = conversation
        self._commands: dict[str, Callable[[list[str]], None]] = {
            "version": self._version,
            "system": self._system,
            "undo": self._undo,
            "reset": self._reset,
            "save": self._save,
            "probe": self._probe,
            "example": self._example,
            "prefer": self._prefer,
            "help": lambda words: self._out.note(_HELP),
        }

    @property
    def prompt(self) -> str:
        """Who is spoken to."""
        return f"{' '.join(label for _, label in self._conversation.versions)}> "

    def take(self, text: str) -> bool:
        """One line; False when it was the last."""
        if not text.startswith("/"):
            self._say(text)
            return True
        name, *words = _words(text[1:])
        if name in ("quit", "exit"):
            return False
        if name not in self._commands:
            raise UsageError(
                f"there is no `/{name}`", "`/help` shows what there is; with a space before the / it is said"
            )
        self._commands[name](words)
        return True

    def _say(self, text: str) -> None:
        labels = [label for _, label in self._conversation.versions]
        with self._out.replies(labels) as on_text:
            exchange = self._conversation.say(text.strip(), on_text)

        def human() -> None:
            if on_text is None:
                self._out.table(["", ""], [(answer.label, answer.text) for answer in exchange.answers])

        self._out.result(asdict(exchange), human)

    def _version(self, words: list[str]) -> None:
        if not words:
            raise UsageError("which version?", "`/version v3`")
        self._conversation.versions = find_versions(self._out, self._repository, words)

    def _system(self, words: list[str]) -> None:
        self._conversation.system = " ".join(words)

    def _undo(self, words: list[str]) -> None:
        self._out.note(f"taken back: {self._conversation.undo().asked}")

    def _reset(self, words: list[str]) -> None:
        self._conversation.exchanges.clear()

    def _save(self, words: list[str]) -> None:
        from personality.conversation.keeping import save_transcript

        path = Path(_one(words, "/save FILE"))
        self._out.note(f"{save_transcript(self._conversation, path)} messages → {path}")

    def _probe(self, words: list[str]) -> None:
        from personality.conversation.keeping import add_probe_row

        if len(words) not in (2, 3):
            raise UsageError("a probe's name, and what a good reply matches", "`/probe listening.accept '^Okay'`")
        path = add_probe_row(self._repository, self._conversation, *words)
        self._out.note(f"a row more in {path}; earlier evaluations used the suite without it")

    def _example(self, words: list[str]) -> None:
        from personality.conversation.keeping import add_example

        words, side = _side(words)
        if len(words) not in (1, 2):
            raise UsageError("a file, and a better reply if you know one", "`/example more.jsonl 'Okay, done.' accept`")
        answer = self._conversation.answer().text
        path, better = Path(words[0]), words[1] if len(words) == 2 else ""
        add_example(self._conversation, path, chosen=better or answer, rejected=answer if better else "", side=side)
        self._out.note(f"an example more in {path}")

    def _prefer(self, words: list[str]) -> None:
        from personality.conversation.keeping import add_example

        words, side = _side(words)
        if len(words) != 2 or words[1] not in ("1", "2"):
            raise UsageError("a file, and the number of the better answer, 1 or 2", "`/prefer pairs.jsonl 2`")
        first, second = self._conversation.answer(1).text, self._conversation.answer(2).text
        chosen, rejected = (first, second) if words[1] == "1" else (second, first)
        add_example(self._conversation, Path(words[0]), chosen=chosen, rejected=rejected, side=side)
        self._out.note(f"an example more in {words[0]}")


def _read(prompt: str) -> str | None:
    """The next line; None at the end. No prompt where nobody types."""
    if sys.stdin.isatty():
        try:
            return input(prompt)
        except EOFError:
            return None
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text) or [""]
    except ValueError as error:
        raise UsageError(f"{error}: {text}", "close the quotation marks") from error


def _one(words: list[str], usage: str) -> str:
    if len(words) != 1:
        raise UsageError(f"one file is needed, not {len(words)}", f"`{usage}`")
    return words[0]


def _side(words: list[str]) -> tuple[list[str], Side | None]:
    """The words without the side at their end, and the side."""
    if words and words[-1] in ("accept", "push_back"):
        return words[:-1], cast("Side", words[-1])
    return words, None
