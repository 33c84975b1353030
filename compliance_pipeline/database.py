"""The operational database that all processes share (SQLite in WAL mode, or Postgres by URL): connections and types.

Its tables are defined by those who use them, in `metadata`; what is in them is theirs to say.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from filelock import FileLock
from sqlalchemy.dialects import postgresql, sqlite

metadata = sa.MetaData()
_made: WeakKeyDictionary[sa.Engine, set[sa.Table]] = WeakKeyDictionary()
_made_in_postgres: dict[sa.URL, set[sa.Table]] = {}
"""Known to a warm worker's children too: to compare all of them takes a third of a second."""
TO_POSTGRES = {
    "connect_timeout": 5,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""libpq's, so that a server that vanishes is noticed within a minute."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CREATE_LOCK = 0x636F6D706C  # any constant, the same in every process
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class DatabaseDamaged(sa.exc.SQLAlchemyError):
    """SQLite's file is damaged, cut off or gone. Says which file and what to do next; nothing of what is in it."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"{path} {what}: stop everything and restore your backup, or see what can be saved with "
            f"sqlite3 '{path}' .recover; nothing was written"
        )


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
        return sa.create_engine(url, hide_parameters=True, pool_pre_ping=True, connect_args=TO_POSTGRES)
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

    @sa.event.listens_for(engine, "handle_error")
    def _unusable(context: sa.engine.ExceptionContext) -> DatabaseDamaged | None:
        code = getattr(context.original_exception, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_READONLY, *_DAMAGED):
            # A connection stays read-only, or with the damaged file, when the file has long been mended or replaced;
            # and while one that is read-only is open, all that this process opens are.
            context.is_disconnect = True
            engine.dispose()
        return DatabaseDamaged(Path(engine.url.database or ""), "is damaged") if code in _DAMAGED else None

    return engine


def writer(engine: sa.Engine) -> sa.Engine:
    """The same database, for transactions that read before they write: SQLite locks it from their first statement."""
    return engine.execution_options(writes=True)


def create(engine: sa.Engine) -> None:
    """Make the tables and columns that are missing. Safe to call often and from several processes at once.

    Raises DatabaseDamaged where SQLite's file had tables once and has none now: it would be a new, empty one.
    """
    known = set(metadata.sorted_tables)  # before they are made: another thread may import more meanwhile
    if engine.dialect.name == "sqlite":
        path = Path(engine.url.database or "").resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock")
        with FileLock(lock):
            was_made = lock.stat().st_size > 0
            with writer(engine).begin() as connection:
                is_lost = was_made and not sa.inspect(connection).get_table_names()
                if not is_lost:
                    _create(connection)
            if is_lost:
                engine.dispose()  # as for what is damaged
                raise DatabaseDamaged(path, f"is gone or empty (to begin anew, remove {lock.name} too)")
            if not was_made:
                lock.write_text("made\n")
    elif not (_made_in_postgres.get(engine.url, set()) >= known and _are_there(engine, known)):
        with engine.begin() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATE_LOCK)))
            _create(connection)
        _made_in_postgres[engine.url] = known
    _made.setdefault(engine, set()).update(known)


def _are_there(engine: sa.Engine, tables: Iterable[sa.Table]) -> bool:
    """Whether Postgres has every column: a backup of before may have been restored."""
    columns = [(table.name, column.name) for table in tables for column in table.columns]
    query = sa.text(
        "SELECT count(*) FROM pg_attribute "
        "JOIN unnest(CAST(:tables AS text[]), CAST(:columns AS text[])) AS asked(t, c) "
        "ON attrelid = to_regclass(quote_ident(t)) AND attname = c WHERE NOT attisdropped"
    )
    with engine.connect() as connection:
        named = {"tables": [table for table, _ in columns], "columns": [column for _, column in columns]}
        return bool(connection.execute(query, named).scalar_one() == len(columns))


def ensure(engine: sa.Engine, table: sa.Table) -> None:
    """`create`, once an engine and table: for those who can't know whether their table was known at start."""
    if table not in _made.get(engine, ()):
        create(engine)


def _create(connection: sa.Connection) -> None:
    present = {name: found for (_, name), found in sa.inspect(connection).get_multi_columns().items()}
    for table in metadata.sorted_tables:
        if table.name not in present:
            continue
        known = {column["name"] for column in present[table.name]}
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


def few(ids: Iterable[str]) -> Iterator[list[str]]:
    """The ids in lists that are short enough for a statement's parameters."""
    ordered = sorted(set(ids))
    for first in range(0, len(ordered), 500):
        yield ordered[first : first + 500]
