"""The DuckDB warehouse: one guarded writer, keyed append-only tables, hourly marts. No business rules here."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from datetime import datetime
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock, Timeout

from compliance_pipeline.warehouse.tables import Row

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from compliance_pipeline.settings import Settings

LOCK_TIMEOUT_S = 60.0
POLL_S = 0.005
_SIGNS_OF_DAMAGE = ("not a valid DuckDB database file", "Could not read enough bytes", "Corrupt database file")
MARTS = ("latency_by_hour", "violations_by_hour")
_shared: "ContextVar[tuple[Warehouse, DuckDBPyConnection] | None]" = ContextVar("_shared", default=None)
KEYS = {
    "recordings": "recording_id",
    "media": "recording_id, engine_version",
    "findings": "recording_id, engine_version, finding_no",
    "screenings": "recording_id, engine_version",
    "verdicts": "recording_id, policy_version, engine_version",
    "stage_times": "recording_id, stage",
    "remediations": "recording_id, rule_id, action, revision",
}
"""Of the tables without an index: what there is one of in a partition hour. `insert_new` sees to it."""


class WarehouseError(Exception):
    """The warehouse can't be used; says which file, why, and what to do next."""


class WarehouseDamaged(WarehouseError):
    """DuckDB can't read its file."""


class WarehouseBusy(WarehouseError):
    """Another process held the warehouse for longer than the lock timeout."""


class WarehouseUnavailable(WarehouseBusy):
    """A served warehouse that can't be reached, or went away."""


@cache
def sql(name: str) -> str:
    return files(__package__).joinpath("sql", f"{name}.sql").read_text("utf-8")


def prepare(connection: "DuckDBPyConnection") -> None:
    """Bring the schema up to date; a file that has this one already is only asked (each run's process opens anew)."""
    import duckdb

    digest = sha256(sql("schema").encode()).hexdigest()
    try:
        known = connection.execute("SELECT digest FROM schema_digest").fetchall()
    except duckdb.CatalogException:
        known = []
    if known == [(digest,)]:
        return
    with duckdb.connect() as fresh:
        fresh.execute(sql("schema"))
        wanted, wanted_keys = _columns(fresh), _primary_keys(fresh)
    connection.begin()
    present = _columns(connection)
    for table in present.keys() & wanted.keys():
        for name in wanted[table].keys() - present[table].keys():
            # Rows of before hold nothing here: NOT NULL is for new files only.
            connection.execute(f'ALTER TABLE {table} ADD COLUMN "{name}" {wanted[table][name]}')
    # A key can't be changed: such a table is written anew.
    again = [
        table for table, key in _primary_keys(connection).items() if table in wanted and key != wanted_keys.get(table)
    ]
    for table in again:
        connection.execute(f"ALTER TABLE {table} RENAME TO {table}_before")
    connection.execute(sql("schema"))
    for table in again:
        # A column that was added to rows of before is empty in them.
        added = connection.execute(
            "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = $table AND NOT is_nullable "
            "AND (data_type = 'BOOLEAN' OR data_type LIKE '%[]')",
            {"table": table},
        ).fetchall()
        filled = [f'coalesce("{name}", {"false" if kind == "BOOLEAN" else "[]"}) AS "{name}"' for name, kind in added]
        but = f"REPLACE ({', '.join(filled)})" if filled else ""
        connection.execute(f"INSERT INTO {table} BY NAME SELECT * {but} FROM {table}_before")  # noqa: S608
        connection.execute(f"DROP TABLE {table}_before")
    if present and "changed_hours" not in present:
        # Of a file of before: each hour with a number of its own, so that they are published in parts.
        connection.execute(
            "INSERT INTO changed_hours SELECT partition_hour, row_number() OVER (ORDER BY partition_hour) "
            "FROM (SELECT partition_hour FROM recordings UNION SELECT partition_hour FROM verdicts "
            "UNION SELECT partition_hour FROM sweeps)"
        )
    connection.execute("DELETE FROM schema_digest")
    connection.execute("INSERT INTO schema_digest VALUES ($digest)", {"digest": digest})
    connection.commit()


def _columns(connection: "DuckDBPyConnection") -> dict[str, dict[str, str]]:
    """Table -> column -> type."""
    tables: dict[str, dict[str, str]] = {}
    for table, column, kind in connection.execute(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() "
        "JOIN duckdb_tables() USING (database_name, schema_name, table_name) WHERE NOT duckdb_tables.internal"
    ).fetchall():
        tables.setdefault(table, {})[column] = kind
    return tables


def _primary_keys(connection: "DuckDBPyConnection") -> dict[str, list[str]]:
    return dict(
        connection.execute(
            "SELECT table_name, constraint_column_names FROM duckdb_constraints() WHERE constraint_type = 'PRIMARY KEY'"
        ).fetchall()
    )


@contextmanager
def telling_damage(path: Path) -> Iterator[None]:
    """Raises WarehouseDamaged for what DuckDB says of a file that it can't read."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        if not any(sign in str(error) for sign in _SIGNS_OF_DAMAGE):
            raise
        raise WarehouseDamaged(
            f"The warehouse {path} is damaged: stop everything, restore your backup and remove the "
            "folder `snapshots` beside it; what came in since is fetched again by a backfill. Nothing was written."
        ) from None


def _commit(connection: "DuckDBPyConnection") -> None:
    connection.execute("SELECT 1")  # after a statement that failed a commit stores nothing, and only this says so
    connection.commit()


class Warehouse:
    """One DuckDB file.

    Every open, reads too, holds an OS lock from connect to close: DuckDB 2.0.0 reads its headers before it has its
    own lock, and lost acknowledged commits when several processes opened the same file.
    Methods raise WarehouseBusy after `lock_timeout_s` seconds.
    """

    gives_way = False
    """Whether each transaction is followed by a pause of twice its length: for work that can wait."""

    def __init__(self, path: Path, lock_timeout_s: float = LOCK_TIMEOUT_S) -> None:
        self.path = path
        self._lock_timeout_s = lock_timeout_s
        self._lock = FileLock(f"{path}.lock", timeout=lock_timeout_s)
        self._created = False

    def exists(self) -> bool:
        """Whether anything was ever stored; asking makes nothing."""
        return self.path.exists()

    @contextmanager
    def _connect(self, read_only: bool) -> Iterator["DuckDBPyConnection"]:
        began = monotonic()
        try:
            with self._locked() as deadline, self._open(read_only, deadline) as connection:
                began = monotonic()
                connection.execute("SET TimeZone = 'UTC'")
                yield connection
        finally:
            if self.gives_way:
                leave_to_others(2 * (monotonic() - began))

    @contextmanager
    def _locked(self) -> Iterator[float]:
        """Nobody else has the file; yields until when to wait for whoever does not know this lock."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        deadline = monotonic() + self._lock_timeout_s
        try:
            self._lock.acquire(poll_interval=POLL_S)
        except Timeout:
            raise self._busy() from None
        try:
            with telling_damage(self.path):
                yield deadline
        finally:
            self._lock.release()

    def _open(
        self, read_only: bool, deadline: float, here: "DuckDBPyConnection | None" = None
    ) -> "AbstractContextManager[DuckDBPyConnection]":
        import duckdb

        while True:
            try:
                return _attached(here, self.path, read_only) if here else duckdb.connect(self.path, read_only=read_only)
            except duckdb.IOException as error:
                # A notebook or a DuckDB shell knows DuckDB's own lock only.
                if "Could not set lock" not in str(error):
                    raise
            if monotonic() >= deadline:
                raise self._busy()
            sleep(0.1)

    def _busy(self) -> WarehouseBusy:
        return WarehouseBusy(
            f"The warehouse {self.path.name} was in use for over {self._lock_timeout_s:g} s. Close whatever else has "
            "it open (a notebook, a DuckDB shell) and run the step again; nothing was written."
        )

    @contextmanager
    def write(self) -> Iterator["DuckDBPyConnection"]:
        """One transaction; committed when the block ends, rolled back when it raises."""
        with self._connect(read_only=False) as connection:
            if not self._created:
                prepare(connection)
                self._created = True
            connection.begin()
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            _commit(connection)

    @contextmanager
    def read(self) -> Iterator["DuckDBPyConnection"]:
        if not self._created:
            # Not only where the file is missing: one of an earlier version lacks the newer tables.
            with self.write():
                pass
        with self._connect(read_only=True) as connection:
            yield connection

    @contextmanager
    def lent(self, here: "DuckDBPyConnection", read_only: bool = False) -> Iterator[None]:
        """One transaction, as by `write` or `read`, on the caller's own connection in memory, which is set to UTC; its
        temporary tables outlast it."""
        if not self._created:
            with self.write():
                pass
        with self._locked() as deadline, self._open(read_only, deadline, here):
            here.begin()
            try:
                yield
                _commit(here)
            except BaseException:
                here.rollback()
                raise

    def read_hours(self, _hours: Collection[datetime]) -> "AbstractContextManager[DuckDBPyConnection]":
        """To read nothing but these partition hours, with files of this machine beside them."""
        return self.read()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let `select` and `describe` in the block read one state, at the price of one open. Nothing may be written."""
        with self._reading() as connection:
            token = _shared.set((self, connection))
            try:
                yield
            finally:
                _shared.reset(token)

    @contextmanager
    def _reading(self) -> Iterator["DuckDBPyConnection"]:
        shared = _shared.get()
        if shared and shared[0] is self:
            yield shared[1]
        else:
            with self.read() as connection:
                yield connection

    def append(
        self,
        rows: Sequence[Row],
        *,
        instead_of: Sequence[tuple[str, str]] = (),
        then: tuple[str, Mapping[str, Any]] | None = None,
    ) -> int:
        """Add rows of any tables in one transaction; returns how many were new. A known key changes nothing.

        instead_of: (recording, engine version) that were screened anew: what was found of them before goes, and the
        clips of that. then: a statement about the rows and its parameters, in the same transaction.
        """
        if not rows:
            return 0
        by_table: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            by_table[row.table].append(asdict(row))
        hours = {hour for row in rows if (hour := getattr(row, "partition_hour", None))}
        added = 0
        with self.write() as connection:
            for table in ("findings", "screenings", "media", "evidence") if instead_of and hours else ():
                connection.execute(
                    f"DELETE FROM {table} USING (SELECT unnest($again, recursive := true)) AS again "  # noqa: S608
                    "WHERE partition_hour BETWEEN $first AND $last "
                    f"AND {table}.recording_id = again.recording_id AND {table}.engine_version = again.engine_version",
                    {
                        "again": [{"recording_id": one, "engine_version": engine} for one, engine in instead_of],
                        "first": min(hours),
                        "last": max(hours),
                    },
                )
            for table, values in by_table.items():
                given, parameters = "SELECT unnest($rows, recursive := true)", {"rows": values}
                if table in KEYS:
                    added += insert_new(connection, table, given, parameters, hours)
                else:
                    added += connection.execute(
                        f"INSERT INTO {table} BY NAME {given} ON CONFLICT DO NOTHING", parameters
                    ).fetchall()[0][0]
            if then:
                connection.execute(*then)
            note_change(connection, hours)
        return added

    def select(self, query: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The rows of a query, as dictionaries with aware UTC times."""
        with self._reading() as connection:
            result = connection.execute(query, parameters or {})
            names = [column[0] for column in result.description or ()]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def refresh_marts(self, hour: datetime, marts: Mapping[str, Mapping[str, Any]]) -> None:
        """Rebuild one hour of marts, each with its parameters; cost follows the rows of the hour."""
        with self.write() as connection:
            for mart, parameters in marts.items():
                if mart not in MARTS:
                    raise ValueError(f"no such mart: {mart}")
                connection.execute(f"DELETE FROM {mart} WHERE partition_hour = $hour", {"hour": hour})  # noqa: S608
                connection.execute(sql(mart), {"hour": hour, **parameters})
            note_change(connection, [hour])

    def changed_hours(self, since: int) -> tuple[dict[datetime, int], int]:
        """Hours in which something was stored after change number `since`, with their newest number, lowest first; and
        the newest number of all."""
        with self.read() as connection:
            [(newest,)] = connection.execute("SELECT coalesce(max(change_no), 0) FROM changed_hours").fetchall()
            rows = connection.execute(
                "SELECT partition_hour, change_no FROM changed_hours WHERE change_no > $since "
                "ORDER BY change_no, partition_hour",
                {"since": since},
            ).fetchall()
        return dict(rows), newest

    def describe(self, table: str, hour: datetime) -> "Described":
        with self._reading() as connection:
            columns = connection.execute(
                "SELECT column_name, data_type, comment FROM duckdb_columns() WHERE table_name = $table "
                "ORDER BY column_index",
                {"table": table},
            ).fetchall()
            (rows,) = connection.execute(
                f"SELECT count(*) FROM {table} WHERE partition_hour = $hour",  # noqa: S608
                {"hour": hour},
            ).fetchall()
        return Described(columns, rows[0])


def _attached(here: "DuckDBPyConnection", path: Path, read_only: bool) -> "AbstractContextManager[DuckDBPyConnection]":
    """Attached already, so that the caller sees what DuckDB says of the file; detached at the end."""
    quoted = str(path).replace("'", "''")
    here.execute(f"ATTACH '{quoted}' AS lent (READ_ONLY {read_only})")

    @contextmanager
    def until_the_end() -> Iterator["DuckDBPyConnection"]:
        try:
            here.execute("USE lent")
            yield here
        finally:
            try:
                here.execute("USE memory")
            finally:
                here.execute("DETACH lent")

    return until_the_end()


HELD_S = 0.2
"""For so long, about, does work that can wait hold the warehouse at a time: live runs need it too."""
LEAST_PAUSE_S = 4 * POLL_S
"""Whoever waits for the warehouse looks every POLL_S whether it is free."""


def leave_to_others(held_s: float, left_s: float = 0.0) -> None:
    """After it was held: others get it for as long. left_s: for so long it was left to them meanwhile."""
    sleep(max(held_s - left_s, LEAST_PAUSE_S))


def warehouse_of(settings: "Settings", lock_timeout_s: float = LOCK_TIMEOUT_S) -> Warehouse:
    if not settings.warehouse_url:
        return Warehouse(settings.warehouse_path, lock_timeout_s)
    from compliance_pipeline.warehouse.served import ServedWarehouse

    return ServedWarehouse(settings.warehouse_url, settings.warehouse_shared_secret, lock_timeout_s)


def insert_new(
    connection: "DuckDBPyConnection",
    table: str,
    query: str,
    parameters: Mapping[str, Any],
    hours: Collection[datetime],
) -> int:
    """Insert those rows of the query, all of these partition hours, whose key the table doesn't hold; how many.

    table: of KEYS. In the writer's transaction, so that nobody else adds the same key meanwhile.
    """
    return int(
        connection.execute(
            f"INSERT INTO {table} BY NAME SELECT DISTINCT ON ({KEYS[table]}) * FROM ({query}) "  # noqa: S608
            f"ANTI JOIN (SELECT {KEYS[table]} FROM {table} WHERE partition_hour BETWEEN $first AND $last) "
            f"USING ({KEYS[table]})",
            {**parameters, "first": min(hours), "last": max(hours)},
        ).fetchall()[0][0]
    )


def note_change(connection: "DuckDBPyConnection", hours: Collection[datetime]) -> None:
    """In the transaction of the change, so that whoever reads the number sees the change."""
    if hours:
        connection.execute(
            "INSERT INTO changed_hours "
            "SELECT unnest($hours), (SELECT coalesce(max(change_no), 0) + 1 FROM changed_hours) "
            "ON CONFLICT DO UPDATE SET change_no = excluded.change_no",
            {"hours": list(hours)},
        )


class Described(NamedTuple):
    """A table's columns as (name, type, comment), and its rows of one hour."""

    columns: list[tuple[str, str, str | None]]
    rows: int
