"""Doing what was planned, through the platform port. Each action stands alone: one that fails stops no other."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from compliance_pipeline.contracts.policy import Action, Severity
from compliance_pipeline.contracts.work_item import SupervisorCallback, WorkItem
from compliance_pipeline.platforms.port import Platform, PlatformError, PlatformHeld, Unavailable
from compliance_pipeline.remediation.plan import PlannedAction

WORKERS = 8
_PRIORITY = {Severity.CRITICAL: "high", Severity.HIGH: "high", Severity.MEDIUM: "normal", Severity.LOW: "low"}


@dataclass(frozen=True, slots=True)
class Queues:
    work_items: str
    callbacks: str


@dataclass(frozen=True, slots=True)
class ActionResult:
    """external_id: the platform's id of what was created. error: why it failed; None when done.

    after_s: not to be tried again before. held: it was not tried at all (budget, circuit breaker).
    """

    planned: PlannedAction
    at: datetime
    external_id: str | None = None
    error: str | None = None
    after_s: float | None = None
    held: bool = False


def execute(
    platform: Platform, planned: Sequence[PlannedAction], queues: Queues, clock: Callable[[], datetime]
) -> Iterator[ActionResult]:
    """Do the actions, all tags before the first work item, and yield what became of each, in the order given."""

    def attempt(action: PlannedAction) -> ActionResult:
        try:
            external_id = _do(platform, action, queues, clock())
        except Unavailable as error:
            held = isinstance(error, PlatformHeld)
            return ActionResult(action, clock(), error=str(error), after_s=error.after_s, held=held)
        except PlatformError as error:
            return ActionResult(action, clock(), error=str(error))
        except Exception as error:
            # The text of an unforeseen exception may quote what was sent: only its type is kept.
            return ActionResult(action, clock(), error=f"unforeseen {type(error).__qualname__}")
        return ActionResult(action, clock(), external_id)

    with ThreadPoolExecutor(WORKERS, thread_name_prefix="remediation") as pool:
        yield from pool.map(attempt, planned)


def _do(platform: Platform, planned: PlannedAction, queues: Queues, now: datetime) -> str | None:
    violation = planned.violation
    summary = f"{violation.rule_id} at {violation.start_ms / 1000:.1f} s: {violation.masked}"
    match planned.action:
        case Action.TAG_RECORDING:
            tags = {"compliance_status": violation.verdict.value, "violation_type": violation.violation_type}
            platform.tag(violation.recording_id, tags, violation.start_ms)
            return None
        case Action.CREATE_WORK_ITEM:
            item = WorkItem(
                key=planned.key,
                recording_id=violation.recording_id,
                violation_type=violation.violation_type,
                queue=queues.work_items,
                priority=_PRIORITY[violation.severity],
                summary=summary,
            )
            return platform.open_work_item(item)
        case Action.SUPERVISOR_CALLBACK:
            callback = SupervisorCallback(
                key=planned.key,
                recording_id=violation.recording_id,
                queue=queues.callbacks,
                scheduled_at=now,
                reason=summary,
            )
            return platform.request_callback(callback)
