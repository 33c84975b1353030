"""Queues for real, on loopback: stored before acknowledged, given again after a crash, and nothing lost or double.

Service Bus is an AMQP peer that the SDK's own client speaks to, not Azure's service: lock expiry, sessions and its
dead-letter queue are not tested anywhere.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from compliance_pipeline.clock import utc_now
from compliance_pipeline.intake.consumer import Consumer, Counts, Message, QueueError, consume, retry_dead
from compliance_pipeline.intake.dead_messages import DeadMessages
from compliance_pipeline.intake.inbox import Inbox, State
from compliance_pipeline.intake.queues import open_queue
from compliance_pipeline.intake.tokens import Tokenizer
from compliance_pipeline_tests.intake.brokers import REDELIVERED_S, VISIBILITY_S, Broker, broker
from compliance_pipeline_tests.intake.messages import an_id, conversation_ended, guide_event

SECRET = b64encode(b"the key of the tests' dead letters"[:32]).decode()
TOKENS = Tokenizer("key")
KINDS = ("sqs", "kafka", "servicebus")


@pytest.fixture(params=KINDS)
def queue(
    request: pytest.FixtureRequest, tmp_path: Path, moto_port: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Broker]:
    # These wait for what was not acknowledged to come again.
    waiting = ("test_what_was_not_acknowledged", "test_while_the_inbox_cannot_store", "test_a_consumer_killed")
    again = request.function.__name__.startswith(waiting)
    with broker(request.param, tmp_path, moto_port, REDELIVERED_S if again else VISIBILITY_S) as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Inbox]:
    inbox = Inbox(f"sqlite:///{tmp_path / 'home' / 'inbox.db'}")
    yield inbox
    inbox.close()


@contextmanager
def opened(url: str) -> Iterator[Consumer]:
    consumer = open_queue(url)
    try:
        yield consumer
    finally:
        consumer.close()


def dead_in(inbox: Inbox) -> DeadMessages:
    return DeadMessages(inbox.engine, SECRET)


def run(consumer: Consumer, inbox: Inbox, messages: int) -> Counts:
    """Consume until so many messages were received, or until nothing came for long."""
    stop = threading.Event()
    idle = 0
    received = 0

    def enough(counts: Counts) -> None:
        nonlocal idle, received
        idle = idle + 1 if counts.received == received else 0
        received = counts.received
        if received >= messages or idle == 8:
            stop.set()

    return consume(consumer, inbox, dead_in(inbox), TOKENS, utc_now, stop, on_batch=enough)


def all_of(consumer: Consumer, count: int) -> list[Message]:
    found: list[Message] = []
    for _ in range(12):
        found += consumer.receive(count - len(found), 1)
        if len(found) == count:
            break
    return found


def conversations(count: int) -> list[bytes]:
    return [conversation_ended(an_id(number)) for number in range(count)]


class _Watched:
    """A consumer whose acknowledging first looks, through a connection of its own, at what is stored."""

    def __init__(self, consumer: Consumer, inbox_url: str) -> None:
        self.name = consumer.name
        self._consumer = consumer
        self._inbox_url = inbox_url
        self.acknowledged: list[int] = []
        self.stored_when_acknowledged: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def acknowledge(self, messages: Sequence[Message]) -> None:
        reader = Inbox(self._inbox_url)
        stored = sum(reader.counts().values()) + len(dead_in(reader).all())
        reader.close()
        self.acknowledged.append(len(messages))
        self.stored_when_acknowledged.append(stored)
        self._consumer.acknowledge(messages)


def test_what_is_sent_is_stored_once_and_acknowledged_only_after_the_database_has_committed(
    queue: Broker, inbox: Inbox
) -> None:
    queue.send(*conversations(25), guide_event("rec-1"), b"poison", *conversations(3))
    with opened(queue.url) as consumer:
        watched = _Watched(consumer, inbox.engine.url.render_as_string())
        counts = run(watched, inbox, 30)
    assert (counts.received, counts.stored, counts.duplicates, counts.dead) == (30, 26, 3, 1)
    assert sum(watched.acknowledged) == 30
    assert watched.stored_when_acknowledged[-1] == 27
    assert inbox.get("rec-1") is not None
    assert queue.left() == 0


def test_what_was_not_acknowledged_goes_to_the_next_consumer(queue: Broker, inbox: Inbox) -> None:
    queue.send(*conversations(12))
    with opened(queue.url) as first:
        assert len(all_of(first, 12)) == 12
    assert queue.left() == 12
    with opened(queue.url) as second:
        assert run(second, inbox, 12).stored == 12
    assert queue.left() == 0


def test_poison_is_set_aside_with_its_reason_and_does_not_hold_up_the_rest(
    queue: Broker, inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    poison = b'{"caller": "Jane Canary +1 415 555 0123"}'
    queue.send(b"not json", conversation_ended(an_id(1)), poison, poison, conversation_ended(an_id(2)))
    with opened(queue.url) as consumer:
        counts = run(consumer, inbox, 5)
    assert (counts.stored, counts.dead) == (2, 3)
    assert queue.left() == 0
    found = {letter.size: letter for letter in dead_in(inbox).all()}
    assert found[len(b"not json")].reason == "not JSON"
    assert found[len(poison)].attempts == 2
    assert found[len(poison)].queue == queue.url.partition("?")[0]
    assert "Canary" not in caplog.text
    assert "not JSON" in caplog.text


class _RepairedOnRelease:
    """A consumer after whose first release the fault is over."""

    def __init__(self, consumer: Consumer, repair: Callable[[], None]) -> None:
        self.name = consumer.name
        self._consumer = consumer
        self._repair = repair
        self.released: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def release(self, messages: Sequence[Message]) -> None:
        self._consumer.release(messages)
        if not self.released:
            self._repair()
        self.released.append(len(messages))


def test_while_the_inbox_cannot_store_nothing_is_acknowledged_and_then_all_is_stored(
    queue: Broker, inbox: Inbox, tmp_path: Path
) -> None:
    queue.send(*conversations(6))
    (tmp_path / "home").write_text("a file where the folder should be")
    left: list[int] = []

    def repair() -> None:
        left.append(queue.left())
        (tmp_path / "home").unlink()

    with opened(queue.url) as consumer:
        repaired = _RepairedOnRelease(consumer, repair)
        counts = run(repaired, inbox, 6)
    assert repaired.released[0] > 0
    assert left == [6]
    assert (counts.stored, counts.dead) == (6, 0)
    assert inbox.counts()[State.DEFERRED] == 6
    assert queue.left() == 0


CONSUME = """
import sys, threading, time
from pathlib import Path
from compliance_pipeline.clock import utc_now
from compliance_pipeline.intake.consumer import consume
from compliance_pipeline.intake.dead_messages import DeadMessages
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline.intake.queues import open_queue
from compliance_pipeline.intake.tokens import Tokenizer

url, database, secret = sys.argv[1:]
queue, inbox = open_queue(url), Inbox(database)

def never(messages):
    print(len(messages), flush=True)
    time.sleep(600)

queue.acknowledge = never
consume(queue, inbox, DeadMessages(inbox.engine, secret), Tokenizer("key"), utc_now, threading.Event())
"""


def test_a_consumer_killed_between_commit_and_acknowledge_loses_nothing_and_doubles_nothing(
    queue: Broker, inbox: Inbox
) -> None:
    queue.send(*conversations(9), b"poison")
    command = [sys.executable, "-c", CONSUME, queue.url, inbox.engine.url.render_as_string(), SECRET]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | queue.environment)
    assert killed.stdout is not None
    stored = int(killed.stdout.readline())
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    inbox.create()
    before = sum(inbox.counts().values()) + len(dead_in(inbox).all())
    assert before == stored > 0
    assert queue.left() == 10
    with opened(queue.url) as consumer:
        counts = run(consumer, inbox, 10)
    assert counts.received == 10
    assert (sum(inbox.counts().values()), len(dead_in(inbox).all())) == (9, 1)
    assert counts.stored + counts.duplicates == 9
    assert counts.duplicates >= stored - 1
    assert queue.left() == 0


def test_a_dead_message_that_is_understood_after_all_is_stored_and_no_longer_dead(inbox: Inbox) -> None:
    from compliance_pipeline.intake.dead_messages import Unread

    inbox.create()
    dead = dead_in(inbox)
    dead.store([Unread(conversation_ended(), "an older version knew it not"), Unread(b"{}", "?")], "q", utc_now())
    assert retry_dead(inbox, dead, TOKENS, utc_now) == (1, 1)
    assert sum(inbox.counts().values()) == 1
    (left,) = dead.all()
    assert left.reason.startswith("neither")


class _Failing:
    """A queue that fails after it worked once, as one whose credentials ran out."""

    name = "test://queue"

    def __init__(self, fails: list[bool]) -> None:
        self._fails = fails

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        if self._fails.pop(0):
            raise QueueError("SQS said ExpiredToken: set AWS_PROFILE")
        return []

    def acknowledge(self, messages: Sequence[Message]) -> None: ...

    release = acknowledge

    def close(self) -> None: ...


def test_a_queue_that_never_worked_is_an_error_and_one_that_stops_working_is_tried_again(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(QueueError, match="ExpiredToken"):
        run(_Failing([True]), inbox, 1)
    stop = threading.Event()
    fails = [False, True, False]
    consume(
        _Failing(fails), inbox, dead_in(inbox), TOKENS, utc_now, stop, on_batch=lambda _: None if fails else stop.set()
    )
    assert json.loads(caplog.messages[0])["outcome"] == "queue"
