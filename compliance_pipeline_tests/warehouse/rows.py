"""Rows of every table, for the tests of this folder and of whatever reads the warehouse."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from compliance_pipeline.warehouse.tables import (
    EvidenceRow,
    FindingRow,
    MediaRow,
    RecordingRow,
    RemediationRow,
    Row,
    ScreeningRow,
    StageTimeRow,
    VerdictRow,
    ViolationRow,
)

HOUR = datetime(2026, 3, 1, 12, tzinfo=UTC)
NEXT_HOUR = HOUR + timedelta(hours=1)


def recording(recording_id: str = "rec-1", **changes: Any) -> RecordingRow:
    row = RecordingRow(
        recording_id=recording_id,
        partition_hour=HOUR,
        source="guide",
        channel="chat",
        direction="inbound",
        queue="billing",
        participants=["tok_phone_aaaaaaaaaaaaaaaaaaaaaaaaaa", "tok_id_bbbbbbbbbbbbbbbbbbbbbbbbbb"],
        correlation_id="msg-1",
        started_at=None,
        ended_at=HOUR,
        available_at=HOUR,
        received_at=HOUR,
        recorded_at=HOUR,
    )
    return replace(row, **changes)


def media(recording_id: str = "rec-1", **changes: Any) -> MediaRow:
    row = MediaRow(recording_id, "engine-1", HOUR, 100, "ab" * 32, "text", "utf-8", 0, 5_000, True, HOUR)
    return replace(row, **changes)


def finding(recording_id: str = "rec-1", **changes: Any) -> FindingRow:
    row = FindingRow(
        recording_id, "engine-1", 0, HOUR, "card_number", "text", "customer", 1_000, 1_000, 0.99, "411111******1111"
    )
    return replace(row, **changes)


def verdict(recording_id: str = "rec-1", value: str = "VIOLATION_DETECTED", **changes: Any) -> VerdictRow:
    found = value in ("VIOLATION_DETECTED", "REVIEW_REQUIRED")
    row = VerdictRow(
        recording_id=recording_id,
        policy_version="pack@1.0.0",
        engine_version="engine-1",
        partition_hour=HOUR,
        channel="chat",
        verdict=value,
        violation_type="PCI_MID_CAPTURE" if found else None,
        rule_id="PCI-PAN-01" if found else None,
        severity="high" if found else None,
        confidence_score=0.99 if found else None,
        timestamp_offset_ms=1_000 if found else None,
        evidence_snippet=None,
        recommended_action="ROUTE_TO_COMPLIANCE_QUEUE" if found else "NONE",
        correlation_id="msg-1",
        unscreenable_reason="gone" if value == "UNSCREENABLE" else None,
        undetermined_rules=["REC-CONSENT-01"] if value == "UNDETERMINED" else [],
        judged_at=HOUR,
        run_id="run-1",
    )
    return replace(row, **changes)


def violation(recording_id: str = "rec-1", rule_id: str = "PCI-PAN-01", **changes: Any) -> ViolationRow:
    row = ViolationRow(
        recording_id=recording_id,
        policy_version="pack@1.0.0",
        engine_version="engine-1",
        rule_id=rule_id,
        partition_hour=HOUR,
        channel="chat",
        verdict="VIOLATION_DETECTED",
        violation_type="PCI_MID_CAPTURE",
        severity="high",
        detector="text",
        speaker="customer",
        start_ms=1_000,
        confidence=0.99,
        masked="411111******1111",
        hits=1,
    )
    return replace(row, **changes)


def remediation(recording_id: str = "rec-1", status: str = "done", **changes: Any) -> RemediationRow:
    row = RemediationRow(
        recording_id, "PCI-PAN-01", "tag_recording", 2, HOUR, status, None, None, HOUR + timedelta(seconds=9), "run-1"
    )
    return replace(row, **changes)


def stage(
    recording_id: str = "rec-1",
    name: str = "judged",
    seconds: float = 4.0,
    channel: str = "chat",
    hour: datetime = HOUR,
) -> StageTimeRow:
    return StageTimeRow(recording_id, name, hour, channel, hour, hour + timedelta(seconds=seconds), seconds)


def evidence(recording_id: str = "rec-1", **changes: Any) -> EvidenceRow:
    row = EvidenceRow(
        recording_id, "engine-1", 0, HOUR, "verified", None, "evidence/rec-1/engine-1/0.flac", 0, 21_000, "ab" * 32,
        HOUR, "run-1",
    )  # fmt: skip
    return replace(row, **changes)


def screening(recording_id: str = "rec-1", **changes: Any) -> ScreeningRow:
    row = ScreeningRow(
        recording_id=recording_id,
        engine_version="engine-1",
        partition_hour=HOUR,
        channel="voice",
        direction="inbound",
        queue="billing",
        started_at=HOUR,
        called_time_zone="Europe/Dublin",
        correlation_id="msg-1",
        words_known=True,
        words_timed=True,
        speakers=["agent", "customer"],
        annotations=[],
        duration_ms=60_000,
        unscreenable_reason=None,
        screened_at=HOUR,
    )
    return replace(row, **changes)


ONE_OF_EACH: tuple[Row, ...] = (
    recording(), media(), finding(), screening(), verdict(), violation(), remediation(), stage(),
    evidence(),
)  # fmt: skip
