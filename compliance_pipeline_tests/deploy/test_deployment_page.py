"""docs/deployment.md says what is true."""

import re
import subprocess
from itertools import chain
from pathlib import Path

import pytest

from compliance_pipeline.audit import _signing_key
from compliance_pipeline.settings import Settings
from compliance_pipeline_tests.deploy.manifests import ROOT, key_file_names, refused, workloads

PAGE = (ROOT / "docs" / "deployment.md").read_text()


def blocks() -> list[str]:
    return re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


def test_the_keys_that_it_makes_are_those_that_the_package_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (making,) = (block for block in blocks() if "mkdir secrets" in block)
    subprocess.run(["bash", "-eu", "-c", making], cwd=tmp_path, check=True)
    folder = tmp_path / "secrets"
    assert {path.name for path in folder.iterdir()} == key_file_names()
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    for name in Settings.model_fields:
        monkeypatch.delenv(f"COMPLIANCE_{name.upper()}", raising=False)
    settings = Settings(_env_file=None, home=tmp_path)
    for name in ("webhook", "callback", "engine"):
        variable = f"{name}_secret"
        Settings.model_validate({"home": tmp_path, variable: (folder / name).read_text().strip()})
    _signing_key(settings)
    assert settings.participant_token_key == (folder / "token").read_text().strip()
    assert {path.name for path in folder.iterdir()} == key_file_names()


def test_every_secret_that_a_manifest_names_is_made_there() -> None:
    made = {
        (secret, key)
        for secret, arguments in re.findall(r"create secret generic (\S+) ((?:\\\n|[^\n])*)", PAGE)
        for key in re.findall(r"--from-literal=([\w-]+)=", arguments)
    }
    variables = chain.from_iterable(workload.container.get("env", []) for workload in workloads())
    references = [each["valueFrom"]["secretKeyRef"] for each in variables if "valueFrom" in each]
    assert {(each["name"], each["key"]) for each in references} == made
    assert "create secret generic compliance-keys --from-file=secrets/" in PAGE


def test_every_command_of_ours_exists() -> None:
    said = re.findall(r"(?:-- |exec \w+ |`)(compliance [a-z ]+)(?=`|$)", PAGE, re.MULTILINE)
    assert len(said) >= 3
    for command in said:
        assert not refused(command.split()), command


def test_every_file_that_it_names_is_there() -> None:
    named = set(re.findall(r"\b(?:deploy|docs|compliance_pipeline_tests)/[\w./-]*\w", PAGE)) - {"deploy/.env"}
    assert len(named) > 8
    # `deploy/worker` is kubectl's word for the Deployment of that name.
    there = {name for name in named if name not in ("deploy/worker", "deploy/dagster-webserver")}
    assert all((ROOT / name).exists() for name in there), [name for name in there if not (ROOT / name).exists()]
