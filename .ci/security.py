"""Unsafe code, secrets in files, and what is known of our dependencies. Says what was checked and what could not be.

Exits with 1 for a finding. What could not be checked is no finding, and is printed as NOT CHECKED.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
BASELINE = ROOT / ".secrets.baseline"
LOCK = ROOT / "requirements.lock"
PIP_AUDIT = "pip-audit==2.10.1"
SKIPPED = {
    "B101": "asserts: ruff S101 has them",
    "B105": "passwords in code: ruff S105 and the secret scan have them",
    "B106": "the same",
    "B107": "the same",
    "B311": "random: only the sandbox draws, by seed (ruff S311 is off as well)",
    "B404": "importing subprocess: each call is looked at instead",
}
_NOQA = re.compile(r"#\s*(?:noqa|nosec):?\s*([A-Z0-9, ]+)")
_PINNED = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^]]*\])?==(?P<version>[^\s;]+)(?:\s*;.*)?")


def run(*command: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - the commands are below
        [str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


def unsafe_code() -> list[str]:
    """Bandit's findings; a line whose `noqa: Snnn` says why for ruff says it for Bnnn too (they are the same rules)."""
    done = run(BIN / "bandit", "-q", "-r", "compliance_pipeline", "-f", "json", "--skip", ",".join(SKIPPED))
    found = json.loads(done.stdout)
    problems = [f"bandit could not read {error['filename']}: {error['reason']}" for error in found["errors"]]
    excused = 0
    for one in found["results"]:
        lines = (ROOT / one["filename"]).read_text().splitlines()
        reach = (lines[at - 1] for at in one["line_range"])
        if any(_rule(one["test_id"]) in codes[1] for line in reach if (codes := _NOQA.search(line))):
            excused += 1
        else:
            problems.append(f"{one['filename']}:{one['line_number']} {one['test_id']} {one['issue_text']}")
    scanned = found["metrics"]["_totals"]["loc"]
    print(f"bandit: {scanned} lines, {len(problems)} findings, {excused} excused in the code; left out:")
    for rule, why in SKIPPED.items():
        print(f"  {rule} {why}")
    return problems


def _rule(test_id: str) -> str:
    return "S" + test_id.removeprefix("B")


def secrets() -> list[str]:
    """What looks like a secret and is not in the baseline, in every file that git tracks or would."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout.split("\0")
    files = [name for name in listed if name and (ROOT / name).is_file() and ROOT / name not in (LOCK, BASELINE)]
    with tempfile.TemporaryDirectory() as folder:
        # The hook writes moved line numbers back and then fails: a copy may have them.
        baseline = shutil.copy(BASELINE, folder)
        done = run(BIN / "detect-secrets-hook", "--no-verify", "--json", "--baseline", baseline, *files)
    known = sum(map(len, json.loads(BASELINE.read_text())["results"].values()))
    print(f"detect-secrets: {len(files)} files against {known} known test values; left out: {LOCK.name} (hashes)")
    if done.returncode in (0, 3):
        return []
    try:
        results = json.loads(done.stdout)["results"]
    except (ValueError, KeyError):
        return [f"detect-secrets failed ({done.returncode}): {done.stderr.strip()[-200:]}"]
    return [f"{name}:{one['line_number']} {one['type']}" for name, found in results.items() for one in found]


def lock() -> dict[str, set[str]]:
    """The locked versions by name."""
    locked: dict[str, set[str]] = {}
    for entry in _entries():
        if pin := _PINNED.fullmatch(entry.partition(" --hash=")[0].strip()):
            locked.setdefault(_plain(pin["name"]), set()).add(pin["version"])
    return locked


def _entries() -> list[str]:
    text = re.sub(r"\s*\\\n\s*", " ", LOCK.read_text())
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def unlocked() -> list[str]:
    """Where what is installed could be something else than what was resolved."""
    locked, problems = lock(), []
    for entry in _entries():
        name = entry.partition(" --hash=")[0].strip()
        if not _PINNED.fullmatch(name):
            problems.append(f"{LOCK.name}: not a name of the index at one version: {name}")
        elif not re.search(r" --hash=sha256:[0-9a-f]{64}", entry):
            problems.append(f"{LOCK.name}: {name} has no hash")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    asked += [one for name, extra in project["project"]["optional-dependencies"].items() if name != "vendor-sdk"
              for one in extra]  # fmt: skip
    for requirement in asked:
        name = _plain(re.split(r"[\[<>=!~; ]", requirement)[0])
        if name not in locked:
            problems.append(f"{LOCK.name}: {name} of pyproject.toml is not in it: make lock")
    installed = {_plain(one.name): one.version for one in distributions()}
    differing = {
        f"{name} {version}" for name, version in installed.items() if name in locked and version not in locked[name]
    }
    problems += [f"installed in another version than locked: {one}: make install" for one in sorted(differing)]
    strangers = sorted(set(installed) - set(locked) - {"compliance-pipeline", "pip", "setuptools", "wheel", "uv"})
    print(f"lock: {len(locked)} packages, each at one version with hashes; {len(installed)} installed", end="")
    print(f", not from the lock: {', '.join(strangers)}" if strangers else "")
    return problems


def vulnerabilities() -> list[str]:
    """What pip-audit knows of the locked versions, where it can ask; it alone would pass what it could not ask for."""
    total = sum(map(len, lock().values()))
    command = ("tool", "run", PIP_AUDIT, "--requirement", LOCK, "--disable-pip", "--require-hashes", "-f", "json")
    try:
        done = run(BIN / "uv", *command, timeout=180)
        audited = json.loads(done.stdout)["dependencies"]
    except (OSError, ValueError, subprocess.TimeoutExpired):
        print(f"NOT CHECKED: known vulnerabilities of all {total} locked packages: pip-audit gave no answer")
        return []
    known = [one for one in audited if "skip_reason" not in one]
    problems = [
        f"{one['name']} {one['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for one in known
        for flaw in one["vulns"]
    ]
    print(f"pip-audit: {len(known)} of {len(audited)} packages looked up")
    if len(known) < len(audited):
        print(
            f"NOT CHECKED: known vulnerabilities of {len(audited) - len(known)} of {len(audited)} packages: the "
            "vulnerability service does not answer from here; run `make security` where it does"
        )
    return problems


def main() -> None:
    problems = [problem for check in (unsafe_code, secrets, unlocked, vulnerabilities) for problem in check()]
    for problem in problems:
        print(f"FOUND: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
