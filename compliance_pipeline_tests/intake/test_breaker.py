import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pybreaker
import pytest

from compliance_pipeline.breaker import circuit_breaker, held_until
from compliance_pipeline.intake.inbox import Inbox

CHILD = """
import sys, pybreaker
from compliance_pipeline.breaker import circuit_breaker
from compliance_pipeline.intake.inbox import Inbox
breaker = circuit_breaker(Inbox(sys.argv[1]).engine, "engine", fail_max=3, reset_timeout=float(sys.argv[2]))
try:
    print(breaker.call(lambda: "called"))
except pybreaker.CircuitBreakerError:
    print("refused")
"""


def fail() -> None:
    raise OSError("down")


def child(url: str, reset_timeout: float) -> str:
    command = [sys.executable, "-c", CHILD, url, str(reset_timeout)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_another_process_sees_the_breaker_open_and_its_trial_call_closes_it(inbox: Inbox, inbox_url: str) -> None:
    breaker = circuit_breaker(inbox.engine, "engine", fail_max=3, reset_timeout=30)
    assert held_until(breaker, datetime.now(UTC)) is None
    for _ in range(2):
        with pytest.raises(OSError, match="down"):
            breaker.call(fail)
    assert child(inbox_url, 30) == "called"  # a success in between starts the count again
    for _ in range(2):
        with pytest.raises(OSError, match="down"):
            breaker.call(fail)
    with pytest.raises(pybreaker.CircuitBreakerError):
        breaker.call(fail)
    assert child(inbox_url, 30) == "refused"
    until = held_until(breaker, datetime.now(UTC))
    assert until is not None
    assert timedelta(0) < until - datetime.now(UTC) <= timedelta(seconds=30)
    assert held_until(breaker, until) is None  # then somebody must try, or it never closes
    time.sleep(0.2)
    assert child(inbox_url, 0.1) == "called"
    assert breaker.current_state == pybreaker.STATE_CLOSED
    assert breaker.call(lambda: "called") == "called"


def test_breakers_of_different_names_are_apart(inbox: Inbox) -> None:
    one = circuit_breaker(inbox.engine, "one", fail_max=1)
    with pytest.raises(pybreaker.CircuitBreakerError):
        one.call(fail)
    assert circuit_breaker(inbox.engine, "two", fail_max=1).call(lambda: 1) == 1
    assert circuit_breaker(inbox.engine, "one", fail_max=1).current_state == pybreaker.STATE_OPEN
