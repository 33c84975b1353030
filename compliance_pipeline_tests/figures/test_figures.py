"""Figures are SQL over the raw rows of the same snapshot, whatever the window and filter."""

import random
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from statistics import quantiles

import pytest

from compliance_pipeline.figures.figures import Filter, Objective, burn_rate, counts, stages, wilson
from compliance_pipeline.figures.snapshots import Snapshot, publish
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline.warehouse.tables import RecordingRow, Row, StageTimeRow, VerdictRow
from compliance_pipeline.warehouse.warehouse import Warehouse

START = datetime(2026, 3, 1, tzinfo=UTC)
HOURS = 30
RECORDINGS = 900
QUEUES, CHANNELS = ("billing", "claims", "sales"), ("voice", "chat")
OBJECTIVE = Objective(30.0)


def history(rng: random.Random) -> Iterator[Row]:
    for number in range(RECORDINGS):
        at = START + timedelta(seconds=rng.uniform(0, HOURS * 3600))
        hour = at.replace(minute=0, second=0, microsecond=0)
        name, channel = f"rec-{number}", rng.choice(CHANNELS)
        yield RecordingRow(
            name, hour, "test", channel, "inbound", rng.choice(QUEUES), [], "m", None, at, at, at, at,
            agent=f"tok_{number % 7}",
        )  # fmt: skip
        if rng.random() < 0.1:
            continue
        violates = rng.random() < 0.4
        verdict = "VIOLATION_DETECTED" if violates else "NO_VIOLATION"
        yield VerdictRow(
            recording_id=name, policy_version="p", engine_version="e", partition_hour=hour, channel=channel,
            verdict=verdict, violation_type=None, rule_id="R-1" if violates else None, severity=None,
            confidence_score=None, timestamp_offset_ms=None, evidence_snippet=None, recommended_action="NONE",
            correlation_id="m", unscreenable_reason=None, undetermined_rules=[], judged_at=at, run_id="run",
        )  # fmt: skip
        if violates and rng.random() < 0.95:
            seconds = rng.lognormvariate(2.5, 1.0)
            yield StageTimeRow(name, "flagged", hour, channel, at, at + timedelta(seconds=seconds), seconds)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    home = tmp_path_factory.mktemp("figures")
    warehouse, inbox = Warehouse(home / "warehouse.duckdb"), Inbox(f"sqlite:///{home / 'inbox.db'}")
    inbox.create()
    warehouse.append(list(history(random.Random(7))))
    publish(warehouse, inbox, home / "snapshots", OBJECTIVE.seconds, START + timedelta(hours=HOURS))
    snapshot = Snapshot.current(home / "snapshots")
    yield snapshot
    snapshot.close()
    inbox.close()


WINDOWS = [
    Filter(START, START + timedelta(hours=HOURS)),
    Filter(START + timedelta(minutes=90), START + timedelta(hours=7, minutes=13)),
    Filter(START, START + timedelta(hours=HOURS), queue=("billing", "sales")),
    Filter(START, START + timedelta(hours=20), channel=("chat",), queue=("claims",)),
    Filter(START, START + timedelta(hours=HOURS), agent=("tok_3",)),
]


def flagged_of(snapshot: Snapshot, chosen: Filter) -> list[float]:
    rows = snapshot.rows("FROM read_parquet($interactions)", chosen.start, chosen.end)
    return [
        row["flagged_s"]
        for row in rows
        if row["flagged_s"] is not None
        and chosen.start <= row["available_at"] < chosen.end
        and all(not wanted or row[name] in wanted for name, wanted in chosen.dimensions.items())
    ]


@pytest.mark.parametrize("chosen", WINDOWS)
def test_counts_are_those_of_the_raw_rows(snapshot: Snapshot, chosen: Filter) -> None:
    said, flagged = counts(snapshot, chosen, OBJECTIVE), flagged_of(snapshot, chosen)
    assert (said.flagged, said.in_time) == (len(flagged), sum(seconds <= 30 for seconds in flagged))
    assert said.received == said.judged + said.unscreenable + said.waiting + said.deferred + said.dead_letters
    assert said.attainment == said.in_time / (said.flagged + said.overdue)
    assert burn_rate(said, OBJECTIVE) == pytest.approx((1 - said.attainment) / 0.01)


@pytest.mark.parametrize("chosen", WINDOWS)
def test_percentiles_are_exact_or_within_the_histograms_error(snapshot: Snapshot, chosen: Filter) -> None:
    flagged = flagged_of(snapshot, chosen)
    said = stages(snapshot, chosen)["flagged"]
    assert said.recordings == len(flagged)
    is_exact = chosen.end - chosen.start <= timedelta(hours=24) or bool(chosen.agent)
    exact = dict(enumerate(quantiles(flagged, n=100, method="inclusive"), 1))
    ranked = sorted(flagged)
    for percent, value in ((50, said.p50_s), (95, said.p95_s), (99, said.p99_s)):
        if value is None:
            assert len(flagged) < (100 if percent == 99 else 20)
        elif is_exact:
            assert value == pytest.approx(exact[percent])
        else:
            at = ranked[-(-percent * len(ranked) // 100) - 1]
            assert abs(value - at) <= 0.0103 * at


def test_a_window_without_recordings_says_so(snapshot: Snapshot) -> None:
    empty = Filter(START - timedelta(days=9), START - timedelta(days=8))
    assert set(asdict(counts(snapshot, empty, OBJECTIVE)).values()) == {0}
    assert stages(snapshot, empty) == {}
    assert counts(snapshot, empty, OBJECTIVE).attainment is None


def test_an_interval_holds_its_rate_and_narrows_with_trials() -> None:
    assert wilson(0, 0) is None
    narrow, wide = wilson(50, 1000), wilson(5, 100)
    assert narrow is not None
    assert wide is not None
    assert wide[0] < narrow[0] < 0.05 < narrow[1] < wide[1]
