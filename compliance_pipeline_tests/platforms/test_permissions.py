"""Probes of permissions, and the audit log, against a scripted server on loopback."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from compliance_pipeline.platforms import permissions
from compliance_pipeline.platforms.permissions import CLOUD, GUIDE, NIL, Held, Permission, check_receiver, probe_all
from compliance_pipeline.platforms.port import PlatformError, Unavailable
from compliance_pipeline.platforms.transport import MissingPermission, Transport
from compliance_pipeline_tests.contract.conformance import check_component
from compliance_pipeline_tests.platforms.loopback import Asked, GuideServer, Reply, no, ok

API = Path(__file__).parents[1] / "contract" / "genesys_cloud_v2.openapi.json"
READ = Permission("recording:recording:view", "media", "GET", f"/api/v2/conversations/{NIL}/recordings")
LIST = Permission("architect:flow:view", "apply", "GET", "/api/v2/flows")
WRITE = Permission("workitems:workitem:add", "work items", "POST", "/api/v2/taskmanagement/workitems")
UNTIL = datetime(2026, 11, 23, 12, tzinfo=UTC)


def denied(*named: str) -> Reply:
    body = {"code": "missing.any.permissions", "status": 403, "message": f"need [{', '.join(named)}]"}
    return Reply(403, json.dumps(body).encode(), {"Content-Type": "application/json"})


def probed(server: GuideServer, transport: Transport, permission: Permission, reply: Reply) -> tuple[Held, str]:
    assert permission.path
    server.plan(permission.method, permission.path, *[reply] * 5)
    (one,) = probe_all(transport, [permission])
    return one.held, one.said


@pytest.mark.parametrize(
    ("permission", "reply", "held"),
    [
        (READ, no(404), Held.YES),
        (READ, ok([]), Held.YES),
        (READ, no(400), Held.YES),
        (READ, no(403), Held.NO),
        (READ, denied(READ.name), Held.NO),
        (READ, no(500), Held.UNKNOWN),
        (LIST, ok({"entities": []}), Held.YES),
        (LIST, no(404), Held.UNKNOWN),
        (WRITE, no(400), Held.YES),
        (WRITE, no(409), Held.YES),
        (WRITE, no(404), Held.UNKNOWN),
        (WRITE, no(405), Held.UNKNOWN),
        (WRITE, denied(), Held.NO),
    ],
)
def test_the_status_says_whether_the_permission_is_there(
    server: GuideServer, transport: Transport, permission: Permission, reply: Reply, held: Held
) -> None:
    assert probed(server, transport, permission, reply)[0] is held


@pytest.mark.parametrize(
    ("reply", "grant"),
    [
        (denied("workitems:other:add", "queues:other:add"), "queues:other:add or workitems:other:add"),
        (denied("workitems:other:add", "workitems:workitem:add"), "workitems:workitem:add"),
        (no(403), "workitems:workitem:add"),
    ],
)
def test_what_to_grant_is_what_we_need_or_what_the_platform_names(
    server: GuideServer, transport: Transport, reply: Reply, grant: str
) -> None:
    assert probed(server, transport, WRITE, reply) == (Held.NO, f"grant {grant} to the client's role")


def test_a_write_that_took_an_empty_body_is_told(server: GuideServer, transport: Transport) -> None:
    held, said = probed(server, transport, WRITE, ok({"id": "1"}))
    assert held is Held.YES
    assert "left something behind" in said


def test_without_a_token_nothing_is_said_of_permissions(server: GuideServer) -> None:
    transport = Transport(server.url, "compliance-service", "wrong", backoff_s=0.001)
    with pytest.raises(PlatformError, match="no token"):
        list(probe_all(transport, GUIDE))
    transport.close()


@pytest.mark.parametrize("wanted", [GUIDE, CLOUD])
def test_a_probe_reads_what_is_not_there_or_writes_nothing(
    server: GuideServer, transport: Transport, wanted: Sequence[Permission]
) -> None:
    list(probe_all(transport, wanted))
    asked = [one for one in server.asked if one.path != "/oauth/token"]
    assert len(asked) == sum(one.path is not None for one in wanted)
    for one in asked:
        assert one.body in ((b"",) if one.method == "GET" else (b"{}",))


def test_what_nothing_asks_for_is_left_open(server: GuideServer, transport: Transport) -> None:
    open_ones = [one for one in probe_all(transport, GUIDE) if one.permission.path is None]
    assert [one.permission.name for one in open_ones] == ["integration:webhook:read", "integration:webhook:write"]
    assert {one.held for one in open_ones} == {Held.UNKNOWN}


def test_the_guides_scopes_are_all_listed() -> None:
    scopes = ["recording", "eventsubscription", "integration:webhook", "architect:flow"]
    wanted = {f"{scope}:{right}" for scope in scopes for right in ("read", "write")}
    assert wanted <= {permission.name for permission in GUIDE}


def test_the_clouds_permissions_are_those_that_the_published_api_asks_for() -> None:
    published = {
        (method.upper(), re.sub(r"{\w+}", NIL, path)): operation["x-genesys-permissions"]["permissions"]
        for path, operations in json.loads(API.read_text())["paths"].items()
        for method, operation in operations.items()
        if isinstance(operation, dict) and "x-genesys-permissions" in operation
    }
    not_asked = {
        "architect:job:create": ("POST", "/api/v2/flows/jobs"),
        "recording:annotation:view": ("GET", f"/api/v2/conversations/{NIL}/recordings/{NIL}/annotations"),
    }
    assert {one.name for one in CLOUD if one.path is None} == not_asked.keys()
    for permission in CLOUD:
        asked = not_asked.get(permission.name) or (permission.method, (permission.path or "").partition("?")[0])
        assert permission.name in published[asked]


@pytest.mark.parametrize(
    ("receiver", "platform", "holds"),
    [
        ("https://hooks.example.org", "https://api.mypurecloud.com", True),
        ("http://hooks.example.org", "https://api.mypurecloud.com", False),
        ("https://127.0.0.1:8080", "https://api.mypurecloud.com", False),
        ("http://localhost:8080", "https://api.mypurecloud.com", False),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8090", True),
    ],
)
def test_a_receiver_must_look_reachable_from_the_platform(receiver: str, platform: str, holds: bool) -> None:
    found = check_receiver(receiver, platform)
    assert found.holds is holds
    assert bool(found.fix) is not holds


# The audit log


class AuditServer(GuideServer):
    """Two services know something, one refuses to be asked, and everything takes a second look."""

    def __init__(self) -> None:
        self.looks: dict[str, int] = {}
        super().__init__()

    def answer(self, asked: Asked) -> Reply:
        if not asked.path.startswith(permissions.AUDITS):
            return super().answer(asked)
        if asked.method == "POST":
            check_component("AuditQueryRequest", asked.json, "cloud")
            service = asked.json["serviceName"]
            return no(400) if service == "Triggers" else ok({"id": service, "state": "Queued"}, 202)
        service = asked.path.removeprefix(f"{permissions.AUDITS}/").split("/")[0]
        if asked.path.endswith("/results"):
            return ok(self._page(service, asked.query.get("cursor")))
        self.looks[service] = self.looks.get(service, 0) + 1
        return ok({"id": service, "state": "Succeeded" if self.looks[service] > 1 else "Running"})

    def _page(self, service: str, cursor: str | None) -> dict[str, Any]:
        if service != "Quality":
            return {"entities": None}
        if cursor is None:
            return {"entities": [self._entry(1, "Download")], "cursor": "next"}
        return {"entities": [self._entry(2, "ApplyProtection")]}

    @staticmethod
    def _entry(hours: int, action: str) -> dict[str, Any]:
        return {
            "eventDate": (UNTIL - timedelta(hours=hours)).isoformat(),
            "entityType": "Recording",
            "entity": {"id": f"rec-{hours}", "name": "canary name"},
            "action": action,
            "status": "SUCCESS",
            "user": {"id": f"user-{hours}", "name": "Jo Canary"},
            "remoteIp": ["192.0.2.1"],
        }


def test_the_audit_log_is_read_to_its_end_without_names_or_addresses(server: GuideServer) -> None:
    audited = AuditServer()
    transport = Transport(audited.url, "compliance-service", "client-secret-canary-5e3a", backoff_s=0.001)
    notes: list[str] = []
    slept: list[float] = []
    found = permissions.audits(transport, UNTIL - timedelta(days=1), UNTIL, notes.append, slept.append)
    transport.close()
    audited.stop()
    assert [(entry.entity, entry.action, entry.who) for entry in found] == [
        ("Recording rec-1", "Download", "user user-1"),
        ("Recording rec-2", "ApplyProtection", "user user-2"),
    ]
    assert "anary" not in repr(found)
    assert "192.0.2.1" not in repr(found)
    assert len(notes) == 1
    assert notes[0].startswith("Triggers not included")
    assert slept


def test_a_failed_audit_query_says_so(server: GuideServer, transport: Transport) -> None:
    server.plan("POST", permissions.AUDITS, ok({"id": "q", "state": "Queued"}))
    server.plan("GET", f"{permissions.AUDITS}/q", ok({"id": "q", "state": "Failed"}))
    with pytest.raises(Unavailable, match="the audit query failed"):
        permissions.audits(transport, UNTIL - timedelta(days=1), UNTIL, sleep=lambda _: None)


def test_who_may_not_read_the_audit_log_is_told_at_once(server: GuideServer, transport: Transport) -> None:
    server.plan("POST", permissions.AUDITS, denied("audits:audit:view"))
    with pytest.raises(MissingPermission, match="audits:audit:view"):
        permissions.audits(transport, UNTIL - timedelta(days=1), UNTIL, sleep=lambda _: None)
