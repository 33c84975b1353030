"""Operations: what was lost and why, and what a person has to do."""

import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa

from compliance_pipeline import breaker, database, tallies
from compliance_pipeline.dashboard import operations
from compliance_pipeline.figures.figures import Filter
from compliance_pipeline_tests.dashboard.boards import END
from compliance_pipeline_tests.dashboard.lists import MISSING_AT, Home, home_at, text

WEEK = Filter(END - timedelta(days=7), END + timedelta(minutes=17))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with home_at(tmp_path_factory.mktemp("operations") / "home") as made:
        yield made


@pytest.fixture(scope="module")
def engine(home: Home) -> Iterator[sa.Engine]:
    engine = database.connect(home.settings.inbox_database_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def page(home: Home) -> str:
    return text(home.get("/operations"))


def test_what_was_given_up_on_is_there_with_its_reason_and_the_command_that_goes_on(home: Home, page: str) -> None:
    dead = [row for row in home.snapshot.rows("FROM read_parquet($interactions)", WEEK.start, WEEK.end)
            if row["status"] == "dead_letter"]  # fmt: skip
    assert len(dead) == 12
    assert "12 recordings were given up on compliance inbox --retry" in page
    for reason in {row["reason"] for row in dead}:
        number = sum(row["reason"] == reason for row in dead)
        assert f"{reason} {number}" in page


def test_what_waits_is_told_with_its_next_try(page: str) -> None:
    assert "6 new, 0 being worked on, 8 deferred until they are due" in page
    assert "media not ready 8 30 May 21:45" in page


def test_an_hour_with_something_missing_is_named_and_asks_for_a_person(home: Home, page: str) -> None:
    found = operations.completeness(home.snapshot, WEEK)
    assert [(hour.hour, hour.state) for hour in found.not_complete] == [(MISSING_AT, "missing")]
    assert (found.total("at_source"), found.total("judged"), found.total("missing")) == (18, 16, 2)
    assert "2 recordings of the source are missing here compliance doctor" in page
    assert "2 that the platform has are missing here" in page


def test_hours_are_drawn_on_the_days_of_the_zone(home: Home) -> None:
    tokyo = operations.completeness(home.snapshot, Filter(WEEK.start, WEEK.end, zone="Asia/Tokyo"))
    [(day, hours)] = tokyo.days
    assert (day.isoformat(), [number for number, cell in enumerate(hours) if cell]) == ("2026-05-29", [22, 23])
    assert hours[22] == ("missing", "7 of 9 judged, 2 missing")


def test_breakers_are_told_with_when_they_were_open_and_the_open_ones_first(engine: sa.Engine, page: str) -> None:
    media, platform = operations.lanes(engine, WEEK.start, END, END)
    assert (media.state.name, media.state.state, media.openings) == ("media", "open", 1)
    assert media.open_s == pytest.approx(9 * 60)
    assert media.spans[-1].left + media.spans[-1].width == pytest.approx(1)
    assert (platform.state.state, platform.openings) == ("closed", 1)
    assert platform.open_s == pytest.approx(40 * 60)
    assert "media is held back since 30 May 21:34" in page


def test_an_opening_from_before_the_window_is_drawn_from_its_edge(engine: sa.Engine) -> None:
    opened = END - timedelta(days=3, hours=9)
    lanes = {lane.state.name: lane for lane in operations.lanes(engine, opened + timedelta(minutes=10), END, END)}
    [span] = lanes["platform"].spans
    assert span.left == 0
    assert lanes["platform"].open_s == pytest.approx(30 * 60)


def test_a_breaker_that_flaps_is_drawn_as_one_and_counted_as_many(tmp_path_factory: pytest.TempPathFactory) -> None:
    engine = database.connect(f"sqlite:///{tmp_path_factory.mktemp('flap') / 'o.db'}")
    database.ensure(engine, breaker.opening_table)
    opened = [END - timedelta(days=1) + timedelta(minutes=number) for number in range(30)]
    with engine.begin() as connection:
        connection.execute(
            sa.insert(breaker.opening_table),
            [{"name": "media", "opened_at": at, "failures": 5, "calls": 5, "closed_at": at + timedelta(seconds=30)}
             for at in opened],
        )  # fmt: skip
        connection.execute(
            sa.insert(breaker.breaker_table), [{"name": "media", "state": "closed", "since": opened[-1]}]
        )
    [lane] = operations.lanes(engine, WEEK.start, END, END)
    engine.dispose()
    assert (lane.openings, len(lane.spans), lane.spans[0].openings) == (30, 1, 30)
    assert lane.open_s == pytest.approx(30 * 30)


def test_deliveries_are_counted_by_target_and_those_given_up_on_come_first(home: Home, page: str) -> None:
    actions = [action for row in home.violations() for action in row["actions"]]
    dead = sum(action["status"] == "dead" for action in actions)
    failed = [action for action in actions if action["status"] in ("dead", "failed")]
    assert dead
    assert f"{dead} deliveries were given up on compliance remediation retry" in page
    found = operations.failing(home.snapshot, WEEK)
    assert len(found) == min(len(failed), operations.FAILING_SHOWN)
    assert [one["status"] for one in found] == sorted(one["status"] for one in found)
    assert {one["error"] for one in found} == {"503 from the platform"}
    first = found[0]
    assert f"compliance remediation retry {first['recording_id']}/{first['rule_id']}/{first['action']}" in page


def test_a_filter_holds_for_deliveries(home: Home) -> None:
    chosen = Filter(WEEK.start, WEEK.end, queue=("collections",))
    found = operations.failing(home.snapshot, chosen)
    wanted = [
        action for row in home.violations("queue = 'collections'") for action in row["actions"]
        if action["status"] in ("dead", "failed")
    ]  # fmt: skip
    assert len(found) == min(len(wanted), operations.FAILING_SHOWN)
    assert {one["queue"] for one in found} <= {"collections"}


def test_what_was_refused_is_told_by_reason(home: Home, engine: sa.Engine) -> None:
    tallies.count(engine, {f"{tallies.REJECTED}bad_signature": 3}, END)
    assert operations.refused(engine, WEEK.start) == [("bad_signature", 3)]
    assert "bad signature 3" in text(home.get("/operations"))


def test_what_is_missing_is_said_to_be_of_all_queues_where_one_is_chosen(home: Home, page: str) -> None:
    assert "of all queues" not in page
    assert "of all queues, 2 that the platform has are missing here" in text(home.get("/operations?queue=sales"))


def test_what_the_page_cannot_filter_by_changes_nothing_on_it(home: Home) -> None:
    other = home.get("/operations?rule=PCI-PAN-01&agent=nobody")
    assert 'class="chips"' not in other
    assert text(other) == text(home.get("/operations"))


def test_the_charts_are_told_in_words_for_those_without_javascript(home: Home) -> None:
    said = re.findall(r'aria-label="([^"]*)"><noscript><p[^>]*>([^<]*)<', home.get("/operations"))
    assert len(said) == 2
    for label, words in said:
        assert label.endswith(words)
        assert re.search(r"\d+ [a-z]", words, re.IGNORECASE)


def test_a_recording_given_up_on_is_opened_with_the_view(home: Home) -> None:
    html = home.get("/operations?range=30d&tz=Asia/Tokyo")
    assert re.search(r'class="id"><a href="/recordings/[^"?]+\?range=30d&amp;tz=Asia/Tokyo"', html)


def test_a_window_with_nothing_in_it_is_a_page_that_says_so(home: Home) -> None:
    page = text(home.get("/operations?from=2026-01-01T00:00Z&to=2026-01-02T00:00Z"))
    assert "No recording was received in this window." in page
    assert "The sweep has not looked at any hour of this window" in page
