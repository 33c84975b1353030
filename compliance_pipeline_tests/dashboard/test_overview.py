"""What the overview says is what the figures say, for whoever asks however."""

import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import QueryParams
from starlette.testclient import TestClient

from compliance_pipeline.breaker import Opening as Outage
from compliance_pipeline.dashboard import pages
from compliance_pipeline.dashboard.overview import Opening, agent_scale, clip_openings, objective_words, sketch, stack
from compliance_pipeline.dashboard.pages import LEAST_REVIEWED, clock, data, percent, plain, seconds, short
from compliance_pipeline.dashboard.view import View
from compliance_pipeline.figures.figures import (
    AgentFigure,
    Filter,
    Objective,
    StackSeries,
    agents,
    headline,
    latency_series,
    rates,
    rules,
)
from compliance_pipeline.figures.snapshots import Snapshot, folder_of
from compliance_pipeline.settings import Settings
from compliance_pipeline_tests.dashboard.boards import END, add, board, publish_at, visitor

WEEK = Filter(END.replace(hour=22, minute=0, second=0) - timedelta(days=7), END.replace(hour=22, minute=0, second=0))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return board(tmp_path_factory.mktemp("overview") / "home")


@pytest.fixture(scope="module")
def client(settings: Settings) -> TestClient:
    return visitor(settings)


@pytest.fixture(scope="module")
def snapshot(settings: Settings) -> Iterator[Snapshot]:
    snapshot = Snapshot.current(folder_of(settings.home))
    yield snapshot
    snapshot.close()


def tiles(page: str) -> dict[str, str]:
    found = re.findall(r'data-tile="(\w+)".*?<p class="v[^"]*">(.*?)</p>', page, re.DOTALL)
    return {name: re.sub(r"<[^>]*>|◆", "", value).strip() for name, value in found}


def blocks(page: str) -> list[Any]:
    return [
        json.loads(text) for text in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    ]


def words(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", "", page).split())


def test_the_sentence_and_the_tiles_are_the_figures(client: TestClient, snapshot: Snapshot) -> None:
    page = client.get("/").text
    head = headline(snapshot, WEEK, Objective(30.0))
    assert head.counts.attainment is not None
    assert head.burn_rate is not None
    assert tiles(page) == {
        "attainment": percent(head.counts.attainment, 2),
        "burn": f"{head.burn_rate:.2f}×",
        "p95": seconds(head.stages["flagged"].p95_s),
        "violations": str(head.violations),
        "coverage": percent(head.counts.coverage, 2),
        "deliveries": str(head.failed_actions),
    }
    said = words(page)
    assert f"{percent(head.counts.attainment, 2)} of {head.counts.due} recordings were flagged within 30 s" in said
    assert f"{head.counts.received - head.counts.judged} of {head.counts.received} received were not judged" in said
    assert f"{head.open} violations to review" in said
    assert f"{head.counts.dead_letters} recordings given up on" in said


@pytest.mark.parametrize("query", ["range=6h", "range=24h", "range=30d", "queue=collections&channel=voice",
                                   "rule=PCI-PAN-01", "severity=critical", "agent=tok_05c0ffee"])  # fmt: skip
def test_each_filter_changes_the_figures_as_it_should(client: TestClient, snapshot: Snapshot, query: str) -> None:
    chosen = View.of(QueryParams(query), END).chosen
    head = headline(snapshot, chosen, Objective(30.0))
    page = client.get(f"/?{query}").text
    shown = tiles(page)
    assert (shown["violations"], shown["coverage"]) == (f"{head.violations:,}", percent(head.counts.coverage, 2))
    for _, value in (part.split("=") for part in query.split("&") if not part.startswith("range")):
        assert re.search(rf'<ul class="chips".*?{re.escape(value)}.*?</ul>', page, re.DOTALL)


def test_the_charts_have_the_figures_on_a_regular_grid_and_words_beside_them(
    client: TestClient, snapshot: Snapshot
) -> None:
    page = client.get("/").text
    facts, flagged, *others = blocks(page)
    series = latency_series(snapshot, WEEK)
    assert (facts["times"], facts["grain"], facts["span"]) == (
        series.times, 3600, [WEEK.start.timestamp(), WEEK.end.timestamp()],
    )  # fmt: skip
    assert flagged[0] == series.times
    assert flagged[4] == [n for *_, n in series.stages["flagged"]]
    assert [p is None for p in flagged[2]] == [n < 20 for n in flagged[4]]
    figures = re.findall(r'<figure[^>]*data-chart="(\w+)"', page)
    assert figures == ["bands", "budget", *["stage"] * 5, "burn", "stack", "stack"]
    assert len(others) == len(figures) - 1
    assert len(re.findall(r'role="img" aria-label="[^"]+ [^"]+\.[^"]*"', page)) >= len(figures)


def test_the_heatmap_is_a_link_away_and_counts_each_recording_once(client: TestClient, snapshot: Snapshot) -> None:
    assert "/?chart=heat" in client.get("/").text
    cells = blocks(client.get("/?chart=heat").text)[1]["cells"]
    assert sum(cell[3] for cell in cells) == headline(snapshot, WEEK, Objective(30.0)).stages["flagged"].recordings


def test_tables_have_their_rows_and_each_row_is_a_link_that_filters(client: TestClient, snapshot: Snapshot) -> None:
    page = client.get("/").text
    for one in rules(snapshot, WEEK):
        assert f'href="/?rule={one.rule_id}"' in page
        assert f"of {one.screened} screened" in words(page)
    for dimension in ("direction", "channel"):
        for rate in rates(snapshot, WEEK, dimension):
            assert f'href="/?{dimension}={rate.value}"' in page
            assert f"{rate.violating} of {rate.judged}" in words(page)
    for agent in agents(snapshot, WEEK):
        assert f'href="/?agent={agent.agent}"' in page
    # A chart never filters out its own dimension.
    filtered = client.get("/?direction=inbound").text
    assert 'href="/?direction=inbound&amp;direction=outbound"' in filtered
    first, second, *_ = rules(snapshot, WEEK)
    assert f'href="/?rule={first.rule_id}&amp;rule={second.rule_id}"' in client.get(f"/?rule={first.rule_id}").text
    worst, next_, *_ = agents(snapshot, WEEK)
    assert f'href="/?agent={worst.agent}&amp;agent={next_.agent}"' in client.get(f"/?agent={worst.agent}").text


def test_recordings_exports_and_other_pages_get_the_view_along(client: TestClient) -> None:
    page = client.get("/?range=24h&queue=collections").text
    view = "range=24h&amp;queue=collections"
    for href in (f"/export.csv?{view}", f"/export.parquet?{view}", f"/violations?{view}", f"/operations?{view}"):
        assert f'href="{href}"' in page
    assert re.search(rf'href="/recordings/rec-\d+\?{re.escape(view)}"', page)


@pytest.mark.parametrize("query", ["range=banana", "from=x&to=y", "tz=Mars", "severity=awful", "chart=pie",
                                   "from=9999-12-31T00:00Z&to=9999-12-31T23:00Z", "%00=%ff&queue=%00"])  # fmt: skip
def test_bad_parameters_are_ignored(client: TestClient, query: str) -> None:
    answer = client.get(f"/?{query}")
    assert answer.status_code == 200
    assert tiles(answer.text) == tiles(client.get("/").text)


@pytest.mark.parametrize(
    ("query", "why", "way_out"),
    [
        ("queue=nobody", "No recordings match these filters", "/"),
        ("from=2026-05-03T01:00Z&to=2026-05-03T02:00Z", "No recordings in this window", "/?range=30d"),
    ],
)
def test_an_empty_page_says_why_and_offers_a_way_out(client: TestClient, query: str, why: str, way_out: str) -> None:
    answer = client.get(f"/?{query}")
    assert answer.status_code == 200
    assert why in answer.text
    assert "The newest data are from 30 May 21:43" in answer.text
    assert f'class="btn" href="{way_out}"' in answer.text


def test_what_a_url_says_cannot_become_part_of_the_page(client: TestClient) -> None:
    evil = "</script><script>alert(1)</script>"
    page = client.get("/", params={"queue": evil, "range": "30d"}).text
    assert evil not in page
    assert "<script>" not in page
    assert data({"a": evil}) == '{"a":"\\u003c/script>\\u003cscript>alert(1)\\u003c/script>"}'


def test_times_are_those_of_the_zone_that_is_asked_for_and_say_so(client: TestClient) -> None:
    page = client.get("/?tz=America/New_York&range=24h").text
    assert "Data to <time" in page
    assert "30 May 17:43</time> America/New_York" in page
    assert blocks(page)[0]["zone"] == "America/New_York"


def test_days_of_a_long_window_begin_at_midnight_of_the_zone(client: TestClient) -> None:
    facts = blocks(client.get("/?tz=Europe/Berlin&range=30d").text)[0]
    assert facts["grain"] == 86_400
    assert {pages.utc(at).hour for at in facts["times"]} == {22}


@pytest.mark.parametrize(("late", "state", "said"), [(20, "fresh", "up to date"), (75, "late", "late, 75 s old"),
                                                     (130, "stale", "stale, 2 min old")])  # fmt: skip
def test_the_badge_turns_amber_and_red_in_words_too(settings: Settings, late: int, state: str, said: str) -> None:
    client = visitor(settings, lambda: END + timedelta(seconds=late))
    page = client.get("/").text
    assert f'class="fresh {state}"' in page
    assert said in page
    answer = client.get("/api/freshness").json()
    assert (answer["state"], answer["words"], answer["age_s"]) == (state, said, late)
    assert f'data-number="{answer["number"]}"' in page


def test_a_newer_snapshot_is_shown_from_the_next_request_on(tmp_path: Path) -> None:
    settings = board(tmp_path / "home")
    now = END
    client = visitor(settings, lambda: now)
    first = client.get("/?range=6h")
    now = END + timedelta(minutes=1)
    add(settings, now)
    publish_at(settings, now)
    number = client.get("/api/freshness").json()["number"]
    assert f'data-number="{number}"' not in first.text
    newer = client.get("/?range=6h")
    assert newer.status_code == 200
    assert f'data-number="{number}"' in newer.text
    received = [int(re.search(r"of (\d+) received", words(one.text))[1]) for one in (first, newer)]  # type: ignore[index]
    assert received[1] == received[0] + 5


def test_before_anything_was_published_it_says_so(tmp_path: Path) -> None:
    client = visitor(Settings(_env_file=None, home=tmp_path))
    answer = client.get("/")
    assert answer.status_code == 503
    assert "No figures were published yet" in answer.text
    assert client.get("/api/freshness").status_code == 503


def test_pages_are_small_and_compressed_and_allow_nothing_from_elsewhere(client: TestClient) -> None:
    sent = 0
    for path in ("/?range=7d", *re.findall(r'(?:href|src)="(/static/[^"]+)"', client.get("/").text)):
        with client.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as answer:
            sent += len(b"".join(answer.iter_raw()))
            policy = answer.headers["content-security-policy"]
    assert sent < 150_000
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page = client.get("/")
    assert page.headers["content-encoding"] == "gzip"
    assert "private" in page.headers["cache-control"]
    assert not re.search(r'(href|src|action)="(https?:)?//', page.text)


def test_an_unknown_page_is_404_with_a_way_back(client: TestClient) -> None:
    answer = client.get("/nowhere")
    assert answer.status_code == 404
    assert 'href="/"' in answer.text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.85, "850 ms"), (4.74, "4.74 s"), (15.83, "15.8 s"), (67.2, "1 min 07 s"), (59.96, "1 min 00 s"),
     (0.9996, "1.00 s"), (9.996, "10.0 s"), (7500, "2 h 05 min"), (None, "–")],
)  # fmt: skip
def test_seconds_read_well(value: float | None, text: str) -> None:
    assert seconds(value) == text


def test_rates_never_round_to_all_or_nothing() -> None:
    assert [percent(one, 2) for one in (1.0, 0.99999, 0.5, 0.000001, 0.0)] == [
        "100.00%", "99.99%", "50.00%", "<0.01%", "0.00%",
    ]  # fmt: skip
    assert (clock(67_000), plain("PCI_MID_CAPTURE"), short("tok_0123456789abcdef0123456789")) == (
        "1:07", "PCI mid capture", "tok_01234567…456789",
    )  # fmt: skip


def test_outages_are_cut_to_the_window_and_one_that_lasts_ends_with_it() -> None:
    def at(minutes: int) -> datetime:
        return END + timedelta(minutes=minutes)

    outages = [
        Outage("a", at(-90), 5, 9, at(-70)),
        Outage("b", at(-70), 5, 9, at(-30)),
        Outage("c", at(-5), 5, 9, None),
    ]
    assert clip_openings(outages, at(-60), at(0)) == [
        Opening("b", int(at(-60).timestamp()), int(at(-30).timestamp()), is_open=False),
        Opening("c", int(at(-5).timestamp()), int(at(0).timestamp()), is_open=True),
    ]


def test_of_many_reasons_the_rest_are_one_and_nothing_is_lost() -> None:
    series = StackSeries(3600, [0, 3600], [f"r{n}" for n in range(7)], [[n, 1] for n in range(7)])
    shown = stack(series)
    assert shown["names"] == ["r0", "r1", "r2", "other"]
    assert sum(shown["totals"]) == sum(map(sum, series.values))
    assert stack(series, ("r5",))["values"] == [[5, 1]]


def test_a_channel_with_an_objective_of_its_own_is_told_by_it() -> None:
    objective = Objective(30.0, 0.99, {"chat": 10.0, "voice": 30.0})
    assert objective_words(objective, ()) == "30 s (chat 10 s)"
    assert objective_words(objective, ("chat",)) == "10 s"
    assert objective_words(Objective(120.0), ()) == "2 min"


def test_a_target_of_parts_of_a_percent_is_told_whole(tmp_path: Path) -> None:
    settings = board(tmp_path / "home", objective_target=0.995)
    publish_at(settings)
    said = words(visitor(settings).get("/").text)
    assert "the 99.5% target" in said
    assert "Share of the allowed 0.5% late recordings" in said


def test_precision_is_told_of_enough_reviews_only_and_with_its_interval(client: TestClient, snapshot: Snapshot) -> None:
    said = words(client.get("/?range=30d").text)
    told = 0
    for one in rules(snapshot, View.of(QueryParams("range=30d"), END).chosen):
        reviewed = one.confirmed + one.dismissed
        its = f"of {one.screened:,} screened"
        if reviewed >= LEAST_REVIEWED and one.precision_interval:
            low, high = (percent(end, 0) for end in one.precision_interval)
            its += f"{percent(one.precision, 0)} of {reviewed} right ({low} to {high})"
            told += 1
        else:
            its += f"{reviewed} reviewed"
        assert its in said
    assert told


def test_what_the_page_cannot_filter_by_has_no_chip_and_changes_nothing(client: TestClient) -> None:
    other = client.get("/?review=confirmed").text
    assert 'class="chips"' not in other
    assert tiles(other) == tiles(client.get("/").text)
    assert 'href="/violations?review=confirmed"' in other
    assert 'class="chips"' not in client.get("/review?review=confirmed&policy_version=x").text


def test_the_search_and_the_way_back_keep_the_view(client: TestClient) -> None:
    page = client.get("/?range=30d&queue=sales&tz=Asia/Tokyo").text
    form = re.findall(r'<form class="find".*?</form>', page)[0]
    kept = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form)
    assert kept == [("range", "30d"), ("queue", "sales"), ("tz", "Asia/Tokyo")]
    for path in ("/nowhere", "/recordings"):
        assert 'href="/?range=30d&amp;queue=sales"' in client.get(f"{path}?range=30d&queue=sales&id=none").text


def test_times_of_another_year_than_the_data_say_so(client: TestClient) -> None:
    page = client.get("/?from=2025-12-31T00:00Z&to=2026-01-02T00:00Z").text
    assert "31 Dec 2025 00:00 and 2 Jan 00:00 UTC" in words(page)


def test_the_burn_rate_is_told_in_the_zone_of_the_page(client: TestClient) -> None:
    said = re.findall(r"the highest was [^<]*", client.get("/?tz=Asia/Tokyo").text)
    assert said
    assert all("Asia/Tokyo" in one and "UTC" not in one for one in said)


def test_every_page_has_the_sheet_of_the_lists_since_only_its_content_is_swapped(client: TestClient) -> None:
    for path in ("/", "/?queue=nobody", "/operations", "/nowhere"):
        assert "/static/lists.css" in client.get(path).text


def test_without_javascript_the_line_has_gaps_where_nothing_is_known() -> None:
    assert sketch((0, 400), [0, 100, 200, 300], [0.0, 5.0, None, 10.0], 0, 10) == "M0 100.0h0L250 50.0M750 0.0h0"


def test_no_change_is_told_against_a_time_that_has_hardly_any_recordings(client: TestClient) -> None:
    assert "vs the 7 d before" in client.get("/").text
    month = client.get("/?range=30d").text
    assert "too few before to compare" in month
    assert "vs the 30 d before" not in month


@pytest.mark.parametrize(
    ("highest", "marks"), [(0.028, [0, 0.01, 0.02, 0.03]), (0.35, [0, 0.2, 0.4]), (0.99, [0, 0.5, 1])]
)
def test_the_agents_axis_has_few_marks_and_room_for_all(highest: float, marks: list[float]) -> None:
    assert agent_scale([AgentFigure("a", 30, 3, 0.01, highest, None)]) == pytest.approx(marks)
