"""The operational database that all processes share (SQLite in WAL mode, or Postgres by URL): connections and types.

Its tables are defined by those who use them, in `metadata`; what is in them is theirs to say.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from filelock import FileLock
from sqlalchemy.dialects import postgresql, sqlite

metadata = sa.MetaData()
_made: WeakKeyDictionary[sa.Engine, set[sa.Table]] = WeakKeyDictionary()

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CREATE_LOCK = 0x636F6D706C  # any constant, the same in every process


class UtcTime(sa.TypeDecorator[datetime]):
    """Aware datetimes as whole microseconds since 1970: exact, and compared alike by both databases."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: sa.Dialect) -> int | None:
        return None if value is None else (value - _EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: int | None, _dialect: sa.Dialect) -> datetime | None:
        return None if value is None else _EPOCH + timedelta(microseconds=value)


def insert(engine: sa.Engine, table: sa.Table) -> Any:
    """An INSERT of the engine's dialect, which knows ON CONFLICT."""
    return sqlite.insert(table) if engine.dialect.name == "sqlite" else postgresql.insert(table)


def connect(url: str) -> sa.Engine:
    """The engine for `sqlite:///path` or `postgresql+psycopg://...`. Commits are durable when they return."""
    if sa.make_url(url).get_backend_name() != "sqlite":
        return sa.create_engine(url, hide_parameters=True, pool_pre_ping=True, connect_args={"connect_timeout": 5})
    engine = sa.create_engine(url, hide_parameters=True, connect_args={"timeout": 10})

    @sa.event.listens_for(engine, "connect")
    def _durable(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def writer(engine: sa.Engine) -> sa.Engine:
    """The same database, for transactions that read before they write: SQLite locks it from their first statement."""
    return engine.execution_options(writes=True)


def create(engine: sa.Engine) -> None:
    """Make the tables and columns that are missing. Safe to call often and from several processes at once."""
    if engine.dialect.name == "sqlite":
        path = Path(engine.url.database or "").resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"), writer(engine).begin() as connection:
            _create(connection)
    else:
        with engine.begin() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATE_LOCK)))
            _create(connection)


def ensure(engine: sa.Engine, table: sa.Table) -> None:
    """`create`, once an engine and table: for those who can't know whether their table was known at start."""
    made = _made.setdefault(engine, set())
    if table not in made:
        create(engine)
        made |= set(metadata.sorted_tables)


def _create(connection: sa.Connection) -> None:
    present = sa.inspect(connection)
    for table in metadata.sorted_tables:
        if not present.has_table(table.name):
            continue
        known = {column["name"] for column in present.get_columns(table.name)}
        for column in table.columns:
            if column.name not in known:
                kind = column.type.compile(connection.dialect)
                default = column.server_default
                suffix = f" DEFAULT {default.arg}" if isinstance(default, sa.DefaultClause) else ""
                connection.exec_driver_sql(f'ALTER TABLE "{table.name}" ADD COLUMN "{column.name}" {kind}{suffix}')
    metadata.create_all(connection)
    for table in metadata.sorted_tables:
        for index in table.indexes:
            index.create(connection, checkfirst=True)
