"""What the simulated platform holds, did and saw, in memory. No HTTP here: who serves it is guide, cloud, media, admin.

Truth (what was planted, what a correct client can find) and observation (what a client did) are told side by side.
"""

import hashlib
import hmac
import math
import re
import secrets
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.contracts.verdict import VerdictValue
from compliance_pipeline.sandbox.calls import SyntheticRecording
from compliance_pipeline.sandbox.faults import FaultKind, FaultPlan, PlannedFault
from compliance_pipeline.sandbox.planted import PlantedValues

Profile = Literal["guide", "cloud"]
Expectation = Literal["verdict", "unscreenable", "refused"]

NEVER_LISTED: Final = (FaultKind.NOT_RECORDED, FaultKind.NOT_FOUND_EVER, FaultKind.DELETED, FaultKind.FILE_ERROR)
"""For ever: no listing has these, and only an event can make them known."""
_UNSCREENABLE: Final = (FaultKind.MEDIA_HEADER_ONLY, FaultKind.MEDIA_HTML)
_SECONDS_ARE_NO_WAIT: Final = frozenset({FaultKind.MEDIA_SLOW_DRIP, FaultKind.EVENT_LATE})
"""Of these, `seconds` says how slow or how late; they pass by `times`."""
_STATUSES: Final = {FaultKind.DELETED: "deleted", FaultKind.FILE_ERROR: "error", FaultKind.ARCHIVED: "archived"}
_ANNOUNCED: Final = frozenset(
    {kind for kind in FaultKind if kind.startswith("event_")} | {FaultKind.BAD_SIGNATURE, FaultKind.REPLAYED}
) - {FaultKind.EVENT_LATE, FaultKind.EVENT_EARLY}
"""Strike events and nothing else; the other two also say when the recording came."""
_MOST_CALLS: Final = 500
"""Whose media is kept, in distinct files: without a limit, an endless plan fills the memory in hours."""
_OF_REQUESTS: Final = frozenset(
    {
        FaultKind.UNAUTHORISED,
        FaultKind.TOKEN_BUSY,
        FaultKind.TOO_MANY_REQUESTS,
        FaultKind.SERVER_ERROR,
        FaultKind.DROPPED_AFTER_EFFECT,
        FaultKind.FORBIDDEN_FOR_NOW,
        FaultKind.CONFLICT,
        FaultKind.TOO_LARGE,
    }
)
NOT_IN: Final[dict[Profile, frozenset[FaultKind]]] = {
    "guide": frozenset(
        {
            FaultKind.TRANSCODING_202,
            FaultKind.TRANSCODING_EMPTY_LIST,
            FaultKind.TRANSCODING_WITHOUT_URIS,
            FaultKind.ARCHIVED,
            FaultKind.CHANNEL_FILES,
            FaultKind.SEVERAL_RECORDINGS,
            FaultKind.BATCH_TROUBLE,
        }
    ),
    "cloud": frozenset({FaultKind.BAD_SIGNATURE, FaultKind.REPLAYED}),
}
"""Kinds that the profile has no word for."""


class Fault(BaseModel):
    """What happens to the next `times` requests whose path starts with `path` (and that use `method`, if given).

    status None: the connection is dropped without an answer. after_effect: the request is carried out first.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")

    path: str
    status: int | None = Field(default=None, ge=400, le=599)
    times: int = Field(default=1, ge=1)
    retry_after: int | None = None
    after_effect: bool = False
    method: str | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """One thing that the platform saw. `detail` is safe to show: a violation type, a status, an id."""

    what: str
    recording_id: str | None
    at: datetime
    detail: str = ""


@dataclass(slots=True)
class Held:
    """A recording on the platform. It is `processing` until `available_at`, then `available`,
    unless `status` says otherwise; until `known_at` the API answers 404.

    address: the id by which clients know it: of the recording (guide), or conversation:recording (cloud).
    plan, plan_s: the fault plan under which it came, and how far into it; what strikes it does not change later.
    is_dropped: its media is no longer kept. is_sample: made on demand (POST /sandbox/sample): no fault strikes it, no
    listing has it, and it is in no account.
    """

    recording: SyntheticRecording
    available_at: datetime
    known_at: datetime
    status: str = "available"
    conversation_id: str = ""
    address: str = ""
    tags: list[dict[str, str]] = field(default_factory=list)
    tagged_at: datetime | None = None
    seen: Counter[str] = field(default_factory=Counter)
    plan: FaultPlan = field(default_factory=FaultPlan)
    plan_s: float = 0.0
    tag_of_others: dict[str, str] | None = None
    is_sample: bool = False
    is_dropped: bool = False

    def status_at(self, now: datetime) -> str:
        return "processing" if self.status == "available" and now < self.available_at else self.status


class PlatformState:
    """All that the platform holds and saw, in memory. Tests in the same process read it while the server runs.

    token_ttl_s, media_ttl_s: lifetimes of bearer tokens and of signed media URLs.
    requests_per_minute: of one bearer token; above it 429 with Retry-After until its minute is over.
    """

    def __init__(
        self,
        client_id: str,
        client_secret: str,
        *,
        token_ttl_s: float = 3600,
        media_ttl_s: float = 300,
        profile: Profile = "guide",
        plan: FaultPlan | None = None,
        requests_per_minute: int | None = None,
    ) -> None:
        self.client_id = client_id
        self.client_secret = client_secret
        self.token_ttl_s = token_ttl_s
        self.media_ttl_s = media_ttl_s
        self.base_url = ""
        self.held: dict[str, Held] = {}
        self.work_items: list[dict[str, Any]] = []
        self.callbacks: list[dict[str, Any]] = []
        self.by_key: dict[tuple[str, str], list[dict[str, Any]]] = {}
        """What can be looked up (guide), by its dataset ('' for callbacks) and its key."""
        self.subscriptions: list[dict[str, Any]] = []
        self.flows: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.announced: set[str] = set()
        self.struck: Counter[FaultKind] = Counter()
        self.delivery_failures: list[datetime] = []
        self.faults: list[Fault] = []
        self.listeners: list[Callable[[Observation], None]] = []
        self.planned: int | None = None
        self.finished = False
        self.announces = True
        """Whether events are sent at all."""
        self.profile = profile
        self.plan = plan or FaultPlan()
        self.started_at = time.monotonic()
        self.requests_per_minute = requests_per_minute
        self.redaction: dict[Channel, frozenset[str]] = {}
        """What the platform redacts before it gives it out: kinds ('card', 'ssn', 'phone', 'email') by channel."""
        self._tokens: dict[str, float] = {}
        self._minutes: dict[str, tuple[float, int]] = {}
        self._media_key = secrets.token_bytes(32)
        self._planted = PlantedValues()
        self._calls: dict[int, list[str]] = {}
        self._by_address: dict[str, str] = {}
        self._by_conversation: dict[str, list[Held]] = {}
        self._asked: Counter[tuple[FaultKind, str]] = Counter()
        self._first_asked: dict[tuple[FaultKind, str], datetime] = {}
        self._noted: set[tuple[FaultKind, str]] = set()
        self._lock = threading.Lock()

    # Recordings

    def add(
        self,
        recording: SyntheticRecording,
        *,
        available_at: datetime | None = None,
        known_at: datetime | None = None,
        status: str = "available",
        conversation_id: str | None = None,
        is_sample: bool = False,
    ) -> Held:
        """Puts a recording on the platform. Times are aware; without them it is known and available at once.

        conversation_id: to put several recordings into one; else it has a conversation of its own.
        Of the oldest calls the media is dropped; a pool's, which many calls share, counts once.
        """
        now = datetime.now(UTC)
        recording_id = recording.recording_id
        held = Held(recording, (available_at or now).astimezone(UTC), known_at or now, status)
        held.conversation_id = conversation_id or conversation_id_of(recording_id)
        held.address = f"{held.conversation_id}:{recording_id}" if self.profile == "cloud" else recording_id
        held.plan, held.plan_s, held.is_sample = self.plan, self.plan_s, is_sample
        if is_sample:
            held.plan = FaultPlan()
        with self._lock:
            self.held[recording_id] = held
            self._by_address[held.address] = recording_id
            self._by_conversation.setdefault(held.conversation_id, []).append(held)
            self._planted.add(recording.planted, recording_id)
            if held.recording.channel is Channel.VOICE:
                self._calls.setdefault(id(recording.media), []).append(recording_id)
            if len(self._calls) > _MOST_CALLS:
                self._drop(self._calls.pop(next(iter(self._calls))))
        return held

    def _drop(self, recording_ids: Iterable[str]) -> None:
        for held in (self.held[one] for one in recording_ids):
            transcript = None if held.recording.transcript is None else b""
            held.recording = replace(held.recording, media=b"", transcript=transcript)
            held.is_dropped = True

    def held_of(self, conversation_id: str) -> list[Held]:
        """The recordings of a conversation, in the order in which they were added."""
        return list(self._by_conversation.get(conversation_id, ()))

    # Planned faults

    @property
    def plan_s(self) -> float:
        """Seconds since the fault plan began."""
        return time.monotonic() - self.started_at

    def follow(self, plan: FaultPlan) -> None:
        """From now on another fault plan; recordings that are there keep the one under which they came."""
        self.plan, self.started_at = plan, time.monotonic()

    def strikes(self, kind: FaultKind, key: str) -> PlannedFault | None:
        """The plan's fault of that kind that strikes `key`: a recording (for good or never), or a request now."""
        fault = self._drawn(kind, key)
        if fault:
            self._note(kind, key)
        return fault

    def passing(self, kind: FaultKind, key: str) -> PlannedFault | None:
        """The same for faults that pass: the first `times` times that it is asked for `key`; or with `seconds` until
        so long after the recording became available (after the first question, for what is no recording)."""
        fault = self._drawn(kind, key)
        if fault is None:
            return None
        if fault.seconds is not None and kind not in _SECONDS_ARE_NO_WAIT:
            now = datetime.now(UTC)
            held = self.held.get(key)
            since = held.available_at if held else self._first_asked.setdefault((kind, key), now)
            if now >= since + timedelta(seconds=fault.seconds):
                return None
        else:
            if self._asked[kind, key] >= fault.times:
                return None
            self._asked[kind, key] += 1
        self._note(kind, key)
        return fault

    def _drawn(self, kind: FaultKind, key: str) -> PlannedFault | None:
        if held := self.held.get(key):
            return held.plan.strikes(kind, key, held.plan_s)
        return self.plan.strikes(kind, key, self.plan_s)

    def _note(self, kind: FaultKind, key: str) -> None:
        if (kind, key) not in self._noted:
            self._noted.add((kind, key))
            self.struck[kind] += 1
            self.saw("fault", key if key in self.held else None, kind)

    def expectation(self, held: Held) -> Expectation:
        """What a correct client ends with: a verdict, UNSCREENABLE, or neither, with a reason."""
        key = held.recording.recording_id
        archived = (FaultKind.ARCHIVED,) if self.profile == "cloud" else ()
        elsewhere = (FaultKind.MEDIA_ELSEWHERE,) if self._is_addressed(held) else ()
        refused = (*NEVER_LISTED, *elsewhere, *archived)
        if held.status != "available" or any(self._drawn(kind, key) for kind in refused):
            return "refused"
        return "unscreenable" if self.spoilt(held) else "verdict"

    def _is_addressed(self, held: Held) -> bool:
        """Genesys Cloud gives chats and e-mails in its answer: nobody asks an address for them."""
        return self.profile == "guide" or held.recording.channel is Channel.VOICE

    def spoilt(self, held: Held) -> FaultKind | None:
        """The fault that leaves nothing to hear of a call, however often its media is fetched."""
        if held.recording.channel is not Channel.VOICE:
            return None
        key = held.recording.recording_id
        return next((kind for kind in _UNSCREENABLE if self._drawn(kind, key)), None)

    def is_listed(self, held: Held, now: datetime) -> bool:
        """Whether a listing of what is available has it by `now`."""
        key = held.recording.recording_id
        there = held.status_at(now) == "available" and held.known_at <= now and not held.is_sample
        return there and not any(self._drawn(kind, key) for kind in NEVER_LISTED)

    # Faults that are asked for one by one

    def fail_next(
        self,
        path: str,
        status: int | None = None,
        times: int = 1,
        retry_after: int | None = None,
        after_effect: bool = False,
        method: str | None = None,
    ) -> None:
        """Arms a `Fault`."""
        self.faults.append(
            Fault(
                path=path,
                status=status,
                times=times,
                retry_after=retry_after,
                after_effect=after_effect,
                method=method,
            )
        )

    def take_fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if path.startswith(fault.path) and fault.method in (None, method):
                fault.times -= 1
                if not fault.times:
                    self.faults.remove(fault)
                return fault
        return None

    # Tokens and signed URLs

    def expire_tokens(self) -> None:
        """From now on every bearer token given out so far is refused."""
        self._tokens.clear()

    def revoke(self, header: str | None) -> None:
        """From now on that Authorization header's token is refused."""
        self._tokens.pop((header or "").partition(" ")[2], None)

    def issue_token(self) -> str:
        token = secrets.token_urlsafe(24)
        self._tokens[token] = time.monotonic() + self.token_ttl_s
        return token

    def is_authorised(self, header: str | None) -> bool:
        scheme, _, token = (header or "").partition(" ")
        return scheme.lower() == "bearer" and time.monotonic() < self._tokens.get(token, 0)

    def wait_of(self, header: str | None) -> int | None:
        """Counts a request of that token; seconds to wait (at least 1) if its minute is spent, else None."""
        if self.requests_per_minute is None:
            return None
        now = time.monotonic()
        began, used = self._minutes.get(header or "", (now, 0))
        if now >= began + 60:
            began, used = now, 0
        self._minutes[header or ""] = began, used + 1
        return max(1, math.ceil(began + 60 - now)) if used >= self.requests_per_minute else None

    def media_url(self, recording_id: str, channel: str | None = None) -> str:
        """A signed URL that works for `media_ttl_s` seconds. Carries a secret: never print it.

        channel: of one audio channel by itself ('0' or '1'), or of both mixed into one ('mono'), as a mono WAV.
        """
        if self.strikes(FaultKind.MEDIA_ELSEWHERE, recording_id):
            return self._elsewhere(recording_id)
        return self._signed_url(f"/media/{recording_id}" + ("" if channel is None else f"/{channel}"))

    def _elsewhere(self, recording_id: str) -> str:
        """Where no client may go: a cloud's metadata service, a private network, or a redirect into one."""
        return (
            "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
            f"http://10.0.0.1:9/{recording_id}.wav",
            self._signed_url(f"/media/{recording_id}/moved"),
        )[sum(recording_id.encode()) % 3]

    def transcript_url(self, recording_id: str) -> str:
        """The same for the transcript of a call."""
        return self._signed_url(f"/transcripts/{recording_id}")

    def _signed_url(self, path: str) -> str:
        expires = f"{time.time() + self.media_ttl_s:.3f}"
        return f"{self.base_url}{path}?token={expires}.{self._signature(path, expires)}"

    def is_media_token(self, path: str, token: str) -> bool:
        expires, _, signature = token.rpartition(".")
        try:
            fresh = time.time() < float(expires)
        except ValueError:
            return False
        return fresh and hmac.compare_digest(signature.encode(), self._signature(path, expires).encode())

    def _signature(self, path: str, expires: str) -> str:
        return hmac.new(self._media_key, f"{path}.{expires}".encode(), hashlib.sha256).hexdigest()

    # What was seen

    def saw(self, what: str, recording_id: str | None = None, detail: str = "") -> None:
        """Counts an observation, for the recording too if it is known (by id or address), and tells the listeners."""
        self.counts[what] += 1
        recording_id = self._by_address.get(recording_id or "", recording_id)
        if held := self.held.get(recording_id or ""):
            held.seen[what] += 1
        if what == "delivery failed":
            self.delivery_failures.append(datetime.now(UTC))
        if self.listeners:
            observation = Observation(what, recording_id, datetime.now(UTC), detail)
            for listener in self.listeners:
                listener(observation)

    def note_planted(self, *parts: bytes) -> None:
        """Counts a request whose parts bring back a clear value which only the media or the raw event held."""
        with self._lock:
            owners = set().union(*map(self._planted.owners_in, parts))
        for recording_id in owners:
            self.saw("sensitive value received", recording_id)

    def truth(self, last: int | None = None) -> dict[str, Any]:
        """Every recording so far (the `last` ones) with what it holds; no clear values. `finished`: all has come,
        every event sent.

        expectation: what a correct client ends with (`expectation`). faults: kinds that strike the recording.
        count: of all recordings so far, however few are asked for.
        """
        return {
            "count": sum(not held.is_sample for held in list(self.held.values())),
            "planned": self.planned,
            "finished": self.finished,
            "profile": self.profile,
            "recordings": [self._truth_of(held) for held in self._last(last)],
        }

    def _truth_of(self, held: Held) -> dict[str, Any]:
        recording, truth = held.recording, held.recording.truth
        expectation = self.expectation(held)
        heard = expectation != "unscreenable"
        return {
            "recordingId": held.address,
            "address": held.address,
            "conversationId": held.conversation_id,
            "kind": recording.kind,
            "channel": recording.channel,
            "expectation": expectation,
            "expectedVerdict": truth.verdict if heard else VerdictValue.UNSCREENABLE,
            "violationType": truth.violation_type if heard else None,
            "offsetMs": truth.offset_ms if heard else None,
            "endMs": truth.end_ms if heard else None,
            "damage": truth.damage,
            "transcript": recording.transcript is not None,
            "endedAt": recording.end_time.isoformat(),
            "availableAt": held.available_at.isoformat(),
            "faults": [kind for kind in FaultKind if self._concerns(kind, held)],
        }

    def _concerns(self, kind: FaultKind, held: Held) -> bool:
        if kind in _OF_REQUESTS or kind in NOT_IN[self.profile] or (kind in _ANNOUNCED and not self.announces):
            return False
        if not self._is_addressed(held) and (kind.startswith("media_") or kind is FaultKind.CHANNEL_FILES):
            return False
        if kind in _UNSCREENABLE:
            return kind is self.spoilt(held)
        return self._drawn(kind, held.recording.recording_id) is not None

    def observed(self, last: int | None = None) -> dict[str, Any]:
        """Everything seen, for all and for each recording (the `last` ones); ids, types, statuses and counts only."""
        now = datetime.now(UTC)
        items: dict[str, list[dict[str, Any]]] = {}
        for item in list(self.work_items):
            items.setdefault(about_item(item), []).append(item)
        callbacks = Counter(about_callback(callback) for callback in list(self.callbacks))
        rows = [
            self._observed_of(held, items.get(held.address, []), callbacks[held.address], now)
            for held in self._last(last)
        ]
        return {
            "profile": self.profile,
            "counts": dict(self.counts),
            "sent": {"recordings": len(self.announced), "messages": 0, **self.sent},
            "struck": dict(self.struck),
            "subscriptions": len(self.subscriptions),
            "flows": len(self.flows),
            "faultsLeft": sum(fault.times for fault in self.faults),
            "held": len(self.held),
            "doubles": sorted(about for about, made in items.items() if about and _doubled(made)),
            "tagsOfOthersLost": sum(_lost_tag(held) for held in list(self.held.values())),
            "recordings": rows,
        }

    def _status_of(self, held: Held, now: datetime) -> str:
        """What the API says in the end, be it that of the plan."""
        status = held.status_at(now)
        if status != "available":
            return status
        return next((word for kind, word in _STATUSES.items() if self._concerns(kind, held)), status)

    def _last(self, last: int | None) -> list[Held]:
        held = [held for held in list(self.held.values()) if not held.is_sample]
        return held if last is None else held[max(0, len(held) - last) :]

    def _observed_of(self, held: Held, items: list[dict[str, Any]], callbacks: int, now: datetime) -> dict[str, Any]:
        return {
            "recordingId": held.address,
            "address": held.address,
            "kind": held.recording.kind,
            "status": self._status_of(held, now),
            "tags": {shown(tag["key"]): shown(tag["value"]) for tag in held.tags},
            "tagOfOthersLost": _lost_tag(held),
            "taggedAt": held.tagged_at and held.tagged_at.isoformat(),
            "seen": dict(held.seen),
            "workItems": [shown(_type_of(item)) for item in items if not item.get("deleted")],
            "workItemsDeleted": sum(bool(item.get("deleted")) for item in items),
            "double": _doubled(items),
            "callbacks": callbacks,
        }


def conversation_id_of(recording_id: str) -> str:
    """The conversation of a recording that has one of its own."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, recording_id))


def about_item(item: dict[str, Any]) -> str:
    """The address of the recording that a work item is about: its record's id (guide), or its `about` (cloud)."""
    return str(item.get("about") or (item.get("record") or {}).get("recordingId") or "")


def about_callback(callback: dict[str, Any]) -> str | None:
    recording_id = callback.get("about") or (callback.get("data") or {}).get("recordingId")
    return recording_id if isinstance(recording_id, str) else None


def _lost_tag(held: Held) -> bool:
    return held.tag_of_others is not None and held.tag_of_others not in held.tags


def _type_of(item: dict[str, Any]) -> str:
    return str((item.get("record") or {}).get("violationType") or item.get("name") or "")


def _doubled(items: list[dict[str, Any]]) -> bool:
    """Two that are both there, about the same: a client that looked first would have found the first."""
    kept = Counter(
        (item.get("record") or item).get("key") or _type_of(item) for item in items if not item.get("deleted")
    )
    return any(number > 1 for number in kept.values())


def shown(text: str) -> str:
    """Text from a request, fit to print: short, without long numbers or control characters."""
    return re.sub(r"(?:\d[ -]?){7,}", "*", "".join(char for char in text if char.isprintable()))[:80]
