"""An engine over HTTP that goes away: what still reaches it meanwhile, what another process sees, and what is lost."""

import subprocess
import sys
from pathlib import Path
from time import monotonic

import httpx

from compliance_pipeline.breaker import FAIL_MAX, PROBES, PROBING, RESET_S, circuit_breaker, openings, states
from compliance_pipeline.clock import utc_now
from compliance_pipeline.contracts.verdict import RecommendedAction, Verdict, VerdictValue
from compliance_pipeline.engines import RemoteEngine
from compliance_pipeline.intake.callbacks import Message, take
from compliance_pipeline.intake.inbox import State
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.screening.engine import ENGINE_BREAKER
from compliance_pipeline.screening.external import TRIES, HttpEngine
from compliance_pipeline.stack import free_port
from compliance_pipeline_tests.intake.test_breaker import shifted
from compliance_pipeline_tests.platforms.loopback import Asked, Reply, Server
from compliance_pipeline_tests.screening.engine_server import SECRET
from compliance_pipeline_tests.test_engines import served, shop_with
from compliance_pipeline_tests.workshop import Workshop, recording

WORKERS = 4
CHATS = [recording(Kind.CHAT_CARD, seed) for seed in range(1, 25)]
CHILD = """
import sys, pybreaker
from compliance_pipeline.breaker import circuit_breaker
from compliance_pipeline.intake.inbox import Inbox
try:
    print(circuit_breaker(Inbox(sys.argv[1]).engine, "engine").call(lambda: "asked"))
except pybreaker.CircuitBreakerError:
    print("refused")
"""


class Door(Server):
    """Stands before an engine; what comes while it is `shut` is answered 503."""

    def __init__(self, engine_url: str) -> None:
        self.engine_url, self.shut = engine_url, True
        super().__init__()

    def answer(self, asked: Asked) -> Reply:
        if self.shut:
            return Reply(503)
        passed = {key: value for key, value in asked.headers.items() if key.startswith(("webhook-", "content-type"))}
        answer = httpx.post(self.engine_url + asked.path, content=asked.body, headers=passed, timeout=30)
        return Reply(answer.status_code, answer.content, {"Content-Type": "application/json"})


def reset_time_passes(shop: Workshop) -> None:
    shop.clock.wait(RESET_S + 1)
    for column in ("opened_at", "probing_since"):
        shifted(shop.inbox, "breaker", column, RESET_S + 1)


def another_process(shop: Workshop) -> str:
    command = [sys.executable, "-c", CHILD, shop.pipeline.settings.inbox_database_url]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_traffic_to_an_engine_that_is_down_drops_to_the_probes_and_comes_back_with_nothing_lost(
    tmp_path: Path,
) -> None:
    """fault: an engine over HTTP goes away and comes back; invariant: it gets the probes only, from all processes
    together, and afterwards each recording its verdict."""
    with served() as url:
        door = Door(url)
        with shop_with(tmp_path, door.url, fetch_workers=WORKERS) as shop:
            assert isinstance(shop.pipeline.engine, RemoteEngine)
            shop.pipeline.engine._http = HttpEngine(door.url, SECRET, backoff_s=0.001)
            shop.announce(*CHATS)
            shop.run()
            assert FAIL_MAX * TRIES <= len(door.asked) <= (FAIL_MAX + WORKERS) * TRIES, "what was under way ends"
            opened = len(door.asked)
            for _ in range(3):
                shop.clock.wait(8)
                shop.run()
            assert len(door.asked) == opened, "nothing while it is open"
            assert another_process(shop) == "refused"
            for _ in range(3):
                before, begun = len(door.asked), monotonic()
                reset_time_passes(shop)
                shop.run()
                # On a machine that is busy, a run outlasts the probes, and others may try again.
                times = 1 + (monotonic() - begun) // PROBING.total_seconds()
                assert TRIES <= len(door.asked) - before <= PROBES * TRIES * times
            assert set(shop.states().values()) == {State.DEFERRED}
            assert len(openings(shop.inbox.engine, shop.at)) == 1, "one outage, however many probes failed"

            door.shut = False
            reset_time_passes(shop)
            for _ in range(12):
                shop.run()
                shop.clock.wait(60)
                if set(shop.states().values()) == {State.DONE}:
                    break
            assert shop.states() == {chat.recording_id: State.DONE for chat in CHATS}
            assert len(shop.rows("verdicts")) == len(CHATS)
            [engine] = [one for one in states(shop.inbox.engine, utc_now()) if one.name == ENGINE_BREAKER]
            assert (engine.state, engine.held_until) == ("closed", None)
            assert another_process(shop) == "asked"
        door.stop()


def test_a_verdict_that_was_called_back_before_is_no_answer_of_an_engine_that_is_down(tmp_path: Path) -> None:
    """fault: an engine is down, and a verdict that it called back before is taken; invariant: its breaker is open."""
    with shop_with(tmp_path, f"http://127.0.0.1:{free_port()}") as shop:
        called = CHATS[0]
        shop.announce(called)
        item = shop.inbox.get(called.recording_id)
        assert item is not None
        verdict = Verdict(
            recording_id=item.recording_id,
            verdict=VerdictValue.NO_VIOLATION,
            violation_type=None,
            confidence_score=None,
            timestamp_offset_ms=None,
            recommended_action=RecommendedAction.NONE,
            correlation_id=item.correlation_id,
        )
        message = Message("id-1", "digest", shop.pipeline.policy.policy_version)
        take(shop.inbox.engine, message, verdict, shop.clock())
        circuit_breaker(shop.inbox.engine, ENGINE_BREAKER).open()
        reset_time_passes(shop)
        shop.run()
        assert shop.states() == {called.recording_id: State.DONE}
        [engine] = [one for one in states(shop.inbox.engine, utc_now()) if one.name == ENGINE_BREAKER]
        assert engine.state == "open"
