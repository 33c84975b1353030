"""HTTP to a platform: token, retries, pacing, breakers, limits, error wording, media. The only place that retries HTTP.

What a path or a body means belongs to the adapters, not here.
"""

import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import httpx
from httpx_retries import Retry, RetryTransport
from pydantic import BaseModel, Field, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from compliance_pipeline.platforms.addresses import AddressRules, CheckedTransport, is_loopback, trusted
from compliance_pipeline.platforms.pacing import PATIENCE_S, Budget
from compliance_pipeline.platforms.port import PlatformError, PlatformHeld, Refused, TransferBroken, Unavailable

if TYPE_CHECKING:
    import pybreaker

JSON_LIMIT_BYTES = 16 * 2**20
"""Recordings of chats carry their whole transcript."""
JSON_DEADLINE_S = 60.0
MEDIA_LIMIT_BYTES = 2 * 1024**3
MEDIA_DEADLINE_S = 900.0
"""2 GiB take 860 s at 20 Mbit/s."""
TIMEOUT = httpx.Timeout(30.0, connect=5.0)

TRIES = 5
LONGEST_WAIT_S = 60.0
"""All waits of one request together; the platform's limits are per minute, so no honest Retry-After is longer."""

TOKEN_MARGIN_S = 60.0
NO_TOKEN_S = 10.0
TOKEN_REFUSED_S = 60.0
"""So long who waits for a token shares the failure to get one: none asks a hanging login host after the other, and
wrong credentials are not sent once a recording."""

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_REPEATABLE_STATUS = (429, 500, 502, 503, 504)
_MISSING_PERMISSIONS = ("missing.permissions", "missing.any.permissions", "missing.permission")
_PERMISSION = re.compile(r"(?<![\w:])[A-Za-z]{2,40}:[A-Za-z]{2,60}:[A-Za-z]{2,40}(?![\w:])")
_EXPIRED_MEDIA = frozenset({401, 403, 404, 410})

Model = TypeVar("Model", bound=BaseModel)


class NotFound(Refused):
    """The platform does not know what was asked for (404)."""


class MissingPermission(Refused):
    """The client lacks permissions (403 `missing.permissions`). permissions: their names, if the platform says them."""

    def __init__(self, message: str, permissions: tuple[str, ...]) -> None:
        super().__init__(message)
        self.permissions = permissions


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx answer. body: parsed JSON, None if empty. retry_after_s: when to ask again, if it says."""

    status: int
    body: Any = field(repr=False)
    retry_after_s: float | None = None


class _Token(BaseModel):
    """OAuth2 access token response (RFC 6749, 5.1)."""

    access_token: str = Field(pattern=r"^[\x21-\x7e]+$", repr=False)
    expires_in: float = Field(default=300.0, ge=0)


@dataclass(frozen=True, slots=True)
class _HeldToken:
    value: str
    refresh_at: float

    def __repr__(self) -> str:
        return "_HeldToken(<hidden>)"


def _refuse_bombs(asked: str, response: httpx.Response) -> None:
    """Packed once, 64 KiB from the network become 64 MiB at most; packed twice, there is no limit."""
    if "," in response.headers.get("content-encoding", ""):
        raise Refused(f"{asked}: the content is packed more than once")


class WholeAnswers(httpx.HTTPTransport):
    """Reads each answer to its end, within size and time limits, so that one that breaks off is retried too."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        deadline = time.monotonic() + JSON_DEADLINE_S
        answer = super().handle_request(request)
        body = bytearray()
        try:
            _refuse_bombs(_asked(request), answer)
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > JSON_LIMIT_BYTES:
                    raise Refused(f"{_asked(request)}: the answer is larger than {JSON_LIMIT_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("answer too slow")
        finally:
            answer.close()
        headers = [
            (key, value) for key, value in answer.headers.multi_items() if key in ("content-type", "retry-after")
        ]
        return httpx.Response(answer.status_code, headers=headers, content=bytes(body))


class _Paced(WholeAnswers):
    """Takes each request to `host`, repeats included, from the budget; a Retry-After holds all who share it."""

    def __init__(self, budget: Budget | None, host: str) -> None:
        super().__init__(verify=trusted(http2=True), http2=True)
        self._budget, self._host = budget, host

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self._budget is None or request.url.host != self._host:
            return super().handle_request(request)
        try:
            with _database_for(_asked(request)):
                self._budget.take()
        except PlatformHeld as held:
            if request.extensions.get("host_failed"):
                raise _HeldAfterFailure(str(held), held.for_s) from None
            raise
        request.extensions["host_failed"] = True
        answer = super().handle_request(request)
        request.extensions["host_failed"] = answer.status_code >= 500
        if answer.status_code == 429 and (wait_s := _retry_after_s(answer)):
            with _database_for(_asked(request)):
                self._budget.hold(wait_s)
            if wait_s > PATIENCE_S:
                wait_s = min(wait_s, LONGEST_WAIT_S)
                raise PlatformHeld(f"{_asked(request)}: 429, to be asked again in {wait_s:.0f} s", wait_s)
        return answer


class _HeldAfterFailure(PlatformHeld):
    """The budget ended the tries of a request at which the host had failed so far."""


class HttpMediaStream:
    """An open media transfer: chunks of at most 64 KiB, as they arrive.

    content_length: bytes that iterating gives, None where the host does not say; content_type: without parameters;
    last_modified: aware, UTC. Iterating raises TransferBroken when the transfer breaks off, ends short or takes
    longer than 15 minutes, Refused above 2 GiB.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._host = response.request.url.netloc.decode("ascii", "replace")
        encoded = "content-encoding" in response.headers
        self.content_length = None if encoded else _length(response.headers.get("content-length"))
        self.content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower() or None
        self.last_modified = _http_date(response.headers.get("last-modified"))

    def __iter__(self) -> Iterator[bytes]:
        deadline = time.monotonic() + MEDIA_DEADLINE_S
        received = 0
        chunks = self._response.iter_bytes()
        while (chunk := self._next(chunks, received)) is not None:
            received += len(chunk)
            if received > MEDIA_LIMIT_BYTES:
                raise _too_large(self._host)
            if time.monotonic() > deadline:
                raise TransferBroken(
                    f"media host {self._host}: not done after {MEDIA_DEADLINE_S:.0f} s, {received} bytes received"
                )
            yield chunk

    def _next(self, chunks: Iterator[bytes], received: int) -> bytes | None:
        try:
            return next(chunks, None)
        except (httpx.TransportError, httpx.DecodingError) as error:
            promised = "an unknown number" if self.content_length is None else self.content_length
            raise TransferBroken(
                f"media host {self._host}: broke off ({type(error).__name__}) after {received} of {promised} bytes"
            ) from None


class Transport:
    """One platform's HTTP: bearer token on the API, none on the media host. Safe to use from several threads.

    login_url: where `/oauth/token` is; default: the API's host, with `login.` for a leading `api.` (Genesys Cloud).
    media_hosts: hosts that media may come from besides the API's own, as in `AddressRules`.
    budget: shared pacing of the API's requests. breakers: gives the circuit breaker of a name, `platform:<host>` or
    `media:<host>`; it opens on hosts that give no answer or 5xx after all tries. optional_paths: what of the API the
    pipeline can do without for a while: trouble there opens a breaker of its own, `platform:<host>/<last part>`.
    refused: called with the reason of each URL refused. backoff_s: base of the exponential backoff between tries, in
    seconds. Plain http is for loopback only: the credentials would travel in the open.
    Raises: Unavailable, PlatformHeld, Refused, TransferBroken; their text has method, path, status and the platform's
    contextId (for media the host only: a media path can name a customer), never a query, header, body or token.
    """

    def __init__(
        self,
        base_url: str,
        client_id: str,
        client_secret: str,
        *,
        login_url: str | None = None,
        media_hosts: Collection[str] = (),
        budget: Budget | None = None,
        breakers: "Callable[[str], pybreaker.CircuitBreaker] | None" = None,
        optional_paths: Collection[str] = (),
        refused: Callable[[str], None] | None = None,
        backoff_s: float = 0.25,
    ) -> None:
        self._base = _http_url(base_url, "platform URL (COMPLIANCE_PLATFORM_URL)")
        self._login = _login_of(self._base)
        if login_url:
            self._login = _http_url(login_url, "login URL (COMPLIANCE_LOGIN_URL)")
            if self._login.scheme != self._base.scheme == "https":
                raise _in_the_open("login URL (COMPLIANCE_LOGIN_URL)")
        self._retry = Retry(
            total=TRIES - 1,
            allowed_methods=("GET", "PUT", "PATCH", "POST"),
            status_forcelist=_REPEATABLE_STATUS,
            backoff_factor=backoff_s,
            backoff_jitter=0.5,
            max_backoff_wait=LONGEST_WAIT_S,
            total_timeout=LONGEST_WAIT_S,
        )
        # A creating POST is repeated only where the platform can't have acted on it.
        self._retry_create = self._retry.copy_with(status_forcelist=(429,), retry_on_exceptions=_NEVER_SENT)
        self._basic = httpx.BasicAuth(client_id, client_secret)
        self._api = httpx.Client(
            base_url=self._base,
            transport=RetryTransport(_Paced(budget, self._base.host), self._retry),
            timeout=TIMEOUT,
            headers={"Accept": "application/json"},
            trust_env=False,
        )
        # Media are never asked in plain text by a platform that is not.
        self._rules = AddressRules(
            {self._base.raw_host.decode("ascii"), *media_hosts},
            {"https", self._base.scheme},
            "COMPLIANCE_MEDIA_HOSTS",
            refused,
        )
        self._media = httpx.Client(
            transport=RetryTransport(CheckedTransport(self._rules), self._retry),
            timeout=TIMEOUT,
            headers={"Accept-Encoding": "identity"},
            trust_env=False,
        )
        self._breakers, self._optional_paths = breakers, optional_paths
        self._made_breakers: dict[str, pybreaker.CircuitBreaker] = {}
        self._token: _HeldToken | None = None
        self._no_token: tuple[type[PlatformError], str, float] | None = None
        self._token_lock = threading.Lock()

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool | None = None,
    ) -> Any:
        """Send one API request; returns the parsed JSON answer, None for an empty one. See `ask`."""
        return self.ask(method, path, params=params, json=json, headers=headers, repeatable=repeatable).body

    def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool | None = None,
    ) -> Answer:
        """Send one API request; returns its 2xx answer.

        GET, PUT and PATCH are repeated on 429, 5xx and broken connections, and so is a POST that is `repeatable`
        because it only asks. Another POST is repeated only when it was not accepted (429, no connection); when its
        answer is lost, Unavailable says that its effect is unknown.
        """
        if not path.startswith("/"):
            raise Refused(f"{method}: not a path of the platform's API, so it gets no token")
        creates = method == "POST" if repeatable is None else not repeatable
        token = self._bearer()
        response = self._send(method, path, token, params, json, headers, creates)
        if response.status_code == 401:
            token = self._bearer(rejected=token)
            response = self._send(method, path, token, params, json, headers, creates)
        if response.status_code == 401:
            raise Refused(
                f"{_said(method, path, response)}: a new token was refused too; check the client's permissions"
            )
        _raise_for_status(method, path, response, creates=creates)
        return Answer(response.status_code, _json(method, path, response), _retry_after_s(response))

    @contextmanager
    def open_media(self, url: str) -> Iterator[HttpMediaStream]:
        """Open a media URL for streaming, without the bearer token.

        Raises: Unavailable when the URL expired or the host fails (locate the recording again), Refused for a URL
        that the media's rules don't allow, a redirect, or more than 2 GiB.
        """
        host, response = self._send_media("GET", url, {}, None)
        try:
            stream = HttpMediaStream(response)
            if (stream.content_length or 0) > MEDIA_LIMIT_BYTES:
                raise _too_large(host)
            _refuse_bombs(f"media host {host}", response)
            yield stream
        finally:
            response.close()

    def upload(self, url: str, headers: Mapping[str, str], content: bytes) -> None:
        """PUT `content` to a URL that the platform signed for it, without the bearer token. Raises as `open_media`."""
        _, response = self._send_media("PUT", url, headers, content)
        response.close()

    def close(self) -> None:
        self._api.close()
        self._media.close()

    def _send(
        self,
        method: str,
        path: str,
        token: str,
        params: Mapping[str, str] | None,
        json: Any,
        headers: Mapping[str, str] | None,
        creates: bool,
    ) -> httpx.Response:
        def send() -> httpx.Response:
            return self._api.request(
                method,
                path,
                params=params,
                json=json,
                headers={**(headers or {}), "Authorization": f"Bearer {token}"},
                extensions={"retry": self._retry_create if creates else self._retry},
            )

        try:
            return self._guarded(self._breaker_name(path), self._base.host, f"{method} {path}", send)
        except httpx.HTTPError as error:
            effect = _effect(creates and not isinstance(error, _NEVER_SENT))
            raise Unavailable(f"{method} {path}: {type(error).__name__}{effect}") from None

    def _send_media(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> tuple[str, httpx.Response]:
        """The host, as errors name it, and its 2xx answer, open."""
        host = _netloc(url)
        try:
            target = self._rules.check(url)
            request = self._media.build_request(method, target, headers=headers, content=content)
            response = self._guarded(
                f"media:{target.host}",
                target.host,
                f"media host {host}",
                lambda: self._media.send(request, stream=True),
            )
        except Refused as error:
            raise Refused(f"media URL on {host}: {error}") from None
        except httpx.TransportError as error:
            raise Unavailable(f"media host {host}: {type(error).__name__} after {TRIES} tries") from None
        try:
            if 300 <= response.status_code < 400:
                message = f"media host {host}: {response.status_code}, a redirect, which is not followed"
                raise self._rules.refuse("redirect", target.host, message)
            _raise_for_media_status(host, response.status_code)
        except PlatformError:
            response.close()
            raise
        return host, response

    def _breaker_name(self, path: str) -> str:
        for optional in self._optional_paths:
            if path == optional or path.startswith(f"{optional}/"):
                return f"platform:{self._base.host}/{optional.rpartition('/')[2]}"
        return f"platform:{self._base.host}"

    def _guarded(self, name: str, host: str, asked: str, send: Callable[[], httpx.Response]) -> httpx.Response:
        """What `send` gives or raises, noted by the breaker `name`. Raises PlatformHeld while it is open.

        The breaker learns the outcome only afterwards, for pybreaker knows failure and success and nothing else: a
        request that ended before the host had its say (budget, database, address) would close it.
        """
        if self._breakers is None:
            return send()
        from compliance_pipeline.breaker import admitted, tell

        with _database_for(asked):
            if (breaker := self._made_breakers.get(name)) is None:
                breaker = self._made_breakers[name] = self._breakers(name[:128])
            now = datetime.now(UTC)
            until = admitted(breaker, now)
        if until:
            for_s = max((until - now).total_seconds(), 1.0)
            said = f"{asked}: not asked, {host} has failed; asked again in {for_s:.0f} s"
            raise PlatformHeld(said, for_s, host_failed=True)
        try:
            response = send()
        except (httpx.HTTPError, _HeldAfterFailure):
            tell(breaker, failed=True)
            raise
        except BaseException:
            tell(breaker, failed=None)
            raise
        tell(breaker, failed=response.status_code >= 500)
        return response

    def _bearer(self, rejected: str | None = None) -> str:
        """The token in use, fetched if there is none, it is about to expire, or it is the `rejected` one."""
        with self._token_lock:
            held = self._token
            if held is None or held.value == rejected or time.monotonic() >= held.refresh_at:
                self._raise_recent_failure()
                try:
                    held = self._token = self._fetch_token()
                except PlatformError as error:
                    after_s = error.after_s if isinstance(error, Unavailable) and error.after_s else NO_TOKEN_S
                    for_s = TOKEN_REFUSED_S if isinstance(error, Refused) else min(after_s, NO_TOKEN_S)
                    # Not the error itself: its traceback would keep the frames that hold the secret.
                    self._no_token = type(error), str(error), time.monotonic() + for_s
                    raise
            return held.value

    def _raise_recent_failure(self) -> None:
        if self._no_token is None:
            return
        kind, said, until = self._no_token
        left_s = until - time.monotonic()
        if left_s <= 0:
            return
        if issubclass(kind, Refused):
            raise Refused(said)
        if issubclass(kind, PlatformHeld):
            raise PlatformHeld(said, max(left_s, 1.0))
        raise Unavailable(said, max(left_s, 1.0))

    def _fetch_token(self) -> _HeldToken:
        """OAuth2 client credentials (RFC 6749, 4.4). Asking twice is harmless, so it is retried like a GET."""
        path = "/oauth/token"
        asked_at = time.monotonic()
        form = {"grant_type": "client_credentials"}
        url = self._login.copy_with(path=self._login.path.rstrip("/") + path)
        try:
            response = self._guarded(
                f"platform:{url.host}",
                url.host,
                f"POST {path}",
                lambda: self._api.post(url, data=form, auth=self._basic),
            )
        except httpx.HTTPError as error:
            raise Unavailable(f"POST {path}: {type(error).__name__}; no token") from None
        if 400 <= response.status_code < 500 and response.status_code not in _PASSING:
            raise Refused(
                f"{_said('POST', path, response)}: no token; "
                "check COMPLIANCE_PLATFORM_URL, COMPLIANCE_LOGIN_URL, COMPLIANCE_CLIENT_ID and COMPLIANCE_CLIENT_SECRET"
            )
        _raise_for_status("POST", path, response, creates=False)
        token = parse(_Token, _json("POST", path, response), f"POST {path}")
        margin = min(TOKEN_MARGIN_S, token.expires_in * 0.1)
        return _HeldToken(token.access_token, asked_at + token.expires_in - margin)


@contextmanager
def _database_for(asked: str) -> Iterator[None]:
    """What the operational database fails at becomes a platform's trouble: callers know how to wait."""
    try:
        yield
    except SQLAlchemyError as error:
        raise Unavailable(f"{asked}: the operational database failed ({type(error).__name__})") from None


def parse(model: type[Model], answer: Any, asked: str) -> Model:
    """The answer as `model`. Raises Unavailable that names the fields which are missing or wrong, not their values."""
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        fields = sorted({".".join(str(part) for part in e["loc"]) or "the whole" for e in error.errors()})
        raise Unavailable(f"{asked}: the answer is malformed at {', '.join(fields)}") from None


def iso_utc(moment: datetime) -> str:
    """A time as platforms take it in intervals and bodies: ISO 8601 with milliseconds, UTC as 'Z'."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(method: str, path: str, response: httpx.Response) -> Any:
    if not response.content:
        return None
    try:
        return response.json()
    except ValueError:
        raise Unavailable(f"{_said(method, path, response)}: the answer is not JSON") from None


def _raise_for_status(method: str, path: str, response: httpx.Response, *, creates: bool) -> None:
    status = response.status_code
    said = _said(method, path, response)
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise Refused(f"{said}: a redirect, which is not followed; check COMPLIANCE_PLATFORM_URL")
    if status == 404:
        raise NotFound(f"{said}: not found")
    if status == 429:
        wait_s = _retry_after_s(response) or PATIENCE_S
        raise PlatformHeld(f"{said}: the budget of requests is spent", min(wait_s, LONGEST_WAIT_S))
    if status in _PASSING or status >= 500:
        raise Unavailable(f"{said}{_effect(creates)}")
    if status == 413:
        raise Refused(f"{said}: the platform takes no request as large as this")
    if status == 403 and (permissions := _missing_permissions(response)) is not None:
        named = ", ".join(permissions) or "the platform does not say which"
        raise MissingPermission(
            f"{said}: the client lacks a permission ({named}); grant it, then try again", permissions
        )
    if status == 403:
        raise Refused(f"{said}: the client lacks a permission; grant it, then try again")
    raise Refused(said)


def _raise_for_media_status(host: str, status: int) -> None:
    if 200 <= status < 300:
        return
    if status in _EXPIRED_MEDIA:
        raise Unavailable(f"media host {host}: {status}; the URL has expired or is not served yet, ask for a new URL")
    if 400 <= status < 500 and status not in _PASSING:
        raise Refused(f"media host {host}: {status}")
    raise Unavailable(f"media host {host}: {status} after {TRIES} tries")


def _too_large(host: str) -> PlatformError:
    return Refused(f"media host {host}: the media is larger than {MEDIA_LIMIT_BYTES} bytes")


def _effect(unknown: bool) -> str:
    return "; its effect is unknown, look it up before asking again" if unknown else ""


def _asked(request: httpx.Request) -> str:
    return f"{request.method} {request.url.path}"


def _said(method: str, path: str, response: httpx.Response) -> str:
    context = _context_id(response)
    return f"{method} {path}: {response.status_code}" + (f" (contextId {context})" if context else "")


def _context_id(response: httpx.Response) -> str | None:
    """The platform's contextId from an error body; only a UUID is let through, anything else could be data."""
    try:
        body = response.json()
        return str(UUID(body["contextId"])) if isinstance(body, dict) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _missing_permissions(response: httpx.Response) -> tuple[str, ...] | None:
    """The permissions that a 403 `missing.permissions` names; None for another 403. Nothing else is let through."""
    try:
        body = response.json()
        if not isinstance(body, dict) or body.get("code") not in _MISSING_PERMISSIONS:
            return None
    except ValueError:
        return None
    said = [body.get("message"), body.get("messageWithParams")]
    if isinstance(params := body.get("messageParams"), dict):
        said += params.values()
    return tuple(dict.fromkeys(name for text in said if isinstance(text, str) for name in _PERMISSION.findall(text)))


def _retry_after_s(response: httpx.Response) -> float | None:
    """Retry-After (RFC 9110, 10.2.3) in seconds, at most a day; None where there is none or it makes no sense."""
    said = response.headers.get("retry-after", "").strip()
    if (seconds := _length(said)) is not None:
        return min(float(seconds), 86_400.0)
    at = _http_date(said)
    return min(max((at - datetime.now(UTC)).total_seconds(), 0.0), 86_400.0) if at else None


def _login_of(base: httpx.URL) -> httpx.URL:
    """Genesys Cloud signs in at https://login.{region}, its API is at https://api.{region}."""
    return base.copy_with(host=f"login.{base.host[4:]}") if base.host.startswith("api.") else base


def _netloc(url: str) -> str:
    """Host and port, as far as it is a URL."""
    try:
        target = httpx.URL(url)
        return target.netloc.decode("ascii", "replace") or "?"
    except (httpx.InvalidURL, TypeError):
        return "?"


def _http_url(text: str, what: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, TypeError):
        raise Refused(f"the {what} is not a URL") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise Refused(f"the {what} is not an http or https URL")
    if url.scheme == "http" and not is_loopback(url.host):
        raise _in_the_open(what)
    return url


def _in_the_open(what: str) -> Refused:
    return Refused(f"the {what} is http: credentials would travel in plain text; give an https URL")


def _length(value: str | None) -> int | None:
    return int(value) if value and value.isascii() and value.isdigit() and len(value) < 16 else None


def _http_date(value: str | None) -> datetime | None:
    if not value:
        return None
    try:
        parsed = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
