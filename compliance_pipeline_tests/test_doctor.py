"""The doctor over real homes with real damage: each finding says what is wrong, where, and what to do."""

import json
import socket
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import typer
import yaml
from typer.testing import CliRunner

from compliance_pipeline import database
from compliance_pipeline.audit import seal
from compliance_pipeline.breaker import breaker_table, circuit_breaker
from compliance_pipeline.doctor import Finding, check
from compliance_pipeline.doctor_cli import doctor
from compliance_pipeline.intake.dead_messages import DeadMessages, Unread, sealing_secret
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline.intake.receiver import create_app
from compliance_pipeline.ledger import Entry, record
from compliance_pipeline.media.vault import vault_of
from compliance_pipeline.screening.policy import DEFAULT_PACK
from compliance_pipeline.settings import Settings
from compliance_pipeline.stack import free_port
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.intake.samples import incoming
from compliance_pipeline_tests.intake.test_receiver import Running
from compliance_pipeline_tests.platforms.loopback import Server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Of an installation that has worked: an event, a clip, a warehouse, and all its keys."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    settings = settings_of(folder)
    inbox = Inbox(settings.inbox_database_url)
    inbox.create()
    inbox.store([incoming()], now())
    vault_of(settings, inbox.engine).put("rec-1", "clip", b"sound", now())
    inbox.close()
    with Warehouse(settings.warehouse_path).write():
        pass
    assert settings.participant_token_key
    assert settings.fingerprint_secret
    return folder


@pytest.fixture
def platform() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def now() -> datetime:
    return datetime.now(UTC)


def settings_of(folder: Path, **changes: Any) -> Settings:
    ports = {"receiver_port": free_port(), "evidence_port": free_port()}
    away = {"platform_url": f"http://127.0.0.1:{free_port()}"}
    return Settings(_env_file=None, home=folder, **(ports | away | changes))


def wrong(settings: Settings, at: datetime | None = None) -> list[Finding]:
    findings = check(settings, at or now())
    assert all(finding.fix for finding in findings if finding.state != "ok"), "each says what to do"
    return [finding for finding in findings if finding.state == "bad"]


def test_nothing_is_bad_in_a_home_that_works_or_is_new(home: Path, tmp_path: Path) -> None:
    assert wrong(settings_of(home)) == []
    assert wrong(settings_of(tmp_path / "new")) == []
    assert not (tmp_path / "new").exists(), "looking makes nothing"


def test_a_key_that_others_can_read_is_found_with_the_command_that_mends_it(home: Path) -> None:
    (home / "secrets" / "token").chmod(0o644)
    [found] = wrong(settings_of(home))
    assert found.fix == f"chmod 600 '{home}/secrets/token'"


def test_a_vault_that_others_can_write_is_found_where_the_vault_really_lies(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    settings = settings_of(home, vault_url=folder.as_uri())
    engine = database.connect(settings.inbox_database_url)
    vault_of(settings, engine).put("rec-2", "clip", b"sound", now())
    engine.dispose()
    folder.chmod(0o777)
    [found] = wrong(settings)
    assert found.fix == f"chmod 700 '{folder}'"


@pytest.mark.parametrize("damage", ["head", "middle"])
def test_a_damaged_database_is_found(home: Path, damage: str) -> None:
    path = home / "inbox.db"
    content = bytearray(path.read_bytes())
    at = 0 if damage == "head" else 4096
    content[at : at + 2048] = b"\xa5" * 2048
    path.write_bytes(content)
    assert any(f.name == "database" and "is damaged" in f.what for f in wrong(settings_of(home)))


def test_a_database_without_a_write_ahead_log_is_found(home: Path) -> None:
    with sqlite3.connect(home / "inbox.db", isolation_level=None) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    [found] = wrong(settings_of(home))
    assert found.what.endswith("(journal mode delete)")


@pytest.mark.parametrize(
    ("file", "state"), [("token", "warn"), ("fingerprint", "warn"), ("dead_messages", "warn"), ("ledger", "bad")]
)
def test_a_lost_key_is_found_and_not_made_anew(home: Path, file: str, state: str) -> None:
    settings, key = settings_of(home), home / "secrets" / file
    assert [f for f in check(settings, now()) if str(key) in f.what] == [], "one that was never used is not missed"
    engine = database.connect(settings.inbox_database_url)
    DeadMessages(engine, sealing_secret(settings)).store([Unread(b"?", "not JSON")], "queue", now())
    record(engine, [Entry("1", "play", "me")], now())
    seal(engine, settings, now())
    engine.dispose()
    key.unlink()
    assert [f.state for f in check(settings, now()) if str(key) in f.what] == [state]
    assert not key.exists()


@pytest.mark.parametrize("file", ["token", "ledger", "links", "dead_messages"])
def test_an_empty_key_is_bad(home: Path, file: str) -> None:
    path = home / "secrets" / file
    path.touch(mode=0o600)
    path.write_text("")
    [found] = wrong(settings_of(home))
    assert f"{file} is empty" in found.what


def test_a_vault_key_that_does_not_open_the_newest_data_key_is_found(home: Path, tmp_path: Path) -> None:
    key = home / "secrets" / "vault_key"
    key.rename(tmp_path / "kept")
    [found] = wrong(settings_of(home))
    assert found.name == "vault key"
    assert not key.exists()
    other = settings_of(tmp_path / "other")
    engine = database.connect(other.inbox_database_url)
    vault_of(other, engine).put("rec-1", "clip", b"sound", now())
    engine.dispose()
    key.write_bytes((tmp_path / "other" / "secrets" / "vault_key").read_bytes())
    key.chmod(0o600)
    [found] = wrong(settings_of(home))
    assert found.name == "vault key"


def test_a_broken_warehouse_and_a_refused_policy_are_found(home: Path, tmp_path: Path) -> None:
    (home / "warehouse.duckdb").write_bytes(b"no database")
    pack = tmp_path / "pack.yaml"
    pack.write_text("rules: [")
    assert {f.name for f in wrong(settings_of(home, policy=pack))} == {"warehouse", "policy"}


def test_a_port_of_ours_is_told_from_one_that_another_program_has(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        receiver = Running(create_app(settings_of(home)))
        try:
            settings = settings_of(home, receiver_port=receiver.port, evidence_port=taken)
            [found] = wrong(settings)
            assert f"{taken} (evidence_port)" in found.what
            assert any(f.what.endswith("is ours") for f in check(settings, now()))
        finally:
            receiver.stop()


def test_a_clock_that_is_wrong_is_found_by_the_platforms_and_by_what_was_stored(home: Path, platform: Server) -> None:
    settings = settings_of(home, platform_url=platform.url)
    assert wrong(settings) == []
    late, early = (wrong(settings, now() + timedelta(hours=by)) for by in (1, -1))
    assert [f.name for f in late] == ["clock"]
    assert [f.name for f in early] == ["clock", "clock"]


def test_a_platform_that_is_away_or_would_be_asked_in_the_clear_is_found(home: Path) -> None:
    secret = {"client_secret": "s3cret"}
    [away] = wrong(settings_of(home, platform_url=f"https://127.0.0.2:{free_port()}", **secret))
    [clear] = wrong(settings_of(home, platform_url="http://platform.example", **secret))
    assert (away.name, clear.name) == ("platform", "platform")
    assert "in the clear" in clear.what


def test_a_breaker_is_named_while_somebody_asks_behind_it(home: Path) -> None:
    settings = settings_of(home)
    engine = database.connect(settings.inbox_database_url)
    for name in ("engine", "media:elsewhere.test"):
        circuit_breaker(engine, name).open()
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE breaker SET opened_at = opened_at - {86_400 * 10**6} WHERE name <> 'engine'"
        )
    engine.dispose()
    [found] = [f for f in check(settings, now()) if f.name == "breakers"]
    assert (found.state, found.what) == ("warn", "engine fails and is left alone for now")


def test_looking_at_breakers_makes_no_table(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    engine = database.connect(settings.inbox_database_url)
    breaker_table.create(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(breaker_table).values(name="engine", state="open", opened_at=now()))
    assert [f.state for f in check(settings, now()) if f.name == "breakers"] == ["warn"]
    assert sa.inspect(engine).get_table_names() == ["breaker"]
    engine.dispose()


def test_a_channel_of_the_pack_without_an_address_is_found(home: Path, tmp_path: Path) -> None:
    pack = yaml.safe_load(DEFAULT_PACK.read_text())
    pack["rules"][0]["actions"] += [{"notify": {"to": "oncall"}}]
    path = tmp_path / "pack.yaml"
    path.write_text(yaml.safe_dump(pack))
    [found] = wrong(settings_of(home, policy=path))
    assert "channel oncall" in found.what
    assert wrong(settings_of(home, policy=path, notify_urls={"oncall": "json://127.0.0.1"})) == []


def test_no_proxy_is_asked(home: Path, platform: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, nobody)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    findings = check(settings_of(home, platform_url=platform.url), now())
    assert [f.state for f in findings if f.name == "platform"] == ["ok"]


def test_the_command_exits_with_1_for_what_is_bad_and_prints_no_secret(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = typer.Typer()
    app.command()(doctor)
    monkeypatch.chdir(home)
    monkeypatch.setenv("COMPLIANCE_HOME", str(home))
    monkeypatch.setenv("COMPLIANCE_CLIENT_SECRET", "secret-canary-91c4")
    monkeypatch.setenv("COMPLIANCE_RECEIVER_PORT", str(free_port()))
    monkeypatch.setenv("COMPLIANCE_EVIDENCE_PORT", str(free_port()))
    assert CliRunner().invoke(app, []).exit_code == 0
    (home / "secrets" / "token").chmod(0o644)
    (home / "inbox.db").write_bytes(b"no database")
    told, machine = CliRunner().invoke(app, []), CliRunner().invoke(app, ["--json"])
    assert (told.exit_code, machine.exit_code) == (1, 1)
    assert {"name", "state", "what", "fix"} == set(json.loads(machine.stdout)[0])
    kept = [path.read_text() for path in (home / "secrets").iterdir() if path.is_file()]
    for secret in ("secret-canary-91c4", *kept):
        assert secret not in told.output + machine.output
