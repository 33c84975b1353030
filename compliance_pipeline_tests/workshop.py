"""A working pipeline for tests: real inbox, real warehouse, real engine, and a sandbox platform over HTTP."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from compliance_pipeline import steps
from compliance_pipeline.contracts.event import EventType, RecordingEvent
from compliance_pipeline.contracts.work_item import SupervisorCallback, WorkItem
from compliance_pipeline.engines import engine_of
from compliance_pipeline.intake.hours import hour_of, partition_hour
from compliance_pipeline.intake.inbox import Inbox, IncomingEvent, State
from compliance_pipeline.platforms.cloud import CloudPlatform
from compliance_pipeline.platforms.guide import GuidePlatform
from compliance_pipeline.platforms.port import Location, Media, MediaStream, NotYet, Platform
from compliance_pipeline.platforms.transport import Transport
from compliance_pipeline.remediate import remediate_batch
from compliance_pipeline.sandbox.calls import Damage, Kind, SyntheticRecording, make_recording
from compliance_pipeline.sandbox.platform import PlatformState, serve
from compliance_pipeline.screening.policy import load_policy
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.warehouse import MARTS, Warehouse, warehouse_of

CLIENT = ("compliance-service", "s3cret")
ENDED_AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@cache
def recording(kind: Kind, seed: int = 1, damage: Damage | None = None) -> SyntheticRecording:
    return make_recording(seed, kind, ended_at=ENDED_AT, damage=damage)


class Clock:
    """The real time, moved on by what a test would have to wait for."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def wait(self, seconds: float) -> None:
        self.ahead += timedelta(seconds=seconds)


@dataclass
class Workshop:
    state: PlatformState
    pipeline: steps.Pipeline
    clock: Clock
    hour: str
    """Partition of everything announced here; one for the whole test, whatever the wall clock does meanwhile."""
    runs: list[str] = field(default_factory=list)

    @property
    def inbox(self) -> Inbox:
        return self.pipeline.inbox

    @property
    def warehouse(self) -> Warehouse:
        return self.pipeline.warehouse

    @property
    def at(self) -> datetime:
        return hour_of(self.hour)

    def announce(
        self, *recordings: SyntheticRecording, event: EventType = EventType.AVAILABLE, held: bool = True
    ) -> None:
        """Put recordings on the platform (if `held`) and their events into the inbox."""
        now = self.clock()
        for one in recordings:
            if held:
                self.state.add(one)
            self.inbox.store([incoming(one, event, max(self.at, min(now, self.at + timedelta(minutes=59))))], now)

    def announce_conversation(self, conversation_id: str, *, attempt: int = 1) -> None:
        """The event of a conversation that ended; what it has on the platform is the caller's."""
        event = RecordingEvent(recording_id=conversation_id, conversation_id=conversation_id, event=EventType.COMPLETED)
        now = self.clock()
        self.inbox.store([IncomingEvent(event, "cloud", f"msg-{conversation_id}-{attempt}", max(self.at, now))], now)

    def batch(self, owner: str | None = None, *, whole_partition: bool = False) -> steps.Batch:
        """A run's batch; a new owner unless one is named."""
        run_id = f"run-{len(self.runs) + 1}"
        self.runs.append(run_id)
        return steps.Batch(self.hour, owner or run_id, run_id, whole_partition, self.clock())

    def run(self, batch: steps.Batch | None = None) -> steps.Batch:
        """All steps of a run, as Dagster's job goes through them."""
        batch = batch or self.batch()
        steps.claim(self.pipeline, batch)
        steps.screen_batch(self.pipeline, batch)
        remediate_batch(self.pipeline, batch)
        steps.refresh_marts(self.pipeline, MARTS, batch.hour)
        return batch

    def states(self) -> dict[str, State]:
        return {item.recording_id: item.state for item in self.inbox.items(self.hour)}

    def rows(self, table: str) -> list[dict[str, Any]]:
        return self.warehouse.select(f"FROM {table} ORDER BY ALL")

    def end_state(self) -> dict[str, Any]:
        """What matters in the end, without the times and ids that differ from run to run."""
        observed = self.state.observed()["recordings"]
        return {
            "verdicts": sorted(
                (r["recording_id"], r["verdict"], r["violation_type"] or "", r["timestamp_offset_ms"] or 0)
                for r in self.rows("verdicts")
            ),
            "actions": sorted(
                (r["recording_id"], r["rule_id"], r["action"], r["status"]) for r in self.rows("latest_remediations")
            ),
            "platform": sorted(
                (o["recordingId"], sorted(o["tags"].items()), o["workItems"], o["callbacks"]) for o in observed
            ),
            "inbox": sorted(self.states().items()),
            "figures": self.warehouse.select(
                "SELECT channel, rule_id, recordings, screened FROM violations_by_hour ORDER BY ALL"
            ),
            "stages": self.warehouse.select(
                "SELECT channel, stage, recordings FROM latency_by_hour ORDER BY ALL"
            ),
        }  # fmt: skip


def incoming(one: SyntheticRecording, event: EventType, available_at: datetime) -> IncomingEvent:
    return IncomingEvent(
        RecordingEvent(
            recording_id=one.recording_id,
            event=event,
            media_uri="https://media.test/1",
            start_time=one.start_time,
            end_time=one.end_time,
            channel=one.channel,
            direction=one.direction,
        ),
        "guide",
        f"msg-{one.recording_id}",
        available_at,
    )


@contextmanager
def workshop(home: Path, state: PlatformState | None = None, **settings: Any) -> Iterator[Workshop]:
    """A pipeline whose data lies in `home`, over a platform served on loopback."""
    state = state or PlatformState(*CLIENT)
    with serve(state) as url:
        configured = Settings(home=home, platform_url=url, client_id=CLIENT[0], client_secret=CLIENT[1], **settings)
        platform = _platform(state, Transport(url, *CLIENT, backoff_s=0.001))
        inbox = Inbox(configured.inbox_database_url)
        inbox.create()
        clock = Clock()
        warehouse = warehouse_of(configured)
        policy = load_policy()
        engine = engine_of(configured, policy, inbox)
        pipeline = steps.Pipeline(configured, inbox, warehouse, platform, policy, engine, clock)
        try:
            yield Workshop(state, pipeline, clock, partition_hour(clock()))
        finally:
            platform.close()
            inbox.close()


def _platform(state: PlatformState, transport: Transport) -> Platform:
    if state.profile == "guide":
        return GuidePlatform(transport)
    return CloudPlatform(
        transport, work_item_type="Compliance review", workbin="Compliance", supervisor_number="+13175550100"
    )


class Failing:
    """A platform that raises where it is told to: `raising` maps (method, recording id or '*') to an exception.

    Stands for what no sandbox fault can do to us: a bug, a full disk, the end of the process.
    """

    def __init__(self, inner: Platform, raising: Mapping[tuple[str, str], BaseException], after: bool = False) -> None:
        self.name = inner.name
        self.callback_lag_s = inner.callback_lag_s
        self._inner = inner
        self._raising = raising
        self._after = after
        self._media: dict[str, str] = {}

    def _maybe(self, method: str, recording_id: str) -> None:
        if error := self._raising.get((method, recording_id)) or self._raising.get((method, "*")):
            raise error

    def locate(self, recording_id: str) -> Location:
        self._maybe("locate", recording_id)
        return self._inner.locate(recording_id)

    def open_media(self, media: Media) -> AbstractContextManager[MediaStream]:
        self._maybe("open_media", media.url.rpartition("/")[2].partition("?")[0])
        return self._inner.open_media(media)

    def prefetch(self, recording_ids: Sequence[str]) -> None:
        self._inner.prefetch(recording_ids)

    def recordings_of(self, conversation_id: str) -> tuple[RecordingEvent, ...] | NotYet:
        self._maybe("recordings_of", conversation_id)
        return self._inner.recordings_of(conversation_id)

    def list_available(self, since: datetime, until: datetime) -> Iterator[RecordingEvent]:
        return self._inner.list_available(since, until)

    def protect(self, recording_ids: Sequence[str], *, protected: bool) -> None:
        self._inner.protect(recording_ids, protected=protected)

    def purge(self, recording_id: str) -> None:
        if not self._after:
            self._maybe("purge", recording_id)
        self._inner.purge(recording_id)
        self._maybe("purge", recording_id)

    def delivery_failures(self, since: datetime) -> int | None:
        return self._inner.delivery_failures(since)

    def tag(self, recording_id: str, tags: Mapping[str, str], at_ms: int | None = None) -> None:
        if self._after:
            self._inner.tag(recording_id, tags, at_ms)
        self._maybe("tag", recording_id)
        if not self._after:
            self._inner.tag(recording_id, tags, at_ms)

    def open_work_item(self, item: WorkItem) -> str:
        if not self._after:
            self._maybe("open_work_item", item.recording_id)
        made = self._inner.open_work_item(item)
        self._maybe("open_work_item", item.recording_id)
        return made

    def request_callback(self, callback: SupervisorCallback) -> str:
        if not self._after:
            self._maybe("request_callback", callback.recording_id)
        made = self._inner.request_callback(callback)
        self._maybe("request_callback", callback.recording_id)
        return made

    def close(self) -> None:
        self._inner.close()
