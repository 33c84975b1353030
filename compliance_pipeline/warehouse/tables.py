"""Rows of the warehouse's tables, as the pipeline hands them over; the tables themselves are in sql/schema.sql."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class RecordingRow:
    table: ClassVar[str] = "recordings"
    recording_id: str
    partition_hour: datetime
    source: str
    channel: str
    direction: str | None
    queue: str | None
    participants: list[str]
    correlation_id: str
    started_at: datetime | None
    ended_at: datetime | None
    available_at: datetime
    received_at: datetime
    recorded_at: datetime
    conversation_id: str | None = None
    found_by_sweep: bool = False
    agent: str | None = None


@dataclass(frozen=True, slots=True)
class MediaRow:
    table: ClassVar[str] = "media"
    recording_id: str
    engine_version: str
    partition_hour: datetime
    size_bytes: int
    sha256: str
    container: str
    codec: str
    audio_channels: int
    duration_ms: int
    complete: bool
    fetched_at: datetime


@dataclass(frozen=True, slots=True)
class FindingRow:
    table: ClassVar[str] = "findings"
    recording_id: str
    engine_version: str
    finding_no: int
    partition_hour: datetime
    kind: str
    detector: str
    speaker: str
    start_ms: int
    end_ms: int
    confidence: float
    masked: str
    fingerprint: str | None = None
    phrase: str | None = None
    located: bool = True
    spans: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ScreeningRow:
    """What a policy may know of a recording besides its findings, so that another policy needs no media."""

    table: ClassVar[str] = "screenings"
    recording_id: str
    engine_version: str
    partition_hour: datetime
    channel: str
    direction: str | None
    queue: str | None
    started_at: datetime | None
    called_time_zone: str | None
    correlation_id: str
    words_known: bool
    words_timed: bool
    speakers: list[str]
    annotations: list[str] | None
    duration_ms: int | None
    unscreenable_reason: str | None
    screened_at: datetime


@dataclass(frozen=True, slots=True)
class VerdictRow:
    table: ClassVar[str] = "verdicts"
    recording_id: str
    policy_version: str
    engine_version: str
    partition_hour: datetime
    channel: str
    verdict: str
    violation_type: str | None
    rule_id: str | None
    severity: str | None
    confidence_score: float | None
    timestamp_offset_ms: int | None
    evidence_snippet: str | None
    recommended_action: str
    correlation_id: str
    unscreenable_reason: str | None
    undetermined_rules: list[str]
    judged_at: datetime
    run_id: str


@dataclass(frozen=True, slots=True)
class PolicyRow:
    table: ClassVar[str] = "policies"
    policy_version: str
    content: str
    first_used_at: datetime


@dataclass(frozen=True, slots=True)
class ViolationRow:
    table: ClassVar[str] = "violations"
    recording_id: str
    policy_version: str
    engine_version: str
    rule_id: str
    partition_hour: datetime
    channel: str
    verdict: str
    violation_type: str
    severity: str
    detector: str
    speaker: str
    start_ms: int
    confidence: float
    masked: str
    hits: int
    finding_no: int | None = None


@dataclass(frozen=True, slots=True)
class RemediationRow:
    table: ClassVar[str] = "remediations"
    recording_id: str
    rule_id: str
    action: str
    revision: int
    partition_hour: datetime
    status: str
    external_id: str | None
    error: str | None
    revised_at: datetime
    run_id: str
    attempts: int = 0
    due_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class StageTimeRow:
    table: ClassVar[str] = "stage_times"
    recording_id: str
    stage: str
    partition_hour: datetime
    channel: str
    started_at: datetime
    ended_at: datetime
    seconds: float


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    table: ClassVar[str] = "evidence"
    recording_id: str
    engine_version: str
    finding_no: int
    partition_hour: datetime
    status: str
    reason: str | None
    uri: str | None
    start_ms: int | None
    end_ms: int | None
    sha256: str | None
    made_at: datetime
    run_id: str


@dataclass(frozen=True, slots=True)
class SweepRow:
    table: ClassVar[str] = "sweeps"
    partition_hour: datetime
    swept_at: datetime
    at_source: int
    judged: int
    in_the_works: int
    not_recorded: int
    given_up: int
    missing: int
    found_by_sweep: int
    run_id: str


Row = (
    RecordingRow
    | MediaRow
    | FindingRow
    | ScreeningRow
    | VerdictRow
    | PolicyRow
    | ViolationRow
    | RemediationRow
    | StageTimeRow
    | EvidenceRow
    | SweepRow
)
