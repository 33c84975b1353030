"""The hourly figures: exact, from the newest verdict of each recording, and rebuilt without touching other hours."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance_pipeline.objective import Objective
from compliance_pipeline.warehouse.warehouse import Warehouse, sql
from compliance_pipeline_tests.warehouse.rows import (
    HOUR,
    NEXT_HOUR,
    recording,
    remediation,
    stage,
    verdict,
    violation,
)

OBJECTIVE_S = 30.0


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "warehouse.duckdb")


def latency(warehouse: Warehouse, hour: datetime = HOUR) -> list[dict[str, Any]]:
    warehouse.refresh_marts(hour, {"latency_by_hour": Objective(OBJECTIVE_S).parameters})
    return warehouse.select("FROM latency_by_hour WHERE partition_hour = $hour ORDER BY ALL", {"hour": hour})


def violations(warehouse: Warehouse, hour: datetime = HOUR) -> dict[tuple[str, str], tuple[int, int]]:
    """(recordings, screened) by (channel, rule)."""
    warehouse.refresh_marts(hour, {"violations_by_hour": {}})
    rows = warehouse.select("FROM violations_by_hour WHERE partition_hour = $hour", {"hour": hour})
    return {(row["channel"], row["rule_id"]): (row["recordings"], row["screened"]) for row in rows}


measured = st.lists(
    st.tuples(
        st.sampled_from(["voice", "chat"]),
        st.sampled_from(["flagged", "judged", "fetch"]),
        st.floats(0, 1_000, allow_subnormal=False) | st.just(OBJECTIVE_S),
    ),
    min_size=1,
    max_size=60,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Warehouse, Iterator[int]]:
    """A warehouse for many examples, and a number for each: its hour."""
    return Warehouse(tmp_path_factory.mktemp("marts") / "warehouse.duckdb"), count()


@settings(max_examples=20, deadline=None)
@given(measured)
def test_percentiles_are_those_of_numpy_by_channel_and_for_all(
    shared: tuple[Warehouse, Iterator[int]], rows: list[tuple[str, str, float]]
) -> None:
    warehouse, numbers = shared
    example = next(numbers)
    hour = HOUR + timedelta(hours=example)
    warehouse.append([stage(f"{example}-{n}", name, s, channel, hour) for n, (channel, name, s) in enumerate(rows)])
    expected: dict[tuple[str, str], list[float]] = {}
    for channel, name, seconds in rows:
        for key in ((channel, name), ("all", name)):
            expected.setdefault(key, []).append(seconds)
    figures = latency(warehouse, hour)
    assert {(row["channel"], row["stage"]) for row in figures} == expected.keys()
    for row in figures:
        seconds_of = expected[row["channel"], row["stage"]]
        assert row["recordings"] == len(seconds_of)
        assert row["within_objective"] == sum(seconds <= OBJECTIVE_S for seconds in seconds_of)
        assert row["max_s"] == max(seconds_of)
        percentiles = np.percentile(seconds_of, [50, 95, 99])
        assert [row["p50_s"], row["p95_s"], row["p99_s"]] == pytest.approx(percentiles, rel=1e-9, abs=1e-9)


def test_refreshing_twice_is_refreshing_once(warehouse: Warehouse) -> None:
    warehouse.append([stage("rec-1"), stage("rec-2", channel="voice")])
    warehouse.append([verdict(), violation()])
    once = latency(warehouse), violations(warehouse)
    assert (latency(warehouse), violations(warehouse)) == once
    violations(warehouse, NEXT_HOUR)
    assert warehouse.describe("latency_by_hour", HOUR).rows == 3
    assert warehouse.describe("violations_by_hour", HOUR).rows == 1
    assert warehouse.describe("violations_by_hour", NEXT_HOUR).rows == 0


def test_refreshing_an_hour_leaves_the_others_alone_and_takes_what_came_late(warehouse: Warehouse) -> None:
    warehouse.append([stage("rec-1", seconds=1), stage("rec-2", seconds=5, hour=NEXT_HOUR)])
    other = latency(warehouse, NEXT_HOUR)
    assert [row["p50_s"] for row in latency(warehouse)] == [1.0, 1.0]
    warehouse.append([stage("rec-3", seconds=3), stage("rec-4", seconds=50, hour=NEXT_HOUR)])
    assert [row["p50_s"] for row in latency(warehouse)] == [2.0, 2.0]
    assert warehouse.select("FROM latency_by_hour WHERE partition_hour = $h ORDER BY ALL", {"h": NEXT_HOUR}) == other


def test_violations_stand_beside_the_recordings_that_could_be_screened(warehouse: Warehouse) -> None:
    warehouse.append(
        [
            *(verdict(f"bad-{n}") for n in range(2)),
            *(violation(f"bad-{n}") for n in range(2)),
            violation("bad-0", "PCI-SAD-01"),
            *(verdict(f"clean-{n}", "NO_VIOLATION") for n in range(3)),
            verdict("gone", "UNSCREENABLE"),
            verdict("call", channel="voice"),
            violation("call", channel="voice"),
            verdict("elsewhere", partition_hour=NEXT_HOUR),
            violation("elsewhere", partition_hour=NEXT_HOUR),
        ]
    )
    assert violations(warehouse) == {
        ("chat", "PCI-PAN-01"): (2, 5),
        ("chat", "PCI-SAD-01"): (1, 5),
        ("voice", "PCI-PAN-01"): (1, 1),
    }


def test_only_what_the_newest_verdict_says_counts(warehouse: Warehouse) -> None:
    later: dict[str, Any] = {"judged_at": HOUR + timedelta(minutes=5)}
    warehouse.append(
        [
            verdict("cleared"),
            violation("cleared"),
            verdict("cleared", "NO_VIOLATION", engine_version="engine-2", **later),
            verdict("found later", "NO_VIOLATION"),
            verdict("found later", policy_version="pack@2.0.0", **later),
            violation("found later", "PCI-PAN-09", policy_version="pack@2.0.0"),
            verdict("lost", "NO_VIOLATION"),
            verdict("lost", "UNSCREENABLE", engine_version="engine-2", **later),
        ]
    )
    assert violations(warehouse) == {("chat", "PCI-PAN-09"): (1, 2)}


def flag(warehouse: Warehouse) -> dict[tuple[str, str], float]:
    with warehouse.write() as connection:
        connection.execute(sql("flagged_times"), {"hour": HOUR})
    rows = warehouse.select("FROM stage_times WHERE stage IN ('flagged', 'remediation')")
    return {(row["recording_id"], row["stage"]): row["seconds"] for row in rows}


def test_a_flag_is_timed_from_available_to_the_first_tag_that_was_written(warehouse: Warehouse) -> None:
    warehouse.append([recording(), verdict(), stage(seconds=4)])
    assert flag(warehouse) == {}, "judged, not tagged yet"
    warehouse.append([remediation(status="planned", revision=1), remediation(status="failed", revision=2)])
    warehouse.append([remediation(action="create_work_item")])
    assert flag(warehouse) == {}, "the tag was not written"
    warehouse.append([remediation(revision=4)])
    assert flag(warehouse) == {("rec-1", "flagged"): 9.0, ("rec-1", "remediation"): 5.0}
    warehouse.append([remediation(revision=6, revised_at=HOUR + timedelta(seconds=60))])
    assert flag(warehouse)["rec-1", "flagged"] == 9.0, "a tag that is written again is no second flag"


def test_a_flag_of_another_hour_is_not_timed_in_this_one(warehouse: Warehouse) -> None:
    warehouse.append(
        [
            verdict(partition_hour=NEXT_HOUR),
            stage(hour=NEXT_HOUR),
            remediation(partition_hour=NEXT_HOUR, revised_at=NEXT_HOUR + timedelta(seconds=9)),
        ]
    )
    assert flag(warehouse) == {}


def test_what_a_later_policy_flags_in_an_old_recording_is_no_late_flag(warehouse: Warehouse) -> None:
    warehouse.append([verdict(value="NO_VIOLATION"), stage()])
    week = timedelta(days=7)
    warehouse.append([verdict(policy_version="pack@2.0.0", judged_at=HOUR + week)])
    warehouse.append([remediation(revised_at=HOUR + week)])
    assert flag(warehouse) == {}
