"""Settings: variables, a `.env` file, and secrets that are made once and kept to their owner."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from compliance_pipeline.settings import Settings


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("COMPLIANCE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_the_defaults_need_nothing_and_lie_under_one_absolute_folder(tmp_path: Path) -> None:
    settings = Settings()
    assert settings.home == tmp_path / "var"
    assert settings.inbox_database_url == f"sqlite:///{tmp_path}/var/inbox.db"
    assert settings.warehouse_path == tmp_path / "var" / "warehouse.duckdb"
    assert not settings.home.exists(), "reading settings makes no folder"


def test_a_variable_overrides_the_env_file_which_overrides_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("COMPLIANCE_MAX_ATTEMPTS=5\nCOMPLIANCE_FETCH_WORKERS=2\nOTHER=1\n")
    monkeypatch.setenv("COMPLIANCE_FETCH_WORKERS", "9")
    settings = Settings()
    assert (settings.max_attempts, settings.fetch_workers) == (5, 9)
    assert Settings(max_attempts=3).max_attempts == 3


def test_a_home_with_a_tilde_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COMPLIANCE_HOME", "~/data")
    assert Settings().home == tmp_path / "data"


def test_another_inbox_database_is_taken_as_it_is() -> None:
    url = "postgresql+psycopg://host/inbox"
    assert Settings(inbox_url=url).inbox_database_url == url


def test_a_value_of_the_wrong_kind_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLIANCE_MAX_ATTEMPTS", "many")
    with pytest.raises(ValidationError, match="max_attempts"):
        Settings()


def test_settings_do_not_change_once_read() -> None:
    with pytest.raises(ValidationError):
        setattr(Settings(), "max_attempts", 1)  # noqa: B010


@pytest.mark.parametrize("name", ["webhook_signing_secret", "participant_token_key", "platform_client_secret"])
def test_a_secret_is_made_once_kept_for_the_owner_and_different_from_the_others(tmp_path: Path, name: str) -> None:
    made = getattr(Settings(home=tmp_path / "data"), name)
    assert getattr(Settings(home=tmp_path / "data"), name) == made
    assert getattr(Settings(home=tmp_path / "other"), name) != made
    assert len(made) >= 32
    folder = tmp_path / "data" / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = list(folder.iterdir())
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600]


def test_the_webhook_secret_has_the_form_of_standard_webhooks(tmp_path: Path) -> None:
    assert Settings(home=tmp_path).webhook_signing_secret.startswith("whsec_")


def test_a_given_secret_is_used_and_shown_and_stored_nowhere(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "data", client_secret=SecretStr("s3cret"), token_key=SecretStr("k3y"))
    assert (settings.platform_client_secret, settings.participant_token_key) == ("s3cret", "k3y")
    assert "s3cret" not in repr(settings) + str(settings) + settings.model_dump_json()
    assert not (tmp_path / "data").exists()


def test_processes_that_start_at_once_agree_on_the_secret(tmp_path: Path) -> None:
    code = "from compliance_pipeline.settings import Settings; print(Settings().webhook_signing_secret)"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"COMPLIANCE_HOME": str(tmp_path / "data")},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    secrets = {process.communicate(timeout=60)[0] for process in processes}
    assert len(secrets) == 1
    assert [path.name for path in (tmp_path / "data" / "secrets").iterdir()] == ["webhook"], "no half-made file is left"
