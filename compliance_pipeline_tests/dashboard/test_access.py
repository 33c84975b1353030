"""Who may see the dashboard: a real OpenID provider, real uvicorn servers, and browsers' requests by httpx."""

import base64
import hashlib
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx
import pytest
import uvicorn
from itsdangerous import URLSafeSerializer
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey
from oidc_provider_mock import run_server_in_thread  # type: ignore[import-untyped]
from pydantic import SecretStr, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from compliance_pipeline import database
from compliance_pipeline.asgi import Rejected, healthz
from compliance_pipeline.dashboard import access as access_module
from compliance_pipeline.dashboard.access import (
    BY_ITSELF,
    IDLE,
    LIFETIME,
    LOGIN_TIME,
    Access,
    AccessNotConfigured,
    Guard,
    Role,
    csrf_token,
    current_user,
    form,
    known_user,
    needs,
    refuse_open,
    role_of,
)
from compliance_pipeline.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore:get_jwt_config:DeprecationWarning")
"""The provider's own."""
CLIENT = "dashboard"
TLS = httpx.create_ssl_context()
"""Not used, and slow to make: so made once."""
ROLES = {"viewer": ["group:quality"], "reviewer": ["d.ansah", "group:reviewers"], "admin": ["k.lindt"]}


@needs(Role.VIEWER)
def show(request: Request) -> Response:
    user = current_user(request)
    return JSONResponse({"name": user.name, "role": str(user.role), "csrf": csrf_token(request)})


@needs(Role.REVIEWER)
def confirm(request: Request) -> Response:
    return JSONResponse({"confirmed": form(request).get("reason")})


@needs(Role.ADMIN)
async def administer(_request: Request) -> Response:
    return PlainTextResponse("ok")


@needs(Role.VIEWER, keeps_alive=False)
def poll(_request: Request) -> Response:
    return PlainTextResponse("fresh")


@needs(Role.VIEWER)
def fail(_request: Request) -> Response:
    raise RuntimeError("4111 1111 1111 1111")


@needs(Role.VIEWER)
def break_off(_request: Request) -> Response:
    def parts() -> Iterator[bytes]:
        yield b"first"
        raise RuntimeError("4111 1111 1111 1111")

    return StreamingResponse(parts())


async def asset(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("body {}")(scope, receive, send)


@dataclass
class Dashboard:
    """A running one. `ahead`: how far its clock is."""

    url: str
    app: Starlette
    settings: Settings
    ahead: timedelta = timedelta()
    clients: list[httpx.Client] = field(default_factory=list)

    def browser(self, **headers: str) -> httpx.Client:
        """With a jar of its own; follows no redirects by itself."""
        self.clients.append(httpx.Client(base_url=self.url, headers=headers, timeout=20, verify=TLS))
        return self.clients[-1]


@contextmanager
def running(home: Path, bind: str = "127.0.0.1", **chosen: Any) -> Iterator[Dashboard]:
    settings = Settings(_env_file=None, home=home, **chosen)
    engine = database.connect(settings.inbox_database_url)
    made: list[Dashboard] = []
    access = Access(settings, engine, lambda: datetime.now(UTC) + (made[0].ahead if made else timedelta()))
    routes = [
        *access.routes,
        Route("/", show),
        Route("/api/me", show),
        Route("/review", confirm, methods=["POST"]),
        Route("/admin", administer),
        Route("/poll", poll),
        Route("/fail", fail),
        Route("/break", break_off),
        Route("/healthz", needs(Role.PUBLIC)(healthz)),
        Mount("/static", asset),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, access=access)],
        exception_handlers=access.exception_handlers,
    )
    app.state.access = access
    server = uvicorn.Server(uvicorn.Config(app, bind, 0, log_config=None, access_log=False, proxy_headers=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    made.append(Dashboard(f"http://127.0.0.1:{port}", app, settings))
    try:
        yield made[0]
    finally:
        for client in made[0].clients:
            client.close()
        server.should_exit = True
        thread.join()
        engine.dispose()


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    for name in ("werkzeug", "httpx", "uvicorn.access"):  # these are the test's own
        logging.getLogger(name).setLevel(logging.ERROR)
    with run_server_in_thread() as server:
        url = f"http://localhost:{server.server_port}"
        for sub, claims in {
            "1": {"preferred_username": "d.ansah"},
            "2": {"preferred_username": "k.lindt"},
            "3": {"preferred_username": "m.okoro", "groups": ["quality"]},
            "4": {"preferred_username": "s.tranger", "groups": ["sales"]},
            "5": {"preferred_username": "group:reviewers"},
            "6": {"preferred_username": "4111 1111 1111 1111", "groups": ["quality"]},
            "7": {"groups": ["quality"]},
        }.items():
            httpx.put(f"{url}/users/{sub}", json=claims, verify=TLS).raise_for_status()
        yield url


@pytest.fixture(scope="module")
def oidc_server(provider: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    with running(tmp_path_factory.mktemp("oidc"), **by(provider)) as dashboard:
        yield dashboard


@pytest.fixture
def oidc(oidc_server: Dashboard) -> Dashboard:
    oidc_server.ahead = timedelta()
    return oidc_server


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    with running(tmp_path_factory.mktemp("local")) as dashboard:
        yield dashboard


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """Whose proxy is 127.0.0.1, and not 127.0.0.2."""
    home = tmp_path_factory.mktemp("proxied")
    with running(home, dashboard_auth="proxy", dashboard_trusted_proxies=["127.0.0.1"], dashboard_roles=ROLES) as made:
        yield made


def by(issuer: str, **more: Any) -> dict[str, Any]:
    """Settings of a dashboard that people sign in to at `issuer`."""
    known = {"oidc_issuer": issuer, "oidc_client_id": CLIENT, "oidc_client_secret": SecretStr("s3cret")}
    return {"dashboard_auth": "oidc", "dashboard_roles": ROLES, **known, **more}


def authorised(at: str, sub: str) -> str:
    """Where the provider sends somebody who signed in there as `sub`."""
    answer = httpx.post(at, data={"sub": sub}, verify=TLS)
    assert answer.status_code == 302, answer.text
    return answer.headers["location"]


def sign_in(browser: httpx.Client, sub: str, path: str = "/login") -> httpx.Response:
    """Through the provider's form. The last answer is the callback's."""
    return browser.get(authorised(browser.get(path).headers["location"], sub))


def session_of(browser: httpx.Client) -> str:
    return browser.cookies["compliance_session"]


def said_in(session: str) -> list[Any]:
    """What anybody can read who holds the cookie."""
    said: list[Any] = URLSafeSerializer("no key is needed").load_payload(session.rpartition(".")[0].encode())
    return said


def me(browser: httpx.Client) -> dict[str, str]:
    answer = browser.get("/api/me")
    assert answer.status_code == 200, answer.text
    said: dict[str, str] = answer.json()
    return said


def status_with(dashboard: Dashboard, session: str) -> int:
    return httpx.get(
        f"{dashboard.url}/api/me", headers={"Cookie": f"compliance_session={session}"}, verify=TLS
    ).status_code


# --- signing in


def test_somebody_signs_in_at_the_provider_and_is_led_back_to_where_they_were(oidc: Dashboard) -> None:
    browser = oidc.browser()
    asked = browser.get("/?queue=billing&tz=Europe/Berlin")
    assert (asked.status_code, asked.headers["location"]) == (
        303,
        "/login?next=/%3Fqueue%3Dbilling%26tz%3DEurope/Berlin",
    )
    sent = browser.get(asked.headers["location"])
    query = parse_qs(urlsplit(sent.headers["location"]).query)
    assert query["code_challenge_method"] == ["S256"]
    assert query["code_challenge"]
    assert query["state"]
    assert query["nonce"]
    assert query["redirect_uri"] == [f"{oidc.url}/login/callback"]
    back = browser.get(authorised(sent.headers["location"], "1"))
    assert (back.status_code, back.headers["location"]) == (303, "/?queue=billing&tz=Europe/Berlin")
    shown = browser.get(back.headers["location"])
    assert (shown.status_code, shown.json()["name"], shown.json()["role"]) == (200, "d.ansah", "reviewer")


def test_the_role_is_the_highest_that_the_name_or_a_group_is_given(oidc: Dashboard) -> None:
    for sub, role in {"1": "reviewer", "2": "admin", "3": "viewer"}.items():
        browser = oidc.browser()
        sign_in(browser, sub)
        assert me(browser)["role"] == role


def test_a_session_says_who_and_since_when_and_no_token(oidc: Dashboard) -> None:
    browser = oidc.browser()
    answer = sign_in(browser, "1")
    [cookie] = [line for line in answer.headers.get_list("set-cookie") if line.startswith("compliance_session=")]
    assert {"HttpOnly", "Path=/", "SameSite=lax"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert "Max-Age" not in cookie, "it ends with the browser too"
    said = said_in(session_of(browser))
    assert said[1:3] == ["d.ansah", Role.REVIEWER]
    assert [type(one) for one in said] == [str, str, int, int, int]
    assert "compliance_login" not in browser.cookies


def test_over_https_the_cookies_are_secure_and_of_this_host_alone(provider: str, tmp_path: Path) -> None:
    with running(tmp_path, **by(provider, dashboard_url="https://calls.example.com")) as dashboard:
        answer = dashboard.browser(Host="calls.example.com").get("/login")
        assert "redirect_uri=https%3A%2F%2Fcalls.example.com%2Flogin%2Fcallback" in answer.headers["location"]
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-compliance_login=")
        assert {"Secure", "HttpOnly", "Path=/", "SameSite=lax"} <= set(cookie.split("; "))


def test_who_has_no_role_is_told_whom_to_ask_and_gets_no_session(
    oidc: Dashboard, caplog: pytest.LogCaptureFixture
) -> None:
    browser = oidc.browser()
    with caplog.at_level(logging.INFO):
        answer = sign_in(browser, "4")
    assert answer.status_code == 403
    assert "ask an administrator of this dashboard" in answer.text
    assert "COMPLIANCE_DASHBOARD_ROLES" in answer.text
    assert "compliance_session" not in browser.cookies
    denied = [json.loads(record.message) for record in caplog.records if record.name == access_module.__name__]
    assert denied == [{"outcome": "denied", "reason": "no_role", "user": "s.tranger"}]


def test_a_person_named_as_a_group_is_not_in_it(oidc: Dashboard) -> None:
    assert sign_in(oidc.browser(), "5").status_code == 403


def test_a_name_that_the_ledger_must_not_keep_is_refused_and_not_logged(
    oidc: Dashboard, caplog: pytest.LogCaptureFixture
) -> None:
    answer = sign_in(oidc.browser(), "6")
    assert answer.status_code == 403
    assert "4111" not in answer.text + caplog.text


def test_who_has_not_the_claim_is_not_known_by_another(oidc: Dashboard) -> None:
    assert sign_in(oidc.browser(), "7").status_code == 403


def test_an_address_that_the_provider_did_not_verify_names_nobody(provider: str, tmp_path: Path) -> None:
    for sub, verified in (("mail-1", False), ("mail-2", True)):
        claims = {"email": "k@example.com", "email_verified": verified}
        httpx.put(f"{provider}/users/{sub}", json=claims, verify=TLS).raise_for_status()
    chosen = by(provider, oidc_user_claim="email", dashboard_roles={"admin": ["k@example.com"]})
    with running(tmp_path, **chosen) as dashboard:
        assert sign_in(dashboard.browser(), "mail-1").status_code == 403
        assert sign_in(dashboard.browser(), "mail-2").status_code == 303


def test_signing_in_leads_nowhere_else(oidc: Dashboard) -> None:
    for elsewhere in (
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "javascript:alert(1)",
        "evil.example",
        "/login?next=/",
        "/" + "x" * 5000,
        "",
    ):
        browser = oidc.browser()
        answer = sign_in(browser, "1", "/login?" + urlencode({"next": elsewhere}))
        assert answer.headers["location"] == "/", elsewhere


def test_a_session_is_a_new_one_after_each_sign_in_and_the_one_before_has_ended(oidc: Dashboard) -> None:
    browser = oidc.browser()
    sign_in(browser, "1")
    before = session_of(browser)
    assert status_with(oidc, before) == 200
    sign_in(browser, "2")
    assert session_of(browser) != before
    assert me(browser)["name"] == "k.lindt"
    assert status_with(oidc, before) == 401


def test_a_session_that_was_brought_along_is_not_taken_over(oidc: Dashboard) -> None:
    browser = oidc.browser()
    browser.cookies["compliance_session"] = "planted"
    sign_in(browser, "1")
    assert status_with(oidc, "planted") == 401
    sessions = [cookie.value for cookie in browser.cookies.jar if cookie.name == "compliance_session"]
    assert [status_with(oidc, session or "") for session in sessions].count(200) == 1


# --- what the provider's answers must be


def callback(browser: httpx.Client, **changed: str) -> httpx.Response:
    """The callback of a true sign-in, with parameters changed."""
    at = urlsplit(authorised(browser.get("/login").headers["location"], "1"))
    return browser.get(f"/login/callback?{urlencode(dict(parse_qsl(at.query)) | changed)}")


def test_a_wrong_or_missing_state_or_code_is_refused(oidc: Dashboard) -> None:
    assert callback(oidc.browser()).status_code == 303
    assert callback(oidc.browser(), state="another").status_code == 403
    assert callback(oidc.browser(), state="").status_code == 403
    assert callback(oidc.browser(), code="another").status_code == 403
    assert oidc.browser().get("/login/callback").status_code == 403


def test_the_callback_of_another_browser_is_refused(oidc: Dashboard) -> None:
    attacker, victim = oidc.browser(), oidc.browser()
    at = authorised(attacker.get("/login").headers["location"], "1")
    victim.get("/login")
    assert victim.get(at).status_code == 403
    assert oidc.browser().get(at).status_code == 403
    assert attacker.get(at).status_code == 303


def test_a_callback_works_once_and_for_ten_minutes(oidc: Dashboard) -> None:
    browser = oidc.browser()
    at = authorised(browser.get("/login").headers["location"], "1")
    kept = browser.cookies["compliance_login"]
    assert browser.get(at).status_code == 303
    browser.cookies["compliance_login"] = kept
    assert browser.get(at).status_code == 403
    late = oidc.browser()
    at = authorised(late.get("/login").headers["location"], "1")
    oidc.ahead = LOGIN_TIME + timedelta(seconds=2)
    assert late.get(at).status_code == 403


def test_a_sign_in_with_another_nonce_is_refused(oidc: Dashboard) -> None:
    browser = oidc.browser()
    at = browser.get("/login").headers["location"]
    assert browser.get(authorised(re.sub(r"nonce=[^&]+", "nonce=another", at), "1")).status_code == 403
    assert "compliance_session" not in browser.cookies


def test_a_code_that_was_made_for_another_client_is_refused(oidc: Dashboard) -> None:
    browser = oidc.browser()
    at = browser.get("/login").headers["location"]
    assert browser.get(authorised(at.replace(f"client_id={CLIENT}", "client_id=other"), "1")).status_code == 403


def test_what_the_provider_says_of_a_failure_is_neither_shown_nor_logged(
    oidc: Dashboard, caplog: pytest.LogCaptureFixture
) -> None:
    browser = oidc.browser()
    browser.get("/login")
    with caplog.at_level(logging.INFO, access_module.__name__):
        answer = browser.get("/login/callback?error=access_denied&error_description=D.+Ansah+%3Cb%3E")
    assert answer.status_code == 403
    assert "try again" in answer.text
    assert "Ansah" not in answer.text + caplog.text
    assert "access_denied" not in answer.text + caplog.text


@dataclass
class Forger:
    """A provider that signs what it is told to. `claims` and `header` change the ID token."""

    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "k1", "use": "sig"}))
    url: str = ""
    claims: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    signs: Callable[[dict[str, Any]], str | None] | None = None
    userinfo: dict[str, Any] | None = None
    asked: list[tuple[str | None, dict[str, str]]] = field(default_factory=list)
    """Each time that a code was to be turned into a token: the Authorization header, and the form."""

    def token(self, claims: dict[str, Any]) -> str | None:
        return self.signs(claims) if self.signs else jwt.encode({"alg": "RS256", "kid": "k1"}, claims, self.key)

    def app(self) -> Starlette:
        async def discovery(_request: Request) -> Response:
            known = {"issuer": self.url, "jwks_uri": f"{self.url}/jwks", "token_endpoint": f"{self.url}/token"}
            if self.userinfo is not None:
                known["userinfo_endpoint"] = f"{self.url}/userinfo"
            return JSONResponse(known | {"authorization_endpoint": f"{self.url}/authorize"} | self.metadata)

        async def jwks(_request: Request) -> Response:
            return JSONResponse({"keys": [self.key.as_dict(private=False)]})

        async def userinfo(request: Request) -> Response:
            assert request.headers["authorization"] == "Bearer a"
            return JSONResponse(self.userinfo)

        async def token(request: Request) -> Response:
            now = int(time.time())
            sent = dict(parse_qsl((await request.body()).decode()))
            self.asked.append((request.headers.get("authorization"), sent))
            known = {"iss": self.url, "aud": CLIENT, "sub": "1", "iat": now, "exp": now + 300}
            claims = known | {"preferred_username": "d.ansah", "groups": []} | self.claims
            signed = self.token({name: value for name, value in claims.items() if value is not None})
            return JSONResponse(
                {"access_token": "a", "token_type": "Bearer"} | ({"id_token": signed} if signed is not None else {})
            )

        return Starlette(
            routes=[
                Route("/.well-known/openid-configuration", discovery),
                Route("/jwks", jwks),
                Route("/userinfo", userinfo),
                Route("/token", token, methods=["POST"]),
            ]
        )


@pytest.fixture
def forger() -> Iterator[Forger]:
    forger = Forger()
    server = uvicorn.Server(uvicorn.Config(forger.app(), port=0, log_config=None, access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    forger.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield forger
    server.should_exit = True
    thread.join()


def forged(dashboard: Dashboard, forger: Forger, **claims: Any) -> int:
    """What becomes of a sign-in whose ID token has these claims (None: without them)."""
    browser = dashboard.browser()
    query = dict(parse_qsl(urlsplit(browser.get("/login").headers["location"]).query))
    forger.claims = {"nonce": query["nonce"]} | claims
    answer = browser.get("/login/callback", params={"code": "c", "state": query["state"]})
    assert ("compliance_session" in browser.cookies) == (answer.status_code == 303)
    return answer.status_code


def b64(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def unsigned(claims: dict[str, Any]) -> str:
    return f"{b64(json.dumps({'alg': 'none'}).encode())}.{b64(json.dumps(claims).encode())}."


def test_an_id_token_must_be_signed_by_the_issuer_for_us_now_and_for_this_sign_in(
    forger: Forger, tmp_path: Path
) -> None:
    forger.metadata = {"id_token_signing_alg_values_supported": ["RS256", "HS256", "none"]}
    with running(tmp_path, **by(forger.url)) as dashboard:
        now = int(time.time())
        assert forged(dashboard, forger) == 303
        assert forged(dashboard, forger, aud=[CLIENT, "other"], azp=CLIENT) == 303
        for wrong in (
            {"iss": "https://evil.example"},
            {"iss": None},
            {"aud": "other"},
            {"aud": "other", "azp": CLIENT},
            {"aud": ["other"]},
            {"aud": [CLIENT, "other"], "azp": "other"},
            {"aud": None},
            {"exp": now - 3600},
            {"exp": None},
            {"iat": now + 3600},
            {"nonce": "another"},
            {"nonce": None},
            {"sub": None},
        ):
            assert forged(dashboard, forger, **wrong) == 403, wrong
        stranger = RSAKey.generate_key(2048, {"kid": "k1"})
        public = forger.key.as_pem(private=False)
        for signs in (
            lambda claims: jwt.encode({"alg": "RS256", "kid": "k1"}, claims, stranger),
            lambda claims: jwt.encode({"alg": "HS256", "kid": "k1"}, claims, OctKey.import_key(b64(public))),
            unsigned,
            lambda _claims: None,
            lambda _claims: "garbage",
        ):
            forger.signs = signs
            assert forged(dashboard, forger) == 403
        forger.signs = None
        assert forged(dashboard, forger) == 303


def test_keys_that_the_issuer_changed_meanwhile_are_asked_for(forger: Forger, tmp_path: Path) -> None:
    with running(tmp_path, **by(forger.url)) as dashboard:
        assert forged(dashboard, forger) == 303
        forger.key = RSAKey.generate_key(2048, {"kid": "k2", "use": "sig"})
        forger.signs = lambda claims: jwt.encode({"alg": "RS256", "kid": "k2"}, claims, forger.key)
        assert forged(dashboard, forger) == 303


def test_claims_of_odd_shapes_are_refused_and_not_an_error_of_ours(forger: Forger, tmp_path: Path) -> None:
    with running(tmp_path, **by(forger.url)) as dashboard:
        assert forged(dashboard, forger, preferred_username="x", groups="quality") == 303
        shapes: list[Any] = [7, [None, 7, {"a": []}], {"quality": 1}, ["quality", 7], None, "", [], ["group:quality"]]
        for groups in shapes:
            assert forged(dashboard, forger, preferred_username="x", groups=groups) == 403, groups
        for name in (7, ["d.ansah"], "", " d.ansah", "d.ansah\n", "x" * 129):
            assert forged(dashboard, forger, preferred_username=name, groups=["quality"]) == 403, name


def test_claims_that_the_id_token_leaves_out_are_asked_for_by_userinfo_of_the_same_person(
    forger: Forger, tmp_path: Path
) -> None:
    forger.userinfo = {"sub": "1", "preferred_username": "x", "groups": ["quality"]}
    with running(tmp_path, **by(forger.url)) as dashboard:
        assert forged(dashboard, forger, preferred_username=None, groups=None) == 303
        forger.userinfo |= {"preferred_username": "k.lindt", "groups": ["sales"]}
        assert forged(dashboard, forger, preferred_username="x", groups=None) == 403, "the ID token goes first"
        assert forged(dashboard, forger, preferred_username=None, groups=None) == 303
        forger.userinfo["sub"] = "2"
        assert forged(dashboard, forger, preferred_username=None, groups=None) == 403


def test_the_code_is_redeemed_with_the_secret_if_there_is_one_and_the_verifier_of_its_challenge(
    forger: Forger, tmp_path: Path
) -> None:
    for place, secret in (("a", SecretStr("s3cret")), ("b", None)):
        with running(tmp_path / place, **by(forger.url, oidc_client_secret=secret)) as dashboard:
            browser = dashboard.browser()
            query = dict(parse_qsl(urlsplit(browser.get("/login").headers["location"]).query))
            forger.claims = {"nonce": query["nonce"]}
            assert browser.get("/login/callback", params={"code": "c", "state": query["state"]}).status_code == 303
        authorization, sent = forger.asked.pop()
        known = "Basic " + base64.b64encode(f"{CLIENT}:s3cret".encode()).decode()
        assert (authorization, sent.get("client_id")) == ((known, None) if secret else (None, CLIENT))
        assert b64(hashlib.sha256(sent["code_verifier"].encode()).digest()) == query["code_challenge"]


def test_another_issuers_metadata_or_none_at_all_is_refused_and_signing_in_works_once_it_is_right(
    forger: Forger, tmp_path: Path
) -> None:
    with running(tmp_path / "a", **by(forger.url)) as dashboard:
        forger.metadata = {"issuer": "https://evil.example"}
        answer = dashboard.browser().get("/login")
        assert answer.status_code == 502
        assert "try again later" in answer.text
        forger.metadata = {}
        assert forged(dashboard, forger) == 303
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with running(tmp_path / "b", **by(f"http://127.0.0.1:{nobody.getsockname()[1]}")) as dashboard:
            assert dashboard.browser().get("/login").status_code == 502


# --- sessions


def test_a_forged_or_changed_session_is_none(oidc: Dashboard) -> None:
    browser = oidc.browser()
    sign_in(browser, "3")
    true = session_of(browser)
    payload, _, signature = true.rpartition(".")
    said = said_in(true)
    promoted = b64(json.dumps([said[0], "k.lindt", 3, *said[3:]]).encode())
    elsewhere = URLSafeSerializer("a guess", salt="session").dumps(said)
    for forgery in (f"{promoted}.{signature}", f"{payload}.{signature[::-1]}", payload, "", ".", "é", str(elsewhere)):
        cookie = f"compliance_session={forgery}".encode()
        answer = httpx.get(f"{oidc.url}/api/me", headers={b"Cookie": cookie}, verify=TLS)
        assert answer.status_code == 401, forgery
    assert status_with(oidc, true) == 200


def test_what_is_signed_for_one_purpose_is_good_for_no_other(oidc: Dashboard) -> None:
    browser = oidc.browser()
    browser.get("/login")
    state = browser.cookies["compliance_login"]
    sign_in(browser, "1")
    for other in (state, me(browser)["csrf"]):
        assert status_with(oidc, other) == 401


def test_a_session_ends_when_idle_and_at_the_latest_after_its_lifetime(oidc: Dashboard) -> None:
    browser = oidc.browser()
    sign_in(browser, "1")
    first = session_of(browser)
    while oidc.ahead + IDLE * 0.9 < LIFETIME:
        oidc.ahead += IDLE * 0.9
        assert me(browser)["name"] == "d.ansah"
    assert session_of(browser) != first
    assert status_with(oidc, first) == 401, "the cookie as it was at first was idle"
    oidc.ahead = LIFETIME + timedelta(seconds=2)
    assert browser.get("/api/me").status_code == 401

    oidc.ahead = timedelta()
    idle = oidc.browser()
    sign_in(idle, "1")
    oidc.ahead = IDLE - timedelta(seconds=2)
    assert status_with(oidc, session_of(idle)) == 200
    oidc.ahead = IDLE + timedelta(seconds=2)
    answer = idle.get("/")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/")


def test_a_page_that_asks_by_itself_keeps_nobody_signed_in(oidc: Dashboard) -> None:
    browser = oidc.browser()
    sign_in(browser, "1")
    for _ in range(3):
        oidc.ahead += IDLE * 0.3
        assert browser.get("/poll").status_code == 200
        assert browser.get("/", headers={BY_ITSELF: "1"}).status_code == 200
    oidc.ahead += IDLE * 0.3
    assert browser.get("/poll").status_code == 303


def test_signing_out_ends_the_session_for_a_copy_of_the_cookie_and_after_a_restart_too(
    oidc: Dashboard, provider: str
) -> None:
    browser = oidc.browser()
    sign_in(browser, "1")
    copy = session_of(browser)
    answer = browser.post("/logout", data={"csrf": me(browser)["csrf"]})
    assert (answer.status_code, answer.headers["location"]) == (303, "/signed-out")
    assert "compliance_session" not in browser.cookies
    shown = browser.get("/signed-out")
    assert (shown.status_code, "signed out" in shown.text) == (200, True)
    assert status_with(oidc, copy) == 401
    with running(oidc.settings.home, **by(provider)) as again:
        assert status_with(again, copy) == 401


def test_sessions_outlive_a_restart_and_end_when_roles_change(oidc: Dashboard, provider: str) -> None:
    browser = oidc.browser()
    sign_in(browser, "1")
    with running(oidc.settings.home, **by(provider)) as again:
        assert status_with(again, session_of(browser)) == 200
    with running(oidc.settings.home, **by(provider, dashboard_roles={"viewer": ["d.ansah"]})) as changed:
        assert status_with(changed, session_of(browser)) == 401


def test_who_is_not_signed_in_is_led_to_the_sign_in_in_the_way_of_what_they_asked(oidc: Dashboard) -> None:
    stranger = oidc.browser()
    api = stranger.get("/api/me")
    assert (api.status_code, api.json()["reason"]) == (401, "login")
    at = f"{oidc.url}/?queue=a"
    part = stranger.get("/", headers={"HX-Request": "true", "HX-Current-URL": at})
    assert (part.status_code, part.headers["hx-redirect"]) == (401, "/login?next=/%3Fqueue%3Da")
    away = stranger.get("/", headers={"HX-Request": "true", "HX-Current-URL": "https://evil.example//evil.example"})
    assert away.headers["hx-redirect"] == "/login?next=/"
    sent = stranger.post("/review", data={"reason": "x"})
    assert (sent.status_code, 'href="/login?next=/review"' in sent.text) == (401, True)
    assert "Go back first for what you typed" in sent.text


# --- roles


def test_a_role_may_what_those_before_it_may_and_no_more(oidc: Dashboard) -> None:
    expected = {"3": (200, 403, 403), "1": (200, 200, 403), "2": (200, 200, 200)}
    for sub, statuses in expected.items():
        browser = oidc.browser()
        sign_in(browser, sub)
        token = me(browser)["csrf"]
        answers = browser.get("/"), browser.post("/review", data={"csrf": token}), browser.get("/admin")
        assert tuple(answer.status_code for answer in answers) == statuses


def test_a_refusal_says_which_role_is_needed_and_whom_to_ask(oidc: Dashboard) -> None:
    browser = oidc.browser()
    sign_in(browser, "3")
    page = browser.get("/admin")
    assert page.status_code == 403
    assert "role admin, and yours is viewer: ask an administrator" in page.text
    assert "text/html" in page.headers["content-type"]


def test_a_handler_that_does_not_say_which_role_it_needs_is_found() -> None:
    with pytest.raises(LookupError, match="healthz says not who may use it"):
        role_of(healthz)


# --- forged requests


def test_a_form_of_ours_is_taken_by_its_field_and_a_script_s_by_its_header(local: Dashboard) -> None:
    browser = local.browser()
    token = me(browser)["csrf"]
    sent = browser.post("/review", data={"csrf": token, "reason": "Ünïcode & more", "empty": ""})
    assert (sent.status_code, sent.json()) == (200, {"confirmed": "Ünïcode & more"})
    headers = {"X-CSRF-Token": token, "Sec-Fetch-Site": "same-origin", "Origin": local.url}
    assert browser.post("/review", data={"reason": "r"}, headers=headers).json() == {"confirmed": "r"}
    assert browser.post("/review", json={}, headers=headers).status_code == 200


def test_a_request_without_our_token_or_from_elsewhere_changes_nothing(oidc: Dashboard) -> None:
    browser, other = oidc.browser(), oidc.browser()
    sign_in(browser, "1")
    sign_in(other, "1")
    token = me(browser)["csrf"]
    for data in (
        {},
        {"csrf": ""},
        {"csrf": "wrong"},
        {"csrf": token[:-9] + ("A" if token[-9] != "A" else "B") + token[-8:]},
        {"csrf": me(other)["csrf"]},
        {"csrf": session_of(browser)},
    ):
        answer = browser.post("/review", data=data)
        assert (answer.status_code, "load the page again" in answer.text) == (403, True), data
        assert browser.post("/review", headers={"X-CSRF-Token": data.get("csrf", "")}).status_code == 403
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": oidc.url.replace("http:", "https:")},
        {"Origin": f"{oidc.url}.evil.example"},
        {"Origin": oidc.url, "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ):
        answer = browser.post("/review", data={"csrf": token}, headers=headers)
        assert (answer.status_code, "Another site" in answer.text) == (403, True), headers
    assert browser.post("/review", data={"csrf": token}, headers={"Origin": oidc.url}).status_code == 200
    assert browser.get("/logout").status_code == 405
    assert browser.post("/logout").status_code == 403
    assert me(browser)["name"] == "d.ansah"


def test_a_token_is_good_as_long_as_a_session_can_be(tmp_path: Path) -> None:
    with running(tmp_path) as dashboard:
        browser = dashboard.browser()
        token = me(browser)["csrf"]
        dashboard.ahead = LIFETIME - timedelta(seconds=2)
        assert browser.post("/review", data={"csrf": token}).status_code == 200
        dashboard.ahead = LIFETIME + timedelta(seconds=2)
        assert browser.post("/review", data={"csrf": token}).status_code == 403


def test_a_form_that_no_browser_sends_is_refused(local: Dashboard) -> None:
    browser = local.browser()
    token, kind = me(browser)["csrf"], {"Content-Type": "application/x-www-form-urlencoded"}
    bodies = {b"csrf=%ff": 400, b"\xff=1": 400, b"a=1&" * 101: 400, b"x" * (64 * 1024 + 1): 413}
    for body, status in bodies.items():
        answer = browser.post("/review", content=body, headers=kind | {"X-CSRF-Token": token})
        assert answer.status_code == status, body[:20]


def test_tokens_of_one_user_behind_a_proxy_are_no_good_for_another(proxied: Dashboard) -> None:
    one, other = proxied.browser(**{"X-Forwarded-User": "d.ansah"}), proxied.browser(**{"X-Forwarded-User": "k.lindt"})
    assert other.post("/review", data={"csrf": me(one)["csrf"]}).status_code == 403
    assert one.post("/review", data={"csrf": me(one)["csrf"]}).status_code == 200


# --- the machine's own address


def test_on_this_machine_everybody_is_its_user_and_an_admin(
    local: Dashboard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    browser = local.browser()
    assert me(browser)["role"] == "admin"
    assert browser.get("/login").status_code == 404
    monkeypatch.setenv("LOGNAME", "r.osei")
    with running(tmp_path) as dashboard:
        assert me(dashboard.browser())["name"] == "r.osei"


@pytest.mark.parametrize("header", ["Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-User", "x-forwarded-proto"])
def test_whom_a_proxy_on_this_machine_asks_for_is_not_this_machines_user(local: Dashboard, header: str) -> None:
    answer = local.browser(**{header: "for=192.0.2.1"}).get("/api/me")
    assert (answer.status_code, answer.json()["reason"]) == (403, "remote")


@pytest.mark.parametrize("mode", ["local", "oidc", "proxied"])
def test_another_name_that_leads_to_this_machine_is_refused(mode: str, request: pytest.FixtureRequest) -> None:
    dashboard: Dashboard = request.getfixturevalue(mode)
    port = urlsplit(dashboard.url).port
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", "127.0.0.1@evil.example",
                 "evil.example@127.0.0.1", "[::1].evil.example", "", "localhost:x", "0.0.0.0"):  # fmt: skip
        browser = dashboard.browser(Host=host, **{"X-Forwarded-User": "k.lindt"})
        for path in ("/", "/api/me", "/login", "/static/app.css", "/nothing"):
            assert browser.get(path).status_code in (400, 421), (host, path)
    for host in ("127.0.0.1", f"localhost:{port}", "LOCALHOST", "[::1]:1"):
        browser = dashboard.browser(Host=host, **({} if mode == "local" else {"X-Forwarded-User": "k.lindt"}))
        assert browser.get("/").status_code in (200, 303)


def test_two_host_headers_are_none(local: Dashboard) -> None:
    address = urlsplit(local.url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=10) as raw:
        raw.sendall(b"GET /api/me HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        answer = raw.makefile("rb").read()
    assert answer.split(b" ")[1] in (b"400", b"421")


def test_whether_it_lives_may_be_asked_by_any_name(local: Dashboard) -> None:
    assert local.browser(Host="10.1.2.3:8090").get("/healthz").status_code == 200


def test_one_that_was_opened_by_mistake_all_the_same_knows_only_its_own_machine(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it says which address would be used
        except OSError:
            pytest.skip("this machine has no address but its own")
        own = probe.getsockname()[0]
    with running(tmp_path, "0.0.0.0") as dashboard:
        port = urlsplit(dashboard.url).port
        answer = httpx.get(f"http://{own}:{port}/api/me", headers={"Host": "127.0.0.1"}, verify=TLS)
        assert (answer.status_code, answer.json()["reason"]) == (403, "remote")
        assert me(dashboard.browser())["role"] == "admin"


def settings(**chosen: Any) -> Settings:
    return Settings(_env_file=None, **chosen)


def test_it_is_not_opened_to_others_without_anybody_signing_in() -> None:
    for host in ("127.0.0.1", "127.0.0.2", "localhost", "::1"):
        refuse_open(settings(dashboard_host=host))
    for host in ("0.0.0.0", "::", "10.0.0.5", "dashboard.example.com", "localhost.example.com", "127.0.0.1.example"):
        with pytest.raises(
            AccessNotConfigured, match=r"open to everybody who reaches .* set COMPLIANCE_DASHBOARD_AUTH"
        ):
            refuse_open(settings(dashboard_host=host))
    refuse_open(settings(dashboard_url="http://localhost:8090"))
    with pytest.raises(AccessNotConfigured, match=r"open to everybody who reaches https://calls"):
        refuse_open(settings(dashboard_url="https://calls.example.com"))


def test_what_is_missing_for_a_sign_in_is_said_before_anybody_tries(tmp_path: Path) -> None:
    whole = {"dashboard_host": "10.0.0.5", "dashboard_url": "https://calls.example.com", "dashboard_roles": ROLES}
    oidc = whole | by("https://login.example.com")
    proxy = whole | {"dashboard_auth": "proxy", "dashboard_trusted_proxies": ["10.0.0.0/24"]}
    for good in (oidc, proxy):
        refuse_open(settings(**good))
    for wrong, said in (
        (oidc | {"oidc_issuer": None}, "COMPLIANCE_OIDC_ISSUER"),
        (oidc | {"oidc_client_id": None}, "COMPLIANCE_OIDC_CLIENT_ID"),
        (proxy | {"dashboard_trusted_proxies": []}, "COMPLIANCE_DASHBOARD_TRUSTED_PROXIES"),
        (proxy | {"dashboard_roles": {}}, "COMPLIANCE_DASHBOARD_ROLES"),
        (oidc | {"dashboard_roles": {"admin": []}}, "COMPLIANCE_DASHBOARD_ROLES"),
        (oidc | {"dashboard_url": None}, "COMPLIANCE_DASHBOARD_URL"),
    ):
        with pytest.raises(AccessNotConfigured, match=f"set .*{said}"):
            refuse_open(settings(**wrong))
        engine = database.connect("sqlite://")
        with pytest.raises(AccessNotConfigured):
            Access(settings(home=tmp_path, **wrong), engine)


def test_settings_that_can_only_be_a_mistake_are_refused() -> None:
    for wrong in (
        {"dashboard_url": "calls.example.com"},
        {"dashboard_url": "https://calls.example.com/compliance"},
        {"dashboard_url": "ftp://calls.example.com"},
        {"dashboard_url": "https://calls.example.com/?a=1"},
        {"dashboard_url": "https://user@calls.example.com"},
        {"dashboard_url": "https://"},
        {"dashboard_url": ""},
        {"oidc_issuer": "http://login.example.com"},
        {"oidc_issuer": "login.example.com"},
        {"dashboard_trusted_proxies": ["proxy.example.com"]},
        {"dashboard_trusted_proxies": ["10.0.0.5/24"]},
        {"dashboard_roles": {"owner": ["k.lindt"]}},
        {"dashboard_auth": "basic"},
    ):
        with pytest.raises(ValidationError):
            settings(**wrong)
    assert settings(dashboard_url="HTTPS://Calls.example.com/").dashboard_url == "https://calls.example.com"


# --- behind a proxy


def test_a_trusted_proxy_says_who_it_is_and_of_which_groups(proxied: Dashboard) -> None:
    for headers, role in (
        ({"X-Forwarded-User": "d.ansah"}, "reviewer"),
        ({"X-Forwarded-User": "x", "X-Forwarded-Groups": "sales, quality"}, "viewer"),
        ({"X-Forwarded-User": "d.ansah", "X-Forwarded-Groups": "quality"}, "reviewer"),
    ):
        assert me(proxied.browser(**headers)) | {"csrf": ""} == {
            "name": headers["X-Forwarded-User"],
            "role": role,
            "csrf": "",
        }
    browser = proxied.browser()
    named = browser.get(
        "/api/me", headers={b"X-Forwarded-User": "j.müller".encode(), b"X-Forwarded-Groups": b"quality"}
    )
    assert named.json()["name"] == "j.müller"


def test_a_proxy_that_names_nobody_or_two_is_refused(proxied: Dashboard) -> None:
    browser = proxied.browser()
    for headers in (
        [],
        [("X-Forwarded-User", "")],
        [("X-Forwarded-User", "d.ansah"), ("X-Forwarded-User", "k.lindt")],
        [("X-Forwarded-User", "x"), ("X-Forwarded-Groups", "quality"), ("X-Forwarded-Groups", "reviewers")],
        [("X-Forwarded-User", "x")],
        [("X-Forwarded-User", "group:reviewers")],
        [("X-Forwarded-User", "\xff")],
    ):
        answer = browser.get("/api/me", headers=[(name.encode(), value.encode("latin-1")) for name, value in headers])
        assert answer.status_code == 403, headers


def test_headers_of_anybody_but_the_proxy_are_not_believed(
    proxied: Dashboard, caplog: pytest.LogCaptureFixture
) -> None:
    """127.0.0.2 is another machine to a server that trusts 127.0.0.1."""
    stranger = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=proxied.url, transport=stranger) as http:
        for headers in (
            {"X-Forwarded-User": "k.lindt"},
            {"X-Forwarded-User": "k.lindt", "X-Forwarded-For": "127.0.0.1"},
            {"X-Forwarded-User": "k.lindt", "Forwarded": "for=127.0.0.1", "X-Real-IP": "127.0.0.1"},
        ):
            answer = http.get("/api/me", headers=headers)
            assert (answer.status_code, answer.json()["reason"]) == (403, "proxy")
            assert "by its proxy only" in answer.json()["error"]
    assert "k.lindt" not in caplog.text


def test_a_proxy_may_call_the_dashboard_by_its_public_name_and_forms_come_from_there(tmp_path: Path) -> None:
    chosen: dict[str, Any] = {
        "dashboard_auth": "proxy",
        "dashboard_trusted_proxies": ["127.0.0.0/8"],
        "dashboard_roles": ROLES,
    }
    with running(tmp_path, dashboard_url="https://calls.example.com", **chosen) as dashboard:
        for host in ("calls.example.com", "127.0.0.1"):
            browser = dashboard.browser(Host=host, **{"X-Forwarded-User": "k.lindt"})
            headers = {"Origin": "https://calls.example.com", "Sec-Fetch-Site": "same-origin"}
            assert browser.post("/review", data={"csrf": me(browser)["csrf"]}, headers=headers).status_code == 200
            assert browser.get("/").headers["strict-transport-security"] == "max-age=31536000"
        assert dashboard.browser(Host="calls.example.com:444").get("/").status_code == 421


# --- every answer


def test_every_answer_has_the_security_headers_and_only_static_files_may_be_kept(oidc: Dashboard) -> None:
    browser = oidc.browser()
    sign_in(browser, "1")
    stranger = oidc.browser()
    answers = [
        *(browser.get(path) for path in ("/", "/api/me", "/admin", "/nothing", "/static/app.css", "/fail", "/login")),
        *(stranger.get(path) for path in ("/", "/api/me", "/login/callback")),
        stranger.get("/", headers={"Host": "evil.example"}),
        browser.post("/review"),
    ]
    assert {answer.status_code for answer in answers} == {200, 302, 303, 401, 403, 404, 421, 500}
    for answer in answers:
        assert answer.headers["content-security-policy"] == (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
            "connect-src 'self'; media-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert "camera=()" in answer.headers["permissions-policy"]
        is_static = answer.url.path.startswith("/static/")
        assert answer.headers["cache-control"] == ("no-cache" if is_static else "private, no-store")


def test_an_error_of_ours_is_logged_by_its_type_and_shown_without_its_text(
    local: Dashboard, caplog: pytest.LogCaptureFixture
) -> None:
    answer = local.browser().get("/fail")
    assert (answer.status_code, "try again" in answer.text) == (500, True)
    assert "4111" not in answer.text + caplog.text
    assert '"error": "RuntimeError"' in caplog.text


def test_an_answer_that_fails_half_way_does_not_look_whole(local: Dashboard, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        local.browser().get("/break")
    assert "4111" not in caplog.text


def test_a_page_may_be_made_by_the_dashboards_own_templates(tmp_path: Path) -> None:
    def page(request: Request, notice: access_module.Notice) -> Response:
        return PlainTextResponse(f"{notice.title} | {notice.message} | {known_user(request)}", notice.status)

    engine = database.connect("sqlite://")
    access = Access(settings(home=tmp_path), engine, page=page)
    scope = {"type": "http", "method": "GET", "path": "/x", "headers": [], "query_string": b"", "server": ("h", 1)}
    answer = access.refuse(Request(scope), Rejected(404, "http", "there is no such page"))
    assert (answer.status_code, answer.body) == (404, b"Not found | There is no such page. | None")


def test_a_notice_is_shown_plainly_where_the_templates_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def page(_request: Request, _notice: access_module.Notice) -> Response:
        raise RuntimeError("4111 1111 1111 1111")

    access = Access(settings(home=tmp_path), database.connect("sqlite://"), page=page)
    scope = {"type": "http", "method": "GET", "path": "/x", "headers": [], "query_string": b"", "server": ("h", 1)}
    answer = access.refuse(Request(scope), Rejected(403, "role", "not <you>"))
    assert (answer.status_code, b"<p>Not &lt;you&gt;.</p>" in bytes(answer.body)) == (403, True)
    assert "4111" not in caplog.text
