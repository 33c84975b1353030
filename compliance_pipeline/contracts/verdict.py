"""The verdict on the wire: the guide's schema (step 2), strict. How a verdict is reached is screening/policy's."""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, model_validator

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
    SUPPLY_MISSING_INPUT = "SUPPLY_MISSING_INPUT"
    """A transcript or a fact about the recording is missing: with it, the rules can be decided."""
    NONE = "NONE"


class Verdict(WireModel):
    """What the engine says of one recording. A verdict with a violation names its type, offset and confidence."""

    model_config = ConfigDict(**WireModel.model_config | {"extra": "forbid"})

    recording_id: RecordingId
    verdict: VerdictValue
    violation_type: str | None = Field(default=None, pattern=r"^[A-Z][A-Z0-9_]*$")
    confidence_score: float | None = Field(default=None, ge=0, le=1)
    timestamp_offset_ms: int | None = Field(default=None, ge=0, description="from the start of the recording")
    evidence_snippet: str | None = Field(default=None, pattern=r"^\S+$", max_length=2048, description="masked clip")
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


class VerdictRefused(ValueError):
    """A verdict that is not of the schema. Names the fields and what is wrong with them, never their content."""


def parse_verdict(data: bytes | Mapping[str, Any]) -> Verdict:
    """The verdict in a JSON document (or in the mapping that it decodes to). Raises VerdictRefused.

    Strict: nothing is converted (`"0.94"` is no number), nothing unknown is passed over, and fields have the wire's
    camelCase names only.
    """
    if isinstance(data, bytes):
        text = data
    else:
        try:
            text = json.dumps(dict(data), allow_nan=False).encode()
        except (TypeError, ValueError):
            raise VerdictRefused("the verdict is refused: it holds values that are not JSON") from None
    try:
        return Verdict.model_validate_json(text, strict=True, by_name=False, by_alias=True)
    except ValidationError as error:
        faults = "; ".join(_fault(fault["loc"], fault["type"], fault["msg"]) for fault in error.errors())
        raise VerdictRefused(f"the verdict is refused: {faults}. Send it again as the schema has it.") from None


_LONGEST_NAME = 40


def _fault(location: tuple[int | str, ...], kind: str, message: str) -> str:
    """`verdict: Input should be ...`; an unknown field's name is content too, so it is counted out, not repeated."""
    if kind == "extra_forbidden":
        return "a field that the schema does not have"
    if kind == "json_invalid":
        return "not valid JSON"
    path = ".".join(str(part) for part in location)[:_LONGEST_NAME] or "verdict"
    return f"{path}: {message.removeprefix('Value error, ')}"
