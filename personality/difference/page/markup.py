"""Building HTML so that nothing gets in unescaped: what is not `Markup` is text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_VOID = {"meta", "link", "br", "line", "rect", "circle", "path", "polyline", "polygon"}


class Markup(str):
    """Text that is HTML already. It is made here, and of the page's own style and scripts."""

    __slots__ = ()


Child = str | Iterable["Child"] | None


def element(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """An element with everything in it escaped that is not `Markup`.

    Args:
        name: of the element.
        children: texts, elements, or several of them; None for nothing.
        attributes: `class_` is `class`, `aria_label` is `aria-label`; None and False leave one out, True gives it no
            value.
    """
    opened = name
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        opened += f" {key.rstrip('_').replace('_', '-')}"
        if value is not True:
            opened += f'="{escape(_text(value))}"'
    if name in _VOID:
        return Markup(f"<{opened}>" if name in ("meta", "link", "br") else f"<{opened}/>")
    return Markup(f"<{opened}>{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Children one after another, escaped where they are not `Markup`."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(escape(child))
        elif child is not None:
            parts.append(join(*child))
    return Markup("".join(parts))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> Markup:
    """A table whose first column names its rows; it scrolls inside its own frame where it is too wide.

    Columns of words are aligned to the left, those of figures to the right.
    """
    kinds = ["words" if any(row[index][:1].isalpha() for row in rows) else None for index in range(len(columns))]
    cells = list(zip(columns, kinds, strict=True))
    head = element("tr", [element("th", column, scope="col", class_=kind) for column, kind in cells])
    body = []
    for first, *rest in rows:
        named = element("th", first, scope="row")
        figures = [element("td", cell, class_=kind) for cell, kind in zip(rest, kinds[1:], strict=True)]
        body.append(element("tr", named, figures))
    whole = element("table", element("caption", caption), element("thead", head), element("tbody", body))
    return element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def details(summary: str, *children: Child) -> Markup:
    """What is shown when somebody asks for it."""
    return element("details", element("summary", summary), *children)


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
