"""Pages for everybody: in both themes, by keyboard, by screen reader, on a phone. Each leaves its pictures."""

from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Page, expect

from compliance_pipeline_tests.dashboard.conftest import HEARD, Site, keep_screenshot, opened, settled

PAGES = {
    "overview": "/?range=30d",
    "heatmap": "/?range=30d&chart=heat",
    "violations": "/violations",
    "review": "/review",
    "operations": "/operations?range=30d",
    "policies": "/policies?range=30d",
    "recording": f"/recordings/{HEARD}",
    "empty": "/?queue=nobody",
    "error": "/no-such-page",
}
RULES = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    "resultTypes": ["violations"],
}
COLOURS = {"runOnly": ["color-contrast"], "resultTypes": ["violations"]}
"""All that a theme changes."""
SHAPES = RULES | {"rules": {"color-contrast": {"enabled": False}}}
"""All that the width changes."""
REACHABLE = "a[href], button, input:not([type=hidden]), textarea, select, summary, audio, [tabindex='0']"


def of_an_error(name: str, faults: list[str]) -> None:
    """The browser itself says on the console that a page was not found."""
    if name == "error":
        assert all("404" in fault for fault in faults)
        faults.clear()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_in_either_theme(
    open_page: Callable[..., Page], site: Site, faults: list[str], theme: Any, name: str
) -> None:
    page = opened(open_page(color_scheme=theme, viewport={"width": 1440, "height": 900}), site.url + PAGES[name])
    keep_screenshot(page, name, theme)
    found = Axe().run(page, options=RULES if theme == "light" else COLOURS)
    assert found.violations_count == 0, found.generate_report()
    of_an_error(name, faults)


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_scrolls_no_page_sideways_and_axe_finds_nothing_there(
    open_page: Callable[..., Page], site: Site, faults: list[str], name: str
) -> None:
    phone = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = opened(phone, site.url + PAGES[name])
    keep_screenshot(page, name, "390")
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = !one.closest('.filters'); })")
    wide = page.evaluate(
        "[...document.querySelectorAll('main *, header *')].filter(one => one.getBoundingClientRect().right"
        " > innerWidth + 1 && !one.closest('.tbl, svg, nav, .seg')).map(one => one.outerHTML.slice(0, 120))"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, wide[:3]
    found = Axe().run(page, options=SHAPES)
    assert found.violations_count == 0, found.generate_report()
    of_an_error(name, faults)


@pytest.mark.parametrize("name", ["overview", "operations", "policies"])
def test_the_narrowest_phone_scrolls_no_page_of_figures_sideways(
    open_page: Callable[..., Page], site: Site, name: str
) -> None:
    page = opened(open_page(viewport={"width": 320, "height": 640}), site.url + PAGES[name])
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_open_menus_have_no_fault_either(page: Page, site: Site) -> None:
    opened(page, f"{site.url}/?queue=sales")
    page.locator("summary", has_text="Queue").click()
    assert Axe().run(page, options=RULES).violations_count == 0
    page.keyboard.press("Escape")
    expect(page.locator(".pick[open]")).to_have_count(0)
    expect(page.locator("summary", has_text="Queue")).to_be_focused()


@pytest.mark.parametrize("name", ["overview", "review", "recording", "error"])
def test_the_first_key_offers_to_skip_to_the_content(page: Page, site: Site, faults: list[str], name: str) -> None:
    opened(page, site.url + PAGES[name])
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    box = skip.bounding_box()
    assert box
    assert box["y"] >= 0
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("!document.activeElement.closest('header, .filters')")
    of_an_error(name, faults)


def test_all_that_can_be_clicked_is_reached_by_key_and_shows_that_it_is(page: Page, site: Site) -> None:
    opened(page, site.url)
    all_of_them = page.locator(REACHABLE).evaluate_all("all => all.filter(one => one.checkVisibility()).length")
    seen, unmarked = 0, []
    for _ in range(all_of_them):
        page.keyboard.press("Tab")
        has, is_marked, said = page.evaluate(
            "() => { const e = document.activeElement, s = getComputedStyle(e); return [e !== document.body,"
            " s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 1, e.outerHTML.slice(0, 90)]; }"
        )
        seen += has
        if has and not is_marked:
            unmarked.append(said)
    assert seen == all_of_them
    assert unmarked == []


def test_a_screen_reader_is_told_what_a_filter_changed(page: Page, site: Site) -> None:
    opened(page, site.url)
    live = page.get_by_role("status")
    expect(live).to_have_text("")
    settled(page, page.locator("table.heat").get_by_role("link", name="sales").click)
    expect(live).to_have_text(page.locator(".verdict").inner_text(), use_inner_text=True)
    settled(page, page.get_by_role("link", name="30 d", exact=True).click)
    expect(live).to_have_text(page.locator(".verdict").inner_text(), use_inner_text=True)


def test_the_focus_stays_where_it_was_when_a_filter_is_chosen_by_key(page: Page, site: Site) -> None:
    opened(page, site.url)
    row = page.locator("table.heat").get_by_role("link", name="sales")
    row.focus()
    settled(page, lambda: page.keyboard.press("Enter"))
    assert page.evaluate("document.activeElement !== document.body"), "the next Tab would begin at the top again"


def test_each_chart_says_in_words_what_it_shows(page: Page, site: Site) -> None:
    opened(page, f"{site.url}/?range=30d")
    charts = page.locator(".plot")
    said = charts.evaluate_all("all => all.map(one => [one.getAttribute('role'), one.getAttribute('aria-label')])")
    assert len(said) == 10
    assert all(role == "img" and len(words) > 25 for role, words in said)
    assert "P95" in said[0][1]


def test_nothing_moves_for_who_wants_no_motion(open_page: Callable[..., Page], site: Site) -> None:
    page = opened(open_page(reduced_motion="reduce"), site.url)
    moving = page.evaluate(
        "[...document.querySelectorAll('*')].filter(one => { const s = getComputedStyle(one);"
        " return parseFloat(s.transitionDuration) > 0.05 || parseFloat(s.animationDuration) > 0.05; }).length"
    )
    assert moving == 0
