"""Delivery of events over real HTTP: signed, retried, counted; and plans that play in time."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from compliance_pipeline.contracts.event import Channel, EventType, RecordingEvent
from compliance_pipeline.sandbox.calls import Kind, PlannedRecording, Readiness, demo_plan, make_recording
from compliance_pipeline.sandbox.delivery import INGEST_PATH, Deliverer, RetryPolicy, play
from compliance_pipeline.sandbox.envelopes import event_payload
from compliance_pipeline.sandbox.platform import PlatformState, serve
from compliance_pipeline_tests.contract.conformance import check_component
from compliance_pipeline_tests.sandbox.receiving import Receiver, receiving, reserved_port

COMPLIANCE = str(Path(sys.executable).with_name("compliance"))
SECRET = "whsec_c2VjcmV0LW9mLXRoZS10ZXN0cy0wMTIzNDU2Nzg5"
QUICK = RetryPolicy(max_retries=3, initial_delay_ms=5, max_delay_ms=20)


def payload(event: EventType = EventType.AVAILABLE, kind: Kind = Kind.CHAT_CARD) -> dict[str, Any]:
    recording = make_recording(1, kind, ended_at=datetime.now(UTC))
    url = None if event is EventType.STARTED else "http://127.0.0.1:1/media/x?token=y"
    return event_payload(recording, event, event_time=datetime.now(UTC), media_url=url)


def deliver(state: PlatformState, url: str, policy: RetryPolicy = QUICK, **arguments: Any) -> bool:
    async def run() -> bool:
        async with httpx.AsyncClient() as client:
            return await Deliverer(state, url, SECRET, client, policy).deliver(payload(), **arguments)

    return asyncio.run(run())


def play_plan(plan: list[PlannedRecording], state: PlatformState, url: str) -> None:
    async def run() -> None:
        async with httpx.AsyncClient() as client:
            await play(plan, state, Deliverer(state, url, SECRET, client, QUICK))

    asyncio.run(run())


def events(receiver: Receiver) -> list[dict[str, Any]]:
    return [json.loads(body) for _, body in receiver.got]


@pytest.fixture
def state() -> PlatformState:
    return PlatformState("c", "s")


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("event", EventType)
def test_an_event_is_the_guides_payload_with_raw_attributes_that_a_receiver_must_drop(
    event: EventType, kind: Kind
) -> None:
    sent = payload(event, kind)
    parsed = RecordingEvent.model_validate_json(json.dumps(sent))
    assert (parsed.recording_id, parsed.event, parsed.channel) == (sent["recordingId"], event, kind.channel)
    assert [participant.purpose for participant in parsed.participants] == ["agent", "customer"]
    assert {"externalCallerId", "email", "ani"} <= sent.keys()
    # The guide prints the payload of recordingAvailable; before that there may be no media to name.
    check_component("RecordingEvent", sent | ({"mediaUri": ""} if event is EventType.STARTED else {}))
    assert ("mediaUri" in sent) is (event is not EventType.STARTED)


def test_a_delivery_is_signed_and_names_its_source(state: PlatformState) -> None:
    with receiving() as receiver:
        assert deliver(state, receiver.url)
    [(headers, body)] = receiver.got
    assert Webhook(SECRET).verify(body, headers)["recordingId"]
    assert headers["x-genesys-event-source"] == "recording-pipeline"
    assert headers["content-type"] == "application/json"
    assert state.counts["delivered"] == 1


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_delivery_is_tried_again_as_the_same_message_until_it_is_taken(state: PlatformState, status: int) -> None:
    with receiving(status, status) as receiver:
        assert deliver(state, receiver.url)
    assert len(receiver.got) == 3
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert (state.counts["delivery retried"], state.counts["delivered"]) == (2, 1)


@pytest.mark.parametrize("status", [400, 401, 413, 422])
def test_a_refused_delivery_is_not_tried_again(state: PlatformState, status: int) -> None:
    with receiving(status) as receiver:
        assert not deliver(state, receiver.url)
    assert len(receiver.got) == 1
    assert (state.counts["delivery refused"], state.counts["delivered"]) == (1, 0)


def test_spent_retries_are_counted_as_a_failure(state: PlatformState) -> None:
    with receiving(503, 503, 503, 503, 503) as receiver:
        assert not deliver(state, receiver.url)
    assert len(receiver.got) == 4
    assert (state.counts["delivery failed"], state.counts["delivery retried"]) == (1, 3)


def test_a_receiver_that_is_down_and_comes_back_gets_the_event(state: PlatformState) -> None:
    patient = RetryPolicy(max_retries=1000, initial_delay_ms=20, max_delay_ms=50)
    outcome: list[bool] = []
    with reserved_port() as port:
        url = f"http://127.0.0.1:{port}{INGEST_PATH}"
        thread = threading.Thread(target=lambda: outcome.append(deliver(state, url, patient)))
        thread.start()
        deadline = time.monotonic() + 10
        while not state.counts["delivery retried"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with receiving(port=port) as back:
            thread.join(timeout=10)
    assert outcome == [True]
    assert len(back.got) == 1


@given(attempt=st.integers(0, 10_000))
def test_waits_grow_exponentially_up_to_the_limit(attempt: int) -> None:
    policy = RetryPolicy(max_retries=3, initial_delay_ms=1000, max_delay_ms=10**6)
    assert policy.delay_s(attempt) <= 1000
    if attempt < 9:
        assert policy.delay_s(attempt) == 2.0**attempt


def test_the_default_policy_outlasts_a_receiver_that_is_away_for_four_minutes() -> None:
    policy = RetryPolicy()
    assert sum(policy.delay_s(attempt) for attempt in range(policy.max_retries)) > 240


def test_a_plan_plays_every_kind_of_arrival(state: PlatformState) -> None:
    plan = [
        PlannedRecording(seed=1, kind=Kind.VOICE_CLEAN, at_s=0),
        PlannedRecording(seed=2, kind=Kind.CHAT_CARD, at_s=0.1, deliveries=2),
        PlannedRecording(seed=3, kind=Kind.CHAT_SSN, at_s=0.1, deliveries=2),
        PlannedRecording(seed=4, kind=Kind.CHAT_CLEAN, at_s=0.1, not_ready_for=60),
        PlannedRecording(seed=5, kind=Kind.EMAIL_CARD, at_s=0.1, not_ready_for=60, readiness=Readiness.EARLY),
    ]
    voice, even, odd, completed, early = [planned.recording_id for planned in plan]
    with serve(state) as base_url, receiving() as receiver, httpx.Client(base_url=base_url) as api:
        api.headers["Authorization"] = f"Bearer {state.issue_token()}"
        assert not state.finished
        play_plan(plan, state, receiver.url)
        assert state.finished
        got = [(event["recordingId"], event["event"]) for event in events(receiver)]
        assert [event for recording_id, event in got if recording_id == voice] == [
            EventType.STARTED,
            EventType.AVAILABLE,
        ]
        for twice, different_ids in ((even, 2), (odd, 1)):
            ids = [h["webhook-id"] for h, body in receiver.got if json.loads(body)["recordingId"] == twice]
            assert (len(ids), len(set(ids))) == (2, different_ids)
        assert [event for recording_id, event in got if recording_id == completed] == [EventType.COMPLETED]
        assert [event for recording_id, event in got if recording_id == early] == [EventType.AVAILABLE]
        assert api.get(f"/api/v2/recordings/{completed}").json()["status"] == "processing"
        assert api.get(f"/api/v2/recordings/{early}").status_code == 404
        assert api.get(f"/api/v2/recordings/{voice}").json()["status"] == "available"
        for event in events(receiver):
            if event["event"] == EventType.AVAILABLE and event["recordingId"] != early:
                assert httpx.get(event["mediaUri"]).status_code == 200


def test_a_plan_keeps_its_times(state: PlatformState) -> None:
    plan = [PlannedRecording(seed=n, kind=Kind.CHAT_CLEAN, at_s=n * 0.3, lag_s=0.1) for n in range(4)]
    started = datetime.now(UTC)
    with receiving() as receiver:
        play_plan(plan, state, receiver.url)
    for planned in plan:
        held = state.held[planned.recording_id]
        # Never early; a busy machine may be late.
        assert planned.at_s - 0.02 <= (held.recording.end_time - started).total_seconds() < planned.at_s + 2
        assert 0.1 <= (held.available_at - held.recording.end_time).total_seconds() < 2


def test_the_runner_plays_the_demo_prints_no_clear_value_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    with reserved_port() as port, receiving() as receiver:
        environment = {
            **os.environ,
            "COMPLIANCE_HOME": str(tmp_path / "var"),
            "COMPLIANCE_PLATFORM_URL": f"http://127.0.0.1:{port}",
            "COMPLIANCE_RECEIVER_PORT": str(receiver.port),
            "COMPLIANCE_WEBHOOK_SECRET": SECRET,
        }
        log = tmp_path / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [COMPLIANCE, "sandbox", "serve", "--plan", "demo", "--count", "4", "--spread=1"],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            truth: dict[str, Any] = {}
            deadline = time.monotonic() + 30
            while not truth.get("finished") and time.monotonic() < deadline:
                time.sleep(0.1)
                with suppress(httpx.TransportError):
                    truth = httpx.get(f"http://127.0.0.1:{port}/sandbox/truth").json()
            assert truth["finished"]
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            process.wait(timeout=5)
        finally:
            process.kill()
    plan = demo_plan(1, count=4, spread_s=1)
    assert {row["recordingId"] for row in truth["recordings"]} == {planned.recording_id for planned in plan}
    voices = sum(planned.kind.channel is Channel.VOICE for planned in plan)
    assert len(receiver.got) == voices + sum(planned.deliveries for planned in plan)
    for headers, body in receiver.got:
        Webhook(SECRET).verify(body, headers)
    printed = log.read_text()
    assert "Traceback" not in printed
    assert printed.count("delivered") == len(receiver.got)
    for planned in plan:
        assert planned.recording_id in printed
        for value in planned.make(datetime.now(UTC)).planted:
            assert value not in printed
