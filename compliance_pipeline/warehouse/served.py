"""A warehouse that another process serves (`compliance warehouse serve`): the same methods, one session a transaction.

On the wire: a WebSocket, JSON in both directions; server.py is the other side. A socket has one session after another:
`{"begin": "read" or "write", "wait": seconds}` is answered `{}` when its turn has come, or `{"busy": true}`; each
statement is answered; `{"commit": true}` ends a session and is answered, `{"end": true}` ends one that only read and is
not. A socket that closes within a session rolls it back.
"""

import json
import os
import socket
import ssl
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import islice, product
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID
from weakref import WeakSet, finalize

from compliance_pipeline.warehouse.warehouse import (
    LOCK_TIMEOUT_S,
    MARTS,
    Warehouse,
    WarehouseBusy,
    WarehouseError,
    WarehouseUnavailable,
    leave_to_others,
    sql,
)

if TYPE_CHECKING:
    import pandas as pd
    from duckdb import DuckDBPyConnection

STATEMENT_S = 600.0
"""A statement that takes longer is given up, and its transaction with it."""
MAX_MESSAGE_BYTES = 64 * 2**20
CONNECT_S = 5.0
"""To connect; and for the first sign of life when a session begins."""
SILENT_S = 60.0
"""The server pings every 20 s while it works."""
RECEIVED_AT_ONCE = 2**18
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
    kind = said.get(_TAG)
    return _READ[kind](said[""]) if isinstance(kind, str) and kind in _READ and "" in said else said


def columns_of(frame: "pd.DataFrame") -> list[tuple[str, str, list[Any]]]:
    """(name, dtype, values) of each column; missing values are None."""
    return [
        (str(name), str(column.dtype), column.astype(object).where(column.notna(), None).tolist())
        for name, column in frame.items()
    ]


def frame_of(columns: list[tuple[str, str, list[Any]]]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame({name: pd.Series(values, dtype=cast(Any, dtype)) for name, dtype, values in columns})


class Socket:
    """A WebSocket without a thread: to keep one costs nothing, and a forked child has nothing of it.

    Methods raise OSError and WebSocketException; then it is of no more use.
    """

    def __init__(self, url: str, secret: str) -> None:
        from websockets.client import ClientProtocol
        from websockets.uri import parse_uri

        uri = parse_uri(url)
        self._protocol = ClientProtocol(uri, max_size=None)
        self._parts: list[bytes] = []
        self._messages: deque[bytes] = deque()
        self._ponged = False
        self._socket = socket.create_connection((uri.host, uri.port), CONNECT_S)
        _living.add(self)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if uri.secure:
                self._socket = ssl.create_default_context().wrap_socket(self._socket, server_hostname=uri.host)
            request = self._protocol.connect()
            request.headers["Authorization"] = f"Bearer {secret}"
            self._protocol.send_request(request)
            self._flush()
            deadline = monotonic() + CONNECT_S
            while not self._protocol.handshake_exc and not self.is_open:
                self._hear(deadline - monotonic())
            if self._protocol.handshake_exc:
                raise self._protocol.handshake_exc  # noqa: TRY301 - closed like all else
        except BaseException:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        from websockets.protocol import State

        return self._protocol.state is State.OPEN

    def send(self, text: str) -> None:
        self._protocol.send_text(text.encode())
        self._flush()

    def begin(self, text: str, wait_s: float) -> dict[str, Any]:
        """The answer, which may take `wait_s`; a server that lives answers the ping at once."""
        self._ponged = False
        self._protocol.send_ping(b"")
        self.send(text)
        deadline = monotonic() + CONNECT_S
        while not self._ponged and self.is_open:
            self._hear(deadline - monotonic())
        answer: dict[str, Any] = unpacked(self.receive(wait_s + CONNECT_S))
        return answer

    def receive(self, seconds: float) -> bytes:
        deadline = monotonic() + seconds
        while not self._messages:
            if not self.is_open:
                raise ConnectionResetError
            self._hear(min(deadline - monotonic(), SILENT_S))
        return self._messages.popleft()

    def close(self) -> None:
        """Here only: in a forked child its parent may go on with it."""
        self._socket.close()

    def hang_up(self) -> None:
        """The server notices, whoever else has the file descriptor."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _hear(self, seconds: float) -> None:
        from websockets.frames import DATA_OPCODES, Frame, Opcode

        if seconds <= 0:
            raise TimeoutError
        self._socket.settimeout(seconds)
        if data := self._socket.recv(RECEIVED_AT_ONCE):
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                continue
            self._ponged |= event.opcode is Opcode.PONG
            if event.opcode in DATA_OPCODES:
                self._parts.append(bytes(event.data))
                if event.fin:
                    self._messages.append(b"".join(self._parts))
                    self._parts.clear()
        with suppress(OSError):  # what came before the end counts
            self._flush()

    def _flush(self) -> None:
        if data := b"".join(self._protocol.data_to_send()):
            self._socket.settimeout(STATEMENT_S)
            self._socket.sendall(data)


_living: "WeakSet[Socket]" = WeakSet()


def _close_inherited() -> None:
    """Of the parent of this process; nothing is said on them."""
    for one in _living:
        one.close()


os.register_at_fork(after_in_child=_close_inherited)


def _hang_up_all(kept: "deque[Socket]") -> None:
    with suppress(IndexError):
        while True:
            kept.pop().hang_up()


class Session:
    """What `write` and `read` yield: of a DuckDB connection the methods that the pipeline uses.

    Raises duckdb's own errors, and WarehouseUnavailable when the server is gone; then nothing was stored.
    """

    def __init__(self, of: Socket) -> None:
        self._socket: Socket | None = of
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

    def ended(self) -> None:
        """Its socket is another's now."""
        self._socket = None

    def _ask(self, message: Mapping[str, Any]) -> None:
        if not self._socket:
            raise WarehouseError("This transaction of the served warehouse has ended")
        text = packed(message)
        if len(text.encode()) > MAX_MESSAGE_BYTES:
            raise WarehouseError(f"A statement to the served warehouse may have {MAX_MESSAGE_BYTES // 2**20} MiB")
        rows: list[tuple[Any, ...]] = []
        with _gone_told(self._socket):
            self._socket.send(text)
            while True:
                answer = unpacked(self._socket.receive(STATEMENT_S))
                rows += map(tuple, answer.get("rows", ()))
                if not answer.get("more"):
                    break
        if error := answer.get("error"):
            raise _error_of(error)
        self._rows = iter(rows)
        self.description = [(name, kind) for name, kind in answer.get("names", ())]


def _error_of(said: Mapping[str, str]) -> Exception:
    import duckdb

    known = getattr(duckdb, said["type"], None)
    if isinstance(known, type) and issubclass(known, duckdb.Error):
        return known(said["text"])
    return WarehouseError(f"The served warehouse failed ({said['type']}); its log says more")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def _gone_told(of: Socket) -> Iterator[None]:
    """Hangs up where it is left in the middle: an answer may still come, to nobody."""
    from websockets.exceptions import WebSocketException

    try:
        yield
    except (OSError, WebSocketException) as error:  # TimeoutError is an OSError
        of.hang_up()
        raise WarehouseUnavailable(
            f"The served warehouse went away ({type(error).__name__}). Run the step again: what was stored is known by "
            "its key, and what was not is stored then."
        ) from None
    except BaseException:
        of.hang_up()
        raise


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
        self._kept: deque[Socket] = deque()
        finalize(self, _hang_up_all, self._kept)

    def exists(self) -> bool:
        return True

    @contextmanager
    def write(self) -> "Iterator[DuckDBPyConnection]":
        with self._session("write") as session:
            began = monotonic()
            yield cast("DuckDBPyConnection", session)
            session.commit()
        if self.gives_way:
            leave_to_others(2 * (monotonic() - began))

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
        one = self._begun(mode)
        session = Session(one)
        try:
            yield session
        except BaseException:
            one.hang_up()
            raise
        finally:
            session.ended()
        if mode == "read":
            try:
                with _gone_told(one):
                    one.send('{"end":true}')
            except WarehouseUnavailable:  # all that was asked was answered
                return
        self._kept.append(one)

    def _begun(self, mode: str) -> Socket:
        """A socket on which a session began. What fails before is tried again: nothing was asked yet."""
        from websockets.exceptions import InvalidStatus, WebSocketException

        deadline = monotonic() + self._lock_timeout_s
        while True:
            kept = self._kept_socket()
            try:
                return self._begin(kept or Socket(self._url, self._secret), mode, deadline)
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
                if kept:
                    _hang_up_all(self._kept)  # they are older
                    continue
                reason = type(error).__name__
            if monotonic() >= deadline:
                raise WarehouseUnavailable(
                    f"The served warehouse at {urlsplit(self._url).netloc.rpartition('@')[2]} could not be reached for "
                    f"{self._lock_timeout_s:g} s ({reason}). Start it (`compliance warehouse serve`), and run the step "
                    "again; nothing was written."
                )
            sleep(0.1)

    def _kept_socket(self) -> Socket | None:
        with suppress(IndexError):
            return self._kept.pop()
        return None

    def _begin(self, one: Socket, mode: str, deadline: float) -> Socket:
        wait_s = max(deadline - monotonic(), 0.0)
        try:
            answer = one.begin(packed({"begin": mode, "wait": wait_s}), wait_s)
        except BaseException:
            one.hang_up()
            raise
        if answer.get("busy"):
            self._kept.append(one)
            raise WarehouseBusy(
                f"The served warehouse was in use for over {self._lock_timeout_s:g} s. Run the step again; nothing was "
                "written."
            )
        return one
