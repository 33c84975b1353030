"""What is not behind the port (infrastructure as code, audits) and what the sandbox serves, held against the contract.
The port's own exchanges are held against it in `platforms/test_port.py`."""

from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args
from uuid import uuid4

import httpx
import pytest

from compliance_pipeline.platforms import as_code
from compliance_pipeline.platforms.cloud import WORTH_A_BATCH, CloudPlatform
from compliance_pipeline.platforms.guide import GuidePlatform
from compliance_pipeline.platforms.permissions import audits
from compliance_pipeline.platforms.port import Platform, PlatformError
from compliance_pipeline.platforms.transport import Transport
from compliance_pipeline.sandbox import cloud, guide
from compliance_pipeline.sandbox.calls import Kind, SyntheticRecording, make_recording
from compliance_pipeline.sandbox.faults import FaultKind, FaultPlan, PlannedFault
from compliance_pipeline.sandbox.platform import PlatformState
from compliance_pipeline.sandbox.state import NOT_IN
from compliance_pipeline.settings import Settings
from compliance_pipeline_tests.contract.conformance import Profile, template_of
from compliance_pipeline_tests.contract.recorder import conforming_sandbox
from compliance_pipeline_tests.platforms.port_suite import PortSuite

CLIENT = ("compliance-service", "client-secret-canary-5e3a")


@pytest.mark.parametrize(
    ("profile", "written"),
    [
        ("guide", {("POST", "/api/v2/eventsub/eventsubscriptions"), ("POST", "/api/v2/architect/flows")}),
        ("cloud", {("POST", "/api/v2/flows/jobs"), ("POST", "/api/v2/processautomation/triggers")}),
    ],
)
def test_infrastructure_as_code_goes_by_the_contract_and_applying_it_again_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: Profile, written: set[tuple[str, str]]
) -> None:
    monkeypatch.setattr(as_code, "JOB_POLL_S", 0.05)
    settings = Settings(home=tmp_path, platform_profile=profile, _env_file=None)
    with conforming_sandbox(PlatformState(*CLIENT, profile=profile)) as recorder:
        transport = Transport(recorder.url, *CLIENT, backoff_s=0.001)
        for part in as_code.parts(transport, settings):
            part.write()
        assert all(part.is_as_wanted for part in as_code.parts(transport, settings))
        transport.close()
    reads = {(method, path) for method, path, _ in recorder.seen if method == "GET"}
    asked = {(method, path) for method, path, _ in recorder.seen}
    assert asked - reads - {("POST", "/oauth/token")} == written


def test_what_an_earlier_version_left_is_changed_by_the_contract(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, _env_file=None)
    state = PlatformState(*CLIENT)
    with conforming_sandbox(state) as recorder:
        transport = Transport(recorder.url, *CLIENT, backoff_s=0.001)
        for part in as_code.parts(transport, settings):
            part.write()
        state.subscriptions[0]["eventData"] = {"include": ["recordingId"]}
        state.flows[0]["blocks"] = []
        for part in as_code.parts(transport, settings):
            assert not part.is_as_wanted
            part.write()
        transport.close()
    assert recorder.seen["PATCH", "/api/v2/eventsub/eventsubscriptions/{subscriptionId}", 200] == 1
    assert recorder.seen["PUT", "/api/v2/architect/flows/{flowId}", 200] == 1


def test_the_audit_log_is_asked_by_the_contract() -> None:
    with conforming_sandbox(PlatformState(*CLIENT, profile="cloud")) as recorder:
        transport = Transport(recorder.url, *CLIENT, backoff_s=0.001)
        now = datetime.now(UTC)
        audits(transport, now - timedelta(hours=1), now, sleep=lambda _: None)
        transport.close()
    assert recorder.seen["POST", "/api/v2/audits/query", 200] + recorder.seen["POST", "/api/v2/audits/query", 202] > 0


API_FAULTS = [
    kind
    for kind in FaultKind
    if not kind.startswith(("event_", "media_")) and kind not in (FaultKind.BAD_SIGNATURE, FaultKind.REPLAYED)
] + [FaultKind.MEDIA_URIS_NULL]


@pytest.mark.parametrize(
    ("kind", "profile"),
    [(kind, profile) for profile in get_args(Profile) for kind in API_FAULTS if kind not in NOT_IN[profile]],
)
def test_what_the_sandbox_answers_when_a_fault_strikes_is_by_the_contract_too(
    profile: Profile, kind: FaultKind, voice: SyntheticRecording
) -> None:
    plan = FaultPlan(faults=(PlannedFault(kind=kind, rate=1, times=2),))
    state = PlatformState(*CLIENT, profile=profile, plan=plan)
    with _told_apart(kind, profile), conforming_sandbox(state) as recorder:
        held = state.add(voice, available_at=voice.end_time, known_at=voice.start_time)
        transport = Transport(recorder.url, *CLIENT, backoff_s=0.001)
        platform = _platform(profile, transport)
        item = PortSuite.item.model_copy(update={"recording_id": held.address, "key": f"{held.address}/r/work_item"})
        if kind is FaultKind.BATCH_TROUBLE:
            more = (replace(voice, recording_id=str(uuid4())) for _ in range(WORTH_A_BATCH))
            platform.prefetch([state.add(one, known_at=voice.start_time).address for one in more])
        for ask in (
            lambda: platform.locate(held.address),
            lambda: platform.recordings_of(held.conversation_id),
            lambda: list(platform.list_available(voice.end_time - timedelta(hours=1), datetime.now(UTC))),
            lambda: platform.tag(held.address, {"compliance_status": "VIOLATION_DETECTED"}, at_ms=1),
            lambda: platform.open_work_item(item),
            lambda: platform.request_callback(PortSuite.callback),
        ):
            for _ in range(3):
                with suppress(PlatformError):
                    ask()
        transport.close()
    assert state.struck[kind] > 0


def _told_apart(kind: FaultKind, profile: Profile) -> AbstractContextManager[object]:
    """A state that no client knows is not in the published list of states: that is its point."""
    if (kind, profile) == (FaultKind.UNKNOWN_STATE, "cloud"):
        return pytest.raises(AssertionError, match="fileState")
    return nullcontext()


@pytest.mark.parametrize("profile", ["guide", "cloud"])
def test_what_the_sandbox_answers_above_its_rate_limit_is_by_the_contract_too(profile: Profile) -> None:
    state = PlatformState(*CLIENT, profile=profile, requests_per_minute=1)
    with conforming_sandbox(state) as recorder:
        bearer = {"Authorization": f"Bearer {state.issue_token()}"}
        path = "/api/v2/architect/flows" if profile == "guide" else "/api/v2/flows"
        answers = [httpx.get(f"{recorder.url}{path}", headers=bearer) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert int(answers[1].headers["Retry-After"]) > 0


def _platform(profile: Profile, transport: Transport) -> Platform:
    if profile == "guide":
        return GuidePlatform(transport)
    return CloudPlatform(transport, work_item_type="Compliance review", workbin=None, supervisor_number="+13175550199")


@pytest.fixture(scope="module")
def voice() -> SyntheticRecording:
    ended_at = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
    return make_recording(11, Kind.VOICE_NO_NOTICE, ended_at=ended_at)


@pytest.mark.parametrize(("profile", "routes"), [("guide", guide.routes()), ("cloud", cloud.routes())])
def test_the_sandbox_serves_no_path_that_the_contract_does_not_have(profile: Profile, routes: list[object]) -> None:
    paths = [path for route in routes if (path := getattr(route, "path", "")).startswith("/api/")]
    assert paths
    assert [path for path in paths if template_of(profile, path) is None] == []
