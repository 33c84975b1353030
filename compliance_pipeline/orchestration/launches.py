"""Runs that wait for a warm worker, and which worker has them: a table of the operational database.

The queue between `WorkerRunLauncher` and `compliance worker`. No Dagster here: a run is an id.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa

from compliance_pipeline import database
from compliance_pipeline.database import UtcTime, insert, metadata

KEEP_FOR = timedelta(days=2)
"""How long an ended row is kept, to see who had the run."""


class Lane(StrEnum):
    """Live runs go before all others."""

    LIVE = "live"
    BACKGROUND = "background"


launch_table = sa.Table(
    "launch",
    metadata,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("queue", sa.String(16), nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("worker", sa.String(128)),
    sa.Column("beat_at", UtcTime),
    sa.Column("cancel_at", UtcTime),
    sa.Column("ended_at", UtcTime),
    sa.Index("launch_open", "ended_at", "worker"),
)
_row = launch_table.c
_WAITS = (_row.worker.is_(None), _row.ended_at.is_(None))


class Launches:
    """Methods raise SQLAlchemyError."""

    def __init__(self, url: str) -> None:
        self.engine = database.connect(url)
        self._writer = database.writer(self.engine)
        database.ensure(self.engine, launch_table)

    def close(self) -> None:
        self.engine.dispose()

    def before_fork(self) -> None:
        """No connection may be shared with a child. One to Postgres stays open here; SQLite's may not even be known."""
        if self.engine.dialect.name == "sqlite":
            self.engine.dispose()

    def in_child(self) -> None:
        self.engine.dispose(close=False)

    def put(self, run_id: str, lane: Lane, now: datetime) -> None:
        """Durable on return; a run that is there already is left as it is."""
        with self._writer.begin() as connection:
            statement = insert(self.engine, launch_table).on_conflict_do_nothing(index_elements=["run_id"])
            connection.execute(statement.values(run_id=run_id, queue=lane.value, at=now))

    def take(self, worker: str, now: datetime, lanes: Collection[Lane] = tuple(Lane)) -> tuple[str, Lane] | None:
        """The oldest run that waits, live ones first, for this worker alone."""
        oldest = (
            sa.select(_row.run_id)
            .where(*_WAITS, _row.queue.in_([lane.value for lane in lanes]))
            .order_by(_row.queue == Lane.BACKGROUND.value, _row.at)
            .limit(1)
        )
        with self.engine.connect() as connection:  # mostly none waits: asked without the database's write lock
            if connection.execute(oldest).first() is None:
                return None
        with self._writer.begin() as connection:
            found = connection.execute(
                sa.update(launch_table)
                .where(_row.run_id == oldest.with_for_update(skip_locked=True).scalar_subquery(), *_WAITS)
                .values(worker=worker, beat_at=now)
                .returning(_row.run_id, _row.queue)
            ).first()
        return (found.run_id, Lane(found.queue)) if found else None

    def beat(self, worker: str, now: datetime) -> dict[str, bool]:
        """Say that the worker lives; its runs, and whether each is to be cancelled."""
        mine = (_row.worker == worker, _row.ended_at.is_(None))
        with self._writer.begin() as connection:
            rows = connection.execute(
                sa.update(launch_table).where(*mine).values(beat_at=now).returning(_row.run_id, _row.cancel_at)
            )
            return {row.run_id: row.cancel_at is not None for row in rows}

    def end(self, run_id: str, now: datetime) -> None:
        """The run is nobody's any more: its process ended, or its worker is believed dead."""
        with self._writer.begin() as connection:
            connection.execute(
                sa.update(launch_table).where(_row.run_id == run_id, _row.ended_at.is_(None)).values(ended_at=now)
            )

    def cancel(self, run_id: str, now: datetime) -> bool:
        """Whether some worker has the run and will be told. One that waits only is taken away."""
        with self._writer.begin() as connection:
            of_run = (_row.run_id == run_id, _row.ended_at.is_(None))
            taken_away = connection.execute(
                sa.update(launch_table).where(*of_run, _row.worker.is_(None)).values(ended_at=now)
            )
            if taken_away.rowcount:
                return False
            told = connection.execute(sa.update(launch_table).where(*of_run).values(cancel_at=now))
            return bool(told.rowcount)

    def holder(self, run_id: str) -> tuple[str | None, datetime | None] | None:
        """(worker, its last beat) of a run that has not ended; None for any other."""
        with self.engine.connect() as connection:
            query = sa.select(_row.worker, _row.beat_at).where(_row.run_id == run_id, _row.ended_at.is_(None))
            found = connection.execute(query).first()
        return (found.worker, found.beat_at) if found else None

    def of_others(self, worker: str) -> dict[str, tuple[str, datetime | None]]:
        """Run -> (worker, its last beat), of the runs that other workers have."""
        with self.engine.connect() as connection:
            query = sa.select(_row.run_id, _row.worker, _row.beat_at).where(
                _row.worker.is_not(None), _row.worker != worker, _row.ended_at.is_(None)
            )
            return {run_id: (holder, beat) for run_id, holder, beat in connection.execute(query)}

    def put_back(self, run_id: str, worker: str, beat: datetime | None) -> bool:
        """Let a run wait again that `worker` took; False if it has beaten since."""
        mine = (_row.run_id == run_id, _row.worker == worker, _row.beat_at == beat, _row.ended_at.is_(None))
        with self._writer.begin() as connection:
            left = connection.execute(sa.update(launch_table).where(*mine).values(worker=None, beat_at=None))
        return bool(left.rowcount)

    def waiting(self) -> int:
        with self.engine.connect() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(launch_table).where(*_WAITS)).scalar_one()

    def forget(self, now: datetime) -> None:
        """Delete what ended KEEP_FOR ago."""
        with self._writer.begin() as connection:
            connection.execute(sa.delete(launch_table).where(_row.ended_at < now - KEEP_FOR))
