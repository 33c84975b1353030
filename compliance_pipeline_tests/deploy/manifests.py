"""What lies in deploy/, read for the tests."""

import inspect
import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
import click.testing
import pytest
import typer.testing
import yaml
from pydantic import SecretStr

from compliance_pipeline.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
FOLDERS = (KUBERNETES, KUBERNETES / "queue")
HOME = "/var/lib/compliance"
IMAGE = "registry.example.com/compliance-pipeline"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

SECRETS = {
    "postgresql-password": "pw",
    "warehouse-secret": "w" * 64,
    "client-secret": "c",
    "oidc-client-secret": "o",
    "notify-urls": "{}",
}
"""A value for each key of the secrets `compliance-postgres` and `compliance-secrets`."""


@cache
def documents(folder: Path) -> list[dict[str, Any]]:
    """All objects of a kustomization."""
    named = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    return [each for name in named for each in yaml.safe_load_all((folder / name).read_text())]


def objects(kind: str = "") -> list[dict[str, Any]]:
    """Of all kustomizations, those of the kind."""
    return [each for folder in FOLDERS for each in documents(folder) if kind in ("", each["kind"])]


@cache
def helm_values() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((DEPLOY / "helm" / "dagster-values.yaml").read_text())
    return values


@dataclass(frozen=True)
class Workload:
    """A pod with one container, whoever makes it. labels: the pod's. spec: the pod's. replicas: at least so many."""

    name: str
    labels: dict[str, str]
    spec: dict[str, Any]
    replicas: int = 1
    claims: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def container(self) -> dict[str, Any]:
        (container,) = self.spec["containers"]
        found: dict[str, Any] = container
        return found

    @property
    def command(self) -> list[str]:
        """As it is called, with the variables in it put in."""
        environment = self.environment
        return [
            re.sub(r"\$\((\w+)\)", lambda name: environment[name[1]], word) for word in self.container.get("args", [])
        ]

    @property
    def environment(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in self.container.get("envFrom", []):
            found |= config_map(source["configMapRef"]["name"])
        for variable in self.container.get("env", []):
            found[variable["name"]] = (
                variable["value"] if "value" in variable else SECRETS[variable["valueFrom"]["secretKeyRef"]["key"]]
            )
        return found

    @property
    def ports(self) -> set[int]:
        return {port["containerPort"] for port in self.container.get("ports", [])}

    @property
    def key_files(self) -> set[str] | None:
        """Names under <home>/secrets; None: all."""
        for volume in self.spec.get("volumes", []):
            if volume.get("secret", {}).get("secretName") == "compliance-keys":
                items = volume["secret"].get("items")
                return None if items is None else {item["path"] for item in items}
        return set()


def config_map(name: str) -> dict[str, str]:
    (data,) = (each["data"] for each in objects("ConfigMap") if each["metadata"]["name"] == name)
    assert all(isinstance(value, str) for value in data.values())
    found: dict[str, str] = data
    return found


def ours() -> list[Workload]:
    """Those of the manifests."""
    return [
        Workload(
            each["metadata"]["name"],
            each["spec"]["template"]["metadata"]["labels"],
            each["spec"]["template"]["spec"],
            each["spec"].get("replicas") or least_replicas(each["metadata"]["name"]),
            {claim["metadata"]["name"]: claim for claim in each["spec"].get("volumeClaimTemplates", [])},
        )
        for each in [*objects("Deployment"), *objects("StatefulSet")]
    ]


def least_replicas(name: str) -> int:
    (least,) = (
        each["spec"]["minReplicaCount"]
        for each in objects("ScaledObject")
        if each["spec"]["scaleTargetRef"]["name"] == name
    )
    return int(least)


def the_charts() -> list[Workload]:
    """Those that Dagster's chart makes of our values, as far as these say."""
    values = helm_values()
    (code,) = values["dagster-user-deployments"]["deployments"]
    commands = {
        "daemon": ["dagster-daemon", "run", "-w", "/dagster-workspace/workspace.yaml"],
        "webserver": [
            *("dagster-webserver", "-h", "0.0.0.0", "-p", str(values["dagsterWebserver"]["service"]["port"])),
            *("-w", "/dagster-workspace/workspace.yaml"),
        ],
        "code": ["dagster", "code-server", "start", "-h", "0.0.0.0", "-p", str(code["port"]), *code["codeServerArgs"]],
    }
    parts = {"daemon": values["dagsterDaemon"], "webserver": values["dagsterWebserver"], "code": code}
    chart_labels = {"daemon": "dagster-daemon", "webserver": "dagster-webserver", "code": "user-deployments"}
    ports = {"webserver": values["dagsterWebserver"]["service"]["port"], "code": code["port"]}
    return [
        Workload(
            name,
            {"app.kubernetes.io/name": "dagster", "component": chart_labels[name], **part["labels"]},
            {
                "securityContext": part["podSecurityContext"],
                "volumes": part["volumes"],
                "containers": [
                    {
                        "image": f"{part['image']['repository']}:{part['image']['tag']}",
                        "args": commands[name],
                        "envFrom": [{"configMapRef": source} for source in part["envConfigMaps"]],
                        "env": part["env"],
                        "ports": [{"containerPort": ports[name]}] if name in ports else [],
                        "resources": part["resources"],
                        "securityContext": part["securityContext"],
                        "volumeMounts": part["volumeMounts"],
                    }
                ],
            },
        )
        for name, part in parts.items()
    ]


def workloads() -> list[Workload]:
    return [*ours(), *the_charts()]


def secret_settings() -> set[str]:
    """Variables that must not stand in a file."""
    return {
        f"COMPLIANCE_{name.upper()}"
        for name, setting in Settings.model_fields.items()
        if SecretStr.__name__ in str(setting.annotation) or "Secret[" in str(setting.annotation)
    }


def key_file_names() -> set[str]:
    """What the package reads from <home>/secrets besides the vault's own key and what a variable gives."""
    named: set[str] = {"dead_messages"}
    for path in (ROOT / "compliance_pipeline").rglob("*.py"):
        named |= set(re.findall(r'_secret\([\w.]+, "(\w+)"', path.read_text()))
    return named - {"client", "warehouse"}


def refused(words: list[str]) -> str:
    """What the program says against this command line; empty if it knows the command and all its options."""
    # Asked for help at the end it parses, does nothing, and looks at no file.
    line = [*words[1:], "--help"]
    if words[0] == "compliance":
        from compliance_pipeline.cli import app

        skip_unless_wired(words[1])
        said = typer.testing.CliRunner().invoke(app, line)
        return "" if said.exit_code == 0 else said.output
    (script,) = (each for each in entry_points(group="console_scripts") if each.name == words[0])
    answer = click.testing.CliRunner().invoke(_command(script.load()), line)
    return "" if answer.exit_code == 0 else answer.output


def skip_unless_wired(name: str) -> None:
    """A command that has a module of its own, which cli.py does not know yet."""
    package = ROOT / "compliance_pipeline"
    if (package / f"{name}_cli.py").exists() and f"{name}_cli" not in (package / "cli.py").read_text():
        pytest.skip(f"cli.py does not have `compliance {name}` yet")


def _command(main: Any) -> click.Command:
    """Dagster's entry points are functions that call a command of their modules."""
    if isinstance(main, click.Command):
        return main
    made = getattr(inspect.getmodule(main), "cli", None)
    assert isinstance(made, click.Command)
    return made
