"""Where days begin, what an empty window says, when an alert fires, how an interval narrows."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

import pytest

from compliance_pipeline.figures import figures
from compliance_pipeline.figures.chosen import Grid
from compliance_pipeline.figures.figures import BurnWindow, Filter, RuleFigure, burn_rate, counts, stages, wilson
from compliance_pipeline.figures.snapshots import Snapshot, publish
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline.objective import Objective
from compliance_pipeline.warehouse.tables import RecordingRow, Row, StageTimeRow, VerdictRow, ViolationRow
from compliance_pipeline.warehouse.warehouse import Warehouse

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NOW = datetime(2026, 3, 31, 12, 30, tzinfo=UTC)
OBJECTIVE = Objective(30.0, 0.99, {"chat": 60.0})


def violating(name: str, at: datetime, flagged_s: float | None, channel: str = "voice") -> Iterator[Row]:
    hour = at.replace(minute=0, second=0, microsecond=0)
    yield RecordingRow(name, hour, "test", channel, "inbound", "sales", [], "m", None, at, at, at, at, agent="tok_1")
    yield VerdictRow(
        recording_id=name, policy_version="p", engine_version="e", partition_hour=hour, channel=channel,
        verdict="VIOLATION_DETECTED", violation_type="PCI", rule_id="R-1", severity="high", confidence_score=None,
        timestamp_offset_ms=None, evidence_snippet=None, recommended_action="NONE", correlation_id="m",
        unscreenable_reason=None, undetermined_rules=[], judged_at=at, run_id="run",
    )  # fmt: skip
    yield ViolationRow(
        name, "p", "e", "R-1", hour, channel, "VIOLATION_DETECTED", "PCI", "high", "text", "agent", 0, 0.9, "****", 1
    )
    if flagged_s is not None:
        yield StageTimeRow(name, "flagged", hour, channel, at, at, flagged_s)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "snapshots"


def published(folder: Path, rows: Iterator[Row] | list[Row]) -> Snapshot:
    warehouse, inbox = Warehouse(folder.parent / "warehouse.duckdb"), Inbox(f"sqlite:///{folder.parent / 'inbox.db'}")
    inbox.create()
    warehouse.append(list(rows))
    publish(warehouse, inbox, folder, OBJECTIVE, NOW)
    inbox.close()
    return Snapshot.current(folder)


def test_a_window_without_recordings_says_so(folder: Path) -> None:
    snapshot = published(folder, violating("one", NOW - HOUR, 5.0))
    for length in (HOUR, 3 * DAY, 20 * DAY):
        empty = Filter(NOW - 40 * DAY - length, NOW - 40 * DAY)
        assert set(asdict(counts(snapshot, empty, OBJECTIVE)).values()) == {0}
        assert counts(snapshot, empty, OBJECTIVE).attainment is None
        assert stages(snapshot, empty) == {}
        head = figures.headline(snapshot, empty, OBJECTIVE)
        assert (head.budget_left, head.burn_rate, head.interval, head.violations) == (None, None, None, 0)
        assert not any(window.firing for window in head.windows)
        series = figures.latency_series(snapshot, empty)
        assert series.times
        assert series.stages == {}
        for none in (figures.heat, figures.breaches, figures.rules, figures.agents, figures.policies, figures.latest):
            assert none(snapshot, empty) == []
        assert figures.violations_table(snapshot, empty) == []
        assert figures.review_queue(snapshot, empty) == []
        assert figures.matrix(snapshot, empty).cells == {}
        assert [step.recordings for step in figures.funnel(snapshot, empty)] == [0] * 7
        assert figures.options(snapshot, empty)["queue"] == []


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", datetime(2026, 3, 29, tzinfo=UTC), 23),
        ("Europe/Berlin", datetime(2026, 10, 25, tzinfo=UTC), 25),
        ("America/New_York", datetime(2026, 3, 8, tzinfo=UTC), 23),
        ("UTC", datetime(2026, 3, 29, tzinfo=UTC), 24),
        ("Asia/Kolkata", datetime(2026, 3, 29, tzinfo=UTC), 24),
    ],
)
def test_a_day_is_as_long_as_the_zone_makes_it(zone: str, day: datetime, hours: int) -> None:
    grid = Grid.of(Filter(day - 7 * DAY, day + 7 * DAY, zone=zone))
    lengths = [after - before for before, after in zip(grid.times, grid.times[1:], strict=False)]
    assert grid.width_s == 86_400
    assert set(lengths) <= {86_400, hours * 3600}
    assert (hours * 3600 in lengths) or hours == 24


def test_hours_are_utc_hours_and_a_day_of_the_zone_holds_those_that_begin_in_it(folder: Path) -> None:
    midnight = datetime(2026, 3, 28, 23, tzinfo=UTC)  # in Berlin
    rows = [row for number, at in enumerate((midnight - HOUR, midnight, midnight + 22 * HOUR, midnight + 23 * HOUR))
            for row in violating(f"rec-{number}", at + timedelta(minutes=5), 5.0)]  # fmt: skip
    snapshot = published(folder, rows)
    chosen = Filter(NOW - 14 * DAY, NOW, zone="Europe/Berlin")
    burn = figures.burn_series(snapshot, chosen, OBJECTIVE)
    there = {datetime.fromtimestamp(at, UTC): due for at, due in zip(burn.times, burn.due, strict=True) if due}
    assert there == {midnight - DAY: 1, midnight: 2, midnight + 23 * HOUR: 1}


def test_what_broke_a_rule_is_overdue_when_its_channels_objective_has_passed(folder: Path) -> None:
    rows = [
        *violating("voice-late", NOW - timedelta(seconds=31), None),
        *violating("voice-may", NOW - timedelta(seconds=29), None),
        *violating("chat-may", NOW - timedelta(seconds=59), None, "chat"),
        *violating("chat-late", NOW - timedelta(seconds=61), None, "chat"),
        *violating("long-ago", NOW - 30 * HOUR, None),
    ]
    snapshot = published(folder, rows)
    for length, overdue in ((HOUR, 2), (2 * DAY, 3), (20 * DAY, 3)):
        counted = counts(snapshot, Filter(NOW - length, NOW + HOUR), OBJECTIVE)
        assert (counted.overdue, counted.due, counted.attainment) == (overdue, overdue, 0.0)
        assert burn_rate(counted, OBJECTIVE) == pytest.approx(100)


def test_an_alert_fires_when_both_of_its_windows_burn_too_fast(folder: Path) -> None:
    rows = [
        row
        for number in range(40)
        for row in violating(f"rec-{number}", NOW - timedelta(minutes=number + 1), 99.0 if number < 10 else 5.0)
    ]
    snapshot = published(folder, rows)
    fast, slow, long = figures.headline(snapshot, Filter(NOW - DAY, NOW + HOUR), OBJECTIVE).windows
    assert [fast.long_burn, fast.short_burn, slow.long_burn] == pytest.approx([25, 100, 25])
    assert [fast.firing, slow.firing, long.firing] == [True, True, True]
    assert not BurnWindow("", 14.4, 100, 14.4).firing
    assert not BurnWindow("", 14.4, 100, None).firing


def test_a_percentile_of_too_few_is_none(folder: Path) -> None:
    snapshot = published(folder, (row for n in range(19) for row in violating(f"r{n}", NOW - HOUR, 1.0 + n)))
    for length in (2 * HOUR, 3 * DAY):
        found = stages(snapshot, Filter(NOW - length, NOW))["flagged"]
        assert (found.recordings, found.p95_s, found.p99_s) == (19, None, None)
        assert found.p50_s == pytest.approx(10.0, rel=0.0102)


def test_threads_share_a_snapshot_and_its_answers(folder: Path) -> None:
    snapshot = published(folder, violating("one", NOW - HOUR, 5.0))
    chosen = Filter(NOW - 3 * DAY, NOW)
    found: list[int] = []
    threads = [
        Thread(target=lambda: found.append(figures.headline(snapshot, chosen, OBJECTIVE).violations)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 8


def test_all_facts_of_a_recording_are_found_by_its_hour(folder: Path) -> None:
    at = NOW - 3 * HOUR
    snapshot = published(folder, violating("one", at, 5.0))
    hour = at.replace(minute=0)
    found = figures.recording(snapshot, hour, "one")
    assert found is not None
    assert (found.interaction["flagged_s"], found.violations[0]["rule_id"]) == (5.0, "R-1")
    assert [row["stage"] for row in found.stage_times] == ["flagged"]
    assert figures.recording(snapshot, hour, "other") is figures.recording(snapshot, hour - DAY, "one") is None


def test_values_of_a_filter_are_bound_and_never_sql(folder: Path) -> None:
    snapshot = published(folder, violating("one", NOW - HOUR, 5.0))
    for length in (2 * HOUR, 3 * DAY):
        odd = Filter(NOW - length, NOW, queue=("'); DROP TABLE x; --",), rule=("$start",), severity=("{{row}}",))
        assert figures.headline(snapshot, odd, OBJECTIVE).counts.received == 0
        assert figures.latest(snapshot, odd) == []


def test_an_interval_holds_its_rate_and_narrows_with_trials() -> None:
    assert wilson(0, 0) is None
    narrow, wide = wilson(50, 1000), wilson(5, 100)
    assert narrow is not None
    assert wide is not None
    assert wide[0] < narrow[0] < 0.05 < narrow[1] < wide[1]
    assert wilson(10, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)


def test_precision_is_told_of_what_was_reviewed_only() -> None:
    seen = RuleFigure("R-1", "PCI", "high", 10, 100, 6, 3, 1)
    assert (seen.rate, seen.precision, seen.precision_interval) == (0.1, 0.75, wilson(3, 4))
    unseen = RuleFigure("R-1", "PCI", "high", 10, 0, 10, 0, 0)
    assert (unseen.rate, unseen.precision, unseen.precision_interval) == (None, None, None)
