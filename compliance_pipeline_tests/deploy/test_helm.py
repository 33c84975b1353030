"""The values for Dagster's chart give the instance of deploy/dagster.server.yaml, and run our image.

No helm here: what the chart makes of the values is said in `rendered`, after its templates.
"""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._core.instance.ref import InstanceRef
from sqlalchemy.engine import make_url

from compliance_pipeline.orchestration.launcher import WorkerRunLauncher
from compliance_pipeline_tests.deploy.manifests import (
    DEPLOY,
    ROOT,
    SECRETS,
    config_map,
    helm_values,
    objects,
    ours,
    the_charts,
)

CHARTS_OWN = ("storage", "run_launcher", "telemetry", "compute_logs")
"""Sections that the chart makes of values of its own."""


def server() -> dict[str, Any]:
    said: dict[str, Any] = yaml.safe_load((DEPLOY / "dagster.server.yaml").read_text())
    return said


def rendered(values: dict[str, Any]) -> dict[str, Any]:
    """The chart's dagster.yaml: what is off is left out, `additionalInstanceConfig` comes as it is."""
    daemon = values["dagsterDaemon"]
    switches = [
        *(daemon[name]["enabled"] for name in ("runCoordinator", "runMonitoring", "runRetries")),
        *(daemon[name]["useThreads"] for name in ("sensors", "schedules")),
        *(values["retention"]["enabled"], bool(values["pythonLogs"])),
    ]
    assert not any(switches), "a section would stand there twice"
    postgres = values["postgresql"]
    database = {
        "username": postgres["postgresqlUsername"],
        "password": {"env": "DAGSTER_PG_PASSWORD"},
        "hostname": postgres["postgresqlHost"],
        "db_name": postgres["postgresqlDatabase"],
        "port": postgres["service"]["port"],
        "params": postgres["postgresqlParams"],
        "scheme": postgres["postgresqlScheme"],
    }
    storages = {
        "run_storage": ("dagster_postgres.run_storage", "PostgresRunStorage"),
        "event_log_storage": ("dagster_postgres.event_log", "PostgresEventLogStorage"),
        "schedule_storage": ("dagster_postgres.schedule_storage", "PostgresScheduleStorage"),
    }
    return {
        "scheduler": {"module": "dagster.core.scheduler", "class": "DagsterDaemonScheduler"},
        **{
            name: {"module": module, "class": kind, "config": {"postgres_db": database}}
            for name, (module, kind) in storages.items()
        },
        "run_launcher": values["runLauncher"]["config"]["customRunLauncher"],
        "compute_logs": {
            "module": "dagster.core.storage.noop_compute_log_manager",
            "class": values["computeLogManager"]["type"],
        },
        "telemetry": values["telemetry"],
        **values["additionalInstanceConfig"],
    }


def test_the_cluster_runs_by_the_same_instance_as_the_server() -> None:
    values = helm_values()
    same = {name: section for name, section in server().items() if name not in CHARTS_OWN}
    assert values["additionalInstanceConfig"] == same
    assert values["telemetry"] == server()["telemetry"]
    assert values["runLauncher"]["type"] == "CustomRunLauncher"
    launcher = values["runLauncher"]["config"]["customRunLauncher"]
    assert (launcher["module"], launcher["class"]) == (
        server()["run_launcher"]["module"],
        server()["run_launcher"]["class"],
    )
    assert launcher["config"] == server()["run_launcher"].get("config", {})


def test_dagster_accepts_the_instance_of_the_chart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "pw")
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(rendered(helm_values())))
    instance = InstanceRef.from_dir(str(tmp_path))
    assert isinstance(instance.run_launcher, WorkerRunLauncher)
    assert instance.run_coordinator is not None
    assert "NoOp" in type(instance.compute_log_manager).__name__


def test_dagster_and_the_pipeline_share_a_database_each_by_its_own_driver() -> None:
    postgres = helm_values()["postgresql"]
    url = make_url(config_map("compliance-settings")["COMPLIANCE_INBOX_URL"])
    assert (postgres["postgresqlHost"], postgres["service"]["port"]) == (url.host, url.port)
    assert (postgres["postgresqlUsername"], postgres["postgresqlDatabase"]) == (url.username, url.database)
    assert (url.drivername, postgres["postgresqlScheme"]) == ("postgresql+psycopg", "postgresql+psycopg2")
    assert postgres["enabled"] is False


def test_no_password_stands_in_the_values() -> None:
    values = helm_values()
    assert values["generatePostgresqlPasswordSecret"] is False
    assert values["global"]["postgresqlSecretName"] == "compliance-postgres"
    assert "postgresqlPassword" not in values["postgresql"]


def test_workers_read_the_file_that_the_chart_makes() -> None:
    (worker,) = (each for each in ours() if each.name == "worker")
    home = helm_values()["global"]["dagsterHome"]
    (mount,) = (each for each in worker.container["volumeMounts"] if each["mountPath"] == f"{home}/dagster.yaml")
    (volume,) = (each for each in worker.spec["volumes"] if each["name"] == mount["name"])
    # <release>-instance, and the page has the release called `dagster`.
    assert volume["configMap"]["name"] == "dagster-instance"
    mounts = {each["name"]: each["mountPath"] for each in worker.container["volumeMounts"]}
    (volume,) = (
        each for each in worker.spec["volumes"] if each.get("configMap", {}).get("name") == "dagster-workspace-yaml"
    )
    assert worker.environment["COMPLIANCE_WORKSPACE"] == f"{mounts[volume['name']]}/workspace.yaml"
    assert worker.environment["DAGSTER_PG_PASSWORD"] == SECRETS["postgresql-password"]


def test_all_of_the_chart_is_pinned_to_what_is_installed() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (dagster,) = (each.split("==")[1] for each in project["dependencies"] if each.startswith("dagster=="))
    assert f"helm upgrade --install dagster dagster/dagster --version {dagster} " in page
    for name in ("postgresql", "busybox"):
        assert helm_values()[name]["image"]["tag"][0].isdigit()


def test_the_code_servers_port_is_the_one_that_the_network_opens() -> None:
    (code,) = (each for each in the_charts() if each.name == "code")
    (policy,) = (each for each in objects("NetworkPolicy") if each["metadata"]["name"] == "code")
    assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} == code.ports
