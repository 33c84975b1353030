"""`compliance evidence`: a link on the command line plays what the served app has, as two real processes."""

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from compliance_pipeline import database
from compliance_pipeline.evidence_cli import app
from compliance_pipeline.ledger import ledger_table
from compliance_pipeline.media.vault import vault_of
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.tables import EvidenceRow
from compliance_pipeline.warehouse.warehouse import Warehouse

runner = CliRunner()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """rec-1 has verified clips of findings 0 and 2, a refused one of 1; the port is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
    monkeypatch.setenv("COMPLIANCE_EVIDENCE_PORT", str(port))
    monkeypatch.setenv("LOGNAME", "ada")
    settings = Settings(_env_file=None)
    engine = database.connect(settings.inbox_database_url)
    vault = vault_of(settings, engine)
    now = datetime.now(UTC)
    rows = []
    for number, status in ((0, "verified"), (1, "refused"), (2, "verified")):
        content = f"clip {number}".encode()
        vault.put("rec-1", f"evidence/{number}.flac", content, now)
        digest = hashlib.sha256(content).hexdigest()
        rows.append(
            EvidenceRow("rec-1", "e1", number, now, status, None, f"evidence/{number}.flac", 1, 2, digest, now, "run-1")
        )
    Warehouse(settings.warehouse_path).append(rows)
    yield tmp_path
    vault.close()
    engine.dispose()


def asked(*arguments: str) -> Any:
    return runner.invoke(app, ["link", *arguments])


def test_the_link_that_is_printed_plays_and_the_ledger_says_for_whom(home: Path) -> None:
    links = [asked("rec-1").stdout.strip(), asked("rec-1", "--finding", "2", "--for", "D. Ansah").stdout.strip()]
    log = home / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", "from compliance_pipeline.evidence_cli import app; app()", "serve"],
            env=os.environ.copy(),
            stdout=output,
            stderr=output,
        )
        try:
            _wait_for(links[0])
            assert [httpx.get(link).content for link in links] == [b"clip 0", b"clip 2"]
        finally:
            process.terminate()
            process.wait(15)
    said = log.read_text()
    assert "played" in said
    assert not any(link.rpartition("/")[2] in said for link in links), "who reads the log could play"
    engine = database.connect(Settings(_env_file=None).inbox_database_url)
    with engine.connect() as connection:
        plays = connection.execute(sa.select(ledger_table.c.actor).where(ledger_table.c.kind == "play")).scalars()
        assert list(plays) == ["ada", "D. Ansah"]
    engine.dispose()


def _wait_for(link: str) -> None:
    url = link.partition("/evidence/")[0] + "/healthz"
    for _ in range(300):
        try:
            httpx.get(url)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the service did not start")


def test_only_the_link_is_on_standard_output(home: Path) -> None:
    shown = asked("rec-1")
    assert shown.exit_code == 0
    assert len(shown.stdout.splitlines()) == 1
    assert shown.stdout.startswith("http://127.0.0.1:")
    assert "works for 300 s; other clips: --finding 2" in " ".join(shown.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("rec-1", "--finding", "1"), "there are clips of findings 0, 2"),
        (("rec-2",), "it has no verified clip"),
    ],
)
def test_what_has_no_verified_clip_has_no_link(home: Path, arguments: tuple[str, ...], said: str) -> None:
    shown = asked(*arguments)
    assert shown.exit_code == 1
    assert said in " ".join(shown.output.split())
    assert not shown.stdout


def test_a_name_that_is_none_is_refused(home: Path) -> None:
    assert asked("rec-1", "--for", "").exit_code == 2


@pytest.mark.parametrize("name", ["4111 1111 1111 1111", "card 4111111111111111", "A. \udcff"])
def test_a_name_that_the_ledger_may_not_keep_has_no_link(home: Path, name: str) -> None:
    shown = asked("rec-1", "--for", name)
    assert (shown.exit_code, type(shown.exception)) == (2, SystemExit)
    assert not shown.stdout
    assert "4111" not in shown.stderr


def test_a_damaged_warehouse_is_told_in_a_line(home: Path) -> None:
    (home / "warehouse.duckdb").write_bytes(b"no warehouse" * 1_000)
    shown = asked("rec-1")
    assert (shown.exit_code, type(shown.exception)) == (1, SystemExit)
    assert "warehouse.duckdb is damaged" in " ".join(shown.stderr.split())


def test_the_helps_have_examples() -> None:
    for name in ("link", "serve"):
        assert f"compliance evidence {name}" in runner.invoke(app, [name, "--help"]).output
