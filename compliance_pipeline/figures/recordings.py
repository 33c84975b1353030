"""Recordings one by one, by what became of them: what the counts are counts of."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from compliance_pipeline.figures.chosen import DAY, HOUR, Filter, rows, whole
from compliance_pipeline.figures.promise import counts
from compliance_pipeline.figures.snapshots import Snapshot
from compliance_pipeline.objective import Objective

STATES = (
    "late",
    "overdue",
    "not-judged",
    "unscreenable",
    "waiting",
    "deferred",
    "dead_letter",
    "undetermined",
    "flagged",
    "judged",
)
"""As docs/metrics.md has them. not-judged: any status but judged. undetermined: judged, with a rule (a chosen one,
if any is chosen) that could not be decided."""
STATUSES = ("judged", "unscreenable", "waiting", "deferred", "dead_letter")
FROM_AVAILABLE = ("delivery", "queue", "start", "batch", "fetch", "analysis", "remediation")
"""Stages, as sql/snapshot/breaches.sql compares them: of equally long ones the first counts."""
Place = tuple[datetime, str]
"""available_at and recording_id."""
AT_ONCE = timedelta(hours=12)
"""So many are read in one go, where few have any."""


@dataclass(frozen=True, slots=True)
class RecordingRow:
    """status: of STATUSES. rule_id, severity: of the worst violation. flagged_s: available to flagged.

    is_late: flagged after the objective, or overdue. longest, longest_s: of one flagged late, the stage that took
    longest; None else.
    """

    recording_id: str
    available_at: datetime
    channel: str
    direction: str
    queue: str
    agent: str | None
    policy_version: str | None
    status: str
    reason: str | None
    verdict: str | None
    rule_id: str | None
    severity: str | None
    undetermined_rules: list[str]
    flagged_s: float | None
    is_late: bool
    is_overdue: bool
    longest: str | None
    longest_s: float | None

    @property
    def place(self) -> Place:
        return self.available_at, self.recording_id

    @property
    def is_violating(self) -> bool:
        return self.verdict in ("VIOLATION_DETECTED", "REVIEW_REQUIRED")


def recordings_in(
    snapshot: Snapshot, chosen: Filter, states: Collection[str] = (), limit: int = 50, before: Place | None = None
) -> list[RecordingRow]:
    """In any of these STATES (none: all), newest first. before: the last one of the page before."""
    at, recording_id = before or (None, None)
    hours = [(hour, most) for hour, most in _hours(snapshot, chosen, states) if not at or hour <= at]
    found: list[dict[str, Any]] = []
    while hours and len(found) < limit:
        reach, most = 0, 0
        last = hours[0][0]
        while reach < len(hours) and most < limit - len(found) and last - hours[reach][0] < AT_ONCE:
            most += hours[reach][1]
            reach += 1
        more = {"at": at, "id": recording_id, "most": limit - len(found)}
        found += rows(
            snapshot,
            "recordings_in",
            chosen,
            more | _of(snapshot, states),
            since=hours[reach - 1][0],
            until=last + HOUR,
        )
        hours = hours[reach:]
    return [_row(row) for row in found]


def _hours(snapshot: Snapshot, chosen: Filter, states: Collection[str]) -> list[tuple[datetime, int]]:
    """Those that may have some, newest first, and how many at most."""
    most: Counter[datetime] = Counter()
    named = [state for state in states if state != "undetermined"] if states else ["received"]
    if named:
        for row in rows(snapshot, "recordings_hours", chosen):
            most[row["hour"]] += sum(row[state] for state in named)
    if "undetermined" in states:
        for row in rows(snapshot, "recordings_undetermined", chosen):
            if not chosen.rule or row["rule_id"] in chosen.rule:
                most[row["hour"]] += row["recordings"]
    return sorted(((hour, number) for hour, number in most.items() if number), reverse=True)


def number_in(snapshot: Snapshot, chosen: Filter, objective: Objective, states: Collection[str] = ()) -> int:
    """How many recordings the list has, from the counts where these tell it."""
    known = state_counts(snapshot, chosen, objective)
    wanted = set(states)
    if not wanted:
        return counts(snapshot, chosen, objective).received
    if "not-judged" in wanted:
        wanted -= set(STATUSES) - {"judged"}
    if "late" in wanted:
        wanted.discard("overdue")
    if "flagged" in wanted and wanted & {"late", "overdue"}:  # what is due: flagged ones, and overdue ones
        wanted = (wanted - {"late"}) | {"overdue"}
    if any(wanted <= apart for apart in ({"not-judged", *STATUSES}, {"flagged", "overdue"}, {"late"})):
        return sum(known[state] for state in wanted)
    more, (since, end) = _of(snapshot, wanted), whole(chosen)
    number = 0
    while since < end:  # by the day: it's a lot to read
        [row] = rows(snapshot, "recordings_number", chosen, more, since=since, until=since + DAY)
        number += row["recordings"]
        since += DAY
    return number


def state_counts(snapshot: Snapshot, chosen: Filter, objective: Objective) -> dict[str, int]:
    """Recordings by state, but for undetermined, of which no rollup tells."""
    of = counts(snapshot, chosen, objective)
    return {
        "late": of.late,
        "overdue": of.overdue,
        "not-judged": of.received - of.judged,
        "unscreenable": of.unscreenable,
        "waiting": of.waiting,
        "deferred": of.deferred,
        "dead_letter": of.dead_letters,
        "flagged": of.flagged,
        "judged": of.judged,
    }


def _of(snapshot: Snapshot, states: Collection[str]) -> dict[str, Any]:
    return {"states": sorted(states), "data_to": snapshot.manifest.data_to}


def _row(said: dict[str, Any]) -> RecordingRow:
    kept = dict(said)
    stages = [(stage, kept.pop(f"{stage}_s") or 0.0) for stage in FROM_AVAILABLE]
    longest, longest_s = max(stages, key=lambda one: one[1])
    is_told = said["is_late"] and said["flagged_s"] is not None
    return RecordingRow(**kept, longest=longest if is_told else None, longest_s=longest_s if is_told else None)
