"""Messages over Apprise to a real HTTP server: what arrives, what is said when it does not, and what is never said."""

import logging
import socket
import time
import traceback

import pytest
from pydantic import SecretStr

from compliance_pipeline import notify
from compliance_pipeline.notify import NotifyFailed, send
from compliance_pipeline_tests.platforms.loopback import Asked, Reply, Server

KEY = "key-canary-91c2"


def urls(port: int) -> dict[str, SecretStr]:
    return {"alerts": SecretStr(f"json://user:{KEY}@127.0.0.1:{port}/hooks/{KEY}")}


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    for name in ("apprise", "urllib3"):
        caplog.set_level(logging.DEBUG, name)
        logging.getLogger(name).propagate = True
    return caplog


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def test_a_message_arrives_with_its_title_and_text_and_no_address_is_logged(
    media_host: Server, everything_logged: pytest.LogCaptureFixture
) -> None:
    media_host.next_up[("POST", f"/hooks/{KEY}")] = [Reply(200)]
    send(urls(port_of(media_host)), "alerts", "Engine down", "It fails *since* 12:00 & <now> {x}.")
    [asked] = media_host.asked
    assert (asked.json["title"], asked.json["message"]) == ("Engine down", "It fails *since* 12:00 & <now> {x}.")
    assert KEY not in everything_logged.text


@pytest.mark.parametrize("status", [302, 403, 500])
def test_a_refusal_names_the_channel_and_not_its_address(
    media_host: Server, everything_logged: pytest.LogCaptureFixture, status: int
) -> None:
    media_host.next_up[("POST", f"/hooks/{KEY}")] = [Reply(status, KEY.encode())]
    with pytest.raises(NotifyFailed, match="alerts") as failed:
        send(urls(port_of(media_host)), "alerts", "t", "b")
    assert len(media_host.asked) == 1
    assert not failed.value.unsure
    assert KEY not in "".join(traceback.format_exception(failed.value)) + everything_logged.text


def test_nobody_listening_and_channels_and_addresses_that_are_none_are_failures(
    everything_logged: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = urls(free.getsockname()[1])
    wrong = {"alerts": SecretStr(f"nosuch://{KEY}")}
    for given, channel in ((nobody, "alerts"), (nobody, "other"), ({}, "alerts"), (wrong, "alerts")):
        with pytest.raises(NotifyFailed, match=channel) as failed:
            send(given, channel, "t", "b")
        assert KEY not in "".join(traceback.format_exception(failed.value)) + everything_logged.text
        assert not failed.value.unsure


def test_a_service_that_breaks_off_before_it_answers_may_have_taken_the_message(
    media_host: Server, everything_logged: pytest.LogCaptureFixture
) -> None:
    media_host.next_up[("POST", f"/hooks/{KEY}")] = [Reply(drop=True)]
    with pytest.raises(NotifyFailed, match="alerts: its service did not answer") as failed:
        send(urls(port_of(media_host)), "alerts", "t", "b")
    assert failed.value.unsure
    assert KEY not in "".join(traceback.format_exception(failed.value)) + everything_logged.text


def test_a_service_that_hangs_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(Server):
        def answer(self, _asked: Asked) -> Reply:
            time.sleep(5)
            return Reply(200)

    monkeypatch.setattr(notify, "SEND_S", 0.5)
    hanging = Hanging()
    try:
        before = time.monotonic()
        with pytest.raises(NotifyFailed) as failed:
            send(urls(port_of(hanging)), "alerts", "t", "b")
        assert failed.value.unsure
        assert time.monotonic() - before < 3
    finally:
        hanging.stop()
