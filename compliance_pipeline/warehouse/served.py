"""A warehouse that another process serves (`compliance warehouse serve`): the same methods, one session a transaction.

On the wire: a WebSocket a session, JSON in both directions; server.py is the other side.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import islice, product
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import urlencode, urlsplit, urlunsplit
from uuid import UUID

from compliance_pipeline.warehouse.warehouse import (
    LOCK_TIMEOUT_S,
    MARTS,
    Warehouse,
    WarehouseBusy,
    WarehouseError,
    WarehouseUnavailable,
    sql,
)

if TYPE_CHECKING:
    import pandas as pd
    from duckdb import DuckDBPyConnection
    from websockets.sync.client import ClientConnection

STATEMENT_S = 600.0
"""A statement that takes longer is given up, and its transaction with it."""
MAX_MESSAGE_BYTES = 64 * 2**20
CONNECT_S = 5.0
COPIED_AT_ONCE = 10_000
"""Rows of a table, of one hour."""
_TAG = "\N{DOUBLE DAGGER}"
_READ: dict[str, Callable[[str], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "seconds": lambda said: timedelta(microseconds=int(said)),
    "decimal": Decimal,
    "uuid": UUID,
    "bytes": b64decode,
}


def packed(value: Any) -> str:
    """JSON of parameters or rows. Raises TypeError for what has no form there."""
    return json.dumps(value, default=_tagged, separators=(",", ":"), ensure_ascii=False)


def unpacked(text: str | bytes) -> Any:
    return json.loads(text, object_hook=_untagged)


def _tagged(value: Any) -> Any:
    if isinstance(value, datetime):
        return {_TAG: "datetime", "": (value.astimezone(UTC) if value.tzinfo else value).isoformat()}
    if isinstance(value, date | time):
        return {_TAG: "date" if isinstance(value, date) else "time", "": value.isoformat()}
    if isinstance(value, timedelta):
        return {_TAG: "seconds", "": str(value // timedelta(microseconds=1))}
    if isinstance(value, Decimal | UUID):
        return {_TAG: type(value).__name__.lower(), "": str(value)}
    if isinstance(value, bytes | bytearray | memoryview):
        return {_TAG: "bytes", "": b64encode(value).decode()}
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return value.tolist()
    if isinstance(value, set | frozenset):
        return list(value)
    raise TypeError(f"{type(value).__name__} can't be sent to a served warehouse")


def _untagged(said: dict[str, Any]) -> Any:
    return _READ[said[_TAG]](said[""]) if _TAG in said else said


def columns_of(frame: "pd.DataFrame") -> list[tuple[str, str, list[Any]]]:
    """(name, dtype, values) of each column; missing values are None."""
    return [
        (str(name), str(column.dtype), column.astype(object).where(column.notna(), None).tolist())
        for name, column in frame.items()
    ]


def frame_of(columns: list[tuple[str, str, list[Any]]]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame({name: pd.Series(values, dtype=cast(Any, dtype)) for name, dtype, values in columns})


class Session:
    """What `write` and `read` yield: of a DuckDB connection the methods that the pipeline uses.

    Raises duckdb's own errors, and WarehouseUnavailable when the server is gone; then nothing was stored.
    """

    def __init__(self, socket: "ClientConnection") -> None:
        self._socket = socket
        self._rows: Iterator[tuple[Any, ...]] = iter(())
        self.description: list[tuple[str, str]] | None = None

    def execute(self, query: str, parameters: Mapping[str, Any] | None = None) -> Self:
        self._ask({"query": query, "parameters": parameters or {}})
        return self

    def fetchall(self) -> list[tuple[Any, ...]]:
        return list(self._rows)

    def fetchone(self) -> tuple[Any, ...] | None:
        return next(self._rows, None)

    def fetchmany(self, size: int = 1) -> list[tuple[Any, ...]]:
        return list(islice(self._rows, size))

    def df(self) -> "pd.DataFrame":
        """With the types that DuckDB gives a frame."""
        import duckdb

        names = [name for name, _ in self.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in self._rows]
        typed = [
            f"{f'row.{_quoted(name)}' if rows else 'NULL'}::{kind} AS {_quoted(name)}"
            for name, kind in self.description or ()
        ]
        with duckdb.connect(config={"autoinstall_known_extensions": False}) as here:
            here.execute("SET TimeZone = 'UTC'")
            query = f"SELECT {', '.join(typed)} FROM (SELECT unnest($rows) AS row) WHERE $rows <> []"  # noqa: S608
            return here.execute(query, {"rows": rows}).df()

    def register(self, name: str, frame: "pd.DataFrame") -> Self:
        self._ask({"register": name, "columns": columns_of(frame)})
        return self

    def unregister(self, name: str) -> Self:
        self._ask({"unregister": name})
        return self

    def commit(self) -> None:
        self._ask({"commit": True})

    def wait_until_ready(self, seconds: float) -> None:
        """Raises WarehouseBusy."""
        answer = self._answer(seconds + CONNECT_S)
        if answer.get("busy"):
            raise WarehouseBusy(
                f"The served warehouse was in use for over {seconds:g} s. Run the step again; nothing was written."
            )

    def _ask(self, message: Mapping[str, Any]) -> None:
        text = packed(message)
        if len(text.encode()) > MAX_MESSAGE_BYTES:
            raise WarehouseError(f"A statement to the served warehouse may have {MAX_MESSAGE_BYTES // 2**20} MiB")
        with _gone_told():
            self._socket.send(text)
        rows: list[tuple[Any, ...]] = []
        while True:
            answer = self._answer(STATEMENT_S)
            rows += map(tuple, answer.get("rows", ()))
            if not answer.get("more"):
                break
        self._rows = iter(rows)
        self.description = [(name, kind) for name, kind in answer.get("names", ())]

    def _answer(self, seconds: float) -> dict[str, Any]:
        import duckdb

        with _gone_told():
            answer: dict[str, Any] = unpacked(self._socket.recv(timeout=seconds))
        if error := answer.get("error"):
            known = getattr(duckdb, error["type"], None)
            if isinstance(known, type) and issubclass(known, duckdb.Error):
                raise known(error["text"])
            raise WarehouseError(f"The served warehouse failed ({error['type']}); its log says more")
        return answer


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def _gone_told() -> Iterator[None]:
    from websockets.exceptions import WebSocketException

    try:
        yield
    except (OSError, WebSocketException) as error:  # TimeoutError is an OSError
        raise WarehouseUnavailable(
            f"The served warehouse went away ({type(error).__name__}). Run the step again: what was stored is known by "
            "its key, and what was not is stored then."
        ) from None


class ServedWarehouse(Warehouse):
    """As a Warehouse of a file; readers don't wait for the writer. Methods raise WarehouseUnavailable (a
    WarehouseBusy) when the server can't be reached for `lock_timeout_s` seconds."""

    def __init__(self, url: str, secret: str, lock_timeout_s: float = LOCK_TIMEOUT_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise WarehouseError("COMPLIANCE_WAREHOUSE_URL must begin with http:// or https:// and a host")
        scheme = {"http": "ws", "https": "wss"}[parts.scheme]
        self._url = urlunsplit((scheme, parts.netloc, f"{parts.path.rstrip('/')}/session", "", ""))
        self._secret = secret
        self._lock_timeout_s = lock_timeout_s

    def exists(self) -> bool:
        return True

    @contextmanager
    def write(self) -> "Iterator[DuckDBPyConnection]":
        with self._session("write") as session:
            yield cast("DuckDBPyConnection", session)
            session.commit()

    @contextmanager
    def read(self) -> "Iterator[DuckDBPyConnection]":
        with self._session("read") as session:
            yield cast("DuckDBPyConnection", session)

    @contextmanager
    def read_hours(self, hours: Collection[datetime]) -> "Iterator[DuckDBPyConnection]":
        """A copy of these hours in this process: what is made of them costs the server nothing but reading."""
        import duckdb

        with duckdb.connect(config={"autoinstall_known_extensions": False}) as here:
            here.execute("SET TimeZone = 'UTC'")
            here.execute(sql("schema"))
            with self._session("read") as there:
                for table, hour in product(self._tables_by_hour(there), hours):
                    there.execute(f"FROM {table} WHERE partition_hour = $hour", {"hour": hour})
                    names = [name for name, _ in there.description or ()]
                    while part := there.fetchmany(COPIED_AT_ONCE):
                        # Depth 2: the list of rows, and a row's columns, but not a column that is a list.
                        here.execute(
                            f"INSERT INTO {table} BY NAME SELECT unnest($rows, max_depth := 2)",
                            {"rows": [dict(zip(names, row, strict=True)) for row in part]},
                        )
            yield here

    @staticmethod
    def _tables_by_hour(session: Session) -> list[str]:
        rows = session.execute(
            "SELECT table_name FROM duckdb_columns() "
            "JOIN duckdb_tables() USING (database_name, schema_name, table_name) "
            "WHERE column_name = 'partition_hour' ORDER BY ALL"
        ).fetchall()
        return [name for (name,) in rows if name not in (*MARTS, "changed_hours")]

    @contextmanager
    def _session(self, mode: str) -> Iterator[Session]:
        with ExitStack() as opened:
            session = Session(self._connected(opened, mode))
            session.wait_until_ready(self._lock_timeout_s)
            yield session

    def _connected(self, opened: ExitStack, mode: str) -> "ClientConnection":
        from websockets.exceptions import InvalidStatus, WebSocketException
        from websockets.sync.client import connect

        deadline = monotonic() + self._lock_timeout_s
        url = f"{self._url}?{urlencode({'mode': mode, 'wait': self._lock_timeout_s})}"
        while True:
            try:
                return opened.enter_context(
                    connect(
                        url,
                        additional_headers={"Authorization": f"Bearer {self._secret}"},
                        open_timeout=CONNECT_S,
                        compression=None,
                        max_size=None,
                        proxy=None,
                    )
                )
            except InvalidStatus as refusal:
                if refusal.response.status_code in (401, 403):
                    raise WarehouseError(
                        "The served warehouse refused the secret: COMPLIANCE_WAREHOUSE_SECRET must be the same here "
                        "and there"
                    ) from None
                if refusal.response.status_code < 500:
                    raise WarehouseError(
                        "COMPLIANCE_WAREHOUSE_URL is not that of `compliance warehouse serve`: it answered "
                        f"{refusal.response.status_code}"
                    ) from None
                reason = str(refusal.response.status_code)
            except (OSError, WebSocketException) as error:
                reason = type(error).__name__
            if monotonic() >= deadline:
                raise WarehouseUnavailable(
                    f"The served warehouse at {urlsplit(self._url).netloc.rpartition('@')[2]} could not be reached for "
                    f"{self._lock_timeout_s:g} s ({reason}). Start it (`compliance warehouse serve`), and run the step "
                    "again; nothing was written."
                )
            sleep(0.1)
