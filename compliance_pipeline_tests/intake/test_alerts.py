"""Alerts over a real database and HTTP service: once, whoever looks, and again where sending failed."""

import logging
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from compliance_pipeline.alerts import AT_ONCE, CLAIM, QUIET, due_alerts, send_due, settle
from compliance_pipeline.breaker import circuit_breaker
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline_tests.intake.test_breaker import calls, shifted
from compliance_pipeline_tests.platforms.loopback import Reply, Server

CHILD = """
import sys
from datetime import UTC, datetime
from compliance_pipeline.alerts import due_alerts
from compliance_pipeline.intake.inbox import Inbox
engine = Inbox(sys.argv[1]).engine
due_alerts(engine, datetime.now(UTC))  # nothing yet; the imports are done
print("ready", flush=True)
sys.stdin.readline()
print(len(due_alerts(engine, datetime.now(UTC))))
"""


def urls(host: Server) -> dict[str, SecretStr]:
    return {"alerts": SecretStr(f"json://{host.url.removeprefix('http://')}/hook")}


def now() -> datetime:
    return datetime.now(UTC)


def open_breaker(inbox: Inbox) -> None:
    calls(circuit_breaker(inbox.engine, "engine"), "++-----")


def test_an_opening_is_told_once_however_long_it_lasts_and_the_next_one_again(
    inbox: Inbox, media_host: Server, caplog: pytest.LogCaptureFixture
) -> None:
    media_host.plan("POST", "/hook", Reply(200), Reply(200))
    assert send_due(inbox.engine, urls(media_host), now()) == "Nothing to tell."
    open_breaker(inbox)
    for _ in range(3):
        send_due(inbox.engine, urls(media_host), now())
        shifted(inbox, "breaker", "opened_at", 31)
        calls(circuit_breaker(inbox.engine, "engine"), "-")  # a probe
    [asked] = media_host.asked
    assert asked.json["title"] == "engine fails"
    assert "5 of 7 calls" in asked.json["message"]
    [logged] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "engine fails" in logged.getMessage()
    circuit_breaker(inbox.engine, "engine").close()
    open_breaker(inbox)
    with inbox.engine.begin() as connection:
        later = QUIET // timedelta(microseconds=1)
        connection.exec_driver_sql(
            f"UPDATE breaker_opening SET opened_at = opened_at + {later} WHERE closed_at IS NULL"
        )
    send_due(inbox.engine, urls(media_host), now() + QUIET)
    assert len(media_host.asked) == 2


def test_a_breaker_that_opens_and_closes_all_the_time_is_told_once_in_half_an_hour(
    inbox: Inbox, media_host: Server
) -> None:
    media_host.plan("POST", "/hook", *[Reply(200)] * 5)
    for _ in range(5):
        open_breaker(inbox)
        send_due(inbox.engine, urls(media_host), now())
        circuit_breaker(inbox.engine, "engine").close()
    assert len(media_host.asked) == 1


def test_all_that_is_due_is_one_message(inbox: Inbox, media_host: Server) -> None:
    media_host.plan("POST", "/hook", *[Reply(500)] * AT_ONCE, *[Reply(200)] * AT_ONCE)
    for number in range(AT_ONCE + 1):
        circuit_breaker(inbox.engine, f"media:{number:02}.test").open()
    assert send_due(inbox.engine, urls(media_host), now()) == "20 alerts to be tried again."
    assert len(media_host.asked) == 1, "a service that fails is asked once a tick"
    media_host.next_up.clear()
    media_host.plan("POST", "/hook", Reply(200), Reply(200))
    assert send_due(inbox.engine, urls(media_host), now()) == "20 alerts told."
    assert send_due(inbox.engine, urls(media_host), now()) == "1 alerts told."
    assert [asked.json["title"] for asked in media_host.asked[1:]] == [
        "media:00.test fails, and 19 more",
        "media:20.test fails",
    ]
    assert "media:19.test fails: 0 of 0 calls" in media_host.asked[1].json["message"]


def test_a_breaker_that_closed_before_anybody_looked_is_told_too(inbox: Inbox, media_host: Server) -> None:
    media_host.plan("POST", "/hook", Reply(200))
    open_breaker(inbox)
    circuit_breaker(inbox.engine, "engine").close()
    send_due(inbox.engine, urls(media_host), now())
    assert "answers again" in media_host.asked[0].json["message"]


def test_what_could_not_be_sent_is_sent_at_the_next_tick(inbox: Inbox, media_host: Server) -> None:
    media_host.plan("POST", "/hook", Reply(500), Reply(200))
    open_breaker(inbox)
    assert send_due(inbox.engine, urls(media_host), now()) == "1 alerts to be tried again."
    assert send_due(inbox.engine, urls(media_host), now()) == "1 alerts told."
    assert send_due(inbox.engine, urls(media_host), now()) == "Nothing to tell."
    assert len(media_host.asked) == 2


def test_without_a_channel_it_is_logged_once(inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    open_breaker(inbox)
    send_due(inbox.engine, {}, now())
    send_due(inbox.engine, {}, now())
    assert [record.levelname for record in caplog.records if "engine fails" in record.getMessage()] == ["ERROR"]


def test_of_processes_that_look_at_once_one_gets_it(inbox: Inbox, inbox_url: str) -> None:
    command = [sys.executable, "-c", CHILD, inbox_url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    children = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    for one in children:
        assert one.stdout.readline() == "ready\n"
    open_breaker(inbox)
    for one in children:
        one.stdin.write("\n")
        one.stdin.flush()
    assert sorted(one.communicate()[0].strip() for one in children) == ["0", "0", "1"]


def test_who_claims_an_alert_and_dies_leaves_it_to_others(inbox: Inbox) -> None:
    open_breaker(inbox)
    at = now()
    [alert] = due_alerts(inbox.engine, at)
    assert due_alerts(inbox.engine, at + CLAIM / 2) == []
    assert due_alerts(inbox.engine, at + CLAIM) == [alert]
    settle(inbox.engine, [alert], at, sent=True)
    assert due_alerts(inbox.engine, at + timedelta(hours=1)) == []
