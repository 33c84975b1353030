"""The last step of a batch: do what the policy asks for its violations, each action once, and settle the recordings."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from compliance_pipeline.contracts.policy import Action, Severity
from compliance_pipeline.contracts.verdict import VerdictValue
from compliance_pipeline.platforms.canary import is_canary
from compliance_pipeline.platforms.port import PlatformError
from compliance_pipeline.remediation.execute import WORKERS, ActionResult, Means, execute, failed
from compliance_pipeline.remediation.plan import PlannedAction, Violation, idempotency_key, plan
from compliance_pipeline.remediation.undone import DEAD, DONE, DROPPED, FAILED, PLANNED, WAITING
from compliance_pipeline.steps import (
    Batch,
    Pipeline,
    backoff_s,
    batch_items,
    give_back,
    hold,
    holding,
    judged_of,
    outage_wait_s,
)
from compliance_pipeline.warehouse.tables import RemediationRow
from compliance_pipeline.warehouse.warehouse import sql

if TYPE_CHECKING:
    from compliance_pipeline.intake.inbox import InboxItem

CALLBACK_UNSURE = "a callback may have been asked for: looked up again when the platform can show it"
OTHERS_FAILED = "the purge of another recording of its conversation failed, and they share one protection"
MESSAGE_UNSURE = "a message may have been sent by a run that died: not sent again by itself"


@dataclass(slots=True)
class RemediationReport:
    """Actions by outcome, and recordings settled with this step. dead: of those that failed, given up on."""

    done: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    dead: dict[str, int] = field(default_factory=dict)
    settled: int = 0


class _Tried(NamedTuple):
    """The newest revision of an action: its status, when it got that, when it may be tried again; and since when the
    action has been planned."""

    status: str
    revision: int
    revised_at: datetime
    attempts: int
    due_at: datetime | None
    error: str | None
    since: datetime | None


_NOTHING = _Tried("", 0, datetime.min.replace(tzinfo=UTC), 0, None, None, None)


class _Waits(NamedTuple):
    until: datetime
    why: str


@dataclass(slots=True)
class _Work:
    """A batch's actions: what was known of each by key, and by recording what waits."""

    pipeline: Pipeline
    batch: Batch
    history: dict[str, _Tried]
    report: RemediationReport = field(default_factory=RemediationReport)
    waits: defaultdict[str, list[_Waits]] = field(default_factory=lambda: defaultdict(list))

    def before(self, planned: PlannedAction) -> _Tried:
        return self.history.get(planned.key, _NOTHING)

    def row(self, planned: PlannedAction, at: datetime, **values: Any) -> RemediationRow:
        """The action's next revision, which is its history from now on."""
        before = self.before(planned)
        row = RemediationRow(
            recording_id=planned.violation.recording_id,
            rule_id=planned.violation.rule_id,
            action=planned.action,
            revision=before.revision + 1,
            partition_hour=self.batch.hour,
            revised_at=at,
            run_id=self.batch.run_id,
            **{"external_id": None, "error": None, "attempts": before.attempts} | values,
        )
        since = before.since or at
        self.history[planned.key] = _Tried(row.status, row.revision, at, row.attempts, row.due_at, row.error, since)
        return row


def remediate_batch(pipeline: Pipeline, batch: Batch) -> RemediationReport:
    """Plan and do what the policy asks for the batch's violations, each action once; then settle the recordings.

    First what can be taken back (tag, quarantine, work item), then callbacks and messages, then purges, where nothing
    else of the recording waits for another try. Of each, plans are written before the first call and results after: a
    step killed between them does its actions again, and the platform port looks each one up before it creates. A
    message can't be looked up: one that was planned by a run that died is given up on, so that it is sent at most once
    by that path.

    A failed action has its own tries and due time. Its recording waits in the inbox, without losing a try of its own,
    until the earliest of those; it is settled when each action is done or dead. A purge that waits for a review or a
    legal hold keeps no recording open: `purge.reopen_due` does that when its time has come.
    """
    # Imported where used: SQLAlchemy would cost the code location half a second.
    from compliance_pipeline import custody, purge
    from compliance_pipeline.intake.inbox import State

    engine = pipeline.engine.version
    items = {item.recording_id: item for item in batch_items(pipeline, batch)}
    with pipeline.warehouse.together():
        violations, history = _violations(pipeline, batch, engine, list(items))
        judged = judged_of(pipeline, batch, engine, list(items))
        undone = _undone_of(pipeline, batch, judged, (PLANNED, FAILED, DEAD, WAITING))
    work = _Work(pipeline, batch, history)
    planned = plan(violations, pipeline.policy)
    purges = [p for p in planned if p.action is Action.PURGE_AFTER_REVIEW]
    _drop(work, undone, {p.key for p in planned})
    due = _due(work, [p for p in planned if p.action is not Action.PURGE_AFTER_REVIEW])
    with holding(pipeline, batch):
        _carry_out(work, [p for p in due if p.action.is_reversible])
        _carry_out(work, [p for p in due if p.action is Action.SUPERVISOR_CALLBACK])
        # A few at a time: of those that are under way when a run dies nobody knows whether they were sent.
        messages = [p for p in due if p.action is Action.NOTIFY]
        for first in range(0, len(messages), WORKERS):
            _carry_out(work, messages[first : first + WORKERS])
        refused = _purge(work, purges) if purges else set()
        database = pipeline.inbox.engine
        purge.settle(pipeline.warehouse, database, pipeline.platform, refused, custody.ACTOR, pipeline.clock())
    _take_up_retries(work, judged)
    custody.record(pipeline, batch.hour, sorted(judged))
    settled = sorted(judged - work.waits.keys())
    claimed = [one for one in settled if items[one].state is State.CLAIMED]
    work.report.settled = pipeline.inbox.done(claimed, batch.owner, pipeline.clock())
    # Asked for since the look above: `retry` writes its row first, so either it or we see the other.
    late = {row["recording_id"] for row in _undone_of(pipeline, batch, settled, (FAILED,))}
    pipeline.inbox.reopen(sorted(late), pipeline.clock())
    for recording_id in sorted(items.keys() - judged):
        # Claimed, yet judged by another version of the engine or in another hour only: not to be held for ever.
        give_back(pipeline, batch, items[recording_id], "no verdict of this engine in this hour")
    for recording_id, waits in work.waits.items():
        _wait(pipeline, batch, items[recording_id], waits)
    return work.report


def _drop(work: _Work, undone: Sequence[dict[str, Any]], planned: Collection[str]) -> None:
    """Close what an earlier policy planned, never finished, and this one does not ask for."""
    rows = []
    for row in undone:
        if idempotency_key(row["recording_id"], row["rule_id"], row["action"]) in planned:
            continue
        changed: dict[str, Any] = {"status": DROPPED, "due_at": None, "attempts": 0}
        if row["action"] == Action.NOTIFY and row["status"] in (PLANNED, DEAD):
            if row["status"] == DEAD:
                continue
            # It may have been sent: a policy that asks for it again must not send it again.
            changed = {"status": DEAD, "error": MESSAGE_UNSURE}
        changed |= {"revision": row["revision"] + 1, "revised_at": work.pipeline.clock(), "run_id": work.batch.run_id}
        rows.append(RemediationRow(**row | changed))
    work.pipeline.warehouse.append(rows)


def _take_up_retries(work: _Work, judged: Collection[str]) -> None:
    """Leave open what a person asked to try again while this run was at it."""
    for row in _undone_of(work.pipeline, work.batch, judged - work.waits.keys(), (FAILED,)):
        work.waits[row["recording_id"]].append(_Waits(work.pipeline.clock(), f"{row['action']} is to be tried again"))


def _undone_of(
    pipeline: Pipeline, batch: Batch, recording_ids: Collection[str], statuses: Collection[str]
) -> list[dict[str, Any]]:
    return pipeline.warehouse.select(
        "FROM latest_remediations WHERE partition_hour = $hour AND recording_id IN (SELECT unnest($ids)) "
        "AND status IN (SELECT unnest($statuses))",
        {"hour": batch.hour, "ids": list(recording_ids), "statuses": list(statuses)},
    )


def _due(work: _Work, planned: Sequence[PlannedAction]) -> list[PlannedAction]:
    """What is to be done now; notes what waits, and gives up on messages that nobody can look up."""
    now = work.pipeline.clock()
    lag = timedelta(seconds=work.pipeline.platform.callback_lag_s)
    due: list[PlannedAction] = []
    lost: list[RemediationRow] = []
    for p in planned:
        before = work.before(p)
        waits = None
        if before.status in (DONE, DEAD):
            continue
        if before.status == PLANNED and p.action is Action.NOTIFY:
            lost.append(work.row(p, now, status=DEAD, error=MESSAGE_UNSURE))
            _count(work.report.dead, p)
            continue
        if before.status == PLANNED and p.action is Action.SUPERVISOR_CALLBACK:
            # A run that died after asking left this behind. (One that lost the answer said when to try again.)
            waits = _Waits(before.revised_at + lag, CALLBACK_UNSURE)
        elif before.status == FAILED and before.due_at:
            waits = _Waits(before.due_at, f"{p.action} failed: {before.error}")
        if waits and waits.until > now:
            work.waits[p.violation.recording_id].append(waits)
        else:
            due.append(p)
    work.pipeline.warehouse.append(lost)
    return due


def _purge(work: _Work, planned: Sequence[PlannedAction]) -> set[str]:
    """Those that may be; the others wait. While one is under way no legal hold can be had.

    Returns the recordings whose purge was refused now, after a try of which nobody knows what became.
    """
    from compliance_pipeline import custody, purge, retention

    pipeline = work.pipeline
    warehouse, engine, now = pipeline.warehouse, pipeline.inbox.engine, pipeline.clock()
    ready = [p for p in planned if p.violation.recording_id not in work.waits]
    due = _due(work, [p for p in ready if not is_canary(p.violation.recording_id)])
    recording_ids = [p.violation.recording_id for p in due]
    waits = purge.why_not_yet(warehouse, engine, recording_ids)
    protected = purge.protected(warehouse, recording_ids)
    begun: dict[str, tuple[retention.Deletion, datetime]] = {}
    for p in due:
        recording_id = p.violation.recording_id
        if recording_id in waits:
            continue
        deletion = purge.deletion_of(p, now)
        begun_at = retention.begin(engine, deletion, now, protected.get(recording_id, ()))
        if begun_at is None:
            waits[recording_id] = retention.LEGAL_HOLD
        else:
            begun[recording_id] = deletion, begun_at
    waiting = [(p, why) for p in due if (why := waits.get(p.violation.recording_id))]
    warehouse.append(
        [
            work.row(p, now, status=WAITING, error=why)
            for p, why in waiting
            if (work.before(p).status, work.before(p).error) != (WAITING, why)
        ]
    )
    refused = set()
    going = [p for p in due if p.violation.recording_id in begun]
    for result in _carry_out(work, going, partial(_unprotect, pipeline, protected)):
        deletion, begun_at = begun[result.planned.violation.recording_id]
        if result.error is None:
            retention.end(engine, deletion, custody.ACTOR, begun_at, result.at)
        elif not result.unsure and begun_at == now:
            retention.cancel(engine, deletion)
        elif not (result.unsure or result.held):
            refused.add(deletion.recording_id)
    return refused


def _carry_out(
    work: _Work,
    planned: Sequence[PlannedAction],
    and_then: Callable[[list[ActionResult]], list[ActionResult]] = lambda results: results,
) -> list[ActionResult]:
    """`and_then`: what else must be done before the results count, and with them when each recording was flagged."""
    pipeline = work.pipeline
    settings = pipeline.settings
    now = pipeline.clock()
    pipeline.warehouse.append([work.row(p, now, status=PLANNED) for p in planned])
    means = Means(settings.compliance_queue, settings.supervisor_queue, settings.notify_urls)
    results = and_then(list(execute(pipeline.platform, planned, means, pipeline.clock)))
    rows = [_result_row(work, result) for result in results]
    pipeline.warehouse.append(rows, then=(sql("flagged_times"), {"hour": work.batch.hour}))
    return results


def _unprotect(
    pipeline: Pipeline, protected: Mapping[str, Collection[str]], results: list[ActionResult]
) -> list[ActionResult]:
    """Lift our quarantine of what was purged, so that the platform deletes it. Only afterwards, so that a purge that
    is refused leaves it protected; and not while another of the conversation, which shares the protection, failed."""
    failed_now = {result.planned.violation.recording_id for result in results if result.error}
    lifted = []
    for result in results:
        recording_id = result.planned.violation.recording_id
        others = protected.get(recording_id)
        if result.error is None and others is not None:
            if failed_now.intersection(others):
                result = replace(result, error=OTHERS_FAILED, unsure=True)
            else:
                try:
                    pipeline.platform.protect([recording_id], protected=False)
                except PlatformError as error:
                    result = replace(failed(result.planned, error, pipeline.clock()), for_good=False, unsure=True)
        lifted.append(result)
    return lifted


def _result_row(work: _Work, result: ActionResult) -> RemediationRow:
    p = result.planned
    settings, before = work.pipeline.settings, work.before(p)
    wait_s = outage_wait_s(settings, before.since or result.at, result.at) if result.unreachable else None
    is_try = not result.held and wait_s is None
    attempts = before.attempts + is_try
    if result.error is None:
        _count(work.report.done, p)
        return work.row(p, result.at, status=DONE, external_id=result.external_id, attempts=attempts)
    after_s = result.after_s or wait_s
    if result.unsure and p.action is Action.SUPERVISOR_CALLBACK:
        after_s = max(after_s or 0.0, work.pipeline.platform.callback_lag_s)
    _count(work.report.failed, p)
    if result.for_good or (is_try and attempts >= settings.max_attempts):
        _count(work.report.dead, p)
        # Kept for a try by hand: before this, a callback of which the answer was lost can't be found.
        due_at = result.at + timedelta(seconds=after_s) if after_s else None
        error = result.error if result.for_good else f"gave up after {attempts} tries: {result.error}"
        return work.row(p, result.at, status=DEAD, error=error, attempts=attempts, due_at=due_at)
    after_s = after_s or (1.0 if result.held else backoff_s(settings, attempts))
    due_at = result.at + timedelta(seconds=after_s)
    work.waits[p.violation.recording_id].append(_Waits(due_at, f"{p.action} failed: {result.error}"))
    return work.row(p, result.at, status=FAILED, error=result.error, attempts=attempts, due_at=due_at)


def _count(counts: dict[str, int], planned: PlannedAction) -> None:
    counts[planned.action] = counts.get(planned.action, 0) + 1


def _wait(pipeline: Pipeline, batch: Batch, item: "InboxItem", waits: Sequence[_Waits]) -> None:
    now = pipeline.clock()
    for_s = (min(one.until for one in waits) - now).total_seconds()
    if not hold(pipeline, batch, item, max(for_s, 0.0), "; ".join(one.why for one in waits)):
        # Settled before, and looked at again by hand: a run for what is new takes up what is left to do.
        pipeline.inbox.reopen([item.recording_id], now)


def _violations(
    pipeline: Pipeline, batch: Batch, engine: str, ids: Sequence[str]
) -> tuple[list[Violation], dict[str, _Tried]]:
    """The rules that the recordings broke, and by idempotency key what was done so far."""
    violations: list[Violation] = []
    history: dict[str, _Tried] = {}
    parameters = {"hour": batch.hour, "policy": pipeline.policy.policy_version, "engine": engine, "ids": list(ids)}
    for row in pipeline.warehouse.select(sql("pending_remediations"), parameters):
        actions = row.pop("actions") or []
        violations.append(
            Violation(**row | {"verdict": VerdictValue(row["verdict"]), "severity": Severity(row["severity"])})
        )
        for known in actions:
            key = idempotency_key(row["recording_id"], row["rule_id"], known.pop("action"))
            history[key] = _Tried(**known)
    return violations, history
