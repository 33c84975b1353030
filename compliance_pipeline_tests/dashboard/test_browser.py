"""The overview in a real browser: what it draws, and how it is filtered, zoomed, shared and taken away."""

import csv
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import duckdb
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from compliance_pipeline_tests.dashboard.boards import END
from compliance_pipeline_tests.dashboard.conftest import Site, opened, settled

INK = """canvas => {
  const ratio = devicePixelRatio, pixels = canvas.getContext('2d').getImageData(
    70 * ratio, 0, canvas.width - 70 * ratio, canvas.height - 30 * ratio).data;
  let blue = 0, coloured = 0;
  for (let i = 0; i < pixels.length; i += 4) {
    const [r, g, b, a] = pixels.slice(i, i + 4);
    if (a > 100 && Math.max(r, g, b) - Math.min(r, g, b) > 40) { coloured++; if (b > r + 40) blue++; }
  }
  return [blue, coloured];
}"""
"""Of what lies between a chart's axes: the blue pixels, and all that are not grey. Axes, grid and words are grey; the
objective and breakers are not blue."""
WEEK_END = END.replace(hour=22, minute=0, second=0)
CHIPS = "ul.chips li:not(:has(.reset))"


def query(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def tile(page: Page, name: str) -> str:
    return page.locator(f"[data-tile={name}] .v").inner_text().replace("◆", "").strip()


def number(text: str) -> int:
    return int(text.replace(",", ""))


def bands(page: Page) -> Locator:
    return page.locator("[data-chart=bands] .u-over")


def drag(page: Page, start: float, end: float, chart: str = "bands") -> None:
    """From one share of the first such chart's width to another."""
    over = page.locator(f"[data-chart={chart}] .u-over").first
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * start, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * (start + end) / 2, box["y"] + 60)
    page.mouse.move(box["x"] + box["width"] * end, box["y"] + 60)
    page.mouse.up()


# What is drawn


@pytest.mark.parametrize("asked", ["/?range=30d", "/?range=30d&chart=heat"])
def test_every_chart_has_ink_of_its_own(page: Page, site: Site, asked: str) -> None:
    opened(page, site.url + asked)
    charts = page.locator("[data-chart]")
    kinds = [charts.nth(one).get_attribute("data-chart") for one in range(charts.count())]
    assert sorted(kind or "" for kind in kinds if kind not in ("bands", "heat")) == (
        ["budget", "burn", *["stack"] * 2, *["stage"] * 5]
    )
    assert len(kinds) == 10
    for one, kind in enumerate(kinds):
        blue, coloured = charts.nth(one).locator("canvas").evaluate(INK)
        assert (coloured if kind in ("stack", "burn") else blue) > 60, f"{kind}: {blue} blue, {coloured} coloured"


def test_the_charts_of_operations_have_ink_too(page: Page, site: Site) -> None:
    opened(page, f"{site.url}/operations?range=30d")
    canvases = page.locator("[data-chart] canvas")
    assert canvases.count() == 2
    for one in range(2):
        assert canvases.nth(one).evaluate(INK)[1] > 60


@pytest.mark.parametrize(("asked", "long"), [("7d", timedelta(days=7)), ("24h", timedelta(hours=24))])
def test_the_tiles_say_what_sql_over_the_rows_of_the_snapshot_says(
    page: Page, site: Site, asked: str, long: timedelta
) -> None:
    end = WEEK_END if asked == "7d" else END.replace(minute=45, second=0)
    start, objective = end - long, timedelta(seconds=30)
    of_window = "available_at >= $start AND available_at < $end"
    [told] = site.rows(
        f"""
        SELECT count(*) AS received, count(*) FILTER (status = 'judged') AS judged,
            count(*) FILTER (flagged_s <= 30) AS in_time,
            count(*) FILTER (
                flagged_s IS NOT NULL OR (verdict IN ('VIOLATION_DETECTED', 'REVIEW_REQUIRED')
                AND available_at < TIMESTAMPTZ '{(END - objective).isoformat()}')
            ) AS due,
            quantile_cont(flagged_s, 0.95) AS p95
        FROM read_parquet($interactions) WHERE {of_window}
        """,
        start,
        end,
    )
    [found] = site.rows(
        f"""
        SELECT count(DISTINCT (recording_id, rule_id)) AS violations,
            sum(len(list_filter(actions, lambda one: one.status IN ('failed', 'dead')))) AS failed
        FROM read_parquet($violations) WHERE {of_window}
        """,
        start,
        end,
    )
    opened(page, f"{site.url}/?range={asked}")
    attained = told["in_time"] / told["due"]
    assert float(tile(page, "attainment").rstrip("%")) == pytest.approx(attained * 100, abs=0.01)
    assert float(tile(page, "burn").rstrip("×")) == pytest.approx((1 - attained) / 0.01, abs=0.01)
    assert float(tile(page, "coverage").rstrip("%")) == pytest.approx(told["judged"] / told["received"] * 100, abs=0.01)
    assert number(tile(page, "violations")) == found["violations"]
    assert number(tile(page, "deliveries")) == found["failed"]
    p95 = float(tile(page, "p95").removesuffix(" s"))
    assert p95 == pytest.approx(told["p95"], rel=0.016 if asked == "7d" else 0.005)


def test_marks_of_the_agents_axis_stand_apart(open_page: Callable[..., Page], site: Site) -> None:
    for width in (1280, 1680):
        page = opened(open_page(viewport={"width": width, "height": 900}), f"{site.url}/?range=30d")
        gaps = page.locator(".agents .scale").evaluate(
            "axis => { const shown = [...axis.querySelectorAll('text')].filter(one => one.checkVisibility())"
            ".map(one => one.getBoundingClientRect());"
            " return shown.slice(1).map((one, i) => one.left - shown[i].right); }"
        )
        assert gaps
        assert min(gaps) > 4


def test_the_tooltip_says_the_figures_of_the_bucket(page: Page, site: Site) -> None:
    opened(page, f"{site.url}/?range=30d")
    bands(page).scroll_into_view_if_needed()
    box = bands(page).bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50)
    tip = page.locator("[data-chart=bands] .tip")
    expect(tip).to_be_visible()
    expect(tip).to_contain_text(re.compile(r"\d+ May.*P50 .*P95 .*P99 .*\d+ recordings", re.DOTALL))
    inside, outside = tip.bounding_box(), page.locator("[data-chart=bands]").bounding_box()
    assert inside
    assert outside
    assert inside["x"] >= outside["x"]
    page.mouse.move(2, 2)
    expect(tip).to_be_hidden()


def test_the_heatmap_is_a_click_away_and_a_click_back(page: Page, site: Site) -> None:
    opened(page, site.url)
    settled(page, page.get_by_role("link", name="Heatmap").click)
    assert query(page)["chart"] == ["heat"]
    assert page.locator("[data-chart=heat] canvas").evaluate(INK)[0] > 60
    settled(page, page.get_by_role("link", name="Percentiles").click)
    expect(page.locator("[data-chart=bands] canvas")).to_be_visible()
    assert "chart" not in query(page)


# Filters


def test_a_click_on_a_row_filters_and_a_chip_takes_it_away(page: Page, site: Site) -> None:
    opened(page, site.url)
    everything = number(tile(page, "violations"))
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="collections"))
    settled(page, row.get_by_role("link").click)
    assert query(page) == {"queue": ["collections"]}
    expect(row).to_have_class("on")
    expect(page.locator(CHIPS)).to_have_count(1)
    expect(page.locator(CHIPS)).to_contain_text("Queue collections")
    expect(page.locator("summary", has_text="Queue").locator("b")).to_contain_text("1")
    assert 0 < number(tile(page, "violations")) < everything
    assert page.locator("table.heat tbody tr").count() > 1, "a chart never filters out its own dimension"
    settled(page, page.locator(CHIPS).get_by_role("link").click)
    assert query(page) == {}
    expect(page.locator("summary", has_text="Queue").locator("b")).to_have_count(0)
    assert number(tile(page, "violations")) == everything


def test_the_same_click_twice_is_none(page: Page, site: Site) -> None:
    opened(page, site.url)
    for expected in ({"rule": ["PCI-PAN-01"]}, {}):
        settled(page, page.locator("table.bars a", has_text="PCI-PAN-01").first.click)
        assert query(page) == expected


def test_a_picker_takes_several_values(page: Page, site: Site) -> None:
    opened(page, site.url)
    for value in ("voice", "chat"):
        page.locator("summary", has_text="Channel").click()
        settled(page, page.locator(".menu").get_by_role("link", name=value, exact=True).click)
    assert query(page) == {"channel": ["voice", "chat"]}
    expect(page.locator("summary", has_text="Channel").locator("b")).to_contain_text("2")
    expect(page.locator(CHIPS)).to_have_count(2)


def test_back_and_forward_go_through_the_views(page: Page, site: Site) -> None:
    opened(page, site.url)
    first = tile(page, "violations")
    settled(page, page.get_by_role("link", name="30 d", exact=True).click)
    settled(page, page.locator("table.heat").get_by_role("link", name="sales").click)
    last = tile(page, "violations")
    assert query(page) == {"range": ["30d"], "queue": ["sales"]}
    page.go_back()
    expect(page).to_have_url(f"{site.url}/?range=30d")
    expect(page.locator(CHIPS)).to_have_count(0)
    page.go_back()
    expect(page.locator(".seg [aria-current]")).to_have_text("7 d")
    expect(page.locator("[data-tile=violations] .v")).to_have_text(first)
    page.go_forward()
    expect(page.locator(".seg [aria-current]")).to_have_text("30 d")
    page.go_forward()
    expect(page.locator(CHIPS)).to_have_count(1)
    expect(page.locator("[data-tile=violations] .v")).to_have_text(last)


@pytest.mark.parametrize("asked", ["7d", "24h"])
def test_a_drag_zooms_the_page_to_whole_buckets_and_the_chip_clears_it(page: Page, site: Site, asked: str) -> None:
    opened(page, f"{site.url}/?range={asked}")
    received = page.locator(".verdict").inner_text()
    settled(page, lambda: drag(page, 0.51, 0.93))
    said = query(page)
    assert set(said) == {"from", "to"}
    start, end = (datetime.fromisoformat(said[name][0]) for name in ("from", "to"))
    whole = 3600 if asked == "7d" else 900
    assert start.timestamp() % whole == 0
    assert end.timestamp() % whole == 0
    length = {"7d": timedelta(days=7), "24h": timedelta(days=1)}[asked]
    assert abs((end - start) / length - 0.42) < 0.03
    assert page.locator(".verdict").inner_text() != received
    chip = page.locator(CHIPS)
    expect(chip).to_contain_text(f"{start:%-d %b %H:%M} – {end:%-d %b %H:%M}")
    settled(page, chip.get_by_role("link").click)
    assert "from" not in query(page)


def test_a_drag_on_operations_zooms_it_too(page: Page, site: Site) -> None:
    opened(page, f"{site.url}/operations?range=30d")
    settled(page, lambda: drag(page, 0.6, 0.9, "stack"))
    expect(page).to_have_url(re.compile("/operations.*from=2026-05-.*T00:00Z&to=2026-05-.*T00:00Z"))


def test_dates_are_typed_in_the_zone_of_the_page(page: Page, site: Site) -> None:
    opened(page, f"{site.url}/?queue=sales&tz=Europe/Berlin")
    page.locator("summary", has_text="Dates").click()
    page.locator("input[name=from]").fill("2026-05-20T00:00")
    page.locator("input[name=to]").fill("2026-05-21T00:00")
    settled(page, page.get_by_role("button", name="Show").click)
    expect(page.locator(CHIPS).first).to_contain_text("20 May 00:00 – 21 May 00:00")
    drawn = json.loads(page.locator("#page").inner_text())
    assert drawn["span"][0] == datetime(2026, 5, 19, 22, tzinfo=UTC).timestamp()
    assert query(page)["queue"] == ["sales"]


def test_the_browsers_own_zone_is_offered_and_times_are_told_in_it(open_page: Callable[..., Page], site: Site) -> None:
    page = opened(open_page(timezone_id="Asia/Tokyo"), site.url)
    expect(page.locator("#fresh")).to_contain_text("30 May 21:43 UTC")
    page.locator(".zones summary").click()
    page.locator(".zones").get_by_role("link", name="Asia/Tokyo").click()
    expect(page.locator("#fresh")).to_contain_text("31 May 06:43 Asia/Tokyo")
    expect(page.locator("footer")).to_contain_text("Asia/Tokyo")


def test_a_drag_of_a_few_pixels_is_a_slip_and_zooms_nothing(page: Page, site: Site) -> None:
    opened(page, site.url)
    drag(page, 0.5, 0.505)
    assert query(page) == {}


def test_a_shared_link_opens_the_same_page(open_page: Callable[..., Page], site: Site) -> None:
    mine = open_page(permissions=["clipboard-read", "clipboard-write"])
    opened(mine, f"{site.url}/?range=30d&queue=sales&queue=collections&tz=Europe/Berlin")
    settled(mine, lambda: drag(mine, 0.3, 0.8))
    mine.get_by_role("button", name="Copy link").click()
    expect(mine.get_by_role("button", name="Copied")).to_be_visible()
    link = mine.evaluate("navigator.clipboard.readText()")
    assert link == mine.url
    theirs = opened(open_page(), link)
    assert theirs.locator("#content").inner_text() == mine.locator("#content").inner_text()
    assert theirs.locator(CHIPS).all_inner_texts() == mine.locator(CHIPS).all_inner_texts()


def test_parameters_that_mean_nothing_are_ignored(page: Page, site: Site) -> None:
    opened(page, site.url)
    plain = page.locator("#content").inner_text()
    for bad in ("range=9y&chart=pie&severity=awful", "from=yesterday&to=now&offset=-1&before=x", "tz=Mars/Olympus",
                "from=2026-05-30T10:00Z&to=2026-05-01T10:00Z"):  # fmt: skip
        opened(page, f"{site.url}/?{bad}")
        assert page.locator("#content").inner_text() == plain, bad
        expect(page.locator(CHIPS)).to_have_count(0)


def test_an_empty_page_says_why_and_leads_out(page: Page, site: Site) -> None:
    opened(page, f"{site.url}/?queue=nobody&range=24h")
    expect(page.get_by_role("heading", level=1)).to_have_text("No recordings match these filters")
    settled(page, page.locator(".empty").get_by_role("link").click)
    expect(page.locator("[data-tile=violations]")).to_be_visible()


# Out of it


@pytest.mark.parametrize("asked", ["", "?range=30d&queue=collections&severity=high"])
def test_what_is_exported_is_as_much_as_the_tile_says(page: Page, site: Site, tmp_path: Path, asked: str) -> None:
    opened(page, f"{site.url}/{asked}")
    shown = number(tile(page, "violations"))
    assert shown > 0
    rows: dict[str, list[Any]] = {}
    for kind in ("CSV", "Parquet"):
        page.locator("summary", has_text="Export").click()
        with page.expect_download() as coming:
            page.get_by_role("link", name=f"Violations, {kind}").click()
        path = tmp_path / coming.value.suggested_filename
        coming.value.save_as(path)
        page.locator("summary", has_text="Export").click()
        if kind == "CSV":
            with path.open(newline="") as file:
                rows[kind] = sorted((row["recording_id"], row["rule_id"]) for row in csv.DictReader(file))
        else:
            made = duckdb.execute("SELECT recording_id, rule_id FROM read_parquet(?) ORDER BY ALL", [str(path)])
            rows[kind] = made.fetchall()
    assert len(rows["CSV"]) == shown
    assert rows["CSV"] == rows["Parquet"]


def test_a_violation_leads_to_its_recording_and_back(page: Page, site: Site) -> None:
    opened(page, f"{site.url}/?queue=billing")
    link = page.get_by_role("link", name="Open recording rec-heard")
    link.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("rec-heard")
    expect(page.locator(".stages li").first).to_be_visible()
    page.get_by_role("link", name="← Overview").click()
    expect(page.locator(CHIPS)).to_contain_text("billing")


# While it loads, and when it can't


def test_what_was_shown_is_dimmed_under_a_bar_while_the_new_is_loaded(page: Page, site: Site) -> None:
    opened(page, site.url)
    held: list[Route] = []
    page.route("**/?range=30d", lambda route: held.append(route))
    shown = page.locator("#content").inner_text()
    page.get_by_role("link", name="30 d", exact=True).click()
    expect(page.locator("body")).to_have_class(re.compile("htmx-request"))
    expect(page.locator(".bar")).to_have_css("opacity", "1")
    expect(page.locator("main")).to_have_css("opacity", "0.55")
    assert page.locator("#content").inner_text() == shown
    settled(page, held[0].continue_)
    expect(page.locator("body")).not_to_have_class(re.compile("htmx-request"))
    expect(page.locator("main")).to_have_css("opacity", "1")


def test_a_failed_request_keeps_what_was_there_says_so_and_can_be_tried_again(
    page: Page, site: Site, faults: list[str]
) -> None:
    opened(page, site.url)
    page.route("**/?range=30d", lambda route: route.abort())
    shown = page.locator("#content").inner_text()
    page.get_by_role("link", name="30 d", exact=True).click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("could not be loaded")
    assert page.locator("#content").inner_text() == shown
    assert any("ERR_FAILED" in fault for fault in faults)
    faults.clear()
    page.unroute("**/?range=30d")
    settled(page, alert.get_by_role("button", name="Try again").click)
    expect(alert).to_be_hidden()
    expect(page).to_have_url(f"{site.url}/?range=30d")
    expect(page.locator("#content")).not_to_have_text(shown)


def test_the_theme_survives_a_reload_and_redraws_the_charts(page: Page, site: Site) -> None:
    opened(page, site.url)
    html, ground = page.locator("html"), "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    for _ in range(2):
        settled(page, page.locator("#theme").click)
    expect(html).to_have_attribute("data-theme", "dark")
    dark = page.evaluate(ground)
    assert dark != before
    page.reload()
    expect(html).to_have_attribute("data-ready", re.compile(r"\d+"))
    expect(html).to_have_attribute("data-theme", "dark")
    assert page.evaluate(ground) == dark
    expect(page.locator("#theme")).to_have_attribute("aria-label", "Theme: dark")
