"""The contracts themselves, and that holding an exchange against them can fail."""

import json
import re
from typing import Any, get_args

import jsonschema
import pytest

from compliance_pipeline_tests.contract.conformance import (
    HERE,
    Profile,
    UnknownOperation,
    check_component,
    check_exchange,
    contract,
    template_of,
)

PROFILES: tuple[Profile, ...] = get_args(Profile)
HOLD = "/api/v2/recordings/deletionprotection"
WORK_ITEM = {"name": "PCI_MID_CAPTURE", "typeId": "t", "priority": 10_000_000}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_reference_of_a_contract_leads_somewhere(profile: Profile) -> None:
    whole = contract(profile)
    text = json.dumps(whole)
    assert '"$ref"' in text
    for section, name in re.findall(r'"#/components/(schemas|responses)/(\w+)', text):
        assert name in whole["components"][section]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_schema_of_a_contract_is_json_schema(profile: Profile) -> None:
    for schema in contract(profile)["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_what_was_read_off_the_vendors_sdk_has_its_licence_beside_it() -> None:
    licence = (HERE / "LICENSE-genesys-sdk.txt").read_text()
    assert licence.startswith("MIT License")
    assert "Genesys Cloud Services, Inc." in licence


def test_the_guides_own_file_holds_only_what_the_guide_prints() -> None:
    printed = json.loads((HERE / "guide_profile.openapi.json").read_text())
    ours = json.loads((HERE / "guide_profile.ours.openapi.json").read_text())
    operations = [
        (method, path)
        for path, item in printed["paths"].items()
        for method in item
        if method in ("get", "post", "patch")
    ]
    assert sorted(operations) == [
        ("get", "/api/v2/recordings/{recordingId}"),
        ("patch", "/api/v2/recordings/{recordingId}"),
        ("post", "/api/v1/callback/genesys"),
        ("post", "/api/v1/ingest/recording"),
        ("post", "/api/v2/analytics/datadatasets/records"),
        ("post", "/api/v2/architect/flows"),
        ("post", "/api/v2/eventsub/eventsubscriptions"),
    ]
    assert {"transcriptUri", "channels"} <= ours["components"]["schemas"]["GuideRecording"]["properties"].keys()
    assert "transcriptUri" not in json.dumps(printed)


def test_a_path_is_found_by_the_operation_with_the_fewest_templates() -> None:
    assert template_of("cloud", "/api/v2/conversations/callbacks") == "/api/v2/conversations/callbacks"
    assert template_of("cloud", "/api/v2/conversations/c-1") == "/api/v2/conversations/{conversationId}"
    assert template_of("guide", "/api/v2/recordings/c-1:r-1") == "/api/v2/recordings/{recordingId}"
    assert template_of("guide", "/api/v2/recordings/a/b") is None


@pytest.mark.parametrize(
    ("profile", "method", "path", "query", "asked", "status", "answered"),
    [
        ("cloud", "GET", "/api/v2/conversations/c/recordings", {"maxWaitMs": ["5000"]}, None, 202, None),
        ("cloud", "GET", "/api/v2/conversations/c/recordings", {"formatId": ["WAV"]}, None, 200, []),
        ("cloud", "POST", "/api/v2/taskmanagement/workitems", {}, WORK_ITEM, 201, {"id": "w", "name": None}),
        ("cloud", "GET", "/api/v2/flows", {"type": ["WORKFLOW", "BOT"], "deleted": ["false"]}, None, 200, {}),
        ("cloud", "GET", "/api/v2/flows", {}, None, 502, "<html>a gateway's</html>"),
        ("cloud", "PUT", HOLD, {"protect": ["true"]}, {"conversationIds": ["c"]}, None, None),
        ("guide", "GET", "/api/v2/recordings/r", {}, None, 200, {"id": "r", "status": "processing"}),
    ],
)
def test_an_exchange_by_the_contract_passes(
    profile: Profile, method: str, path: str, query: dict[str, list[str]], asked: Any, status: int | None, answered: Any
) -> None:
    check_exchange(profile, method, path, query, asked, status, answered)


@pytest.mark.parametrize(
    ("profile", "method", "path", "query", "asked", "status", "answered"),
    [
        ("cloud", "GET", "/api/v2/routing/queues", {"nme": ["x"]}, None, 200, {}),
        ("cloud", "GET", "/api/v2/routing/queues", {"pageSize": ["many"]}, None, 200, {}),
        ("cloud", "GET", "/api/v2/conversations/c/recordings", {"formatId": ["FLAC"]}, None, 200, []),
        ("cloud", "GET", "/api/v2/conversations/c/recordings", {}, None, 200, {"entities": []}),
        ("cloud", "GET", "/api/v2/conversations/c/recordings", {}, {"a": "body"}, 200, []),
        ("cloud", "POST", "/api/v2/taskmanagement/workitems", {}, {"name": "n"}, 201, {}),
        ("cloud", "POST", "/api/v2/taskmanagement/workitems", {}, {**WORK_ITEM, "priority": "high"}, 201, {}),
        ("cloud", "POST", "/api/v2/taskmanagement/workitems", {}, {**WORK_ITEM, "key": "k"}, None, None),
        ("cloud", "POST", "/api/v2/taskmanagement/workitems", {}, None, 201, {}),
        ("cloud", "GET", "/api/v2/routing/queues", {}, None, 404, "not JSON"),
        ("guide", "GET", "/api/v2/recordings", {}, None, 200, {"entities": [], "pageCount": 1}),
        ("guide", "PATCH", "/api/v2/recordings/r", {}, {"tags": [], "status": "x"}, 200, {"id": "r", "tags": []}),
        ("guide", "GET", "/api/v2/recordings/r", {}, None, 200, {"id": "r"}),
    ],
)
def test_an_exchange_that_is_not_by_the_contract_fails(
    profile: Profile, method: str, path: str, query: dict[str, list[str]], asked: Any, status: int | None, answered: Any
) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check_exchange(profile, method, path, query, asked, status, answered)


@pytest.mark.parametrize(
    ("profile", "method", "path", "status"),
    [
        ("cloud", "GET", "/api/v2/recordings/r", 200),
        ("cloud", "DELETE", "/api/v2/routing/queues", 200),
        ("cloud", "GET", "/api/v2/routing/queues", 302),
        ("guide", "GET", "/api/v2/conversations/c/recordings", 200),
    ],
)
def test_an_operation_or_a_status_that_nobody_published_fails(
    profile: Profile, method: str, path: str, status: int
) -> None:
    with pytest.raises(UnknownOperation):
        check_exchange(profile, method, path, {}, None, status, None)


def test_a_component_can_be_checked_by_itself() -> None:
    check_component("Annotation", {"type": "pciViolation", "location": 12500, "user": None}, "cloud")
    with pytest.raises(jsonschema.ValidationError):
        check_component("Annotation", {"location": "12.5 s"}, "cloud")
