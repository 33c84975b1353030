"""A view and its URL say the same, whatever comes in as a URL."""

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from compliance_pipeline.dashboard.view import DIMENSIONS, RANGES, View

DATA_TO = datetime(2026, 5, 30, 21, 43, 10, tzinfo=UTC)
HOUR = timedelta(hours=1)


def view(query: str = "", path: str = "/", own: tuple[str, ...] = ()) -> View:
    return View.of(QueryParams(query), DATA_TO, path, own)


def query_of(link: str) -> str:
    return urlsplit(link).query


def test_without_parameters_it_is_the_last_seven_days_to_the_hour_after_the_data() -> None:
    plain = view()
    assert plain.span == "7d"
    assert plain.chosen.end == datetime(2026, 5, 30, 22, tzinfo=UTC)
    assert plain.chosen.end - plain.chosen.start == timedelta(days=7)
    assert plain.link() == "/"


@pytest.mark.parametrize(("span", "end"), [("6h", "21:45"), ("24h", "21:45"), ("7d", "22:00"), ("30d", "22:00")])
def test_a_range_ends_at_the_end_of_the_bucket_that_has_the_newest_data(span: str, end: str) -> None:
    chosen = view(f"range={span}").chosen
    assert f"{chosen.end:%H:%M}" == end
    assert chosen.end - chosen.start == RANGES[span][0]


@pytest.mark.parametrize(
    "query",
    [
        "tz=localtime", "tz=posixrules", "tz=right/UTC", "tz=posix/UTC", "tz=Factory",
        "range=banana", "from=yesterday&to=now", "from=2026-05-03T02:00Z&to=2026-05-03T01:00Z",
        "from=2026-05-03T01:00Z",
        "from=0001-01-01T00:00Z&to=9999-12-31T23:59Z", "from=9999-12-31T00:00Z&to=9999-12-31T23:59Z",
        "from=0001-01-01T00:00%2B14:00&to=2026-05-03T01:00Z", "tz=Mars/Olympus", "tz=../../etc/passwd", "tz=%00",
        "severity=awful", "review=maybe", "queue=", "queue=a%00b", "chart=pie", "queue=" + "x" * 5000,
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_as_if_it_were_not_there(query: str) -> None:
    assert view(query) == view()


def test_each_filter_is_a_link_that_sets_it_and_the_same_link_takes_it_away() -> None:
    for name in DIMENSIONS:
        value = {"severity": "high", "review": "open"}.get(name, "a & b=ü")
        chosen = view(query_of(view().toggle(name, value)))
        assert chosen.active == [(name, value)]
        assert chosen.toggle(name, value) == "/"
        assert chosen.without(name) == "/"
    both = view("queue=a&queue=b&range=24h")
    assert parse_qs(query_of(both.toggle("queue", "a"))) == {"range": ["24h"], "queue": ["b"]}


def test_a_filter_keeps_the_window_and_a_range_keeps_the_filters() -> None:
    zoomed = view(query_of(view("queue=a").within(DATA_TO - 2 * HOUR, DATA_TO - HOUR)))
    assert (zoomed.span, zoomed.chosen.start, zoomed.chosen.end) == ("custom", DATA_TO - 2 * HOUR, DATA_TO - HOUR)
    assert view(query_of(zoomed.toggle("channel", "chat"))).chosen.start == DATA_TO - 2 * HOUR
    assert view(query_of(zoomed.ranged("24h"))).active == [("queue", "a")]
    assert zoomed.reset == "/"


def test_a_time_without_offset_is_one_of_the_zone_and_summer_time_counts() -> None:
    chosen = view("from=2026-03-29T01:30&to=2026-03-29T03:30&tz=Europe/Berlin").chosen
    assert (chosen.start, chosen.end) == (
        datetime(2026, 3, 29, 0, 30, tzinfo=UTC),
        datetime(2026, 3, 29, 1, 30, tzinfo=UTC),
    )
    assert view("tz=Europe/Berlin").chosen.end == view().chosen.end


def test_other_pages_get_the_view_but_not_this_pages_own_parameters() -> None:
    paged = view("queue=a&before=xyz", "/violations", ("before",))
    assert paged.link() == "/violations?queue=a&before=xyz"
    assert paged.link("/operations") == "/operations?queue=a"
    assert paged.link(before=None) == paged.link(before="").removesuffix("&before=") == "/violations?queue=a"
    assert paged.toggle("queue", "a") == "/violations"


moments = st.datetimes(datetime(2020, 1, 1), datetime(2026, 5, 30), timezones=st.just(UTC))  # noqa: DTZ001
words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.isprintable)


@given(
    moments, st.timedeltas(timedelta(seconds=1), timedelta(days=300)), st.lists(words, unique=True, max_size=5),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]),
)  # fmt: skip
def test_any_view_survives_its_url(start: datetime, length: timedelta, queues: list[str], zone: str) -> None:
    start, length = start.replace(microsecond=0), timedelta(seconds=int(length.total_seconds()))
    one = view(query_of(view().in_zone(zone)))
    for queue in queues:
        one = view(query_of(one.toggle("queue", queue)))
    one = view(query_of(one.within(start, start + length)))
    assert one.chosen.queue == tuple(queues)
    assert (one.chosen.start, one.zone) == (start, zone)
    assert one.chosen.end in (start + length, datetime(2026, 6, 1, tzinfo=UTC))
    assert view(query_of(one.link())) == one


@given(st.text(max_size=60))
def test_no_text_at_all_is_an_error(text: str) -> None:
    for name in ("range", "from", "to", "tz", "chart", *DIMENSIONS):
        view_ = View.of(QueryParams([(name, text), ("to", "2026-05-03"), ("from", text)]), DATA_TO)
        assert view_.chosen.start < view_.chosen.end
        view_.link()
