"""Second looks: a recording that is done is looked at again by one run at a time, and by no live run meanwhile."""

import subprocess
import sys
from datetime import timedelta

import pytest

from compliance_pipeline.intake.inbox import Inbox, State
from compliance_pipeline_tests.intake.samples import HOUR, LEASE, NOON, after, incoming

NAMES = ["rec-1", "rec-2", "rec-3"]


@pytest.fixture
def done(inbox: Inbox) -> Inbox:
    """An inbox with three recordings that are done, and one that is new."""
    inbox.store([incoming(name) for name in NAMES], NOON)
    inbox.claim(HOUR, "live", NOON, LEASE, 10)
    inbox.done(NAMES, "live", NOON)
    inbox.store([incoming("rec-4")], NOON)
    return inbox


def looked_at(inbox: Inbox, owner: str, seconds: float = 0) -> list[str]:
    return sorted(item.recording_id for item in inbox.look_again(HOUR, owner, after(seconds), LEASE))


def claimed(inbox: Inbox, owner: str, seconds: float = 0) -> list[str]:
    return sorted(item.recording_id for item in inbox.claim(HOUR, owner, after(seconds), LEASE, 10))


def test_what_is_done_is_looked_at_again_by_one_run_at_a_time_and_stays_done(done: Inbox) -> None:
    assert looked_at(done, "a") == NAMES
    assert looked_at(done, "b") == []
    assert looked_at(done, "a", 1) == NAMES, "a retry of the run has the same owner"
    assert {done.get(name).state for name in NAMES} == {State.DONE}  # type: ignore[union-attr]
    assert done.end_looks("a") == 3
    assert looked_at(done, "b", 1) == NAMES


def test_a_look_ends_with_its_lease_unless_it_is_extended(done: Inbox) -> None:
    looked_at(done, "a")
    done.extend("a", after(LEASE.total_seconds() - 1), LEASE)
    assert looked_at(done, "b", LEASE.total_seconds() + 1) == []
    assert looked_at(done, "b", 2 * LEASE.total_seconds()) == NAMES


def test_what_is_opened_again_during_a_look_is_live_runs_business_when_the_look_has_ended(done: Inbox) -> None:
    looked_at(done, "a")
    done.reopen(["rec-1"], after(1))
    [work] = done.pending(after(1))
    assert work.count == 1, "rec-4 alone: the sensor would ask for runs that find nothing"
    assert claimed(done, "live", 1) == ["rec-4"]
    done.end_looks("a")
    assert [work.count for work in done.pending(after(2))] == [1]
    assert claimed(done, "live-2", 2) == ["rec-1"]


def test_the_run_that_looks_may_itself_claim_what_it_opened(done: Inbox) -> None:
    looked_at(done, "a")
    done.reopen(["rec-1"], after(1))
    assert claimed(done, "a", 1) == ["rec-1", "rec-4"]


def test_a_look_that_ran_out_does_not_come_to_life_beside_the_claim_that_followed(done: Inbox) -> None:
    looked_at(done, "a")
    late = LEASE.total_seconds() + 1
    done.reopen(["rec-1"], after(late))
    assert "rec-1" in claimed(done, "live", late)
    done.extend("a", after(late), LEASE)
    done.done(["rec-1"], "live", after(late))
    assert looked_at(done, "b", late) == ["rec-1"]


def test_only_what_is_done_in_the_hour_is_looked_at(done: Inbox) -> None:
    assert done.look_again("2026-02-01-00:00", "a", NOON, LEASE) == []
    assert "rec-4" not in looked_at(done, "a")


LOOKER = """
import sys
from datetime import datetime, timedelta
from compliance_pipeline.intake.inbox import Inbox
inbox = Inbox(sys.argv[1])
inbox.create()
print("ready", flush=True)
sys.stdin.readline()
now = datetime.fromisoformat(sys.argv[3])
print(*(item.recording_id for item in inbox.look_again(sys.argv[4], sys.argv[2], now, timedelta(minutes=5))))
"""


def test_processes_that_look_at_once_never_share_a_recording(inbox: Inbox, inbox_url: str) -> None:
    names = [f"rec-{number:04}" for number in range(1200)]
    inbox.store([incoming(name) for name in names], NOON)
    inbox.claim(HOUR, "live", NOON, LEASE, 2000)
    inbox.done(names, "live", NOON)
    lookers = [
        subprocess.Popen(
            [sys.executable, "-c", LOOKER, inbox_url, owner, NOON.isoformat(), HOUR],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for owner in ("a", "b", "c")
    ]
    for looker in lookers:
        assert looker.stdout is not None
        assert looker.stdout.readline() == "ready\n"
    taken = [set(looker.communicate("go\n", timeout=60)[0].split()) for looker in lookers]
    assert sum(map(len, taken)) == len(set().union(*taken)) == len(names)


def test_a_lease_of_nothing_holds_nothing(done: Inbox) -> None:
    done.look_again(HOUR, "a", NOON, timedelta(0))
    assert looked_at(done, "b") == NAMES
