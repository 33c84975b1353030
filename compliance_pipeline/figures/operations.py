"""What became of recordings and actions: the way from received to reviewed, losses, deliveries, ageing."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from compliance_pipeline.figures.chosen import DAY, HOUR, Filter, Grid, floor_hour, rows
from compliance_pipeline.figures.snapshots import Snapshot
from compliance_pipeline.figures.violations import CELLS, SEVERITIES, cells

MOST_AGENTS = 200
"""Offered to choose from."""
AGES = ("<1 d", "1–3 d", "3–7 d", "7–30 d", ">30 d")


@dataclass(frozen=True, slots=True)
class Step:
    """recordings: that came so far. of: those that could have; what was lost of them, by reason, makes up the rest."""

    name: str
    recordings: int
    of: int
    lost: list[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class StackSeries:
    """times, grain_s: as Series has them. values: of each name, a number a bucket."""

    grain_s: int
    times: list[int]
    names: list[str]
    values: list[list[int]]


@dataclass(frozen=True, slots=True)
class Age:
    severity: str
    age: str
    open: int


@dataclass(frozen=True, slots=True)
class RecordingFacts:
    """All that a snapshot knows of a recording: rows of its tables (sql/snapshot, warehouse/sql/schema.sql)."""

    interaction: dict[str, Any]
    violations: list[dict[str, Any]]
    stage_times: list[dict[str, Any]]
    findings: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]
    remediations: list[dict[str, Any]]
    evidence: list[dict[str, Any]]


def funnel(snapshot: Snapshot, chosen: Filter) -> list[Step]:
    """Each step is of the one before; tagged, work item and reviewed are of those that broke a rule."""
    [row] = rows(snapshot, "counts", chosen)
    lost: Counter[tuple[str, str]] = Counter()
    for loss in _losses(snapshot, chosen):
        lost[loss["status"], loss["reason"] or loss["status"]] += loss["recordings"]
    received, judged, violating = row["received"], row["judged"], row["violating"]
    fetched = received - sum(number for (status, _), number in lost.items() if status in _NOT_FETCHED)
    tagged, items, reviewed = row["tagged"], row["work_items"], row["reviewed"]
    return [
        Step("received", received, received, []),
        Step("fetched", fetched, received, _most_first(lost, _NOT_FETCHED)),
        Step("judged", judged, fetched, _most_first(lost, ("unscreenable",))),
        Step("broke a rule", violating, judged, _some("no rule broken", judged - violating)),
        Step("tagged", tagged, violating, _some("not tagged", violating - tagged)),
        Step("work item", items, violating, _some("no work item", violating - items)),
        Step("reviewed", reviewed, violating, _some("not reviewed yet", violating - reviewed)),
    ]


_NOT_FETCHED = ("waiting", "deferred", "dead_letter")


def _most_first(lost: Counter[tuple[str, str]], statuses: Iterable[str]) -> list[tuple[str, int]]:
    by_reason: Counter[str] = Counter()
    for (status, reason), number in lost.items():
        if status in statuses:
            by_reason[reason] += number
    return sorted(by_reason.items(), key=lambda one: (-one[1], one[0]))


def _some(reason: str, number: int) -> list[tuple[str, int]]:
    return [(reason, number)] if number else []


def _losses(snapshot: Snapshot, chosen: Filter) -> list[dict[str, Any]]:
    return rows(snapshot, "losses", chosen)


def losses_series(snapshot: Snapshot, chosen: Filter) -> StackSeries:
    """Recordings not judged, by reason (by status, where there is none); the commonest reason first."""
    by_reason: dict[str, list[tuple[int, int]]] = {}
    for row in _losses(snapshot, chosen):
        by_reason.setdefault(row["reason"] or row["status"], []).append((row["at"], row["recordings"]))
    names = sorted(by_reason, key=lambda name: (-sum(number for _, number in by_reason[name]), name))
    grid = Grid.of(chosen)
    return StackSeries(grid.width_s, grid.times, names, [grid.sums(by_reason[name]) for name in names])


def actions_series(snapshot: Snapshot, chosen: Filter) -> StackSeries:
    """Actions by what came of them: done, failed (to be tried again), dead (given up on), other (planned, waiting)."""
    found = [
        row | {"other": row["planned"] - row["done"] - row["failed"] - row["dead"]}
        for row in rows(snapshot, "actions", chosen)
    ]
    names = ["done", "failed", "dead", "other"]
    grid = Grid.of(chosen)
    values = [grid.sums((row["at"], row[name]) for row in found) for name in names]
    return StackSeries(grid.width_s, grid.times, names, values)


def actions_total(snapshot: Snapshot, chosen: Filter) -> tuple[int, int, int]:
    """Actions that were tried, of these those that aren't done, and those that were tried more than once."""
    found = rows(snapshot, "actions", chosen)
    done, failed, dead, retried = (sum(row[name] for row in found) for name in ("done", "failed", "dead", "retried"))
    return done + failed + dead, failed + dead, retried


def ageing(snapshot: Snapshot, chosen: Filter) -> list[Age]:
    """Open violations by severity and by age at `data_to`, whatever the window; a row for each severity and age.

    Age: since the hour in which the recording became available began.
    """
    data_to = snapshot.manifest.data_to
    start = min(snapshot.open_since(), data_to - 2 * DAY)
    everything = replace(chosen, start=start, end=floor_hour(data_to) + DAY, review=("open",))
    counted: Counter[tuple[str, str]] = Counter()
    for row in rows(snapshot, "ages", everything, {"data_to": data_to}):
        age = next((name for name, days in zip(AGES, (1, 3, 7, 30), strict=False) if row["days"] < days), AGES[-1])
        counted[row["severity"], age] += row["open"]
    return [Age(severity, age, counted[severity, age]) for severity in SEVERITIES for age in AGES]


def recording(snapshot: Snapshot, hour: datetime, recording_id: str) -> RecordingFacts | None:
    """hour: its partition. None where the snapshot doesn't have it."""

    def its(table: str) -> list[dict[str, Any]]:
        query = f"FROM read_parquet(${table}) WHERE recording_id = $id ORDER BY ALL"
        return snapshot.rows(query, hour, hour + HOUR, id=recording_id)

    if not (found := its("interactions")):
        return None
    tables = ("violations", "stage_times", "findings", "verdicts", "remediations", "evidence")
    return RecordingFacts(found[0], *(its(table) for table in tables))


def options(snapshot: Snapshot, chosen: Filter) -> dict[str, list[str]]:
    """By dimension, the values that recordings or violations of the window have, in order. Of agents the MOST_AGENTS
    of whom most was judged. What else is chosen doesn't count."""
    start = floor_hour(chosen.start)
    everything = Filter(start, max(chosen.end, start + DAY + HOUR), zone=chosen.zone)
    of_recordings, of_violations = cells(snapshot, everything), rows(snapshot, "options", everything)
    found = {name: sorted({row[name] for row in of_recordings if row[name]}) for name in CELLS}
    found["rule"] = sorted({row["rule"] for row in of_violations})
    severities = {row["severity"] for row in of_violations}
    found["severity"] = sorted(severities, key=lambda one: SEVERITIES.index(one) if one in SEVERITIES else 9)
    day = start.replace(hour=0)
    known = rows(snapshot, "agents_known", replace(everything, start=day), {"most": MOST_AGENTS})
    return found | {"agent": sorted(one["agent"] for one in known), "review": ["open", "confirmed", "dismissed"]}
