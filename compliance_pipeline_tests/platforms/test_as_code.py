"""Subscription, trigger and flow as data, applied to a server on loopback that answers as the platform does."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from compliance_pipeline.platforms import as_code
from compliance_pipeline.platforms.as_code import Judgement, Part
from compliance_pipeline.platforms.port import PlatformError, Refused
from compliance_pipeline.platforms.transport import Transport
from compliance_pipeline.settings import Settings
from compliance_pipeline_tests.contract.conformance import check_component, check_request
from compliance_pipeline_tests.platforms.loopback import CLIENT, Asked, GuideServer, Reply, no, ok

EVENTS = Path(__file__).parents[1] / "contract" / "genesys_events.schema.json"


class CodeServer(GuideServer):
    """Keeps what is applied, in lists by path; a workflow is published by the PUT of its YAML."""

    def __init__(self) -> None:
        self.kept: dict[str, list[dict[str, Any]]] = {}
        self.deduplicates = True
        self.uploads: list[Asked] = []
        self.job_ends = "Success"
        super().__init__()

    def clear(self) -> None:
        self.kept.clear()
        self.deduplicates = True

    def answer(self, asked: Asked) -> Reply:
        if asked.path == "/upload":
            self.uploads.append(asked)
            return ok({})
        if asked.path.startswith(as_code.FLOW_JOBS) and asked.method == "POST":
            return ok({"id": "job-1", "presignedUrl": f"{self.url}/upload?signed=1", "headers": {"x-amz-tagging": "a"}})
        if asked.path == f"{as_code.FLOW_JOBS}/job-1":
            return self._job()
        for path in (as_code.SUBSCRIPTIONS, as_code.GUIDE_FLOWS, as_code.TRIGGERS, as_code.CLOUD_FLOWS):
            if asked.path == path or asked.path.startswith(f"{path}/"):
                return self._store(asked, path, asked.path.removeprefix(path).strip("/"))
        return super().answer(asked)

    def _job(self) -> Reply:
        if self.job_ends != "Success":
            return ok({"id": "job-1", "status": self.job_ends, "messages": [{"type": "Error", "text": "no such step"}]})
        description = next(
            line.split('"')[1] for line in self.uploads[-1].body.decode().splitlines() if "description:" in line
        )
        flow = {"id": str(uuid4()), "name": as_code.FLOW, "description": description, "publishedVersion": {"id": "1.0"}}
        kept = self.kept.setdefault(as_code.CLOUD_FLOWS, [])
        kept[:] = [{**flow, "id": kept[0]["id"]} if kept else flow]
        return ok({"id": "job-1", "status": "Success"})

    def _store(self, asked: Asked, path: str, entity_id: str) -> Reply:
        kept = self.kept.setdefault(path, [])
        if asked.method == "GET":
            return ok({"entities": [self._given_back(entity) for entity in kept]})
        body = asked.json
        if not self.deduplicates and "deduplicationWindow" in body.get("retryPolicy", {}):
            return no(400)
        if asked.method == "POST":
            kept.append({"id": str(uuid4()), "dateCreated": "2026-11-23T00:00:00Z", "version": 1, **body})
            return ok(self._given_back(kept[-1]), 201)
        entity = next(entity for entity in kept if entity["id"] == entity_id)
        if path == as_code.TRIGGERS and body["version"] != entity["version"]:
            return no(409)
        entity.update(body, version=entity["version"] + 1)
        return ok(self._given_back(entity))

    def _given_back(self, entity: dict[str, Any]) -> dict[str, Any]:
        copy: dict[str, Any] = json.loads(json.dumps(entity))
        if isinstance(copy.get("destination"), dict):
            copy["destination"].get("authentication", {}).pop("clientSecret", None)
        return copy


@pytest.fixture(scope="module")
def code_server() -> Iterator[CodeServer]:
    server = CodeServer()
    yield server
    server.stop()


@pytest.fixture
def server(code_server: CodeServer) -> CodeServer:
    code_server.clear()
    code_server.asked.clear()
    code_server.uploads.clear()
    code_server.job_ends = "Success"
    return code_server


def settings_for(profile: str = "guide", **more: Any) -> Settings:
    return Settings(
        _env_file=None,
        platform_profile=profile,
        client_id=CLIENT[0],
        client_secret=CLIENT[1],
        receiver_url="https://compliance-engine.internal",
        **more,
    )


def apply(transport: Transport, of: Settings, *include: str, because: str | None = None) -> list[Part]:
    """What was written."""
    changed = [part for part in as_code.parts(transport, of, include, because) if not part.is_as_wanted]
    for part in changed:
        part.write()
    return changed


# As data


def test_the_subscription_is_the_guides_with_no_field_that_names_a_person() -> None:
    subscription = as_code.event_subscription(settings_for())
    check_component("EventSubscription", subscription)
    assert subscription["eventData"]["include"] == [
        "recordingId",
        "mediaUri",
        "startTime",
        "endTime",
        "direction",
        "channel",
    ]
    assert subscription["destination"]["url"] == "https://compliance-engine.internal/api/v1/ingest/recording"
    assert subscription["retryPolicy"]["deduplicationWindow"] > 0


def test_the_flow_is_the_guides_but_for_our_receiver_and_our_queue() -> None:
    printed = json.loads((Path(as_code.__file__).parent / "flows" / "guide_remediation.json").read_text())
    assert as_code.guide_flow(settings_for()) == printed
    ours = as_code.guide_flow(settings_for(compliance_queue='the "red" queue'))
    check_request("post", as_code.GUIDE_FLOWS, ours)
    record = json.loads(ours["blocks"][2]["settings"]["body"])["record"]
    assert record["assignedQueue"] == 'the "red" queue'
    assert [block["id"] for block in ours["blocks"]] == ["validate_payload", "tag_recording", "create_work_item"]


@pytest.mark.parametrize(
    "field", ["participants", "email", "externalCallerId", "participants.email", "extension", "newField"]
)
def test_a_field_that_names_people_is_refused_unless_a_reason_is_given(field: str) -> None:
    with pytest.raises(Refused, match=field):
        as_code.event_subscription(settings_for(), [field])
    subscription = as_code.event_subscription(settings_for(), [field], "rules apply by queue")
    assert subscription["eventData"]["include"][-1] == field
    assert as_code.overridden_in(subscription) == ((field,), "rules apply by queue")


def test_a_field_that_names_nobody_needs_no_reason() -> None:
    subscription = as_code.event_subscription(settings_for(), ["tags", "channel"])
    assert subscription["eventData"]["include"] == [*as_code.NEEDED, "tags"]
    assert as_code.overridden_in(subscription) == ((), "")


@pytest.mark.parametrize("reason", ["", "  ", "ask jo@example.com", "call 415-555-0143", "x" * 201])
def test_a_reason_says_something_and_names_nobody(reason: str) -> None:
    with pytest.raises(Refused):
        as_code.event_subscription(settings_for(), ["participants"], reason)


def test_every_field_of_the_clouds_event_is_judged_and_none_that_names_people_is_kept() -> None:
    definition = json.loads(EVENTS.read_text())["$defs"]["CustomerEndDetailEventTopicCustomerEndEvent"]
    audits = {audit.field.name: audit for audit in as_code.audit_cloud()}
    assert audits.keys() == definition["properties"].keys()
    assert audits["dnis"].judgement is Judgement.NEEDED
    assert "the number is dropped" in audits["dnis"].field.needed_for
    for name in ("ani", "addressFrom", "addressTo", "callbackNumbers", "callbackUserName", "subject"):
        assert audits[name].field.personal
        assert audits[name].judgement is Judgement.DROPPED


def test_the_audit_tells_needed_superfluous_and_refused_fields_apart() -> None:
    judged = [
        audit.judgement for audit in as_code.audit_guide(["recordingId", "tags", "email", "participants"], ["email"])
    ]
    assert judged == [Judgement.NEEDED, Judgement.SUPERFLUOUS, Judgement.OVERRIDDEN, Judgement.REFUSED]


# Applied: the guide


def test_a_second_apply_changes_nothing(server: CodeServer, transport: Transport) -> None:
    of = settings_for()
    assert [part.present for part in apply(transport, of)] == [None, None]
    assert apply(transport, of) == []
    assert server.kept[as_code.SUBSCRIPTIONS][0]["destination"]["authentication"]["clientSecret"] == CLIENT[1]
    assert [len(kept) for kept in server.kept.values()] == [1, 1]


def test_a_rotated_secret_is_a_difference_although_the_platform_does_not_show_it(
    server: CodeServer, transport: Transport
) -> None:
    key = {"fingerprint_key": "the key of these tests"}
    before = settings_for(**key)
    apply(transport, before)
    assert apply(transport, before) == []
    rotated = settings_for(**key).model_copy(update={"client_secret": SecretStr("another-canary")})
    (changed,) = apply(transport, rotated)
    assert "client secret" in " ".join(line for line in changed.diff if line.startswith("+ "))
    assert "canary" not in " ".join(changed.diff)
    stored = server.kept[as_code.SUBSCRIPTIONS][0]
    assert stored["destination"]["authentication"]["clientSecret"] == "another-canary"
    assert apply(transport, rotated) == []


def test_nothing_is_written_by_looking(server: CodeServer, transport: Transport) -> None:
    as_code.parts(transport, settings_for())
    as_code.parts(transport, settings_for("cloud"))
    assert {asked.method for asked in server.asked if asked.path != "/oauth/token"} == {"GET"}


_drift = st.dictionaries(
    st.sampled_from(["description", "event", "eventData", "destination", "retryPolicy", "somethingNew"]),
    st.one_of(st.none(), st.text(max_size=8), st.dictionaries(st.text(max_size=4), st.integers(), max_size=2)),
    min_size=1,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drift=_drift)
def test_whatever_somebody_changed_apply_changes_back_once(
    server: CodeServer, transport: Transport, drift: dict[str, Any]
) -> None:
    server.clear()
    of = settings_for()
    apply(transport, of)
    server.kept[as_code.SUBSCRIPTIONS][0].update(drift)
    drifted = drift.keys() != {"somethingNew"}
    assert [part.name for part in apply(transport, of)] == ([as_code.SUBSCRIPTION] if drifted else [])
    assert apply(transport, of) == []
    assert len(server.kept[as_code.SUBSCRIPTIONS]) == 1


def test_no_secret_is_in_a_diff_even_where_the_platform_gives_it_back(
    server: CodeServer, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CodeServer, "_given_back", lambda self, entity: entity)
    of = settings_for()
    first = as_code.parts(transport, of)
    apply(transport, of)
    stored = server.kept[as_code.SUBSCRIPTIONS][0]
    stored["destination"]["authentication"]["clientSecret"] = "another-canary"
    stored["destination"]["headers"]["Authorization"] = "Basic canary"
    stored["description"] = "changed"
    text = json.dumps([(part.diff, part.present, part.wanted) for part in (*first, *as_code.parts(transport, of))])
    assert "canary" not in text
    assert CLIENT[1] not in text
    assert as_code.HIDDEN in text


def test_a_platform_without_deduplication_is_subscribed_to_without(server: CodeServer, transport: Transport) -> None:
    server.deduplicates = False
    of = settings_for()
    apply(transport, of)
    assert "deduplicationWindow" not in server.kept[as_code.SUBSCRIPTIONS][0]["retryPolicy"]
    assert apply(transport, of) == []
    assert "our inbox takes each recording once" in as_code.parts(transport, of)[0].note


def test_a_subscription_that_stands_twice_is_named(server: CodeServer, transport: Transport) -> None:
    apply(transport, settings_for())
    server.kept[as_code.SUBSCRIPTIONS] *= 2
    assert "there are 2 of that name" in as_code.parts(transport, settings_for())[0].note


def test_a_subscription_whose_answer_was_lost_is_not_created_twice(server: CodeServer, transport: Transport) -> None:
    def effect_without_answer(asked: Asked) -> Reply:
        server.answer(asked)
        return Reply(drop=True)

    server.plan("POST", as_code.SUBSCRIPTIONS, effect_without_answer)
    with pytest.raises(PlatformError, match="effect is unknown"):
        apply(transport, settings_for())
    assert [part.name for part in apply(transport, settings_for())] == [as_code.FLOW]
    assert len(server.kept[as_code.SUBSCRIPTIONS]) == 1


def test_another_subscription_is_left_alone(server: CodeServer, transport: Transport) -> None:
    server.kept[as_code.SUBSCRIPTIONS] = [{"id": "theirs", "name": "Theirs"}]
    apply(transport, settings_for())
    assert server.kept[as_code.SUBSCRIPTIONS][0] == {"id": "theirs", "name": "Theirs"}


def test_an_override_stands_by_the_reason_that_the_subscription_itself_gives(
    server: CodeServer, transport: Transport
) -> None:
    of = settings_for()
    apply(transport, of, "participants", because="rules apply by queue")
    assert all(part.is_as_wanted for part in as_code.present_parts(transport, of))
    assert apply(transport, of, "participants", because="rules apply by queue") == []
    assert [part.name for part in apply(transport, of)] == [as_code.SUBSCRIPTION]
    assert server.kept[as_code.SUBSCRIPTIONS][0]["eventData"]["include"] == [*as_code.NEEDED]


# Applied: the cloud


def test_the_trigger_is_one_that_the_published_api_takes() -> None:
    check_component("CreateTriggerRequest", as_code.conversation_trigger(str(uuid4())), "cloud")


def test_the_workflow_is_published_and_the_trigger_starts_it(server: CodeServer, transport: Transport) -> None:
    of = settings_for("cloud")
    assert [part.kind for part in apply(transport, of)] == ["workflow", "trigger"]
    (upload,) = server.uploads
    assert (upload.method, upload.query) == ("PUT", {"signed": "1"})
    assert "authorization" not in upload.headers
    assert upload.headers["x-amz-tagging"] == "a"
    (flow,), (trigger,) = server.kept[as_code.CLOUD_FLOWS], server.kept[as_code.TRIGGERS]
    assert trigger["target"]["id"] == flow["id"]
    assert trigger["enabled"] is True
    assert apply(transport, of) == []


def test_a_trigger_that_was_switched_off_or_narrowed_is_set_right(server: CodeServer, transport: Transport) -> None:
    of = settings_for("cloud")
    apply(transport, of)
    narrowed = [{"jsonPath": "mediaType", "operator": "Equal", "value": "CHAT"}]
    server.kept[as_code.TRIGGERS][0].update(enabled=False, matchCriteria=narrowed)
    (changed,) = apply(transport, of)
    assert '-  "enabled": false,' in changed.diff
    assert apply(transport, of) == []
    assert server.kept[as_code.TRIGGERS][0]["enabled"] is True


def test_a_workflow_of_another_version_is_published_anew(server: CodeServer, transport: Transport) -> None:
    of = settings_for("cloud")
    apply(transport, of)
    server.kept[as_code.CLOUD_FLOWS][0]["description"] = "edited by hand"
    (changed,) = apply(transport, of)
    assert changed.kind == "workflow"
    assert "edited by hand" in "\n".join(changed.diff)
    assert apply(transport, of) == []


def test_a_workflow_that_is_not_published_tells_why(server: CodeServer, transport: Transport) -> None:
    server.job_ends = "Failure"
    with pytest.raises(Refused, match="no such step"):
        apply(transport, settings_for("cloud"))
    assert as_code.TRIGGERS not in {asked.path for asked in server.asked if asked.method == "POST"}


def test_fields_cant_be_added_to_the_clouds_events(server: CodeServer, transport: Transport) -> None:
    with pytest.raises(PlatformError, match="can't be narrowed"):
        as_code.parts(transport, settings_for("cloud"), ["ani"], "because")
