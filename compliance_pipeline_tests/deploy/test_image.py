"""The container file: what it copies is there, and what it makes runs as nobody in particular."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

from compliance_pipeline_tests.deploy.manifests import DEPLOY, HOME, ROOT, helm_values

DOCKERFILE = DEPLOY / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """(name, rest) of each, continued lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line]


def of(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def final_stage() -> list[tuple[str, str]]:
    found = instructions()
    last = max(at for at, (name, _) in enumerate(found) if name == "FROM")
    return found[last:]


def ignored() -> list[str]:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_only_known_instructions_are_used_and_nothing_is_fetched_by_add() -> None:
    assert {name for name, _ in instructions()} == {"FROM", "RUN", "WORKDIR", "ARG", "COPY", "ENV", "USER", "CMD"}


def test_every_base_is_pinned_and_two_stages_have_the_same() -> None:
    bases = [rest.split()[0] for rest in of("FROM")]
    assert len(bases) == 2
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases[0])
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert bases[0].startswith(f"python:{requires.removeprefix('>=')}.")


def test_it_runs_as_the_user_that_owns_its_folders() -> None:
    stage = final_stage()
    (user,) = (rest for name, rest in stage if name == "USER")
    assert user == "10001:10001"
    (made,) = (rest for name, rest in stage if name == "RUN")
    assert f"install -d -o 10001 -g 10001 -m 0700 {HOME} /opt/dagster" in made
    assert [name for name, _ in stage].index("USER") > [name for name, _ in stage].index("RUN")


def variables() -> dict[str, str]:
    (said,) = (rest for name, rest in final_stage() if name == "ENV")
    return dict(word.split("=", 1) for word in shlex.split(said))


def test_its_folders_are_those_that_are_mounted() -> None:
    assert variables()["COMPLIANCE_HOME"] == HOME
    assert variables()["DAGSTER_HOME"] == helm_values()["global"]["dagsterHome"]
    # The root file system can't be written.
    assert variables()["PYTHONDONTWRITEBYTECODE"] == "1"


def test_the_network_runtime_keeps_no_mark_of_this_machine_and_sends_nothing(tmp_path: Path) -> None:
    """By default, onnxruntime 1.32 writes a device id and a queue of events for its maker as soon as it is imported."""
    off = {name: value for name, value in variables().items() if name.startswith("ORT_")}
    environment = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), **off}
    subprocess.run([sys.executable, "-c", "import onnxruntime"], env=environment, cwd=tmp_path, check=True)
    assert not list(tmp_path.iterdir())


def test_nothing_stands_before_the_commands_of_chart_and_manifests() -> None:
    assert "ENTRYPOINT" not in {name for name, _ in instructions()}


def test_the_final_image_has_no_sources_and_no_tools() -> None:
    copied = [rest for name, rest in final_stage() if name == "COPY"]
    assert copied == ["--from=build /opt/venv /opt/venv"]


def test_all_that_is_copied_is_there_and_all_else_is_left_out() -> None:
    sources = [word for rest in of("COPY") if "--from" not in rest for word in rest.split()[:-1]]
    assert all((ROOT / source).exists() for source in sources)
    assert ignored()[0] == "*"
    assert {line[1:] for line in ignored() if line.startswith("!")} == set(sources)


def test_no_settings_file_reaches_the_build() -> None:
    """The last line that fits decides: what is left out again must come after what is let in."""
    lines = ignored()
    assert lines.index("**/.env") > max(at for at, line in enumerate(lines) if line.startswith("!"))


def test_packages_have_the_versions_and_hashes_of_the_lock_and_the_extras_exist() -> None:
    (install,) = (rest for rest in of("RUN") if "requirements.lock" in rest)
    assert "--require-hashes --constraint requirements.lock --requirement pyproject.toml" in install
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (argument,) = of("ARG")
    wanted = shlex.split(argument)[0].removeprefix("EXTRAS=").split()
    assert {"postgres", "kms"} <= set(wanted) <= set(extras)
    said = subprocess.run(
        ["sh", "-c", "printf -- '--extra %s ' $EXTRAS"],
        env={"EXTRAS": " ".join(wanted)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.split() == [word for extra in wanted for word in ("--extra", extra)]


def test_uv_is_the_one_of_the_makefile() -> None:
    pinned = set(re.findall(r"uv==[\d.]+", (ROOT / "Makefile").read_text()))
    assert pinned == set(re.findall(r"uv==[\d.]+", DOCKERFILE.read_text()))
