"""Wrong settings and usage: one line that says which variable, what is wrong, and what to do."""

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compliance_pipeline.cli import app


def said(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, " ".join(done.stderr.split())


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("port", ["abc", "99999"])
def test_a_bad_setting_is_named_with_its_variable(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLIANCE_RECEIVER_PORT", port)
    code, message = said("inbox")
    assert code == 1
    assert "COMPLIANCE_RECEIVER_PORT: Input should be" in message


def test_a_setting_that_is_no_json_is_named_and_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLIANCE_NOTIFY_URLS", '{"alerts": "mailto://user:hunter2')
    code, message = said("inbox")
    assert code == 1
    assert "COMPLIANCE_NOTIFY_URLS: not valid JSON" in message
    assert "hunter2" not in message


def test_a_port_that_is_taken_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("COMPLIANCE_RECEIVER_PORT", str(port))
        code, message = said("up", "--web-port", "1")
    assert code == 1
    assert f"port {port} is in use" in message
    assert "COMPLIANCE_RECEIVER_PORT" in message


@pytest.mark.parametrize("command", [("up", "--web-port", "1"), ("scan", "{folder}")])
def test_a_policy_that_can_not_be_read_stops_the_start(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = tmp_path / "pack.yaml"
    pack.write_text("rules: [")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("hello")
    monkeypatch.setenv("COMPLIANCE_POLICY", str(pack))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("COMPLIANCE_RECEIVER_PORT", str(port))
    monkeypatch.setenv("COMPLIANCE_PLATFORM_URL", "https://platform.test")
    code, message = said(*(part.format(folder=tmp_path / "mine") for part in command))
    assert code == 1
    assert "pack.yaml is not YAML" in message


def test_an_empty_folder_is_an_error_and_not_clean(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, message = said("scan", str(tmp_path / "empty"))
    assert code == 1
    assert "nothing to screen" in message


def test_a_file_name_that_looks_like_markup_is_shown_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "call [red] [x].wav").write_bytes(b"")
    done = CliRunner().invoke(app, ["scan", str(tmp_path / "mine")])
    assert done.exit_code == 4
    assert "call [red] [x].wav" in done.stdout
