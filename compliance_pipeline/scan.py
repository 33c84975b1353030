"""`compliance scan`: a folder of a user's own recordings through the same pipeline, in a data folder of its own."""

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy.exc import SQLAlchemyError

from compliance_pipeline.contracts.event import EventType, RecordingEvent
from compliance_pipeline.contracts.policy import PolicyPack
from compliance_pipeline.intake.inbox import OPEN_STATES, Inbox, IncomingEvent, State
from compliance_pipeline.platforms import folder
from compliance_pipeline.platforms.folder import FolderRecording, Skipped
from compliance_pipeline.promotion import live_policy_of
from compliance_pipeline.screening.engine import from_settings
from compliance_pipeline.screening.policy import PolicyError
from compliance_pipeline.settings import Settings
from compliance_pipeline.steps import TRIGGER_TAG, TRIGGERED_BY_INBOX
from compliance_pipeline.steps import log as steps_log
from compliance_pipeline.warehouse.warehouse import warehouse_of
from compliance_pipeline.what_if import whole

STORE_BATCH = 500
_OWNER = "scan"
_LONGER_THAN_ANY_BACKOFF = timedelta(hours=1)
_FOREVER = datetime.max.replace(tzinfo=UTC)


class ScanInProgress(Exception):
    """Another scan uses the same data folder."""


@dataclass(frozen=True, slots=True)
class Scanned:
    """One file and its verdict; `findings` are rows of the warehouse, masked."""

    recording: FolderRecording
    verdict: dict[str, Any] | None
    findings: list[dict[str, Any]]
    dead: str | None


@dataclass(frozen=True, slots=True)
class ScanResult:
    files: list[Scanned]
    skipped: list[Skipped]


class _Judged(logging.Handler):
    """Counts the recordings that the pipeline says it judged."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.ids: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if recording_id := getattr(record, "recording_id", None):
            self.ids.add(recording_id)


def scan(path: Path, settings: Settings) -> Iterator[tuple[int, int] | ScanResult]:
    """Announce every recording under `path`, run the pipeline's job on them, and report.

    Yields (judged, of how many) as it goes and the ScanResult in the end. The data lies in `<home>/scan`: neither the
    live inbox nor the live warehouse is touched; the live policy judges. A file that was scanned before and has not
    changed is not read again.
    """
    own = settings.model_copy(
        update={"home": settings.home / "scan", "inbox_url": None, "engine_url": None, "warehouse_url": None}
    )
    platform = folder.from_settings(path, own)
    recordings = platform.recordings()
    try:
        policy = live_policy_of(settings)
    except SQLAlchemyError as error:
        why = f"the inbox, which knows the policy that is live, can't be read ({type(error).__name__})"
        raise PolicyError(f"{why}: see `compliance doctor`, or name a pack with COMPLIANCE_POLICY") from None
    inbox = Inbox(own.inbox_database_url)
    inbox.create()
    judged = _Judged()
    steps_log.addHandler(judged)
    steps_log.setLevel(logging.INFO)
    try:
        with FileLock(own.home / "scan.lock", timeout=0):
            announced = _announce(own, policy, inbox, recordings)
            known = len(recordings) - announced
            for finished in _drain(path, own, policy, inbox):
                yield (len(recordings) if finished else known + min(announced, len(judged.ids))), len(recordings)
            yield ScanResult(list(_results(own, policy, inbox, recordings)), platform.skipped())
    except Timeout:
        raise ScanInProgress(f"another scan is using {own.home}; wait for it, or set COMPLIANCE_HOME") from None
    finally:
        steps_log.removeHandler(judged)
        inbox.close()


def _announce(settings: Settings, policy: PolicyPack, inbox: Inbox, recordings: Sequence[FolderRecording]) -> int:
    """Put what is new into the inbox, and what this policy and engine have not judged; how many are open now."""
    now = datetime.now(UTC)
    (verdicts,) = _judged_now(settings, policy, recordings, "verdicts")
    judged = {row["recording_id"] for row in verdicts}
    inbox.reopen([recording.recording_id for recording in recordings if recording.recording_id not in judged], now)
    for at in range(0, len(recordings), STORE_BATCH):
        inbox.store([_event(recording, now) for recording in recordings[at : at + STORE_BATCH]], now)
    inbox.retry_dead([recording.recording_id for recording in recordings], now)
    _take_over(inbox, {recording.recording_id for recording in recordings}, now)
    return sum(work.count for work in inbox.pending(now))


def _take_over(inbox: Inbox, listed: Collection[str], now: datetime) -> None:
    """Only one scan runs at a time: a claim that is still held is that of a scan that was stopped.

    What a stopped scan of another folder left open is set aside: looked for in this folder it would pass for gone.
    """
    for work in inbox.pending(_FOREVER):
        left = [item for item in inbox.items(work.partition_hour) if item.state in OPEN_STATES]
        for owner in {item.claimed_by for item in left if item.claimed_by}:
            inbox.extend(owner, now, timedelta())  # due at once, and still known as one whose run died
        if strays := [item.recording_id for item in left if item.recording_id not in listed]:
            inbox.claim(work.partition_hour, _OWNER, now + _LONGER_THAN_ANY_BACKOFF, timedelta(), len(left))
            for recording_id in strays:
                inbox.dead(recording_id, _OWNER, "in another folder than the one scanned last; scan that again", now)
            inbox.release(_OWNER, now)


def _event(recording: FolderRecording, now: datetime) -> IncomingEvent:
    event = RecordingEvent(
        recording_id=recording.recording_id,
        event=EventType.AVAILABLE,
        media_uri="file:",
        event_time=now,
        channel=recording.channel,
    )
    return IncomingEvent(event, source="folder", correlation_id=f"scan-{now:%Y%m%dT%H%M%SZ}", available_at=now)


def _drain(path: Path, settings: Settings, policy: PolicyPack, inbox: Inbox) -> Iterator[bool]:
    """Run the job, hour by hour, until nothing is open; in a thread, so that progress can be told (True: all done)."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="scan")
    try:
        while inbox.pending(_FOREVER):
            for work in inbox.pending(datetime.now(UTC)):
                run = pool.submit(_run_job, path, settings, policy, work.partition_hour)
                while not run.done():
                    yield False
                    time.sleep(0.1)
                run.result()
            yield False
            time.sleep(0.05)
    finally:
        pool.shutdown(wait=False)  # who presses Ctrl-C does not wait for the batch; another scan takes it over
    yield True


def _run_job(path: Path, settings: Settings, policy: PolicyPack, partition_key: str) -> None:
    import dagster as dg

    from compliance_pipeline.definitions import compliance_pipeline
    from compliance_pipeline.orchestration.resources import PipelineResource

    job = compliance_pipeline().resolve_job_def("flag_recordings")
    with dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance:
        job.execute_in_process(
            partition_key=partition_key,
            instance=instance,
            tags={TRIGGER_TAG: TRIGGERED_BY_INBOX},
            resources={"pipeline": PipelineResource(home=str(settings.home), folder=str(path), policy=whole(policy))},
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )


def _judged_now(
    settings: Settings, policy: PolicyPack, recordings: Sequence[FolderRecording], *tables: str
) -> list[list[dict[str, Any]]]:
    """Rows of each table that are of these recordings, this policy and this engine."""
    parameters = {
        "policy": policy.policy_version,
        "engine": from_settings(settings, policy).version,
        "ids": [recording.recording_id for recording in recordings],
    }
    warehouse = warehouse_of(settings)
    return [
        warehouse.select(
            f"FROM {table} WHERE policy_version = $policy AND engine_version = $engine "
            "AND recording_id IN (SELECT unnest($ids))",
            parameters,
        )
        for table in tables
    ]


def _results(
    settings: Settings, policy: PolicyPack, inbox: Inbox, recordings: Sequence[FolderRecording]
) -> Iterator[Scanned]:
    verdicts, broken = _judged_now(settings, policy, recordings, "verdicts", "violations")
    violations: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(broken, key=lambda row: row["start_ms"]):
        violations.setdefault(row["recording_id"], []).append(row)
    verdict_of = {row["recording_id"]: row for row in verdicts}
    for recording in recordings:
        item = inbox.get(recording.recording_id)
        yield Scanned(
            recording,
            verdict_of.get(recording.recording_id),
            violations.get(recording.recording_id, []),
            item.reason if item and item.state is State.DEAD else None,
        )
