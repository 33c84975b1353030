"""fault: what the pipeline depends on is down for an hour and comes back; invariant: all is done in the end, once, and
by itself, and tries are not spent on what was never tried."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from compliance_pipeline import breaker, steps
from compliance_pipeline.breaker import circuit_breaker
from compliance_pipeline.engines import RemoteEngine
from compliance_pipeline.intake.inbox import State
from compliance_pipeline.platforms.guide import RECORDS, GuidePlatform
from compliance_pipeline.platforms.transport import TRIES, Transport
from compliance_pipeline.remediate import remediate_batch
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.screening.engine import EmbeddedEngine
from compliance_pipeline.screening.external import HttpEngine
from compliance_pipeline.screening.policy import load_policy
from compliance_pipeline.screening.service import create_engine_app
from compliance_pipeline.stack import free_port
from compliance_pipeline.warehouse.warehouse import MARTS
from compliance_pipeline_tests.intake.test_receiver import Running
from compliance_pipeline_tests.screening.engine_server import CALLBACK_SECRET, LOOPBACK, SECRET
from compliance_pipeline_tests.workshop import CLIENT, Workshop, recording, workshop

HOUR_S = 3600
STEP_S = 300
BREAKER_TIMES = ("opened_at", "since", "probing_since")
WARM_UP = recording(Kind.CHAT_CLEAN, 9)
WAITING = [recording(kind) for kind in (Kind.CHAT_CARD, Kind.CHAT_CVV, Kind.CHAT_CLEAN)]
LATER = [recording(Kind.CHAT_SSN, seed) for seed in range(1, 4)]
EVER = 10**9


@contextmanager
def shop_with_breakers(home: Path, **settings: Any) -> Iterator[Workshop]:
    """The platform's breakers are those of a real deployment. Its token is there: it worked until now."""
    with workshop(home, **settings) as shop:
        assert shop.pipeline.settings.platform_url
        transport = Transport(
            shop.pipeline.settings.platform_url,
            *CLIENT,
            breakers=partial(circuit_breaker, shop.inbox.engine),
            backoff_s=0.001,
        )
        shop.pipeline.platform.close()
        shop.pipeline.platform = GuidePlatform(transport)
        try:
            yield shop
        finally:
            transport.close()


def pass_time(shop: Workshop, seconds: float) -> None:
    """For the pipeline by its clock, for the breakers, which look at the system's, by what they have written down."""
    shop.clock.wait(seconds)
    earlier = timedelta(seconds=seconds)
    with shop.inbox.engine.begin() as connection:
        for table, times in ((breaker.breaker_table, BREAKER_TIMES), (breaker.window_table, ("bucket",))):
            rows = [dict(row._mapping) for row in connection.execute(sa.select(table))]
            connection.execute(sa.delete(table))
            for row in rows:
                moved = {name: row[name] - earlier for name in times if row[name]}
                connection.execute(sa.insert(table).values(row | moved))


def go(shop: Workshop) -> None:
    batch = shop.batch()
    steps.claim(shop.pipeline, batch)
    steps.screen_batch(shop.pipeline, batch)
    remediate_batch(shop.pipeline, batch)


def an_hour(shop: Workshop, then: Callable[[int], None] = lambda _: None, least_s: int = 0) -> int:
    """Runs at the waits of the inbox, at first, and then every five minutes; how many. least_s: that a try takes."""
    passed = rounds = 0
    while passed < HOUR_S:
        then(passed)
        go(shop)
        step_s = min(least_s + 2**rounds, STEP_S)
        pass_time(shop, step_s)
        passed += step_s
        rounds += 1
    return rounds


def recovered(shop: Workshop) -> None:
    """Runs, as the sensor would ask for them, until nothing is open."""
    for _ in range(4):
        go(shop)
        if not shop.inbox.pending(shop.clock() + timedelta(days=1)):
            break
        pass_time(shop, STEP_S)
    steps.refresh_marts(shop.pipeline, MARTS, shop.at)


def attempts(shop: Workshop) -> dict[str, int]:
    return {item.recording_id: item.attempts for item in shop.inbox.items(shop.hour)}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with workshop(tmp_path_factory.mktemp("undisturbed")) as shop:
        shop.announce(WARM_UP, *WAITING, *LATER)
        shop.run()
        return shop.end_state()


def ended_alike(shop: Workshop, expected: dict[str, Any]) -> None:
    end = shop.end_state()
    assert [verdict[:3] for verdict in end["verdicts"]] == [verdict[:3] for verdict in expected["verdicts"]]
    assert (end["platform"], end["inbox"]) == (expected["platform"], expected["inbox"])
    assert set(shop.states().values()) == {State.DONE}
    assert len({row["recording_id"] for row in shop.rows("verdicts")}) == len(shop.rows("verdicts"))


class Arriving:
    """One more recording every twenty minutes of the outage."""

    def __init__(self, shop: Workshop) -> None:
        self._shop, self._left = shop, list(LATER)

    def __call__(self, passed: int) -> None:
        if self._left and passed >= 1200 * (len(LATER) - len(self._left)):
            self._shop.announce(self._left.pop(0))


def test_a_platform_that_is_down_for_an_hour_loses_no_recording(tmp_path: Path, expected: dict[str, Any]) -> None:
    """fault: the platform answers 503 for an hour, while recordings are announced; invariant: after it every accepted
    event settles by itself, one verdict and one work item each; the platform is asked by probes only."""
    with shop_with_breakers(tmp_path) as shop:
        shop.announce(WARM_UP)
        go(shop)
        shop.announce(*WAITING)
        shop.state.fail_next("/", 503, EVER)
        rounds = an_hour(shop, Arriving(shop))
        [fault] = shop.state.faults
        asked = EVER - fault.times
        print(f"asked {asked} times in the hour; tries {attempts(shop)}")
        assert {state for one, state in shop.states().items() if one != WARM_UP.recording_id} == {State.DEFERRED}
        assert rounds <= asked <= (breaker.FAIL_MAX + breaker.PROBES * rounds) * TRIES
        shop.state.faults.clear()
        recovered(shop)
        ended_alike(shop, expected)


def test_a_platform_that_hangs_for_an_hour_while_little_happens_loses_no_recording(tmp_path: Path) -> None:
    """fault: the platform fails half a minute after it was asked (five tries of 5 s to connect), one recording waits;
    invariant: it settles by itself afterwards."""
    with shop_with_breakers(tmp_path) as shop:
        shop.announce(WARM_UP)
        go(shop)
        shop.announce(WAITING[0])
        shop.state.fail_next("/", 503, EVER)
        an_hour(shop, least_s=30)
        print(f"tries {attempts(shop)}")
        shop.state.faults.clear()
        recovered(shop)
        assert set(shop.states().values()) == {State.DONE}


def test_a_platform_that_is_down_between_verdict_and_remediation_gets_every_action_once(
    tmp_path: Path, expected: dict[str, Any]
) -> None:
    """fault: the platform answers 503 for an hour, from the first action on; invariant: after it tags, work items and
    callbacks are each done once, by themselves, and no verdict is given anew."""
    with shop_with_breakers(tmp_path) as shop:
        shop.announce(WARM_UP, *WAITING, *LATER)
        batch = shop.batch()
        steps.claim(shop.pipeline, batch)
        steps.screen_batch(shop.pipeline, batch)
        verdicts = shop.rows("verdicts")
        shop.state.fail_next("/", 503, EVER)
        remediate_batch(shop.pipeline, batch)
        pass_time(shop, STEP_S)
        an_hour(shop)
        assert not [seen for seen in shop.state.observed()["recordings"] if seen["tags"] or seen["workItems"]]
        print(sorted((r["action"], r["status"], r["attempts"]) for r in shop.rows("latest_remediations")))
        shop.state.faults.clear()
        recovered(shop)
        ended_alike(shop, expected)
        assert shop.rows("verdicts") == verdicts


def test_a_platform_that_takes_no_work_items_has_its_tags_all_the_same(
    tmp_path: Path, expected: dict[str, Any]
) -> None:
    """fault: one of the platform's endpoints answers 503 for ten minutes; invariant: what needs another is done at
    once, the rest after it, by itself."""
    with shop_with_breakers(tmp_path) as shop:
        shop.announce(WARM_UP, *WAITING, *LATER)
        shop.state.fail_next(RECORDS, 503, EVER)
        go(shop)
        tagged = {seen["recordingId"] for seen in shop.state.observed()["recordings"] if seen["tags"]}
        assert tagged == {row["recording_id"] for row in shop.rows("violations")}
        for _ in range(5):
            pass_time(shop, 120)
            go(shop)
        assert {row["status"] for row in shop.rows("latest_remediations") if row["action"] == "create_work_item"} == {
            "failed"
        }
        shop.state.faults.clear()
        recovered(shop)
        ended_alike(shop, expected)


def test_an_engine_that_is_down_for_an_hour_loses_no_recording(tmp_path: Path, expected: dict[str, Any]) -> None:
    """fault: nobody listens where the engine was, for an hour; invariant: after it every accepted event settles by
    itself, one verdict and one work item each."""
    port, policy = free_port(), load_policy()
    secrets: dict[str, Any] = {"engine_secret": SECRET, "callback_secret": CALLBACK_SECRET}
    with shop_with_breakers(tmp_path, engine_url=f"http://127.0.0.1:{port}", **secrets) as shop:
        assert isinstance(shop.pipeline.engine, RemoteEngine)
        shop.pipeline.engine._http = HttpEngine(f"http://127.0.0.1:{port}", SECRET, backoff_s=0.001)
        shop.announce(WARM_UP, *WAITING)
        an_hour(shop, Arriving(shop))
        print(f"tries {attempts(shop)}")
        assert set(shop.states().values()) == {State.DEFERRED}
        app = create_engine_app(policy, EmbeddedEngine(policy, "key"), SECRET, CALLBACK_SECRET, hosts=LOOPBACK)
        engine = Running(app, port=port)
        try:
            recovered(shop)
        finally:
            engine.stop()
        ended_alike(shop, expected)
