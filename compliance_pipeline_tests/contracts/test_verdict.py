"""The verdict on the wire: the guide's schema, strict, and never a half-told violation."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from compliance_pipeline.contracts.verdict import (
    RecommendedAction,
    Verdict,
    VerdictRefused,
    VerdictValue,
    parse_verdict,
)

FOUND: dict[str, Any] = {
    "recordingId": "rec-1",
    "verdict": "VIOLATION_DETECTED",
    "violationType": "PCI_MID_CAPTURE",
    "confidenceScore": 0.97,
    "timestampOffsetMs": 12_000,
    "evidenceSnippet": "recording:rec-1#t=12.000",
    "recommendedAction": "ROUTE_TO_COMPLIANCE_QUEUE",
    "correlationId": "msg-1",
}
CLEAN = {
    "recordingId": "rec-1",
    "verdict": "NO_VIOLATION",
    "recommendedAction": "NONE",
    "correlationId": "msg-1",
}
FOUND_VALUES = (VerdictValue.VIOLATION_DETECTED, VerdictValue.REVIEW_REQUIRED)


def test_the_wire_has_the_guides_fields_and_no_other() -> None:
    assert set(Verdict.model_validate(FOUND).model_dump(by_alias=True)) == set(FOUND)


@pytest.mark.parametrize("field", ["violationType", "confidenceScore", "timestampOffsetMs"])
@pytest.mark.parametrize("value", FOUND_VALUES)
def test_a_violation_says_what_where_and_how_surely(value: VerdictValue, field: str) -> None:
    Verdict.model_validate(FOUND | {"verdict": value})
    with pytest.raises(ValidationError, match="needs violationType, confidenceScore and timestampOffsetMs"):
        Verdict.model_validate(FOUND | {"verdict": value, field: None})


@pytest.mark.parametrize("field", ["violationType", "confidenceScore", "timestampOffsetMs"])
@pytest.mark.parametrize("value", ["NO_VIOLATION", "UNSCREENABLE", "UNDETERMINED"])
def test_what_is_no_violation_names_none(value: str, field: str) -> None:
    Verdict.model_validate(CLEAN | {"verdict": value})
    with pytest.raises(ValidationError, match="must not name a violation"):
        Verdict.model_validate(CLEAN | {"verdict": value, field: FOUND[field]})


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "CLEAN"},
        {"violationType": "pci mid"},
        {"confidenceScore": 1.01},
        {"confidenceScore": -0.01},
        {"timestampOffsetMs": -1},
        {"recommendedAction": "SHRUG"},
        {"correlationId": ""},
        {"recordingId": "a b"},
        {"transcript": "four one one one"},
    ],
)
def test_a_value_outside_the_schema_or_an_unknown_field_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Verdict.model_validate(FOUND | change)


@given(st.floats(0, 1), st.integers(0, 10**9), st.sampled_from(FOUND_VALUES), st.sampled_from(RecommendedAction))
def test_any_verdict_comes_back_from_its_json_as_it_went(
    confidence: float, offset: int, value: VerdictValue, action: RecommendedAction
) -> None:
    verdict = Verdict.model_validate(
        FOUND
        | {"verdict": value, "confidenceScore": confidence, "timestampOffsetMs": offset, "recommendedAction": action}
    )
    assert Verdict.model_validate_json(verdict.model_dump_json(by_alias=True)) == verdict
    assert parse_verdict(verdict.model_dump_json(by_alias=True).encode()) == verdict
    assert parse_verdict(verdict.model_dump(mode="json", by_alias=True)) == verdict


SECRET = "4111111111111111"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recordingId": None}, "recordingId"),
        ({"recordingId": 17}, "recordingId"),
        ({"recordingId": f"{SECRET} or so"}, "recordingId"),
        ({"verdict": "CLEAN"}, "verdict: Input should be 'VIOLATION_DETECTED'"),
        ({"verdict": SECRET}, "verdict"),
        ({"confidenceScore": "0.94"}, "confidenceScore: Input should be a valid number"),
        ({"confidenceScore": True}, "confidenceScore"),
        ({"timestampOffsetMs": 1.5}, "timestampOffsetMs"),
        ({"timestampOffsetMs": "12"}, "timestampOffsetMs"),
        ({"violationType": None}, "needs violationType"),
        ({"transcript": SECRET}, "a field that the schema does not have"),
        ({SECRET: 1}, "a field that the schema does not have"),
        ({"recording_id": "rec-1"}, "a field that the schema does not have"),
        ({"correlationId": b"bytes"}, "values that are not JSON"),
        ({"confidenceScore": float("nan")}, "values that are not JSON"),
    ],
)
def test_a_refused_verdict_is_told_by_field_and_fault_and_without_its_content(
    change: dict[str, Any], says: str
) -> None:
    with pytest.raises(VerdictRefused) as refused:
        parse_verdict(FOUND | change)
    assert says in str(refused.value)
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None
    if all(not isinstance(value, bytes) for value in change.values()):
        with pytest.raises(VerdictRefused):
            parse_verdict(json.dumps(FOUND | change).encode())


@pytest.mark.parametrize("field", ["recordingId", "verdict", "recommendedAction", "correlationId"])
def test_a_verdict_that_lacks_a_field_is_refused_by_its_name(field: str) -> None:
    with pytest.raises(VerdictRefused, match=f"{field}: Field required"):
        parse_verdict({name: value for name, value in CLEAN.items() if name != field})


@given(st.binary(max_size=200))
def test_no_bytes_do_worse_than_be_refused(data: bytes) -> None:
    with pytest.raises(VerdictRefused):
        parse_verdict(data)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'"' + SECRET.encode() + b'"', b"[" * 100_000, b'{"a":' * 500])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(VerdictRefused) as refused:
        parse_verdict(data)
    assert SECRET not in str(refused.value)
