"""Dagster's storage in Postgres, with connections that stay open.

Dagster's own opens one for each statement, and a run has hundreds: Postgres, which starts a process for each, took more
CPU than all else that a run cost (docs/benchmarks.md).
"""

import os
import select
from collections.abc import Mapping
from functools import cache
from threading import Lock
from time import monotonic
from typing import Any, Self

import sqlalchemy as sa
from dagster._core.storage.event_log import EventLogStorage
from dagster._core.storage.runs import RunStorage
from dagster._core.storage.schedules import ScheduleStorage
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage, PostgresRunStorage
from dagster_postgres.utils import get_token_provider_from_config, pg_url_from_config

from compliance_pipeline.database import TO_POSTGRES

KEPT_OPEN, MOST_CONNECTIONS = 5, 60
"""Of a process."""
TRUSTED_S = 2.0
"""A connection that was used so lately is not asked first whether it still lives."""
_engines: dict[str, sa.Engine] = {}
_making = Lock()
_has_tables: set[str] = set()


def _engine(url: str) -> sa.Engine:
    """One for all of the process: a code server makes an instance for each tick."""
    with _making:
        if url not in _engines:
            _engines[url] = _made(url)
        return _engines[url]


def _made(url: str) -> sa.Engine:
    engine = sa.create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
        pool_size=KEPT_OPEN,
        max_overflow=MOST_CONNECTIONS - KEPT_OPEN,
        connect_args=TO_POSTGRES,
    )

    @sa.event.listens_for(engine, "checkin")
    def _used(_connection: Any, record: Any) -> None:
        record.info["used_at"] = monotonic()

    @sa.event.listens_for(engine, "checkout")
    def _ask(connection: Any, record: Any, _proxy: Any) -> None:
        # Nothing is said on one that lives and is idle: what can be read is its end.
        said = select.poll()
        said.register(connection.fileno(), select.POLLIN)
        if said.poll(0) or monotonic() - record.info.get("used_at", monotonic()) > TRUSTED_S:
            try:
                engine.dialect.do_ping(connection)
            except connection.Error as error:
                raise sa.exc.DisconnectionError from error  # SQLAlchemy takes a new one

    return engine


def _leave_to_parent() -> None:
    for engine in _engines.values():
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_leave_to_parent)


def keep_open(runs: RunStorage, events: EventLogStorage, schedules: ScheduleStorage) -> None:
    """Give storages in one Postgres the process's connections; any others are left as they are, as are those that sign
    in by tokens."""
    if not isinstance(runs, PostgresRunStorage) or runs._token_provider is not None:
        return
    for storage in (runs, events, schedules):
        storage._engine = _engine(runs.postgres_url)  # type: ignore[union-attr]
    # Asked for each time that a run is read, and answered by a reflection of the table.
    runs.has_run_stats_index_cols = cache(runs.has_run_stats_index_cols)  # type: ignore[method-assign]
    events.has_asset_key_col = cache(events.has_asset_key_col)  # type: ignore[attr-defined]


class PooledPostgresStorage(DagsterPostgresStorage):
    """Configured as `storage: postgres` is."""

    def __init__(self, postgres_url: str, should_autocreate_tables: bool = True, **others: Any) -> None:
        super().__init__(postgres_url, should_autocreate_tables and postgres_url not in _has_tables, **others)
        _has_tables.add(postgres_url)
        keep_open(self.run_storage, self.event_log_storage, self.schedule_storage)

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        return cls(
            inst_data=inst_data,
            postgres_url=pg_url_from_config(config_value),
            should_autocreate_tables=config_value.get("should_autocreate_tables", True),
            token_provider=get_token_provider_from_config(config_value),
        )
