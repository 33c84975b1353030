"""Circuit breakers whose state lies in the operational database, so that sensor and runs see the same one.

Only storage and construction: pybreaker decides when to open and close. What it takes for a count of failures is ours:
it reaches `fail_max` when that many calls of the last minute failed and these are half of them or more.
"""

import atexit
import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pybreaker
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from compliance_pipeline import database
from compliance_pipeline.clock import utc_now
from compliance_pipeline.database import UtcTime, insert, metadata

FAIL_MAX = 5
FAIL_RATE = 0.5
WINDOW = timedelta(seconds=60)
RESET_S = 30.0
PROBES = 3
"""Calls that an open breaker lets through each time its `reset_timeout` is over."""
PROBING = timedelta(seconds=5)
"""Who comes while the probes are under way asks again after this."""
LATELY = timedelta(minutes=10)
"""What waits for a breaker tries within this: one that opened before and was not tried since has nobody who asks."""
FLUSH_EVERY_S = 1.0
KEEP_OPENINGS = timedelta(days=30)

_BUCKET = timedelta(seconds=5)
_CLOCK_SLACK = timedelta(seconds=5)
"""Times further ahead than this were written before the clock was set back, and hold nobody."""

_log = logging.getLogger(__name__)

breaker_table = sa.Table(
    "breaker",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("opened_at", UtcTime),
    sa.Column("since", UtcTime),
    sa.Column("probes", sa.Integer),
    sa.Column("probing_since", UtcTime),
)
window_table = sa.Table(
    "breaker_window",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("bucket", UtcTime, primary_key=True),
    sa.Column("successes", sa.Integer, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
)
opening_table = sa.Table(
    "breaker_opening",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("opened_at", UtcTime, primary_key=True),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("calls", sa.Integer, nullable=False),
    sa.Column("closed_at", UtcTime),
)
_breaker, _window, _opening = breaker_table.c, window_table.c, opening_table.c


class _Unwritten:
    """Successes of one breaker in this process that the database does not know yet."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.written_at = float("-inf")

    def forget_old(self) -> None:
        """What was left over since the last write is counted when it is written, so not after a quiet while."""
        with self.lock:
            if time.monotonic() - self.written_at > WINDOW.total_seconds():
                self.count = 0


_unwritten: dict[tuple[sa.URL, str], _Unwritten] = {}


@atexit.register
def _write_the_rest() -> None:
    for (url, name), unwritten in list(_unwritten.items()):
        unwritten.forget_old()
        if unwritten.count:
            with suppress(SQLAlchemyError):
                engine = database.connect(url.render_as_string(hide_password=False))
                _count(engine, name, unwritten, 0, utc_now())
                engine.dispose()


def _count(engine: sa.Engine, name: str, unwritten: _Unwritten, failures: int, now: datetime) -> None:
    """Write `failures` and the unwritten successes into the window; what left it is deleted."""
    with unwritten.lock:
        successes, unwritten.count = unwritten.count, 0
        unwritten.written_at = time.monotonic()
    bucket = now - (now - datetime.min.replace(tzinfo=UTC)) % _BUCKET
    row = insert(engine, window_table).values(name=name, bucket=bucket, successes=successes, failures=failures)
    added = {"successes": _window.successes + successes, "failures": _window.failures + failures}
    try:
        with engine.begin() as connection:
            connection.execute(row.on_conflict_do_update(index_elements=[_window.name, _window.bucket], set_=added))
            connection.execute(sa.delete(window_table).where(_window.name == name, _window.bucket <= now - 2 * WINDOW))
    except SQLAlchemyError:
        with unwritten.lock:
            unwritten.count += successes
        raise


def _counts(connection: sa.Connection, now: datetime) -> dict[str, tuple[int, int]]:
    """By breaker: failures and calls of the window that ends now, as far as they are written."""
    failures, calls = sa.func.sum(_window.failures), sa.func.sum(_window.failures + _window.successes)
    inside = _window.bucket.between(now - WINDOW, now + _CLOCK_SLACK)
    rows = connection.execute(sa.select(_window.name, failures, calls).where(inside).group_by(_window.name))
    return {name: (int(failed), int(called)) for name, failed, called in rows}


class SqlBreakerStorage(pybreaker.CircuitBreakerStorage, pybreaker.CircuitBreakerListener):
    """The state of the breaker `name`, and the listener that counts its successes and hands out its probes."""

    def __init__(self, engine: sa.Engine, name: str, fail_max: int, reset_timeout: float) -> None:
        super().__init__("sql")
        self._engine = engine
        self._name = name
        self._fail_max = fail_max
        self._reset = timedelta(seconds=reset_timeout)
        self._mine = _breaker.name == name
        self.telling = False
        if self._get(_breaker.name) is None:
            _unwritten.pop((engine.url, name), None)
            row = {"name": name, "state": pybreaker.STATE_CLOSED}
            with engine.begin() as connection:
                connection.execute(insert(engine, breaker_table).on_conflict_do_nothing().values(row))
        self._unwritten = _unwritten.setdefault((engine.url, name), _Unwritten())

    def _get(self, column: sa.Column[Any]) -> Any:
        with self._engine.connect() as connection:
            return connection.scalar(sa.select(column).where(self._mine))

    def _set(self, *where: sa.ColumnElement[bool], **values: Any) -> bool:
        with self._engine.begin() as connection:
            return connection.execute(sa.update(breaker_table).where(self._mine, *where).values(**values)).rowcount == 1

    @property
    def state(self) -> str:
        return str(self._get(_breaker.state))

    @state.setter
    def state(self, state: str) -> None:
        now = utc_now()
        if state == pybreaker.STATE_HALF_OPEN:
            self.begin_probing(now)
        if state == pybreaker.STATE_CLOSED:
            closed = sa.update(breaker_table).where(self._mine, _breaker.state != state).values(state=state, since=now)
            ended = sa.update(opening_table).where(_opening.name == self._name, _opening.closed_at.is_(None))
            with self._engine.begin() as connection:
                if connection.execute(closed).rowcount:
                    connection.execute(ended.values(closed_at=now))
                    connection.execute(sa.delete(window_table).where(_window.name == self._name))

    @property
    def counter(self) -> int:
        with self._engine.connect() as connection:
            failures, calls = _counts(connection, utc_now()).get(self._name, (0, 0))
        return failures if failures >= FAIL_RATE * calls else min(failures, self._fail_max - 1)

    def increment_counter(self) -> None:
        self._unwritten.forget_old()
        _count(self._engine, self._name, self._unwritten, 1, utc_now())

    def reset_counter(self) -> None:
        """A success takes no failure back; `success` counts it."""

    @property
    def success_counter(self) -> int:
        """One success closes it."""
        return 1

    def increment_success_counter(self) -> None: ...

    def reset_success_counter(self) -> None: ...

    @property
    def opened_at(self) -> datetime | None:
        opened: datetime | None = self._get(_breaker.opened_at)
        return opened if opened and opened <= utc_now() + _CLOCK_SLACK else None

    @opened_at.setter
    def opened_at(self, value: datetime) -> None:
        """Opens it. A probe that failed prolongs an opening; what fails late while it is open does not."""
        with database.writer(self._engine).begin() as connection:
            before = connection.scalar(sa.select(_breaker.state).where(self._mine).with_for_update())
            if before == pybreaker.STATE_OPEN:
                return
            values: dict[str, Any] = {"state": pybreaker.STATE_OPEN, "opened_at": value}
            if before == pybreaker.STATE_CLOSED:
                values["since"] = value
                failures, calls = _counts(connection, value).get(self._name, (0, 0))
                row = {"name": self._name, "opened_at": value, "failures": failures, "calls": calls}
                connection.execute(insert(self._engine, opening_table).on_conflict_do_nothing().values(row))
                connection.execute(sa.delete(opening_table).where(_opening.opened_at < value - KEEP_OPENINGS))
            connection.execute(sa.update(breaker_table).where(self._mine).values(**values))

    def before_call(self, cb: pybreaker.CircuitBreaker, func: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if cb._state.name == pybreaker.STATE_HALF_OPEN and not self.telling and not self.take_probe(utc_now()):
            raise pybreaker.CircuitBreakerError("the probes are under way")

    def success(self, _cb: pybreaker.CircuitBreaker) -> None:
        """In memory: a write waits for the disk."""
        self._unwritten.forget_old()
        with self._unwritten.lock:
            self._unwritten.count += 1
            due = time.monotonic() - self._unwritten.written_at >= FLUSH_EVERY_S
        if due:
            with suppress(SQLAlchemyError):  # kept for the next time; the call itself succeeded
                _count(self._engine, self._name, self._unwritten, 0, utc_now())

    def begin_probing(self, now: datetime) -> None:
        """Unless the probes failed meanwhile: then it is open anew, and not due."""
        opened = _breaker.opened_at
        due = sa.or_(opened.is_(None), opened <= now - self._reset, opened > now + _CLOCK_SLACK)
        half_open = {"state": pybreaker.STATE_HALF_OPEN, "probes": 0, "probing_since": now}
        self._set(_breaker.state == pybreaker.STATE_OPEN, due, **half_open)

    def take_probe(self, now: datetime) -> bool:
        """Whether the caller may be one of the PROBES. Probes that died are given out anew after `reset_timeout`."""
        since = _breaker.probing_since
        lapsed = sa.or_(since.is_(None), since <= now - self._reset, since > now + _CLOCK_SLACK)
        free = sa.or_(_breaker.probes < PROBES, lapsed)
        return self._set(
            _breaker.state == pybreaker.STATE_HALF_OPEN,
            free,
            probes=sa.case((lapsed, 1), else_=_breaker.probes + 1),
            probing_since=sa.case((lapsed, sa.literal(now, UtcTime)), else_=since),
        )

    def return_probe(self) -> None:
        self._set(_breaker.state == pybreaker.STATE_HALF_OPEN, _breaker.probes > 0, probes=_breaker.probes - 1)

    def held_until(self, now: datetime) -> datetime | None:
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(breaker_table).where(self._mine)).one()
        return _held_until(row, self._reset, now)


def _held_until(row: sa.Row[Any], reset: timedelta, now: datetime) -> datetime | None:
    if row.state == pybreaker.STATE_OPEN and row.opened_at:
        return row.opened_at + reset if now - reset < row.opened_at <= now + _CLOCK_SLACK else None
    if row.state == pybreaker.STATE_HALF_OPEN and row.probing_since and row.probes >= PROBES:
        lapse: datetime = row.probing_since + reset
        return min(lapse, now + PROBING) if now - reset < row.probing_since <= now + _CLOCK_SLACK else None
    return None


def circuit_breaker(
    engine: sa.Engine, name: str, fail_max: int = FAIL_MAX, reset_timeout: float = RESET_S
) -> pybreaker.CircuitBreaker:
    """A breaker shared by all that name it.

    Opens for `reset_timeout` seconds when `fail_max` calls of the last minute failed and these are half of the calls;
    then lets PROBES through: the first that succeeds closes it, a failure opens it again.
    A breaker object lets one call through at a time: give each thread its own, or use `admitted` and `tell`.
    """
    database.ensure(engine, breaker_table)
    storage = SqlBreakerStorage(engine, name, fail_max, reset_timeout)
    return pybreaker.CircuitBreaker(
        fail_max=fail_max, reset_timeout=reset_timeout, state_storage=storage, listeners=[storage], name=name
    )


def _storage_of(breaker: pybreaker.CircuitBreaker) -> SqlBreakerStorage:
    storage = breaker._state_storage
    assert isinstance(storage, SqlBreakerStorage)  # noqa: S101
    return storage


def held_until(breaker: pybreaker.CircuitBreaker, now: datetime) -> datetime | None:
    """Until when the breaker refuses calls; None if a call would pass.

    An open breaker closes only through a trial call: whoever waits for 'closed' before calling waits for ever.
    """
    return _storage_of(breaker).held_until(now)


def admitted(breaker: pybreaker.CircuitBreaker, now: datetime) -> datetime | None:
    """`held_until` for who will call if it is None, and `tell` the outcome: where probes are due, it takes one."""
    state = breaker.current_state
    if state == pybreaker.STATE_CLOSED:
        return None
    if until := held_until(breaker, now):
        return until
    if state == pybreaker.STATE_OPEN:
        _storage_of(breaker).begin_probing(now)
    return None if _storage_of(breaker).take_probe(now) else held_until(breaker, now)


class _Failed(Exception):
    """Tells a breaker that a call failed which it did not make itself."""


def tell(breaker: pybreaker.CircuitBreaker, *, failed: bool | None) -> None:
    """Let the breaker count the outcome of a call that `admitted` let through.

    failed: None if it ended before who is guarded had a say; a probe is then given back. The call is over: what can't
    be written is logged.
    """

    def outcome() -> None:
        if failed:
            raise _Failed

    storage = _storage_of(breaker)
    with breaker._lock:
        storage.telling = True
        try:
            if failed is None:
                storage.return_probe()
            else:
                breaker.call(outcome)
        except (pybreaker.CircuitBreakerError, _Failed):
            pass
        except SQLAlchemyError as error:
            _log.warning("circuit breaker %s: outcome not counted (%s)", breaker.name, type(error).__name__)
        finally:
            storage.telling = False


def failing(connection: sa.Connection, now: datetime) -> list[str]:
    """The breakers whose calls fail, by name: not closed, and LATELY opened or tried. Makes no table."""
    if not sa.inspect(connection).has_table(breaker_table.name):
        return []
    lately = now - LATELY, now + _CLOCK_SLACK
    tried = sa.or_(_breaker.opened_at.between(*lately), _breaker.probing_since.between(*lately))
    asked = sa.select(_breaker.name).where(_breaker.state != pybreaker.STATE_CLOSED, tried).order_by(_breaker.name)
    return list(connection.scalars(asked))


def is_failing(engine: sa.Engine, name: str, now: datetime) -> bool:
    with engine.connect() as connection:
        return name in failing(connection, now)


@dataclass(frozen=True, slots=True)
class BreakerState:
    """A breaker as people see it.

    state: 'closed', 'open' or 'half-open'. since: when it closed, or when it opened after having been closed; None if
    it never opened. failures, calls: of the last minute. probes: under way. held_until: None if a call would pass.
    """

    name: str
    state: str
    since: datetime | None
    failures: int
    calls: int
    probes: int
    held_until: datetime | None


def states(engine: sa.Engine, now: datetime) -> list[BreakerState]:
    """All breakers, by name."""
    database.ensure(engine, breaker_table)
    with engine.connect() as connection:
        rows = connection.execute(sa.select(breaker_table).order_by(_breaker.name)).all()
        counts = _counts(connection, now)
    return [
        BreakerState(
            row.name,
            row.state,
            row.since,
            *counts.get(row.name, (0, 0)),
            row.probes or 0 if row.state == pybreaker.STATE_HALF_OPEN else 0,
            _held_until(row, timedelta(seconds=RESET_S), now),
        )
        for row in rows
    ]


@dataclass(frozen=True, slots=True)
class Opening:
    """One outage as its breaker saw it. failures, calls: of the minute before. closed_at: None while it lasts."""

    name: str
    opened_at: datetime
    failures: int
    calls: int
    closed_at: datetime | None


def openings(engine: sa.Engine, since: datetime) -> list[Opening]:
    """Of all breakers, the oldest first; kept for 30 days."""
    database.ensure(engine, opening_table)
    asked = sa.select(opening_table).where(_opening.opened_at >= since).order_by(_opening.opened_at, _opening.name)
    with engine.connect() as connection:
        return [Opening(**row._mapping) for row in connection.execute(asked)]
