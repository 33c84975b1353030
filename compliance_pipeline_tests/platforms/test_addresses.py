import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from compliance_pipeline import tallies
from compliance_pipeline.database import connect
from compliance_pipeline.platforms.addresses import AddressRules, CheckedTransport, is_local
from compliance_pipeline.platforms.port import Refused
from compliance_pipeline.platforms.profiles import transport_of
from compliance_pipeline.platforms.transport import Transport
from compliance_pipeline.settings import Settings
from compliance_pipeline.tallies import URL_REFUSED
from compliance_pipeline_tests.platforms.loopback import CLIENT, Reply, Server

LISTED = ("media.example.com", "*.s3.amazonaws.com", "10.0.0.5", "[fd00::5]", "bücher.example")


def rules(*hosts: str, schemes: tuple[str, ...] = ("https",)) -> tuple[AddressRules, list[str]]:
    reasons: list[str] = []
    return AddressRules(hosts, schemes, "COMPLIANCE_MEDIA_HOSTS", reasons.append), reasons


def resolver(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """The operating system's resolver, as an attacker's name server has it: each answer once, then the last again."""
    asked: list[str] = []
    real, left = socket.getaddrinfo, list(answers)

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if not str(host).endswith(".test"):
            return real(host, port, *args, **kwargs)
        asked.append(host)
        found = left.pop(0) if len(left) > 1 else left[0]
        return [info for address in found for info in real(address, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    "url",
    [
        "https://media.example.com/x",
        "https://MEDIA.example.com:8443/x",
        "https://bucket.s3.amazonaws.com/x?X-Amz-Signature=1",
        "https://a.b.s3.amazonaws.com/",
        "https://10.0.0.5/x",
        "https://[fd00:0:0::5]/x",
        "https://xn--bcher-kva.example/x",
        "https://bücher.example/x",
    ],
)
def test_listed_hosts_pass_however_they_are_spelled(url: str) -> None:
    allowed, reasons = rules(*LISTED)
    assert allowed.check(url) == httpx.URL(url)
    assert reasons == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://media.example.com/x", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("gopher://media.example.com/", "scheme"),
        ("//media.example.com/", "scheme"),
        ("https:///x", "scheme"),
        ("", "scheme"),
        ("https://[::", "host"),
        ("https://\x00", "host"),
        ("https://user:canary@media.example.com/", "userinfo"),
        ("https://media.example.com\\@evil.example/", "userinfo"),
        ("https://evil.example/media.example.com", "host"),
        ("https://media.example.com.evil.example/", "host"),
        ("https://media.example.com./", "host"),
        ("https://xmedia.example.com/", "host"),
        ("https://s3.amazonaws.com/", "host"),
        ("https://evils3.amazonaws.com/", "host"),
        ("https://m%65dia.example.com/", "host"),
        ("https://10.0.0.6/", "host"),
        ("https://[::ffff:10.0.0.5]/", "host"),
        ("https://[fd00::5%25eth0]/", "host"),
        ("https://167772165/", "host"),
        ("https://0x0a000005/", "host"),
        ("https://012.0.0.5/", "host"),
        ("https://media.example.com:0/", "host"),
        ("https://media.example.com:99999/", "host"),
    ],
)
def test_whatever_is_not_listed_is_refused_by_its_text(url: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    allowed, reasons = rules(*LISTED)
    with caplog.at_level(logging.WARNING), pytest.raises(Refused) as caught:
        allowed.check(url)
    assert reasons == [reason]
    assert f"refused: {reason}" in caplog.text
    assert "canary" not in caplog.text + str(caught.value)
    assert "evil" not in str(caught.value)


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "169.254.169.254", "[::1]", "127。0。0。1", "[fe80::1%25lo]"]
)
def test_without_a_list_no_private_host_passes(host: str) -> None:
    allowed, reasons = rules(schemes=("http", "https"))
    with pytest.raises(Refused, match="not public"):
        allowed.check(f"http://{host}/latest/meta-data")
    assert reasons == ["private_address"]
    assert allowed.check("http://93.184.216.34/")


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f000001", "0177.0.0.1"])
def test_other_spellings_of_loopback_are_refused_where_they_are_resolved(host: str) -> None:
    allowed, reasons = rules(schemes=("http",))
    with pytest.raises(Refused, match="not public"):
        allowed.addresses(host, 80)
    assert reasons == ["private_address"]


@given(st.ip_addresses(network="10.0.0.0/8") | st.ip_addresses(network="fc00::/7") | st.ip_addresses(network="::/96"))
def test_no_private_address_passes_for_a_public_one(address: Any) -> None:
    assert is_local(address)
    if address.version == 4:
        assert is_local(ip_address(f"::ffff:{address}"))


def test_public_addresses_pass() -> None:
    assert not any(map(is_local, map(ip_address, ("93.184.216.34", "2606:2800:220:1::1"))))


@given(st.text(max_size=40) | st.builds("https://{}/".format, st.text(max_size=30)))
def test_any_text_is_passed_or_refused_and_a_list_lets_only_its_own_pass(text: str) -> None:
    allowed, reasons = rules("media.example.com")
    try:
        assert allowed.check(text).host == "media.example.com"
    except Refused:
        assert len(reasons) == 1


# --- where a name leads


def ask(allowed: AddressRules, url: str) -> httpx.Response:
    with httpx.Client(transport=CheckedTransport(allowed)) as client:
        return client.get(allowed.check(url))


def test_a_listed_name_may_be_private_and_one_below_a_domain_may_not(
    media_host: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = media_host.url.rpartition(":")[2]
    media_host.plan("GET", "/x", Reply(200, b"data"))
    resolver(monkeypatch, ["127.0.0.1"])
    allowed, reasons = rules("media.corp.test", "*.other.test", schemes=("http",))
    assert ask(allowed, f"http://media.corp.test:{port}/x").content == b"data"
    assert media_host.asked[0].headers["host"] == f"media.corp.test:{port}", "the name stays, only the address is ours"
    with pytest.raises(Refused, match="not public"):
        ask(allowed, f"http://media.other.test:{port}/x")
    assert reasons == ["private_address"]
    assert len(media_host.asked) == 1


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver(monkeypatch, ["93.184.216.34", "169.254.169.254"])
    allowed, reasons = rules("*.evil.test")
    with pytest.raises(Refused, match="not public"):
        ask(allowed, "https://x.evil.test/")
    assert reasons == ["private_address"]


def test_a_name_that_leads_elsewhere_when_asked_again_is_connected_to_where_it_was_checked(
    media_host: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the first answer is public, the second is home."""
    port = int(media_host.url.rpartition(":")[2])
    asked = resolver(monkeypatch, ["203.0.113.9"], ["127.0.0.1"])
    monkeypatch.setattr("compliance_pipeline.platforms.addresses.is_local", lambda address: str(address)[:4] == "127.")
    connected: list[str] = []

    def create_connection(address: tuple[str, int], *_args: Any, **_kwargs: Any) -> socket.socket:
        connected.append(address[0])
        raise OSError("no such network here")

    monkeypatch.setattr(socket, "create_connection", create_connection)
    allowed, _ = rules("*.evil.test", schemes=("http",))
    with pytest.raises(httpx.ConnectError):
        ask(allowed, f"http://x.evil.test:{port}/")
    assert (connected, len(asked)) == (["203.0.113.9"], 1)


def test_the_next_address_is_tried_when_the_first_does_not_answer(
    media_host: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = media_host.url.rpartition(":")[2]
    media_host.plan("GET", "/x", Reply(200, b"data"))
    resolver(monkeypatch, ["127.0.0.9", "127.0.0.1"])
    allowed, _ = rules("media.corp.test", schemes=("http",))
    assert ask(allowed, f"http://media.corp.test:{port}/x").content == b"data"


def test_a_name_without_address_is_no_answer() -> None:
    allowed, reasons = rules("*.invalid")
    with pytest.raises(httpx.ConnectError):
        ask(allowed, "https://nobody.invalid/")
    assert reasons == []


@pytest.fixture
def dripping() -> Iterator[str]:
    """The address of a server that sends a header without end, a byte at a time."""
    listening = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        with suppress(OSError):
            connection, _ = listening.accept()
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Drip: ")
            for _ in range(200):
                connection.sendall(b"x")
                time.sleep(0.02)

    threading.Thread(target=drip, daemon=True).start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/x"
    listening.close()


def test_headers_that_drip_are_given_up(dripping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compliance_pipeline.platforms.addresses.HEADERS_DEADLINE_S", 0.3)
    allowed, _ = rules("127.0.0.1", schemes=("http",))
    began = time.monotonic()
    with pytest.raises(httpx.ReadTimeout):
        ask(allowed, dripping)
    assert 0.25 < time.monotonic() - began < 2


def test_the_deadline_of_the_headers_is_not_the_bodys(media_host: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compliance_pipeline.platforms.addresses.HEADERS_DEADLINE_S", 0.3)
    media_host.plan("GET", "/x", *[Reply(200, b"x" * 10_000_000)] * 2)
    allowed, _ = rules("127.0.0.1", schemes=("http",))
    with httpx.Client(transport=CheckedTransport(allowed)) as client:
        for _ in range(2):
            with client.stream("GET", f"{media_host.url}/x") as answer:
                time.sleep(0.4)
                assert len(answer.read()) == 10_000_000


# --- as the transport uses them


@pytest.mark.parametrize(
    ("platform", "url", "reason"),
    [
        ("https://api.mypurecloud.com", "http://api.mypurecloud.com/x", "scheme"),
        ("https://api.mypurecloud.com", "https://evil.example/x", "host"),
        ("https://api.mypurecloud.com", "https://169.254.169.254/latest", "host"),
        ("http://127.0.0.1:8090", "http://localhost:8090/x", "host"),
    ],
)
@pytest.mark.parametrize("how", ["open_media", "upload"])
def test_media_urls_that_lead_astray_are_refused(platform: str, url: str, reason: str, how: str) -> None:
    reasons: list[str] = []
    transport = Transport(platform, *CLIENT, refused=reasons.append)
    opened = transport.open_media(url)
    with pytest.raises(Refused, match="media URL on"):
        transport.upload(url, {}, b"data") if how == "upload" else opened.__enter__()
    assert reasons == [reason]
    transport.close()


def test_refusals_are_counted_in_the_database_that_all_share(tmp_path: Path, media_host: Server) -> None:
    settings = Settings(home=tmp_path, _env_file=None, platform_url=media_host.url)
    engine = connect(settings.inbox_database_url)
    transport = transport_of(settings, engine)
    media_host.plan("GET", "/m", Reply(302, headers={"Location": "http://127.0.0.1/"}))
    for url in ("http://169.254.169.254/", "http://10.0.0.1/", "ftp://127.0.0.1/", f"{media_host.url}/m"):
        with pytest.raises(Refused), transport.open_media(url):
            pass
    since = datetime.now(UTC) - timedelta(hours=1)
    assert tallies.counted(engine, URL_REFUSED, since) == {
        URL_REFUSED + "host": 2,
        URL_REFUSED + "scheme": 1,
        URL_REFUSED + "redirect": 1,
    }
    transport.close()
    engine.dispose()


def test_a_refusal_that_cannot_be_counted_is_still_a_refusal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, media_host: Server
) -> None:
    settings = Settings(home=tmp_path, _env_file=None, platform_url=media_host.url)
    engine = connect(settings.inbox_database_url)
    transport = transport_of(settings, engine)
    with pytest.raises(Refused), transport.open_media("ftp://127.0.0.1/"):
        pass
    with engine.begin() as connection:
        for table in sa.inspect(connection).get_table_names():
            connection.exec_driver_sql(f'DROP TABLE "{table}"')
    with pytest.raises(Refused), transport.open_media("ftp://127.0.0.1/"):
        pass
    assert "not counted: OperationalError" in caplog.text
    transport.close()
    engine.dispose()


@pytest.mark.parametrize(
    ("host", "passes"),
    [
        ("api.euc2.pure.cloud", True),
        ("api-downloads.mypurecloud.de", True),
        ("prod-recordings.s3.eu-central-1.amazonaws.com", True),
        ("evil.example", False),
        ("pure.cloud.evil.example", False),
    ],
)
def test_genesys_cloud_serves_media_from_its_region_and_from_s3(tmp_path: Path, host: str, passes: bool) -> None:
    settings = Settings(
        home=tmp_path, _env_file=None, platform_profile="cloud", platform_url="https://api.mypurecloud.de"
    )
    engine = connect(settings.inbox_database_url)
    transport = transport_of(settings, engine)
    check: Callable[[str], object] = transport._rules.check
    if passes:
        check(f"https://{host}/x")
    else:
        with pytest.raises(Refused, match="COMPLIANCE_MEDIA_HOSTS"):
            check(f"https://{host}/x")
    with pytest.raises(Refused):
        check(f"http://{host}/x")
    transport.close()
    engine.dispose()
