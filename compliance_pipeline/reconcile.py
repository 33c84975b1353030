"""The sweep that asks the platform what became available, and takes in what no event announced.

Functions over inbox, platform and warehouse; when it is done and how it is shown are orchestration's.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from compliance_pipeline.intake.hours import hour_of, partition_hour
from compliance_pipeline.steps import Pipeline
from compliance_pipeline.warehouse.tables import SweepRow

if TYPE_CHECKING:
    from compliance_pipeline.contracts.event import RecordingEvent
    from compliance_pipeline.intake.inbox import InboxItem, IncomingEvent

GRACE = timedelta(minutes=2)
"""What is younger is on its way: its event, or a retry of it, may still come by itself."""
LIST_AGAIN_AFTER = (timedelta(minutes=15), timedelta(hours=1), timedelta(hours=4))
"""So long after its end a conversation is listed once more: its recordings may come late."""
LIST_AGAIN_TRIES = 2
FARTHEST = timedelta(days=7)
STORE_AT_ONCE = 500
"""Rows in one transaction: the receiver stores in between."""


class Became(StrEnum):
    """What became of something that the platform says became available."""

    JUDGED = "judged"
    IN_THE_WORKS = "in_the_works"
    NOT_RECORDED = "not_recorded"
    GIVEN_UP = "given_up"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one sweep saw, a row an hour. found_now: taken in by it. listed_again: conversations that came early."""

    hours: tuple[SweepRow, ...]
    found_now: int
    listed_again: int

    def total(self, column: str) -> int:
        return sum(getattr(row, column) for row in self.hours)


def window(pipeline: Pipeline, hours: int, now: datetime) -> tuple[datetime, datetime]:
    """[since, until) of a sweep: whole hours, as far back as the last sweep if that was longer ago (a week at most)."""
    rows = pipeline.warehouse.select("SELECT max(swept_at) AS last FROM sweeps")
    since = now - timedelta(hours=hours)
    if last := rows[0]["last"]:
        since = max(min(since, last - timedelta(hours=1)), now - FARTHEST)
    return since.replace(minute=0, second=0, microsecond=0), now - GRACE


def reconcile(pipeline: Pipeline, run_id: str, since: datetime, until: datetime) -> Sweep:
    """Ask what became available in [since, until), take in what is unknown here, and say what became of the rest.

    Run twice it adds nothing twice: what it finds has the key that its event would have had. Raises PlatformError.
    """
    now = pipeline.clock()
    at_source = {event.recording_id: event for event in pipeline.platform.list_available(since, until)}
    known = pipeline.inbox.known(at_source)
    unheard: list[IncomingEvent] = []
    early: list[str] = []
    for event in at_source.values():
        rows = known.get(event.recording_id, [])
        own = next((row for row in rows if row.recording_id == event.recording_id), None)
        if own is None or event.event.rank > own.event.rank:
            unheard.append(_incoming(pipeline, event, run_id, since, found_by_sweep=not rows))
        elif _listed_too_early(event, own, now):
            early.append(event.recording_id)
    found = 0
    for begin in range(0, len(unheard), STORE_AT_ONCE):
        stored = pipeline.inbox.store(unheard[begin : begin + STORE_AT_ONCE], now)
        found += sum(not known.get(result.recording_id) and not result.duplicate for result in stored)
    pipeline.inbox.list_again(early, now, pipeline.settings.max_attempts - LIST_AGAIN_TRIES)
    hours = _rows(pipeline, at_source, since, now, run_id)
    pipeline.warehouse.append(hours)
    return Sweep(tuple(hours), found, len(early))


def _incoming(
    pipeline: Pipeline, event: "RecordingEvent", run_id: str, since: datetime, *, found_by_sweep: bool
) -> "IncomingEvent":
    from compliance_pipeline.asgi import Rejected
    from compliance_pipeline.contracts.event import EventType
    from compliance_pipeline.intake.events import minimise
    from compliance_pipeline.intake.inbox import IncomingEvent
    from compliance_pipeline.intake.tokens import Tokenizer

    tokens = Tokenizer(pipeline.settings.participant_token_key)
    try:
        kept = minimise(event, tokens)
    except Rejected:  # an address that is none: where the media is will be looked up anyway
        kept = minimise(event.model_copy(update={"media_uri": None, "event": EventType.COMPLETED}), tokens)
    return IncomingEvent(kept, pipeline.platform.name, f"sweep:{run_id}", _when(event, since), found_by_sweep)


def _when(event: "RecordingEvent", since: datetime) -> datetime:
    return event.event_time or event.end_time or since


def _listed_too_early(event: "RecordingEvent", row: "InboxItem", now: datetime) -> bool:
    from compliance_pipeline.intake.inbox import State

    ended = event.event_time or row.available_at
    return row.state is State.LISTED and any(row.updated_at < ended + after <= now for after in LIST_AGAIN_AFTER)


def _rows(
    pipeline: Pipeline, at_source: "dict[str, RecordingEvent]", since: datetime, now: datetime, run_id: str
) -> list[SweepRow]:
    known = pipeline.inbox.known(at_source)
    stored = [row for rows in known.values() for row in rows]
    judged = {
        row["recording_id"]
        for row in pipeline.warehouse.select(
            "SELECT DISTINCT recording_id FROM verdicts "
            "WHERE partition_hour >= $earliest AND recording_id IN (SELECT unnest($ids))",
            {
                "earliest": min((hour_of(row.partition_hour) for row in stored), default=now),
                "ids": sorted({row.recording_id for row in stored}),
            },
        )
    }
    by_hour: dict[str, Counter[Became]] = {}
    swept: Counter[str] = Counter()
    for recording_id, event in at_source.items():
        hour = partition_hour(_when(event, since))
        rows = known.get(recording_id, [])
        by_hour.setdefault(hour, Counter())[became(rows, judged)] += 1
        swept[hour] += any(row.found_by_sweep for row in rows)
    return [
        SweepRow(
            partition_hour=hour_of(hour),
            swept_at=now,
            at_source=counts.total(),
            found_by_sweep=swept[hour],
            run_id=run_id,
            **{kind.value: counts[kind] for kind in Became},
        )
        for hour, counts in sorted(by_hour.items())
    ]


def became(rows: "Sequence[InboxItem]", judged: set[str]) -> Became:
    """What became of a recording, or of a conversation with its recordings. `judged`: ids that have a verdict."""
    from compliance_pipeline.intake.inbox import OPEN_STATES, State

    if any(row.state in OPEN_STATES for row in rows):
        return Became.IN_THE_WORKS
    if any(row.state is State.DEAD for row in rows):
        return Became.GIVEN_UP
    recordings = [row for row in rows if row.state is not State.LISTED]
    if rows and not recordings:
        return Became.NOT_RECORDED
    if recordings and all(row.recording_id in judged for row in recordings):
        return Became.JUDGED
    return Became.MISSING
