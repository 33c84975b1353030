"""Events on their way: by signed webhook with the guide's retryPolicy, or into a queue; plans played in time, and what
goes wrong with events. What an event says is `envelopes`; what the platform answers afterwards is `platform`."""

import asyncio
import json
import random
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol
from urllib.parse import urljoin, urlsplit

import httpx
from standardwebhooks import Webhook

from compliance_pipeline.contracts.event import EventType
from compliance_pipeline.contracts.verdict import RecommendedAction, VerdictValue
from compliance_pipeline.sandbox.calls import PlannedRecording, Readiness
from compliance_pipeline.sandbox.envelopes import Topic, envelope, event_payload
from compliance_pipeline.sandbox.faults import FaultKind
from compliance_pipeline.sandbox.state import Held, PlatformState

INGEST_PATH: Final = "/api/v1/ingest/recording"
VERDICT_PATH: Final = "/api/v1/callback/genesys"
"""Guide, step 3: the flow's entry point. Where no engine calls back, a receiver doesn't have it."""
_WORTH_ANOTHER_TRY: Final = frozenset({408, 425, 429})
_LATE_S: Final = 3 * 86400.0
_EARLY_S: Final = 3.0
_REPLAYED_AFTER: Final = timedelta(hours=1)
_STORM: Final = 3


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The guide's retryPolicy (step 1: 3 retries, exponential, 1000 ms at first). The defaults here go on for
    about five minutes, so that a receiver that is killed and started again loses nothing."""

    max_retries: int = 60
    initial_delay_ms: int = 250
    max_delay_ms: int = 5000

    def delay_s(self, attempt: int) -> float:
        """Seconds to wait after the failed try number `attempt` (from 0)."""
        return min(self.initial_delay_ms * 2.0 ** min(attempt, 30), self.max_delay_ms) / 1000


class Sender(Protocol):
    """Where events go. Everything sent is counted in `state.sent`; every outcome in `state.counts`."""

    async def deliver(self, payload: dict[str, Any], *, message_id: str | None = None) -> bool:
        """Sends one event until it is taken; False when it is refused or the retries are spent.

        message_id: the same for every try; give it to send the same message again.
        """
        ...

    async def send_malformed(self, about: str) -> None:
        """Sends what is no JSON, beside the real event of recording `about`."""
        ...

    async def send_untrusted(self, payload: dict[str, Any], kind: FaultKind) -> None:
        """Sends the event, and a verdict on its recording, under a forged signature (BAD_SIGNATURE), or signed long
        ago (REPLAYED)."""
        ...


class Deliverer:
    """Posts events to one receiver. Every outcome is counted in `state` ('delivered', 'delivery retried',
    'delivery refused', 'delivery failed'; 'forged', 'replayed' and 'malformed' with 'taken' or 'refused').

    callback_secret: what signs verdicts, where that is another secret.
    """

    def __init__(
        self,
        state: PlatformState,
        receiver_url: str,
        webhook_secret: str,
        client: httpx.AsyncClient,
        policy: RetryPolicy | None = None,
        *,
        callback_secret: str | None = None,
    ) -> None:
        self._state = state
        self._url = receiver_url
        self._webhook = Webhook(webhook_secret)
        self._callback_webhook = Webhook(callback_secret or webhook_secret)
        self._client = client
        self._policy = policy or RetryPolicy()

    async def deliver(self, payload: dict[str, Any], *, message_id: str | None = None) -> bool:
        recording_id = payload["recordingId"]
        kind = payload["event"].rpartition(":")[2]
        body = json.dumps(payload)
        message_id = message_id or f"msg_{uuid.uuid4().hex}"
        self._state.sent["messages"] += 1
        for attempt in range(self._policy.max_retries + 1):
            answer = await self._post(body, message_id)
            if answer is not None and answer < 300:
                self._state.saw("delivered", recording_id, kind)
                return True
            if answer is not None and answer < 500 and answer not in _WORTH_ANOTHER_TRY:
                self._state.saw("delivery refused", recording_id, f"{kind} {answer}")
                return False
            if attempt < self._policy.max_retries:
                self._state.saw("delivery retried", recording_id, f"{kind} {answer or 'no answer'}")
                await asyncio.sleep(self._policy.delay_s(attempt))
        self._state.saw("delivery failed", recording_id, f"{kind} after {self._policy.max_retries} retries")
        return False

    async def send_malformed(self, about: str) -> None:
        self._state.sent["malformed"] += 1
        answer = await self._post('{"recordingId": "', f"msg_{uuid.uuid4().hex}")
        self._say("malformed", about, answer)

    async def send_untrusted(self, payload: dict[str, Any], kind: FaultKind) -> None:
        forged = kind is FaultKind.BAD_SIGNATURE
        what = "forged" if forged else "replayed"
        recording_id = payload["recordingId"]
        signed_at = datetime.now(UTC) - (timedelta() if forged else _REPLAYED_AFTER)
        for name, body, is_verdict in (("event", payload, False), ("verdict", _verdict(recording_id), True)):
            self._state.sent[what] += 1
            answer = await self._post(
                json.dumps(body), f"msg_{uuid.uuid4().hex}", signed_at=signed_at, forged=forged, is_verdict=is_verdict
            )
            self._say(what, recording_id, answer, name)

    def _say(self, what: str, about: str, answer: int | None, name: str = "event") -> None:
        """What must be refused: 401 for a signature, 4xx for a body; 404 for a verdict where none is waited for."""
        taken = answer is not None and answer < 300
        said = "no answer" if answer is None else str(answer)
        self._state.saw(f"{what} {'taken' if taken else 'refused'}", about, f"{name} {said}")

    async def _post(
        self,
        body: str,
        message_id: str,
        *,
        signed_at: datetime | None = None,
        forged: bool = False,
        is_verdict: bool = False,
    ) -> int | None:
        """The answer's status; None if there was no answer."""
        signed_at = signed_at or datetime.now(UTC)
        webhook = self._callback_webhook if is_verdict else self._webhook
        signature = webhook.sign(message_id, signed_at, body + (" " if forged else ""))
        url = urljoin(self._url, VERDICT_PATH) if is_verdict else self._url
        headers = {
            "Content-Type": "application/json",
            "X-Genesys-Event-Source": "recording-pipeline",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(signed_at.timestamp())),
            "webhook-signature": signature,
        }
        try:
            return (await self._client.post(url, content=body, headers=headers)).status_code
        except httpx.TransportError:
            return None


def _verdict(recording_id: str) -> dict[str, Any]:
    """By the guide's schema: it would wave the recording through."""
    return {
        "recordingId": recording_id,
        "verdict": VerdictValue.NO_VIOLATION,
        "recommendedAction": RecommendedAction.NONE,
        "correlationId": str(uuid.uuid4()),
    }


class QueueDeliverer:
    """Puts events into an SQS queue, as an EventBridge rule does. Needs boto3 (extra `sqs`) and AWS credentials.

    A queue has no signatures: who may write to it is the queue's own policy. What is sent is counted in `state`
    ('delivered', 'delivery retried', 'delivery failed').
    """

    def __init__(
        self,
        state: PlatformState,
        queue_url: str,
        endpoint_url: str | None = None,
        *,
        policy: RetryPolicy | None = None,
    ) -> None:
        import boto3

        self._state = state
        self._url = queue_url
        self._policy = policy or RetryPolicy()
        host = (urlsplit(queue_url).hostname or "").split(".")
        region = host[1] if host[0] == "sqs" and len(host) > 2 else "us-east-1"
        self._client = boto3.client("sqs", endpoint_url=endpoint_url, region_name=region)

    async def deliver(self, payload: dict[str, Any], *, message_id: str | None = None) -> bool:
        body = {**payload, "id": message_id} if message_id else payload
        self._state.sent["messages"] += 1
        return await self._put(json.dumps(body), payload["detail"]["eventBody"].get("conversationId"))

    async def send_malformed(self, about: str) -> None:
        self._state.sent["malformed"] += 1
        await self._put('{"detail-type": "v2.', about)

    async def send_untrusted(self, payload: dict[str, Any], kind: FaultKind) -> None:
        """Nothing in a queue is signed."""

    async def _put(self, body: str, about: str | None) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        for attempt in range(self._policy.max_retries + 1):
            try:
                await asyncio.to_thread(self._client.send_message, QueueUrl=self._url, MessageBody=body)
            except (BotoCoreError, ClientError) as error:
                self._state.saw("delivery retried", about, type(error).__name__)
                await asyncio.sleep(self._policy.delay_s(attempt))
            else:
                self._state.saw("delivered", about)
                return True
        self._state.saw("delivery failed", about, f"after {self._policy.max_retries} retries")
        return False


async def play(plan: Iterable[PlannedRecording], state: PlatformState, sender: Sender | None) -> None:
    """Lets each recording of the plan happen at its time: onto the platform, its events to the sender (None: no
    event is sent, and only a listing can find it). Returns when every delivery has ended, and says so in
    `state.finished`."""
    state.announces = sender is not None
    started = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as group:
        for planned in plan:
            await asyncio.sleep(started + planned.at_s - asyncio.get_running_loop().time())
            group.create_task(_happen(planned, state, sender))
    state.finished = True


@dataclass(frozen=True, slots=True)
class _Message:
    """One event to be sent: about what, how it is made at a time, under which message id."""

    about: str
    make: Callable[[], dict[str, Any]]
    message_id: str | None = None


async def _happen(planned: PlannedRecording, state: PlatformState, sender: Sender | None) -> None:
    recording_id = planned.recording_id
    late = state.strikes(FaultKind.EVENT_LATE, recording_id)
    # The recording is of days ago, too: it is its event that took so long.
    ago = timedelta(seconds=(_LATE_S if late.seconds is None else late.seconds) if late else 0.0)
    ended_at = datetime.now(UTC) - ago
    recording = await asyncio.to_thread(planned.make, ended_at)
    ready_at = ended_at + timedelta(seconds=planned.lag_s)
    early = planned.readiness is Readiness.EARLY and planned.not_ready_for > 0
    not_ready_for = planned.not_ready_for
    if not late and not not_ready_for and (fault := state.strikes(FaultKind.EVENT_EARLY, recording_id)):
        early, not_ready_for = True, _EARLY_S if fault.seconds is None else fault.seconds
    available_at = max(ready_at, datetime.now(UTC) - ago) + timedelta(seconds=not_ready_for)
    # An event can overtake the platform's own API, which then answers 404 for a while.
    known_at = available_at - timedelta(seconds=not_ready_for / 2) if early else None
    held = state.add(recording, available_at=available_at, known_at=known_at)
    if state.profile == "cloud" and state.strikes(FaultKind.SEVERAL_RECORDINGS, recording_id):
        # After a transfer: another agent, another recording, the same conversation.
        other = await asyncio.to_thread(replace(planned, seed=planned.seed + 10**9).make, ended_at)
        state.add(other, available_at=available_at, known_at=known_at, conversation_id=held.conversation_id)
    if sender is None:
        return
    # What no listing has either could never be found.
    if state.expectation(held) != "refused" and state.strikes(FaultKind.EVENT_LOST, recording_id):
        state.sent["lost"] += 1
        return
    state.announced.add(recording_id)
    state.sent["late"] += bool(late)
    state.sent["early"] += early
    tell = _tell_webhook if state.profile == "guide" else _tell_queue
    waits = _Waits(planned, ready_at + ago, not_ready_for=not_ready_for, early=early)
    await tell(state, sender, held, waits)


@dataclass(frozen=True, slots=True)
class _Waits:
    planned: PlannedRecording
    ready_at: datetime
    not_ready_for: float
    early: bool

    async def until_ready(self) -> None:
        await asyncio.sleep((self.ready_at - datetime.now(UTC)).total_seconds())


async def _tell_webhook(state: PlatformState, sender: Sender, held: Held, waits: _Waits) -> None:
    recording, recording_id = held.recording, held.recording.recording_id

    def payload(event: EventType, at: datetime) -> dict[str, Any]:
        url = None if event is EventType.STARTED else state.media_url(recording_id)
        return event_payload(recording, event, event_time=at, media_url=url)

    started = _Message(recording_id, lambda: payload(EventType.STARTED, recording.start_time))
    if waits.not_ready_for and not waits.early:
        if recording.channel == "voice":
            await sender.deliver(started.make())
        await waits.until_ready()
        await sender.deliver(payload(EventType.COMPLETED, recording.end_time))
        return
    # A platform repeats a message (same id) or sends a second one about the same thing (new id): both happen.
    available = _Message(
        recording_id,
        lambda: payload(EventType.AVAILABLE, min(held.available_at, datetime.now(UTC))),
        f"msg_{uuid.uuid4().hex}",
    )
    reversed_ = state.strikes(FaultKind.EVENT_REVERSED, recording_id) is not None
    if recording.channel == "voice" and not reversed_:
        await sender.deliver(started.make())
    await waits.until_ready()
    await _announce(state, sender, available, waits.planned)
    if reversed_:
        state.sent["reversed"] += 1
        await sender.deliver(payload(EventType.COMPLETED, recording.end_time))
        await sender.deliver(started.make())

    def stranger() -> dict[str, Any]:
        return payload(EventType.AVAILABLE, held.available_at) | {"event": "recording:recordingTranscoded"}

    await _beside(state, sender, available, stranger)


async def _tell_queue(state: PlatformState, sender: Sender, held: Held, waits: _Waits) -> None:
    recording, conversation_id = held.recording, held.conversation_id
    recording_id = recording.recording_id

    def made(topic: str) -> Callable[[], dict[str, Any]]:
        return lambda: envelope(
            recording, conversation_id, topic, event_time=recording.end_time, sent_at=datetime.now(UTC)
        )

    if not waits.early:
        await waits.until_ready()
    messages = [_Message(recording_id, made(topic), str(uuid.uuid4())) for topic in Topic]
    if state.strikes(FaultKind.EVENT_REVERSED, recording_id):
        state.sent["reversed"] += 1
        messages.reverse()
    for message in messages[:-1]:
        await sender.deliver(message.make(), message_id=message.message_id)
    await _announce(state, sender, messages[-1], waits.planned)
    await _beside(state, sender, messages[-1], made("customer.vanished"))


async def _announce(state: PlatformState, sender: Sender, message: _Message, planned: PlannedRecording) -> None:
    """The event that says most, as often as the plan of recordings and that of faults will have it."""
    about, payload = message.about, message.make()
    again: list[str | None] = [message.message_id if planned.seed % 2 else None] * (planned.deliveries - 1)
    if state.strikes(FaultKind.EVENT_TWICE, about):
        again.append(message.message_id)
    if state.strikes(FaultKind.EVENT_NEW_ID, about):
        again.append(None)
    storm = _STORM - 1 if state.strikes(FaultKind.EVENT_STORM, about) else 0
    state.sent["duplicates"] += len(again) + storm
    at_once: list[Awaitable[bool]] = [sender.deliver(payload, message_id=message.message_id) for _ in range(1 + storm)]
    await asyncio.gather(*at_once)
    for message_id in again:
        await asyncio.sleep(random.Random(planned.seed).uniform(0.05, 1.5))
        await sender.deliver(message.make() if message_id is None else payload, message_id=message_id)


async def _beside(
    state: PlatformState, sender: Sender, message: _Message, stranger: Callable[[], dict[str, Any]]
) -> None:
    """What comes beside the real event and must change nothing."""
    about = message.about
    if state.strikes(FaultKind.EVENT_MALFORMED, about):
        await sender.send_malformed(about)
    if state.strikes(FaultKind.EVENT_UNKNOWN_TOPIC, about):
        state.sent["unknownTopic"] += 1
        await sender.deliver(stranger())
    for kind in (FaultKind.BAD_SIGNATURE, FaultKind.REPLAYED):
        if state.profile == "guide" and state.strikes(kind, about):
            await sender.send_untrusted(message.make(), kind)
