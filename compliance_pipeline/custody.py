"""The chain of custody: what the warehouse says was done with recordings, as entries of the ledger.

Written before a recording is settled, from what is stored: a run that dies in between leaves it to the next one.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from compliance_pipeline import ledger
from compliance_pipeline.ledger import Entry
from compliance_pipeline.platforms.canary import is_canary
from compliance_pipeline.remediation.plan import idempotency_key
from compliance_pipeline.remediation.undone import BY_HAND
from compliance_pipeline.steps import Pipeline

ACTOR = "pipeline"


def record(pipeline: Pipeline, hour: datetime, recording_ids: Sequence[str]) -> int:
    """Enter into the ledger what it lacks of these recordings of one hour; how many entries that was. Of canaries
    none: what was done about them was done nowhere."""
    real = [recording_id for recording_id in recording_ids if not is_canary(recording_id)]
    if not real:
        return 0
    of = {"hour": hour, "ids": real}
    with pipeline.warehouse.together():
        entries = [
            entry
            for table, entry_of in (("media", _fetched), ("verdicts", _verdict), ("remediations", _action))
            for row in pipeline.warehouse.select(
                f"SELECT t.*, r.correlation_id AS announced_by FROM {table} t LEFT JOIN recordings r "  # noqa: S608
                "ON r.partition_hour = t.partition_hour AND r.recording_id = t.recording_id "
                "WHERE t.partition_hour = $hour AND t.recording_id IN (SELECT unnest($ids)) ORDER BY ALL",
                of,
            )
            for entry in entry_of(row)
        ]
    return ledger.record(pipeline.inbox.engine, entries, pipeline.clock())


def _fetched(row: Mapping[str, Any]) -> Iterator[Entry]:
    yield Entry(
        key=f"fetched/{row['recording_id']}/{row['engine_version']}/{row['sha256']}",
        kind="fetched",
        actor=ACTOR,
        recording_id=row["recording_id"],
        correlation_id=row["announced_by"],
        details=_details(row, "engine_version", "sha256", "size_bytes", "container", "complete", "fetched_at"),
    )


def _verdict(row: Mapping[str, Any]) -> Iterator[Entry]:
    yield Entry(
        key=f"verdict/{row['recording_id']}/{row['policy_version']}/{row['engine_version']}",
        kind="verdict",
        actor=ACTOR,
        recording_id=row["recording_id"],
        correlation_id=row["correlation_id"],
        run_id=row["run_id"],
        details=_details(
            row,
            "policy_version",
            "engine_version",
            "verdict",
            "violation_type",
            "rule_id",
            "confidence_score",
            "timestamp_offset_ms",
            "unscreenable_reason",
            "undetermined_rules",
            "judged_at",
        ),
    )


def _action(row: Mapping[str, Any]) -> Iterator[Entry]:
    if row["status"] == "planned":
        return
    run_id: str = row["run_id"]
    yield Entry(
        key=f"action/{idempotency_key(row['recording_id'], row['rule_id'], row['action'])}/{row['revision']}",
        kind="action",
        actor=run_id.removeprefix(BY_HAND) if run_id.startswith(BY_HAND) else ACTOR,
        recording_id=row["recording_id"],
        run_id=run_id,
        details=_details(row, "rule_id", "action", "status", "external_id", "revised_at"),
    )


def _details(row: Mapping[str, Any], *columns: str) -> dict[str, Any]:
    return {
        column: value.isoformat() if isinstance(value := row[column], datetime) else value
        for column in columns
        if row[column] is not None
    }
