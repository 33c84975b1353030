"""What the simulated Genesys Cloud org holds beside recordings: permissions, names, tags, work items, jobs, audits.
No HTTP and no wire formats here: `cloud` serves it, `cloud_recordings` and `cloud_work` read and write it."""

import uuid
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from weakref import WeakKeyDictionary

from compliance_pipeline.sandbox.state import PlatformState

FOREVER: Final = datetime.max.replace(tzinfo=UTC)


def id_of(what: str, name: str) -> str:
    """The same UUID for the same kind of thing and name."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{what}:{name}"))


def _named(what: str, *names: str) -> dict[str, str]:
    return {name: id_of(what, name) for name in names}


@dataclass(frozen=True, slots=True)
class Listed:
    """A conversation as analytics knows it: from `start` to `end` (FOREVER while it goes on)."""

    conversation_id: str
    start: datetime
    end: datetime


@dataclass(slots=True)
class BatchJob:
    """items: (conversation, recording or None for all). troubled: recordings that fail in this job.

    steps: how many looks at it until it is done.
    """

    items: list[tuple[str, str | None]]
    troubled: frozenset[str]
    steps: int
    looks: int = 0


@dataclass(slots=True)
class FlowJob:
    """status: of ArchitectJobStateResponse. token: of the signed upload URL."""

    token: str = field(repr=False)
    expires_at: float
    status: str = "Registered"
    flow_id: str | None = None
    wrong: str | None = None


@dataclass
class CloudState:
    """One org. Tests and people may set any of it before or while the server runs.

    permissions: what the client's roles grant; None: everything. analytics_lag_s: how long a conversation that
    ended takes to be in analytics. callback_lag_s: how long a callback that was made does; None: as long, and a minute
    under a fault plan, so that who asks again at once makes two. queues, worktypes, workbins: ids by name.
    """

    permissions: set[str] | None = None
    analytics_lag_s: float = 2.0
    callback_lag_s: float | None = None
    queues: dict[str, str] = field(
        default_factory=lambda: _named("queue", "compliance_review_queue", "supervisor_callback_queue", "support")
    )
    worktypes: dict[str, str] = field(default_factory=lambda: _named("worktype", "Compliance review", "Back office"))
    workbins: dict[str, str] = field(default_factory=lambda: _named("workbin", "Compliance", "Back office"))
    external_tags: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    retention: dict[str, dict[str, Any]] = field(default_factory=dict)
    restored: dict[str, datetime] = field(default_factory=dict)
    protected: set[str] = field(default_factory=set)
    batches: dict[str, BatchJob] = field(default_factory=dict)
    work_items: dict[str, dict[str, Any]] = field(default_factory=dict)
    tagged_items: dict[str, list[str]] = field(default_factory=dict)
    work_items_gone: set[str] = field(default_factory=set)
    struck_items: set[str] = field(default_factory=set)
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    triggers: dict[str, dict[str, Any]] = field(default_factory=dict)
    flows: dict[str, dict[str, Any]] = field(default_factory=dict)
    flow_jobs: dict[str, FlowJob] = field(default_factory=dict)
    executions: list[dict[str, Any]] = field(default_factory=list)
    webhook_events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    operational_events: list[dict[str, Any]] = field(default_factory=list)
    audits: list[dict[str, Any]] = field(default_factory=list)
    audit_queries: dict[str, dict[str, Any]] = field(default_factory=dict)
    _listed: dict[str, Listed] = field(default_factory=dict)
    _ends: list[tuple[datetime, str]] = field(default_factory=list)
    _indexed: int = 0

    def grants(self, permission: str) -> bool:
        return self.permissions is None or permission in self.permissions

    def audit(self, service: str, action: str, entity_type: str, entity_id: str) -> None:
        """Notes what the client did, as the platform's own audit does; ids only."""
        self.audits.append(
            {
                "id": str(uuid.uuid4()),
                "serviceName": service,
                "level": "USER",
                "eventDate": iso(datetime.now(UTC)),
                "action": action,
                "entityType": entity_type,
                "entity": {"id": entity_id},
                "status": "SUCCESS",
                "application": "Public API",
            }
        )

    def list_callback(self, conversation_id: str, start: datetime) -> None:
        """From now on (and after the lag) analytics has this conversation; it goes on."""
        self._list(Listed(conversation_id, start, FOREVER))

    def listed(self, state: PlatformState, since: datetime, until: datetime) -> Iterator[Listed]:
        """Conversations that went on between `since` and `until` and started on a day that the interval touches.

        Costs what came since the last question, and what ended after `since`.
        """
        self._index(state)
        day = since.replace(hour=0, minute=0, second=0, microsecond=0)
        now = datetime.now(UTC)
        lag = timedelta(seconds=self.analytics_lag_s)
        callback_lag_s = self.callback_lag_s
        if callback_lag_s is None:
            callback_lag_s = max(self.analytics_lag_s, 60.0 if state.plan.faults else 0.0)
        callback_lag = timedelta(seconds=callback_lag_s)
        for end, conversation_id in self._ends[bisect_left(self._ends, (since, "")) :]:
            listed = self._listed[conversation_id]
            seen_from = listed.start if end == FOREVER else end
            # A conversation of several recordings stands here once for each; only its last end counts.
            lags = callback_lag if end == FOREVER else lag
            if end == listed.end and day <= listed.start < until and now >= seen_from + lags:
                yield listed

    def _index(self, state: PlatformState) -> None:
        if len(state.held) == self._indexed:
            return
        recording_ids = list(state.held)
        for recording_id in recording_ids[self._indexed :]:
            held = state.held[recording_id]
            if held.is_sample:
                continue
            recording = held.recording
            before = self._listed.get(held.conversation_id)
            start = min(before.start, recording.start_time) if before else recording.start_time
            end = max(before.end, recording.end_time) if before else recording.end_time
            if before is None or before.end != end:
                self._list(Listed(held.conversation_id, start, end))
            else:
                self._listed[held.conversation_id] = Listed(held.conversation_id, start, end)
        self._indexed = len(recording_ids)

    def _list(self, listed: Listed) -> None:
        self._listed[listed.conversation_id] = listed
        insort(self._ends, (listed.end, listed.conversation_id))


_ORGS: Final[WeakKeyDictionary[PlatformState, CloudState]] = WeakKeyDictionary()


def cloud_state(state: PlatformState) -> CloudState:
    """The org of that platform; the same for the same platform."""
    return _ORGS.get(state) or _ORGS.setdefault(state, CloudState())


def iso(at: datetime) -> str:
    """As the API writes times: UTC with milliseconds and Z."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
