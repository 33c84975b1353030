import json
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from compliance_pipeline import database
from compliance_pipeline.audit_cli import app
from compliance_pipeline.ledger import Entry, record
from compliance_pipeline.warehouse.tables import EvidenceRow
from compliance_pipeline.warehouse.warehouse import Warehouse

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`compliance audit`, with three entries in the ledger."""
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    engine = database.connect(f"sqlite:///{tmp_path / 'inbox.db'}")
    entries = [
        Entry("a", "event_received", "guide", "rec-1", "msg-1", details={"event": "recording.available"}),
        Entry("b", "verdict", "pipeline", "rec-1", "msg-1", "0123456789abcdef", {"verdict": "NO_VIOLATION"}),
        Entry("c", "verdict", "pipeline", "rec-2"),
    ]
    record(engine, entries, NOON)
    engine.dispose()
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_verify_says_how_many_entries_hold_and_what_is_sealed(run: Run) -> None:
    result = run("verify")
    assert result.exit_code == 0
    assert result.output.startswith("3 entries, unbroken, head ")
    assert "not sealed yet" in result.output
    assert run("seal").output == "sealed up to 3\n"
    assert "sealed up to 3 (" in run("verify").output


def test_verify_checks_a_copy_of_the_seals_as_well(run: Run, tmp_path: Path) -> None:
    run("seal")
    copy, seals = tmp_path / "copy.jsonl", tmp_path / "ledger-seals.jsonl"
    copy.write_bytes(seals.read_bytes())
    assert run("verify", "--seals", str(copy)).exit_code == 0
    connection = sqlite3.connect(tmp_path / "inbox.db")
    for table in ("ledger", "ledger_seals"):
        connection.execute(f"DROP TRIGGER {table}_no_delete")
    connection.execute("DELETE FROM ledger WHERE seq > 2")
    connection.execute("DELETE FROM ledger_seals")
    connection.commit()
    connection.close()
    seals.unlink()
    result = run("verify")
    assert (result.exit_code, "were they removed?" in result.output) == (1, True)
    result = run("verify", "--seals", str(copy))
    assert (result.exit_code, "entry 3: missing" in result.output) == (1, True)
    assert run("verify", "--seals", "nowhere").exit_code == 2


def test_verify_of_a_changed_ledger_exits_with_1_and_says_where(run: Run, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "inbox.db")
    connection.execute("DROP TRIGGER ledger_no_update")
    connection.execute("UPDATE ledger SET actor = 'nobody' WHERE seq = 2")
    connection.commit()
    connection.close()
    result = run("verify")
    assert result.exit_code == 1
    assert "BROKEN" in result.output
    assert "entry 2: it was changed" in result.output
    result = run("seal")
    assert result.exit_code == 1
    assert "not sealed" in result.output


def test_show_prints_the_chain_of_custody_of_one_recording(run: Run) -> None:
    shown = run("show", "rec-1").output
    for part in ("event received", "2026-03-01 12:00:00", "guide", "01234567", "verdict: NO_VIOLATION"):
        assert part in shown
    rows = json.loads(run("show", "rec-1", "--json").output)
    assert [row["seq"] for row in rows] == [1, 2]
    assert rows[1]["details"] == {"verdict": "NO_VIOLATION"}
    for unknown in ("rec-9", "rec \udcff"):
        refused = run("show", unknown)
        assert (refused.exit_code, type(refused.exception)) == (1, SystemExit)


def test_export_makes_a_bundle_that_check_bundle_accepts_and_is_entered(run: Run, tmp_path: Path) -> None:
    result = run("export", "rec-1", "--for", "A. Auditor")
    assert result.exit_code == 0
    assert "rec-1.zip: 0 clips, 3 ledger entries" in result.output
    checked = run("check-bundle", "rec-1.zip")
    assert checked.exit_code == 0
    assert "recording rec-1: sound, 3 ledger entries" in checked.output
    assert "A. Auditor" in run("show", "rec-1").output
    content = bytearray((tmp_path / "rec-1.zip").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "rec-1.zip").write_bytes(content)
    assert run("check-bundle", "rec-1.zip").exit_code == 1
    assert run("export", "rec-9").exit_code == 1
    for name in ("card 4111111111111111", "A. \udcff"):
        refused = run("export", "rec-1", "--for", name)
        assert (refused.exit_code, type(refused.exception)) == (1, SystemExit)
        assert "4111" not in refused.output
    (tmp_path / "secrets" / "ledger").unlink()
    refused = run("export", "rec-1")
    assert (refused.exit_code, "is gone" in refused.output) == (1, True)


def test_a_database_that_can_not_be_read_is_said_in_words(run: Run, tmp_path: Path) -> None:
    for left in tmp_path.glob("inbox.db*"):
        left.unlink()
    (tmp_path / "inbox.db").write_bytes(b"nonsense" * 1000)
    assert "stop everything and restore your backup" in told(run("verify"))


def told(result: Result) -> str:
    """What was said of an error that has words."""
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    return " ".join(result.output.split())


@pytest.mark.parametrize("content", [b"nonsense", b"c2hvcnQ=", b"\xff\xfe"], ids=["no base64", "no key", "no text"])
def test_a_damaged_key_of_the_seals_is_a_fault_and_nothing_is_sealed_or_handed_out(
    run: Run, tmp_path: Path, content: bytes
) -> None:
    run("seal")
    (tmp_path / "secrets" / "ledger").write_bytes(content)
    for arguments in (("verify",), ("seal",), ("export", "rec-1")):
        assert "secrets/ledger, is damaged: restore it from your backup" in told(run(*arguments))
    assert not (tmp_path / "rec-1.zip").exists()


def test_what_can_not_be_written_is_told_with_its_path(run: Run, tmp_path: Path) -> None:
    said = told(run("export", "rec-1", "--out", "no/such/folder.zip"))
    assert "no/such/.folder.zip" in said
    assert "can't be read or written: No such file or directory" in said
    (tmp_path / "ledger-seals.jsonl").symlink_to("no/such/folder/seals")
    assert "ledger-seals.jsonl can't be read or written" in told(run("seal"))


def test_an_export_with_a_vault_key_that_is_none_is_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour = NOON.replace(minute=0)
    Warehouse(tmp_path / "warehouse.duckdb").append(
        [EvidenceRow("rec-1", "e1", 0, hour, "verified", None, "evidence/0.flac", 1, 2, "00", NOON, "run-1")]
    )
    monkeypatch.setenv("COMPLIANCE_VAULT_KEY", "nonsense")
    assert "aws-kms://KEY-ARN" in told(run("export", "rec-1"))
    assert not (tmp_path / "rec-1.zip").exists()
