"""The verdict on the wire: the guide's schema (step 2), strict."""

from enum import StrEnum

from pydantic import ConfigDict, Field, model_validator

from compliance_pipeline.contracts.event import RecordingId, WireModel


class VerdictValue(StrEnum):
    """The guide prints VIOLATION_DETECTED; the others are ours.

    REVIEW_REQUIRED: something was found that the rules can't settle, a person must.
    UNSCREENABLE: the media could not be screened (damaged, gone); never to be read as clean.
    UNDETERMINED: nothing was found, but a rule that applies could not be decided (it needs a transcript, and there is
    none); never to be read as clean either.
    """

    VIOLATION_DETECTED = "VIOLATION_DETECTED"
    REVIEW_REQUIRED = "REVIEW_REQUIRED"
    NO_VIOLATION = "NO_VIOLATION"
    UNSCREENABLE = "UNSCREENABLE"
    UNDETERMINED = "UNDETERMINED"


class RecommendedAction(StrEnum):
    ROUTE_TO_COMPLIANCE_QUEUE = "ROUTE_TO_COMPLIANCE_QUEUE"
    CHECK_MEDIA = "CHECK_MEDIA"
    NONE = "NONE"


class Verdict(WireModel):
    """What the engine says of one recording. A verdict with a violation names its type, offset and confidence."""

    model_config = ConfigDict(**WireModel.model_config | {"extra": "forbid"})

    recording_id: RecordingId
    verdict: VerdictValue
    violation_type: str | None = Field(default=None, pattern=r"^[A-Z][A-Z0-9_]*$")
    confidence_score: float | None = Field(default=None, ge=0, le=1)
    timestamp_offset_ms: int | None = Field(default=None, ge=0, description="from the start of the recording")
    evidence_snippet: str | None = Field(default=None, description="URI of the span; carries no content")
    recommended_action: RecommendedAction
    correlation_id: str = Field(min_length=1, max_length=256)

    @model_validator(mode="after")
    def _a_violation_says_what_and_where(self) -> "Verdict":
        said = (self.violation_type, self.confidence_score, self.timestamp_offset_ms)
        found = self.verdict in (VerdictValue.VIOLATION_DETECTED, VerdictValue.REVIEW_REQUIRED)
        if found and None in said:
            raise ValueError(f"{self.verdict} needs violationType, confidenceScore and timestampOffsetMs")
        if not found and any(value is not None for value in said):
            raise ValueError(f"{self.verdict} must not name a violation")
        return self
