"""Who may see the dashboard, and what they may do: sign-in, roles, forged requests, and the headers of every answer.

    access = Access(settings, engine, clock, page=page_of_notice)
    app = Starlette(
        routes=[
            *access.routes,
            *overview.routes,
            Route("/healthz", needs(Role.PUBLIC)(healthz)),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Guard, access=access), Middleware(GZipMiddleware)],
        exception_handlers={**access.exception_handlers, NoSnapshot: nothing_yet},
    )
    app.state.access = access

    def page_of_notice(request: Request, notice: Notice) -> Response:
        return render(request, "error.html", status=notice.status, notice=notice, user=known_user(request))

    @needs(Role.VIEWER)
    def overview(request: Request) -> Response:
        return render(request, "overview.html", user=current_user(request))

    @needs(Role.REVIEWER)
    def confirm(request: Request) -> Response:
        reason = form(request)["reason"]

    routes = [Route("/", overview), Route("/review", confirm, methods=["POST"])]

    <form method="post"><input type="hidden" name="csrf" value="{{ csrf_token(request) }}">
    <body hx-headers='{"X-CSRF-Token": "{{ csrf_token(request) }}"}'>

    role_of(route.endpoint)

`needs` takes plain handlers, which run in a thread, and coroutines. What only asks by itself (polling) says
`keeps_alive=False`, and a page that renews itself sends BY_ITSELF, or nobody's session would ever be idle.
uvicorn must run with `proxy_headers=False`: else a peer's own headers would say which address it has.
"""

import functools
import getpass
import hashlib
import inspect
import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import IntEnum
from html import escape
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import httpx
import sqlalchemy as sa
from itsdangerous import BadData, URLSafeSerializer
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from compliance_pipeline import database
from compliance_pipeline.asgi import Rejected, line, read_body
from compliance_pipeline.clock import Clock, utc_now
from compliance_pipeline.database import UtcTime, metadata, writer
from compliance_pipeline.plain_text import refuse_sensitive
from compliance_pipeline.settings import Settings

IDLE = timedelta(minutes=30)
LIFETIME = timedelta(hours=10)
LOGIN_TIME = timedelta(minutes=10)
"""From being sent to the issuer to being back."""
RENEW = timedelta(minutes=1)
CLOCKS_APART = timedelta(seconds=60)
MAX_FORM_BYTES = 64 * 1024

BY_ITSELF = "X-By-Itself"
"""Header of a request that no person asked for."""
USER_HEADER = "X-Forwarded-User"
GROUPS_HEADER = "X-Forwarded-Groups"
GROUP = "group:"
"""Marks a group among a role's names: a person may choose the name of a group as theirs."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; media-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_SAFE = ("GET", "HEAD")
_HERE = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
_PATH = re.compile(r"/(?![/\\])[^\x00-\x20\x7f\\]{0,2000}")
_SIGNING = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_log = logging.getLogger(__name__)

ended_sessions = sa.Table(
    "dashboard_ended_sessions",
    metadata,
    sa.Column("session", sa.String, primary_key=True),
    sa.Column("until", UtcTime, nullable=False, doc="when it would have ended by itself"),
)


class AccessNotConfigured(ValueError):
    """Settings under which the dashboard would be open to others, or to nobody. Says what to do next."""


class Role(IntEnum):
    """What somebody may do, each all that those before may. PUBLIC is for routes only: no sign-in, and no data.

    No page is an ADMIN's alone: it is what the user of this machine is, and those whom refusals say to ask.
    """

    PUBLIC = 0
    VIEWER = 1
    REVIEWER = 2
    ADMIN = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class User:
    """can_leave: there is a session to sign out of."""

    name: str
    role: Role
    can_leave: bool = False

    def may(self, role: str) -> bool:
        return self.role >= Role[role.upper()]


@dataclass(frozen=True, slots=True)
class Notice:
    """A page of one sentence. link: address and words of what to do next."""

    status: int
    title: str
    message: str
    link: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _Session:
    """Times: whole seconds since 1970."""

    id: str
    name: str
    role: int
    started: int
    seen: int


PageHandler = Callable[[Request], Any]
Wrapped = Callable[[Request], Awaitable[Response]]
Page = Callable[[Request, Notice], Response]


def plain_page(_request: Request, notice: Notice) -> Response:
    """A notice as the barest HTML page."""
    link = f'<p><a href="{escape(notice.link[0])}">{escape(notice.link[1])}</a></p>' if notice.link else ""
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(notice.title)}</title>'
        f"<h1>{escape(notice.title)}</h1><p>{escape(notice.message)}</p>{link}</html>",
        notice.status,
    )


def refuse_open(settings: Settings) -> None:
    """Raises AccessNotConfigured where others than this machine's could look without signing in, or nobody could."""
    names = [name for listed in settings.dashboard_roles.values() for name in listed]
    if settings.dashboard_auth == "none":
        if not _is_loopback(settings.dashboard_host):
            raise AccessNotConfigured(
                f"the dashboard would be open to everybody who reaches {settings.dashboard_host}: set "
                "COMPLIANCE_DASHBOARD_AUTH to oidc or proxy, or COMPLIANCE_DASHBOARD_HOST to 127.0.0.1"
            )
        if not _is_loopback(urlsplit(settings.dashboard_url or "").hostname or "localhost"):
            raise AccessNotConfigured(
                f"the dashboard would be open to everybody who reaches {settings.dashboard_url}: set "
                "COMPLIANCE_DASHBOARD_AUTH to oidc or proxy, or leave COMPLIANCE_DASHBOARD_URL unset"
            )
        return
    if settings.dashboard_auth == "proxy" and not settings.dashboard_trusted_proxies:
        raise AccessNotConfigured(
            "no proxy is trusted, so that nobody could look: set COMPLIANCE_DASHBOARD_TRUSTED_PROXIES to the addresses "
            'that yours connects from, such as ["10.0.0.5"]'
        )
    if settings.dashboard_auth == "oidc" and not (settings.oidc_issuer and settings.oidc_client_id):
        raise AccessNotConfigured(
            "nobody could sign in: set COMPLIANCE_OIDC_ISSUER and COMPLIANCE_OIDC_CLIENT_ID (and "
            "COMPLIANCE_OIDC_CLIENT_SECRET), and allow <the dashboard's URL>/login/callback there"
        )
    if not names:
        raise AccessNotConfigured(
            "nobody has a role: set COMPLIANCE_DASHBOARD_ROLES, such as "
            '{"viewer": ["group:quality"], "reviewer": ["d.ansah"], "admin": ["k.lindt"]}'
        )
    if not _is_loopback(settings.dashboard_host) and settings.dashboard_url is None:
        raise AccessNotConfigured(
            f"the dashboard binds {settings.dashboard_host} and can't tell by which name browsers reach it: set "
            "COMPLIANCE_DASHBOARD_URL, such as https://calls.example.com"
        )


def needs(role: Role, *, keeps_alive: bool = True) -> Callable[[PageHandler], Wrapped]:
    """A handler for those with `role`, and for forms of our own pages only. Refuses with Rejected: 401, 403, 405.

    keeps_alive: a request of this kind is somebody at work, and moves the end of an idle session.
    """

    def wrap(handler: PageHandler) -> Wrapped:
        is_coroutine = inspect.iscoroutinefunction(handler)

        @functools.wraps(handler)
        async def answer(request: Request) -> Response:
            access: Access = request.app.state.access
            if role != Role.PUBLIC:
                await access.admit(request, role)
            elif request.method not in _SAFE:
                raise Rejected(405, "method", "this page takes nothing in")
            response: Response = await (handler(request) if is_coroutine else run_in_threadpool(handler, request))
            if keeps_alive:
                access.renew(request, response)
            return response

        answer.needs_role = role  # type: ignore[attr-defined]
        return answer

    return wrap


def role_of(handler: Any) -> Role:
    """The role that a handler was wrapped for. Raises LookupError where it was not."""
    role = getattr(handler, "needs_role", None)
    if role is None:
        raise LookupError(f"{getattr(handler, '__qualname__', handler)} says not who may use it: wrap it in needs(...)")
    return Role(role)


def refuse_other_sites(request: Request) -> None:
    """For a GET that the ledger has with the user's name. Raises Rejected where another site's page asked."""
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise Rejected(403, "cross_site", "another site asked for this: open it from a page of this dashboard")


def current_user(request: Request) -> User:
    """Raises LookupError in a handler that needs nobody, and in refusals of strangers: see `known_user`."""
    user = known_user(request)
    if user is None:
        raise LookupError("nobody is signed in here")
    return user


def known_user(request: Request) -> User | None:
    return getattr(request.state, "user", None)


def csrf_token(request: Request) -> str:
    """For a form's field `csrf` or the header X-CSRF-Token; empty where nobody is signed in."""
    binding = getattr(request.state, "binding", None)
    access: Access = request.app.state.access
    return access.token(binding) if binding else ""


def form(request: Request) -> dict[str, str]:
    """The fields of the form that was sent, of those named twice the last."""
    fields: dict[str, str] = getattr(request.state, "form", {})
    return fields


class Access:
    """What the settings say of access. `page` makes HTML of a notice. Raises AccessNotConfigured."""

    def __init__(self, settings: Settings, engine: sa.Engine, clock: Clock = utc_now, page: Page = plain_page) -> None:
        refuse_open(settings)
        self._settings, self._engine, self._clock, self._page = settings, engine, clock, page
        self._is_https = (settings.dashboard_url or "").startswith("https://")
        self.headers = HEADERS | ({"Strict-Transport-Security": "max-age=31536000"} if self._is_https else {})
        self._key = settings._secret(None, "dashboard")
        self._os_user = _os_user() if settings.dashboard_auth == "none" else ""
        self._issuer = _issuer(settings) if settings.dashboard_auth == "oidc" else None
        self.routes: list[Route] = []
        if self._issuer is not None:
            self.routes = [
                Route("/login", needs(Role.PUBLIC)(self._login)),
                Route("/login/callback", needs(Role.PUBLIC)(self._callback)),
                Route("/logout", needs(Role.VIEWER, keeps_alive=False)(self._logout), methods=["POST"]),
                Route("/signed-out", needs(Role.PUBLIC)(self._signed_out)),
            ]
        self.exception_handlers: dict[Any, Callable[[Request, Any], Any]] = {
            Rejected: self._on_rejected,
            HTTPException: self._on_http,
        }

    async def admit(self, request: Request, role: Role) -> None:
        """Sets the request's user. Raises Rejected."""
        user, binding = await self._who(request)
        request.state.user, request.state.binding = user, binding
        if user.role < role:
            raise self._denied(
                "role",
                user.name,
                f"this is for those with the role {role}, and yours is {user.role}: ask an administrator of this "
                "dashboard for it",
            )
        if request.method not in _SAFE:
            await self._refuse_forged(request, binding)

    def renew(self, request: Request, response: Response) -> None:
        """Moves the end of the idle session that the request came with."""
        session: _Session | None = getattr(request.state, "session", None)
        now = int(self._clock().timestamp())
        is_due = session is not None and now - session.seen >= RENEW.total_seconds()
        if session is not None and is_due and BY_ITSELF not in request.headers:
            self._set_session(response, replace(session, seen=now))

    def token(self, binding: str) -> str:
        return self._signed("csrf", [binding, int(self._clock().timestamp())])

    def check_host(self, request: Request) -> None:
        """Raises Rejected for a name that is not this dashboard's: another site's may lead here too."""
        hosts = request.headers.getlist("host")
        own = urlsplit(self._settings.dashboard_url or "").netloc
        if len(hosts) != 1 or not (_HERE.fullmatch(hosts[0]) or (own and hosts[0].lower() == own)):
            raise Rejected(421, "host", "this dashboard is not known by that name: open it by its own address")

    def refuse(self, request: Request, refusal: Rejected) -> Response:
        """JSON for the API, a page for people, and the way to sign in where that is what is missing."""
        is_login = refusal.reason == "login"
        if is_login and "hx-request" in request.headers:
            return Response(status_code=401, headers={"HX-Redirect": _login_for(_htmx_path(request))})
        if _wants_json(request):
            return JSONResponse(refusal.body, refusal.status, refusal.headers)
        if is_login and request.method in _SAFE:
            return RedirectResponse(_login_for(_path(request)), 303)
        link, message = None, _sentence(str(refusal))
        if self._issuer is not None and refusal.reason in ("login", "login_failed", "no_role", "issuer"):
            link = (_login_for(_path(request)), "Sign in")
        if is_login:
            message += " Go back first for what you typed: copy it, for signing in loads the page anew."
        response = self._shown(request, Notice(refusal.status, _title(refusal.status), message, link))
        response.headers.update(refusal.headers or {})
        return response

    def _shown(self, request: Request, notice: Notice) -> Response:
        """The page; a plain one where templates fail, which may be what the notice is of."""
        try:
            return self._page(request, notice)
        except Exception as error:
            _log.error(line("notice_failed", error=type(error).__name__))
            return plain_page(request, notice)

    async def _on_rejected(self, request: Request, refusal: Rejected) -> Response:
        return self.refuse(request, refusal)

    async def _on_http(self, request: Request, error: HTTPException) -> Response:
        if error.status_code < 400:
            return Response(status_code=error.status_code, headers=error.headers)
        message = error.detail
        if message == HTTPStatus(error.status_code).phrase:
            message = {404: "there is no such page", 405: "this page does not take that"}.get(
                error.status_code, message
            )
        return self.refuse(request, Rejected(error.status_code, "http", message, headers=dict(error.headers or {})))

    async def _who(self, request: Request) -> tuple[User, str]:
        """The user, and what their forms are bound to."""
        if self._settings.dashboard_auth == "none":
            if not _is_loopback(_peer(request)) or _is_passed_on(request):
                raise Rejected(403, "remote", "this dashboard is for its own machine only")
            return User(self._os_user, Role.ADMIN), self._os_user
        if self._settings.dashboard_auth == "proxy":
            user = self._forwarded(request)
            return user, user.name
        return await self._in_session(request)

    def _forwarded(self, request: Request) -> User:
        if not self._is_trusted(_peer(request)):
            raise self._denied("proxy", None, "this dashboard is reached by its proxy only: use the proxy's address")
        names, listed = request.headers.getlist(USER_HEADER), request.headers.getlist(GROUPS_HEADER)
        if len(names) != 1 or len(listed) > 1:
            raise self._denied("proxy_user", None, "the proxy did not say, once, who you are: sign in there first")
        name = self._checked(_utf8(names[0]))
        groups = [group.strip() for group in _utf8(listed[0] if listed else "").split(",")]
        return User(name, self._role(name, groups))

    def _is_trusted(self, peer: str) -> bool:
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._settings.dashboard_trusted_proxies)

    async def _in_session(self, request: Request) -> tuple[User, str]:
        session = await self._session(request)
        if session is None:
            raise Rejected(401, "login", "you are not signed in, or not any more: sign in and do it again")
        request.state.session = session
        return User(session.name, Role(session.role), can_leave=True), session.id

    async def _session(self, request: Request) -> _Session | None:
        said = self._opened(self._session_salt, request.cookies.get(self._cookie("session")))
        if said is None:
            return None
        session = _Session(*said)
        now = int(self._clock().timestamp())
        if (
            not session.started <= session.seen <= now + CLOCKS_APART.total_seconds()
            or now - session.seen > IDLE.total_seconds()
            or now - session.started > LIFETIME.total_seconds()
            or await run_in_threadpool(self._is_ended, session)
        ):
            return None
        return session

    def _is_ended(self, session: _Session) -> bool:
        database.ensure(self._engine, ended_sessions)
        query = sa.select(ended_sessions.c.session).where(ended_sessions.c.session == session.id)
        with self._engine.connect() as connection:
            return connection.execute(query).first() is not None

    def _end(self, session: _Session) -> None:
        """For every process, and for a copy of the cookie too."""
        database.ensure(self._engine, ended_sessions)
        now = self._clock()
        row = {"session": session.id, "until": now + LIFETIME + CLOCKS_APART}
        with writer(self._engine).begin() as connection:
            connection.execute(sa.delete(ended_sessions).where(ended_sessions.c.until < now))
            statement = database.insert(self._engine, ended_sessions).values(row)
            connection.execute(statement.on_conflict_do_nothing())

    async def _login(self, request: Request) -> Response:
        issuer = self._issuer
        assert issuer is not None  # noqa: S101 - the route is there only then
        after = _own_path(request.query_params.get("next"))
        state: dict[str, Any] = {}
        request.scope["session"] = state
        base = self._settings.dashboard_url or f"{request.url.scheme}://{request.headers['host']}"
        try:
            await _discover(issuer, self._settings)
            response: Response = await issuer.authorize_redirect(request, f"{base}/login/callback")
        except Exception as error:
            _log.warning(line("login_failed", step="discovery", error=type(error).__name__))
            raise Rejected(
                502, "issuer", "the sign-in service can't be reached or does not answer as it should: try again later"
            ) from None
        kept = [state, after, int(self._clock().timestamp())]
        self._set(response, "login", self._signed("login", kept), LOGIN_TIME)
        return response

    async def _callback(self, request: Request) -> Response:
        issuer, settings = self._issuer, self._settings
        assert issuer is not None  # noqa: S101 - the route is there only then
        kept = self._opened("login", request.cookies.get(self._cookie("login")))
        now = int(self._clock().timestamp())
        if kept is None or not 0 <= now - kept[2] <= LOGIN_TIME.total_seconds():
            raise self._failed("state")
        request.scope["session"], after = kept[0], kept[1]
        try:
            metadata = await _discover(issuer, settings)
            options = {
                "iss": {"essential": True, "value": metadata["issuer"]},
                "aud": {"essential": True, "value": settings.oidc_client_id},
            }
            token = await issuer.authorize_access_token(request, claims_options=options, leeway=60)
            claims = await _claims(issuer, token, settings.oidc_user_claim)
        except Exception as error:
            raise self._failed(type(error).__name__) from None
        if settings.oidc_user_claim == "email" and claims.get("email_verified") is not True:
            raise self._failed("email_not_verified")
        groups = claims.get("groups") or []
        groups = [groups] if isinstance(groups, str) else groups
        if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
            raise self._failed("groups")
        name = self._checked(claims.get(settings.oidc_user_claim))
        role = self._role(name, groups)
        before = await self._session(request)
        if before is not None:
            await run_in_threadpool(self._end, before)
        response = RedirectResponse(after, 303)
        self._set_session(response, _Session(secrets.token_urlsafe(18), name, role, now, now))
        self._delete(response, "login")
        _log.info(line("signed_in", user=name, role=str(role)))
        return response

    async def _logout(self, request: Request) -> Response:
        await run_in_threadpool(self._end, request.state.session)
        response = RedirectResponse("/signed-out", 303)
        self._delete(response, "session")
        _log.info(line("signed_out", user=current_user(request).name))
        return response

    async def _signed_out(self, request: Request) -> Response:
        message = "You are signed out of this dashboard. Your organisation's sign-in may still know you."
        return self._shown(request, Notice(200, "Signed out", message, ("/login", "Sign in")))

    def _failed(self, reason: str) -> Rejected:
        _log.warning(line("login_failed", error=reason))
        return Rejected(
            403, "login_failed", "signing in did not work: try again, and ask an administrator if it does not help"
        )

    def _denied(self, reason: str, name: str | None, message: str) -> Rejected:
        _log.warning(line("denied", reason=reason, user=name))
        return Rejected(403, reason, message)

    def _checked(self, name: Any) -> str:
        """A name that the ledger can keep. Raises Rejected."""
        if not isinstance(name, str) or not _is_a_name(name):
            raise self._denied("name", None, "you are known by no name that can be noted: ask an administrator")
        return name

    def _role(self, name: str, groups: Iterable[str]) -> Role:
        """The highest that the mapping has for somebody. Raises Rejected."""
        mine = {f"{GROUP}{group}" for group in groups if group} | ({name} if not name.startswith(GROUP) else set())
        roles = [Role[role.upper()] for role, listed in self._settings.dashboard_roles.items() if mine & set(listed)]
        if not roles:
            raise self._denied(
                "no_role",
                name,
                f"you are known as {name}, who has no role here: ask an administrator of this dashboard to add you or "
                "one of your groups to COMPLIANCE_DASHBOARD_ROLES",
            )
        return max(roles)

    async def _refuse_forged(self, request: Request, binding: str) -> None:
        """Raises Rejected for what our own pages did not send. Reads the form."""
        origin = request.headers.get("origin")
        own = (self._settings.dashboard_url, f"{request.url.scheme}://{request.headers['host'].lower()}")
        user = current_user(request).name
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin" or origin not in (None, *own):
            raise self._denied("cross_site", user, "another site sent this: nothing was changed")
        if request.headers.get("content-type", "").partition(";")[0].strip() == "application/x-www-form-urlencoded":
            request.state.form = _fields(await read_body(request, MAX_FORM_BYTES))
        said = self._opened("csrf", request.headers.get("x-csrf-token") or form(request).get("csrf"))
        now = int(self._clock().timestamp())
        if said is None or said[0] != binding or now - said[1] > LIFETIME.total_seconds():
            raise self._denied("csrf", user, "this form is not valid any more: load the page again and send it anew")

    @functools.cached_property
    def _session_salt(self) -> str:
        """Other roles or another issuer end all sessions: a session remembers what it was given."""
        said = self._settings.model_dump(mode="json", include={"dashboard_roles", "oidc_issuer", "oidc_client_id"})
        return f"session/{hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()}"

    def _signer(self, salt: str) -> URLSafeSerializer:
        return URLSafeSerializer(self._key, salt=salt, signer_kwargs={"digest_method": hashlib.sha256})

    def _signed(self, salt: str, value: Any) -> str:
        said = self._signer(salt).dumps(value)
        return said if isinstance(said, str) else said.decode()

    def _opened(self, salt: str, said: str | None) -> Any:
        """What was signed for `salt`, or None."""
        try:
            return self._signer(salt).loads(said or "")
        except BadData:
            return None

    def _cookie(self, name: str) -> str:
        """Cookies know no ports: other services of this machine have the same jar."""
        return f"{'__Host-' if self._is_https else ''}compliance_{name}"

    def _set_session(self, response: Response, session: _Session) -> None:
        value = [session.id, session.name, int(session.role), session.started, session.seen]
        self._set(response, "session", self._signed(self._session_salt, value), None)

    def _set(self, response: Response, name: str, value: str, age: timedelta | None) -> None:
        response.set_cookie(
            self._cookie(name),
            value,
            max_age=int(age.total_seconds()) if age else None,
            httponly=True,
            samesite="lax",
            secure=self._is_https,
        )

    def _delete(self, response: Response, name: str) -> None:
        response.delete_cookie(self._cookie(name), httponly=True, samesite="lax", secure=self._is_https)


class Guard:
    """Around everything: checks which name the dashboard was called by, sets the headers of every answer, and answers
    what failed unforeseen (logged by type, for its text may hold data)."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, has_started = scope["path"], False

        async def guarded(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                headers = MutableHeaders(scope=message)
                headers.update(self._access.headers)
                if path.startswith("/static/"):
                    headers.setdefault("Cache-Control", "no-cache")
                else:
                    headers["Cache-Control"] = "private, no-store"
            await send(message)

        request = Request(scope, receive)
        try:
            if path != "/healthz":
                self._access.check_host(request)
            await self._app(scope, receive, guarded)
        except Rejected as refusal:
            await self._access.refuse(request, refusal)(scope, receive, guarded)
        except Exception as error:
            _log.error(line("failed", error=type(error).__name__))
            if not has_started:
                failure = Rejected(500, "failed", "that went wrong, and is noted in the log: try again")
                await self._access.refuse(request, failure)(scope, receive, guarded)


def _issuer(settings: Settings) -> Any:
    # Only oidc needs it, and it takes long to load.
    from authlib.integrations.starlette_client import OAuth  # type: ignore[import-untyped]

    secret = settings.oidc_client_secret
    return OAuth().register(
        name="issuer",
        client_id=settings.oidc_client_id,
        client_secret=secret.get_secret_value() if secret else None,
        server_metadata_url=f"{(settings.oidc_issuer or '').rstrip('/')}/.well-known/openid-configuration",
        client_kwargs={
            "scope": "openid profile email",
            "code_challenge_method": "S256",
            "token_endpoint_auth_method": "client_secret_basic" if secret else "none",
            "timeout": 10,
            "verify": httpx.create_ssl_context(),
        },
    )


async def _discover(issuer: Any, settings: Settings) -> Any:
    """The issuer's metadata (OpenID Connect Discovery 1.0, 4.3): its own, and only signatures that nobody else can
    make. Raises ValueError."""
    metadata = await issuer.load_server_metadata()
    if str(metadata["issuer"]).rstrip("/") != (settings.oidc_issuer or "").rstrip("/"):
        issuer.server_metadata.clear()
        raise ValueError("another issuer's metadata")
    offered = metadata.get("id_token_signing_alg_values_supported") or ["RS256"]
    metadata["id_token_signing_alg_values_supported"] = [name for name in offered if name in _SIGNING]
    if "groups" in (metadata.get("scopes_supported") or []):
        issuer.client_kwargs["scope"] = "openid profile email groups"
    return metadata


async def _claims(issuer: Any, token: Any, user_claim: str) -> dict[str, Any]:
    """The ID token's claims, and what is missing there from the issuer's userinfo (OpenID Connect Core 1.0, 5.4)."""
    claims = dict(token["userinfo"])
    if issuer.server_metadata.get("userinfo_endpoint") and not {user_claim, "groups"} <= claims.keys():
        more = await issuer.userinfo(token=token)
        if more.get("sub") != claims["sub"]:
            raise ValueError("userinfo of somebody else")
        claims = {**more, **claims}
    return claims


@functools.lru_cache(maxsize=1024)
def _is_a_name(name: str) -> bool:
    try:
        refuse_sensitive(name, "the name")
    except ValueError:
        return False
    return _NAME.fullmatch(name) is not None and name == name.strip()


def _os_user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without an entry
        raise AccessNotConfigured("this user has no name here: set the variable LOGNAME to one") from None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _peer(request: Request) -> str:
    return request.client.host if request.client else ""


def _is_passed_on(request: Request) -> bool:
    """Whether a proxy says that it asks for somebody else."""
    return any(name in ("forwarded", "via") or name.startswith("x-forwarded-") for name in request.headers)


def _utf8(header: str) -> str:
    """Headers are read as Latin-1, and names sent as UTF-8."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeDecodeError:
        return ""


def _fields(body: bytes) -> dict[str, str]:
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=100))
    except ValueError:
        raise Rejected(400, "form", "the form is not as a browser sends it") from None


def _own_path(said: str | None) -> str:
    """A path of ours to go on to: the first page for what leads elsewhere, or to sign-in again."""
    is_own = said is not None and _PATH.fullmatch(said)
    return said if said and is_own and not said.startswith(("/login", "/logout", "/signed-out")) else "/"


def _path(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def _htmx_path(request: Request) -> str:
    """The path of the page that htmx asks from."""
    parts = urlsplit(request.headers.get("hx-current-url", ""))
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _login_for(path: str) -> str:
    return f"/login?next={quote(_own_path(path))}"


def _wants_json(request: Request) -> bool:
    return request.url.path.startswith("/api/") or request.headers.get("accept", "").startswith("application/json")


def _title(status: int) -> str:
    known = {401: "Sign in", 403: "Not allowed", 404: "Not found", 421: "Wrong address"}
    return known.get(status, "That went wrong" if status >= 500 else "Not possible")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
