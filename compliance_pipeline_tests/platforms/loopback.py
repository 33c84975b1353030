"""A real HTTP server on loopback that can misbehave on purpose, with the guide's endpoints on it. Test helper only."""

import json
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

CLIENT = ("compliance-service", "client-secret-canary-5e3a")
BASIC = "Basic " + b64encode(":".join(CLIENT).encode()).decode()


@dataclass
class Asked:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """`cut`: close the connection after so many bytes of the body. `drop`: close it without any answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    drop: bool = False


def ok(body: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json"})


def no(status: int, **headers: str) -> Reply:
    body = {"message": "canary-body 4111111111111111", "status": status, "contextId": CONTEXT_ID}
    return Reply(status, json.dumps(body).encode(), {key.replace("_", "-"): value for key, value in headers.items()})


CONTEXT_ID = "0f3c1a52-7c0e-4a51-9d57-0a1b2c3d4e5f"


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that closes a transfer it has refused is no news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Server:
    """Answers by `answer`, or by what was put in `next_up` for that method and path. Everything asked is in `asked`."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.next_up: dict[tuple[str, str], list[Reply | Callable[[Asked], Reply]]] = {}
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def _serve(self) -> None:
                url = urlsplit(self.path)
                asked = Asked(
                    self.command,
                    url.path,
                    {key: values[0] for key, values in parse_qs(url.query).items()},
                    {key.lower(): value for key, value in self.headers.items()},
                    self.rfile.read(int(self.headers.get("Content-Length") or 0)),
                    time.monotonic(),
                )
                with owner.lock:
                    owner.asked.append(asked)
                    queued = owner.next_up.get((asked.method, asked.path))
                    planned = queued.pop(0) if queued else owner.answer
                reply = planned if isinstance(planned, Reply) else planned(asked)
                if reply.drop:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for key, value in reply.headers.items():
                    self.send_header(key, value)
                if not {"Content-Length", "Transfer-Encoding"} & reply.headers.keys():
                    self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body[: reply.cut])
                self.close_connection = reply.cut is not None

            do_GET = do_POST = do_PUT = do_PATCH = _serve  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        self._http = _Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, asked: Asked) -> Reply:
        return no(404)

    def plan(self, method: str, path: str, *replies: Reply | Callable[[Asked], Reply]) -> None:
        self.next_up.setdefault((method, path), []).extend(replies)

    def calls(self, method: str, path: str) -> list[Asked]:
        return [asked for asked in self.asked if (asked.method, asked.path) == (method, path)]

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class GuideServer(Server):
    """The guide's endpoints, as strict about tokens as a platform is."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.token_life = 3600.0
        self.recordings: dict[str, dict[str, Any]] = {}
        self.stored: dict[str, list[dict[str, Any]]] = {"records": [], "callbacks": []}
        super().__init__()

    def answer(self, asked: Asked) -> Reply:
        if asked.path == "/oauth/token":
            return self._token(asked)
        if not self.tokens or asked.headers.get("authorization") != f"Bearer {self.tokens[-1]}":
            return no(401)
        kind = asked.path.rpartition("/")[2]
        if kind in self.stored:
            return self.store(asked, kind) if asked.method == "POST" else self._look_up(asked, kind)
        recording = self.recordings.get(kind)
        if recording is None:
            return no(404)
        if asked.method == "PATCH":
            recording["tags"] = asked.json["tags"]
        return ok(recording)

    def store(self, asked: Asked, kind: str) -> Reply:
        with self.lock:
            made = {"id": f"{kind}-{len(self.stored[kind]) + 1}", **asked.json}
            self.stored[kind].append(made)
        return ok(made, 201)

    def _look_up(self, asked: Asked, kind: str) -> Reply:
        holder = "record" if kind == "records" else "data"
        return ok({"entities": [one for one in self.stored[kind] if one[holder]["key"] == asked.query["key"]]})

    def _token(self, asked: Asked) -> Reply:
        if asked.headers.get("authorization") != BASIC or b"grant_type=client_credentials" not in asked.body:
            return no(401)
        time.sleep(0.05)
        with self.lock:
            self.tokens.append(f"token-canary-{len(self.tokens) + 1}")
            return ok({"access_token": self.tokens[-1], "expires_in": self.token_life, "token_type": "bearer"})
