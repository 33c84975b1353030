"""Circuit breakers whose state lies in the operational database, so that sensor and runs see the same one.

Only storage and construction: pybreaker decides when to open and close.
"""

from datetime import datetime, timedelta
from typing import Any

import pybreaker
import sqlalchemy as sa

from compliance_pipeline import database
from compliance_pipeline.database import UtcTime, insert, metadata

breaker_table = sa.Table(
    "breaker",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("successes", sa.Integer, nullable=False),
    sa.Column("opened_at", UtcTime),
)
_breaker = breaker_table.c


class SqlBreakerStorage(pybreaker.CircuitBreakerStorage):
    """The state of the breaker `name`; `database.create` makes the table."""

    def __init__(self, engine: sa.Engine, name: str) -> None:
        super().__init__("sql")
        self._engine = engine
        self._name = name
        if self._get(_breaker.name) is None:
            row = {"name": name, "state": pybreaker.STATE_CLOSED, "failures": 0, "successes": 0}
            with engine.begin() as connection:
                connection.execute(insert(engine, breaker_table).on_conflict_do_nothing().values(row))

    def _get(self, column: sa.Column[Any]) -> Any:
        with self._engine.connect() as connection:
            return connection.scalar(sa.select(column).where(_breaker.name == self._name))

    def _set(self, **values: Any) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.update(breaker_table).where(_breaker.name == self._name).values(**values))

    @property
    def state(self) -> str:
        return str(self._get(_breaker.state))

    @state.setter
    def state(self, state: str) -> None:
        self._set(state=state)

    @property
    def counter(self) -> int:
        return int(self._get(_breaker.failures))

    def increment_counter(self) -> None:
        self._set(failures=_breaker.failures + 1)

    def reset_counter(self) -> None:
        # Each success resets it: a read is cheap, a write waits for the disk.
        if self.counter:
            self._set(failures=0)

    @property
    def success_counter(self) -> int:
        return int(self._get(_breaker.successes))

    def increment_success_counter(self) -> None:
        self._set(successes=_breaker.successes + 1)

    def reset_success_counter(self) -> None:
        self._set(successes=0)

    @property
    def opened_at(self) -> datetime | None:
        opened: datetime | None = self._get(_breaker.opened_at)
        return opened

    @opened_at.setter
    def opened_at(self, value: datetime) -> None:
        self._set(opened_at=value)


def circuit_breaker(
    engine: sa.Engine, name: str, fail_max: int = 5, reset_timeout: float = 30
) -> pybreaker.CircuitBreaker:
    """A breaker shared by all that name it: opens after `fail_max` failures in a row, for `reset_timeout` seconds.

    Once that time is over, whoever comes before the first outcome is known passes: probes amount to one per worker.
    A breaker object lets one call through at a time: give each thread its own, or tell it outcomes only.
    """
    database.ensure(engine, breaker_table)
    storage = SqlBreakerStorage(engine, name)
    return pybreaker.CircuitBreaker(fail_max=fail_max, reset_timeout=reset_timeout, state_storage=storage, name=name)


def held_until(breaker: pybreaker.CircuitBreaker, now: datetime) -> datetime | None:
    """Until when the breaker refuses calls; None if a call would pass.

    An open breaker closes only through a trial call: whoever waits for 'closed' before calling waits for ever.
    """
    if breaker.current_state != pybreaker.STATE_OPEN:
        return None
    opened_at: datetime | None = breaker._state_storage.opened_at
    if opened_at is None:
        return None
    until = opened_at + timedelta(seconds=breaker.reset_timeout)
    return until if until > now else None
