"""Events and what goes wrong with them: over a real webhook, and into a real queue (moto's SQS server)."""

import asyncio
import json
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import httpx
import jsonschema
import pytest
from moto.server import ThreadedMotoServer
from standardwebhooks import Webhook, WebhookVerificationError

from compliance_pipeline.contracts.event import EventType
from compliance_pipeline.contracts.verdict import parse_verdict
from compliance_pipeline.intake.receiver import create_app
from compliance_pipeline.sandbox.calls import Kind, PlannedRecording
from compliance_pipeline.sandbox.delivery import INGEST_PATH, Deliverer, QueueDeliverer, RetryPolicy, play
from compliance_pipeline.sandbox.envelopes import Topic, envelope
from compliance_pipeline.sandbox.faults import FaultKind, PlannedFault
from compliance_pipeline.sandbox.platform import PlatformState
from compliance_pipeline.settings import Settings
from compliance_pipeline_tests.sandbox.receiving import Receiver, receiving
from compliance_pipeline_tests.sandbox.struck import chat, fault, state_under
from compliance_pipeline_tests.sandbox.test_delivery import QUICK, SECRET

SCHEMA = json.loads((Path(__file__).parent.parent / "contract" / "genesys_events.schema.json").read_text())
CALLBACKS = "whsec_" + b64encode(b"of verdicts, and of nothing else").decode()
CALL = PlannedRecording(seed=1, kind=Kind.VOICE_CLEAN, at_s=0)
CHAT = PlannedRecording(seed=2, kind=Kind.CHAT_CARD, at_s=0)


def posted(*faults: PlannedFault, planned: PlannedRecording = CHAT) -> tuple[PlatformState, Receiver]:
    state = state_under(*faults)

    async def run(receiver: Receiver) -> None:
        async with httpx.AsyncClient() as client:
            sender = Deliverer(state, receiver.url, SECRET, client, QUICK, callback_secret=CALLBACKS)
            await play([planned], state, sender)

    with receiving() as receiver:
        asyncio.run(run(receiver))
    return state, receiver


def genuine(receiver: Receiver) -> list[tuple[str, dict[str, Any]]]:
    """Message id and event of what is signed as it must be and is JSON."""
    found = []
    for headers, body in receiver.got:
        try:
            found.append((headers["webhook-id"], Webhook(SECRET).verify(body, headers)))
        except (WebhookVerificationError, ValueError):
            continue
    return found


@pytest.mark.parametrize(
    ("kind", "events", "ids"),
    [(FaultKind.EVENT_TWICE, 2, 1), (FaultKind.EVENT_NEW_ID, 2, 2), (FaultKind.EVENT_STORM, 3, 1)],
)
def test_repeats_come_with_the_same_id_or_a_new_one(kind: FaultKind, events: int, ids: int) -> None:
    state, receiver = posted(fault(kind))
    got = genuine(receiver)
    assert (len(got), len({message_id for message_id, _ in got})) == (events, ids)
    assert {event["recordingId"] for _, event in got} == {CHAT.recording_id}
    sent = state.observed()["sent"]
    assert (sent["messages"], sent["recordings"], sent["duplicates"]) == (events, 1, events - 1)


def test_events_come_in_reverse() -> None:
    _, receiver = posted(fault(FaultKind.EVENT_REVERSED), planned=CALL)
    assert [event["event"] for _, event in genuine(receiver)] == list(reversed(EventType))


def test_an_event_comes_before_the_recording_can_be_read() -> None:
    state, receiver = posted(fault(FaultKind.EVENT_EARLY, seconds=30))
    [(_, event)] = genuine(receiver)
    assert event["event"] == EventType.AVAILABLE
    assert state.held[CHAT.recording_id].known_at > datetime.now(UTC) + timedelta(seconds=10)


def test_a_lost_event_is_never_sent_but_its_recording_is_listed() -> None:
    state, receiver = posted(fault(FaultKind.EVENT_LOST))
    assert receiver.got == []
    assert state.is_listed(state.held[CHAT.recording_id], datetime.now(UTC) + timedelta(seconds=1))
    assert (state.sent["lost"], state.observed()["sent"]["recordings"]) == (1, 0)


def test_what_no_listing_has_is_never_lost() -> None:
    _, receiver = posted(fault(FaultKind.EVENT_LOST), fault(FaultKind.NOT_FOUND_EVER))
    assert len(receiver.got) == 1


def test_a_late_event_is_about_a_recording_of_days_ago() -> None:
    state, receiver = posted(fault(FaultKind.EVENT_LATE, seconds=200_000))
    [(_, event)] = genuine(receiver)
    ago = datetime.now(UTC) - datetime.fromisoformat(event["eventTime"])
    assert 199_000 < ago.total_seconds() < 201_000
    assert state.held[CHAT.recording_id].available_at < datetime.now(UTC) - timedelta(days=2)


def test_a_malformed_message_comes_beside_the_real_one() -> None:
    state, receiver = posted(fault(FaultKind.EVENT_MALFORMED))
    assert len(genuine(receiver)) == 1
    [malformed] = [body for _, body in receiver.got if b"recordingAvailable" not in body]
    with pytest.raises(ValueError, match="Unterminated"):
        json.loads(malformed)
    assert (state.sent["malformed"], state.counts["malformed taken"]) == (1, 1)


def test_an_event_of_an_unknown_topic_comes_beside_the_real_one() -> None:
    _, receiver = posted(fault(FaultKind.EVENT_UNKNOWN_TOPIC))
    known = [event["event"] in set(EventType) for _, event in genuine(receiver)]
    assert sorted(known) == [False, True]


@pytest.mark.parametrize(("kind", "word"), [(FaultKind.BAD_SIGNATURE, "forged"), (FaultKind.REPLAYED, "replayed")])
def test_what_must_not_be_trusted_fails_the_check_and_whether_it_was_taken_is_counted(
    kind: FaultKind, word: str
) -> None:
    state, receiver = posted(fault(kind))
    assert len(receiver.got) == 2
    assert len(genuine(receiver)) == 1
    [(headers, verdict)] = receiver.verdicts
    assert parse_verdict(verdict).recording_id == CHAT.recording_id
    with pytest.raises(WebhookVerificationError):
        Webhook(CALLBACKS).verify(verdict, headers)
    assert (state.sent[word], state.counts[f"{word} taken"], state.counts["delivered"]) == (2, 2, 1)
    state = state_under()

    async def run(url: str) -> None:
        async with httpx.AsyncClient() as client:
            await Deliverer(state, url, SECRET, client, QUICK).send_untrusted({"recordingId": "r"}, kind)

    with receiving(401, 404) as receiver:
        asyncio.run(run(receiver.url))
    assert (state.counts[f"{word} refused"], state.counts[f"{word} taken"]) == (2, 0)


@pytest.mark.parametrize("engine_url", [None, "http://127.0.0.1:1/screen"])
def test_our_receiver_takes_none_of_it_whether_an_engine_calls_back_or_not(
    engine_url: str | None, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, engine_url=engine_url, _env_file=None)
    state, heard = state_under(), list[str]()
    state.listeners.append(lambda seen: heard.append(seen.detail))

    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(settings))) as client:
            secrets = settings.webhook_signing_secret, settings.callback_signing_secret
            url = f"http://receiver{INGEST_PATH}"
            sender = Deliverer(state, url, secrets[0], client, QUICK, callback_secret=secrets[1])
            for kind in (FaultKind.BAD_SIGNATURE, FaultKind.REPLAYED):
                await sender.send_untrusted({"recordingId": "r"}, kind)

    asyncio.run(run())
    assert heard == ["event 401", "verdict 401" if engine_url else "verdict 404"] * 2
    assert (state.counts["forged refused"], state.counts["replayed refused"]) == (2, 2)


def test_an_old_verdict_is_signed_as_verdicts_are() -> None:
    _, receiver = posted(fault(FaultKind.REPLAYED))
    [(headers, verdict)] = receiver.verdicts
    signed_at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
    assert signed_at < datetime.now(UTC) - timedelta(minutes=50)
    again = Webhook(CALLBACKS).sign(headers["webhook-id"], signed_at, verdict.decode())
    assert headers["webhook-signature"] == again


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("topic", Topic)
def test_an_envelope_is_by_the_contract_and_leaks_what_the_real_one_leaks(topic: Topic, kind: Kind) -> None:
    recording = chat(kind=kind)
    made = envelope(
        recording,
        "0f3c1a52-7c0e-4a51-9d57-0a1b2c3d4e5f",
        topic,
        event_time=recording.end_time,
        sent_at=recording.end_time,
    )
    checker = jsonschema.FormatChecker()
    jsonschema.Draft202012Validator(SCHEMA, format_checker=checker).validate(made)
    assert made["detail-type"] in SCHEMA["x-topics"]
    body = {"$defs": SCHEMA["$defs"], "$ref": f"#/$defs/{SCHEMA['x-topics'][made['detail-type']]}"}
    jsonschema.Draft202012Validator(body).validate(made["detail"]["eventBody"])
    known = SCHEMA["$defs"][SCHEMA["x-topics"][made["detail-type"]]]["properties"]
    assert set(made["detail"]["eventBody"]) <= set(known)
    assert made["detail"]["eventBody"]["ani"].endswith(recording.participants[-1]["ani"])


@pytest.fixture(scope="module")
def sqs() -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def queue(sqs: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    client = boto3.client("sqs", endpoint_url=sqs, region_name="us-east-1")
    url: str = client.create_queue(QueueName=f"events-{abs(hash(request.node.name))}")["QueueUrl"]
    return url


def queued(
    queue: str, sqs: str, *faults: PlannedFault, planned: PlannedRecording = CHAT
) -> tuple[PlatformState, list[str]]:
    state = state_under(*faults, profile="cloud")
    asyncio.run(play([planned], state, QueueDeliverer(state, queue, sqs, policy=RetryPolicy(2, 5, 10))))
    client = boto3.client("sqs", endpoint_url=sqs, region_name="us-east-1")
    bodies: list[str] = []
    while messages := client.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages"):
        bodies += [message["Body"] for message in messages]
    return state, bodies


def topics(bodies: list[str]) -> Counter[str]:
    return Counter(json.loads(body)["detail-type"].partition("{id}.")[2] for body in bodies)


def test_a_conversation_is_announced_in_the_queue_under_its_topics(queue: str, sqs: str) -> None:
    state, bodies = queued(queue, sqs)
    assert topics(bodies) == dict.fromkeys(Topic, 1)
    held = state.held[CHAT.recording_id]
    assert {json.loads(body)["detail"]["eventBody"]["conversationId"] for body in bodies} == {held.conversation_id}
    assert state.truth()["recordings"][0]["recordingId"] == f"{held.conversation_id}:{CHAT.recording_id}"
    assert (state.sent["messages"], state.counts["delivered"]) == (3, 3)


def test_the_queue_gets_repeats_nonsense_and_strangers(queue: str, sqs: str) -> None:
    kinds = (FaultKind.EVENT_TWICE, FaultKind.EVENT_NEW_ID, FaultKind.EVENT_MALFORMED, FaultKind.EVENT_UNKNOWN_TOPIC)
    _, bodies = queued(queue, sqs, *(fault(kind) for kind in kinds))
    malformed = [body for body in bodies if not body.endswith("}")]
    assert len(malformed) == 1
    rest = [body for body in bodies if body not in malformed]
    assert topics(rest) == {Topic.CUSTOMER_END: 1, Topic.USER_END: 1, Topic.AFTER_CALL_WORK: 3, "customer.vanished": 1}
    last = [json.loads(body)["id"] for body in rest if json.loads(body)["detail-type"].endswith("acw")]
    assert len(set(last)) == 2


def test_a_conversation_of_several_recordings_is_announced_once(queue: str, sqs: str) -> None:
    state, bodies = queued(queue, sqs, fault(FaultKind.SEVERAL_RECORDINGS))
    assert len(bodies) == 3
    assert len(state.held) == 2
    assert len({held.conversation_id for held in state.held.values()}) == 1


def test_a_queue_that_is_away_is_counted_as_a_failure(sqs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    state = state_under(profile="cloud")
    sender = QueueDeliverer(state, f"{sqs}/123456789012/absent", sqs, policy=RetryPolicy(1, 5, 10))
    asyncio.run(play([CHAT], state, sender))
    assert state.counts["delivery failed"] == len(state.delivery_failures) == 3


def test_without_a_queue_nothing_is_sent() -> None:
    state = state_under(profile="cloud")
    asyncio.run(play([CHAT], state, None))
    assert state.finished
    assert state.held
    assert not state.sent


def test_where_nothing_is_sent_no_fault_of_events_is_told() -> None:
    state = state_under(*(fault(kind) for kind in FaultKind if kind.startswith("event_")), profile="cloud")
    asyncio.run(play([CHAT], state, None))
    assert state.truth()["recordings"][0]["faults"] == [FaultKind.EVENT_EARLY, FaultKind.EVENT_LATE]
