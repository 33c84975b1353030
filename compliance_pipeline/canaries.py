"""Canaries: put in each hour, for each rule and channel of the live policy, and what became of them.

From these come live recall and the true P95 from available to flagged. What a canary holds is platforms/canary's; it is
judged as any other recording, and counts in no other figure.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import sha256

import sqlalchemy as sa

from compliance_pipeline import database
from compliance_pipeline.contracts.event import CANARY
from compliance_pipeline.contracts.policy import Action, PolicyPack
from compliance_pipeline.database import UtcTime, insert, metadata
from compliance_pipeline.intake.inbox import Inbox, IncomingEvent
from compliance_pipeline.objective import Objective
from compliance_pipeline.platforms.canary import Canary, canaries_of
from compliance_pipeline.warehouse.warehouse import Warehouse

SLOTS = 12
"""Of an hour. A canary's slot differs from hour to hour; those of one slot share a run."""
AT_ONCE = 10
"""Canaries put in by one look: after a pause the hour's rest does not come as one burst."""
MISSED_AFTER = 3
"""Times the objective."""
LOOKED_FOR = timedelta(days=1)
"""So long a missed one is still looked for: one that was flagged late has a time."""
KEEP = timedelta(days=35)
DAY, WEEK = timedelta(days=1), timedelta(days=7)


class Outcome(StrEnum):
    FLAGGED = "flagged"
    LATE = "late"
    """Flagged, after more than MISSED_AFTER times the objective."""
    WRONG = "wrong"
    """Judged, and its rule did not fire."""
    MISSED = "missed"
    """Not flagged yet, for longer than MISSED_AFTER times the objective."""


canary_table = sa.Table(
    "canary",
    metadata,
    sa.Column("recording_id", sa.String(128), primary_key=True),
    sa.Column("rule_id", sa.String(64), nullable=False),
    sa.Column("channel", sa.String(16), nullable=False),
    sa.Column("hour", UtcTime, nullable=False),
    sa.Column("injected_at", UtcTime, nullable=False, index=True),
    sa.Column("outcome", sa.String(16)),
    sa.Column("seconds", sa.Float),
)
_row = canary_table.c


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one. seconds: from available to flagged; None while it is not. outcome: None while it may still be
    in time."""

    recording_id: str
    rule_id: str
    channel: str
    injected_at: datetime
    outcome: Outcome | None
    seconds: float | None

    @property
    def name(self) -> str:
        return f"{self.rule_id}/{self.channel}"


@dataclass(frozen=True, slots=True)
class Recall:
    """Canaries of a window that are decided on. p95_s: nearest rank over all of them, one that was never flagged being
    later than all others; None where that is the rank's, or where there are none."""

    canaries: int
    flagged: int
    p95_s: float | None
    newest_miss: datetime | None

    @property
    def share(self) -> float | None:
        return self.flagged / self.canaries if self.canaries else None


def slot_of(canary: Canary, hour: datetime) -> datetime:
    """When in the hour it is put in."""
    slot = sha256(canary.recording_id(hour).encode()).digest()[0] % SLOTS
    return hour + timedelta(hours=1) * slot / SLOTS


def inject(inbox: Inbox, policy: PolicyPack, now: datetime) -> int:
    """Put what is due of this hour into the inbox, AT_ONCE at most; how many. Each once, whoever does it."""
    database.ensure(inbox.engine, canary_table)
    hour = now.replace(minute=0, second=0, microsecond=0)
    with inbox.engine.connect() as connection:
        known = set(connection.scalars(sa.select(_row.recording_id).where(_row.hour == hour)))
    due = [
        canary
        for canary in canaries_of(policy)[0]
        if slot_of(canary, hour) <= now and canary.recording_id(hour) not in known
    ][:AT_ONCE]
    if not due:
        return 0
    events = [canary.event(hour) for canary in due]
    # First the event: an injector that dies in between leaves one that is put in again, which changes nothing.
    inbox.store([IncomingEvent(event, CANARY, event.recording_id, now) for event in events], now)
    rows = [
        {
            "recording_id": event.recording_id,
            "rule_id": canary.rule.id,
            "channel": str(canary.channel),
            "hour": hour,
            "injected_at": now,
        }
        for canary, event in zip(due, events, strict=True)
    ]
    with database.writer(inbox.engine).begin() as connection:
        connection.execute(insert(inbox.engine, canary_table).on_conflict_do_nothing(), rows)
        connection.execute(sa.delete(canary_table).where(_row.injected_at < now - KEEP))
    return len(due)


# $since is all that keeps DuckDB from reading the whole history.
_FATES = """
SELECT
    c.recording_id,
    EXISTS (FROM verdicts v WHERE v.partition_hour >= $since AND v.partition_hour = c.hour
            AND v.recording_id = c.recording_id) AS judged,
    EXISTS (FROM violations x WHERE x.partition_hour >= $since AND x.partition_hour = c.hour
            AND x.recording_id = c.recording_id AND x.rule_id = c.rule_id) AS fired,
    (SELECT max(s.seconds) FROM stage_times s WHERE s.partition_hour >= $since AND s.partition_hour = c.hour
        AND s.recording_id = c.recording_id AND s.stage = c.stage) AS seconds
FROM (SELECT unnest($canaries, recursive := true)) c
"""


def settle(engine: sa.Engine, warehouse: Warehouse, policy: PolicyPack, objective: Objective, now: datetime) -> int:
    """Write down what became of those that are open; how many are decided on now that were not. Raises WarehouseError.

    A rule that tags nothing flags by its verdict.
    """
    database.ensure(engine, canary_table)
    is_open = _row.outcome.is_(None) | (_row.outcome == Outcome.MISSED) & (_row.injected_at > now - LOOKED_FOR)
    with engine.connect() as connection:
        waiting = list(connection.execute(sa.select(canary_table).where(is_open)))
    wanted = {canary.name for canary in canaries_of(policy)[0]}
    gone = [row.recording_id for row in waiting if f"{row.rule_id}/{row.channel}" not in wanted]
    if gone:  # of rules that a policy promoted since does not have
        with database.writer(engine).begin() as connection:
            connection.execute(sa.delete(canary_table).where(_row.recording_id.in_(gone), _row.outcome.is_(None)))
        waiting = [row for row in waiting if row.recording_id not in gone]
    if not waiting:
        return 0
    since = min(row.hour for row in waiting)
    tagging = {rule.id for rule in policy.rules if rule.wants(Action.TAG_RECORDING)}
    asked = [
        {
            "recording_id": row.recording_id,
            "rule_id": row.rule_id,
            "hour": row.hour,
            "stage": "flagged" if row.rule_id in tagging else "judged",
        }
        for row in waiting
    ]
    found = {row["recording_id"]: row for row in warehouse.select(_FATES, {"canaries": asked, "since": since})}
    decided: list[dict[str, object]] = []
    for row in waiting:
        its = found[row.recording_id]
        limit = MISSED_AFTER * objective.of(row.channel)
        seconds, outcome = None, None
        if its["fired"] and its["seconds"] is not None:
            seconds = its["seconds"]
            outcome = Outcome.FLAGGED if seconds <= limit else Outcome.LATE
        elif its["judged"] and not its["fired"]:
            outcome = Outcome.WRONG
        elif now - row.injected_at > timedelta(seconds=limit):
            outcome = Outcome.MISSED
        if outcome and outcome != row.outcome:
            decided.append({"of": row.recording_id, "outcome": outcome, "seconds": seconds})
    if decided:
        with database.writer(engine).begin() as connection:
            update = sa.update(canary_table).where(_row.recording_id == sa.bindparam("of"))
            connection.execute(update, decided)
    return len(decided)


def fates(engine: sa.Engine, since: datetime) -> list[Fate]:
    """Of all put in from `since` on, the newest first."""
    database.ensure(engine, canary_table)
    query = sa.select(
        _row.recording_id, _row.rule_id, _row.channel, _row.injected_at, _row.outcome, _row.seconds
    ).where(_row.injected_at >= since).order_by(_row.injected_at.desc(), _row.recording_id)  # fmt: skip
    with engine.connect() as connection:
        return [
            Fate(one, rule, channel, at, Outcome(outcome) if outcome else None, seconds)
            for one, rule, channel, at, outcome, seconds in connection.execute(query)
        ]


def recall(of: Iterable[Fate]) -> Recall:
    decided = [fate for fate in of if fate.outcome]
    times = sorted(math.inf if fate.seconds is None else fate.seconds for fate in decided)
    at = times[math.ceil(0.95 * len(times)) - 1] if times else math.inf
    missed = [fate.injected_at for fate in decided if fate.outcome is not Outcome.FLAGGED]
    return Recall(len(decided), len(decided) - len(missed), None if at == math.inf else at, max(missed, default=None))


def by_rule(of: Sequence[Fate]) -> dict[str, dict[str, list[Fate]]]:
    """Rule -> channel -> its canaries, rules in order of their ids."""
    found: dict[str, dict[str, list[Fate]]] = {}
    for fate in sorted(of, key=lambda fate: fate.name):
        found.setdefault(fate.rule_id, {}).setdefault(fate.channel, []).append(fate)
    return found


def missed(engine: sa.Engine, since: datetime) -> list[Fate]:
    """Those put in from `since` on that were not flagged in time, or not for their rule."""
    return [fate for fate in fates(engine, since) if fate.outcome and fate.outcome is not Outcome.FLAGGED]
