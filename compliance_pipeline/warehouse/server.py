"""One process that holds the warehouse's file for many machines; served.py is what they use.

A session is a WebSocket and one transaction: writers take turns in the order in which they came, readers see the state
of when they began and wait for nobody. A session that ends without `commit` is rolled back, also when its client was
killed. Commits are on the disk before they are answered.
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
from typing import TYPE_CHECKING, Any, TypeVar

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
OPEN_S = 10.0
ROWS_AT_ONCE = 10_000
THREADS = 64
LEAST_SECRET = 32

log = logging.getLogger(__name__)
T = TypeVar("T")


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
        try:
            wait_s = float(websocket.query_params.get("wait", "60"))
            writes = {"write": True, "read": False}[websocket.query_params.get("mode", "")]
        except (ValueError, KeyError):
            await websocket.close(1008)
            return
        await websocket.accept()
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
                        await websocket.send_text(packed({"busy": True}))
                        return
                end = await self._transaction(websocket, writes)
        except (WebSocketDisconnect, RuntimeError):
            # Starlette says RuntimeError where it is sent to after the end.
            end = "lost"
        except TimeoutError:
            end = "idle"
        finally:
            self.sessions.labels(end).inc()
            with suppress(WebSocketDisconnect, RuntimeError):
                await websocket.close()

    async def _transaction(self, websocket: WebSocket, writes: bool) -> str:
        assert self.database is not None  # noqa: S101 - the lifespan opened it
        cursor = self.database.cursor()
        try:
            await asyncio.to_thread(cursor.execute, f"BEGIN TRANSACTION{'' if writes else ' READ ONLY'}")
            await websocket.send_text("{}")
            incoming = asyncio.ensure_future(websocket.receive())
            try:
                while True:
                    async with asyncio.timeout(self.idle_s):
                        message = await incoming
                    if message["type"] == "websocket.disconnect":
                        return "rolled_back" if writes else "read"
                    incoming = asyncio.ensure_future(websocket.receive())
                    asked = unpacked(message.get("text") or "{}")
                    if await self._carried_out(websocket, cursor, asked, incoming):
                        return "committed"
            finally:
                incoming.cancel()
        finally:
            await asyncio.to_thread(_ended, cursor)

    async def _carried_out(
        self, websocket: WebSocket, cursor: "DuckDBPyConnection", asked: dict[str, Any], incoming: "asyncio.Future[Any]"
    ) -> bool:
        """Whether that was the commit."""

        async def run(work: Callable[[], T]) -> T:
            """A client that goes away ends what it asked for."""
            working = asyncio.ensure_future(asyncio.to_thread(work))
            await asyncio.wait({working, incoming}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                cursor.interrupt()
            return await working

        import duckdb

        try:
            if asked.get("commit"):
                await run(cursor.commit)
                await websocket.send_text("{}")
                return True
            if "query" in asked:
                await run(lambda: cursor.execute(asked["query"], asked["parameters"]))
                await self._send_rows(websocket, cursor, run)
            elif "register" in asked:
                await run(lambda: cursor.register(asked["register"], frame_of(asked["columns"])))
                await websocket.send_text("{}")
            else:
                await run(lambda: cursor.unregister(asked["unregister"]))
                await websocket.send_text("{}")
        except duckdb.Error as error:
            kind = type(error).__name__
            await websocket.send_text(packed({"error": {"type": kind, "text": str(error)}}))
            if isinstance(error, duckdb.FatalException | duckdb.InternalException):
                log.error(line("failed", error=kind))  # noqa: TRY400 - its text may quote what is stored
                self.failed = True
                self.stop()
        except (WebSocketDisconnect, RuntimeError):
            raise
        except Exception as error:
            # Its text may quote what was sent.
            log.error(line("failed", error=type(error).__name__))  # noqa: TRY400
            await websocket.send_text(packed({"error": {"type": type(error).__name__}}))
        return False

    async def _send_rows(self, websocket: WebSocket, cursor: "DuckDBPyConnection", run: Callable[..., Any]) -> None:
        names = [(column[0], str(column[1])) for column in cursor.description or ()]
        more = True
        while more:
            rows = await run(lambda: cursor.fetchmany(ROWS_AT_ONCE)) if names else []
            more = len(rows) == ROWS_AT_ONCE
            text = await asyncio.to_thread(packed, {"names": names, "rows": rows, "more": more})
            await websocket.send_text(text)


def _ended(cursor: "DuckDBPyConnection") -> None:
    import duckdb

    with suppress(duckdb.Error):  # nothing to roll back after a commit
        cursor.rollback()
    cursor.close()


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
