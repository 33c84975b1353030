"""fault: bursts, duplicates, events out of order and out of their time; invariant: one item a recording, all counted,
bounded memory, the newest state wins, and a clear reason for what is not taken.

A receiver's process takes the events; 1,000 of a kind, 10,000 with CHAOS=1.
"""

import json
import os
import random
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from compliance_pipeline.contracts.event import EventType
from compliance_pipeline.intake.hours import hour_of
from compliance_pipeline.intake.inbox import Inbox, State
from compliance_pipeline_tests.faults.test_durable_inbox import receiver
from compliance_pipeline_tests.intake.test_receiver import PATH, body_of, signed
from compliance_pipeline_tests.intake.test_receiver_kill import free_port

EVENTS = 10_000 if os.environ.get("CHAOS") else 1_000
CLIENTS = 50
SEED = 2_005
GROWTH_BYTES = 96 << 20
"""What the receiver may grow by in a burst, whatever its size: far above what one batch and its answers take."""


class Receiver:
    def __init__(self, home: Path) -> None:
        self.home, self.port = home, free_port()
        self.process: subprocess.Popen[bytes] = receiver(home, self.port, None)
        self.inbox = Inbox(f"sqlite:///{home / 'inbox.db'}")

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def all_posted(self, count: int, body: Callable[[int], bytes]) -> list[httpx.Response]:
        """`count` events by CLIENTS clients at once, each in requests one after the other."""

        def post(client: int) -> list[httpx.Response]:
            with self.client() as http:
                return [
                    http.post(PATH, content=sent, headers=signed(sent, message_id=f"msg-{number}"))
                    for number in range(client, count, CLIENTS)
                    for sent in [body(number)]
                ]

        with ThreadPoolExecutor(CLIENTS) as pool:
            return [answer for answers in pool.map(post, range(CLIENTS)) for answer in answers]

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def peak_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def figures(self) -> dict[str, float]:
        with self.client() as http:
            said = http.get("/metrics").text
        return {name: float(value) for name, value in re.findall(r"^(compliance_\S+) (\S+)$", said, re.MULTILINE)}

    def heard(self) -> int:
        with self.inbox.engine.connect() as connection:
            return int(connection.exec_driver_sql("SELECT count(*) FROM ledger").scalar_one())


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Receiver]:
    one = Receiver(tmp_path)
    try:
        yield one
    finally:
        one.inbox.close()
        one.process.send_signal(signal.SIGKILL)
        one.process.wait()


def event(recording_id: str = "rec-1", kind: EventType = EventType.AVAILABLE, **fields: Any) -> bytes:
    return body_of(recording_id, event=kind.value, **fields)


def test_duplicates_of_one_event_from_many_clients_at_once_are_one_item(running: Receiver) -> None:
    """fault: thousands of duplicates of one event from 50 clients; invariant: one item, one ledger entry, each
    answered 200 from it, all counted."""
    answers = running.all_posted(EVENTS, lambda _: event())
    assert Counter(answer.status_code for answer in answers) == {200: EVENTS}
    said = [answer.json() for answer in answers]
    assert Counter(one.pop("duplicate") for one in said) == {False: 1, True: EVENTS - 1}
    assert len({json.dumps(one) for one in said}) == 1
    [item] = running.inbox.items(running.inbox.pending(datetime.now(UTC))[0].partition_hour)
    assert (item.state, item.duplicates, item.attempts) == (State.NEW, EVENTS - 1, 0)
    assert running.inbox.counts()[State.NEW] == running.heard() == 1
    assert running.figures()["compliance_duplicates_total"] == EVENTS - 1


def test_a_burst_of_distinct_events_is_stored_whole_in_bounded_memory(running: Receiver) -> None:
    """fault: a burst of distinct events; invariant: all there, all counted; memory bounded."""
    running.all_posted(CLIENTS * 2, lambda number: event(f"warm-{number}"))
    before = running.resident_bytes()
    answers = running.all_posted(EVENTS, lambda number: event(f"rec-{number}", participants=[{"id": f"p{number}"}]))
    assert Counter(answer.status_code for answer in answers) == {200: EVENTS}
    grown = running.peak_bytes() - before
    print(f"{EVENTS} events: the receiver grew by {grown / 2**20:.1f} MiB from {before / 2**20:.1f}")
    assert grown < GROWTH_BYTES
    assert running.inbox.counts()[State.NEW] == running.heard() == EVENTS + CLIENTS * 2
    [accepted] = [
        value
        for name, value in running.figures().items()
        if name.startswith("compliance_events_total") and 'outcome="accepted"' in name
    ]
    assert accepted == EVENTS + CLIENTS * 2


def test_events_in_any_order_leave_one_item_in_the_newest_state(running: Receiver) -> None:
    """fault: started, completed and available reordered and repeated; invariant: one item each, the newest state."""
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    kinds = [*EventType, *EventType]
    orders = {f"rec-{number}": rng.sample(kinds, len(kinds)) for number in range(40)}
    sent = [(name, turn) for turn in range(len(kinds)) for name in orders]
    with running.client() as http:
        for name, turn in sent:
            body = event(name, orders[name][turn])
            assert http.post(PATH, content=body, headers=signed(body, f"{name}-{turn}")).status_code == 200
    items = [running.inbox.get(name) for name in orders]
    assert {(item.event, item.state) for item in items if item} == {(EventType.AVAILABLE, State.NEW)}
    assert sum(running.inbox.counts().values()) == len(orders)
    with running.inbox.engine.connect() as connection:
        keys = connection.exec_driver_sql("SELECT key FROM ledger").scalars().all()
    assert len(keys) == len(set(keys))
    assert {f"event/{name}/{EventType.AVAILABLE.value}" for name in orders} <= set(keys)


def test_events_of_last_week_and_of_the_future_are_taken_in_an_hour_that_exists(running: Receiver) -> None:
    """fault: week-old, years-old and future event times; invariant: accepted, one item each, due at once, in an hour
    that has a partition."""
    now = datetime.now(UTC)
    times = {
        "week-old": now - timedelta(days=7),
        "years-old": datetime(1999, 12, 31, tzinfo=UTC),
        "hour-ahead": now + timedelta(hours=1),
        "years-ahead": datetime(2999, 1, 1, tzinfo=UTC),
    }
    with running.client() as http:
        for name, at in times.items():
            body = event(name, eventTime=at.isoformat(), endTime=at.isoformat())
            for turn in range(2):
                answer = http.post(PATH, content=body, headers=signed(body, f"{name}-{turn}"))
                assert (answer.status_code, answer.json()["duplicate"]) == (200, bool(turn))
    work = running.inbox.pending(datetime.now(UTC))
    assert sum(one.count for one in work) == len(times)
    hours = {
        item.recording_id: hour_of(item.partition_hour)
        for one in work
        for item in running.inbox.items(one.partition_hour)
    }
    assert hours["week-old"] == times["week-old"].replace(minute=0, second=0, microsecond=0)
    assert all(datetime(2026, 1, 1, tzinfo=UTC) <= hour <= datetime.now(UTC) for hour in hours.values())


def test_a_delivery_out_of_its_time_and_a_time_that_is_none_are_refused_with_the_reason(running: Receiver) -> None:
    """fault: week-old and future deliveries, times that can't be read; invariant: 401 or 422 that says why and
    repeats nothing; nothing is stored, and the event as it should be is taken."""
    with running.client() as http:
        for days, minutes in ((-7, 0), (0, -6), (0, 6), (7, 0)):
            at = datetime.now(UTC) + timedelta(days=days, minutes=minutes)
            answer = http.post(PATH, content=event(), headers=signed(event(), at=at.timestamp()))
            assert (answer.status_code, answer.json()["reason"]) == (401, "stale")
            assert "within 5 minutes of this server's clock" in answer.json()["error"]
        for time in ("yesterday", "2026-13-01T00:00:00Z", "2026-03-01T12:00:00", "99999-01-01T00:00:00Z"):
            body = event(eventTime=time)
            answer = http.post(PATH, content=body, headers=signed(body))
            assert answer.status_code == 422
            assert [field["field"] for field in answer.json()["fields"]] == ["eventTime"]
            assert time not in answer.text
        assert sum(running.inbox.counts().values()) == 0
        assert http.post(PATH, content=event(), headers=signed(event())).status_code == 200
