"""The list and the queue: every violation once, in order, as it stands now."""

import re
from collections.abc import Iterator
from html import unescape
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from compliance_pipeline import database, reviews
from compliance_pipeline.dashboard import violations
from compliance_pipeline.dashboard.app import create_app
from compliance_pipeline.intake.hours import partition_hour
from compliance_pipeline_tests.dashboard.boards import END
from compliance_pipeline_tests.dashboard.lists import Home, home_at, link, text

WORST_FIRST = ("critical", "high", "medium", "low")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with home_at(tmp_path_factory.mktemp("lists") / "home") as made:
        yield made


def shown(html: str) -> list[tuple[str, str]]:
    """(recording, rule) of each row."""
    rows = re.findall(r"<tr[^>]*>(?:(?!</tr>).)*?aria-label=\"Open recording [^\"]+\"", html, re.DOTALL)
    found = []
    for row in rows:
        [rule] = re.findall(r'class="rule"><a[^>]*>([^<]+)</a>', row)
        [recording] = re.findall(r'aria-label="Open recording ([^"]+)"', row)
        found.append((unescape(recording), unescape(rule)))
    return found


def keys(rows: list[dict[str, object]]) -> list[tuple[object, object]]:
    return [(row["recording_id"], row["rule_id"]) for row in rows]


def test_the_pages_have_every_violation_once_newest_first(home: Home) -> None:
    seen: list[tuple[str, str]] = []
    page: str | None = "/violations"
    while page:
        html = home.get(page)
        rows = shown(html)
        assert 0 < len(rows) <= violations.ROWS
        seen += rows
        page = link(html, "Older →")
    assert len(seen) > violations.ROWS
    assert seen == keys(home.violations())


def test_newest_leads_back_to_the_first_page(home: Home) -> None:
    first = home.get("/violations?range=30d")
    second = home.get(link(first, "Older →") or "")
    assert link(first, "Newest") is None
    assert link(second, "Newest") == "/violations?range=30d"


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("", "true"),
        ("queue=collections&queue=sales", "queue IN ('collections', 'sales')"),
        ("review=open", "review = 'open'"),
        ("severity=critical&review=confirmed", "severity = 'critical' AND review = 'confirmed'"),
        ("rule=PCI-PAN-01&channel=voice", "rule_id = 'PCI-PAN-01' AND channel = 'voice'"),
    ],
)
def test_the_counts_above_are_those_of_the_rows(home: Home, query: str, where: str) -> None:
    rows = home.violations(where)
    open_now, critical = (
        sum(row["review"] == "open" for row in rows),
        sum(row["severity"] == "critical" for row in rows),
    )
    html = text(home.get(f"/violations?{query}"))
    assert f"{len(rows):,} violations from" in html
    assert f": {open_now:,} open, {critical:,} critical." in html


def test_a_filter_is_a_link_that_goes_on_from_the_view(home: Home) -> None:
    html = home.get("/violations?range=30d&queue=sales")
    assert link(html, "open") == "/violations?range=30d&queue=sales&review=open"
    assert link(html, "Queue sales, remove ×") == "/violations?range=30d"


def test_a_page_without_rows_says_why_and_leads_out(home: Home) -> None:
    html = home.get("/violations?queue=nobody")
    assert "Nothing in this window fits all of the chosen filters." in text(html)
    assert link(html, "Drop the filters") == "/violations"


def test_a_place_that_is_none_is_the_first_page(home: Home) -> None:
    first = shown(home.get("/violations"))
    for bad in (
        "before=x", "before=2026-05-30~a~b", "before=~~", "before=9999-12-31T23:59:59Z~a~b",
        "before=0001-01-01T00:00:00%2B10:00~a~b", "before=0001-01-01T00:00:00Z~a~b",
    ):  # fmt: skip
        assert shown(home.get(f"/violations?{bad}")) == first


def test_the_queue_has_what_is_open_by_severity_and_then_age(home: Home) -> None:
    waiting = home.violations("review = 'open'")[::-1]
    waiting.sort(key=lambda row: WORST_FIRST.index(row["severity"]))
    html = home.get("/review")
    assert shown(html) == keys(waiting)[: violations.ROWS]
    critical = sum(row["severity"] == "critical" for row in waiting)
    assert f"{len(waiting):,} violations wait for a person, {critical:,} critical." in text(html)
    following = home.client.get("/review/next", follow_redirects=False)
    assert urlsplit(following.headers["location"]).path == f"/recordings/{waiting[0]['recording_id']}"


def test_a_decision_shows_at_once_though_the_figures_are_older(home: Home) -> None:
    rows = shown(home.get("/review"))
    recording = rows[0][0]
    behind = next(row[0] for row in rows if row[0] != recording)
    its = home.violations(f"recording_id = '{recording}'")
    engine = database.connect(home.settings.inbox_database_url)
    reviews.decide(
        engine, recording, partition_hour(its[0]["available_at"]), [one["rule_id"] for one in its],
        reviews.Decision.DISMISSED, "heard it", "rita", END, broken=[one["rule_id"] for one in its], request_key="k1",
    )  # fmt: skip
    engine.dispose()
    html = home.get("/review")
    assert "dismissed by rita" in text(html)
    assert "decided since these figures" in text(html)
    following = home.client.get("/review/next", follow_redirects=False)
    assert urlsplit(following.headers["location"]).path == f"/recordings/{behind}"
    past = home.client.get(f"/review/next?after={behind}~{dict(rows)[behind]}", follow_redirects=False)
    assert urlsplit(past.headers["location"]).path not in (f"/recordings/{recording}", f"/recordings/{behind}")


def test_the_lists_are_for_those_who_may_look_only(home: Home) -> None:
    app = create_app(home.settings, clock=lambda: END)
    with TestClient(app, base_url="http://127.0.0.1", client=("203.0.113.9", 50000)) as stranger:
        for path in ("/violations", "/review", "/review/next", "/operations", "/policies", "/api", "/export.csv"):
            assert stranger.get(path).status_code == 403
