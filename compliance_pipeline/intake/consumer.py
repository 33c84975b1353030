"""From a queue into the inbox with one rule: the whole batch is stored durably, and only then acknowledged.

What a queue is asked is in queues, what a message says in events. Here is nothing of either.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from sqlalchemy.exc import OperationalError, SQLAlchemyError

from compliance_pipeline import tallies
from compliance_pipeline.asgi import line
from compliance_pipeline.clock import Clock
from compliance_pipeline.intake.dead_messages import DeadMessages, SealBroken, Unread
from compliance_pipeline.intake.events import NotUnderstood, incoming
from compliance_pipeline.intake.inbox import Inbox, IncomingEvent
from compliance_pipeline.intake.tokens import Tokenizer
from compliance_pipeline.tallies import POISON, RECEIVED, REJECTED

BATCH = 100
WAIT_S = 2.0
"""Longest wait for a message, and with it the longest that a stop takes while there is none."""
LONGEST_PAUSE_S = 60.0
REPORT_S = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Message:
    """As the queue gave it. handle: what the queue needs to settle it; attempts: deliveries, as far as it counts."""

    body: bytes = field(repr=False)
    id: str
    handle: Any = field(repr=False)
    attempts: int = 1


class QueueError(Exception):
    """The queue did not do what it was asked. The text says what happened and what to do, and quotes no message."""


class Consumer(Protocol):
    """A queue that gives a message again unless it is acknowledged. All methods raise QueueError."""

    name: str
    """The queue's address without secrets: it is stored and shown."""

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        """Up to `limit` messages; none if none came within `wait_s` seconds."""
        ...

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Never give these again."""
        ...

    def release(self, messages: Sequence[Message]) -> None:
        """Give these again, to anyone; at once where the queue can."""
        ...

    def close(self) -> None:
        """Let go of the queue; what was not acknowledged is given again."""
        ...


@dataclass(slots=True)
class Counts:
    """received: messages; stored, duplicates: events; dead: messages set aside; nothing: messages without an event."""

    received: int = 0
    stored: int = 0
    duplicates: int = 0
    dead: int = 0
    nothing: int = 0


def consume(
    consumer: Consumer,
    inbox: Inbox,
    dead: DeadMessages,
    tokens: Tokenizer,
    clock: Clock,
    stop: threading.Event,
    batch: int = BATCH,
    on_batch: Callable[[Counts], None] = lambda _counts: None,
) -> Counts:
    """Take messages until `stop` is set; the batch under way is finished. Returns what was done.

    A queue or a database that fails later is tried again, slower and slower (60 s at most), and nothing is
    acknowledged that is not stored. Raises QueueError if the queue can't be used at all.
    """
    counts = Counts()
    failures, reached, reported = 0, False, time.monotonic()
    while not stop.is_set():
        messages: list[Message] = []
        try:
            messages = consumer.receive(batch, WAIT_S)
            reached = True
            if messages:
                _store(messages, consumer.name, inbox, dead, tokens, clock, counts)
                consumer.acknowledge(messages)
            failures = 0
        except QueueError as error:
            if not reached:
                raise
            failures += 1
            _log.error(line("queue", queue=consumer.name, error=str(error)))
            stop.wait(_pause(failures))
        except (SQLAlchemyError, OSError) as error:
            failures += 1
            _log.error(line("storage", queue=consumer.name, error=type(error).__name__, released=len(messages)))
            _release(consumer, messages)
            _await_storage(inbox, stop, failures)
        on_batch(counts)
        if time.monotonic() - reported >= REPORT_S:
            _log.info(line("consumed", queue=consumer.name, **asdict(counts)))
            reported = time.monotonic()
    _log.info(line("stopped", queue=consumer.name, **asdict(counts)))
    return counts


def retry_dead(inbox: Inbox, dead: DeadMessages, tokens: Tokenizer, clock: Clock) -> tuple[int, int]:
    """Read all dead messages again: how many are understood now, and how many still are not. Raises SealBroken,
    after the others are done, if one can't be opened.

    A message leaves the dead ones only after its events are stored.
    """
    understood = still = 0
    broken: SealBroken | None = None
    for letter in dead.all():
        try:
            body = dead.body(letter.key)
        except SealBroken as error:
            broken = error
            continue
        if body is None:
            continue
        now = clock()
        read = _read(body, tokens, clock)
        if isinstance(read, Unread):
            dead.explain(letter.key, read.reason)
            still += 1
        else:
            inbox.store(read, now)
            dead.forget(letter.key)
            understood += 1
    if broken:
        raise broken
    return understood, still


def _store(
    messages: Sequence[Message],
    queue: str,
    inbox: Inbox,
    dead: DeadMessages,
    tokens: Tokenizer,
    clock: Clock,
    counts: Counts,
) -> None:
    """Events and dead messages, both durable on return."""
    read = [_read(message.body, tokens, clock) for message in messages]
    events = [event for found in read if not isinstance(found, Unread) for event in found]
    unread = [found for found in read if isinstance(found, Unread)]
    inbox.create()
    now = clock()
    try:
        stored = inbox.store(events, now)
    except OperationalError:
        raise
    except SQLAlchemyError as error:
        # A row that the database won't take must not hold up its neighbours for ever; one that is down would.
        if len(messages) > 1:
            for message in messages:
                _store([message], queue, inbox, dead, tokens, clock, counts)
            return
        stored, unread = [], [Unread(messages[0].body, f"the inbox refuses it ({type(error).__name__})")]
    dead.store(unread, queue, now)
    repeats = sum(result.duplicate for result in stored)
    tally = {f"{RECEIVED}accepted": len(stored) - repeats, f"{RECEIVED}duplicate": repeats}
    tallies.count(inbox.engine, tally | {REJECTED + POISON: len(unread)}, now)
    counts.received += len(messages)
    counts.stored += len(stored) - repeats
    counts.duplicates += repeats
    counts.dead += len(unread)
    counts.nothing += sum(found == [] for found in read)
    for letter in unread:
        _log.warning(line("dead", queue=queue, reason=letter.reason, size=len(letter.body)))


def _read(body: bytes, tokens: Tokenizer, clock: Clock) -> list[IncomingEvent] | Unread:
    try:
        return incoming(body, tokens, clock())
    except NotUnderstood as reason:
        return Unread(body, str(reason))
    except Exception as error:
        # A defect of ours, on one message, must not hold up all that come after it.
        return Unread(body, f"this version fails on it ({type(error).__name__}): report that, upgrade, --retry-dead")


def _pause(failures: int) -> float:
    return min(2.0 ** (failures - 1), LONGEST_PAUSE_S)


def _release(consumer: Consumer, messages: Sequence[Message]) -> None:
    try:
        consumer.release(messages)
    except QueueError as error:
        _log.warning(line("release", queue=consumer.name, error=str(error)))


def _await_storage(inbox: Inbox, stop: threading.Event, failures: int) -> None:
    """Until the database answers: each delivery in between would count towards the queue's own limit of deliveries
    (maxReceiveCount, MaxDeliveryCount), after which the queue gives up on the message."""
    while not stop.wait(_pause(failures)):
        try:
            inbox.ping()
        except (SQLAlchemyError, OSError):
            failures += 1
        else:
            return
