"""The budget of requests that all processes and machines share, kept in the operational database.

When to spend it, and on which requests, is the transport's to say.
"""

import time

import sqlalchemy as sa

from compliance_pipeline import database
from compliance_pipeline.database import insert, metadata
from compliance_pipeline.platforms.port import PlatformHeld

PATIENCE_S = 20.0
"""A longer wait is not sat out: the recording goes back to the inbox, and the process to other work."""
LONGEST_HOLD_S = 60.0
"""Limits are per minute, so no honest Retry-After is longer."""

_US = 1_000_000

pacing_table = sa.Table(
    "pacing",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("spent_until", sa.BigInteger, nullable=False),
    sa.Column("held_until", sa.BigInteger, nullable=False),
)
_pacing = pacing_table.c


class Budget:
    """At most `per_minute` requests in any minute among all who name the budget, `burst` of them at once.

    The generic cell rate algorithm (ITU-T I.371) on one row: who asks gets the next free slot and waits for it, so
    that nobody is passed by. (pyrate-limiter's buckets can't be pushed forward, as a Retry-After must.) Times are
    microseconds since 1970 by the clock of the database's machine.

    whole: the budget that this one is a share of: each slot is taken from both, a hold is the whole's.
    """

    def __init__(
        self,
        engine: sa.Engine,
        name: str,
        per_minute: int,
        burst: int | None = None,
        *,
        whole: "Budget | None" = None,
    ) -> None:
        burst = min(per_minute, burst or max(1, per_minute // 10))
        self._reader, self._engine = engine, database.writer(engine)
        self._whole = whole
        self._mine = _pacing.name == name[:128]
        self._slot = 60 * _US // (per_minute - burst + 1) + 1
        self._ahead = self._slot * (burst - 1)
        database.ensure(engine, pacing_table)
        row = {"name": name[:128], "spent_until": 0, "held_until": 0}
        with self._engine.begin() as connection:
            connection.execute(insert(engine, pacing_table).on_conflict_do_nothing().values(row))

    def take(self, deadline_s: float = PATIENCE_S) -> None:
        """Wait for a slot. Raises PlatformHeld, having taken none, where it is more than `deadline_s` away."""
        deadline = time.monotonic() + deadline_s
        wait_s = self._reserve(deadline_s)
        while wait_s > 0:
            time.sleep(wait_s)
            # The platform may have said 429 to somebody meanwhile: then this slot is no good.
            wait_s = self._reserve(max(deadline - time.monotonic(), 0.0)) if self._held() else 0.0
        if self._whole:
            self._whole.take(max(deadline - time.monotonic(), 0.0))

    def hold(self, for_s: float) -> None:
        """Nobody asks for so many seconds (at most a minute): the platform said so."""
        if self._whole:
            self._whole.hold(for_s)
            return
        with self._engine.begin() as connection:
            _, held_until, now = self._row(connection)
            until = now + int(min(for_s, LONGEST_HOLD_S) * _US)
            if until > held_until:
                connection.execute(sa.update(pacing_table).where(self._mine).values(held_until=until))

    def _reserve(self, within_s: float) -> float:
        with self._engine.begin() as connection:
            spent_until, held_until, now = self._row(connection)
            # After a hold the slots come one by one: a burst would meet the limit that has just been met.
            free = max(spent_until, now, held_until + self._ahead if held_until > now else 0)
            wait_s = max(free - self._ahead - now, 0) / _US
            if wait_s > within_s:
                wait_s = max(wait_s, 1.0)
                raise PlatformHeld(f"the budget of requests is spent, the next is free in {wait_s:.0f} s", wait_s)
            connection.execute(sa.update(pacing_table).where(self._mine).values(spent_until=free + self._slot))
        return wait_s

    def _held(self) -> bool:
        with self._reader.connect() as connection:
            _, held_until, now = self._row(connection, lock=False)
        return held_until > now

    def _row(self, connection: sa.Connection, *, lock: bool = True) -> tuple[int, int, int]:
        """spent_until, held_until, now; where locked, until the transaction ends."""
        if connection.dialect.name == "sqlite":
            clock: sa.ColumnElement[int] = sa.literal(time.time_ns() // 1000)
        else:
            clock = sa.cast(sa.extract("epoch", sa.func.clock_timestamp()) * _US, sa.BigInteger)
        asked = sa.select(_pacing.spent_until, _pacing.held_until, clock).where(self._mine)
        spent_until, held_until, now = connection.execute(asked.with_for_update() if lock else asked).one()
        return spent_until, held_until, now
