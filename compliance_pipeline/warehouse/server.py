"""One process that holds the warehouse's file for many machines; served.py is what they use.

A session is one transaction, and a WebSocket has one after another: writers take turns in the order in which they came,
readers see the state of their first statement and wait for nobody. A session that ends without `commit` is rolled back,
also when its client was killed. Commits are on the disk before they are answered.
"""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from hmac import compare_digest
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from prometheus_client import CollectorRegistry, Counter, Gauge
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from compliance_pipeline.asgi import bounded_connections, figures, healthz, line
from compliance_pipeline.warehouse.served import MAX_MESSAGE_BYTES, frame_of, packed, unpacked
from compliance_pipeline.warehouse.warehouse import WarehouseBusy, WarehouseError, prepare, telling_damage

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

IDLE_S = 30.0
"""A session that says nothing for so long is rolled back: nobody may hold the warehouse for ever."""
KEPT_S = 120.0
"""A socket without a session is closed, and one whose client doesn't answer pings: clients do only while they wait."""
OPEN_S = 10.0
ROWS_AT_ONCE = 10_000
THREADS = 64
LEAST_SECRET = 32

log = logging.getLogger(__name__)


class Unsafe(WarehouseError):
    """To be served like this, anybody could read and change the warehouse."""


def checked_secret(host: str, given: str | None, own: Callable[[], str]) -> str:
    """The secret to serve with: the given one, or on this machine alone `own()`. Raises Unsafe."""
    if given is not None and len(given) < LEAST_SECRET:
        raise Unsafe(f"COMPLIANCE_WAREHOUSE_SECRET must have at least {LEAST_SECRET} characters")
    if given is None and not _is_loopback(host):
        raise Unsafe(
            f"{host} can be reached from other machines: set COMPLIANCE_WAREHOUSE_SECRET, here and for those who use "
            "the warehouse, or serve on 127.0.0.1"
        )
    return given if given is not None else own()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Served:
    """The open file, and who writes to it."""

    def __init__(self, path: Path, secret: str, idle_s: float) -> None:
        self.path, self.secret, self.idle_s = path, secret, idle_s
        self.database: DuckDBPyConnection | None = None
        self._opened = ExitStack()
        self.writer = asyncio.Lock()
        self.stop: Callable[[], None] = lambda: signal.raise_signal(signal.SIGTERM)
        self.failed = False
        self.registry = CollectorRegistry()
        self.sessions = Counter(
            "warehouse_sessions", "Transactions by how they ended", ["end"], "compliance", registry=self.registry
        )
        self.waiting = Gauge(
            "warehouse_writers", "Sessions that write or wait for their turn", (), "compliance", registry=self.registry
        )

    def open(self) -> None:
        """Raises WarehouseBusy where another process has the file, WarehouseDamaged."""
        import duckdb

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            try:
                opened.enter_context(FileLock(f"{self.path}.lock", timeout=OPEN_S))
            except Timeout:
                raise WarehouseBusy(f"{self.path} is in use by another process; end that first") from None
            with telling_damage(self.path):
                database = opened.enter_context(duckdb.connect(self.path))
            database.execute("SET GLOBAL TimeZone = 'UTC'")
            prepare(database)
            # Whoever has the secret has this warehouse, and nothing else of this machine or process.
            database.execute("SET python_enable_replacements = false")
            database.execute("SET enable_external_access = false")
            database.execute("SET lock_configuration = true")
            self.database = database
            self._opened = opened.pop_all()

    def close(self) -> None:
        self.database = None
        self._opened.close()

    async def session(self, websocket: WebSocket) -> None:
        said = websocket.headers.get("authorization", "")
        if not compare_digest(said.encode(), f"Bearer {self.secret}".encode()):
            self.sessions.labels("refused").inc()
            await websocket.close(1008)
            return
        await websocket.accept()
        heard = _Heard(websocket)
        # Starlette says RuntimeError where it is sent to after the end.
        with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            try:
                while asked := await heard.next(KEPT_S):
                    match asked:
                        case {"begin": "read" | "write" as mode, "wait": int() | float() as wait_s}:
                            await self._counted(heard, mode == "write", wait_s)
                        case _:
                            break
            finally:
                heard.waiting.cancel()
                await websocket.close()

    async def _counted(self, heard: "_Heard", writes: bool, wait_s: float) -> None:
        end = "lost"
        try:
            async with AsyncExitStack() as held:
                if writes:
                    held.enter_context(self.waiting.track_inprogress())
                    try:
                        async with asyncio.timeout(wait_s):
                            await held.enter_async_context(self.writer)
                    except TimeoutError:
                        end = "busy"
                        await heard.websocket.send_text(packed({"busy": True}))
                        return
                end = await self._transaction(heard, writes)
        except TimeoutError:
            end = "idle"
            raise
        finally:
            self.sessions.labels(end).inc()

    async def _transaction(self, heard: "_Heard", writes: bool) -> str:
        """How it ended. Raises TimeoutError for a client that says nothing."""
        assert self.database is not None  # noqa: S101 - the lifespan opened it
        transaction = _Transaction(self.database.cursor(), writes)
        try:
            await heard.websocket.send_text("{}")
            while asked := await heard.next(self.idle_s):
                if asked.get("end"):
                    return "read"
                await self._carried_out(heard, transaction, asked)
                if transaction.committed:
                    return "committed"
            return "rolled_back" if writes else "read"
        finally:
            if not transaction.committed:
                await asyncio.to_thread(transaction.cursor.close)  # DuckDB rolls back what isn't committed

    async def _carried_out(self, heard: "_Heard", transaction: "_Transaction", asked: dict[str, Any]) -> None:
        import duckdb

        async def run(work: Callable[[], tuple[str, bool]]) -> bool:
            """Sends what it answers. A client that goes away ends what it asked for."""
            working = asyncio.get_running_loop().run_in_executor(None, work)
            both: set[asyncio.Future[Any]] = {working, heard.waiting}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                transaction.cursor.interrupt()
            text, more = await working
            await heard.websocket.send_text(text)
            return more

        try:
            more = await run(lambda: transaction.answer(asked))
            while more:
                more = await run(transaction.rows)
        except duckdb.Error as error:
            transaction.failed = True
            kind = type(error).__name__
            await heard.websocket.send_text(packed({"error": {"type": kind, "text": str(error)}}))
            if isinstance(error, duckdb.FatalException | duckdb.InternalException):
                log.error(line("failed", error=kind))  # noqa: TRY400 - its text may quote what is stored
                self.failed = True
                self.stop()
        except (WebSocketDisconnect, RuntimeError):
            raise
        except Exception as error:
            # Its text may quote what was sent.
            log.error(line("failed", error=type(error).__name__))  # noqa: TRY400
            await heard.websocket.send_text(packed({"error": {"type": type(error).__name__}}))


class _Heard:
    """What a client says, with always one message awaited, so that it is known at any time whether it went away."""

    def __init__(self, websocket: WebSocket) -> None:
        self.websocket = websocket
        self.waiting = asyncio.ensure_future(websocket.receive())

    async def next(self, seconds: float) -> dict[str, Any] | None:
        """None from a client that went away. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            message = await self.waiting
        if message["type"] == "websocket.disconnect":
            return None
        self.waiting = asyncio.ensure_future(self.websocket.receive())
        asked: dict[str, Any] = unpacked(message.get("text") or "{}")
        return asked


class _Transaction:
    """What is done in threads, one thing at a time."""

    def __init__(self, cursor: "DuckDBPyConnection", writes: bool) -> None:
        self.cursor = cursor
        self._mode = "" if writes else " READ ONLY"
        self._begun = self.failed = self.committed = False

    def answer(self, asked: dict[str, Any]) -> tuple[str, bool]:
        """What to send, and whether there are more rows. Raises duckdb.Error."""
        if not self._begun:
            # With the first statement, which is where DuckDB takes its view of the data anyway.
            self.cursor.execute(f"BEGIN TRANSACTION{self._mode}")
            self._begun = True
        if asked.get("commit"):
            if self.failed:
                # A statement that failed may have aborted the transaction: this raises then, and a commit does not.
                self.cursor.execute("SELECT 1")
            self.cursor.commit()
            self.cursor.close()
            self.committed = True
        elif "query" in asked:
            self.cursor.execute(asked["query"], asked["parameters"])
            return self.rows()
        elif "register" in asked:
            self.cursor.register(asked["register"], frame_of(asked["columns"]))
        else:
            self.cursor.unregister(asked["unregister"])
        return "{}", False

    def rows(self) -> tuple[str, bool]:
        names = [(column[0], str(column[1])) for column in self.cursor.description or ()]
        rows = self.cursor.fetchmany(ROWS_AT_ONCE) if names else []
        more = len(rows) == ROWS_AT_ONCE
        return packed({"names": names, "rows": rows, "more": more}), more


def create_app(served: Served) -> Starlette:
    """Of what is open; closes it at the end."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        # A reader that takes long takes a thread for as long; the default is six on two cores.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        try:
            yield
        finally:
            served.close()

    async def readyz(_request: Request) -> Response:
        ready = served.database is not None and not served.failed
        return JSONResponse({"status": "ready" if ready else "not open"}, 200 if ready else 503)

    async def metrics(_request: Request) -> Response:
        return figures(served.registry)

    return Starlette(
        routes=[
            WebSocketRoute("/session", served.session),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
        ],
        lifespan=lifespan,
    )


def _protocol() -> type[asyncio.Protocol]:
    class Upgrading(bounded_connections()):  # type: ignore[misc]
        def handle_websocket_upgrade(self) -> None:
            self.unfinished.pop(self, None)
            if self._deadline:
                self._deadline.cancel()
            super().handle_websocket_upgrade()

        def on_message_complete(self) -> None:
            if not (self.parser.should_upgrade() and self._should_upgrade()):
                super().on_message_complete()

    return Upgrading


def serve(path: Path, host: str, port: int, secret: str) -> bool:
    """Until SIGTERM or SIGINT, or until DuckDB fails for good; whether it ended well.

    Raises WarehouseBusy where another process has the file, WarehouseDamaged.
    """
    import uvicorn

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # At INFO it says two lines a transaction.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    served = Served(path, secret, IDLE_S)
    config = uvicorn.Config(
        create_app(served),
        host=host,
        port=port,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        http=_protocol(),
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        ws_ping_timeout=KEPT_S,
        timeout_graceful_shutdown=10,
        limit_concurrency=1024,
        lifespan="on",
    )
    server = uvicorn.Server(config)
    served.stop = lambda: setattr(server, "should_exit", True)
    served.open()
    try:
        server.run()
    finally:
        served.close()
    return server.started and not served.failed
