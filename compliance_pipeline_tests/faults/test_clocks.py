"""fault: the clock jumps by an hour, forwards or back; invariant: every accepted event settles, nothing is done twice,
no time that is stored is negative, and whatever lapses (claims, breakers, retries, links) ends.
"""

import os
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from compliance_pipeline import breaker, database, steps
from compliance_pipeline.asgi import Rejected
from compliance_pipeline.audit import seal, verify
from compliance_pipeline.clock import utc_now
from compliance_pipeline.evidence_service import Link, opened, sign
from compliance_pipeline.intake.hours import partition_hour
from compliance_pipeline.intake.inbox import OPEN_STATES, Inbox, State
from compliance_pipeline.ledger import Entry, record
from compliance_pipeline.remediate import remediate_batch
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.warehouse import MARTS
from compliance_pipeline_tests.intake.samples import LEASE, incoming
from compliance_pipeline_tests.workshop import Workshop, recording, workshop

HOUR = timedelta(hours=1)
JUMPS = (HOUR, -HOUR)
KINDS = (Kind.CHAT_CVV, Kind.CHAT_CARD, Kind.CHAT_CLEAN)
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
APART = timedelta(minutes=15)
SEED = 3_600


def announced(shop: Workshop) -> None:
    shop.announce(*(recording(kind) for kind in KINDS))


def open_rows(shop: Workshop) -> int:
    return sum(shop.inbox.counts()[state] for state in OPEN_STATES)


def settle(shop: Workshop) -> int:
    """Runs, one after the other, until nothing is open; how many."""
    for number in range(30):
        if not open_rows(shop):
            return number
        shop.clock.wait(APART.total_seconds())
        shop.run()
    raise AssertionError(f"still open: {shop.states()}")


def negative_stages(shop: Workshop) -> set[str]:
    """Stages of which a time or an hour's figure is negative."""
    assert len(shop.rows("stage_times")) > 0
    return {
        row["stage"] for row in shop.rows("stage_times") if row["seconds"] < 0 or row["ended_at"] < row["started_at"]
    } | {row["stage"] for row in shop.rows("latency_by_hour") if min(row["p50_s"], row["p95_s"], row["max_s"]) < 0}


def end_of(shop: Workshop) -> dict[str, Any]:
    """Without the hour's figures of stages: how many times a recording waited differs."""
    return {name: part for name, part in shop.end_state().items() if name != "stages"}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What there is in the end when no clock jumps."""
    with workshop(tmp_path_factory.mktemp("undisturbed")) as shop:
        announced(shop)
        shop.run()
        return end_of(shop)


STEPS: list[Callable[[Workshop, steps.Batch], object]] = [
    lambda shop, batch: steps.claim(shop.pipeline, batch),
    lambda shop, batch: steps.screen_batch(shop.pipeline, batch),
    lambda shop, batch: remediate_batch(shop.pipeline, batch),
    lambda shop, batch: steps.refresh_marts(shop.pipeline, MARTS, batch.hour),
]


@pytest.mark.parametrize("before", range(len(STEPS) + 1) if os.environ.get("CHAOS") else [1, 2])
@pytest.mark.parametrize("jump", JUMPS, ids=["ahead", "back"])
def test_a_run_in_which_the_clock_jumps_ends_as_any_other(
    jump: timedelta, before: int, wanted: dict[str, Any], tmp_path: Path
) -> None:
    """fault: the clock jumps between two steps of a run; invariant: all settles, nothing twice, no negative latency."""
    with workshop(tmp_path) as shop:
        announced(shop)
        batch = shop.batch()
        for number, step in enumerate(STEPS):
            if number == before:
                shop.clock.ahead += jump
            step(shop, batch)
        if before == len(STEPS):
            shop.clock.ahead += jump
        settle(shop)
        shop.run()
        assert end_of(shop) == wanted
        assert negative_stages(shop) == set()


def test_the_time_to_the_tag_is_not_negative_when_the_clock_was_set_back_before_it(tmp_path: Path) -> None:
    """fault: the clock is set back between verdict and tag; invariant: no negative latency is stored or shown."""
    with workshop(tmp_path) as shop:
        announced(shop)
        batch = shop.batch()
        for number, step in enumerate(STEPS):
            if number == 2:
                shop.clock.ahead -= HOUR
            step(shop, batch)
        settle(shop)
        assert negative_stages(shop) == set()


@pytest.mark.parametrize("jump", JUMPS, ids=["ahead", "back"])
def test_claims_of_a_run_that_died_are_taken_over_whatever_the_clock_did(
    jump: timedelta, wanted: dict[str, Any], tmp_path: Path
) -> None:
    """fault: a run dies and the clock jumps; invariant: its claims lapse, another run ends the work, nothing twice."""
    with workshop(tmp_path) as shop:
        announced(shop)
        steps.claim(shop.pipeline, shop.batch())
        shop.clock.ahead += jump
        set_back = max(-jump, timedelta())
        assert settle(shop) <= 1 + (set_back + shop.pipeline.lease) // APART
        assert end_of(shop) == wanted
        assert negative_stages(shop) == set()


def test_a_run_whose_claims_lapsed_by_a_jump_does_nothing_that_another_did(
    wanted: dict[str, Any], tmp_path: Path
) -> None:
    """fault: the clock jumps ahead, and a second run takes over what the first still works on; invariant: one verdict,
    one work item, one action each."""
    with workshop(tmp_path) as shop:
        announced(shop)
        first = shop.batch()
        steps.claim(shop.pipeline, first)
        shop.clock.ahead += HOUR
        second = shop.batch()
        steps.claim(shop.pipeline, second)
        steps.screen_batch(shop.pipeline, second)
        steps.screen_batch(shop.pipeline, first)
        remediate_batch(shop.pipeline, first)
        remediate_batch(shop.pipeline, second)
        settle(shop)
        shop.run()
        assert end_of(shop) == wanted


def test_a_clock_that_jumps_at_any_moment_leaves_nothing_undone_twice_done_or_negative(
    wanted: dict[str, Any], tmp_path: Path
) -> None:
    """fault: the clock jumps by up to an hour, both ways, each tenth time that it is read; invariant: as above."""
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    with workshop(tmp_path) as shop:

        def jumpy() -> datetime:
            if rng.random() < 0.1:
                shop.clock.ahead = timedelta(seconds=rng.uniform(-3600, 3600))
            return shop.clock()

        announced(shop)
        shop.pipeline.clock = jumpy
        for _ in range(6):
            shop.run()
        shop.pipeline.clock = shop.clock
        settle(shop)
        shop.run()
        assert end_of(shop) == wanted
        assert negative_stages(shop) == set()


def test_no_hour_is_offered_that_has_not_begun_by_the_clock_as_it_is_now(tmp_path: Path) -> None:
    """fault: an event is stored and given back around a clock that was an hour ahead; invariant: its hour, which has
    no partition yet, is offered when it begins, and holds up no other."""
    inbox = Inbox(f"sqlite:///{tmp_path / 'inbox.db'}")
    inbox.create()
    ahead = NOON + timedelta(minutes=70)
    inbox.store([incoming("ahead", at=ahead)], ahead)
    inbox.store([incoming("right")], NOON)
    assert inbox.claim(partition_hour(ahead), "run-1", ahead, LEASE, 10)
    assert inbox.release("run-1", NOON + timedelta(minutes=20)) == 1
    [work] = inbox.pending(NOON + timedelta(minutes=30))
    assert work.partition_hour == partition_hour(NOON)
    newest, _ = inbox.pending(NOON + timedelta(minutes=60))
    assert newest.partition_hour == partition_hour(ahead)
    [item] = inbox.claim(partition_hour(ahead), "run-2", NOON + timedelta(minutes=60), LEASE, 10)
    assert item.recording_id == "ahead"
    inbox.close()


@pytest.mark.parametrize("jump", JUMPS, ids=["ahead", "back"])
def test_an_event_that_is_stored_and_told_again_across_a_jump_is_one_item_that_comes_due(
    jump: timedelta, tmp_path: Path
) -> None:
    """fault: the clock jumps between an event and its repeat; invariant: one item, due within the hour."""
    inbox = Inbox(f"sqlite:///{tmp_path / 'inbox.db'}")
    inbox.create()
    inbox.store([incoming()], NOON)
    assert inbox.store([incoming()], NOON + jump)[0].duplicate
    [work] = inbox.pending(NOON + max(jump, timedelta()))
    assert work.count == 1
    assert inbox.counts()[State.NEW] == 1
    inbox.close()


@pytest.mark.parametrize("jump", JUMPS, ids=["ahead", "back"])
def test_a_breaker_that_opened_before_a_jump_lets_its_probes_through_after_it(jump: timedelta, tmp_path: Path) -> None:
    """fault: the clock jumps while a breaker is open; invariant: it holds nobody longer than its time, and closes."""
    engine = database.connect(f"sqlite:///{tmp_path / 'inbox.db'}")
    one = breaker.circuit_breaker(engine, "engine")
    for _ in range(breaker.FAIL_MAX):
        breaker.tell(one, failed=True)
    now = utc_now()
    held = breaker.held_until(one, now)
    assert held is not None
    assert held <= now + timedelta(seconds=breaker.RESET_S)
    assert breaker.held_until(one, now + jump) is None
    [state] = breaker.states(engine, now + jump)
    assert (state.state, state.held_until) == ("open", None)
    assert breaker.admitted(one, now + jump) is None
    breaker.tell(one, failed=False)
    assert one.current_state == "closed"
    engine.dispose()


@pytest.mark.parametrize("jump", JUMPS, ids=["ahead", "back"])
def test_a_link_made_before_a_jump_has_expired_and_says_so(jump: timedelta, tmp_path: Path) -> None:
    """fault: the clock jumps after a link was signed; invariant: it is not played for an hour longer; a reason."""
    settings = Settings(home=tmp_path)
    link = Link("rec-1", "clip", "someone")
    token = sign(settings, link).rpartition("/")[2]
    assert opened(settings, token, utc_now()) == link
    with pytest.raises(Rejected, match="this link has expired: ask for a new one") as refused:
        opened(settings, token, utc_now() + jump)
    assert refused.value.status == 410


def test_a_ledger_written_and_sealed_across_jumps_is_whole_in_the_order_in_which_it_was_written(tmp_path: Path) -> None:
    """fault: the clock jumps both ways between entries and seals; invariant: the chain verifies, nothing is missing."""
    settings = Settings(home=tmp_path)
    engine = database.connect(settings.inbox_database_url)
    for number, ahead in enumerate((timedelta(), HOUR, -HOUR, timedelta())):
        entries = [Entry(f"play/{number}/{part}", "play", "someone", recording_id="rec-1") for part in range(3)]
        assert record(engine, entries, NOON + ahead) == 3
        assert record(engine, entries, NOON) == 0
        assert seal(engine, settings, NOON + ahead) is not None
    verified = verify(engine, settings)
    assert (verified.faults, verified.entries) == ((), 12)
    engine.dispose()
