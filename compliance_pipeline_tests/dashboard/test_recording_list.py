"""The list that numbers of recordings lead to: as many as the figures say, each once, told in words."""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from html import unescape
from urllib.parse import parse_qs, urlsplit

import pytest
from starlette.testclient import TestClient

from compliance_pipeline.dashboard.app import create_app
from compliance_pipeline.dashboard.recording_list import ROWS
from compliance_pipeline.figures.figures import STATES, Filter, RecordingRow, counts, number_in, recordings_in
from compliance_pipeline_tests.dashboard.boards import END
from compliance_pipeline_tests.dashboard.lists import Home, home_at, link, text

ALL = 10_000
OBJECTIVE_S = 9
"""So short that some are late."""
WEEK = Filter(END.replace(hour=22, minute=0, second=0) - timedelta(days=7), END.replace(hour=22, minute=0, second=0))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with home_at(tmp_path_factory.mktemp("recordings") / "home", objective_seconds=OBJECTIVE_S) as made:
        yield made


def shown(html: str) -> list[str]:
    return [unescape(one) for one in re.findall(r'aria-label="Open recording ([^"]+)"', html)]


def row_of(html: str, recording: str) -> str:
    [row] = [row for row in re.findall(r"<tr>.*?</tr>", html, re.DOTALL) if f"Open recording {recording}" in row]
    return text(row)


def of(home: Home, *states: str, **chosen: tuple[str, ...]) -> list[RecordingRow]:
    return recordings_in(home.snapshot, replace(WEEK, **chosen), states, ALL)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["", *STATES])
@pytest.mark.parametrize("query", ["", "range=24h&", "queue=sales&channel=voice&"])
def test_the_number_above_is_that_of_the_rows_and_of_the_figures(home: Home, state: str, query: str) -> None:
    html: str | None = home.get(f"/recordings?{query}state={state}")
    said = re.search(r'<h1 class="verdict"><b>([\d,]+)</b>', html or "")
    number = int(said[1].replace(",", "")) if said else 0
    seen: list[str] = []
    while html:
        seen += shown(html)
        page = link(html, "Older →")
        html = home.get(page) if page else None
    assert len(seen) == len(set(seen)) == number
    assert number or state == "overdue" or query


def test_the_overviews_late_ones_are_these(home: Home) -> None:
    of_week = counts(home.snapshot, WEEK, home.client.app.state.board.objective)  # type: ignore[attr-defined]
    assert of_week.late > ROWS
    assert f"{of_week.late:,} recordings from" in text(home.get("/recordings?state=late"))
    assert f"{of_week.received - of_week.judged:,} recordings from" in text(home.get("/recordings?state=not-judged"))


def test_pages_are_newest_first_and_lead_back_to_the_newest(home: Home) -> None:
    everything = [one.recording_id for one in of(home, "flagged")]
    first = home.get("/recordings?state=flagged&queue=")
    assert shown(first) == everything[:ROWS]
    second = home.get(link(first, "Older →") or "")
    assert shown(second) == everything[ROWS : 2 * ROWS]
    assert link(second, "Newest") == "/recordings?state=flagged"
    assert link(first, "Newest") is None


def test_a_late_one_says_so_in_words_with_the_stage_that_took_longest(home: Home) -> None:
    late = next(one for one in of(home, "late") if one.flagged_s)
    in_time = next(one for one in of(home, "flagged") if not one.is_late)
    assert late.longest in ("delivery", "queue", "start", "batch", "fetch", "analysis", "remediation")
    assert " late " in row_of(home.get("/recordings?state=late"), late.recording_id)
    html = home.get(f"/recordings?state=flagged&agent={in_time.agent}")
    assert " late " not in row_of(html, in_time.recording_id)


def test_what_was_not_judged_is_told_with_its_reason(home: Home) -> None:
    for state, said in (
        ("dead_letter", "Given up on Media gone (404)"),
        ("deferred", "Deferred, to be tried again Media not ready"),
        ("waiting", "Waiting new, or being worked on"),
        ("unscreenable", "Unscreenable Silent"),
    ):
        rows = of(home, state)
        html = text(home.get(f"/recordings?state={state}"))
        assert rows
        assert said in html
    undetermined = of(home, "undetermined")[0]
    html = home.get("/recordings?state=undetermined")
    assert "not decided: REC-CONSENT-01" in row_of(html, undetermined.recording_id)
    assert "No recordings here" in text(home.get("/recordings?state=undetermined&rule=PCI-PAN-01"))


def test_several_states_are_one_list_and_what_is_none_is_ignored(home: Home) -> None:
    both = number_in(home.snapshot, WEEK, home.client.app.state.board.objective, ("waiting", "dead_letter"))  # type: ignore[attr-defined]
    assert both == len(of(home, "waiting")) + len(of(home, "dead_letter"))
    for query in ("state=waiting&state=dead_letter", "state=waiting,dead_letter,nonsense", "state=dead_letter+waiting"):
        assert f"{both} recordings from" in text(home.get(f"/recordings?{query}"))
    assert shown(home.get("/recordings?state=nonsense")) == shown(home.get("/recordings"))


def test_a_filter_goes_on_from_the_view_and_other_pages_do_not_get_the_state(home: Home) -> None:
    html = home.get("/recordings?range=30d&state=late&before=2026-05-30T21:00:00Z~x~")
    assert link(html, "sales") == "/recordings?range=30d&state=late&queue=sales"
    assert link(html, "State late, remove ×") == "/recordings?range=30d"
    assert link(html, "Violations") == "/violations?range=30d"
    opened = next(href for href in re.findall(r'href="(/recordings/[^"]+)"', html))
    assert parse_qs(urlsplit(opened).query) == {"range": ["30d"]}
    assert home.get(unescape(opened))


def test_a_place_that_is_none_is_the_first_page(home: Home) -> None:
    first = shown(home.get("/recordings"))
    for bad in ("x", "2026-05-30~a~b", "~~", "9999-12-31T23:59:59-23:00~a~"):
        assert shown(home.get(f"/recordings?before={bad}")) == first


def test_a_page_without_rows_says_why_and_leads_out(home: Home) -> None:
    html = home.get("/recordings?state=overdue")
    assert "No recording of this window is overdue" in text(html)
    assert link(html, "All recordings of the window") == "/recordings"
    html = home.get("/recordings?state=late&queue=nobody")
    assert "Nothing in this window fits all of the chosen filters." in text(html)
    assert link(html, "Drop the filters") == "/recordings?state=late"
    html = home.get("/recordings?from=2026-01-01T00Z&to=2026-01-02T00Z")
    assert link(html, "30 days") == "/recordings?range=30d"


def test_an_id_still_leads_to_its_page(home: Home) -> None:
    name = of(home, "judged")[0].recording_id
    answer = home.client.get(f"/recordings?id={name}", follow_redirects=False)
    assert (answer.status_code, urlsplit(answer.headers["location"]).path) == (303, f"/recordings/{name}")
    assert home.client.get("/recordings?id=").status_code == 404


def test_the_list_is_for_those_who_may_look_only(home: Home) -> None:
    app = create_app(home.settings, clock=lambda: END)
    with TestClient(app, base_url="http://127.0.0.1", client=("203.0.113.9", 50000)) as stranger:
        assert stranger.get("/recordings").status_code == 403
