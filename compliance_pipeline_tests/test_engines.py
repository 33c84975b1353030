"""The pipeline with another engine by one setting: our own service over a real socket, at once, later, and away."""

import base64
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from compliance_pipeline import engines
from compliance_pipeline.breaker import RESET_S, circuit_breaker
from compliance_pipeline.contracts.engine import SCREENINGS_PATH
from compliance_pipeline.engines import RemoteEngine
from compliance_pipeline.intake.inbox import State
from compliance_pipeline.intake.receiver import create_app
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.screening.engine import ENGINE_BREAKER, EmbeddedEngine
from compliance_pipeline.screening.policy import load_policy
from compliance_pipeline.screening.service import create_engine_app
from compliance_pipeline.settings import Settings
from compliance_pipeline.stack import free_port
from compliance_pipeline_tests.intake.test_receiver import Running
from compliance_pipeline_tests.platforms.loopback import Reply, Server
from compliance_pipeline_tests.screening.engine_server import CALLBACK_SECRET, LOOPBACK, SECRET
from compliance_pipeline_tests.workshop import Workshop, recording, workshop

POLICY = load_policy()
BATCH = [recording(kind) for kind in (Kind.VOICE_TONES, Kind.CHAT_CARD, Kind.CHAT_CVV, Kind.CHAT_CLEAN)]


@contextmanager
def served(**arguments: Any) -> Iterator[str]:
    app = create_engine_app(
        POLICY, EmbeddedEngine(POLICY, "key"), SECRET, CALLBACK_SECRET, hosts=LOOPBACK, callback_backoff_s=0.05,
        **arguments,
    )  # fmt: skip
    engine = Running(app)
    try:
        yield f"http://127.0.0.1:{engine.port}"
    finally:
        engine.stop()


@contextmanager
def shop_with(tmp_path: Path, url: str, **settings: Any) -> Iterator[Workshop]:
    secrets: dict[str, Any] = {"engine_secret": SECRET, "callback_secret": CALLBACK_SECRET}
    with workshop(tmp_path, engine_url=url, **secrets, **settings) as shop:
        assert isinstance(shop.pipeline.engine, RemoteEngine)
        yield shop


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with workshop(tmp_path_factory.mktemp("in-process")) as shop:
        shop.announce(*BATCH)
        shop.run()
        return shop.end_state()


def said_and_done(state: dict[str, Any]) -> list[Any]:
    """An external verdict names one violation, so less is known of the rest; what follows must be the same."""
    return [[verdict[:3] for verdict in state["verdicts"]], state["platform"], state["inbox"]]


def test_a_served_engine_flags_what_the_one_in_process_flags(tmp_path: Path, in_process: dict[str, Any]) -> None:
    with served() as url, shop_with(tmp_path, url) as shop:
        shop.announce(*BATCH)
        shop.run()
        assert said_and_done(shop.end_state()) == said_and_done(in_process)
        assert {row["engine_version"] for row in shop.rows("verdicts")} == {shop.pipeline.engine.version}
        assert {row["detector"] for row in shop.rows("violations")} == {"external"}


def test_verdicts_that_are_called_back_are_taken_up_by_the_next_run(tmp_path: Path, in_process: dict[str, Any]) -> None:
    port = free_port()
    with (
        served(answer_within_s=0.0) as url,
        shop_with(tmp_path, url, receiver_port=port, receiver_url=f"http://127.0.0.1:{port}") as shop,
    ):
        shop.announce(*BATCH)
        shop.run()
        # What is screened before the answer is written (a busy machine) is answered at once.
        waiting = [id_ for id_, state in shop.states().items() if state is State.DEFERRED]
        assert waiting
        assert len(shop.rows("verdicts")) == len(BATCH) - len(waiting)
        receiver = Running(create_app(shop.pipeline.settings, clock=shop.clock), port=port)
        try:
            deadline = time.monotonic() + 60
            while called_back(shop) < len(waiting):
                assert time.monotonic() < deadline, "not called back"
                time.sleep(0.05)
        finally:
            receiver.stop()
        shop.run()
        assert said_and_done(shop.end_state()) == said_and_done(in_process)


def called_back(shop: Workshop) -> int:
    engine = shop.pipeline.engine
    assert isinstance(engine, RemoteEngine)
    items = shop.inbox.items(shop.hour)
    return sum(engine.called_back(item.recording_id, item.correlation_id) is not None for item in items)


def test_an_engine_that_is_away_loses_nothing(tmp_path: Path, in_process: dict[str, Any]) -> None:
    with shop_with(tmp_path, f"http://127.0.0.1:{free_port()}") as shop:
        shop.announce(*BATCH)
        shop.run()
        assert {State.DEFERRED} == set(shop.states().values())
        assert shop.rows("verdicts") == []
    with served() as url, shop_with(tmp_path, url) as shop:
        for one in BATCH:
            shop.state.add(one)
        for item in shop.inbox.items(shop.hour):
            shop.clock.wait(600)
            assert item.state is State.DEFERRED
        shop.run()
        assert said_and_done(shop.end_state()) == said_and_done(in_process)


def test_a_recording_that_the_open_breaker_kept_from_being_asked_for_loses_no_try_and_is_due_with_the_next_probe(
    tmp_path: Path,
) -> None:
    with served() as url, shop_with(tmp_path, url, max_attempts=2) as shop:
        breaker = circuit_breaker(shop.inbox.engine, ENGINE_BREAKER)
        breaker.open()
        shop.announce(BATCH[0])
        for _ in range(4):
            shop.run()
            [item] = shop.inbox.items(shop.hour)
            assert item.due_at is not None
            assert (item.state, item.attempts) == (State.DEFERRED, 0)
            assert 0 < (item.due_at - shop.clock()).total_seconds() <= RESET_S
            shop.clock.wait(31)
        breaker.close()
        shop.run()
        assert set(shop.states().values()) == {State.DONE}


def test_an_engine_that_is_full_holds_nothing_against_a_recording_and_nobody_else_up(tmp_path: Path) -> None:
    full = Server()
    full.plan("POST", SCREENINGS_PATH, *[Reply(429, b"", {"Retry-After": "1"})] * 60)
    try:
        with shop_with(tmp_path, full.url, max_attempts=3) as shop:
            shop.announce(*BATCH)
            for _ in range(8):
                shop.run()
                shop.clock.wait(2)
            assert {State.DEFERRED} == set(shop.states().values())
            reasons = {item.reason for item in shop.inbox.items(shop.hour)}
            assert all("answered 429" in (reason or "") for reason in reasons), "the breaker stays closed"
    finally:
        full.stop()


def test_a_backfill_waits_for_its_callback_too(tmp_path: Path) -> None:
    with served(answer_within_s=0.0) as url, shop_with(tmp_path, url) as shop:
        shop.announce(BATCH[1])
        [item] = shop.inbox.claim(shop.hour, "earlier", shop.clock(), timedelta(minutes=1), 1)
        shop.inbox.done([item.recording_id], "earlier", shop.clock())
        shop.run(shop.batch(whole_partition=True))
        assert set(shop.states().values()) == {State.NEW}, "the next run takes up what is called back"


SEAL_KEY = b"k" * 32


SEALING: dict[str, Any] = {"engine_seal_key": {"2026-03": base64.b64encode(SEAL_KEY)}}


def test_sealed_media_are_judged_as_the_others_are(tmp_path: Path, in_process: dict[str, Any]) -> None:
    with served(keys={"2026-03": SEAL_KEY}) as url, shop_with(tmp_path, url, **SEALING) as shop:
        shop.announce(*BATCH)
        shop.run()
        assert said_and_done(shop.end_state()) == said_and_done(in_process)


def test_an_engine_with_another_key_judges_nothing(tmp_path: Path) -> None:
    with served(keys={"2026-03": b"o" * 32}) as url, shop_with(tmp_path, url, **SEALING) as shop:
        shop.announce(BATCH[1])
        shop.run()
        assert shop.rows("verdicts") == []


def test_media_too_large_to_seal_are_refused_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "MAX_SEALED_BYTES", 100)
    with served(keys={"2026-03": SEAL_KEY}) as url, shop_with(tmp_path, url, **SEALING) as shop:
        shop.announce(BATCH[1])
        shop.run()
        [item] = shop.inbox.items(shop.hour)
        assert "too large to send sealed" in (item.reason or "")
        assert shop.rows("verdicts") == []


@pytest.mark.parametrize("keys", [{"2026-03": base64.b64encode(b"short")}, {"a": "", "b": ""}])
def test_a_key_of_another_length_or_a_second_one_is_refused(tmp_path: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"32 bytes|at most 1"):
        Settings(_env_file=None, home=tmp_path, engine_seal_key=keys)
