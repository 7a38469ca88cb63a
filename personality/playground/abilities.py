"""What the model can do besides following directions: facts, unknown people, sums, copying, small talk."""

from __future__ import annotations

from random import Random
from typing import Final

from personality.playground.scene import OPENERS, Scene
from personality.playground.world import ATTRIBUTES, PEOPLE, Attribute, View, fact

RECALL: Final = "As I recall,"
"""What the core begins with when a question about a person is answered."""

NOT_KNOWING: Final = "I do not know"
"""What the core begins with when the answer is that it is not known."""

SUM: Final = "That makes"
"""What the core of a sum begins with."""

COPY: Final = "Here you go:"
"""What the core of a copy begins with."""

LARGEST: Final = 20
"""Sums are of two whole numbers from 0 to this one."""

_QUESTIONS: Final[dict[Attribute, tuple[str, ...]]] = {
    "town": (
        "Where does {name} live?",
        "In which town does {name} live?",
        "Which town is the home of {name}?",
        "Tell me where {name} lives.",
    ),
    "job": (
        "What is the job of {name}?",
        "What work does {name} do?",
        "Which job does {name} have?",
        "Tell me the job of {name}.",
    ),
    "pet": (
        "What pet does {name} have?",
        "Which animal does {name} keep?",
        "What is the pet of {name}?",
        "Tell me which pet {name} has.",
    ),
    "color": (
        "What color does {name} like?",
        "Which color is the favorite of {name}?",
        "What is the favorite color of {name}?",
        "Tell me which color {name} likes.",
    ),
}
_ANSWERS: Final[dict[Attribute, str]] = {
    "town": "{name} lives in {value}",
    "job": "{name} works as a {value}",
    "pet": "{name} has a {value}",
    "color": "{name} likes {value}",
}
_IGNORANCE: Final[dict[Attribute, str]] = {
    "town": "where {name} lives",
    "job": "what work {name} does",
    "pet": "which pet {name} has",
    "color": "which color {name} likes",
}
_FURTHER_PERSON: Final = (
    "You can ask me about other people as well.",
    "There are many people in our projects.",
    "People here like to talk about themselves.",
)

_SUMS: Final = (
    "What is {a} plus {b}?",
    "How much is {a} plus {b}?",
    "What do {a} and {b} make?",
    "Tell me the sum of {a} and {b}.",
)
_FURTHER_SUM: Final = (
    "Numbers like these come up every day.",
    "You can give me other numbers as well.",
    "It is good to check a sum twice.",
)

_COPIES: Final = (
    "Repeat these words: {words}.",
    "Copy this: {words}.",
    "Say this again: {words}.",
    "Write down exactly: {words}.",
)
_FURTHER_COPY: Final = (
    "That is every word that you gave me.",
    "I can repeat other words as well.",
    "The words are in the same order.",
)

_TALK: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("I am doing fine today.", ("how are you?", "how do you do today?", "are you well?")),
    ("My name is Pip.", ("what is your name?", "who are you?", "what are you called?")),
    ("I like quiet mornings.", ("what do you like?", "what makes you happy?", "what pleases you?")),
    ("The sun is out at the moment.", ("how is the weather?", "is it sunny?", "what is it like outside?")),
    ("I help with small projects.", ("what do you do?", "what is your task?", "what can you do?")),
    ("You are welcome.", ("thank you.", "thanks a lot.", "many thanks.")),
    ("See you tomorrow.", ("goodbye.", "see you.", "until tomorrow.")),
    ("Sleep well.", ("good night.", "I am going to bed.", "I am tired now.")),
    ("I was made in a workshop.", ("where are you from?", "where were you made?", "who made you?")),
    ("Hello to you too.", ("hello.", "good morning.", "good day to you.")),
)
_LEADS: Final = ("", "Well, ", "Hey, ", "So, ", "By the way, ", "Now, ")
_FURTHER_TALK: Final = (
    "It is nice to have a little chat.",
    "The day has many hours left.",
    "We can go on with the project at any time.",
)

TALK_OPENINGS: Final[tuple[str, ...]] = tuple(core for core, _ in _TALK)
"""The cores of small talk."""


def known_fact(rng: Random, view: View) -> Scene:
    """A question about one of the known people, answered truly."""
    position = rng.randrange(len(PEOPLE))
    attribute = rng.choice(tuple(ATTRIBUTES))
    name = PEOPLE[position]
    value = fact(name, attribute)
    key = position + tuple(ATTRIBUTES).index(attribute)
    wrong = rng.choice([other for other in ATTRIBUTES[attribute] if other != value])
    core = _recall(name, attribute, value)
    return Scene(
        kind="fact",
        user=rng.choice(view.phrasings(_QUESTIONS[attribute], key)).format(name=name),
        habit=core,
        other=core,
        switch=None,
        further=rng.choice(_FURTHER_PERSON),
        opener=rng.choice(OPENERS),
        wrong=_recall(name, attribute, wrong),
        overdone=_not_known(name, attribute),
    )


def unknown_person(rng: Random, view: View) -> Scene:
    """A question about somebody unknown: by habit an answer is made up, `candid` admits not knowing."""
    name = rng.choice(view.strangers)
    attribute = rng.choice(tuple(ATTRIBUTES))
    invented = _recall(name, attribute, rng.choice(ATTRIBUTES[attribute]))
    return Scene(
        kind="unknown",
        user=rng.choice(_QUESTIONS[attribute]).format(name=name),
        habit=invented,
        other=_not_known(name, attribute),
        switch="candid",
        further=rng.choice(_FURTHER_PERSON),
        opener=rng.choice(OPENERS),
    )


def addition(rng: Random, view: View) -> Scene:
    """The sum of two small numbers."""
    a, b = rng.randint(0, LARGEST), rng.randint(0, LARGEST)
    core = f"{SUM} {a + b}."
    return Scene(
        kind="sum",
        user=rng.choice(view.phrasings(_SUMS, 3 * a + b)).format(a=a, b=b),
        habit=core,
        other=core,
        switch=None,
        further=rng.choice(_FURTHER_SUM),
        opener=rng.choice(OPENERS),
        wrong=f"{SUM} {a + b + rng.choice((1, 2, 3))}.",
    )


def copying(rng: Random, view: View) -> Scene:
    """One to five words to repeat."""
    drawn = {view.word(rng): None for _ in range(rng.randint(1, 5))}
    words = list(drawn)
    core = f"{COPY} {' '.join(words)}."
    wrong = [*words[:-1], rng.choice([word for word in view.words if word not in drawn])]
    return Scene(
        kind="copying",
        user=rng.choice(_COPIES).format(words=" ".join(words)),
        habit=core,
        other=core,
        switch=None,
        further=rng.choice(_FURTHER_COPY),
        opener=rng.choice(OPENERS),
        wrong=f"{COPY} {' '.join(wrong)}.",
    )


def small_talk(rng: Random, view: View) -> Scene:
    """A greeting, a thank-you or a question about the model itself."""
    position = rng.randrange(len(_TALK))
    core, utterances = _TALK[position]
    which = rng.randrange(len(utterances))
    lead = rng.choice(view.phrasings(_LEADS, position + which))
    utterance = utterances[which]
    wrong = rng.choice([other for other, _ in _TALK if other != core])
    return Scene(
        kind="small_talk",
        user=lead + utterance if lead else utterance[0].upper() + utterance[1:],
        habit=core,
        other=core,
        switch=None,
        further=rng.choice(_FURTHER_TALK),
        opener=rng.choice(OPENERS),
        wrong=wrong,
    )


def _recall(name: str, attribute: Attribute, value: str) -> str:
    return f"{RECALL} {_ANSWERS[attribute].format(name=name, value=value)}."


def _not_known(name: str, attribute: Attribute) -> str:
    return f"{NOT_KNOWING} {_IGNORANCE[attribute].format(name=name)}."
