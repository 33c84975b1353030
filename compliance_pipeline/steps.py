"""The steps of a batch as plain functions over inbox, platform, engine, remediation and warehouse.

Dagster's assets and the tests call these; nothing here knows of Dagster. Each step can be killed and run again.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from logging import getLogger
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from compliance_pipeline.clock import Clock, utc_now
from compliance_pipeline.contracts.event import EventType, RecordingEvent
from compliance_pipeline.contracts.policy import PolicyPack, Status
from compliance_pipeline.contracts.verdict import Verdict, VerdictValue
from compliance_pipeline.intake.hours import hour_of
from compliance_pipeline.objective import Objective
from compliance_pipeline.platforms.port import (
    Gone,
    MediaStream,
    NotYet,
    Platform,
    PlatformError,
    PlatformHeld,
    Refused,
    TransferBroken,
    Unavailable,
)
from compliance_pipeline.screening.engine import (
    ENGINE_BREAKER,
    Accepted,
    Engine,
    EngineBusy,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    Screening,
    facts_of,
)
from compliance_pipeline.screening.policy import Facts, RuleOutcome, deciding_hit, evaluate, judge
from compliance_pipeline.warehouse.tables import (
    FindingRow,
    MediaRow,
    PolicyRow,
    RecordingRow,
    Row,
    ScreeningRow,
    StageTimeRow,
    VerdictRow,
    ViolationRow,
)
from compliance_pipeline.warehouse.warehouse import Warehouse, sql

if TYPE_CHECKING:
    from compliance_pipeline.intake.inbox import Inbox, InboxItem, IncomingEvent
    from compliance_pipeline.settings import Settings

log = getLogger(__name__)

BATCH_LIMIT = 100
"""Recordings that one run takes: what waits longer goes to the next run rather than behind a long one."""
NOT_READY = "not ready: "
NOT_RECORDED = "the platform has no recording of this conversation"
SUSPECT_AFTER = 3
"""A recording whose runs died this often is tried apart."""
SUSPECTS_WAIT = timedelta(seconds=10)
OUTAGE_PATIENCE = timedelta(days=1)
"""For so long what nobody answers for is tried again before it is given up."""
STORE_EVERY_S = 1.0
"""What is judged is stored at least this often: a run that dies or is stopped loses no more."""
FOLDER = "folder"
EXTERNAL = "external"
TRIGGER_TAG = "compliance/trigger"
TRIGGERED_BY_INBOX = "inbox"
"""Tag of runs that are for what is new in the inbox; any other run is for the whole partition."""


def is_triggered_by_inbox(run_tags: Mapping[str, str]) -> bool:
    """Whether a run is for what is new in the inbox; any other leaves live recordings their share of the platform."""
    return run_tags.get(TRIGGER_TAG) == TRIGGERED_BY_INBOX


@dataclass(slots=True)
class Pipeline:
    """What the steps work with."""

    settings: "Settings"
    inbox: "Inbox"
    warehouse: Warehouse
    platform: Platform
    policy: PolicyPack
    engine: Engine
    clock: Clock = utc_now

    @property
    def lease(self) -> timedelta:
        return timedelta(seconds=self.settings.claim_seconds)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one run works on. `owner` holds the claims: a retry of the run has the same owner, so takes them over.

    whole_partition: also look again at recordings that were settled before (a backfill or a run by hand).
    launched_at: when Dagster began to start the run's process.
    leaves_open: of a backfill, or one of several hours of a run. What is open in it is left to the sensor's runs, which
    wait for nothing else.
    """

    partition_key: str
    owner: str
    run_id: str
    whole_partition: bool
    launched_at: datetime
    leaves_open: bool = False

    @property
    def hour(self) -> datetime:
        return hour_of(self.partition_key)


def claim(pipeline: Pipeline, batch: Batch) -> "list[InboxItem]":
    """Take what is actionable in the partition and record it; returns the batch's recordings, newest first.

    When runs died with the same recordings again and again, those are tried apart from the rest, in ever smaller groups
    and in the end alone: what kills its process ends as a dead letter, and takes no other with it.
    """
    from compliance_pipeline.intake.inbox import RUN_DIED

    now = pipeline.clock()
    if batch.leaves_open:
        return _recorded(pipeline, batch, now)
    taken = pipeline.inbox.claim(batch.partition_key, batch.owner, now, pipeline.lease, BATCH_LIMIT)
    suspects = [item for item in taken if item.reason == RUN_DIED and item.attempts > SUSPECT_AFTER]
    if suspects:
        fewest = min(item.attempts for item in suspects)
        is_last = fewest >= pipeline.settings.max_attempts
        size = 1 if is_last else max(1, BATCH_LIMIT // 4 ** (fewest - SUSPECT_AFTER))
        together = [item for item in suspects if item.attempts == fewest][:size]
        if fewest > pipeline.settings.max_attempts:
            why = f"gave up after {fewest} tries: {RUN_DIED}"
            pipeline.inbox.dead(together[0].recording_id, batch.owner, why, now)
        for item in taken:
            if item not in together:
                # The others of them wait a moment, so that the next run is for those that nothing is held against.
                due = now + SUSPECTS_WAIT if item in suspects else now
                pipeline.inbox.defer(
                    item.recording_id, batch.owner, due, item.reason or "others were tried apart", now, tried=False
                )
    with holding(pipeline, batch):
        _list_conversations(pipeline, batch)
    if not suspects:
        room = BATCH_LIMIT - len(pipeline.inbox.claimed(batch.owner))
        pipeline.inbox.claim(
            batch.partition_key, batch.owner, pipeline.clock(), pipeline.lease, max(0, room), new_recordings_only=True
        )
    return _recorded(pipeline, batch, now)


def _recorded(pipeline: Pipeline, batch: Batch, now: datetime) -> "list[InboxItem]":
    """The batch's recordings, stored; this needs no hold on those that are settled."""
    from compliance_pipeline.intake.inbox import State

    items = _claimed(pipeline, batch)
    if batch.whole_partition:
        items += [item for item in pipeline.inbox.items(batch.partition_key) if item.state is State.DONE]
    pipeline.warehouse.append([_recording_row(item, batch.hour, now) for item in items])
    return items


@contextmanager
def holding(pipeline: Pipeline, batch: Batch) -> Iterator[None]:
    """Keep the batch's claims and second looks while the block works, however long one request in it takes; then end
    the looks."""
    ended = Event()

    def keep() -> None:
        while not ended.wait(pipeline.lease.total_seconds() / 4):
            try:
                pipeline.inbox.extend(batch.owner, pipeline.clock(), pipeline.lease)
            except Exception as error:  # tried again before the claims end
                log.warning("claims not extended: %s", type(error).__qualname__)

    pipeline.inbox.extend(batch.owner, pipeline.clock(), pipeline.lease)
    keeper = Thread(target=keep, name="claims", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        if batch.whole_partition:
            pipeline.inbox.end_looks(batch.owner)


def _list_conversations(pipeline: Pipeline, batch: Batch) -> None:
    """Give each recording of the batch's conversations a row of its own in the inbox; settle the conversations."""
    conversations = [item for item in pipeline.inbox.claimed(batch.owner) if item.recording_event.is_conversation]
    if not conversations:
        return
    with ThreadPoolExecutor(pipeline.settings.fetch_workers, thread_name_prefix="listing") as pool:
        asked = {pool.submit(pipeline.platform.recordings_of, item.recording_id): item for item in conversations}
        # Each is settled as soon as its answer is there: what is announced of it after that lists it again.
        for answer in as_completed(asked):
            item = asked[answer]
            try:
                _listed(pipeline, batch, item, answer.result())
            except PlatformHeld as held:
                hold(pipeline, batch, item, held.for_s, str(held))
            except PlatformError as error:
                give_back(
                    pipeline,
                    batch,
                    item,
                    str(error),
                    pipeline.settings.longest_backoff_seconds if isinstance(error, Refused) else None,
                )
            except Exception as error:
                # One conversation's failure is its own; the text of an unforeseen exception may quote what it has.
                log.error("conversation %s: %s", item.recording_id, type(error).__qualname__)  # noqa: TRY400
                give_back(pipeline, batch, item, f"listing failed with {type(error).__qualname__}")


def _listed(pipeline: Pipeline, batch: Batch, item: "InboxItem", found: tuple[RecordingEvent, ...] | NotYet) -> None:
    """Where none is known after the last try, the conversation was not recorded: an answer, not a failure."""
    if isinstance(found, NotYet) and item.attempts < pipeline.settings.max_attempts:
        give_back(pipeline, batch, item, NOT_READY + found.why, found.after_s)
        return
    now = pipeline.clock()
    if not isinstance(found, NotYet):
        pipeline.inbox.store([_announced(pipeline, item, event, now) for event in found], now)
    count = len(pipeline.inbox.known([item.recording_id])[item.recording_id]) - 1
    pipeline.inbox.listed(item, batch.owner, f"{count} recordings" if count else NOT_RECORDED, now)


def _announced(pipeline: Pipeline, conversation: "InboxItem", event: RecordingEvent, now: datetime) -> "IncomingEvent":
    """A listed recording as if its own event had come: what the listing doesn't say, the conversation's event does."""
    from compliance_pipeline.intake.events import minimise
    from compliance_pipeline.intake.inbox import IncomingEvent
    from compliance_pipeline.intake.tokens import Tokenizer

    said = conversation.recording_event
    event = minimise(event, Tokenizer(pipeline.settings.participant_token_key))
    event = event.model_copy(
        update={
            "direction": event.direction or said.direction,
            "participants": event.participants or said.participants,
            "called_time_zone": said.called_time_zone,
        }
    )
    waited = (conversation.reason or "").startswith(NOT_READY)
    return IncomingEvent(
        event,
        conversation.source,
        conversation.correlation_id,
        now if waited else conversation.available_at,
        conversation.found_by_sweep,
        conversation.received_at,
    )


def _claimed(pipeline: Pipeline, batch: Batch) -> "list[InboxItem]":
    return [item for item in pipeline.inbox.claimed(batch.owner) if not item.recording_event.is_conversation]


class HeldElsewhere(Exception):
    """Another run looks again at recordings of the partition: it can't be said to be done by this one."""


def batch_items(pipeline: Pipeline, batch: Batch) -> "list[InboxItem]":
    """What the batch works on: its claims, and of a whole partition what is settled and no other run looks at again.

    Those looks are this batch's from here on, until the end of `holding`. Raises HeldElsewhere.
    """
    items = _claimed(pipeline, batch)
    if batch.whole_partition:
        now = pipeline.clock()
        items += pipeline.inbox.look_again(batch.partition_key, batch.owner, now, pipeline.lease)
        if others := pipeline.inbox.looks_of_others(batch.partition_key, batch.owner, now):
            pipeline.inbox.end_looks(batch.owner)
            raise HeldElsewhere(
                f"{others} recordings of {batch.partition_key} are looked at again by another run, or one that died: "
                f"tried again when it has ended, or after {pipeline.lease.total_seconds():.0f} s"
            )
    return items


def _recording_row(item: "InboxItem", hour: datetime, now: datetime) -> RecordingRow:
    event = item.recording_event
    return RecordingRow(
        recording_id=item.recording_id,
        partition_hour=hour,
        source=item.source,
        channel=event.channel,
        direction=event.direction,
        queue=event.queue,
        participants=[p.id for p in event.participants if p.id],
        correlation_id=item.correlation_id,
        started_at=event.start_time,
        ended_at=item.ended_at,
        available_at=item.available_at,
        received_at=item.received_at,
        recorded_at=now,
        conversation_id=event.conversation_id,
        found_by_sweep=item.found_by_sweep,
        agent=event.agent,
    )


GivenBack = Literal["deferred", "dead", "left"]
"""What became of a recording that got no verdict: due again later, given up on, or left as it was settled before."""


@dataclass(slots=True)
class ScreenReport:
    """What became of a batch. Recordings by verdict; how many were judged before, or by what was found before, or got
    none.

    given_back: by what became of those without a verdict (see `GivenBack`).
    """

    verdicts: dict[str, int] = field(default_factory=dict)
    findings: int = 0
    retracted: int = 0
    media_bytes: int = 0
    media_rows: int = 0
    known: int = 0
    replayed: int = 0
    given_back: Counter[GivenBack] = field(default_factory=Counter)
    fetch_s: float = 0.0
    analysis_s: float = 0.0
    first_finding_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Screened:
    """A recording's pass through the engine: what came back, and the times of its stages."""

    outcome: Screening | Verdict | Accepted | NotYet | Gone
    available_at: datetime
    begun_at: datetime
    ended_at: datetime


def screen_batch(pipeline: Pipeline, batch: Batch) -> ScreenReport:
    """Judge the batch's recordings that this policy and engine have not judged yet; store the verdicts.

    What this engine screened for another policy is judged by what it found then; the others are fetched and screened.
    A recording that isn't there yet, or that the platform doesn't serve for now, goes back to the inbox with a due
    time. One recording's failure is its own.
    """
    engine = pipeline.engine.version
    items = batch_items(pipeline, batch)
    ids = [item.recording_id for item in items]
    with pipeline.warehouse.together():
        judged = judged_of(pipeline, batch, engine, ids)
        again = _screened_before(pipeline, batch, engine, ids) - judged
    fresh = [item for item in items if item.recording_id not in judged]
    report = ScreenReport(known=len(items) - len(fresh))
    workers = ThreadPoolExecutor(pipeline.settings.fetch_workers, thread_name_prefix="screening")
    with holding(pipeline, batch), workers as pool:
        if again:
            from compliance_pipeline.replay import replay

            replayed = replay(pipeline, [batch.hour], batch.run_id, only=again)
            report.replayed, report.verdicts = replayed.judged, dict(replayed.verdicts)
            judged = judged_of(pipeline, batch, engine, sorted(again))
            fresh, again = [item for item in fresh if item.recording_id not in judged], again - judged
        for begin in range(0, len(fresh), BATCH_LIMIT):
            some = fresh[begin : begin + BATCH_LIMIT]
            if batch.whole_partition:
                # Bulk answers take seconds: for a backfill they save requests, for a live recording they cost time.
                pipeline.platform.prefetch([item.recording_id for item in some])
            _screen_some(pipeline, batch, engine, some, again, report, pool)
    return report


def _screen_some(
    pipeline: Pipeline,
    batch: Batch,
    engine: str,
    items: "Sequence[InboxItem]",
    again: set[str],
    report: ScreenReport,
    pool: ThreadPoolExecutor,
) -> None:
    rows: list[Row] = []
    stored_at = monotonic()
    try:
        futures = {pool.submit(_screen, pipeline, item): item for item in items}
        for future in as_completed(futures):
            rows += _outcome(pipeline, batch, engine, futures[future], future, report)
            if monotonic() - stored_at > STORE_EVERY_S:
                _store(pipeline, engine, rows, again)
                rows, stored_at = [], monotonic()
    except BaseException:
        # A run that is told to stop does not screen the rest of its batch first.
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    _store(pipeline, engine, rows, again)


def _screened_before(pipeline: Pipeline, batch: Batch, engine: str, ids: Sequence[str]) -> set[str]:
    """Of these, the ones that this engine screened for another policy."""
    rows = pipeline.warehouse.select(
        "SELECT DISTINCT recording_id FROM verdicts WHERE partition_hour = $hour AND engine_version = $engine "
        "AND recording_id IN (SELECT unnest($ids))",
        {"hour": batch.hour, "engine": engine, "ids": list(ids)},
    )
    return {row["recording_id"] for row in rows}


def _store(pipeline: Pipeline, engine: str, rows: list[Row], again: set[str]) -> None:
    judged = {row.recording_id for row in rows if isinstance(row, VerdictRow)}
    anew = judged & again
    if judged:
        policy = pipeline.policy
        rows = [PolicyRow(policy.policy_version, policy.content, pipeline.clock()), *rows]
    pipeline.warehouse.append(rows, instead_of=[(recording_id, engine) for recording_id in sorted(anew)])


def _outcome(
    pipeline: Pipeline, batch: Batch, engine: str, item: "InboxItem", future: Future[_Screened], report: ScreenReport
) -> list[Row]:
    """The rows of a recording that was screened; none where it goes back to the inbox."""
    try:
        return _judge(pipeline, batch, engine, item, future.result(), report)
    except Refused as error:
        # A platform's permissions are mended by people, who need minutes; a file's refusal is for good.
        tries = 1 if item.source == FOLDER else None
        report.given_back[
            give_back(pipeline, batch, item, str(error), pipeline.settings.longest_backoff_seconds, tries)
        ] += 1
    except PlatformHeld as held:
        report.given_back["deferred"] += hold(pipeline, batch, item, held.for_s, str(held))
    except TransferBroken as error:
        # It may be the recording's own media that ends so each time.
        report.given_back[give_back(pipeline, batch, item, str(error))] += 1
    except Unavailable as error:
        report.given_back[_give_back_unanswered(pipeline, batch, item, str(error))] += 1
    except PlatformError as error:
        report.given_back[give_back(pipeline, batch, item, str(error))] += 1
    except EngineRefused as error:
        report.given_back[give_back(pipeline, batch, item, str(error), pipeline.settings.longest_backoff_seconds)] += 1
    except EngineBusy as busy:
        report.given_back["deferred"] += hold(pipeline, batch, item, max(busy.retry_after or 0.0, 1.0), str(busy))
    except EngineError as error:
        asked_s = (error.retry_after if isinstance(error, EngineUnavailable) else None) or 0.0
        after_s = max(asked_s, backoff_s(pipeline.settings, item.attempts))
        report.given_back[_give_back_after_probe(pipeline, batch, item, str(error), after_s)] += 1
    except Exception as error:
        # The text of an unforeseen exception may quote what was screened: only its type is kept.
        log.error("recording %s: %s in the engine", item.recording_id, type(error).__qualname__)  # noqa: TRY400
        why = f"engine failed with {type(error).__qualname__}"
        report.given_back[give_back(pipeline, batch, item, why)] += 1
    return []


def _give_back_unanswered(pipeline: Pipeline, batch: Batch, item: "InboxItem", why: str) -> GivenBack:
    wait_s = outage_wait_s(pipeline.settings, item.received_at, pipeline.clock())
    if wait_s is None:
        return give_back(pipeline, batch, item, why)
    return "deferred" if hold(pipeline, batch, item, wait_s, why) else "left"


def _give_back_after_probe(pipeline: Pipeline, batch: Batch, item: "InboxItem", why: str, after_s: float) -> GivenBack:
    """What the probes of an engine that is down find costs no try; else it may be the recording that brings it down."""
    from compliance_pipeline.breaker import RESET_S, is_failing

    if not is_failing(pipeline.inbox.engine, ENGINE_BREAKER, utc_now()):
        return give_back(pipeline, batch, item, why, after_s)
    return "deferred" if hold(pipeline, batch, item, max(after_s, RESET_S), why) else "left"


def hold(pipeline: Pipeline, batch: Batch, item: "InboxItem", for_s: float, why: str) -> int:
    """Back to the inbox through no fault of the recording's, so without counting the try; how many (1 or 0)."""
    now = pipeline.clock()
    due = now + timedelta(seconds=for_s)
    return pipeline.inbox.defer(item.recording_id, batch.owner, due, why, now, tried=False)


def _screen(pipeline: Pipeline, item: "InboxItem") -> _Screened:
    begun_at = pipeline.clock()
    media_at: list[datetime | None] = []

    def opened(stream: MediaStream) -> None:
        media_at.append(stream.last_modified)

    outcome = pipeline.engine.judge(pipeline.platform, item.recording_event, item.correlation_id, opened)
    available_at = item.available_at
    waited = (item.reason or "").startswith(NOT_READY)
    if waited or item.event is not EventType.AVAILABLE:
        # The event came before the media: the media's own time is when it became available, where its host says.
        told = media_at[-1] if media_at else None
        available_at = max(available_at, told or (begun_at if waited else available_at))
    # A platform's clock that is ahead of ours would make times negative.
    return _Screened(outcome, min(available_at, begun_at), begun_at, pipeline.clock())


def _judge(
    pipeline: Pipeline, batch: Batch, engine: str, item: "InboxItem", screened: _Screened, report: ScreenReport
) -> list[Row]:
    from compliance_pipeline.intake.inbox import State

    outcome = screened.outcome
    if isinstance(outcome, NotYet):
        report.given_back[give_back(pipeline, batch, item, NOT_READY + outcome.why, outcome.after_s)] += 1
        return []
    if isinstance(outcome, Accepted):
        why = "the engine works on it; its verdict is called back"
        if item.state is not State.CLAIMED:
            # Settled before, and looked at again by hand: a run for what is new takes it up when the verdict is there.
            pipeline.inbox.reopen([item.recording_id], pipeline.clock())
            report.given_back["deferred"] += 1
            return []
        report.given_back[give_back(pipeline, batch, item, why, outcome.after_s)] += 1
        outcome.waits()
        return []
    # After half of its tries a call is judged by its sound alone, and rules about words stay undetermined.
    waits = item.attempts <= pipeline.settings.max_attempts // 2
    if isinstance(outcome, Screening) and outcome.transcript_missing and waits:
        report.given_back[give_back(pipeline, batch, item, "its transcript can't be had for now")] += 1
        return []
    key: dict[str, Any] = {"recording_id": item.recording_id, "engine_version": engine, "partition_hour": batch.hour}
    screening = outcome if isinstance(outcome, Screening) else Screening()
    violations: list[ViolationRow] = []
    undetermined: list[str] = []
    screened_rows: list[Row] = []
    if isinstance(outcome, Verdict):
        verdict = outcome
        if row := _external_violation(pipeline.policy, key, item, verdict):
            violations = [row]
            verdict = verdict.model_copy(update={"verdict": VerdictValue(row.verdict)})
    else:
        if isinstance(outcome, Gone):
            screening.unscreenable = "gone"
        event = item.recording_event
        queue = next((p.queue for p in event.participants if p.queue), None)
        facts = facts_of(
            screening,
            event.channel,
            direction=event.direction,
            queue=queue,
            started_at=event.start_time,
            called_time_zone=event.called_time_zone,
        )
        screened_rows = [_screening_row(key, item, facts, screening, screened.ended_at)]
        outcomes = evaluate(screening.findings, facts, pipeline.policy)
        verdict = judge(item.recording_id, item.correlation_id, outcomes, screening.unscreenable)
        first = deciding_hit(outcomes)
        fired = sorted((o for o in outcomes if o.fired), key=lambda o: o is not first)
        violations = [_violation_row(key, pipeline.policy.policy_version, item, screening, o) for o in fired]
        undetermined = [o.rule.id for o in outcomes if o.status is Status.UNDETERMINED]
    decided = violations[0] if violations else None
    log.info(
        "recording %s: %s %s",
        item.recording_id,
        verdict.verdict,
        verdict.violation_type or screening.unscreenable or "",
        extra={"recording_id": item.recording_id},
    )
    report.verdicts[verdict.verdict] = report.verdicts.get(verdict.verdict, 0) + 1
    report.findings += len(screening.findings)
    report.retracted += screening.retracted
    report.fetch_s += screening.fetch_s
    report.analysis_s += screening.analysis_s
    if screening.first_finding_s is not None:
        report.first_finding_s.append(screening.first_finding_s)
    rows: list[Row] = [
        VerdictRow(
            **key,
            policy_version=pipeline.policy.policy_version,
            channel=item.recording_event.channel,
            verdict=verdict.verdict,
            violation_type=verdict.violation_type,
            rule_id=decided.rule_id if decided else None,
            severity=decided.severity if decided else None,
            confidence_score=verdict.confidence_score,
            timestamp_offset_ms=verdict.timestamp_offset_ms,
            evidence_snippet=verdict.evidence_snippet,
            recommended_action=verdict.recommended_action,
            correlation_id=verdict.correlation_id,
            unscreenable_reason=screening.unscreenable,
            undetermined_rules=undetermined,
            judged_at=screened.ended_at,
            run_id=batch.run_id,
        ),
        *screened_rows,
    ]
    if media := screening.media:
        report.media_bytes += media.size_bytes
        report.media_rows += 1
        rows.append(
            MediaRow(
                **key,
                size_bytes=media.size_bytes,
                sha256=media.sha256,
                container=media.container,
                codec=media.codec,
                audio_channels=media.audio_channels,
                duration_ms=media.duration_ms,
                complete=media.complete,
                fetched_at=screened.ended_at,
            )
        )
    rows += [
        FindingRow(
            **key,
            finding_no=number,
            kind=finding.kind,
            detector=finding.detector,
            speaker=finding.speaker,
            start_ms=finding.start_ms,
            end_ms=finding.end_ms,
            confidence=finding.confidence,
            masked=finding.masked,
            fingerprint=finding.fingerprint,
            phrase=finding.phrase,
            located=finding.located,
            spans=[list(span) for span in finding.spans],
        )
        for number, finding in enumerate(screening.findings)
    ]
    rows += violations
    rows += _stage_rows(batch, item, screened, screening)
    return rows


def _screening_row(
    key: dict[str, Any], item: "InboxItem", facts: Facts, screening: Screening, screened_at: datetime
) -> ScreeningRow:
    return ScreeningRow(
        **key,
        channel=facts.channel,
        direction=facts.direction,
        queue=facts.queue,
        started_at=facts.started_at,
        called_time_zone=facts.called_time_zone,
        correlation_id=item.correlation_id,
        words_known=facts.transcript_read,
        words_timed=facts.words_timed,
        speakers=sorted(facts.speakers),
        annotations=None if facts.annotations is None else sorted(facts.annotations),
        duration_ms=facts.duration_ms,
        unscreenable_reason=screening.unscreenable,
        screened_at=screened_at,
    )


def _violation_row(
    key: dict[str, Any], policy_version: str, item: "InboxItem", screening: Screening, outcome: RuleOutcome
) -> ViolationRow:
    return ViolationRow(
        **key,
        policy_version=policy_version,
        rule_id=outcome.rule.id,
        channel=item.recording_event.channel,
        verdict=outcome.rule.verdict,
        violation_type=outcome.rule.violation_type,
        severity=outcome.rule.severity,
        detector=outcome.detector,
        speaker=outcome.speaker,
        start_ms=outcome.start_ms,
        confidence=outcome.confidence,
        masked=outcome.masked,
        hits=outcome.count,
        finding_no=screening.findings.index(outcome.finding) if outcome.finding else None,
    )


def _external_violation(
    policy: PolicyPack, key: dict[str, Any], item: "InboxItem", verdict: Verdict
) -> ViolationRow | None:
    """What another engine's verdict means under our policy; None where it names no violation."""
    from compliance_pipeline.screening.external import external_hit

    hit = external_hit(verdict, policy)
    if hit is None:
        return None
    return ViolationRow(
        **key,
        policy_version=policy.policy_version,
        rule_id=hit.rule_id,
        channel=item.recording_event.channel,
        verdict=hit.verdict,
        violation_type=hit.violation_type,
        severity=hit.severity,
        detector=EXTERNAL,
        speaker="",
        start_ms=hit.start_ms,
        confidence=hit.confidence,
        masked="[found by another engine]",
        hits=1,
    )


def _stage_rows(batch: Batch, item: "InboxItem", screened: _Screened, screening: Screening) -> Iterator[StageTimeRow]:
    """The recording's time line up to its verdict; stages lie end to end, from 'available' on.

    Beside them: 'first_finding', from the start of the fetch to the first finding that stood.
    """
    available = screened.available_at
    marks = [
        ("delivery", item.received_at),
        ("queue", batch.launched_at),
        ("start", item.claimed_at or batch.launched_at),
        ("batch", screened.begun_at),
        ("fetch", screened.begun_at + timedelta(seconds=screening.fetch_s)),
        ("analysis", screened.ended_at),
    ]
    if item.ended_at and item.ended_at <= available:
        yield _stage(batch, item, "platform", item.ended_at, available)
    reached = available
    for stage, until in marks:
        ended = max(reached, until)
        yield _stage(batch, item, stage, reached, ended)
        reached = ended
    yield _stage(batch, item, "judged", available, reached)
    if screening.first_finding_s is not None:
        first = screened.begun_at + timedelta(seconds=screening.first_finding_s)
        yield _stage(batch, item, "first_finding", screened.begun_at, first)


def _stage(batch: Batch, item: "InboxItem", stage: str, started: datetime, ended: datetime) -> StageTimeRow:
    return StageTimeRow(
        recording_id=item.recording_id,
        stage=stage,
        partition_hour=batch.hour,
        channel=item.recording_event.channel,
        started_at=started,
        ended_at=ended,
        seconds=(ended - started).total_seconds(),
    )


def give_back(
    pipeline: Pipeline,
    batch: Batch,
    item: "InboxItem",
    reason: str,
    after_s: float | None = None,
    tries: int | None = None,
) -> GivenBack:
    """Back to the inbox with a due time; to the dead letters after the last try, with the reason."""
    from compliance_pipeline.intake.inbox import State

    now = pipeline.clock()
    if item.state is not State.CLAIMED:
        log.warning("recording %s was settled before and stays as it is: %s", item.recording_id, reason)
        return "left"
    log.warning("recording %s: try %d failed: %s", item.recording_id, item.attempts, reason)
    if item.attempts >= (tries or pipeline.settings.max_attempts):
        pipeline.inbox.dead(item.recording_id, batch.owner, f"gave up after {item.attempts} tries: {reason}", now)
        return "dead"
    wait = after_s if after_s is not None else backoff_s(pipeline.settings, item.attempts)
    pipeline.inbox.defer(item.recording_id, batch.owner, now + timedelta(seconds=wait), reason, now)
    return "deferred"


def outage_wait_s(settings: "Settings", since: datetime, now: datetime) -> float | None:
    """Until the next try of what nobody answers for, known since `since`. None when OUTAGE_PATIENCE is over: from then
    on tries count."""
    if now - since > OUTAGE_PATIENCE:
        return None
    return min(max((now - since).total_seconds() / 4, 1.0), settings.longest_backoff_seconds)


def backoff_s(settings: "Settings", attempts: int) -> float:
    return min(2.0 ** min(attempts - 1, 60), settings.longest_backoff_seconds)


def judged_of(pipeline: Pipeline, batch: Batch, engine: str, ids: Sequence[str] | None = None) -> set[str]:
    """Of these, or of all, the ones that have a verdict of this policy and engine in the batch's hour."""
    query = (
        "SELECT recording_id FROM verdicts WHERE partition_hour = $hour AND policy_version = $policy "
        "AND engine_version = $engine"
    )
    key: dict[str, Any] = {"hour": batch.hour, "policy": pipeline.policy.policy_version, "engine": engine}
    if ids is not None:
        query, key = f"{query} AND recording_id IN (SELECT unnest($ids))", key | {"ids": list(ids)}
    rows = pipeline.warehouse.select(query, key)
    return {row["recording_id"] for row in rows}


def refresh_marts(pipeline: Pipeline, marts: Sequence[str], hour: datetime) -> None:
    objective = Objective.of_settings(pipeline.settings).parameters
    pipeline.warehouse.refresh_marts(hour, {mart: objective if mart == "latency_by_hour" else {} for mart in marts})


def headline(pipeline: Pipeline, mart: str, hour: datetime) -> dict[str, float]:
    """What a mart says of the hour in a few numbers that can be plotted over the hours; those that it has."""
    [row] = pipeline.warehouse.select(sql(f"headline_{mart}"), {"hour": hour})
    return {name: round(value, 3) for name, value in row.items() if value is not None}
