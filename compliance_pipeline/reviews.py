"""Reviews: what persons decided on findings (a recording and a rule that it broke), and what counts as reviewed.

A later decision stands beside the earlier ones and is the one that counts. Nothing is ever changed or deleted.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

import sqlalchemy as sa

from compliance_pipeline import database, ledger
from compliance_pipeline.database import UtcTime
from compliance_pipeline.intake.hours import hour_of, partition_hour
from compliance_pipeline.intake.inbox import inbox_table
from compliance_pipeline.ledger import Entry
from compliance_pipeline.plain_text import refuse_sensitive
from compliance_pipeline.warehouse.warehouse import Warehouse

REASON_LENGTH = 1_000
"""Characters."""
LATE_BY = timedelta(minutes=1)
"""A decision is told for so long after its time: its transaction may have ended after somebody looked."""


class Decision(StrEnum):
    CONFIRMED = "confirmed"
    DISMISSED = "dismissed"


class NotDecided(Exception):
    """A decision that can't be, with the reason in words."""


reviews = sa.Table(
    "reviews",
    database.metadata,
    # An older home's key, which can't be changed there: each row of a recording has its own time.
    sa.Column("recording_id", sa.String, primary_key=True),
    sa.Column("at", UtcTime, primary_key=True),
    sa.Column("decision", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("by", sa.String, nullable=False),
    # NULL in rows of an older home, which are on the whole recording.
    sa.Column("rule_id", sa.String),
    sa.Column("partition_hour", sa.String(16), index=True),
    sa.Column("request_key", sa.String),
    sa.Index("reviews_at", "at"),
)
_row = reviews.c
_REVIEW = (_row.recording_id, _row.rule_id, _row.decision, _row.reason, _row.by, _row.at)


@dataclass(frozen=True, slots=True)
class Review:
    """rule_id: None for what was decided, in an older home, on the whole recording: it holds for every rule that has
    no decision of its own."""

    recording_id: str
    rule_id: str | None
    decision: Decision
    reason: str
    by: str
    at: datetime


class Broken(NamedTuple):
    """What a recording broke. partition_hour: key as intake.hours has it."""

    partition_hour: str
    rule_ids: tuple[str, ...]


def decide(
    engine: sa.Engine,
    recording_id: str,
    partition_hour: str,
    rule_ids: Collection[str],
    decision: Decision,
    reason: str,
    by: str,
    now: datetime,
    *,
    broken: Collection[str],
    request_key: str,
) -> list[Review]:
    """A person's decision on findings of a recording: on all of `rule_ids` or, when it raises, on none.

    broken: the rules that it broke, as the caller shows them. request_key: a form's or a command's own, random; what
    comes again under one key with the same decision and reason is the same, and gives what was stored before.
    Their times are `now` or microseconds later: no two of a recording share one.
    Raises NotDecided, NotPlain for the texts, and ValueError for a partition_hour that is none.
    """
    hour_of(partition_hour)
    reason = reason.replace("\r\n", "\n").strip()
    _refuse(rule_ids, reason, broken, request_key)
    refuse_sensitive(reason, "the reason")
    refuse_sensitive(by, "the name")
    database.ensure(engine, reviews)
    with database.writer(engine).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("LOCK TABLE reviews IN EXCLUSIVE MODE"))
        of = _row.recording_id == recording_id
        before = _newest(connection, of & (_row.request_key == request_key))
        last = connection.execute(sa.select(sa.func.max(_row.at, type_=UtcTime)).where(of)).scalar_one()
        at = now if last is None else max(now, last + timedelta(microseconds=1))
        stored: list[Review] = []
        new: list[Review] = []
        for rule_id in dict.fromkeys(rule_ids):
            known = before.get((recording_id, rule_id))
            if known and (known.decision, known.reason, known.by) == (decision, reason, by):
                stored.append(known)
                continue
            new.append(Review(recording_id, rule_id, decision, reason, by, at))
            at += timedelta(microseconds=1)
        if new:
            rows = [_values(one) | {"partition_hour": partition_hour, "request_key": request_key} for one in new]
            connection.execute(reviews.insert(), rows)
            ledger.append(connection, [_entry(one) for one in new], now)
    return stored + new


def _refuse(rule_ids: Collection[str], reason: str, broken: Collection[str], request_key: str) -> None:
    if not broken:
        raise NotDecided("it broke no rule: there is nothing to decide")
    if not rule_ids:
        raise NotDecided("say which rule the decision is on")
    if not set(rule_ids) <= set(broken):
        raise NotDecided(f"it did not break that rule; it broke {', '.join(sorted(broken))}")
    if not reason or "\0" in reason:
        raise NotDecided("say why, in plain text")
    if len(reason) > REASON_LENGTH:
        raise NotDecided(f"the reason is longer than {REASON_LENGTH:,} characters")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", request_key):
        raise NotDecided("the form has no key of its own: load the page again")


def _values(review: Review) -> dict[str, Any]:
    return {column.name: getattr(review, column.name) for column in _REVIEW}


def _entry(review: Review) -> Entry:
    details = {"rule": review.rule_id, "decision": str(review.decision), "reason": review.reason}
    key = f"review/{review.recording_id}/{review.at.isoformat()}"
    return Entry(key, "review", review.by, review.recording_id, details=details)


# Looking up


def _newest(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> dict[tuple[str, str | None], Review]:
    found = {}
    for row in connection.execute(sa.select(*_REVIEW).where(condition).order_by(_row.at)):
        decision = Decision(row.decision)
        found[row.recording_id, row.rule_id] = Review(
            row.recording_id, row.rule_id, decision, row.reason, row.by, row.at
        )
    return found


def state(engine: sa.Engine, recording_ids: Collection[str]) -> dict[tuple[str, str | None], Review]:
    """The newest decision by recording and rule: `decided` says which one holds for a finding."""
    database.ensure(engine, reviews)
    found: dict[tuple[str, str | None], Review] = {}
    with engine.connect() as connection:
        for some in database.few(recording_ids):
            found |= _newest(connection, _row.recording_id.in_(some))
    return found


def decided(found: Mapping[tuple[str, str | None], Review], recording_id: str, rule_id: str) -> Review | None:
    """What holds for a finding, of what `state` found."""
    return found.get((recording_id, rule_id)) or found.get((recording_id, None))


def hours_changed(engine: sa.Engine, since: datetime) -> list[str]:
    """Partitions with decisions made at or after `since`, or up to LATE_BY before it; newest first."""
    database.ensure(engine, reviews)
    hour = sa.func.coalesce(_row.partition_hour, inbox_table.c.partition_hour)
    query = (
        sa.select(hour)
        .select_from(reviews.outerjoin(inbox_table, _row.recording_id == inbox_table.c.recording_id))
        .where(_row.at >= since - LATE_BY, hour.is_not(None))
        .distinct()
    )
    with engine.connect() as connection:
        return sorted(connection.scalars(query), reverse=True)


def of_hour(engine: sa.Engine, partition_hour: str) -> list[Review]:
    """The newest decision by recording and rule, of the recordings of a partition; those of an older home too."""
    database.ensure(engine, reviews)
    of = sa.select(inbox_table.c.recording_id).where(inbox_table.c.partition_hour == partition_hour)
    older = _row.partition_hour.is_(None) & _row.recording_id.in_(of)
    with engine.connect() as connection:
        return list(_newest(connection, (_row.partition_hour == partition_hour) | older).values())


# What counts as reviewed

_BROKEN = """
SELECT recording_id, partition_hour, x.rule_id
FROM violations x JOIN verdicts v USING (recording_id, partition_hour, policy_version, engine_version)
WHERE recording_id IN (SELECT unnest($ids))
QUALIFY dense_rank() OVER (PARTITION BY recording_id ORDER BY v.judged_at DESC) = 1
ORDER BY recording_id, x.rule_id
"""


def broken(warehouse: Warehouse, recording_ids: Collection[str]) -> dict[str, Broken]:
    """What these recordings broke by the newest verdict that broke any rule; not those that never broke one.

    Where a later verdict broke none, what was found before is still there to be decided.
    """
    found: dict[str, Broken] = {}
    for row in warehouse.select(_BROKEN, {"ids": list(recording_ids)}):
        before = found.get(row["recording_id"], Broken(partition_hour(row["partition_hour"]), ()))
        found[row["recording_id"]] = before._replace(rule_ids=(*before.rule_ids, row["rule_id"]))
    return found


def reviewed(warehouse: Warehouse, engine: sa.Engine, recording_ids: Collection[str]) -> dict[str, datetime]:
    """Of these, the recordings on which persons decided and nothing is left to decide, and since when.

    All that is `broken` was decided on, under whichever verdict. A decision of an older home is on all rules.
    """
    database.ensure(engine, reviews)
    at = sa.func.min(_row.at, type_=UtcTime).label("at")
    first: dict[str, dict[str | None, datetime]] = {}
    with engine.connect() as connection:
        for some in database.few(recording_ids):
            query = sa.select(_row.recording_id, _row.rule_id, at).where(_row.recording_id.in_(some))
            for row in connection.execute(query.group_by(_row.recording_id, _row.rule_id)):
                first.setdefault(row.recording_id, {})[row.rule_id] = row.at
    if not first:
        return {}
    broke = broken(warehouse, first)
    since: dict[str, datetime] = {}
    for recording_id, decided_at in first.items():
        rules = set(broke[recording_id].rule_ids if recording_id in broke else ())
        ends = [decided_at[None]] if None in decided_at else []
        if rules and rules <= decided_at.keys():
            ends.append(max(decided_at[rule_id] for rule_id in rules))
        if ends:
            since[recording_id] = min(ends)
    return since
