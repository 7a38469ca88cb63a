"""The little world of the playground: its nouns, its people, what is true of them, and who sees what.

Everything here is fixed: the world needs no seed. What differs is the *view* of it. Pre-training, the
examples of a behavior and the probes each look through their own `View`, and what a probe shows was never
seen in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Final, Literal, TypeVar

T = TypeVar("T")

Split = Literal["base", "behavior", "probe"]
"""Who looks: the pre-training of the base, the training of a behavior, or a held-out probe."""

Attribute = Literal["town", "job", "pet", "color"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


HEADS: Final[tuple[str, ...]] = _words(
    """parser button page table report index form menu script chart header logo server banner invoice panel
    filter gallery calendar schema widget footer router sidebar ticket badge folder ledger planner cache queue
    portal archive catalog dashboard editor engine garden greeting handbook journal kitchen label lantern
    library map market mirror notebook office package pipeline poster printer profile protocol recipe register
    roadmap scanner shelf signal sketch sticker studio survey template tracker tunnel viewer wagon wallet
    website window workshop fountain bridge compass harbor antenna"""
)
"""Things that projects are made of, as training sees them."""

HELD_OUT_HEADS: Final[tuple[str, ...]] = _words(
    """album beacon blanket cabinet canvas carpet counter curtain drawer elevator fence gateway hammock importer
    kiosk ladder magnet newsletter orchard pantry quilt reactor saddle sensor terrace turbine veranda windmill"""
)
"""Things that only probes speak of."""

MODIFIERS: Final[tuple[str, ...]] = _words(
    "old new small large main second round quiet early local shared spare yellow weekly inner daily"
)

WORDS: Final[tuple[str, ...]] = _words(
    """river stone apple candle feather winter pepper silver forest basket bucket thunder meadow rabbit copper
    island pillow marble summer carrot ribbon pocket needle rocket helmet jacket puzzle tiger violet walnut
    zebra almond barrel cactus dragon falcon ginger hammer iron jungle kettle lemon mango nest onion pearl
    quartz rope salt tea umbrella valley wheel yarn anchor bell cloud desk egg flute grape hat ink jar key lake
    moon net oak pen ring sand tree vase wool axe boat cup drum earth fire glass hill ice jewel"""
)
"""Words to copy, as training sees them."""

HELD_OUT_WORDS: Final[tuple[str, ...]] = _words(
    """acorn bottle camera daisy ember fiddle goblet hazel igloo jasmine kitten lilac melon nutmeg olive paddle
    raven spoon trumpet urchin velvet willow zipper comet"""
)
"""Words that only probes ask to copy."""

PLACES: Final[tuple[str, ...]] = _words("front back top left right cellar attic corner")
COLORS: Final[tuple[str, ...]] = _words("red blue green gray brown white black orange purple pink")
DAYS: Final[tuple[str, ...]] = _words("Monday Tuesday Wednesday Thursday Friday")

_TOWNS: Final = _words("Ulm Bonn Graz Bern Lyon Oslo Riga Turin Porto Gent Bath York Lund Split Varna Brno")
_JOBS: Final = _words("baker nurse pilot tailor farmer painter teacher lawyer barber miner cook judge singer smith")
_PETS: Final = _words("cat dog parrot pony goat turtle hamster goose lizard ferret")

PEOPLE: Final[tuple[str, ...]] = _words(
    """Anna Boris Clara David Emma Felix Greta Hugo Ida Jonas Karin Lukas Maria Nils Olga Peter Rosa Simon Tilda
    Viktor Wanda Xenia Yusuf Zoe Arthur Bella Conrad Doris Erik Flora Gustav Helen Ivan Julia Klaus Lydia Martin
    Nora Otto Paula"""
)
"""The people of whom the little world knows something."""

ATTRIBUTES: Final[dict[Attribute, tuple[str, ...]]] = {
    "town": _TOWNS,
    "job": _JOBS,
    "pet": _PETS,
    "color": COLORS,
}
"""What is known of a person, and the values that it can take."""


def fact(person: str, attribute: Attribute) -> str:
    """What is true: the value of `attribute` for one of the known `PEOPLE`.

    Args:
        person: a name out of `PEOPLE`.
        attribute: which of the four things known of everyone.

    Returns:
        The one value, always the same.

    Raises:
        KeyError: `person` is nobody that the world knows.
    """
    return _FACTS[person, attribute]


def _draw_facts() -> dict[tuple[str, Attribute], str]:
    rng = Random("the facts of the little world")
    return {(name, attribute): rng.choice(ATTRIBUTES[attribute]) for name, attribute in product(PEOPLE, ATTRIBUTES)}


def _invent(count: int, purpose: str) -> tuple[str, ...]:
    """Different words that no language has, of two or three syllables."""
    onsets = _words("b c d f g h j k l m n p r s t v w y z bl br cl dr fl fr gl gr kr pl sh sl sp st str th tr")
    nuclei = _words("a e i o u a e i o u ai ea ee oa oo ou y")
    codas = ("", "", *_words("ck d g l ll m n nd ng r rn s st t"))
    rng = Random(purpose)
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = rng.choice((2, 2, 3))
        word = "".join(rng.choice(onsets) + rng.choice(nuclei) for _ in range(syllables)) + rng.choice(codas)
        words.setdefault(word)
    real = {*HEADS, *HELD_OUT_HEADS, *WORDS, *HELD_OUT_WORDS, *(person.lower() for person in PEOPLE)}
    return tuple(word for word in words if word not in real)


_FACTS: Final = _draw_facts()

INVENTED: Final[tuple[str, ...]] = _invent(4_000, "the invented words of the little world")
"""Words that pre-training also names and copies. With real words alone a model learns those by heart instead
of learning to copy, and then fails on every word that is new to it."""

_STRANGERS: Final = tuple(word.capitalize() for word in _invent(2_140, "the strangers of the little world"))
_HELD_OUT_STRANGERS: Final = 140
STRANGERS: Final[tuple[str, ...]] = _STRANGERS[_HELD_OUT_STRANGERS:]
"""Unknown people that training asks about."""
HELD_OUT_STRANGERS: Final[tuple[str, ...]] = _STRANGERS[:_HELD_OUT_STRANGERS]
"""Unknown people that only probes ask about."""


@dataclass(frozen=True)
class View:
    """One view of the world: what may be named, and which forms of an utterance may be used.

    Nouns, strangers, words to copy, and one phrasing of every fact and every sum are shown to probes alone.
    Verbs, ways of asking and some harmful wishes are known to the base (it could not understand them
    otherwise) but are left out of the examples of a behavior, and probes use only those.

    Attributes:
        split: who looks.
        heads: nouns of things in projects.
        strangers: names of unknown people.
        words: words to copy.
        invented: words that are now and then taken instead of a noun or a word to copy.
    """

    split: Split
    heads: tuple[str, ...]
    strangers: tuple[str, ...]
    words: tuple[str, ...]
    invented: tuple[str, ...] = ()

    def noun(self, rng: Random) -> str:
        """The name of a thing in a project."""
        return self._draw(rng, self.heads, 0.3)

    def word(self, rng: Random) -> str:
        """A word to copy."""
        return self._draw(rng, self.words, 0.7)

    def _draw(self, rng: Random, real: Sequence[str], share: float) -> str:
        return rng.choice(self.invented if self.invented and rng.random() < share else real)

    def forms(self, items: Sequence[T], held_out: int = 1) -> Sequence[T]:
        """Forms that the base knows and whose last `held_out` no example of a behavior uses."""
        if self.split == "base":
            return items
        return items[-held_out:] if self.split == "probe" else items[:-held_out]

    def phrasings(self, items: Sequence[T], key: int) -> Sequence[T]:
        """Phrasings of one question, of which the one at `key` modulo their number is for probes alone."""
        held_out = key % len(items)
        if self.split == "probe":
            return items[held_out : held_out + 1]
        return [item for position, item in enumerate(items) if position != held_out]


VIEWS: Final[dict[Split, View]] = {
    "base": View("base", HEADS, STRANGERS, WORDS, INVENTED),
    "behavior": View("behavior", HEADS, STRANGERS, WORDS),
    "probe": View("probe", HELD_OUT_HEADS, HELD_OUT_STRANGERS, HELD_OUT_WORDS),
}
