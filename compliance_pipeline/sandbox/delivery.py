"""Events on their way to the receiver, signed and retried as the guide's retryPolicy says; and plans played in time.
What a recording holds is `calls`; what the platform answers afterwards is `platform`."""

import asyncio
import json
import random
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
from standardwebhooks import Webhook

from compliance_pipeline.contracts.event import EventType
from compliance_pipeline.sandbox.calls import PlannedRecording, Readiness, SyntheticRecording
from compliance_pipeline.sandbox.platform import PlatformState

INGEST_PATH: Final = "/api/v1/ingest/recording"
_WORTH_ANOTHER_TRY: Final = frozenset({408, 425, 429})


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


def event_payload(
    recording: SyntheticRecording, event: EventType, *, event_time: datetime, media_url: str | None
) -> dict[str, Any]:
    """The event as the platform sends it, with the raw attributes that the guide's edge case 2 warns of."""
    customer = recording.participants[-1]
    payload = {
        "recordingId": recording.recording_id,
        "event": event,
        "eventTime": event_time.isoformat(),
        "participants": list(recording.participants),
        "startTime": recording.start_time.isoformat(),
        "direction": recording.direction,
        "channel": recording.channel,
        "externalCallerId": customer["externalCallerId"],
        "email": customer["email"],
        "ani": customer["ani"],
    }
    if event is not EventType.STARTED:
        payload["endTime"] = recording.end_time.isoformat()
    if media_url:
        payload["mediaUri"] = media_url
    return payload


class Deliverer:
    """Posts events to one receiver. Every outcome is counted in `state` ('delivered', 'delivery retried',
    'delivery refused', 'delivery failed')."""

    def __init__(
        self,
        state: PlatformState,
        receiver_url: str,
        webhook_secret: str,
        client: httpx.AsyncClient,
        policy: RetryPolicy | None = None,
    ) -> None:
        self._state = state
        self._url = receiver_url
        self._webhook = Webhook(webhook_secret)
        self._client = client
        self._policy = policy or RetryPolicy()

    async def deliver(self, payload: dict[str, Any], *, message_id: str | None = None) -> bool:
        """Posts one event until the receiver takes it (2xx); False when it refuses it or the retries are spent.

        message_id: the webhook-id, the same for every try; give it to send the same message again.
        """
        recording_id = payload["recordingId"]
        kind = payload["event"].rpartition(":")[2]
        body = json.dumps(payload)
        message_id = message_id or f"msg_{uuid.uuid4().hex}"
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

    async def _post(self, body: str, message_id: str) -> int | None:
        """The answer's status; None if there was no answer."""
        now = datetime.now(UTC)
        headers = {
            "Content-Type": "application/json",
            "X-Genesys-Event-Source": "recording-pipeline",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._webhook.sign(message_id, now, body),
        }
        try:
            return (await self._client.post(self._url, content=body, headers=headers)).status_code
        except httpx.TransportError:
            return None


async def play(plan: Iterable[PlannedRecording], state: PlatformState, deliverer: Deliverer) -> None:
    """Lets each recording of the plan happen at its time: onto the platform, its events to the receiver.
    Returns when every delivery has ended, and says so in `state.finished`."""
    started = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as group:
        for planned in plan:
            await asyncio.sleep(started + planned.at_s - asyncio.get_running_loop().time())
            group.create_task(_happen(planned, state, deliverer))
    state.finished = True


async def _happen(planned: PlannedRecording, state: PlatformState, deliverer: Deliverer) -> None:
    ended_at = datetime.now(UTC)
    recording = await asyncio.to_thread(planned.make, ended_at)
    ready_at = ended_at + timedelta(seconds=planned.lag_s)
    available_at = max(ready_at, datetime.now(UTC)) + timedelta(seconds=planned.not_ready_for)
    early = planned.readiness is Readiness.EARLY and planned.not_ready_for > 0
    # An event can overtake the platform's own API, which then answers 404 for a while.
    known_at = available_at - timedelta(seconds=planned.not_ready_for / 2) if early else None
    held = state.add(recording, available_at=available_at, known_at=known_at)

    def payload(event: EventType, at: datetime) -> dict[str, Any]:
        url = None if event is EventType.STARTED else state.media_url(recording.recording_id)
        return event_payload(recording, event, event_time=at, media_url=url)

    if recording.channel == "voice":
        await deliverer.deliver(payload(EventType.STARTED, recording.start_time))
    await asyncio.sleep((ready_at - datetime.now(UTC)).total_seconds())
    if planned.not_ready_for and not early:
        await deliverer.deliver(payload(EventType.COMPLETED, ended_at))
        return
    available = payload(EventType.AVAILABLE, min(held.available_at, datetime.now(UTC)))
    # A platform repeats a message (same id) or sends a second one about the same thing (new id): both happen.
    message_id = f"msg_{uuid.uuid4().hex}"
    again = message_id if planned.seed % 2 else None
    await deliverer.deliver(available, message_id=message_id)
    for _ in range(planned.deliveries - 1):
        await asyncio.sleep(random.Random(planned.seed).uniform(0.05, 1.5))
        await deliverer.deliver(available, message_id=again)
