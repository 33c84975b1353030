"""The pages of what another pack would change: what they say, and how they look to everybody."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Page

from compliance_pipeline import database, what_if
from compliance_pipeline.contracts.policy import PolicyPack
from compliance_pipeline.dashboard.what_if import cells
from compliance_pipeline.promotion import promote
from compliance_pipeline.screening.policy import load_policy
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.dashboard.boards import END
from compliance_pipeline_tests.dashboard.conftest import Site, filled, keep_screenshot, opened, serving
from compliance_pipeline_tests.dashboard.lists import link, text
from compliance_pipeline_tests.dashboard.test_accessibility import COLOURS, RULES, SHAPES

ENGINE = "engine-1"
LIVE = load_policy()
SCREENED = f"""
INSERT INTO screenings BY NAME
SELECT
    recording_id, '{ENGINE}' AS engine_version, partition_hour, channel, direction, queue, started_at,
    NULL AS called_time_zone, correlation_id, true AS words_known, true AS words_timed,
    ['agent', 'customer'] AS speakers, NULL AS annotations, 180000 AS duration_ms, NULL AS unscreenable_reason,
    received_at AS screened_at
FROM recordings
WHERE hash(recording_id) % 37 > 0
"""
SURER = "UPDATE findings SET confidence = 0.7 + 0.25 * (hash(recording_id) % 100) / 100"


def stricter() -> PolicyPack:
    """Without the notice's rule, card numbers only where they are quite sure, more phrases."""
    rules = []
    for rule in LIVE.rules:
        if rule.id == "REC-CONSENT-01":
            continue
        if rule.id == "PCI-PAN-01":
            assert rule.when.findings
            form = rule.when.findings.model_copy(update={"min_confidence": 0.9})
            rule = rule.model_copy(update={"when": rule.when.model_copy(update={"findings": form})})
        rules.append(rule)
    phrases = dict(LIVE.phrases)
    phrases["threat"] = phrases["threat"].model_copy(update={"confidence": 0.8})
    return LIVE.model_copy(update={"version": "0.9.0", "rules": tuple(rules), "phrases": phrases})


def fewer() -> PolicyPack:
    return LIVE.model_copy(update={"version": "0.8.0", "rules": stricter().rules})


@dataclass
class Board:
    settings: Settings
    kept: list[what_if.WhatIf]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    settings = filled(tmp_path_factory.mktemp("what-if") / "home")
    warehouse = Warehouse(settings.warehouse_path)
    with warehouse.write() as connection:
        connection.execute(SCREENED)
        connection.execute(SURER)
    engine = database.connect(settings.inbox_database_url)
    start = END - timedelta(days=3)
    kept = []
    for number, new in enumerate((fewer(), stricter(), LIVE)):
        made = what_if.diff(warehouse, LIVE, new, ENGINE, start, END, settings.review_minutes)
        kept.append(what_if.keep(engine, made, new, "wanda", END + timedelta(minutes=number)))
    promote(settings, engine, fewer(), "pia", END + timedelta(hours=1))
    engine.dispose()
    return Board(settings, kept)


@pytest.fixture(scope="module")
def site(board: Board) -> Iterator[Site]:
    with serving(board.settings) as site:
        yield site


def said(page: Page, url: str) -> str:
    return text(opened(page, url).locator("#content").inner_html())


def test_the_page_says_what_was_kept(page: Page, site: Site, board: Board) -> None:
    kept = board.kept[0]
    diff = kept.diff
    shown = said(page, f"{site.url}/what-if/{kept.id}")
    assert diff.added == 0 < diff.removed
    assert (
        f"With {diff.new} in place of {diff.live}, 0 more recordings would be flagged, {diff.removed:,} no longer"
        in shown
    )
    assert diff.needs_audio
    assert f"{diff.needs_audio:,} recordings of {diff.recordings:,} are not compared" in shown
    assert f"Work items that would open {diff.work_items.opens:,}" in shown
    assert f"Reviewers' hours {diff.hours(diff.work_items.new):.1f} h" in shown
    assert diff.digest in shown
    assert "Promoted by pia" in shown
    for rule in diff.rules:
        assert (f"{rule.rule_id} " in shown) == rule.is_any
    assert "REC-CONSENT-01 removed" in shown
    assert "PCI-PAN-01 edited" in shown
    for queue in diff.queues:
        assert f"{queue.queue} {queue.compared:,} {queue.live:,} {queue.new:,}" in shown
    for one in diff.examples:
        assert one.recording_id in shown
    assert page.locator(f"a[href='/recordings/{diff.examples[0].recording_id}']").count() == 1


def test_every_recording_is_in_the_table_of_verdicts(board: Board) -> None:
    for kept in board.kept:
        _, rows = cells(kept.diff)
        assert sum(cell.recordings for _, row in rows for cell in row) == kept.diff.compared > 0


def test_other_phrases_are_named_and_said_to_need_the_media(page: Page, site: Site, board: Board) -> None:
    kept = board.kept[1]
    shown = said(page, f"{site.url}/what-if/{kept.id}")
    assert f"all {kept.diff.recordings:,} recordings need screening anew, from their media" in shown
    assert "Changed: threat" in shown
    assert "What is told here of FDCPA-THREAT-01, FDCPA-THREAT-02 is by the phrases as they were" in shown
    assert f"compliance policy promote PACK --diff {kept.id}" in shown


def test_a_pack_that_changes_nothing_says_so(page: Page, site: Site, board: Board) -> None:
    shown = said(page, f"{site.url}/what-if/{board.kept[2].id}")
    assert "no verdict would change" in shown
    assert "No rule was edited, and none comes out different." in shown


def test_the_list_has_all_of_them_newest_first_and_marks_what_was_promoted(
    page: Page, site: Site, board: Board
) -> None:
    html = opened(page, f"{site.url}/what-if").locator("#content").inner_html()
    places = [html.index(kept.id) for kept in reversed(board.kept)]
    assert places == sorted(places)
    assert link(html, board.kept[0].id) == f"/what-if/{board.kept[0].id}"
    assert text(html).count("promoted") == 2  # in the heading, too
    assert f"{fewer().policy_version} promoted" in text(html)


def test_the_policies_page_leads_there_and_says_who_promoted(page: Page, site: Site) -> None:
    html = opened(page, f"{site.url}/policies").locator("#content").inner_html()
    assert link(html, "What another pack would change") == "/what-if"
    assert f"{fewer().policy_version} is live: {len(fewer().rules)} rules, promoted by pia" in text(html)


def test_what_was_never_made_is_not_found(page: Page, site: Site, faults: list[str]) -> None:
    page.goto(f"{site.url}/what-if/0123456789ab")
    assert "There is no such what-if" in page.locator("main").inner_text()
    assert all("404" in fault for fault in faults)
    faults.clear()


@pytest.mark.parametrize("name", ["what-if", "what-if-phrases", "what-ifs"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_in_either_theme_nor_on_a_phone_which_scrolls_nothing_sideways(
    open_page: Callable[..., Page], site: Site, board: Board, theme: Any, name: str
) -> None:
    path = {"what-if": board.kept[0].id, "what-if-phrases": board.kept[1].id, "what-ifs": ""}[name]
    url = f"{site.url}/what-if/{path}".rstrip("/")
    wide = opened(open_page(color_scheme=theme, viewport={"width": 1440, "height": 900}), url)
    keep_screenshot(wide, name, theme)
    found = Axe().run(wide, options=RULES if theme == "light" else COLOURS)
    assert found.violations_count == 0, found.generate_report()
    if theme == "dark":
        return
    phone = opened(open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True), url)
    keep_screenshot(phone, name, "390")
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = Axe().run(phone, options=SHAPES)
    assert found.violations_count == 0, found.generate_report()
