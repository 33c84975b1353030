"""The platform's own recording, deleted when the policy says `purge_after_review`: when that may be, and what is due.

Doing it is `remediate`'s; holds and the record of deletions are `retention`'s, decisions `reviews`'.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from compliance_pipeline.contracts.policy import Action, PolicyPack
from compliance_pipeline.platforms.port import Gone, Platform, PlatformError, Ready
from compliance_pipeline.remediation.plan import PlannedAction
from compliance_pipeline.remediation.undone import DEAD, DONE, WAITING
from compliance_pipeline.retention import (
    LEGAL_HOLD,
    PLATFORM,
    Deletion,
    cancel,
    end,
    kept_from_purge,
    unfinished_purges,
)
from compliance_pipeline.warehouse.warehouse import Warehouse

if TYPE_CHECKING:
    from compliance_pipeline.intake.inbox import Inbox

OTHERS_NEED_PROTECTION = "another recording of its conversation is to be kept, and one protection is for all of them"

PLATFORM_TAKES = timedelta(hours=1)
"""A platform deletes in its own time: what it still shows after this, it was not asked to delete."""


def deletion_of(planned: PlannedAction, now: datetime) -> Deletion:
    rule = planned.violation.rule_id
    return Deletion(planned.violation.recording_id, PLATFORM, (), rule, f"{rule}: purged after review", now)


def quarantined(warehouse: Warehouse, recording_ids: Collection[str]) -> frozenset[str]:
    """Of these, the ones that our own quarantine protects."""
    rows = warehouse.select(
        "SELECT DISTINCT recording_id FROM latest_remediations "
        "WHERE action = $action AND status = $done AND recording_id IN (SELECT unnest($ids))",
        {"action": Action.QUARANTINE, "done": DONE, "ids": list(recording_ids)},
    )
    return frozenset(row["recording_id"] for row in rows)


def protected(warehouse: Warehouse, recording_ids: Collection[str]) -> dict[str, frozenset[str]]:
    """Of these, the ones that our own quarantine protects, each with the others of its conversation: a platform
    protects whole conversations."""
    pairs = warehouse.select(
        "SELECT DISTINCT r.recording_id, o.recording_id AS other FROM recordings r "
        "JOIN recordings o ON o.conversation_id = r.conversation_id AND o.recording_id <> r.recording_id "
        "WHERE r.recording_id IN (SELECT unnest($ids))",
        {"ids": list(ours := quarantined(warehouse, recording_ids))},
    )
    return {one: frozenset(pair["other"] for pair in pairs if pair["recording_id"] == one) for one in ours}


def why_not_yet(warehouse: Warehouse, engine: sa.Engine, recording_ids: Collection[str]) -> dict[str, str]:
    """Of these, the recordings that may not be purged yet, with why.

    While another recording of the conversation is held, or quarantined and not reviewed, a quarantine is not lifted. A
    hold that somebody set at the platform itself can't be told from our quarantine: `compliance hold` is what counts.
    """
    waits = kept_from_purge(warehouse, engine, recording_ids)
    with_others = protected(warehouse, set(recording_ids) - waits.keys())
    others = frozenset().union(*with_others.values())
    kept, others_protected = kept_from_purge(warehouse, engine, others), quarantined(warehouse, others)
    for recording_id, its in with_others.items():
        if any(kept.get(one) == LEGAL_HOLD or (one in kept and one in others_protected) for one in its):
            waits[recording_id] = OTHERS_NEED_PROTECTION
    return waits


def settle(
    warehouse: Warehouse, engine: sa.Engine, platform: Platform, refused: Collection[str], by: str, now: datetime
) -> None:
    """End or cancel the purges that were begun and left: by a run that died, by lost answers until it was given up on,
    by a policy that asks for them no more.

    What the platform deleted is ended. What it still has when it `refused` a later try, or after PLATFORM_TAKES, is
    cancelled, so that it can be held again. Where the platform does not say, it stays begun.
    """
    left = unfinished_purges(engine)
    if not left:
        return
    rows = warehouse.select(
        "SELECT DISTINCT recording_id, status FROM latest_remediations "
        "WHERE action = $action AND recording_id IN (SELECT unnest($ids))",
        {"action": Action.PURGE_AFTER_REVIEW, "ids": [one.deletion.recording_id for one in left]},
    )
    known = {(row["recording_id"], row["status"]) for row in rows}
    for one in left:
        recording_id = one.deletion.recording_id
        if (recording_id, DONE) in known:
            end(engine, one.deletion, by, one.begun_at, now)
            continue
        counts = recording_id in refused or now - one.begun_at >= PLATFORM_TAKES
        if not counts and (recording_id, DEAD) not in known:
            continue  # a run may be at it
        try:
            location = platform.locate(recording_id)
        except PlatformError:
            continue
        if isinstance(location, Gone):
            end(engine, one.deletion, by, one.begun_at, now)
        elif isinstance(location, Ready) and counts:
            cancel(engine, one.deletion)


def reopen_due(warehouse: Warehouse, inbox: "Inbox", policy: PolicyPack, now: datetime) -> int:
    """Reopen the recordings whose purge waits for nothing any more, so that a run takes it up; how many.

    Done again it reopens what is still not purged: a review that was stored by a process that then died is not lost.
    """
    rows = warehouse.select(
        "SELECT DISTINCT recording_id FROM latest_remediations "
        "WHERE action = $action AND status = $waiting AND rule_id IN (SELECT unnest($rules))",
        {
            "action": Action.PURGE_AFTER_REVIEW,
            "waiting": WAITING,
            "rules": [rule.id for rule in policy.rules if rule.wants(Action.PURGE_AFTER_REVIEW)],
        },
    )
    recording_ids = {row["recording_id"] for row in rows}
    return inbox.reopen(sorted(recording_ids - why_not_yet(warehouse, inbox.engine, recording_ids).keys()), now)
