"""`compliance platform` against the sandbox: what it prints, what it leaves behind, how it exits."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.platform_cli import app
from compliance_pipeline.platforms import as_code, permissions
from compliance_pipeline.platforms.permissions import CLOUD
from compliance_pipeline.sandbox.cloud_state import cloud_state
from compliance_pipeline.sandbox.platform import PlatformState, serve
from compliance_pipeline.sandbox.samples import REDACTIONS

SECRET = "client-secret-canary-77"


@pytest.fixture(params=["guide", "cloud"])
def sandbox(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlatformState]:
    state = PlatformState("compliance-service", SECRET, profile=request.param)
    with serve(state) as url:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("COMPLIANCE_CLIENT_SECRET", SECRET)
        monkeypatch.setenv("COMPLIANCE_PLATFORM_URL", url)
        monkeypatch.setenv("COMPLIANCE_PLATFORM_PROFILE", request.param)
        monkeypatch.setenv("COMPLIANCE_SUPERVISOR_NUMBER", "+14155550199")
        monkeypatch.setenv("COMPLIANCE_REQUESTS_PER_MINUTE", "6000")
        monkeypatch.setattr(as_code, "JOB_POLL_S", 0.01)
        monkeypatch.setattr(permissions, "AUDIT_POLL_S", 0.01)
        yield state


only_guide = pytest.mark.parametrize("sandbox", ["guide"], indirect=True)
only_cloud = pytest.mark.parametrize("sandbox", ["cloud"], indirect=True)


def said(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    text = done.stdout + done.stderr
    assert SECRET not in text
    return done.exit_code, text


def flat(text: str) -> str:
    return " ".join(text.split())


def test_check_says_what_to_fix_until_it_is_applied(sandbox: PlatformState) -> None:
    code, text = said("check")
    assert code == 1
    assert "1. run `compliance platform apply` for" in flat(text)
    assert said("apply", "--yes")[0] == 0
    code, text = said("check")
    assert code == 0
    assert "The platform is set up for the pipeline." in text
    assert max(len(line) for line in text.splitlines()) <= 100


@only_cloud
def test_the_permissions_that_check_lists_are_enough_for_every_command(sandbox: PlatformState) -> None:
    cloud_state(sandbox).permissions = {permission.name for permission in CLOUD}
    assert said("apply", "--yes")[0] == 0
    assert said("check")[0] == 0
    assert "0 not read" in said("redaction-check")[1]
    sample = next(iter(sandbox.held.values()))
    assert said("hold", sample.address)[0] == 0
    assert cloud_state(sandbox).protected == {sample.conversation_id}
    assert said("hold", "--release", sample.address)[0] == 0
    assert cloud_state(sandbox).protected == set()


@only_cloud
def test_check_names_every_permission_that_is_missing(sandbox: PlatformState) -> None:
    cloud_state(sandbox).permissions = set()
    code, text = said("check")
    assert code == 1
    for permission in CLOUD:
        if permission.path and not permission.optional:
            assert f"grant {permission.name} to the client's role" in flat(text)


def test_apply_shows_first_and_writes_once(sandbox: PlatformState) -> None:
    code, text = said("apply", "--dry-run")
    assert code == 0
    assert "+++ ComplianceViolationRemediation as code" in text
    assert "2 changes; nothing was written" in text
    assert said("apply", "--yes")[0] == 0
    code, text = said("apply", "--yes")
    assert (code, text.splitlines()[-1]) == (0, "Nothing to change.")


def test_apply_writes_nothing_where_nobody_can_be_asked(sandbox: PlatformState) -> None:
    code, text = said("apply")
    assert code == 2
    assert "repeat with --yes" in flat(text)
    assert "2 changes" in said("apply", "--dry-run")[1]


@only_guide
def test_personal_data_is_refused_then_kept_with_its_reason(sandbox: PlatformState) -> None:
    code, text = said("apply", "--yes", "--include", "participants")
    assert code == 1
    assert "participants carries everyone's extension" in flat(text)
    assert sandbox.subscriptions == []
    assert said("apply", "--yes", "--include", "participants", "--because", "rules by queue")[0] == 0
    assert "because: rules by queue" in sandbox.subscriptions[0]["description"]
    code, text = said("audit-fields")
    assert code == 0
    assert "allowed, with a reason" in text
    assert said("check")[0] == 0


@only_guide
def test_the_audit_names_a_subscription_that_carries_people(sandbox: PlatformState) -> None:
    assert said("audit-fields")[0] == 0
    said("apply", "--yes")
    sandbox.subscriptions[0]["eventData"]["include"].append("participants")
    code, text = said("audit-fields")
    assert code == 3
    assert re.search(r"participants +yes: .*refuse", text)


@only_cloud
def test_the_audit_says_what_the_consumer_drops(sandbox: PlatformState) -> None:
    code, text = said("audit-fields")
    assert code == 0
    assert re.search(r"\nani +yes: .*dropped on arrival *\n", text)


def test_redaction_check_tells_channels_that_leak_from_those_that_dont(sandbox: PlatformState) -> None:
    code, text = said("redaction-check")
    assert code == 3
    assert "Leaking: voice (transcript), chat (text), email (text)." in flat(text)
    sandbox.redaction = {channel: frozenset(REDACTIONS) for channel in Channel}
    code, text = said("redaction-check")
    assert code == 0
    assert "12 redacted, 0 leaked, 0 not read." in text
    sandbox.redaction[Channel.EMAIL] = frozenset(REDACTIONS) - {"phone"}
    code, text = said("redaction-check")
    assert code == 3
    assert re.search(r"email +text +phone number +leak", text)
    assert "Leaking: email (text)." in flat(text)
    assert "4111 1111" not in text


@only_guide
def test_redaction_check_of_a_recording_that_is_not_there_says_so(sandbox: PlatformState) -> None:
    code, text = said("redaction-check", "--recording", "chat=nowhere")
    assert code == 4
    assert "does not know the recording" in flat(text)


def test_redaction_check_of_a_real_organisation_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
    monkeypatch.setenv("COMPLIANCE_PLATFORM_URL", "https://api.mypurecloud.invalid")
    code, text = said("redaction-check")
    assert code == 0
    assert "4111 1111 1111 1111" in flat(text)
    assert "--recording chat=" in text


@pytest.mark.parametrize("named", ["chat", "fax=1", "=1", "chat="])
def test_a_sample_is_named_by_channel_and_id(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
    code, text = said("redaction-check", "--recording", named)
    assert code == 2
    assert "CHANNEL=ID" in text


@only_guide
def test_what_the_guide_has_not_is_said_plainly(sandbox: PlatformState) -> None:
    code, text = said("hold", "some-recording")
    assert code == 1
    assert "no legal hold" in flat(text)
    code, text = said("audits")
    assert code == 1
    assert "the guide prints no request for audit logs" in flat(text)


@only_cloud
def test_a_hold_is_set_and_lifted(sandbox: PlatformState) -> None:
    said("redaction-check")
    sample = next(iter(sandbox.held.values())).address
    code, text = said("hold", sample)
    assert (code, flat(text)) == (0, f"✓ {sample} is kept from deletion")
    code, text = said("hold", "--release", sample)
    assert (code, flat(text)) == (0, f"✓ {sample} may be deleted again")


@only_cloud
def test_the_audit_log_tells_what_apply_did(sandbox: PlatformState) -> None:
    said("apply", "--yes")
    code, text = said("audits", "--since", "2")
    assert code == 0
    assert re.search(r"Trigger [0-9a-f-]{36} +Create", text)
    assert "in the last 2 hours." in text


def test_a_wrong_secret_is_told_in_a_line(sandbox: PlatformState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLIANCE_CLIENT_SECRET", "wrong")
    for command in (["check"], ["apply", "--yes"], ["hold", "a"]):
        code, text = said(*command)
        if command == ["hold", "a"] and sandbox.profile == "guide":
            continue  # refused before anything is asked
        assert code == 1
        assert "COMPLIANCE_CLIENT_SECRET" in text


@pytest.mark.parametrize("command", ["check", "apply", "audit-fields", "redaction-check", "hold", "audits"])
def test_every_help_shows_an_example(command: str) -> None:
    code, text = said(command, "--help")
    assert code == 0
    assert f"compliance platform {command}" in text
