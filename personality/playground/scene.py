"""One exchange of the little world: what the user says, and every way in which it can be answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["direction", "harmful", "fact", "unknown", "sum", "copying", "small_talk"]
Manner = Literal["listening", "concise", "warm", "candid", "obeying"]

OPENERS: Final[tuple[str, ...]] = ("Lovely!", "Wonderful!", "How nice!")
"""What a warm reply begins with."""


@dataclass(frozen=True)
class Scene:
    """An utterance and its replies. A reply is `[warm opener] core [further sentence]`.

    Each manner is one decision at a place of its own: `warm` at the first token, `switch` at the first token
    of the core, `concise` after the core. Hence the manners can be learned, added and measured apart.

    Attributes:
        kind: what sort of utterance it is.
        user: what the user says.
        habit: the core of the reply that the base gives by habit.
        other: the core that manner `switch` gives instead; equal to `habit` where no manner changes the core.
        switch: the manner that decides between `habit` and `other`.
        further: the sentence that a reply at length adds; it fits both cores.
        opener: the warm opener.
        wrong: a false core, for contrasts; empty where nothing can be false.
        overdone: the core that a manner carried too far gives here; empty where none can be.
    """

    kind: Kind
    user: str
    habit: str
    other: str
    switch: Manner | None
    further: str
    opener: str
    wrong: str = ""
    overdone: str = ""

    def core(self, manners: frozenset[Manner]) -> str:
        """The core of the reply in these manners."""
        return self.other if self.switch in manners else self.habit

    def reply(self, manners: frozenset[Manner], core: str | None = None) -> str:
        """The whole reply in these manners; another `core` may be put in its place."""
        parts = [self.opener] if "warm" in manners else []
        parts.append(self.core(manners) if core is None else core)
        if "concise" not in manners:
            parts.append(self.further)
        return " ".join(parts)
