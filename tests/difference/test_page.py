from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from personality.difference.difference import Difference, MeasuredChange
from personality.difference.page.figures import nice_ticks, percentage, signed
from personality.difference.page.markup import Markup, element, join
from personality.difference.page.page import page, write_page
from tests.difference.made import FURTHER, MODULES, NASTY, made_difference

_VOID = {"meta", "link", "br"}


class _Reader(HTMLParser):
    """Reads a page as a browser would, and fails where an element is closed that is not the one open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


def read(text: str) -> _Reader:
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def whole() -> _Reader:
    return read(page(made_difference()))


def attributes(reader: _Reader, tag: str) -> list[dict[str, str | None]]:
    return [found for name, found in reader.elements if name == tag]


def test_nothing_comes_from_elsewhere(whole: _Reader) -> None:
    for tag, found in whole.elements:
        assert tag not in ("img", "iframe", "object", "embed", "form", "base", "audio", "video", "image", "use")
        assert not any(name.startswith("on") for name in found), (tag, found)
        assert "src" not in found
        assert "srcset" not in found
        href = found.get("href")
        assert href is None or href.startswith("#") or (tag == "link" and href == "data:,")
    style = "".join(whole.texts["style"])
    assert "url(" not in style
    assert "@import" not in style
    scripts = "".join(whole.texts["script"])
    assert not re.search(r"fetch|XMLHttp|import\(|WebSocket|innerHTML|document\.write|eval", scripts)


def test_what_users_wrote_is_text(whole: _Reader) -> None:
    assert len(attributes(whole, "script")) == 2
    assert len(attributes(whole, "style")) == 1
    text = page(made_difference())
    assert NASTY not in text
    assert text.count("<script>") == 2
    everything = ["".join(texts) for texts in whole.texts.values()]
    assert any(NASTY in said for said in everything)  # the message and prompt are shown, as they were written
    tips = [found["data-tip"] for _, found in whole.elements if "data-tip" in found]
    assert any(tip and NASTY in tip for tip in tips)


def test_the_policy_allows_this_page_s_scripts_only(whole: _Reader) -> None:
    import base64
    import hashlib

    policy = next(found for found in attributes(whole, "meta") if found.get("http-equiv") == "Content-Security-Policy")
    allowed = str(policy["content"])
    assert allowed.startswith("default-src 'none'")
    scripts = re.findall(r"<script>(.*?)</script>", page(made_difference()), re.DOTALL)
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in allowed
    assert "unsafe-inline" not in allowed.partition("script-src")[2]


def test_ids_labels_and_links(whole: _Reader) -> None:
    ids = [found["id"] for _, found in whole.elements if "id" in found]
    assert len(ids) == len(set(ids))
    for _, found in whole.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert name not in found or found[name] in ids
        href = found.get("href")
        assert href is None or not href.startswith("#") or href[1:] in ids
    for picture in attributes(whole, "svg"):
        assert picture.get("aria-hidden") == "true" or (picture.get("role") == "img" and picture.get("aria-label"))


def test_the_heat_map_has_a_cell_for_every_module(whole: _Reader) -> None:
    cells = [found for found in attributes(whole, "td") if "data-tip" in found]
    assert len(cells) == 4 * len(MODULES) + 1
    assert [found["tabindex"] for found in cells].count("0") == 1
    depths = [float(re.search(r"--norm:([\d.]+)", str(found["style"]))[1]) for found in cells]  # type: ignore[index]
    assert max(depths) == 1
    assert min(depths) > 0
    assert "layer 0 · attention.q" in str(cells[0]["data-tip"])


def test_what_the_forest_plot_says(whole: _Reader) -> None:
    said = " ".join("".join(texts) for texts in whole.texts.values())
    assert "+90.0 [+" in said
    assert "no difference shown" in said
    assert "n 20" in " ".join(str(found.get("data-tip")) for _, found in whole.elements)
    described = [found["aria-label"] for found in attributes(whole, "svg") if found.get("role") == "img"]
    assert any("warm.warm: passing replies +90.0" in str(label) for label in described)
    assert "+0.600 [+0.600, +0.600]" in said  # the margin, in nats


def test_counts_seed_and_intervals_are_stated(whole: _Reader) -> None:
    facts = dict(zip(whole.texts["dt"], whole.texts["dd"], strict=True))
    assert facts["rows of each probe (n)"] == "20"
    assert facts["seed"] == "7"
    assert "torch 2.13.0" in facts["measured with"]
    notes = " ".join(whole.texts["p"])
    for word in ("Wilson", "Newcombe", "bootstrap", "95%"):
        assert word in notes


def test_replies_are_side_by_side_with_their_scores(whole: _Reader) -> None:
    assert "Fine" in "".join(whole.texts["del"])
    assert "Wonderful!" in "".join(whole.texts["ins"])
    assert "an empty reply" in whole.texts["em"]
    for score in ("✓ passes", "✗ fails", "P 90%", "margin −0.20"):
        assert score in whole.texts["span"]


def without(found: Difference, **parts: object) -> Difference:
    return Difference(**{**vars(found), **parts})


def test_pages_with_less_to_show(tmp_path: Path) -> None:
    found = made_difference(measured=False)
    reader = read(page(found))
    assert "persona diff v1 v2 --effect --html FILE" in reader.texts["code"]
    assert found.weights.owners
    calm = made_difference()
    assert calm.measured is not None
    quiet = MeasuredChange(calm.measured.evaluations, calm.measured.effects[1:], ())
    text = page(without(calm, measured=quiet, doses=(), steering=()))
    read(text)
    assert "No difference was shown in any of 2 probes." in text
    assert "No reply was found that changed." in text
    same = without(calm, recipe=(), weights=type(calm.weights)((), (), ()), steering=(), doses=(), measured=None)
    assert "the same recipe" in page(same)
    write_page(same, tmp_path / "deep" / "page.html")
    assert (tmp_path / "deep" / "page.html").read_text(encoding="utf-8") == page(same)


def test_a_big_model_stays_a_page() -> None:
    text = page(made_difference(layers=64, modules=(*MODULES, *FURTHER)))
    read(text)
    assert len(text) < 1_500_000


def test_elements_escape_what_is_not_markup() -> None:
    assert element("p", "a<b", element("b", "&"), None, ["x", Markup("<i>")]) == "<p>a&lt;b<b>&amp;</b>x<i></p>"
    assert (
        element("a", class_="k", aria_label='"<', hidden=True, href=None)
        == '<a class="k" aria-label="&quot;&lt;" hidden></a>'
    )
    assert element("line", x1=1.5, y1=2) == '<line x1="1.5" y1="2"/>'
    assert join("<", Markup("<")) == "&lt;<"


def test_how_figures_are_written() -> None:
    assert [signed(value) for value in (0.0, -0.04, 1.25, -3)] == ["0.0", "0.0", "+1.2", "−3.0"]
    assert [percentage(value) for value in (0, 0.125, 1, -0.25)] == ["0%", "12.5%", "100%", "−25%"]


@pytest.mark.parametrize(("low", "high"), [(-3.0, 100.0), (0.0, 0.004), (-0.2, 0.7), (0.0, 3.0), (0.0, 0.0)])
def test_ticks_are_round_and_reach_both_ends(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high - 1e-12
    assert 2 <= len(ticks) <= 9
    steps = {round((b - a) / (ticks[1] - ticks[0]), 6) for a, b in itertools.pairwise(ticks)}
    assert steps == {1.0}
