"""Actions that are not done: what waits for its next try, for a person's review, or was given up on until a person asks
again."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from compliance_pipeline.plain_text import refuse_sensitive
from compliance_pipeline.remediation.plan import idempotency_key
from compliance_pipeline.warehouse.tables import RemediationRow
from compliance_pipeline.warehouse.warehouse import Warehouse

if TYPE_CHECKING:
    from compliance_pipeline.intake.inbox import Inbox

PLANNED, DONE, FAILED, DEAD, WAITING, DROPPED = "planned", "done", "failed", "dead", "waiting", "dropped"
"""An action's status. failed: tried again at its due time; dead: not before a person asks; waiting: a purge, until the
review, and while a legal hold stands; dropped: the policy does not ask for it any more."""
BY_HAND = "by hand: "
"""How the run id of what a person asked for begins; who that was follows."""


@dataclass(frozen=True, slots=True)
class Undone:
    """The newest revision of an action. attempts: tries so far. due_at: not tried again before."""

    recording_id: str
    rule_id: str
    action: str
    status: str
    attempts: int
    due_at: datetime | None
    error: str | None
    revision: int
    partition_hour: datetime

    @property
    def key(self) -> str:
        return idempotency_key(self.recording_id, self.rule_id, self.action)


@dataclass(frozen=True, slots=True)
class Retried:
    """Actions that got a full set of tries, and recordings that a run takes up again for what is undone of them."""

    actions: int
    recordings: int


def undone(warehouse: Warehouse) -> list[Undone]:
    """Every action that is planned, failed, dead or waiting; dead ones first, what waits for people last."""
    if not warehouse.exists():
        return []
    rows = warehouse.select(
        "SELECT recording_id, rule_id, action, status, coalesce(attempts, 0) AS attempts, due_at, error, revision, "
        "partition_hour FROM latest_remediations WHERE status NOT IN ($done, $dropped) "
        "ORDER BY status <> $dead, status = $waiting, due_at, recording_id, rule_id, action",
        {"done": DONE, "dropped": DROPPED, "dead": DEAD, "waiting": WAITING},
    )
    return [Undone(**row) for row in rows]


def retry(
    warehouse: Warehouse, inbox: "Inbox", keys: Collection[str] | None, now: datetime, by: str = "somebody"
) -> Retried:
    """Give dead actions (all of them if None) a full set of tries, and reopen their recordings. `by`: for the ledger.

    An action that is known not to show on the platform yet waits until it does. Can be killed and run again: a
    recording is reopened for what failed, too; what waits for a review is left. Raises KeyError with the first key that
    names no such action, NotPlain for a `by` that the ledger may not keep.
    """
    refuse_sensitive(by, "the name of who asks")
    found = [action for action in undone(warehouse) if action.status != WAITING]
    if keys is not None:
        known = {action.key for action in found}
        if unknown := [key for key in keys if key not in known]:
            raise KeyError(unknown[0])
        found = [action for action in found if action.key in keys]
    dead = [action for action in found if action.status == DEAD]
    warehouse.append(
        [
            RemediationRow(
                recording_id=action.recording_id,
                rule_id=action.rule_id,
                action=action.action,
                revision=action.revision + 1,
                partition_hour=action.partition_hour,
                status=FAILED,
                external_id=None,
                error=action.error,
                revised_at=now,
                run_id=BY_HAND + by,
                due_at=max(now, action.due_at or now),
            )
            for action in dead
        ]
    )
    return Retried(len(dead), inbox.reopen(sorted({action.recording_id for action in found}), now))
