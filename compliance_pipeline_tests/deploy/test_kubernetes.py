"""The manifests fit Kubernetes, each other, and the program that they start."""

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import sqlalchemy as sa
import yaml
from pydantic import BaseModel, ConfigDict
from sqlalchemy.engine import make_url
from starlette.applications import Starlette
from starlette.routing import Route

from compliance_pipeline import evidence_service
from compliance_pipeline.dashboard import app as dashboard
from compliance_pipeline.intake import receiver
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline.orchestration.launches import Lane, Launches
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse import server as warehouse
from compliance_pipeline_tests.deploy.manifests import (
    FOLDERS,
    HOME,
    IMAGE,
    KUBERNETES,
    SECRETS,
    VERSION,
    Workload,
    config_map,
    documents,
    key_file_names,
    objects,
    ours,
    refused,
    secret_settings,
    workloads,
)
from compliance_pipeline_tests.intake.conftest import postgres_uri  # noqa: F401
from compliance_pipeline_tests.intake.samples import incoming

KUBERNETES_VERSIONS = ("1.33", "1.37")
KEDA = ("ScaledObject", "TriggerAuthentication")
by_name = pytest.mark.parametrize("workload", workloads(), ids=lambda workload: str(workload.name))


def settings_of(workload: Workload, monkeypatch: pytest.MonkeyPatch, home: Path) -> Settings:
    """As the pod's process reads them. Raises ValidationError."""
    for name, value in workload.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COMPLIANCE_HOME", str(home))
    return Settings(_env_file=None)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_kubernetes_accepts_every_object(version: str) -> None:
    native = [each for each in objects() if each["kind"] not in KEDA]
    assert len(native) > 25
    for each in native:
        kubernetes_validate.validate(each, version, strict=True)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PostgresMetadata(Strict):
    """https://keda.sh/docs/2.17/scalers/postgresql/: each value is a string."""

    host: str
    port: str
    userName: str  # noqa: N815
    dbName: str  # noqa: N815
    sslmode: Literal["require", "verify-ca", "verify-full"]
    query: str
    targetQueryValue: str  # noqa: N815


class Named(Strict):
    name: str


class Trigger(Strict):
    type: Literal["postgresql"]
    name: str
    metricType: Literal["AverageValue"]  # noqa: N815
    metadata: PostgresMetadata
    authenticationRef: Named  # noqa: N815


class Fallback(Strict):
    failureThreshold: int  # noqa: N815
    replicas: int


class Scaling(Strict):
    scaleTargetRef: Named  # noqa: N815
    minReplicaCount: int  # noqa: N815
    maxReplicaCount: int  # noqa: N815
    pollingInterval: int  # noqa: N815
    cooldownPeriod: int  # noqa: N815
    fallback: Fallback
    triggers: list[Trigger]


class SecretTarget(Strict):
    parameter: Literal["password"]
    name: str
    key: str


class Authentication(Strict):
    secretTargetRef: list[SecretTarget]  # noqa: N815


def scaling() -> Scaling:
    (scaled,) = objects("ScaledObject")
    return Scaling.model_validate(scaled["spec"])


def test_keda_accepts_its_objects() -> None:
    (authentication,) = objects("TriggerAuthentication")
    Authentication.model_validate(authentication["spec"])
    assert {each["apiVersion"] for kind in KEDA for each in objects(kind)} == {"keda.sh/v1alpha1"}
    assert {trigger.authenticationRef.name for trigger in scaling().triggers} == {authentication["metadata"]["name"]}
    assert scaling().minReplicaCount < scaling().fallback.replicas < scaling().maxReplicaCount


def test_no_file_is_forgotten_and_no_name_is_given_twice() -> None:
    for folder in FOLDERS:
        listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
        assert sorted(listed) == sorted(
            path.name for path in folder.glob("*.yaml") if path.name != "kustomization.yaml"
        )
    names = [(each["kind"], each["metadata"]["name"]) for each in objects()]
    assert len(set(names)) == len(names)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl")
def test_kubectl_makes_of_them_what_these_tests_read() -> None:
    for folder in FOLDERS:
        done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True)
        made = [(each["kind"], each["metadata"]["name"]) for each in yaml.safe_load_all(done.stdout)]
        assert sorted(made) == sorted((each["kind"], each["metadata"]["name"]) for each in documents(folder))


@by_name
def test_the_command_is_one_that_the_program_knows(workload: Workload) -> None:
    assert not refused(workload.command)


@by_name
def test_every_variable_is_a_setting_and_its_value_fits(
    workload: Workload, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = {f"COMPLIANCE_{name.upper()}" for name in Settings.model_fields} | {"COMPLIANCE_WORKSPACE"}
    assert {name for name in workload.environment if name.startswith("COMPLIANCE_")} <= known
    threads = {"DAGSTER_CODE_SERVER_MAX_WORKERS", "DAGSTER_GRPC_MAX_WORKERS"}
    assert set(workload.environment) - known <= {"PGPASSWORD", "DAGSTER_PG_PASSWORD"} | threads
    settings = settings_of(workload, monkeypatch, tmp_path)
    if "PGPASSWORD" in workload.environment:
        assert settings.inbox_database_url.startswith("postgresql+psycopg://")


def test_no_secret_stands_in_a_manifest() -> None:
    assert not objects("Secret")
    assert not secret_settings() & set(config_map("compliance-settings"))
    for workload in workloads():
        literal = {each["name"] for each in workload.container.get("env", []) if "value" in each}
        assert not literal & (secret_settings() | {"PGPASSWORD", "DAGSTER_PG_PASSWORD"})
        urls = [value for value in workload.environment.values() if value.startswith("postgresql")]
        assert all(make_url(url).password is None for url in urls)


@by_name
def test_the_pod_runs_without_privilege(workload: Workload) -> None:
    pod, container = workload.spec["securityContext"], workload.container["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] == pod["runAsGroup"] == pod["fsGroup"] == 10001
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    resources = workload.container["resources"]
    assert set(resources["requests"]) == {"cpu", "memory"}
    assert "memory" in resources["limits"]


@by_name
def test_the_pod_runs_this_version(workload: Workload) -> None:
    assert workload.container["image"] == f"{IMAGE}:{VERSION}"


def test_no_pod_gets_a_key_to_the_cluster() -> None:
    accounts = {each["metadata"]["name"]: each for each in objects("ServiceAccount")}
    for workload in ours():
        assert workload.spec["automountServiceAccountToken"] is False
        assert accounts[workload.spec["serviceAccountName"]]["automountServiceAccountToken"] is False


@by_name
def test_what_is_mounted_is_declared_and_can_be_written_where_it_must(workload: Workload) -> None:
    volumes = {each["name"]: each for each in workload.spec["volumes"]} | workload.claims
    mounts = {each["mountPath"]: each for each in workload.container["volumeMounts"]}
    assert {each["name"] for each in mounts.values()} == set(volumes)
    assert "emptyDir" in volumes[mounts["/tmp"]["name"]]
    if workload.command[0] == "compliance":
        assert HOME in mounts
    if workload.command[0].startswith("dagster") or workload.name == "worker":
        assert "emptyDir" in volumes[mounts["/opt/dagster"]["name"]]
    claims = {each["metadata"]["name"] for each in objects("PersistentVolumeClaim")}
    claimed = {
        each["persistentVolumeClaim"]["claimName"] for each in volumes.values() if "persistentVolumeClaim" in each
    }
    assert claimed <= claims


def test_figures_are_published_to_where_the_dashboard_reads_them() -> None:
    def homes(name: str) -> dict[str, Any]:
        (workload,) = (each for each in workloads() if each.name == name)
        (mount,) = (each for each in workload.container["volumeMounts"] if each["mountPath"] == HOME)
        (volume,) = (each for each in workload.spec["volumes"] if each["name"] == mount["name"])
        return {"volume": volume["persistentVolumeClaim"], "written": not mount.get("readOnly", False)}

    shared = {"claimName": "compliance-home"}
    assert homes("code") == homes("worker") == {"volume": shared, "written": True}
    assert homes("dashboard") == {"volume": shared, "written": False}


# What a pod is given is what its process needs.


def served(workload: Workload, settings: Settings) -> list[Route]:
    app = {
        "receiver": receiver.create_app,
        "dashboard": dashboard.create_app,
        "evidence": evidence_service.create_app,
        "warehouse": the_warehouse,
    }[workload.name](settings)
    return [route for route in app.routes if isinstance(route, Route)]


def the_warehouse(settings: Settings) -> Starlette:
    given = settings.warehouse_secret.get_secret_value() if settings.warehouse_secret else None
    secret = warehouse.checked_secret(settings.warehouse_host, given, lambda: "")
    return warehouse.create_app(warehouse.Served(settings.warehouse_path, secret, idle_s=1.0))


PORTS = {
    "receiver": lambda settings: (settings.host, settings.receiver_port),
    "dashboard": lambda settings: (settings.dashboard_host, settings.dashboard_port),
    "evidence": lambda settings: (settings.host, settings.evidence_port),
    "warehouse": lambda settings: (settings.warehouse_host, settings.warehouse_port),
}


def http_workloads() -> list[Workload]:
    return [workload for workload in ours() if workload.ports]


@pytest.mark.parametrize("workload", http_workloads(), ids=lambda workload: str(workload.name))
def test_probes_ask_for_what_is_served_on_the_port_that_is_bound(
    workload: Workload, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = settings_of(workload, monkeypatch, tmp_path)
    host, port = PORTS[workload.name](settings)
    assert host == "0.0.0.0"
    assert workload.ports == {port}
    paths = {route.path for route in served(workload, settings)}
    probes = {name: workload.container[name]["httpGet"] for name in ("readinessProbe", "livenessProbe", "startupProbe")}
    assert all(probe["port"] == "http" and probe["path"] in paths for probe in probes.values())
    assert probes["livenessProbe"]["path"] == "/healthz"
    assert probes["readinessProbe"]["path"] == ("/readyz" if "/readyz" in paths else "/healthz")


def test_only_what_has_no_port_has_no_probe() -> None:
    assert {workload.name for workload in ours() if "livenessProbe" not in workload.container} == {"worker", "consumer"}


@pytest.mark.parametrize("workload", http_workloads(), ids=lambda workload: str(workload.name))
def test_a_process_starts_with_the_keys_that_its_pod_has_and_makes_none(
    workload: Workload, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A key made in one pod would be another than its neighbours'."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    names = sorted(key_file_names() if workload.key_files is None else workload.key_files)
    for name in names:
        (folder / name).write_text(f"whsec_{'QUFB' * 11}" if name in ("webhook", "callback", "engine") else "QUFB" * 11)
    settings = settings_of(workload, monkeypatch, tmp_path)
    served(workload, settings)
    if workload.name == "evidence":
        evidence_service.sign(settings, evidence_service.Link("r", "clips/1.flac", "k.lindt"))
    assert sorted(path.name for path in folder.iterdir()) == names


def test_pods_are_given_keys_that_the_package_reads_and_no_others() -> None:
    for workload in workloads():
        assert (workload.key_files or set()) <= key_file_names()
    assert {workload.name for workload in workloads() if workload.key_files is None} == {"worker", "code"}


def test_services_budgets_and_scalers_find_their_pods() -> None:
    pods = {workload.name: workload for workload in ours()}

    def found(selector: dict[str, str]) -> Workload:
        (workload,) = (each for each in pods.values() if selector.items() <= each.labels.items())
        return workload

    for service in objects("Service"):
        workload = found(service["spec"]["selector"])
        assert workload.name == service["metadata"]["name"]
        ports = {each["name"] for each in workload.container["ports"]}
        assert {each["targetPort"] for each in service["spec"]["ports"]} <= ports
    for controller in [*objects("Deployment"), *objects("StatefulSet")]:
        assert found(controller["spec"]["selector"]["matchLabels"]).name == controller["metadata"]["name"]
    budgets = {found(each["spec"]["selector"]["matchLabels"]).name: each for each in objects("PodDisruptionBudget")}
    assert set(budgets) == {workload.name for workload in ours() if workload.replicas > 1}
    assert all(each["spec"]["minAvailable"] < pods[name].replicas for name, each in budgets.items())
    for scaler in objects("HorizontalPodAutoscaler"):
        assert scaler["spec"]["scaleTargetRef"]["name"] in pods
        assert scaler["spec"]["minReplicas"] == pods[scaler["spec"]["scaleTargetRef"]["name"]].replicas
    services = {each["metadata"]["name"] for each in objects("Service")}
    backends = [path["backend"]["service"]["name"] for path in ingress_paths()]
    assert set(backends) == {"receiver", "dashboard", "evidence"} <= services


def ingress_paths() -> list[dict[str, Any]]:
    rules = chain.from_iterable(each["spec"]["rules"] for each in objects("Ingress"))
    return [path for rule in rules for path in rule["http"]["paths"]]


def test_only_what_others_need_can_be_reached_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (workload,) = (each for each in ours() if each.name == "receiver")
    monkeypatch.setenv("COMPLIANCE_ENGINE_URL", "https://engine.example.com")
    paths = {route.path for route in served(workload, settings_of(workload, monkeypatch, tmp_path))}
    outside = {each["path"] for each in ingress_paths() if each["backend"]["service"]["name"] == "receiver"}
    assert outside == {path for path in paths if path.startswith("/api/")}
    hosts = {rule["host"] for each in objects("Ingress") for rule in each["spec"]["rules"]}
    assert {host for each in objects("Ingress") for tls in each["spec"]["tls"] for host in tls["hosts"]} == hosts
    assert (
        f"https://{next(host for host in hosts if 'calls' in host)}"
        == config_map("compliance-settings")["COMPLIANCE_DASHBOARD_URL"]
    )
    (clips,) = (each for each in objects("Ingress") if each["metadata"]["name"] == "evidence")
    assert (
        config_map("compliance-settings")["COMPLIANCE_EVIDENCE_URL"] == f"https://{clips['spec']['rules'][0]['host']}"
    )


# Network


def selected(policy: dict[str, Any]) -> set[str]:
    selector = policy["spec"]["podSelector"]
    return {each.name for each in workloads() if matches(selector, each.labels)}


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", [])
    )


def test_nothing_is_allowed_unless_it_is_said() -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in objects("NetworkPolicy")}
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, spec in policies.items():
        for rule in [*spec.get("ingress", []), *spec.get("egress", [])]:
            assert rule.get("from") or rule.get("to"), f"{name} lets everybody in, or out to everywhere"
            assert rule["ports"]


def test_every_policy_is_of_a_pod_and_every_label_of_a_policy() -> None:
    for policy in objects("NetworkPolicy"):
        assert selected(policy), policy["metadata"]["name"]
    policies = {each["metadata"]["name"] for each in objects("NetworkPolicy")}
    said = {label.split("/")[1] for each in workloads() for label in each.labels if label.startswith("compliance/")}
    assert said <= policies


@by_name
def test_a_pod_reaches_what_its_settings_name(workload: Workload) -> None:
    says = {label.split("-")[1] for label in workload.labels if label.startswith("compliance/reaches-")}
    needs = {"postgres"} if "PGPASSWORD" in workload.environment else set()
    if "COMPLIANCE_WAREHOUSE_SECRET" in workload.environment and "COMPLIANCE_WAREHOUSE_URL" in workload.environment:
        needs.add("warehouse")
    if workload.name in ("daemon", "webserver") or "COMPLIANCE_WORKSPACE" in workload.environment:
        needs.add("code")
    if workload.name in ("worker", "code", "dashboard", "evidence", "consumer"):
        needs.add("internet")
    assert says == needs


def test_every_port_that_serves_lets_those_in_who_ask_and_no_other_port_is_open() -> None:
    opened: dict[str, set[tuple[str, str | int]]] = {}
    for policy in objects("NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            who = {label for peer in rule["from"] for where in peer.values() for label in where["matchLabels"].items()}
            ways = {(" ".join(label), port["port"]) for label in who for port in rule["ports"]}
            for name in selected(policy):
                opened.setdefault(name, set()).update(ways)
    outside = ("kubernetes.io/metadata.name ingress-nginx", "http")
    monitoring = ("kubernetes.io/metadata.name monitoring", "http")
    assert opened == {
        "receiver": {outside, monitoring},
        "dashboard": {outside},
        "evidence": {outside, monitoring},
        "warehouse": {("compliance/reaches-warehouse true", 8095), monitoring},
        "code": {("compliance/reaches-code true", 3030)},
    }


def test_the_metadata_service_and_the_inner_network_are_no_part_of_the_internet() -> None:
    (policy,) = (each for each in objects("NetworkPolicy") if each["metadata"]["name"] == "reaches-internet")
    (rule,) = policy["spec"]["egress"]
    (block,) = (each["ipBlock"] for each in rule["to"])
    assert {"169.254.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"} <= set(block["except"])


# Scaling


def test_the_scaler_asks_the_database_that_the_processes_use() -> None:
    url = make_url(config_map("compliance-settings")["COMPLIANCE_INBOX_URL"])
    for trigger in scaling().triggers:
        said = trigger.metadata
        assert (said.host, int(said.port), said.userName, said.dbName) == (
            *(url.host, url.port, url.username, url.database),
        )
    (authentication,) = objects("TriggerAuthentication")
    assert Authentication.model_validate(authentication["spec"]).secretTargetRef[0].key in SECRETS


def counted(name: str, engine: sa.Engine) -> int:
    (query,) = (each.metadata.query for each in scaling().triggers if each.name == name)
    with engine.connect() as connection:
        return int(connection.execute(sa.text(query)).scalar_one())


def test_the_depth_of_the_inbox_is_what_is_due_and_what_runs_hold(postgres_uri: str) -> None:  # noqa: F811
    now = datetime.now(UTC)
    inbox = Inbox(postgres_uri)
    inbox.create()
    inbox.store([incoming(f"rec-{number}", at=now) for number in range(6)], now)
    assert counted("inbox-depth", inbox.engine) == 6
    (work,) = inbox.pending(now)
    held = inbox.claim(work.partition_hour, "a run", now, timedelta(minutes=1), limit=4)
    assert counted("inbox-depth", inbox.engine) == 6
    assert inbox.done([held[0].recording_id], "a run", now)
    assert inbox.defer(held[1].recording_id, "a run", now + timedelta(hours=1), "not ready", now)
    assert counted("inbox-depth", inbox.engine) == 4
    inbox.close()


def test_runs_that_no_worker_has_taken_are_counted(postgres_uri: str) -> None:  # noqa: F811
    now = datetime.now(UTC)
    launches = Launches(postgres_uri)
    for run_id in ("a", "b", "c"):
        launches.put(run_id, Lane.LIVE, now)
    launches.take("a worker", now)
    launches.end("b", now)
    assert counted("runs-waiting", launches.engine) == 1
    launches.close()


def test_a_worker_has_the_time_that_it_takes_to_let_its_runs_end() -> None:
    (worker,) = (each for each in ours() if each.name == "worker")
    assert worker.spec["terminationGracePeriodSeconds"] >= 40


def test_the_warehouse_has_one_writer() -> None:
    (warehouse,) = objects("StatefulSet")
    assert warehouse["spec"]["replicas"] == 1
    assert KUBERNETES.joinpath("warehouse.yaml").read_text().count("ReadWriteOnce") == 1
    (service,) = (each for each in objects("Service") if each["metadata"]["name"] == "warehouse")
    port = service["spec"]["ports"][0]["port"]
    assert config_map("compliance-settings")["COMPLIANCE_WAREHOUSE_URL"] == f"http://warehouse:{port}"
