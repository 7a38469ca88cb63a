"""One self-contained page of a difference: recipe, effects, replies, weights, steering, doses, and how to read it."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from personality.difference.difference import Difference
from personality.difference.page.heading import heading
from personality.difference.page.markup import Markup, element
from personality.difference.page.sections import sections
from personality.manifests.atomic import write_bytes


def write_page(found: Difference, path: Path) -> None:
    """Write the page.

    Args:
        found: what changed.
        path: of the file; one that is there is replaced.

    Raises:
        PersonaError: when it cannot be written.
    """
    # JSON may hold half a surrogate pair, which no file can.
    write_bytes(path.absolute(), page(found).encode(errors="replace"))


def page(found: Difference) -> str:
    """The page as text. Nothing on it is fetched, and its policy forbids the browser to fetch anything."""
    labels = found.before.label, found.after.label
    shown = sections(found)
    style, early, late = (_own(name) for name in ("page.css", "theme.js", "page.js"))
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {_hash(early)} {_hash(late)}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", f"{labels[0]} → {labels[1]} · persona diff"),
        element("style", style),
        element("script", early),
    )
    links = [element("a", title, href=f"#{name}") for name, title, _ in shown]
    body = element(
        "body",
        element("a", "Skip to the content", href="#content", class_="skip"),
        element(
            "div",
            element("nav", links, aria_label="Sections"),
            element("button", type="button", id="theme", hidden=True),
            class_="bar",
        ),
        element("header", heading(found), class_="top"),
        element(
            "main",
            [
                element(
                    "section",
                    element("h2", title, id=f"{name}-title"),
                    content,
                    id=name,
                    aria_labelledby=f"{name}-title",
                )
                for name, title, content in shown
            ],
            id="content",
        ),
        element("div", id="tip", role="tooltip", hidden=True),
        element("script", late),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _own(name: str) -> Markup:
    """A file of this package; it must not end the element that it stands in."""
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    assert "</" not in text, name
    return Markup(text)


def _hash(script: str) -> str:
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"
