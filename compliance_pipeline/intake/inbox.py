"""The inbox: one durable row per recording, and who works on it (SQLite in WAL mode, or Postgres by URL).

No HTTP, no platform, no clock: time comes in as a parameter. Nothing is ever deleted.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from compliance_pipeline import database, ledger
from compliance_pipeline.contracts.event import CANARY, EventType, RecordingEvent
from compliance_pipeline.database import UtcTime, insert, metadata
from compliance_pipeline.intake.hours import partition_hour

STARTED_PATIENCE = timedelta(hours=4)
"""A recording that only ever said 'started' is looked up after this."""

RUN_DIED = "the run that had it died"
REOPENED = "taken up again"
"""A reason, so that what is stored of it and what comes now lie in one partition hour."""


class State(StrEnum):
    """new, deferred and claimed are open; done, listed and dead are settled.

    listed: of a conversation, whose recordings have rows of their own (or that has none).
    """

    NEW = "new"
    CLAIMED = "claimed"
    DEFERRED = "deferred"
    DONE = "done"
    LISTED = "listed"
    DEAD = "dead"


OPEN_STATES = (State.NEW, State.CLAIMED, State.DEFERRED)


@dataclass(frozen=True, slots=True)
class IncomingEvent:
    """An event, minimised and tokenised already, as a receiver, consumer or sweep hands it in.

    received_at: when its announcement was received, where that is not now.
    """

    event: RecordingEvent
    source: str
    correlation_id: str
    available_at: datetime
    found_by_sweep: bool = False
    received_at: datetime | None = None

    @property
    def recording_id(self) -> str:
        return self.event.recording_id


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of an event. `response` is the answer for the sender, the same for every repeat but `duplicate`."""

    recording_id: str
    duplicate: bool
    response: dict[str, Any]
    seq: int


@dataclass(frozen=True, slots=True)
class PartitionWork:
    """The actionable rows of one partition.

    `latest_change` grows whenever a row becomes actionable again, also where `highest_seq` and `attempts` happen to
    repeat (one row with an attempt settled, another one tried): put it in a run key that must not recur.
    """

    partition_hour: str
    count: int
    highest_seq: int
    attempts: int
    oldest_since: datetime
    latest_change: datetime


@dataclass(frozen=True, slots=True)
class InboxItem:
    """One row. `due_at`: from when it may be taken: since it waits, its retry time, or the end of its claim."""

    seq: int
    recording_id: str
    source: str
    event: EventType
    state: State
    partition_hour: str
    payload: dict[str, Any] = field(repr=False)
    correlation_id: str
    ended_at: datetime | None
    available_at: datetime
    received_at: datetime
    due_at: datetime | None
    claimed_by: str | None
    claimed_at: datetime | None
    attempts: int
    duplicates: int
    reason: str | None
    updated_at: datetime
    found_by_sweep: bool = False
    conversation_id: str | None = None

    @property
    def recording_event(self) -> RecordingEvent:
        return RecordingEvent.model_validate(self.payload)


def _enum(kind: type[StrEnum]) -> sa.Enum:
    return sa.Enum(kind, native_enum=False, length=32, values_callable=lambda members: [m.value for m in members])


inbox_table = sa.Table(
    "inbox",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("recording_id", sa.String(128), nullable=False, unique=True),
    sa.Column("source", sa.String(64), nullable=False),
    sa.Column("event", _enum(EventType), nullable=False),
    sa.Column("state", _enum(State), nullable=False),
    sa.Column("partition_hour", sa.String(16), nullable=False),
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Column("correlation_id", sa.String(256), nullable=False),
    sa.Column("ended_at", UtcTime),
    sa.Column("available_at", UtcTime, nullable=False),
    sa.Column("received_at", UtcTime, nullable=False),
    sa.Column("due_at", UtcTime),
    sa.Column("claimed_by", sa.String(256)),
    sa.Column("claimed_at", UtcTime),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("duplicates", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("updated_at", UtcTime, nullable=False),
    sa.Column("found_by_sweep", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("conversation_id", sa.String(128), index=True),
    # The sensor's question ('what is due?') reads only this, and of it only the rows that are due.
    sa.Index("inbox_state_due", "state", "due_at"),
    sa.Index("inbox_partition_due", "partition_hour", "due_at"),
    sa.Index("inbox_updated", "updated_at"),
    sqlite_autoincrement=True,
)
_row = inbox_table.c

second_look = sa.Table(
    "second_look",
    metadata,
    sa.Column("recording_id", sa.String(128), primary_key=True),
    sa.Column("owner", sa.String(256), nullable=False, index=True),
    sa.Column("until", UtcTime, nullable=False),
)
"""Who looks again at a recording that is done, which stays done all the while."""
_look = second_look.c
_ANEW = {"state": State.NEW, "reason": None, "claimed_by": None, "claimed_at": None}
_MERGED = (
    "event",
    "state",
    "partition_hour",
    "payload",
    "correlation_id",
    "ended_at",
    "available_at",
    "due_at",
    "claimed_by",
    "claimed_at",
    "attempts",
    "duplicates",
    "reason",
    "updated_at",
)


def _entry(event: EventType, now: datetime) -> dict[str, Any]:
    """State and due time of a recording whose latest event is `event`."""
    if event is EventType.AVAILABLE:
        return {"state": State.NEW, "due_at": now}
    return {"state": State.DEFERRED, "due_at": now + STARTED_PATIENCE if event is EventType.STARTED else now}


def _payload(event: RecordingEvent) -> dict[str, Any]:
    given = event.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    return given | {"event": event.event.value}


def _times(incoming: IncomingEvent) -> dict[str, Any]:
    return {"available_at": incoming.available_at, "partition_hour": partition_hour(incoming.available_at)}


def _fresh(incoming: IncomingEvent, now: datetime) -> dict[str, Any]:
    return {
        "recording_id": incoming.recording_id,
        "source": incoming.source,
        "event": incoming.event.event,
        "payload": _payload(incoming.event),
        "correlation_id": incoming.correlation_id,
        "ended_at": incoming.event.end_time,
        "received_at": incoming.received_at or now,
        "attempts": 0,
        "duplicates": 0,
        "updated_at": now,
        "found_by_sweep": incoming.found_by_sweep,
        "conversation_id": incoming.event.conversation_id,
        **_times(incoming),
        **_entry(incoming.event.event, now),
    }


def merge(row: Mapping[str, Any], incoming: IncomingEvent, now: datetime) -> tuple[dict[str, Any], bool]:
    """What an event changes in the row of a recording known already, and whether it is a duplicate.

    A conversation that was listed is listed again: a transfer or a callback later may have added recordings to it.
    A later event of the lifecycle moves a waiting row on, and gives one that was given up on a full set of tries. A
    row that someone holds or that is done only notes it: whoever holds the row asks the platform anyway.
    """
    event = incoming.event.event
    if row["state"] is State.LISTED and not incoming.found_by_sweep:
        return _ANEW | {"due_at": now, "attempts": 0, "duplicates": row["duplicates"] + 1, "updated_at": now}, True
    if event.rank <= row["event"].rank:
        counted: dict[str, Any] = {"duplicates": row["duplicates"] + 1}
        # Of an open row it would look like new work.
        return counted if row["state"] in OPEN_STATES else counted | {"updated_at": now}, True
    changes: dict[str, Any] = {"event": event, "updated_at": now}
    if row["state"] in (State.NEW, State.DEFERRED, State.DEAD):
        changes |= {
            "payload": _combined(row["payload"], incoming.event),
            "correlation_id": incoming.correlation_id,
            "ended_at": incoming.event.end_time or row["ended_at"],
            **_times(incoming),
            **_entry(event, now),
        }
        if row["attempts"] or row["reason"]:
            # What was stored of it so far lies in the hour that it was first tried in.
            changes["partition_hour"] = row["partition_hour"]
        if row["state"] is State.DEAD:
            changes |= {"attempts": 0, "claimed_by": None, "claimed_at": None}
    return changes, False


def _combined(known: dict[str, Any], event: RecordingEvent) -> dict[str, Any]:
    """The newer event over what the earlier one said; the newer alone where the two contradict each other."""
    both = known | _payload(event)
    try:
        RecordingEvent.model_validate(both)
    except ValidationError:
        return _payload(event)
    return both


def _answer(recording_id: str, correlation_id: str, duplicate: bool) -> dict[str, Any]:
    return {
        "recordingId": recording_id,
        "status": "accepted",
        "correlationId": correlation_id,
        "duplicate": duplicate,
    }


def _heard(incoming: IncomingEvent) -> ledger.Entry:
    kind = incoming.event.event.value
    return ledger.Entry(
        key=f"event/{incoming.recording_id}/{kind}",
        kind="event_received",
        actor="sweep" if incoming.found_by_sweep else incoming.source,
        recording_id=incoming.recording_id,
        correlation_id=incoming.correlation_id,
        details={"event": kind, "available_at": incoming.available_at.isoformat()},
    )


def _item(row: sa.Row[Any]) -> InboxItem:
    return InboxItem(**row._mapping)


def _looked_at(now: datetime, *, but_by: str = "") -> sa.ColumnElement[bool]:
    """Whether somebody, other than `but_by`, has a second look at the row under way."""
    return sa.exists().where(_look.recording_id == _row.recording_id, _look.until > now, _look.owner != but_by)


def _held_by(owner: str) -> sa.ColumnElement[bool]:
    return sa.and_(_row.state == State.CLAIMED, _row.claimed_by == owner)


def _change(connection: sa.Connection, condition: sa.ColumnElement[bool], **values: Any) -> int:
    # Locked in one order, like `store`: two Postgres transactions over the same rows can't wait for each other.
    rows = sa.select(_row.seq).where(condition).order_by(_row.recording_id).with_for_update()
    found = connection.scalars(rows).all()
    return connection.execute(sa.update(inbox_table).where(_row.seq.in_(found)).values(**values)).rowcount


class Inbox:
    """The inbox at `url` (`sqlite:///path` or `postgresql+psycopg://...`). Methods raise SQLAlchemyError.

    A claim is alive until somebody else takes the row over. `done`, `defer`, `dead`, `extend` and `release` work for
    the owner of a live claim only; for anyone else they change nothing and say so (False, or a count of 0).
    """

    def __init__(self, url: str) -> None:
        self.engine = database.connect(url)
        self._writer = database.writer(self.engine)
        self._created = False

    def create(self) -> None:
        """Make the tables where missing. Safe to call often and from several processes at once."""
        if self._created:
            return
        database.create(self.engine)
        self._created = True

    def close(self) -> None:
        self.engine.dispose()

    def ping(self) -> None:
        """Raise if the inbox can't be read or written."""
        self.create()
        with self._writer.begin() as connection:
            connection.execute(sa.select(_row.seq).limit(1))
            connection.execute(sa.update(inbox_table).where(sa.false()).values(attempts=0))

    def store(self, events: Sequence[IncomingEvent], now: datetime) -> list[Stored]:
        """Store a batch in one transaction, durable on return; one result per event, in the same order."""
        if not events:
            return []
        first: dict[str, int] = {}
        for index, event in enumerate(events):
            first.setdefault(event.recording_id, index)
        results: dict[int, Stored] = {}
        with self._writer.begin() as connection:
            # Sorted, so that two Postgres receivers with the same recordings wait for each other in one order.
            rows = [_fresh(events[index], now) for _, index in sorted(first.items())]
            statement = insert(self.engine, inbox_table).on_conflict_do_nothing(index_elements=["recording_id"])
            for recording_id, seq in connection.execute(statement.returning(_row.recording_id, _row.seq), rows):
                index = first[recording_id]
                answer = _answer(recording_id, events[index].correlation_id, False)
                results[index] = Stored(recording_id, False, answer, seq)
            if rest := [index for index in range(len(events)) if index not in results]:
                results |= self._merge(connection, {index: events[index] for index in rest}, now)
            # Last, when all rows are locked: whoever holds the ledger's lock waits for nobody.
            heard = [
                _heard(event)
                for index, event in enumerate(events)
                if event.source != CANARY and not results[index].duplicate
            ]
            ledger.append(connection, heard, now)
        return [results[index] for index in range(len(events))]

    def _merge(
        self, connection: sa.Connection, events: Mapping[int, IncomingEvent], now: datetime
    ) -> dict[int, Stored]:
        ids = {event.recording_id for event in events.values()}
        query = sa.select(inbox_table).where(_row.recording_id.in_(ids)).order_by(_row.recording_id).with_for_update()
        known = {row.recording_id: dict(row._mapping) for row in connection.execute(query)}
        results = {}
        for index, event in events.items():
            row = known[event.recording_id]
            changes, duplicate = merge(row, event, now)
            row |= changes
            answer = _answer(row["recording_id"], row["correlation_id"], duplicate)
            results[index] = Stored(row["recording_id"], duplicate, answer, row["seq"])
        connection.execute(
            sa.update(inbox_table)
            .where(_row.seq == sa.bindparam("of_seq"))
            .values({name: sa.bindparam(f"to_{name}") for name in _MERGED}),
            [{"of_seq": row["seq"]} | {f"to_{name}": row[name] for name in _MERGED} for row in known.values()],
        )
        return results

    def pending(self, now: datetime) -> list[PartitionWork]:
        """Partitions that have something to do, newest first: rows new, due, or with a claim that ran out.

        Not of hours to come, which rows have that were stored before the clock was set back; and not what was opened
        again while a second look at it is under way.
        """
        query = (
            sa.select(
                _row.partition_hour,
                sa.func.count(),
                sa.func.max(_row.seq),
                sa.func.sum(_row.attempts),
                sa.func.min(_row.due_at),
                sa.func.max(_row.updated_at),
            )
            .where(
                _row.state.in_(OPEN_STATES),
                _row.due_at <= now,
                _row.partition_hour <= partition_hour(now),
                sa.not_(_looked_at(now)),
            )
            .group_by(_row.partition_hour)
            .order_by(_row.partition_hour.desc())
        )
        with self.engine.connect() as connection:
            return [PartitionWork(*row) for row in connection.execute(query)]

    def claim(
        self,
        partition_hour: str,
        owner: str,
        now: datetime,
        lease: timedelta,
        limit: int,
        *,
        new_recordings_only: bool = False,
    ) -> list[InboxItem]:
        """Take up to `limit` actionable rows of the partition, those that `owner` holds already first; newest first.

        new_recordings_only: neither what `owner` holds already nor conversations.
        No row goes to two owners, nor to one while another's second look at it is under way. Each row taken counts as
        an attempt. A row that was claimed and never given back gets RUN_DIED as its reason.
        """
        held = _held_by(owner)
        which = sa.or_(_row.due_at <= now, held)
        if new_recordings_only:
            recording = sa.func.coalesce(_row.conversation_id, "") != _row.recording_id
            which = sa.and_(_row.due_at <= now, sa.not_(held), recording)
        query = (
            sa.select(_row.seq)
            .where(
                _row.partition_hour == partition_hour,
                _row.state.in_(OPEN_STATES),
                which,
                sa.not_(_looked_at(now, but_by=owner)),
            )
            .order_by(sa.case((held, 0), else_=1), _row.available_at.desc(), _row.seq.desc())
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        values = {"state": State.CLAIMED, "claimed_by": owner, "claimed_at": now, "due_at": now + lease}
        with self._writer.begin() as connection:
            found = connection.scalars(query).all()
            taken = (
                sa.update(inbox_table)
                .where(_row.seq.in_(found))
                .values(
                    **values,
                    attempts=_row.attempts + 1,
                    updated_at=now,
                    reason=sa.case((_row.state == State.CLAIMED, RUN_DIED), else_=_row.reason),
                )
                .returning(*inbox_table.c)
            )
            items = [_item(row) for row in connection.execute(taken)]
            # A look whose time ran out is over: its owner must not take it up again beside the new one.
            stale = _look.recording_id.in_([item.recording_id for item in items])
            connection.execute(sa.delete(second_look).where(stale, _look.owner != owner))
        return sorted(items, key=lambda item: (item.available_at, item.seq), reverse=True)

    def claimed(self, owner: str) -> list[InboxItem]:
        """What `owner` holds, newest first."""
        return self._select(_held_by(owner))

    def look_again(self, partition_hour: str, owner: str, now: datetime, lease: timedelta) -> list[InboxItem]:
        """Hold the partition's done recordings that nobody else looks at again, until `now + lease`; newest first.

        They stay done: what must be done anew for one is said by `reopen`.
        """
        which = sa.and_(
            _row.partition_hour == partition_hour, _row.state == State.DONE, sa.not_(_looked_at(now, but_by=owner))
        )
        look = insert(self.engine, second_look).on_conflict_do_update(
            index_elements=["recording_id"],
            set_={"owner": owner, "until": now + lease},
            # Where another's look was not known when the rows were read, it has come first.
            where=sa.or_(_look.until <= now, _look.owner == owner),
        )
        with self._writer.begin() as connection:
            # Locked, so that on Postgres none of them is opened again and claimed before the look is known.
            rows = sa.select(_row.recording_id).where(which).order_by(_row.recording_id).with_for_update()
            if ids := connection.scalars(rows).all():
                connection.execute(look, [{"recording_id": one, "owner": owner, "until": now + lease} for one in ids])
        mine = sa.exists().where(_look.recording_id == _row.recording_id, _look.owner == owner)
        return self._select(sa.and_(_row.partition_hour == partition_hour, _row.state == State.DONE, mine))

    def looks_of_others(self, partition_hour: str, owner: str, now: datetime) -> int:
        """The partition's recordings that another run than `owner` looks at again."""
        query = (
            sa.select(sa.func.count())
            .select_from(inbox_table)
            .where(_row.partition_hour == partition_hour, _row.state == State.DONE, _looked_at(now, but_by=owner))
        )
        with self.engine.connect() as connection:
            return connection.execute(query).scalar_one()

    def end_looks(self, owner: str) -> int:
        """End the second looks of `owner`; how many."""
        with self._writer.begin() as connection:
            return connection.execute(sa.delete(second_look).where(_look.owner == owner)).rowcount

    def extend(self, owner: str, now: datetime, lease: timedelta) -> int:
        """Keep everything that `owner` holds or looks at again until `now + lease`; how many rows it holds."""
        with self._writer.begin() as connection:
            connection.execute(sa.update(second_look).where(_look.owner == owner).values(until=now + lease))
            return _change(connection, _held_by(owner), due_at=now + lease, updated_at=now)

    def done(self, recording_ids: Sequence[str], owner: str, now: datetime) -> int:
        """Settle recordings; how many of them `owner` held."""
        mine = sa.and_(_held_by(owner), _row.recording_id.in_(recording_ids))
        return self._change(mine, state=State.DONE, due_at=None, reason=None, updated_at=now)

    def defer(
        self, recording_id: str, owner: str, due_at: datetime, reason: str, now: datetime, *, tried: bool = True
    ) -> bool:
        """Give a recording back until `due_at`; as if it had not been taken if it was not `tried`.

        `reason` is stored: it may hold nothing sensitive.
        """
        mine = sa.and_(_held_by(owner), _row.recording_id == recording_id)
        return bool(
            self._change(
                mine,
                state=State.DEFERRED,
                due_at=due_at,
                reason=reason,
                claimed_by=None,
                claimed_at=None,
                attempts=_row.attempts - (0 if tried else 1),
                updated_at=now,
            )
        )

    def listed(self, conversation: InboxItem, owner: str, reason: str, now: datetime) -> bool:
        """Settle a conversation; `reason`: what it has. One that was announced again since it was claimed is new."""
        mine = sa.and_(_held_by(owner), _row.recording_id == conversation.recording_id)
        unheard = sa.and_(mine, _row.duplicates == conversation.duplicates)
        if self._change(unheard, state=State.LISTED, due_at=None, reason=reason, updated_at=now):
            return True
        return bool(self._change(mine, updated_at=now, **_ANEW, due_at=now, attempts=0))

    def dead(self, recording_id: str, owner: str, reason: str, now: datetime) -> bool:
        """Set a recording aside for a person to look at. `reason` is stored: it may hold nothing sensitive."""
        mine = sa.and_(_held_by(owner), _row.recording_id == recording_id)
        return bool(self._change(mine, state=State.DEAD, due_at=None, reason=reason, updated_at=now))

    def release(self, owner: str, now: datetime) -> int:
        """Give back everything that `owner` holds, to be taken at once; how many rows that is."""
        return self._change(
            _held_by(owner), state=State.NEW, due_at=now, claimed_by=None, claimed_at=None, updated_at=now
        )

    def retry_dead(self, recording_ids: Sequence[str] | None, now: datetime) -> int:
        """Make dead recordings (all of them if None) new again with a full set of attempts; how many."""
        which = _row.state == State.DEAD
        if recording_ids is not None:
            which = sa.and_(which, _row.recording_id.in_(recording_ids))
        return self._change(
            which, state=State.NEW, due_at=now, claimed_by=None, claimed_at=None, attempts=0, updated_at=now
        )

    def reopen(self, recording_ids: Sequence[str], now: datetime) -> int:
        """Make done recordings new again (for another policy or engine); how many."""
        which = sa.and_(_row.state == State.DONE, _row.recording_id.in_(recording_ids))
        return self._change(
            which,
            state=State.NEW,
            due_at=now,
            claimed_by=None,
            claimed_at=None,
            attempts=0,
            reason=REOPENED,
            updated_at=now,
        )

    def counts(self) -> dict[State, int]:
        """Rows by state, states without rows included; canaries are none of them."""
        query = sa.select(_row.state, sa.func.count()).where(_row.source != CANARY).group_by(_row.state)
        with self.engine.connect() as connection:
            found = {state: count for state, count in connection.execute(query)}  # noqa: C416
        return {state: found.get(state, 0) for state in State}

    def counts_by_hour(self, first: str, last: str) -> dict[str, int]:
        """Rows of each partition from `first` to `last` that has some."""
        query = sa.select(_row.partition_hour, sa.func.count()).where(_row.partition_hour.between(first, last))
        with self.engine.connect() as connection:
            return dict(connection.execute(query.group_by(_row.partition_hour)).tuples().all())

    def get(self, recording_id: str) -> InboxItem | None:
        found = self._select(_row.recording_id == recording_id)
        return found[0] if found else None

    def known(self, recording_ids: Collection[str]) -> dict[str, list[InboxItem]]:
        """The rows of each of these, a conversation's own first and then its recordings'; none for unknown ids."""
        found: dict[str, list[InboxItem]] = {}
        for some in database.few(recording_ids):
            some_set = set(some)
            rows = self._select(sa.or_(_row.recording_id.in_(some), _row.conversation_id.in_(some)))
            for row in sorted(rows, key=lambda row: row.seq):
                for key in some_set & {row.recording_id, row.conversation_id or row.recording_id}:
                    found.setdefault(key, []).append(row)
        for key, its in found.items():
            its.sort(key=lambda row: row.recording_id != key)
        return found

    def list_again(self, conversation_ids: Sequence[str], now: datetime, attempts: int = 0) -> int:
        """Make listed conversations new again, as if tried `attempts` times; how many."""
        which = sa.and_(_row.state == State.LISTED, _row.recording_id.in_(conversation_ids))
        return self._change(which, **_ANEW, due_at=now, attempts=attempts, updated_at=now)

    def items(self, partition_hour: str) -> list[InboxItem]:
        """Every row of a partition, settled ones too, newest first."""
        return self._select(_row.partition_hour == partition_hour)

    def hours_changed(self, since: datetime) -> list[str]:
        """Partitions with rows that something happened to at or after `since`."""
        # Hidden from SQLite, which would otherwise read the whole index by hours to find the distinct ones.
        hour = sa.func.coalesce(_row.partition_hour, "")
        query = sa.select(hour).where(_row.updated_at >= since).distinct()
        with self.engine.connect() as connection:
            return sorted(connection.scalars(query), reverse=True)

    def dead_letters(self) -> list[InboxItem]:
        """What was given up on, newest first, without canaries."""
        return self._select(sa.and_(_row.state == State.DEAD, _row.source != CANARY))

    def _select(self, condition: sa.ColumnElement[bool]) -> list[InboxItem]:
        query = sa.select(inbox_table).where(condition).order_by(_row.available_at.desc(), _row.seq.desc())
        with self.engine.connect() as connection:
            return [_item(row) for row in connection.execute(query)]

    def _change(self, condition: sa.ColumnElement[bool], **values: Any) -> int:
        with self._writer.begin() as connection:
            return _change(connection, condition, **values)
