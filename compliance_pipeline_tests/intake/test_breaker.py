import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pybreaker
import pytest
import sqlalchemy as sa

from compliance_pipeline.breaker import (
    LATELY,
    PROBES,
    RESET_S,
    WINDOW,
    admitted,
    circuit_breaker,
    held_until,
    is_failing,
    openings,
    states,
    tell,
)
from compliance_pipeline.intake.inbox import Inbox

CHILD = """
import sys, pybreaker
from compliance_pipeline.breaker import circuit_breaker
from compliance_pipeline.intake.inbox import Inbox
breaker = circuit_breaker(Inbox(sys.argv[1]).engine, "engine", fail_max=3, reset_timeout=float(sys.argv[2]))
for outcome in sys.argv[3]:
    try:
        print(breaker.call(lambda: "called" if outcome == "+" else 1 / 0))
    except (pybreaker.CircuitBreakerError, ZeroDivisionError) as error:
        print("refused" if isinstance(error, pybreaker.CircuitBreakerError) else "failed")
"""


def fail() -> None:
    raise OSError("down")


def calls(breaker: pybreaker.CircuitBreaker, outcomes: str) -> None:
    """'+' a call that succeeds, '-' one that fails."""
    for outcome in outcomes:
        with suppress(OSError, pybreaker.CircuitBreakerError):
            breaker.call(fail if outcome == "-" else lambda: None)


def child(url: str, reset_timeout: float = 30, outcomes: str = "+") -> list[str]:
    command = [sys.executable, "-c", CHILD, url, str(reset_timeout), outcomes]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def shifted(inbox: Inbox, table: str, column: str, seconds: float) -> None:
    """As if it had been written so many seconds earlier."""
    with inbox.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {table} SET {column} = {column} - {round(seconds * 1e6)}")


@contextmanager
def writes(engine: sa.Engine) -> Iterator[list[str]]:
    """The statements that write, as the database gets them."""
    seen: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        if not statement.startswith(("SELECT", "BEGIN")):
            seen.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    yield seen
    sa.event.remove(engine, "before_cursor_execute", note)


def test_another_process_sees_the_breaker_open_and_its_probe_closes_it(inbox: Inbox, inbox_url: str) -> None:
    breaker = circuit_breaker(inbox.engine, "engine", fail_max=3, reset_timeout=30)
    assert held_until(breaker, datetime.now(UTC)) is None
    calls(breaker, "--")
    assert child(inbox_url) == ["called"]
    with pytest.raises(pybreaker.CircuitBreakerError):
        breaker.call(fail)
    assert child(inbox_url) == ["refused"]
    until = held_until(breaker, datetime.now(UTC))
    assert until is not None
    assert timedelta(0) < until - datetime.now(UTC) <= timedelta(seconds=30)
    assert held_until(breaker, until) is None  # then somebody must try, or it never closes
    time.sleep(0.2)
    assert child(inbox_url, 0.1) == ["called"]
    assert breaker.current_state == pybreaker.STATE_CLOSED
    assert breaker.call(lambda: "called") == "called"


def test_failures_and_successes_of_all_processes_make_one_rate(inbox: Inbox, inbox_url: str) -> None:
    breaker = circuit_breaker(inbox.engine, "engine", fail_max=3)
    calls(breaker, "--")
    assert child(inbox_url, 30, "-") == ["refused"], "the third failure, which opens it"
    breaker.close()
    assert child(inbox_url, 30, "++++") == ["called"] * 4, "written when the process ends"
    calls(breaker, "---")
    assert breaker.current_state == pybreaker.STATE_CLOSED, "3 of 7"
    calls(breaker, "-")
    assert breaker.current_state == pybreaker.STATE_OPEN, "4 of 8"


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("----", "closed"),
        ("-----", "open"),
        ("-+-+-+-+-", "open"),
        ("+++++-----", "open"),
        ("++++++-----", "closed"),
        ("++-++-++-++-++-++-++-++-", "closed"),
    ],
)
def test_it_opens_at_five_failures_that_are_half_of_the_calls(inbox: Inbox, outcomes: str, state: str) -> None:
    breaker = circuit_breaker(inbox.engine, "engine")
    calls(breaker, outcomes)
    assert breaker.current_state == state


def test_what_is_older_than_a_minute_counts_no_more(inbox: Inbox) -> None:
    breaker = circuit_breaker(inbox.engine, "engine")
    calls(breaker, "----")
    shifted(inbox, "breaker_window", "bucket", 70)
    calls(breaker, "----")
    assert breaker.current_state == pybreaker.STATE_CLOSED
    calls(breaker, "-")
    assert breaker.current_state == pybreaker.STATE_OPEN


def test_a_thousand_successes_cost_a_write_a_second_at_most(inbox: Inbox) -> None:
    breaker = circuit_breaker(inbox.engine, "engine")
    with writes(inbox.engine) as seen:
        began = time.monotonic()
        calls(breaker, "+" * 1_000)
        took = time.monotonic() - began
    assert len([one for one in seen if one.startswith("INSERT")]) <= 1 + took
    calls(breaker, "-")
    [state] = states(inbox.engine, datetime.now(UTC))
    assert (state.failures, state.calls) == (1, 1_001), "none is lost when it matters"


def test_only_the_probes_pass_once_its_time_is_over_and_dead_probes_are_given_out_again(inbox: Inbox) -> None:
    threads = [circuit_breaker(inbox.engine, "engine") for _ in range(10)]
    threads[0].open()
    shifted(inbox, "breaker", "opened_at", 31)
    now = datetime.now(UTC)
    assert [admitted(one, now) is None for one in threads].count(True) == PROBES
    until = held_until(threads[0], now)
    assert until is not None
    assert until - now <= timedelta(seconds=5), "soon again: their outcome is near"
    assert states(inbox.engine, now)[0].probes == PROBES
    with pytest.raises(pybreaker.CircuitBreakerError):
        threads[5].call(lambda: None)
    later = now + timedelta(seconds=31)
    assert [admitted(one, later) is None for one in threads].count(True) == PROBES
    tell(threads[0], failed=False)
    assert threads[7].call(lambda: 1) == 1
    assert states(inbox.engine, datetime.now(UTC))[0].state == pybreaker.STATE_CLOSED


def test_a_probe_that_fails_prolongs_the_opening_and_makes_no_new_one(inbox: Inbox) -> None:
    breaker = circuit_breaker(inbox.engine, "engine")
    calls(breaker, "-----")
    for _ in range(3):
        shifted(inbox, "breaker", "opened_at", 31)
        calls(breaker, "-")
        assert held_until(breaker, datetime.now(UTC)) is not None
    calls(breaker, "-----")
    [opening] = openings(inbox.engine, datetime.now(UTC) - timedelta(hours=1))
    assert (opening.name, opening.failures, opening.calls, opening.closed_at) == ("engine", 5, 5, None)
    assert states(inbox.engine, datetime.now(UTC))[0].since == opening.opened_at
    shifted(inbox, "breaker", "opened_at", 31)
    calls(breaker, "+----")
    [opening] = openings(inbox.engine, datetime.now(UTC) - timedelta(hours=1))
    assert opening.closed_at is not None
    assert breaker.current_state == pybreaker.STATE_CLOSED, "what failed before it closed is forgotten"


def test_a_clock_that_is_set_back_an_hour_holds_nobody_for_an_hour(inbox: Inbox) -> None:
    breaker = circuit_breaker(inbox.engine, "engine")
    calls(breaker, "-----")
    shifted(inbox, "breaker", "opened_at", -3_600)
    assert held_until(breaker, datetime.now(UTC)) is None
    assert breaker.call(lambda: 1) == 1


def test_who_saw_it_open_does_not_set_it_back_once_another_closed_it(inbox: Inbox) -> None:
    late, other = (circuit_breaker(inbox.engine, "engine") for _ in range(2))
    late.open()
    shifted(inbox, "breaker", "opened_at", 31)
    assert late.current_state == pybreaker.STATE_OPEN
    calls(other, "+")
    late.half_open()
    assert states(inbox.engine, datetime.now(UTC))[0].state == pybreaker.STATE_CLOSED
    calls(other, "-")
    assert states(inbox.engine, datetime.now(UTC))[0].state == pybreaker.STATE_CLOSED, (
        "one failure of a closed one is one failure"
    )


def test_a_probe_that_says_nothing_goes_to_the_next(inbox: Inbox) -> None:
    breaker = circuit_breaker(inbox.engine, "engine")
    breaker.open()
    shifted(inbox, "breaker", "opened_at", RESET_S + 1)
    for _ in range(PROBES * 2):
        assert admitted(breaker, datetime.now(UTC)) is None
        tell(breaker, failed=None)
    [state] = states(inbox.engine, datetime.now(UTC))
    assert (state.state, state.probes) == (pybreaker.STATE_HALF_OPEN, 0)


def test_an_outcome_that_cannot_be_written_is_logged_and_raises_nothing(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    breaker = circuit_breaker(inbox.engine, "engine")
    with inbox.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE breaker_window")
    tell(breaker, failed=True)
    assert "circuit breaker engine: outcome not counted (" in caplog.text
    assert "breaker_window" not in caplog.text, "statements may hold anything"


def test_it_is_failing_while_it_is_open_and_somebody_asks(inbox: Inbox) -> None:
    def now_failing() -> bool:
        return is_failing(inbox.engine, "engine", datetime.now(UTC))

    breaker = circuit_breaker(inbox.engine, "engine")
    assert not now_failing()
    calls(breaker, "-----")
    assert now_failing()
    assert not is_failing(inbox.engine, "other", datetime.now(UTC))
    shifted(inbox, "breaker", "opened_at", LATELY.total_seconds() + 1)
    assert not now_failing(), "nobody asks it any more"
    assert admitted(breaker, datetime.now(UTC)) is None
    assert now_failing(), "its probe is under way"
    tell(breaker, failed=False)
    assert not now_failing()
    breaker.open()
    shifted(inbox, "breaker", "opened_at", -3_600)
    shifted(inbox, "breaker", "probing_since", -3_600)
    assert not now_failing(), "written before the clock was set back"


def test_successes_of_before_a_quiet_while_are_not_counted_as_new(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaker = circuit_breaker(inbox.engine, "engine")
    calls(breaker, "+" * 50)
    shifted(inbox, "breaker_window", "bucket", 70)
    later = time.monotonic() + WINDOW.total_seconds() + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    calls(breaker, "-----")
    assert breaker.current_state == pybreaker.STATE_OPEN


def test_breakers_of_different_names_are_apart(inbox: Inbox) -> None:
    one = circuit_breaker(inbox.engine, "one", fail_max=1)
    with pytest.raises(pybreaker.CircuitBreakerError):
        one.call(fail)
    assert circuit_breaker(inbox.engine, "two", fail_max=1).call(lambda: 1) == 1
    assert circuit_breaker(inbox.engine, "one", fail_max=1).current_state == pybreaker.STATE_OPEN
    assert [(state.name, state.state) for state in states(inbox.engine, datetime.now(UTC))] == [
        ("one", "open"),
        ("two", "closed"),
    ]
