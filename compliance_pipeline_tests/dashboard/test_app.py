"""The dashboard as it is started: every door has its guard."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.routing import BaseRoute, Mount, Route

from compliance_pipeline.dashboard.access import Role, role_of
from compliance_pipeline.dashboard.app import create_app
from compliance_pipeline.settings import Settings

PUBLIC = {"/healthz", "/login", "/login/callback", "/logout"}
"""Without a role, and without data."""
REVIEWERS = {("POST", "/recordings/{recording_id:path}")}


def routes(home: Path) -> list[BaseRoute]:
    return create_app(Settings(home=home)).routes


def test_every_route_says_who_may_ask(tmp_path: Path) -> None:
    asked = [route for route in routes(tmp_path) if isinstance(route, Route)]
    assert len(asked) > 15
    roles = {(method, route.path): role_of(route.endpoint) for route in asked for method in route.methods or ()}
    assert {path for (_, path), role in roles.items() if role is Role.PUBLIC} <= PUBLIC
    writes = {(method, path): role for (method, path), role in roles.items() if method not in ("GET", "HEAD")}
    assert {key for key, role in writes.items() if role is Role.REVIEWER} == REVIEWERS
    assert {path for (_, path), role in writes.items() if role < Role.REVIEWER} <= PUBLIC


def test_nothing_but_our_own_static_files_is_served_without_a_handler(tmp_path: Path) -> None:
    assert [route.path for route in routes(tmp_path) if isinstance(route, Mount)] == ["/static"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_it_does_not_start_where_others_could_look_without_signing_in(tmp_path: Path, host: str) -> None:
    variables = os.environ | {"COMPLIANCE_HOME": str(tmp_path), "COMPLIANCE_DASHBOARD_HOST": host}
    command = [str(Path(sys.executable).with_name("compliance")), "dashboard"]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "would be open to everybody" in " ".join(ended.stderr.split())
    assert "COMPLIANCE_DASHBOARD_AUTH" in ended.stderr
