"""Stands in front of the sandbox in tests and holds every exchange with it against the contract.
What the contract says belongs to `conformance`; what the sandbox does, to the sandbox."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import jsonschema
import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from compliance_pipeline.sandbox import platform
from compliance_pipeline.sandbox.platform import PlatformState
from compliance_pipeline_tests.contract.conformance import Profile, UnknownOperation, check_exchange, template_of


class Recorder:
    """An ASGI application around another. `violations`: in words, without what was sent. `seen`: how often each
    operation was used, as (method, templated path, status); status None where the connection was dropped.
    `secrets`: the bearer tokens that went by, which no error may tell. `babble`: what the API answers to everything
    with 200, while it is set; nothing is checked then."""

    def __init__(self, app: ASGIApp, profile: Profile) -> None:
        self._app = app
        self._profile = profile
        self.url = ""
        self.violations: list[str] = []
        self.seen: Counter[tuple[str, str | None, int | None]] = Counter()
        self.secrets: set[str] = set()
        self.babble: bytes | None = None
        self.to_lose: set[tuple[str, str]] = set()

    def lose_next(self, method: str, path: str) -> None:
        """The next request to exactly that path is carried out, and its answer is lost with the connection."""
        self.to_lose.add((method, path))

    def check(self) -> None:
        """Raises AssertionError where an exchange was not by the contract."""
        assert not self.violations, "\n".join(dict.fromkeys(self.violations))
        assert not self.to_lose, f"never asked for, so its answer was not lost: {self.to_lose}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(("/api/", "/oauth/")):
            await self._app(scope, receive, send)
            return
        if self.babble is not None and scope["path"].startswith("/api/"):
            await Response(self.babble, media_type="application/json")(scope, receive, send)
            return
        asked = await _read(receive)
        if asked is None:
            return  # the client went away, in a test that kills it: what it would have said is not known
        lost = (scope["method"], scope["path"]) in self.to_lose
        self.to_lose.discard((scope["method"], scope["path"]))
        exchange = _Exchange(asked, receive, send, lost=lost, done=partial(self._note, scope))
        await self._app(scope, exchange.receive, exchange.send)
        exchange.finish()
        if lost:
            exchange.transport.abort()
            while (await receive())["type"] != "http.disconnect":
                pass

    def _note(self, scope: Scope, exchange: "_Exchange") -> None:
        method, path = scope["method"], scope["path"]
        template = template_of(self._profile, path)
        self.seen[method, template, exchange.status] += 1
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        if bearer := headers.get("authorization", "").removeprefix("Bearer "):
            self.secrets.add(bearer)
        try:
            check_exchange(
                self._profile,
                method,
                path,
                parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True),
                _parsed(exchange.asked, headers.get("content-type", "")),
                exchange.status,
                _parsed(bytes(exchange.answered), exchange.content_type),
            )
        except UnknownOperation as unknown:
            self.violations.append(str(unknown))
        except jsonschema.ValidationError as error:
            self.violations.append(f"{method} {template} {exchange.status}: {_said(error)}")


@contextmanager
def conforming_sandbox(state: PlatformState) -> Iterator[Recorder]:
    """The sandbox over real HTTP; the recorder's `url` is where. Fails when an exchange was not by the contract."""
    recorder = Recorder(platform.create_app(state), state.profile)
    config = uvicorn.Config(recorder, host="127.0.0.1", port=0, log_level="warning", access_log=False)
    listener = config.bind_socket()
    recorder.url = state.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the sandbox did not start"
            time.sleep(0.005)
        yield recorder
    finally:
        server.should_exit = True
        thread.join(timeout=5)
    recorder.check()


@contextmanager
def every_sandbox_conforms() -> Iterator[list[Recorder]]:
    """While it lasts, each sandbox that this process serves has a recorder before it: for tests that start it
    themselves. Fails as `conforming_sandbox` does."""
    recorders: list[Recorder] = []
    create = platform.create_app

    def recorded(state: PlatformState) -> Recorder:
        recorders.append(Recorder(create(state), state.profile))
        return recorders[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "create_app", recorded)
        yield recorders
    for recorder in recorders:
        recorder.check()


class _Exchange:
    """One request and its answer as they pass. `asked` has been read: an application that does not read the body
    (401) must not keep the request from being checked."""

    def __init__(
        self, asked: bytes, receive: Receive, send: Send, *, lost: bool, done: Callable[["_Exchange"], None]
    ) -> None:
        self.asked = asked
        self._lost = lost
        self._done: Callable[[_Exchange], None] | None = done
        self.status: int | None = None
        self.content_type = ""
        self.answered = bytearray()
        self._given = False
        self._receive = receive
        self._send = send

    @property
    def transport(self) -> Any:
        """The sandbox drops a connection through the object that `send` is a method of."""
        return self._send.__self__.transport  # type: ignore[attr-defined]

    async def receive(self) -> Message:
        if self._given:
            return await self._receive()
        self._given = True
        return {"type": "http.request", "body": self.asked, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.content_type = dict(message["headers"]).get(b"content-type", b"").decode("latin-1")
        elif message["type"] == "http.response.body":
            self.answered += message.get("body", b"")
            if not message.get("more_body"):
                self.finish()  # before the client has all of it: it may look at once
        if not self._lost:
            await self._send(message)

    def finish(self) -> None:
        """Once; for a connection that is dropped, after the application gave up."""
        done, self._done = self._done, None
        if done:
            done(self)


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None where the client ends the connection before that."""
    body = bytearray()
    while (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)
    return None


def _parsed(body: bytes, content_type: str) -> Any:
    """None for no body. What is neither a form nor JSON stays text, which no schema of ours allows."""
    if not body:
        return None
    if content_type.startswith("application/x-www-form-urlencoded"):
        return {key: values[-1] for key, values in parse_qs(body.decode(errors="replace")).items()}
    try:
        return json.loads(body)
    except ValueError:
        return "<not JSON>"


def _said(error: jsonschema.ValidationError) -> str:
    """What is wrong and where; of a value only its place, for it may be a token or a card number."""
    named = error.validator in ("required", "additionalProperties", "unevaluatedProperties")
    what = error.message if named else f"not by {error.validator} {error.validator_value!r}"
    return f"{error.json_path}: {what}"
