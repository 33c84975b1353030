"""Doing what was planned, through the platform port. Each action stands alone: one that fails stops no other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import assert_never

from pydantic import SecretStr

from compliance_pipeline import notify
from compliance_pipeline.contracts.policy import Action, Priority, Severity
from compliance_pipeline.contracts.work_item import SupervisorCallback, WorkItem
from compliance_pipeline.platforms.canary import is_canary
from compliance_pipeline.platforms.port import NotSupported, Platform, PlatformError, PlatformHeld, Unavailable
from compliance_pipeline.remediation.plan import PlannedAction

WORKERS = 8
_PRIORITY: dict[Severity, Priority] = {
    Severity.CRITICAL: "high",
    Severity.HIGH: "high",
    Severity.MEDIUM: "normal",
    Severity.LOW: "low",
}


@dataclass(frozen=True, slots=True)
class Means:
    """What the settings say: the queues where the policy names none, and the channels of messages by name."""

    work_items: str
    callbacks: str
    notify_urls: Mapping[str, SecretStr]


@dataclass(frozen=True, slots=True)
class ActionResult:
    """external_id: the platform's id of what was created. error: why it failed; None when done.

    after_s: not to be tried again before. held: it was not tried at all (budget, circuit breaker). for_good: another
    try would say the same. unreachable: nobody answered. unsure: it may have been done all the same.
    """

    planned: PlannedAction
    at: datetime
    external_id: str | None = None
    error: str | None = None
    after_s: float | None = None
    held: bool = False
    for_good: bool = False
    unreachable: bool = False
    unsure: bool = False


def failed(planned: PlannedAction, error: PlatformError, at: datetime) -> ActionResult:
    result = ActionResult(planned, at, error=str(error))
    if not isinstance(error, Unavailable):
        return replace(result, for_good=isinstance(error, NotSupported))
    held = isinstance(error, PlatformHeld)
    return replace(result, after_s=error.after_s, held=held, unreachable=not held, unsure=not held)


def execute(
    platform: Platform, planned: Sequence[PlannedAction], means: Means, clock: Callable[[], datetime]
) -> Iterator[ActionResult]:
    """Do the actions, eight at a time, begun in the order given, and yield what became of each in that order.

    A message that its service may have taken can't be looked up: it is not to be sent again.
    """

    def attempt(action: PlannedAction) -> ActionResult:
        try:
            external_id = _do(platform, action, means, clock())
        except notify.NotifyFailed as error:
            return ActionResult(action, clock(), error=str(error), for_good=error.unsure)
        except PlatformError as error:
            return failed(action, error, clock())
        except Exception as error:
            # The text of an unforeseen exception may quote what was sent: only its type is kept.
            return ActionResult(action, clock(), error=f"unforeseen {type(error).__qualname__}", unsure=True)
        return ActionResult(action, clock(), external_id)

    with ThreadPoolExecutor(WORKERS, thread_name_prefix="remediation") as pool:
        yield from pool.map(attempt, planned)


def _do(platform: Platform, planned: PlannedAction, means: Means, now: datetime) -> str | None:
    violation, wanted = planned.violation, planned.wanted
    summary = f"{violation.rule_id} at {violation.start_ms / 1000:.1f} s: {violation.masked}"
    match planned.action:
        case Action.TAG_RECORDING:
            tags = {"compliance_status": violation.verdict.value, "violation_type": violation.violation_type}
            platform.tag(violation.recording_id, tags, violation.start_ms)
            return None
        case Action.QUARANTINE:
            platform.protect([violation.recording_id], protected=True)
            return None
        case Action.CREATE_WORK_ITEM:
            item = WorkItem(
                key=planned.key,
                recording_id=violation.recording_id,
                violation_type=violation.violation_type,
                queue=wanted.queue or means.work_items,
                priority=wanted.priority or _PRIORITY[violation.severity],
                summary=summary,
                due_at=now + timedelta(hours=wanted.due_hours) if wanted.due_hours else None,
            )
            return platform.open_work_item(item)
        case Action.SUPERVISOR_CALLBACK:
            callback = SupervisorCallback(
                key=planned.key,
                recording_id=violation.recording_id,
                queue=wanted.queue or means.callbacks,
                scheduled_at=now,
                reason=summary,
            )
            return platform.request_callback(callback)
        case Action.NOTIFY:
            if is_canary(violation.recording_id):
                return None
            title = f"{violation.verdict}: {violation.violation_type}"
            notify.send(means.notify_urls, wanted.to or "", title, f"{summary}\nRecording {violation.recording_id}")
            return None
        case Action.PURGE_AFTER_REVIEW:
            platform.purge(violation.recording_id)
            return None
    assert_never(planned.action)
