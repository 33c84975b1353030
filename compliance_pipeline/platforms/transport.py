"""HTTP to a platform: token, retries, limits, error wording, media streaming. The only place where HTTP is retried.

What a path or a body means belongs to the adapters, not here.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from uuid import UUID

import httpx
from httpx_retries import Retry, RetryTransport
from pydantic import BaseModel, Field, ValidationError

from compliance_pipeline.platforms.port import PlatformError, Refused, TransferBroken, Unavailable

JSON_LIMIT_BYTES = 1024 * 1024
JSON_DEADLINE_S = 60.0
MEDIA_LIMIT_BYTES = 2 * 1024**3
MEDIA_DEADLINE_S = 300.0
TIMEOUT = httpx.Timeout(30.0, connect=5.0)

TRIES = 5
LONGEST_WAIT_S = 60.0
"""All waits of one request together; the platform's limits are per minute, so no honest Retry-After is longer."""

TOKEN_MARGIN_S = 60.0

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_REPEATABLE_STATUS = (429, 500, 502, 503, 504)
_EXPIRED_MEDIA = frozenset({401, 403, 404, 410})

Model = TypeVar("Model", bound=BaseModel)


class NotFound(Refused):
    """The platform does not know what was asked for (404)."""


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


class WholeAnswers(httpx.HTTPTransport):
    """Reads each answer to its end, within size and time limits, so that one that breaks off is retried too."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        deadline = time.monotonic() + JSON_DEADLINE_S
        answer = super().handle_request(request)
        body = bytearray()
        try:
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

    backoff_s: base of the exponential backoff between tries, in seconds.
    Raises: Unavailable, Refused, TransferBroken; their text has method, path, status and the platform's contextId
    (for media the host only: a media path can name a customer), never a query, header, body or token.
    """

    def __init__(self, base_url: str, client_id: str, client_secret: str, *, backoff_s: float = 0.25) -> None:
        self._base = _http_url(base_url, "platform URL (COMPLIANCE_PLATFORM_URL)")
        # httpx logs whole URLs at INFO, httpcore headers at DEBUG: a signed media URL or a token must not get there.
        for name in ("httpx", "httpx_retries", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)
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
        trusted = httpx.create_ssl_context()
        self._basic = httpx.BasicAuth(client_id, client_secret)
        self._api = httpx.Client(
            base_url=self._base,
            transport=RetryTransport(WholeAnswers(verify=trusted), self._retry),
            timeout=TIMEOUT,
            headers={"Accept": "application/json"},
        )
        self._media = httpx.Client(
            transport=RetryTransport(httpx.HTTPTransport(verify=trusted), self._retry),
            timeout=TIMEOUT,
            headers={"Accept-Encoding": "identity"},
        )
        self._token: _HeldToken | None = None
        self._token_lock = threading.Lock()

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Send one API request; returns the parsed JSON answer, None for an empty one.

        GET, PUT and PATCH are repeated on 429, 5xx and broken connections. A POST is repeated only when it was not
        accepted (429, no connection); when its answer is lost, Unavailable says that its effect is unknown.
        """
        token = self._bearer()
        response = self._send(method, path, token, params, json, headers)
        if response.status_code == 401:
            token = self._bearer(rejected=token)
            response = self._send(method, path, token, params, json, headers)
        if response.status_code == 401:
            raise Refused(
                f"{_said(method, path, response)}: a new token was refused too; check the client's permissions"
            )
        _raise_for_status(method, path, response)
        return _json(method, path, response)

    @contextmanager
    def open_media(self, url: str) -> Iterator[HttpMediaStream]:
        """Open a media URL for streaming, without the bearer token.

        Raises: Unavailable when the URL expired or the host fails (locate the recording again), Refused for a
        redirect, another scheme than http(s), or more than 2 GiB.
        """
        target = _http_url(url, "media URL")
        host = target.netloc.decode("ascii", "replace")
        try:
            response = self._media.send(self._media.build_request("GET", target), stream=True)
        except httpx.TransportError as error:
            raise Unavailable(f"media host {host}: {type(error).__name__} after {TRIES} tries") from None
        try:
            _raise_for_media_status(host, response.status_code)
            stream = HttpMediaStream(response)
            if (stream.content_length or 0) > MEDIA_LIMIT_BYTES:
                raise _too_large(host)
            yield stream
        finally:
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
    ) -> httpx.Response:
        creates = method == "POST"
        try:
            return self._api.request(
                method,
                path,
                params=params,
                json=json,
                headers={**(headers or {}), "Authorization": f"Bearer {token}"},
                extensions={"retry": self._retry_create if creates else self._retry},
            )
        except httpx.HTTPError as error:
            effect = _effect(creates and not isinstance(error, _NEVER_SENT))
            raise Unavailable(f"{method} {path}: {type(error).__name__}{effect}") from None

    def _bearer(self, rejected: str | None = None) -> str:
        """The token in use, fetched if there is none, it is about to expire, or it is the `rejected` one."""
        with self._token_lock:
            held = self._token
            if held is None or held.value == rejected or time.monotonic() >= held.refresh_at:
                held = self._token = self._fetch_token()
            return held.value

    def _fetch_token(self) -> _HeldToken:
        """OAuth2 client credentials (RFC 6749, 4.4). Asking twice is harmless, so it is retried like a GET."""
        path = "/oauth/token"
        asked_at = time.monotonic()
        try:
            response = self._api.post(path, data={"grant_type": "client_credentials"}, auth=self._basic)
        except httpx.HTTPError as error:
            raise Unavailable(f"POST {path}: {type(error).__name__}; no token") from None
        if 400 <= response.status_code < 500 and response.status_code not in _PASSING:
            raise Refused(
                f"{_said('POST', path, response)}: no token; "
                "check COMPLIANCE_PLATFORM_URL, COMPLIANCE_CLIENT_ID and COMPLIANCE_CLIENT_SECRET"
            )
        _raise_for_status("POST", path, response, creates=False)
        token = parse(_Token, _json("POST", path, response), f"POST {path}")
        margin = min(TOKEN_MARGIN_S, token.expires_in * 0.1)
        return _HeldToken(token.access_token, asked_at + token.expires_in - margin)


def parse(model: type[Model], answer: Any, asked: str) -> Model:
    """The answer as `model`. Raises Unavailable that names the fields which are missing or wrong, not their values."""
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        fields = sorted({".".join(str(part) for part in e["loc"]) or "the whole" for e in error.errors()})
        raise Unavailable(f"{asked}: the answer is malformed at {', '.join(fields)}") from None


def _json(method: str, path: str, response: httpx.Response) -> Any:
    if not response.content:
        return None
    try:
        return response.json()
    except ValueError:
        raise Unavailable(f"{_said(method, path, response)}: the answer is not JSON") from None


def _raise_for_status(method: str, path: str, response: httpx.Response, *, creates: bool | None = None) -> None:
    status = response.status_code
    said = _said(method, path, response)
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise Refused(f"{said}: a redirect, which is not followed; check COMPLIANCE_PLATFORM_URL")
    if status == 404:
        raise NotFound(f"{said}: not found")
    if status in _PASSING or status >= 500:
        uncertain = (method == "POST" if creates is None else creates) and status != 429
        raise Unavailable(f"{said}{_effect(uncertain)}")
    if status == 403:
        raise Refused(f"{said}: the client lacks a permission; grant it, then try again")
    raise Refused(said)


def _raise_for_media_status(host: str, status: int) -> None:
    if status == 200:
        return
    if status in _EXPIRED_MEDIA:
        raise Unavailable(f"media host {host}: {status}; the URL has expired or is not served yet, ask for a new URL")
    if 300 <= status < 400:
        raise Refused(f"media host {host}: {status}, a redirect, which is not followed")
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


def _http_url(text: str, what: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, TypeError):
        raise Refused(f"the {what} is not a URL") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise Refused(f"the {what} is not an http or https URL")
    return url


def _length(value: str | None) -> int | None:
    return int(value) if value and value.isascii() and value.isdigit() else None


def _http_date(value: str | None) -> datetime | None:
    if not value:
        return None
    try:
        parsed = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
