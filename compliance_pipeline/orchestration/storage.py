"""Dagster's storage in Postgres, with connections that stay open.

Dagster's own opens one for each statement, and a run has hundreds: most of what a run cost was Postgres starting
processes for them (docs/benchmarks.md).
"""

import os
from collections.abc import Mapping
from functools import cache
from time import monotonic
from typing import Any, Self

import sqlalchemy as sa
from dagster._core.storage.event_log import EventLogStorage
from dagster._core.storage.runs import RunStorage
from dagster._core.storage.schedules import ScheduleStorage
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage, PostgresRunStorage
from dagster_postgres.utils import pg_url_from_config

KEPT_OPEN, MOST_CONNECTIONS = 5, 60
"""Of a process."""
TRUSTED_S = 2.0
"""A connection that was used so lately is not asked first whether it still lives."""


@cache
def _engine(url: str) -> sa.Engine:
    """One for all of the process: a code server makes an instance for each tick."""
    engine = sa.create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
        pool_size=KEPT_OPEN,
        max_overflow=MOST_CONNECTIONS - KEPT_OPEN,
    )

    @sa.event.listens_for(engine, "checkin")
    def _used(_connection: Any, record: Any) -> None:
        record.info["used_at"] = monotonic()

    @sa.event.listens_for(engine, "checkout")
    def _ask(connection: Any, record: Any, _proxy: Any) -> None:
        if monotonic() - record.info.get("used_at", monotonic()) > TRUSTED_S:
            try:
                engine.dialect.do_ping(connection)
            except connection.Error as error:
                raise sa.exc.DisconnectionError from error  # SQLAlchemy takes a new one

    # A warm worker's connections stay the worker's.
    os.register_at_fork(after_in_child=lambda: engine.dispose(close=False))
    return engine


def keep_open(runs: RunStorage, events: EventLogStorage, schedules: ScheduleStorage) -> None:
    """Give storages in one Postgres the process's connections; any others are left as they are."""
    if not isinstance(runs, PostgresRunStorage):
        return
    for storage in (runs, events, schedules):
        storage._engine = _engine(runs.postgres_url)  # type: ignore[union-attr]
    # Asked for each time that a run is read, and answered by a reflection of the table.
    runs.has_run_stats_index_cols = cache(runs.has_run_stats_index_cols)  # type: ignore[method-assign]
    events.has_asset_key_col = cache(events.has_asset_key_col)  # type: ignore[attr-defined]


class PooledPostgresStorage(DagsterPostgresStorage):
    """Configured as `storage: postgres` is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        keep_open(self.run_storage, self.event_log_storage, self.schedule_storage)

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        return cls(
            inst_data=inst_data,
            postgres_url=pg_url_from_config(config_value),
            should_autocreate_tables=config_value.get("should_autocreate_tables", True),
        )
