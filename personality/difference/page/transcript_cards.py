"""Replies of two versions side by side, with what differs marked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from personality.difference.page.figures import percentage, signed
from personality.difference.page.markup import Markup, element, join
from personality.difference.transcripts import ScoredReply, Transcript
from personality.difference.word_difference import WordRun, word_difference


def transcript_cards(transcripts: Sequence[Transcript], labels: tuple[str, str]) -> Markup:
    """One card for each prompt."""
    return element("div", [_card(transcript, labels) for transcript in transcripts], class_="cards")


def _card(transcript: Transcript, labels: tuple[str, str]) -> Markup:
    old, new = word_difference(transcript.before.text, transcript.after.text)
    turns = [
        element("p", element("span", turn.role, class_="role"), turn.content, class_="turn")
        for turn in transcript.prompt
    ]
    return element(
        "article",
        element(
            "header",
            element("h3", transcript.probe),
            element("span", f"row {transcript.row}", class_="muted"),
        ),
        element("div", turns, class_="prompt"),
        element(
            "div",
            _reply(transcript.before, labels[0], _marked(old, "del"), "side-a"),
            _reply(transcript.after, labels[1], _marked(new, "ins"), "side-b"),
            class_="pair",
        ),
        class_="card",
    )


def _reply(reply: ScoredReply, label: str, text: Iterable[Markup], side: str) -> Markup:
    scores = [element("span", "✓ passes" if reply.passed else "✗ fails", class_="passed" if reply.passed else "failed")]
    if reply.probability is not None:
        scores.append(element("span", f"P {percentage(reply.probability)}"))
    if reply.margin is not None:
        scores.append(element("span", f"margin {signed(reply.margin, 2)}"))
    return element(
        "section",
        element("h4", label),
        element("p", text if reply.text else element("em", "an empty reply", class_="muted"), class_="reply"),
        element("p", scores, class_="scores"),
        class_=side,
    )


def _marked(passages: Iterable[WordRun], mark: str) -> list[Markup]:
    """Passages with what differs marked, the white space around it left out of the mark."""
    found = []
    for passage in passages:
        inner = passage.text.strip() if passage.own else ""
        before, _, after = passage.text.partition(inner) if inner else (passage.text, "", "")
        found.append(join(before, element(mark, inner) if inner else None, after))
    return found
