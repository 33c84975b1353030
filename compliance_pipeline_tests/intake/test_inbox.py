import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from compliance_pipeline import ledger
from compliance_pipeline.contracts.event import EventType
from compliance_pipeline.intake.hours import FIRST_HOUR, partition_hour
from compliance_pipeline.intake.inbox import (
    OPEN_STATES,
    STARTED_PATIENCE,
    Inbox,
    InboxItem,
    IncomingEvent,
    PartitionWork,
    State,
)
from compliance_pipeline_tests.intake.samples import HOUR, LEASE, NOON, after, incoming

STARTED, COMPLETED, AVAILABLE = EventType


def row(inbox: Inbox, recording_id: str = "rec-1") -> InboxItem:
    item = inbox.get(recording_id)
    assert item is not None
    return item


def test_a_stored_event_is_read_back_as_it_came(inbox: Inbox) -> None:
    event = incoming(
        startTime="2026-03-01T11:50:00Z", endTime="2026-03-01T11:59:58.123457+00:00", participants=[{"id": "tok_x"}]
    )
    [stored] = inbox.store([event], after(1))
    assert stored.response == {
        "recordingId": "rec-1",
        "status": "accepted",
        "correlationId": "msg-1",
        "duplicate": False,
    }
    item = row(inbox)
    assert (item.seq, item.state, item.partition_hour, item.source) == (stored.seq, State.NEW, HOUR, "guide")
    assert (item.available_at, item.received_at, item.ended_at) == (NOON, after(1), event.event.end_time)
    assert (item.attempts, item.duplicates, item.claimed_by) == (0, 0, None)
    assert item.recording_event == event.event


def test_a_repeat_gets_the_first_answer_and_makes_no_second_row(inbox: Inbox) -> None:
    inbox.store([incoming()], NOON)
    [repeat, again] = inbox.store([incoming(correlation_id="msg-2"), incoming(correlation_id="msg-3")], after(9))
    assert repeat.duplicate
    assert again.response == repeat.response == {**again.response, "correlationId": "msg-1", "duplicate": True}
    assert (row(inbox).duplicates, row(inbox).correlation_id, row(inbox).received_at) == (2, "msg-1", NOON)
    assert sum(inbox.counts().values()) == 1


def test_results_come_in_the_order_of_the_batch(inbox: Inbox) -> None:
    ids = ["rec-3", "rec-1", "rec-3", "rec-2", "rec-1"]
    results = inbox.store([incoming(recording_id) for recording_id in ids], NOON)
    assert [result.recording_id for result in results] == ids
    assert [result.duplicate for result in results] == [False, False, True, False, True]
    assert inbox.store([], NOON) == []


def test_started_waits_four_hours_and_completed_is_looked_up_at_once(inbox: Inbox) -> None:
    inbox.store([incoming("rec-s", STARTED), incoming("rec-c", COMPLETED)], NOON)
    assert [work.count for work in inbox.pending(NOON)] == [1]
    assert (row(inbox, "rec-c").state, row(inbox, "rec-c").due_at) == (State.DEFERRED, NOON)
    assert row(inbox, "rec-s").due_at == NOON + STARTED_PATIENCE
    assert [work.count for work in inbox.pending(NOON + STARTED_PATIENCE)] == [2]


def test_a_later_event_moves_a_waiting_row_on(inbox: Inbox) -> None:
    inbox.store([incoming(event=STARTED, direction="inbound", channel="chat")], NOON)
    [upgraded] = inbox.store([incoming(event=COMPLETED, at=after(60), correlation_id="msg-2")], after(61))
    assert not upgraded.duplicate
    assert (row(inbox).state, row(inbox).due_at) == (State.DEFERRED, after(61))
    later = after(7200)
    [upgraded] = inbox.store([incoming(at=later, correlation_id="msg-3")], later)
    item = row(inbox)
    assert (item.state, item.event, item.available_at, item.due_at) == (State.NEW, AVAILABLE, later, later)
    assert (item.partition_hour, item.correlation_id) == ("2026-03-01-14:00", "msg-3")
    assert item.recording_event.direction == "inbound"  # what only the first event said is kept
    assert item.recording_event.channel == "chat"
    assert upgraded.seq == item.seq


def test_a_later_event_that_contradicts_the_first_replaces_it(inbox: Inbox) -> None:
    inbox.store([incoming(event=STARTED, startTime="2026-03-01T12:00:00Z")], NOON)
    inbox.store([incoming(endTime="2026-03-01T11:00:00Z")], NOON)
    assert row(inbox).recording_event.start_time is None


@pytest.mark.parametrize("settle", ["claim", "done"])
def test_a_later_event_does_not_reopen_what_is_held_or_done(inbox: Inbox, settle: str) -> None:
    inbox.store([incoming(event=COMPLETED)], NOON)
    inbox.claim(HOUR, "run-1", NOON, LEASE, 10)
    if settle == "done":
        inbox.done(["rec-1"], "run-1", NOON)
    before = row(inbox)
    [noted] = inbox.store([incoming(at=after(7200), correlation_id="msg-2")], after(7200))
    assert not noted.duplicate
    item = row(inbox)
    assert (item.state, item.due_at, item.partition_hour) == (before.state, before.due_at, before.partition_hour)
    assert (item.event, item.duplicates, item.correlation_id) == (AVAILABLE, 0, "msg-1")


def test_a_later_event_gives_what_was_given_up_on_a_full_set_of_tries(inbox: Inbox) -> None:
    inbox.store([incoming(event=COMPLETED)], NOON)
    inbox.claim(HOUR, "run-1", NOON, LEASE, 10)
    inbox.dead("rec-1", "run-1", "gave up after 12 tries: not ready", NOON)
    inbox.store([incoming(at=after(7200))], after(7200))
    item = row(inbox)
    assert (item.state, item.attempts, item.partition_hour) == (State.NEW, 0, HOUR)


def test_a_later_event_leaves_a_recording_that_was_tried_in_the_hour_it_was_tried_in(inbox: Inbox) -> None:
    inbox.store([incoming(event=COMPLETED)], NOON)
    inbox.claim(HOUR, "run-1", NOON, LEASE, 10)
    inbox.defer("rec-1", "run-1", after(10), "not ready", NOON)
    inbox.store([incoming(at=after(7200))], after(7200))
    assert (row(inbox).partition_hour, row(inbox).available_at) == (HOUR, after(7200))


def test_a_later_event_leaves_a_recording_that_is_taken_up_again_in_the_hour_it_was_judged_in(inbox: Inbox) -> None:
    inbox.store([incoming(event=COMPLETED)], NOON)
    inbox.claim(HOUR, "run-1", NOON, LEASE, 10)
    inbox.done(["rec-1"], "run-1", NOON)
    inbox.reopen(["rec-1"], after(7200))
    inbox.store([incoming(at=after(7200))], after(7200))
    assert row(inbox).partition_hour == HOUR


@pytest.mark.parametrize("order", list(permutations(EventType)))
def test_the_order_of_events_does_not_matter(inbox: Inbox, order: tuple[EventType, ...]) -> None:
    inbox.store([incoming(event=event) for event in order], NOON)
    for event in order:
        inbox.store([incoming(event=event)], NOON)
    item = row(inbox)
    assert (item.state, item.event, item.duplicates) == (State.NEW, AVAILABLE, repeats([*order, *order]))


def test_an_event_older_than_the_first_partition_goes_into_the_first() -> None:
    assert (
        partition_hour(datetime(1999, 12, 31, 23, 59, tzinfo=UTC)) == partition_hour(FIRST_HOUR) == "2026-01-01-00:00"
    )


def repeats(seen: Sequence[EventType]) -> int:
    """How many of these events told nothing new."""
    ranks = [event.rank for event in seen]
    return sum(at > 0 and rank <= max(ranks[:at]) for at, rank in enumerate(ranks))


EVENTS = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(list(EventType))), max_size=12)


@given(EVENTS, st.data())
@settings(max_examples=40, deadline=None)
def test_any_repetition_and_batching_ends_in_the_same_rows(
    events: list[tuple[str, EventType]], data: st.DataObject
) -> None:
    with TemporaryDirectory() as folder:
        inbox = Inbox(f"sqlite:///{folder}/inbox.db")
        inbox.create()
        left = [incoming(recording_id, event) for recording_id, event in events]
        while left:
            size = data.draw(st.integers(1, len(left)))
            assert len(inbox.store(left[:size], NOON)) == size
            left = left[size:]
        for recording_id in {recording_id for recording_id, _ in events}:
            seen = [event for other, event in events if other == recording_id]
            item = row(inbox, recording_id)
            assert item.duplicates == repeats(seen)
            assert item.event is max(seen, key=lambda event: event.rank)
            assert item.state is (State.NEW if AVAILABLE in seen else State.DEFERRED)
        assert sum(inbox.counts().values()) == len(dict(events))
        inbox.close()


def test_pending_groups_by_partition_newest_first(inbox: Inbox) -> None:
    inbox.store([incoming("a"), incoming("b")], after(1))
    inbox.store([incoming("c", at=after(3600))], after(3601))
    inbox.store([incoming("d", STARTED)], after(3601))
    newest, oldest = inbox.pending(after(3602))
    assert newest == PartitionWork("2026-03-01-13:00", 1, row(inbox, "c").seq, 0, after(3601), after(3601))
    assert oldest == PartitionWork(HOUR, 2, row(inbox, "b").seq, 0, after(1), after(1))


def test_pending_shows_expired_claims_and_due_retries_with_their_attempts(inbox: Inbox) -> None:
    inbox.store([incoming("a"), incoming("b")], NOON)
    inbox.claim(HOUR, "run-1", NOON, LEASE, 10)
    assert inbox.pending(after(119)) == []
    inbox.defer("a", "run-1", after(30), "not ready", after(1))
    [work] = inbox.pending(after(30))
    assert (work.count, work.attempts, work.oldest_since, work.latest_change) == (1, 1, after(30), after(1))
    [work] = inbox.pending(after(121))
    assert (work.count, work.attempts, work.oldest_since) == (2, 2, after(30))


def test_a_row_offered_again_changes_what_pending_says_even_if_sequence_and_attempts_recur(inbox: Inbox) -> None:
    inbox.store([incoming("a")], NOON)
    inbox.claim(HOUR, "run-1", NOON, LEASE, 10)
    inbox.release("run-1", after(1))
    inbox.store([incoming("b")], after(2))
    [offered] = inbox.pending(after(3))  # 'a' with one attempt, 'b' with none
    inbox.claim(HOUR, "run-2", after(4), LEASE, 10)
    inbox.done(["a"], "run-2", after(5))
    inbox.defer("b", "run-2", after(6), "not ready", after(5))
    [again] = inbox.pending(after(7))  # 'b' with one attempt
    assert (again.highest_seq, again.attempts) == (offered.highest_seq, offered.attempts)
    assert again.latest_change > offered.latest_change


def test_the_sensors_question_reads_due_rows_by_index_and_never_the_history(tmp_path: Path) -> None:
    inbox = Inbox(f"sqlite:///{tmp_path / 'inbox.db'}")
    inbox.create()
    inbox.store([incoming(f"rec-{number}") for number in range(2000)], NOON)
    inbox.claim(HOUR, "run-1", NOON, LEASE, 5000)
    inbox.done([f"rec-{number}" for number in range(2000)], "run-1", NOON)
    asked: list[tuple[str, object]] = []
    listener = lambda _c, _k, statement, parameters, *_: asked.append((statement, parameters))  # noqa: E731
    sa.event.listen(inbox.engine, "before_cursor_execute", listener)
    inbox.pending(after(1))
    sa.event.remove(inbox.engine, "before_cursor_execute", listener)
    statement, parameters = next((text, values) for text, values in asked if text.startswith("SELECT"))
    with inbox.engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()  # type: ignore[arg-type]
    assert any("inbox_state_due (state=? AND due_at<?)" in step[-1] for step in plan), plan
    assert not any(step[-1].startswith("SCAN") for step in plan), plan


def test_claim_takes_the_newest_first_up_to_the_limit_and_only_of_its_partition(inbox: Inbox) -> None:
    inbox.store([incoming(name, at=after(second)) for name, second in (("b", 2), ("c", 3), ("a", 1))], after(10))
    inbox.store([incoming("other-hour", at=after(3600))], after(3600))
    taken = inbox.claim(HOUR, "run-1", after(3600), LEASE, 2)
    assert [item.recording_id for item in taken] == ["c", "b"]
    assert {(item.state, item.attempts, item.claimed_by) for item in taken} == {(State.CLAIMED, 1, "run-1")}
    assert {item.due_at for item in taken} == {after(3600) + LEASE}
    assert [item.recording_id for item in inbox.claim(HOUR, "run-2", after(3600), LEASE, 10)] == ["a"]
    assert [item.recording_id for item in inbox.claimed("run-1")] == ["c", "b"]


def test_a_retried_run_takes_back_its_own(inbox: Inbox) -> None:
    inbox.store([incoming("a")], NOON)
    inbox.claim(HOUR, "run-1", NOON, LEASE, 10)
    inbox.store([incoming("b")], NOON)
    assert [item.recording_id for item in inbox.claim(HOUR, "run-1", after(1), LEASE, 1)] == ["a"]
    assert {item.attempts for item in inbox.claim(HOUR, "run-1", after(1), LEASE, 9)} == {1, 3}


def test_a_deferred_row_is_taken_only_when_it_is_due(inbox: Inbox) -> None:
    inbox.store([incoming(event=STARTED)], NOON)
    assert inbox.claim(HOUR, "run-1", after(60), LEASE, 10) == []
    assert len(inbox.claim(HOUR, "run-1", NOON + STARTED_PATIENCE, LEASE, 10)) == 1


def test_a_stale_owner_changes_nothing(inbox: Inbox) -> None:
    inbox.store([incoming()], NOON)
    inbox.claim(HOUR, "slow", NOON, LEASE, 10)
    [taken] = inbox.claim(HOUR, "next", after(121), LEASE, 10)
    assert inbox.done(["rec-1"], "slow", after(122)) == 0
    assert not inbox.defer("rec-1", "slow", after(200), "late", after(122))
    assert not inbox.dead("rec-1", "slow", "late", after(122))
    assert inbox.extend("slow", after(122), LEASE) == 0
    assert inbox.release("slow", after(122)) == 0
    assert inbox.claimed("slow") == []
    assert row(inbox) == taken
    assert inbox.done(["rec-1", "unknown"], "next", after(123)) == 1
    assert inbox.done(["rec-1"], "next", after(123)) == 0


def test_an_extended_claim_is_not_given_away(inbox: Inbox) -> None:
    inbox.store([incoming()], NOON)
    inbox.claim(HOUR, "run-1", NOON, LEASE, 10)
    assert inbox.extend("run-1", after(100), LEASE) == 1
    assert inbox.claim(HOUR, "run-2", after(219), LEASE, 10) == []
    assert len(inbox.claim(HOUR, "run-2", after(220), LEASE, 10)) == 1


def test_released_rows_are_new_and_due_at_once(inbox: Inbox) -> None:
    inbox.store([incoming("a"), incoming("b")], NOON)
    inbox.claim(HOUR, "run-1", NOON, LEASE, 10)
    assert inbox.release("run-1", after(1)) == 2
    assert inbox.counts() == {**dict.fromkeys(State, 0), State.NEW: 2}
    assert len(inbox.claim(HOUR, "run-2", after(1), LEASE, 10)) == 2


def test_dead_letters_keep_their_reason_and_can_be_tried_again(inbox: Inbox) -> None:
    inbox.store([incoming("a"), incoming("b"), incoming("c")], NOON)
    inbox.claim(HOUR, "run-1", NOON, LEASE, 10)
    assert inbox.dead("a", "run-1", "refused by the platform", after(1))
    assert inbox.dead("b", "run-1", "refused by the platform", after(1))
    assert inbox.done(["c"], "run-1", after(1)) == 1
    assert (row(inbox, "a").reason, row(inbox, "a").due_at) == ("refused by the platform", None)
    assert inbox.pending(after(99999)) == []
    assert inbox.retry_dead(["a", "c"], after(2)) == 1
    assert (row(inbox, "a").state, row(inbox, "a").attempts) == (State.NEW, 0)
    assert inbox.retry_dead(None, after(3)) == 1
    assert {item.recording_id: item.state for item in inbox.items(HOUR)} == {
        "a": State.NEW,
        "b": State.NEW,
        "c": State.DONE,
    }


def test_the_partition_of_a_time_is_its_utc_hour() -> None:
    from zoneinfo import ZoneInfo

    assert partition_hour(after(3599.9)) == HOUR
    assert partition_hour(after(5).astimezone(ZoneInfo("Asia/Kolkata"))) == HOUR


def test_a_database_error_does_not_repeat_the_row(inbox: Inbox) -> None:
    with inbox.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE inbox RENAME TO hidden")
    with pytest.raises(sa.exc.SQLAlchemyError) as caught:
        inbox.store([incoming("rec-canary")], NOON)
    assert "rec-canary" not in str(caught.value)


def test_an_unknown_recording_is_none(inbox: Inbox) -> None:
    assert inbox.get("nobody") is None


def test_a_commit_is_synced_and_in_wal_mode(tmp_path: Path) -> None:
    inbox = Inbox(f"sqlite:///{tmp_path / 'deep' / 'inbox.db'}")
    inbox.create()
    with inbox.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


CREATE = """
import sys
from compliance_pipeline.intake.inbox import Inbox
inbox = Inbox(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
inbox.create()
inbox.ping()
"""

CLAIM = """
import sys
import time
from datetime import datetime, timedelta
from compliance_pipeline.intake.inbox import Inbox
inbox = Inbox(sys.argv[1])
now = datetime.fromisoformat(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
taken = []
while items := inbox.claim(sys.argv[4], f"{sys.argv[2]}-{len(taken)}", now, timedelta(seconds=60), 2):
    taken += [item.recording_id for item in items]
    time.sleep(0.005)  # SQLite's lock is not fair: without a pause, one process may get it every time
print(*taken)
"""


def side_by_side(code: str, count: int, *arguments: str) -> list[str]:
    """Standard outputs of `count` processes that start their work at the same moment."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, arguments[0], f"owner{number}", *arguments[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    return outputs


def test_processes_may_create_the_inbox_at_once(inbox_url: str) -> None:
    side_by_side(CREATE, 3, inbox_url)
    Inbox(inbox_url).ping()


def test_processes_that_claim_at_once_never_share_a_row(inbox: Inbox, inbox_url: str) -> None:
    names = [f"rec-{number}" for number in range(400)]
    inbox.store([incoming(name) for name in names], NOON)
    outputs = side_by_side(CLAIM, 2, inbox_url, after(1).isoformat(), HOUR)
    taken = [output.split() for output in outputs]
    assert all(taken), "one process got everything: they did not compete"
    assert sorted(taken[0] + taken[1]) == sorted(names)
    assert {item.attempts for item in inbox.items(HOUR)} == {1}


class InboxMachine(RuleBasedStateMachine):
    """Owners, events and time in any order: no row is lost or held twice, and only its holder moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.inbox = Inbox(f"sqlite:///{self.folder.name}/inbox.db")
        self.inbox.create()
        self.now = NOON
        self.known: set[str] = set()
        self.settled: dict[str, State] = {}
        self.holder: dict[str, str] = {}

    names = st.sampled_from(["a", "b", "c", "d"])
    owners = st.sampled_from(["run-1", "run-2", "run-3"])

    @rule(name=names, event=st.sampled_from(list(EventType)))
    def store(self, name: str, event: EventType) -> None:
        known = self.inbox.get(name)
        [stored] = self.inbox.store([incoming(name, event)], self.now)
        assert stored.duplicate == (known is not None and event.rank <= known.event.rank)
        self.known.add(name)

    @rule(seconds=st.integers(0, 200))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(owner=owners, limit=st.integers(1, 4))
    def claim(self, owner: str, limit: int) -> None:
        due = sum(work.count for work in self.inbox.pending(self.now))
        before = {item.recording_id: item for name in self.known if (item := self.inbox.get(name))}
        taken = self.inbox.claim(HOUR, owner, self.now, LEASE, limit)
        assert len(taken) >= min(due, limit)
        for item in taken:
            was = before[item.recording_id]
            assert was.state in OPEN_STATES
            assert was.claimed_by == owner or (was.due_at is not None and was.due_at <= self.now)
            self.holder[item.recording_id] = owner

    @rule(owner=owners, name=names, move=st.sampled_from(["done", "dead", "defer"]))
    def settle(self, owner: str, name: str, move: str) -> None:
        mine = self.holder.get(name) == owner
        if move == "done":
            assert self.inbox.done([name], owner, self.now) == mine
        elif move == "dead":
            assert self.inbox.dead(name, owner, "why", self.now) is mine
        else:
            assert self.inbox.defer(name, owner, self.now + timedelta(seconds=30), "why", self.now) is mine
        if mine:
            del self.holder[name]
            if move != "defer":
                self.settled[name] = State(move)

    @rule(owner=owners, move=st.sampled_from(["release", "extend"]))
    def all_of_an_owner(self, owner: str, move: str) -> None:
        held = [name for name, holder in self.holder.items() if holder == owner]
        if move == "extend":
            assert self.inbox.extend(owner, self.now, LEASE) == len(held)
        else:
            assert self.inbox.release(owner, self.now) == len(held)
            for name in held:
                del self.holder[name]

    @invariant()
    def every_row_is_where_it_must_be(self) -> None:
        items = {name: row(self.inbox, name) for name in self.known}
        assert sum(self.inbox.counts().values()) == len(items)
        for name, item in items.items():
            assert (item.due_at is None) == (name in self.settled)
            assert (item.state is State.CLAIMED) == (name in self.holder)
            if name in self.holder:
                assert item.claimed_by == self.holder[name]
            if name in self.settled:
                assert item.state is self.settled[name]

    def teardown(self) -> None:
        self.inbox.close()
        self.folder.cleanup()


TestInboxMachine = InboxMachine.TestCase
TestInboxMachine.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def conversation(correlation_id: str = "msg-1") -> IncomingEvent:
    return incoming(
        "conv-1", EventType.COMPLETED, correlation_id=correlation_id, conversationId="conv-1", mediaUri=None
    )


def of_conversation(recording_id: str) -> IncomingEvent:
    return incoming(recording_id, EventType.COMPLETED, conversationId="conv-1", mediaUri=None)


def test_a_listed_conversation_is_settled_and_its_recordings_can_be_taken_in_the_same_run(inbox: Inbox) -> None:
    inbox.store([conversation()], NOON)
    [held] = inbox.claim(HOUR, "run", NOON, LEASE, 10)
    assert held.recording_event.is_conversation
    inbox.store([of_conversation("conv-1:a"), of_conversation("conv-1:b")], NOON)
    inbox.store([incoming("conv-2", EventType.COMPLETED, conversationId="conv-2", mediaUri=None)], NOON)
    assert inbox.listed(held, "run", "2 recordings", NOON)
    taken = inbox.claim(HOUR, "run", NOON, LEASE, 10, new_recordings_only=True)
    assert sorted(item.recording_id for item in taken) == ["conv-1:a", "conv-1:b"]
    assert inbox.claim(HOUR, "run", NOON, LEASE, 10, new_recordings_only=True) == []
    assert [item.attempts for item in inbox.claimed("run")] == [1, 1]
    assert (row(inbox, "conv-1").state, row(inbox, "conv-1").reason) == (State.LISTED, "2 recordings")


def test_a_conversation_that_is_announced_again_is_listed_again(inbox: Inbox) -> None:
    inbox.store([conversation()], NOON)
    [held] = inbox.claim(HOUR, "run", NOON, LEASE, 10)
    assert inbox.listed(held, "run", "1 recordings", after(2))
    [again] = inbox.store([conversation("msg-3")], after(3))
    assert again.duplicate
    assert (row(inbox, "conv-1").state, row(inbox, "conv-1").attempts, row(inbox, "conv-1").reason) == (
        State.NEW, 0, None,
    )  # fmt: skip


def test_what_is_announced_of_a_conversation_while_it_is_being_listed_lists_it_once_more(inbox: Inbox) -> None:
    inbox.store([conversation()], NOON)
    [held] = inbox.claim(HOUR, "run", NOON, LEASE, 10)
    inbox.store([conversation("msg-2")], after(1))
    assert row(inbox, "conv-1").state is State.CLAIMED
    inbox.listed(held, "run", "1 recordings", after(2))
    assert (row(inbox, "conv-1").state, row(inbox, "conv-1").attempts, row(inbox, "conv-1").due_at) == (
        State.NEW, 0, after(2),
    )  # fmt: skip


def test_a_sweep_lists_a_conversation_again_only_when_it_says_so(inbox: Inbox) -> None:
    inbox.store([conversation()], NOON)
    [held] = inbox.claim(HOUR, "run", NOON, LEASE, 10)
    inbox.listed(held, "run", "1 recordings", NOON)
    inbox.store([replace(conversation(), found_by_sweep=True)], after(1))
    assert row(inbox, "conv-1").state is State.LISTED
    assert inbox.list_again(["conv-1", "unheard-of"], after(2)) == 1
    assert row(inbox, "conv-1").state is State.NEW


def test_what_is_known_of_a_conversation_is_its_row_and_those_of_its_recordings(inbox: Inbox) -> None:
    inbox.store([of_conversation("conv-1:a")], NOON)
    inbox.store([conversation(), incoming("rec-9")], NOON)
    known = inbox.known(["conv-1", "rec-9", "unheard-of"])
    assert {key: [item.recording_id for item in rows] for key, rows in known.items()} == {
        "conv-1": ["conv-1", "conv-1:a"],
        "rec-9": ["rec-9"],
    }


def test_what_a_sweep_found_stays_marked_when_its_event_comes_after_all(inbox: Inbox) -> None:
    inbox.store([replace(incoming(), found_by_sweep=True)], NOON)
    inbox.store([incoming()], after(1))
    assert row(inbox).found_by_sweep
    inbox.store([incoming("rec-2")], NOON)
    assert not row(inbox, "rec-2").found_by_sweep


def test_an_inbox_of_an_earlier_version_gets_the_columns_and_indexes_it_lacks(inbox: Inbox, inbox_url: str) -> None:
    inbox.store([incoming()], NOON)
    with inbox.engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX ix_inbox_conversation_id")
        connection.exec_driver_sql("ALTER TABLE inbox DROP COLUMN conversation_id")
        connection.exec_driver_sql("ALTER TABLE inbox DROP COLUMN found_by_sweep")
    older = Inbox(inbox_url)
    older.create()
    assert not row(older).found_by_sweep
    older.store([conversation()], NOON)
    assert set(older.known(["conv-1"])) == {"conv-1"}
    assert "ix_inbox_conversation_id" in {index["name"] for index in sa.inspect(older.engine).get_indexes("inbox")}
    older.close()


def heard(inbox: Inbox) -> list[tuple[str, str, str | None]]:
    entries = ledger.ledger_table
    with inbox.engine.connect() as connection:
        found = connection.execute(sa.select(entries).order_by(entries.c.seq)).all()
    assert {entry.kind for entry in found} <= {"event_received"}
    return [(entry.key, entry.actor, entry.correlation_id) for entry in found]


def test_each_event_that_tells_something_new_is_entered_into_the_ledger_once(inbox: Inbox) -> None:
    inbox.store([incoming("b", STARTED), incoming("a"), incoming("b", AVAILABLE, correlation_id="msg-2")], NOON)
    inbox.store([incoming("a"), incoming("b", COMPLETED), incoming("a", STARTED)], after(1))
    inbox.store([replace(incoming("c"), found_by_sweep=True), incoming("c")], after(2))
    assert heard(inbox) == [
        (f"event/b/{STARTED}", "guide", "msg-1"),
        (f"event/a/{AVAILABLE}", "guide", "msg-1"),
        (f"event/b/{AVAILABLE}", "guide", "msg-2"),
        (f"event/c/{AVAILABLE}", "sweep", "msg-1"),
    ]


def test_an_event_and_its_ledger_entry_are_stored_together_or_not_at_all(inbox: Inbox) -> None:
    inbox.store([incoming("a")], NOON)
    with inbox.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE ledger RENAME TO hidden")
    with pytest.raises(sa.exc.SQLAlchemyError):
        inbox.store([incoming("b")], NOON)
    assert inbox.get("b") is None


STORE = """
import sys
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline_tests.intake.samples import NOON, incoming
inbox = Inbox(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for batch in range(10):
    names = [f"rec-{batch}-{number}" for number in range(20)]
    inbox.store([incoming(name) for name in (names if sys.argv[2] == "owner0" else names[::-1])], NOON)
"""


def test_receivers_that_store_the_same_events_at_once_enter_each_once(inbox: Inbox, inbox_url: str) -> None:
    side_by_side(STORE, 3, inbox_url)
    assert len(heard(inbox)) == len({key for key, *_ in heard(inbox)}) == 200
    assert {item.duplicates for item in inbox.items(HOUR)} == {2}
