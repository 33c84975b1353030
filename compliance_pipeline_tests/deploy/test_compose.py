"""The compose file: strict as the Compose specification is, and fit for the program."""

import re
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from compliance_pipeline.dashboard.access import refuse_open
from compliance_pipeline.settings import Settings
from compliance_pipeline_tests.deploy.manifests import DEPLOY, HOME, IMAGE, VERSION, refused, secret_settings

FILE = DEPLOY / "compose.yaml"


class Strict(BaseModel):
    """What our file uses of https://github.com/compose-spec/compose-spec, and nothing else."""

    model_config = ConfigDict(extra="forbid")


class Health(Strict):
    test: list[str]
    interval: str
    timeout: str
    retries: int
    start_period: str


class Build(Strict):
    context: str
    dockerfile: str


class Dependency(Strict):
    condition: Literal["service_started", "service_healthy"]


class Mounted(Strict):
    source: str
    target: str


class Replicas(Strict):
    replicas: int


class Service(Strict):
    image: str
    build: Build | None = None
    command: list[str] | None = None
    user: str | None = None
    read_only: bool = False
    init: bool = False
    cap_drop: list[str]
    cap_add: list[str] = []
    security_opt: list[str]
    tmpfs: list[str] = []
    env_file: str | None = None
    environment: dict[str, str]
    volumes: list[str]
    configs: list[Mounted] = []
    networks: list[str]
    ports: list[str] = []
    profiles: list[str] = []
    depends_on: dict[str, Dependency] = {}
    restart: Literal["unless-stopped"]
    stop_grace_period: str
    healthcheck: Health | None = None
    deploy: Replicas | None = None


class Config(Strict):
    file: str


class Network(Strict):
    internal: bool = False


class Compose(BaseModel):
    """Keys that begin with x- are the author's."""

    model_config = ConfigDict(extra="allow")

    name: str
    services: dict[str, Service]
    configs: dict[str, Config]
    volumes: dict[str, dict[str, Any]]
    networks: dict[str, Network] = Field(min_length=1)


def compose() -> Compose:
    return Compose.model_validate(yaml.safe_load(FILE.read_text()))


def ours() -> dict[str, Service]:
    return {name: service for name, service in compose().services.items() if service.build}


def env_example() -> dict[str, str]:
    lines = (DEPLOY / "env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


by_name = pytest.mark.parametrize("name", sorted(ours()))


def test_the_file_has_no_key_that_is_not_known() -> None:
    extra = compose().model_extra or {}
    assert all(key.startswith("x-") for key in extra)


def test_what_is_named_is_declared() -> None:
    file = compose()
    for service in file.services.values():
        assert set(service.networks) <= set(file.networks)
        assert {volume.split(":")[0] for volume in service.volumes} <= set(file.volumes)
        assert {mounted.source for mounted in service.configs} <= set(file.configs)
        assert set(service.depends_on) <= set(file.services)
        for name, dependency in service.depends_on.items():
            assert dependency.condition != "service_healthy" or file.services[name].healthcheck
    for config in file.configs.values():
        # Compose refuses inline content for services whose root file system can't be written.
        assert (DEPLOY / config.file).is_file()


@by_name
def test_the_command_is_one_that_the_program_knows(name: str) -> None:
    command = ours()[name].command
    assert command
    assert not refused([re.sub(r"\$\{(\w+):-\}", r"\1", word) for word in command])


@by_name
def test_the_service_runs_without_privilege(name: str) -> None:
    service = ours()[name]
    assert service.user == "10001:10001"
    assert service.read_only
    assert service.cap_drop == ["ALL"]
    assert not service.cap_add
    assert service.security_opt == ["no-new-privileges:true"]
    assert "/tmp" in service.tmpfs
    assert service.image == f"{IMAGE}:{VERSION}"


def test_every_image_is_pinned() -> None:
    assert all(re.fullmatch(r"[\w./-]+:\d[\w.-]+", service.image) for service in compose().services.values())


def test_ports_are_open_to_this_machine_alone_and_the_database_to_none() -> None:
    file = compose()
    published = [port for service in file.services.values() for port in service.ports]
    assert published
    assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in published)
    assert file.services["postgres"].networks == ["data"]
    assert file.networks["data"].internal
    assert not file.services["postgres"].ports


def test_every_variable_is_a_setting_and_no_secret_is_given_in_the_file() -> None:
    known = {f"COMPLIANCE_{name.upper()}" for name in Settings.model_fields}
    for name, service in ours().items():
        threads = {"DAGSTER_CODE_SERVER_MAX_WORKERS", "DAGSTER_GRPC_MAX_WORKERS"} if name == "code" else set()
        expected = {"DAGSTER_POSTGRES_URL", "PGPASSWORD", "COMPLIANCE_WORKSPACE"} | threads
        assert set(service.environment) - known == expected
        assert service.environment["PGPASSWORD"].startswith("${POSTGRES_PASSWORD:?")
        given = {name: service.environment[name] for name in set(service.environment) & secret_settings()}
        assert given == {"COMPLIANCE_WAREHOUSE_SECRET": "${COMPLIANCE_WAREHOUSE_SECRET:?set it in deploy/.env}"}
    assert set(env_example()) - known == {"POSTGRES_PASSWORD"}
    assert {name for name, value in env_example().items() if not value} >= secret_settings() & set(env_example())


def test_the_example_of_settings_is_one_by_which_it_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (env_example() | ours()["dashboard"].environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
    settings = Settings(_env_file=None)
    refuse_open(settings)
    assert settings.inbox_database_url == "postgresql+psycopg://compliance@postgres/compliance"


@by_name
def test_all_share_one_home_and_read_one_instance(name: str) -> None:
    service = ours()[name]
    assert service.volumes == [f"home:{HOME}"]
    assert service.environment["COMPLIANCE_HOME"] == HOME
    assert {"source": "dagster", "target": "/opt/dagster/dagster.yaml"} in [
        each.model_dump() for each in service.configs
    ]
    assert compose().configs["dagster"].file == "./dagster.server.yaml"
    # Where `compliance backfill` looks.
    mounted = {each.target: each.source for each in service.configs}
    assert mounted[service.environment["COMPLIANCE_WORKSPACE"]] == "workspace"
    assert service.environment["DAGSTER_POSTGRES_URL"].startswith("postgresql+psycopg2://")


@pytest.mark.parametrize("name", ["receiver", "dashboard", "evidence", "webserver"])
def test_health_is_asked_on_the_port_that_is_published(name: str) -> None:
    service = ours()[name]
    assert service.healthcheck
    (asked,) = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)'", service.healthcheck.test[-1])
    assert service.ports == [f"127.0.0.1:{asked[0]}:{asked[0]}"]
    assert asked[1] == {"receiver": "/readyz", "webserver": "/server_info"}.get(name, "/healthz")
    compile(service.healthcheck.test[-1], name, "exec")


@pytest.mark.parametrize("name", ["code", "daemon"])
def test_health_checks_of_dagster_are_commands_of_dagster(name: str) -> None:
    check = ours()[name].healthcheck
    assert check
    assert not refused(check.test[1:])


def test_the_workspace_names_the_code_server() -> None:
    content = (DEPLOY / compose().configs["workspace"].file).read_text()
    (server,) = (each["grpc_server"] for each in yaml.safe_load(content)["load_from"])
    command = ours()[server["host"]].command
    assert command
    assert str(server["port"]) in command


def test_events_are_taken_in_whatever_the_warehouse_does() -> None:
    for name in ("receiver", "consumer"):
        assert set(ours()[name].depends_on) == {"postgres"}
    assert "warehouse" in ours()["dashboard"].depends_on
