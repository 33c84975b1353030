"""A receiver for tests: a real HTTP server that answers as told and keeps what it got. Checks nothing by itself."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from compliance_pipeline.sandbox.delivery import INGEST_PATH, VERDICT_PATH


@dataclass
class Receiver:
    """statuses: answers to the next requests, 200 after them. got, verdicts: headers and body of each."""

    statuses: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    verdicts: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{INGEST_PATH}"

    async def take(self, request: Request) -> Response:
        kept = self.verdicts if request.url.path == VERDICT_PATH else self.got
        kept.append((dict(request.headers), await request.body()))
        return Response(status_code=self.statuses.pop(0) if self.statuses else 200)


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port where nobody listens and that nobody is given; who asks for it by number can listen there."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port: int = reserved.getsockname()[1]
        yield port


@contextmanager
def receiving(*statuses: int, port: int = 0) -> Iterator[Receiver]:
    receiver = Receiver(list(statuses))
    app = Starlette(routes=[Route(path, receiver.take, methods=["POST"]) for path in (INGEST_PATH, VERDICT_PATH)])
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)
    listener = config.bind_socket()
    receiver.port = listener.getsockname()[1]
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield receiver
    finally:
        server.should_exit = True
        thread.join(timeout=5)
