"""`compliance keys`: what it prints, exit codes, help that teaches."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.main import get_command
from typer.testing import CliRunner

from compliance_pipeline import database
from compliance_pipeline.keys_cli import app
from compliance_pipeline.ledger import ledger_table
from compliance_pipeline.media.keys import LocalKey
from compliance_pipeline.media.vault import Vault, vault_of
from compliance_pipeline.settings import Settings

runner = CliRunner()
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
    return tmp_path


def filled(home: Path) -> Vault:
    settings = Settings(home=home)
    vault = vault_of(settings, database.connect(settings.inbox_database_url))
    for number in range(3):
        vault.put(f"rec-{number}", "clip", b"content", NOW)
    return vault


@pytest.mark.parametrize("name", ["show", "rotate"])
def test_the_help_of_a_command_has_an_example_of_it(name: str) -> None:
    assert f"compliance keys {name}" in get_command(app).commands[name].help  # type: ignore[attr-defined]
    assert name in runner.invoke(app, ["--help"]).output


def test_show_counts_keys_by_what_wraps_them_and_what_was_shredded(home: Path) -> None:
    vault = filled(home)
    vault.shred("rec-2", NOW)
    result = runner.invoke(app, ["show"])
    assert result.exit_code == 0
    lines = [line.split() for line in result.output.splitlines()]
    [kek] = vault.counts().by_kek
    assert [kek, "2"] in lines
    assert ["shredded", "1"] in lines


def test_show_of_an_empty_home_has_no_keys_and_makes_none(home: Path) -> None:
    result = runner.invoke(app, ["show"])
    assert result.exit_code == 0
    assert ["shredded", "0"] in [line.split() for line in result.output.splitlines()]
    assert not (home / "secrets").exists()


def test_rotate_says_what_it_did_and_the_ledger_has_it(home: Path) -> None:
    vault = filled(home)
    result = runner.invoke(app, ["rotate"])
    assert result.exit_code == 0
    [kek] = vault.counts().by_kek
    assert result.output == f"3 data keys are wrapped by {kek} now.\n"
    assert b"".join(vault.read("rec-0", "clip")) == b"content"
    with database.connect(f"sqlite:///{home / 'inbox.db'}").connect() as connection:
        [entry] = connection.execute(sa.select(ledger_table)).all()
    assert entry.kind == "key_rotated"
    assert kek in entry.details


def test_a_key_file_that_is_lost_is_told_and_none_is_made(home: Path) -> None:
    filled(home)
    (home / "secrets/vault_key").unlink()
    result = runner.invoke(app, ["rotate"])
    assert result.exit_code == 1
    assert "restore it from your backup" in " ".join(result.output.split())
    assert not (home / "secrets/vault_key").exists()


def test_keys_that_do_not_unwrap_are_named_and_exit_with_one(home: Path) -> None:
    filled(home)
    (home / "secrets/vault_key").unlink()
    LocalKey(home / "secrets/vault_key").make()
    result = runner.invoke(app, ["rotate"])
    assert result.exit_code == 1
    assert "rec-0, rec-1, rec-2" in " ".join(result.output.split())
    assert "2 data keys" not in result.output


def test_a_damaged_key_file_is_told_in_one_error_without_what_is_in_it(home: Path) -> None:
    filled(home)
    (home / "secrets/vault_key").write_text("c2VjcmV0")
    result = runner.invoke(app, ["rotate"])
    assert result.exit_code == 1
    assert "damaged" in result.output
    assert "c2VjcmV0" not in result.output
    assert "Traceback" not in result.output


def test_a_vault_key_that_is_none_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLIANCE_VAULT_KEY", "nonsense")
    result = runner.invoke(app, ["show"])
    assert result.exit_code == 1
    assert "aws-kms://KEY-ARN" in result.output
