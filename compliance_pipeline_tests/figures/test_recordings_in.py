"""The list is what the counts count: checked against plain rows of a published history."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from compliance_pipeline.figures import figures
from compliance_pipeline.figures.chosen import whole
from compliance_pipeline.figures.figures import (
    STATES,
    Filter,
    Objective,
    breaches,
    counts,
    number_in,
    recordings_in,
)
from compliance_pipeline.figures.snapshots import Snapshot, folder_of
from compliance_pipeline.warehouse.tables import RecordingRow, Row, StageTimeRow, VerdictRow
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.dashboard.boards import END, Shape, fill, publish_at

SHAPE = Shape(days=6, hours=(8, 21), recordings_an_hour=40)
OBJECTIVE = Objective(12.0, 0.99, {"chat": 6.0})
TOP = datetime(2026, 5, 30, 22, tzinfo=UTC)
FILTERS = {
    "6h": Filter(END - timedelta(hours=6), END),
    "week": Filter(TOP - timedelta(days=7), TOP),
    "queue": Filter(TOP - timedelta(days=7), TOP, queue=("sales", "billing")),
    "agent": Filter(END - timedelta(days=9), END, agent=("tok_03c0ffee", "tok_04c0ffee")),
    "all": Filter(TOP - timedelta(days=30), TOP, channel=("chat", "voice")),
}
PAIRS = (
    ("late", "overdue"), ("late", "undetermined"), ("flagged", "waiting"), ("flagged", "overdue"), ("flagged", "late"),
    ("not-judged", "deferred"), ("judged", "dead_letter"), ("judged", "overdue"),
)  # fmt: skip
ALL = 100_000


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    settings = fill(
        tmp_path_factory.mktemp("listed") / "home",
        SHAPE,
        objective_seconds=OBJECTIVE.seconds,
        objective_seconds_by_channel=OBJECTIVE.by_channel,
    )
    Warehouse(settings.warehouse_path).append(list(unflagged()))
    publish_at(settings)
    snapshot = Snapshot.current(folder_of(settings.home))
    yield snapshot
    snapshot.close()


def unflagged() -> Iterator[Row]:
    """Overdue ones, one that may still be flagged, one of each at the same moment, and one flagged at its objective."""
    same = END - timedelta(hours=2)
    for name, at, channel in (
        ("x-overdue-1", same, "voice"),
        ("x-overdue-2", same, "chat"),
        ("x-overdue-3", END - timedelta(days=5), "voice"),
        ("x-chat-overdue", END - timedelta(seconds=8), "chat"),
        ("x-voice-young", END - timedelta(seconds=8), "voice"),
        ("x-just-in-time", same, "voice"),
    ):
        hour = at.replace(minute=0, second=0, microsecond=0)
        yield RecordingRow(name, hour, "test", channel, "inbound", "sales", [], "m", None, at, at, at, at)
        yield VerdictRow(
            recording_id=name, policy_version="p", engine_version="e", partition_hour=hour, channel=channel,
            verdict="REVIEW_REQUIRED", violation_type="PCI", rule_id="R-1", severity="high", confidence_score=None,
            timestamp_offset_ms=None, evidence_snippet=None, recommended_action="NONE", correlation_id="m",
            unscreenable_reason=None, undetermined_rules=["R-2", "R-3"], judged_at=at, run_id="run",
        )  # fmt: skip
        if name == "x-just-in-time":
            yield StageTimeRow(name, "flagged", hour, channel, at, at, OBJECTIVE.seconds)


def is_in(row: dict[str, Any], state: str) -> bool:
    """By docs/metrics.md, again."""
    allowed = OBJECTIVE.of(row["channel"])
    broke = row["verdict"] in ("VIOLATION_DETECTED", "REVIEW_REQUIRED")
    overdue = broke and row["flagged_s"] is None and (END - row["available_at"]).total_seconds() > allowed
    said = {
        "late": overdue or (row["flagged_s"] is not None and row["flagged_s"] > allowed),
        "overdue": overdue,
        "not-judged": row["status"] != "judged",
        "undetermined": row["status"] == "judged" and bool(row["undetermined_rules"]),
        "flagged": row["flagged_s"] is not None,
    }
    return bool(said.get(state, row["status"] == state))


def plain(snapshot: Snapshot, chosen: Filter, states: tuple[str, ...]) -> list[str]:
    """Ids by the plain rows, newest first."""
    start, end = whole(chosen)
    found = snapshot.rows("FROM read_parquet($interactions)", start, end)
    kept = [
        row
        for row in found
        if start <= row["available_at"] < end
        and all(not values or row[name] in values for name, values in chosen.dimensions.items())
        and (not states or any(is_in(row, state) for state in states))
    ]
    kept.sort(key=lambda row: (row["available_at"], row["recording_id"]), reverse=True)
    return [row["recording_id"] for row in kept]


@pytest.mark.parametrize("which", FILTERS)
def test_the_list_has_what_the_plain_rows_have_and_the_counts_count(snapshot: Snapshot, which: str) -> None:
    chosen = FILTERS[which]
    for states in ((), *((state,) for state in STATES), *PAIRS):
        ids = [one.recording_id for one in recordings_in(snapshot, chosen, states, ALL)]
        assert ids == plain(snapshot, chosen, states), states
        assert number_in(snapshot, chosen, OBJECTIVE, states) == len(ids), states


def test_every_state_has_some_here(snapshot: Snapshot) -> None:
    assert all(recordings_in(snapshot, FILTERS["week"], (state,), 1) for state in STATES)


def test_the_list_is_of_the_same_recordings_as_the_figures(snapshot: Snapshot) -> None:
    for chosen in FILTERS.values():
        of = counts(snapshot, chosen, OBJECTIVE)
        late = recordings_in(snapshot, chosen, ("late",), ALL)
        assert of.late == len(late) > 0
        assert of.overdue == sum(one.is_overdue for one in late)
        assert of.received - of.judged == len(recordings_in(snapshot, chosen, ("not-judged",), ALL))
        slowest = Counter(one.longest for one in late if not one.is_overdue)
        assert slowest == {one.stage: one.recordings for one in breaches(snapshot, chosen)}


def test_pages_meet_though_some_became_available_at_the_same_moment(snapshot: Snapshot) -> None:
    chosen = FILTERS["week"]
    for states in (("late",), ("overdue",), ("dead_letter", "undetermined")):
        everything = recordings_in(snapshot, chosen, states, ALL)
        pages: list[figures.RecordingRow] = []
        while len(pages) < len(everything):
            page = recordings_in(snapshot, chosen, states, 3, pages[-1].place if pages else None)
            assert page == everything[len(pages) : len(pages) + 3]
            pages += page
        assert recordings_in(snapshot, chosen, states, 3, everything[-1].place) == []


def test_an_overdue_one_is_known_by_its_channels_objective(snapshot: Snapshot) -> None:
    ids = {one.recording_id for one in recordings_in(snapshot, FILTERS["6h"], ("overdue",), ALL)}
    assert ids == {"x-overdue-1", "x-overdue-2", "x-chat-overdue"}
    [young] = [one for one in recordings_in(snapshot, FILTERS["6h"], (), ALL) if one.recording_id == "x-voice-young"]
    assert (young.is_violating, young.is_late, young.longest) == (True, False, None)


def test_undetermined_ones_can_be_those_of_a_rule(snapshot: Snapshot) -> None:
    chosen = replace(FILTERS["week"], rule=("R-3",))
    ids = {one.recording_id for one in recordings_in(snapshot, chosen, ("undetermined",), ALL)}
    assert ids == {row.recording_id for row in unflagged() if isinstance(row, RecordingRow)}
    assert number_in(snapshot, chosen, OBJECTIVE, ("undetermined",)) == len(ids)
    assert recordings_in(snapshot, replace(chosen, rule=("R-9",)), ("undetermined",)) == []


def test_an_empty_window_has_none(snapshot: Snapshot) -> None:
    long_ago = Filter(TOP - timedelta(days=90), TOP - timedelta(days=60))
    for states in ((), *((state,) for state in STATES)):
        assert recordings_in(snapshot, long_ago, states) == []
        assert number_in(snapshot, long_ago, OBJECTIVE, states) == 0
