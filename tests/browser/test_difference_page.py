from __future__ import annotations

from pathlib import Path

import pytest

from personality.difference.page.page import write_page
from tests.browser.conftest import Browser
from tests.difference.made import FURTHER, MODULES, NASTY, made_difference

pytestmark = pytest.mark.browser


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_page(made_difference(), tmp_path / "page.html")
    return tmp_path / "page.html"


@pytest.fixture
def big(tmp_path: Path) -> Path:
    write_page(made_difference(layers=64, modules=(*MODULES, *FURTHER)), tmp_path / "big.html")
    return tmp_path / "big.html"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_opens_without_complaint_and_asks_for_nothing(browser: Browser, path: Path, theme: str) -> None:
    browser.open(path, theme=theme)
    # What the browser's own start page still loads is none of the page's.
    asked = [address for address in browser.requests() if not address.startswith(("data:", "chrome://"))]
    assert asked == [path.as_uri()]
    assert browser.complaints() == []
    assert browser.driver.title == "v1 → v2 · persona diff"


def test_what_users_wrote_does_nothing(browser: Browser, path: Path) -> None:
    browser.open(path)
    assert browser.run("return document.images.length + document.querySelectorAll('main script').length") == 0
    assert NASTY in browser.find(".side-b .message")[0].text


def background(browser: Browser) -> tuple[int, ...]:
    found = str(browser.run("return getComputedStyle(document.body).backgroundColor"))
    return tuple(int(part) for part in found.removeprefix("rgb(").removesuffix(")").split(","))


def test_the_theme_follows_the_system_until_the_button_is_pressed(browser: Browser, path: Path) -> None:
    browser.open(path, theme="dark")
    assert max(background(browser)) < 60
    browser.open(path, theme="light")
    assert min(background(browser)) > 200
    button = browser.find("#theme")[0]
    assert button.text == "Dark"
    button.click()
    assert max(background(browser)) < 60
    assert button.text == "Light"
    browser.driver.refresh()  # what was chosen stays
    assert max(background(browser)) < 60
    browser.find("#theme")[0].click()
    browser.driver.refresh()
    assert min(background(browser)) > 200


@pytest.mark.parametrize("width", [320, 360, 390, 768, 1280])
def test_the_page_never_scrolls_sideways(browser: Browser, path: Path, big: Path, width: int) -> None:
    for page in (path, big):
        browser.open(page, width=width)
        browser.run("document.querySelectorAll('details').forEach((item) => { item.open = true; })")
        # Nothing that has no frame of its own to scroll in sticks out of the window.
        out = browser.run(
            "return [...document.querySelectorAll('body *')].filter((item) => !item.closest('.scroll, nav, .skip')"
            " && item.getBoundingClientRect().right > arguments[0] + 1).map((item) => item.outerHTML.slice(0, 120))",
            width,
        )
        assert out == []
        page_width, window = browser.run(
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert page_width <= window <= width


def tip(browser: Browser) -> str | None:
    found = browser.find("#tip")[0]
    return found.text if found.is_displayed() else None


def test_the_heat_map_tells_its_figures_to_keyboard_and_pointer(browser: Browser, path: Path) -> None:
    browser.open(path)
    assert tip(browser) is None
    cells = browser.find("table.heat td[data-tip]")
    browser.run("arguments[0].focus()", cells[0])
    said = tip(browser)
    assert said is not None
    assert said.startswith("layer 0 · attention.q")
    assert "sign flips 25%" in said
    browser.press("ARROW_RIGHT", "ARROW_DOWN")
    assert (tip(browser) or "").startswith("layer 1 · attention.k")
    browser.press("END")
    assert (tip(browser) or "").startswith("layer 1 · mlp.down")
    assert browser.run("return document.querySelectorAll('table.heat td[tabindex=\"0\"]').length") == 1
    browser.press("ESCAPE")
    assert tip(browser) is None
    browser.point_at(cells[3])
    assert (tip(browser) or "").startswith("layer 0 · attention.o")


def test_the_keyboard_gets_everywhere(browser: Browser, path: Path) -> None:
    browser.open(path)
    seen = []
    for _ in range(60):
        browser.press("TAB")
        seen.append(str(browser.run("return document.activeElement.className || document.activeElement.tagName")))
    for stop in ("skip", "BUTTON", "forest-row", "SUMMARY"):
        assert stop in seen, seen
    assert browser.run("return document.querySelectorAll('.owners li[tabindex]').length") == 2


def test_the_colors_change_with_the_measure_and_the_theme(browser: Browser, path: Path) -> None:
    browser.open(path)
    cells = "[...document.querySelectorAll('table.heat td[data-tip]')]"
    colors = f"return {cells}.map((cell) => getComputedStyle(cell).backgroundColor)"
    norm = browser.run(colors)
    assert isinstance(norm, list)
    assert len(set(norm)) > 5  # the scale is drawn at all
    flips = browser.find("button[data-measure=flips]")[0]
    flips.click()
    assert flips.get_attribute("aria-pressed") == "true"
    assert browser.run(colors) != norm
    assert len(browser.find(".heat-scale:not([hidden])")) == 1
    browser.find("button[data-measure=norm]")[0].click()
    browser.find("#theme")[0].click()
    assert browser.run(colors) != norm


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_scale_runs_one_way_in_lightness(browser: Browser, path: Path, theme: str) -> None:
    browser.open(path, theme=theme)
    pairs = browser.run(
        "return [...document.querySelectorAll('table.heat td[data-tip]')].map((cell) => "
        "[+cell.style.getPropertyValue('--norm'), getComputedStyle(cell).backgroundColor])"
    )
    lightness = [float(color.removeprefix("oklab(").split()[0]) for _, color in sorted(pairs)]
    assert lightness == sorted(lightness, reverse=theme == "light")
    assert max(lightness) - min(lightness) > 0.5


def test_replies_stand_beside_each_other_and_below_on_a_phone(browser: Browser, path: Path) -> None:
    tops = "return [...document.querySelectorAll('.pair')[0].children].map((c) => c.getBoundingClientRect().top)"
    browser.open(path, width=1280)
    left, right = browser.run(tops)
    assert left == right
    browser.open(path, width=390)
    left, right = browser.run(tops)
    assert left < right


def test_text_stands_out_from_its_ground(browser: Browser, path: Path) -> None:
    """At least 4.5 to 1, as WCAG 2.2 asks of body text, in both themes."""
    script = """
      const light = (color) => {
        const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
          .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const ground = (item) => {
        for (; item; item = item.parentElement) {
          const color = getComputedStyle(item).backgroundColor;
          if (!/, 0\\)$|transparent/.test(color)) return color;
        }
        return "rgb(255, 255, 255)";
      };
      const low = [];
      const texts = "p, li span, h1, h2, h3, h4, del, ins, dt, dd, a, button, summary";
      for (const item of document.querySelectorAll(texts)) {
        if (!item.textContent.trim() || !item.getClientRects().length) continue;
        const [a, b] = [light(getComputedStyle(item).color), light(ground(item))].sort();
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < 4.5) low.push(`${item.tagName}.${item.className} ${contrast.toFixed(2)}`);
      }
      return [...new Set(low)];
    """
    for theme in ("light", "dark"):
        browser.open(path, theme=theme)
        assert browser.run(script) == [], theme
