import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa

from compliance_pipeline.database import connect
from compliance_pipeline.platforms.pacing import Budget
from compliance_pipeline.platforms.port import PlatformHeld
from compliance_pipeline.platforms.transport import Transport
from compliance_pipeline_tests.intake.conftest import postgres_uri  # noqa: F401
from compliance_pipeline_tests.platforms.loopback import CLIENT, GuideServer, Reply, Server, no, ok

PATH = "/api/v2/recordings/rec-1"

CHILD = """
import sys, time
from compliance_pipeline.database import connect
from compliance_pipeline.platforms.pacing import Budget
budget = Budget(connect(sys.argv[1]), "shared", 1200, burst=4)
print("ready", flush=True)
sys.stdin.readline()
end = time.time() + 2.0
while time.time() < end:
    budget.take()
    print(time.time(), flush=True)
"""


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'operational.db'}"
    given: str = request.getfixturevalue("postgres_uri")
    return given


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = connect(f"sqlite:///{tmp_path / 'operational.db'}")
    yield engine
    engine.dispose()


def test_four_processes_together_stay_under_the_limit_and_none_starves(url: str) -> None:
    command = [sys.executable, "-c", CHILD, url]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for child in children:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin
        child.stdin.write("go\n")
        child.stdin.flush()
    told = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0] * 4, [err[-500:] for _, err in told]
    by_process = [[float(line) for line in out.split()] for out, _ in told]
    taken = sorted(at for times in by_process for at in times)
    slot = 60 / (1200 - 4 + 1)
    spent = taken[-1] - taken[0]
    assert len(taken) <= 4 + spent / slot + 1, "never above the limit"
    assert len(taken) >= 0.6 * spent / slot, "and not far below it"
    assert min(map(len, by_process)) >= 0.5 * len(taken) / 4


def test_a_burst_goes_at_once_and_the_rest_one_by_one(engine: sa.Engine) -> None:
    budget = Budget(engine, "b", 600, burst=5)
    began = time.monotonic()
    for _ in range(5):
        budget.take()
    assert time.monotonic() - began < 0.1
    for _ in range(3):
        budget.take()
    assert 0.25 < time.monotonic() - began < 0.6


def test_any_minute_holds_no_more_than_the_limit(engine: sa.Engine) -> None:
    for per_minute in (1, 2, 7, 60, 300, 1201):
        budget = Budget(engine, str(per_minute), per_minute)
        burst = budget._ahead // budget._slot + 1
        after_the_burst = -(-60_000_000 // budget._slot) - 1
        assert burst + after_the_burst <= per_minute


def test_a_wait_beyond_patience_is_held_and_takes_no_slot(engine: sa.Engine) -> None:
    budget = Budget(engine, "b", 60, burst=1)
    budget.take()
    for _ in range(3):
        with pytest.raises(PlatformHeld) as held:
            budget.take(0.2)
        assert 0.5 < held.value.for_s <= 1.01
    began = time.monotonic()
    budget.take()
    assert time.monotonic() - began < 1.1


def test_a_hold_stops_everybody_even_one_who_waits_for_a_slot(engine: sa.Engine) -> None:
    mine, theirs = Budget(engine, "b", 300, burst=1), Budget(engine, "b", 300, burst=1)
    theirs.take()
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(theirs.take)
        time.sleep(0.05)
        assert not waits.done()
        mine.hold(0.7)
        waits.result(5)
    assert time.monotonic() - began > 0.74
    mine.hold(3600)
    with pytest.raises(PlatformHeld) as held:
        theirs.take()
    assert 55 < held.value.for_s < 65
    Budget(engine, "another", 600).take(0)


def test_a_hold_that_outlasts_the_patience_says_how_long_it_is(engine: sa.Engine) -> None:
    mine, theirs = Budget(engine, "b", 120, burst=1), Budget(engine, "b", 120, burst=1)
    theirs.take()
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(theirs.take, 0.55)
        time.sleep(0.1)
        mine.hold(30)
        with pytest.raises(PlatformHeld) as held:
            waits.result(5)
    assert 25 < held.value.for_s <= 31


def test_nobody_is_held_for_less_than_a_second(engine: sa.Engine) -> None:
    budget = Budget(engine, "b", 600, burst=1)
    budget.take()
    with pytest.raises(PlatformHeld) as held:
        budget.take(0.0)
    assert held.value.for_s == 1.0


def test_who_waited_as_long_as_he_would_takes_the_slot_that_is_free_then(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(engine, "b", 600, burst=1)
    budget.take()

    # Another's hold is seen right after the wait, and is over when the slot is asked for again.
    def held_meanwhile() -> bool:
        time.sleep(0.3)
        return True

    monkeypatch.setattr(budget, "_held", held_meanwhile)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(budget.take, 0.2)
        time.sleep(0.25)
        monkeypatch.undo()
        waits.result(5)


def test_a_look_at_the_hold_waits_for_no_writer(engine: sa.Engine) -> None:
    budget = Budget(engine, "b", 600)
    with engine.execution_options(writes=True).begin():
        began = time.monotonic()
        assert not budget._held()
        assert time.monotonic() - began < 1


def test_a_share_takes_from_the_whole_and_leaves_it_the_rest(engine: sa.Engine) -> None:
    whole = Budget(engine, "b", 120, burst=10)
    share = Budget(engine, "b/background", 60, burst=4, whole=whole)
    for _ in range(4):
        share.take(0)
    with pytest.raises(PlatformHeld):
        share.take(0)
    for _ in range(6):
        whole.take(0)
    with pytest.raises(PlatformHeld):
        whole.take(0)


def test_a_hold_said_to_a_share_is_the_wholes(engine: sa.Engine) -> None:
    whole = Budget(engine, "b", 120)
    share = Budget(engine, "b/background", 60, whole=whole)
    share.hold(30)
    for budget in (whole, share):
        with pytest.raises(PlatformHeld) as held:
            budget.take(1)
        assert 25 < held.value.for_s <= 31


def test_the_next_after_a_hold_come_one_by_one(engine: sa.Engine) -> None:
    budget = Budget(engine, "b", 600, burst=5)
    budget.hold(0.3)
    began = time.monotonic()
    for _ in range(4):
        budget.take()
    assert time.monotonic() - began > 0.3 + 3 * 0.09


# --- as the transport uses it


def test_each_try_takes_its_slot_and_media_take_none(server: GuideServer, engine: sa.Engine) -> None:
    server.recordings["rec-1"] = {"id": "rec-1"}
    transport = Transport(server.url, *CLIENT, backoff_s=0.001, budget=Budget(engine, "b", 6000, burst=1))
    transport.request("GET", PATH)
    server.plan("GET", PATH, no(503), no(503))
    server.plan("GET", "/m", *[Reply(200, b"x")] * 20)
    began = time.monotonic()
    for _ in range(10):
        transport.request("GET", PATH)
    assert time.monotonic() - began >= 11 * 0.0099, "12 tries, 11 slots apart"
    times = [asked.at for asked in server.calls("GET", PATH)]
    assert min(b - a for a, b in pairwise(times)) > 0.001
    transport._api._transport._sync_transport._budget.hold(30)  # type: ignore[attr-defined]
    for _ in range(20):
        with transport.open_media(f"{server.url}/m") as stream:
            list(stream)
    transport.close()


def test_a_retry_after_holds_the_others_back_too(server: GuideServer, engine: sa.Engine) -> None:
    server.recordings["rec-1"] = {"id": "rec-1"}
    one, other = (Transport(server.url, *CLIENT, backoff_s=0.001, budget=Budget(engine, "b", 6000)) for _ in range(2))
    server.plan("POST", "/oauth/token", no(429, Retry_After="1"))
    one.request("GET", PATH)
    server.plan("GET", PATH, no(429, Retry_After="40"))
    with pytest.raises(PlatformHeld, match="429") as held:
        one.request("GET", PATH)
    assert held.value.for_s == 40
    before = len(server.asked)
    with pytest.raises(PlatformHeld, match="budget") as held:
        other.request("GET", PATH)
    assert 35 < held.value.for_s <= 41
    assert len(server.asked) == before
    one.close()
    other.close()


def test_a_platform_that_counts_never_says_429_to_a_transport_with_a_budget(
    media_host: Server, engine: sa.Engine
) -> None:
    """The platform's own limit, per client and second: 30 in any second, as strict as 1800 a minute can be."""
    times: list[float] = []

    def limited(asked: object) -> Reply:
        now = time.monotonic()
        times.append(now)
        return ok({"access_token": "t"}) if sum(now - at < 1 for at in times) <= 36 else no(429)

    media_host.plan("POST", "/oauth/token", limited)
    media_host.plan("GET", PATH, *[limited] * 60)
    transport = Transport(media_host.url, *CLIENT, backoff_s=0.001, budget=Budget(engine, "b", 1800, burst=5))
    for _ in range(59):
        transport.request("GET", PATH)
    assert len(times) == 60, "none had to be asked twice"
    transport.close()
