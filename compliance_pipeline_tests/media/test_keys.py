"""Key-encryption keys and their rotation: a key file, and AWS KMS as moto's server on loopback."""

import json
import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from compliance_pipeline import database
from compliance_pipeline.ledger import ledger_table
from compliance_pipeline.media import vault as vault_module
from compliance_pipeline.media.keys import KMS, LOCAL, AwsKms, KeyUnavailable, LocalKey, keys_of
from compliance_pipeline.media.vault import Vault, VaultError, data_keys, vault_of
from compliance_pipeline.settings import Settings

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(days=90)
KEY = b"data key"


@pytest.fixture
def local(tmp_path: Path) -> LocalKey:
    key = LocalKey(tmp_path / "secrets" / "vault_key")
    key.make()
    return key


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = database.connect(f"sqlite:///{tmp_path / 'inbox.db'}")
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def kms_port() -> Iterator[int]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def kms(kms_port: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two keys, as they are set."""
    import boto3

    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL_KMS": f"http://127.0.0.1:{kms_port}",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("kms", region_name="eu-west-1")
    return [KMS + client.create_key()["KeyMetadata"]["Arn"] for _ in range(2)]


def filled(home: Path, engine: sa.Engine, count: int = 5, key: str | None = None) -> Vault:
    vault = vault_of(Settings(home=home, vault_key=key), engine)
    for number in range(count):
        vault.put(f"rec-{number}", "clip", f"clip {number}".encode(), NOW)
    return vault


def assert_all_read(vault: Vault, count: int = 5) -> None:
    for number in range(count):
        assert b"".join(vault.read(f"rec-{number}", "clip")) == f"clip {number}".encode()


def entries(engine: sa.Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(sa.select(ledger_table).order_by(ledger_table.c.seq)))


def rows(engine: sa.Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(sa.select(data_keys).order_by(data_keys.c.recording_id)))


def blobs(home: Path) -> dict[Path, tuple[bytes, int]]:
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (home / "vault").rglob("*") if path.is_file()
    }


def test_a_key_file_is_made_for_its_owner_only(local: LocalKey) -> None:
    wrapped, kek = local.wrap(KEY, "rec-1")
    assert local.unwrap(wrapped, "rec-1") == KEY
    assert (kek, kek.startswith(LOCAL)) == (local.kek, True)
    assert KEY not in wrapped
    assert stat.S_IMODE(local.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(local.path.parent.stat().st_mode) == 0o700
    assert [path.name for path in local.path.parent.iterdir()] == ["vault_key"]


def test_processes_that_come_first_at_once_agree_on_one_key_file(local: LocalKey) -> None:
    local.remove()
    code = (
        "import sys; from pathlib import Path; from compliance_pipeline.media.keys import LocalKey; "
        "import tink.aead; print('ready', flush=True); sys.stdin.readline(); key = LocalKey(Path(sys.argv[1])); "
        "key.make(); print(key.kek)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(local.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    said = {process.communicate("go\n", timeout=60)[0].strip() for process in processes}
    assert said == {local.kek}


def test_a_key_does_not_unwrap_for_another_recording_or_changed(local: LocalKey) -> None:
    wrapped, _ = local.wrap(KEY, "rec-1")
    for harmed, recording_id in (
        (wrapped, "rec-2"),
        (wrapped[:-1] + bytes([wrapped[-1] ^ 1]), "rec-1"),
        (b"", "rec-1"),
    ):
        with pytest.raises(KeyUnavailable, match=f"{recording_id}.*backup"):
            local.unwrap(harmed, recording_id)


def test_a_lost_key_file_is_said_and_never_made_anew_and_its_backup_opens_all(
    tmp_path: Path, engine: sa.Engine
) -> None:
    vault = filled(tmp_path, engine)
    key_file, kept = tmp_path / "secrets/vault_key", tmp_path / "kept"
    key_file.rename(kept)
    for use in (
        lambda: vault.read("rec-0", "clip"),
        lambda: vault.put("rec-0", "clip", b"new", NOW),
        lambda: vault.put("rec-9", "clip", b"new", NOW),
        lambda: vault.rotate(LATER, "me"),
    ):
        with pytest.raises(KeyUnavailable, match=r"not there.*backup"):
            use()
    assert not key_file.exists()
    kept.rename(key_file)
    assert_all_read(vault)
    assert vault.rotate(LATER, "me").left == ()


def test_a_key_file_is_made_where_all_data_keys_were_shredded_or_are_kms_s(
    kms: list[str], tmp_path: Path, engine: sa.Engine
) -> None:
    vault = filled(tmp_path, engine, 1)
    vault.shred("rec-0", NOW)
    vault_of(Settings(home=tmp_path, vault_key=kms[0]), engine).put("rec-1", "clip", b"clip 1", NOW)
    (tmp_path / "secrets/vault_key").unlink()
    vault.put("rec-2", "clip", b"clip 2", NOW)
    assert b"".join(vault.read("rec-2", "clip")) == b"clip 2"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"primaryKeyId": 1, "key": []}',
        '{"primaryKeyId": 1, "key": [{"keyId": 1}]}',
        "4111111111111111",
    ],
)
def test_a_damaged_key_file_is_said_and_never_quoted_or_replaced(local: LocalKey, text: str) -> None:
    wrapped, _ = local.wrap(KEY, "rec-1")
    local.path.write_text(text)
    for use in (lambda: local.unwrap(wrapped, "rec-1"), lambda: local.wrap(KEY, "rec-1")):
        with pytest.raises(KeyUnavailable, match="damaged") as raised:
            use()
        assert "4111" not in str(raised.value)
    assert local.path.read_text() == text


@pytest.mark.parametrize("said", ["arn:aws:kms:eu-west-1:1:key/x", "aws-kms://", "gcp-kms://x", "aws-kms://nonsense"])
def test_a_vault_key_that_is_none_is_refused(tmp_path: Path, said: str) -> None:
    with pytest.raises(KeyUnavailable, match="aws-kms://KEY-ARN"):
        keys_of(Settings(home=tmp_path, vault_key=said))


def test_kms_wraps_and_binds_to_the_recording(kms: list[str]) -> None:
    key = AwsKms(kms[0])
    wrapped, kek = key.wrap(KEY, "rec-1")
    assert (key.unwrap(wrapped, "rec-1"), kek) == (KEY, kms[0])
    with pytest.raises(KeyUnavailable, match=r"rec-2.*InvalidCiphertext"):
        key.unwrap(wrapped, "rec-2")


def test_kms_that_refuses_or_is_down_is_said_with_what_to_check(
    kms: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyUnavailable, match=r"rec-1.*NotFoundException.*kms:Encrypt"):
        AwsKms(kms[0][:-4] + "0000").wrap(KEY, "rec-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(KeyUnavailable, match=r"rec-1.*EndpointConnectionError"):
        AwsKms(kms[0]).wrap(KEY, "rec-1")


def test_a_vault_under_kms_makes_no_key_file(kms: list[str], tmp_path: Path, engine: sa.Engine) -> None:
    vault = filled(tmp_path, engine, key=kms[0])
    assert_all_read(vault)
    assert vault.counts().by_kek == {kms[0]: 5}
    assert not (tmp_path / "secrets").exists()


def test_rotation_wraps_all_anew_touches_no_blob_and_forgets_the_old_key(tmp_path: Path, engine: sa.Engine) -> None:
    vault = filled(tmp_path, engine)
    vault.shred("rec-4", NOW)
    before, stored, old = rows(engine), blobs(tmp_path), (tmp_path / "secrets/vault_key").read_text()
    rotation = vault.rotate(LATER, "me")
    assert (rotation.rewrapped, rotation.left) == (4, ())
    after = rows(engine)
    for row, was in zip(after[:4], before[:4], strict=True):
        assert row.wrapped != was.wrapped
        assert (row.kek, row.made_at, row.wrapped_at) == (rotation.kek, NOW, LATER)
    assert after[4] == before[4]
    assert blobs(tmp_path) == stored
    assert_all_read(vault, 4)
    keyset = json.loads((tmp_path / "secrets/vault_key").read_text())
    assert [key["keyId"] for key in keyset["key"]] == [keyset["primaryKeyId"]]
    assert keyset["key"][0]["keyId"] != json.loads(old)["primaryKeyId"]
    assert stat.S_IMODE((tmp_path / "secrets/vault_key").stat().st_mode) == 0o600
    (tmp_path / "secrets/vault_key").write_text(old)
    with pytest.raises(VaultError, match="rec-0"):
        vault.read("rec-0", "clip")


KILLED = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from compliance_pipeline import database
from compliance_pipeline.media import keys, vault as v
from compliance_pipeline.settings import Settings
settings = Settings(home=Path(sys.argv[1]))
vault = v.vault_of(settings, database.connect(settings.inbox_database_url))
v.REWRAPPED_AT_ONCE = 2
where, at, calls = sys.argv[2], int(sys.argv[3]), []
def killing(target, name):
    kept = getattr(target, name)
    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return kept(*args, **kwargs)
    setattr(target, name, killed)
killing(os if where == "fsync" else keys.LocalKey, where)
vault.rotate(datetime(2026, 5, 1, tzinfo=UTC), "me")
"""


@pytest.mark.parametrize(("where", "at"), [("fsync", 1), ("fsync", 2), ("wrap", 4), ("drop_old", 1)])
def test_a_rotation_that_is_killed_loses_nothing_and_the_next_carries_on(
    tmp_path: Path, engine: sa.Engine, where: str, at: int
) -> None:
    vault = filled(tmp_path, engine)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), where, str(at)], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    if where == "drop_old":
        [entry] = entries(engine)
        assert (entry.kind, entry.actor) == ("key_rotated", "me")
        assert '"left":0,"rewrapped":5' in entry.details
    assert_all_read(vault)
    vault.put("rec-5", "clip", b"clip 5", NOW)
    rotation = vault.rotate(LATER, "me")
    assert rotation.left == ()
    assert_all_read(vault, 6)
    assert vault.counts().by_kek == {rotation.kek: 6}
    assert len(json.loads((tmp_path / "secrets/vault_key").read_text())["key"]) == 1


class LongKey:
    """Wraps as KMS does: longer than a key file."""

    kek = f"{KMS}arn:aws:kms:eu-west-1:123456789012:key/a-long-one"

    def __init__(self, inner: LocalKey) -> None:
        self._inner = inner

    def wrap(self, data_key: bytes, recording_id: str) -> tuple[bytes, str]:
        return self._inner.wrap(data_key, recording_id)[0] + os.urandom(124), self.kek

    def unwrap(self, wrapped: bytes, recording_id: str) -> bytes:
        return self._inner.unwrap(wrapped[:-124], recording_id)


def test_after_a_rotation_to_longer_keys_no_file_of_the_database_has_a_second_copy_of_any(
    tmp_path: Path, engine: sa.Engine
) -> None:
    """Pages are split when their rows grow, and what was moved away stays behind in them: a later shredding would
    not find it."""
    vault = filled(tmp_path, engine, 1)
    order = [f"rec-{number}" for number in range(1, 700)]
    random.Random(1).shuffle(order)
    with engine.begin() as connection:
        for recording_id in order:
            wrapped, kek = vault._keys.current.wrap(KEY * 15, recording_id)
            row = {"recording_id": recording_id, "wrapped": wrapped, "kek": kek, "made_at": NOW, "wrapped_at": NOW}
            connection.execute(sa.insert(data_keys).values(row))
    before = [row.wrapped for row in rows(engine)]
    long = LongKey(LocalKey(tmp_path / "other"))
    long._inner.make()
    vault._keys.current = vault._keys._others[long.kek] = long
    assert vault.rotate(LATER, "me").rewrapped == 700
    assert_all_read(vault, 1)
    left = b"".join(path.read_bytes() for path in tmp_path.glob("inbox.db*"))
    assert [wrapped for wrapped in before if wrapped[8:40] in left] == []
    assert {left.count(row.wrapped[8:40]) for row in rows(engine)} == {1}


def test_a_rotation_that_can_not_clean_up_behind_it_says_so(tmp_path: Path) -> None:
    hasty = sa.create_engine(f"sqlite:///{tmp_path / 'inbox.db'}", connect_args={"timeout": 0.1})
    reader = database.connect(f"sqlite:///{tmp_path / 'inbox.db'}")
    vault = filled(tmp_path, reader)
    with reader.connect() as connection:
        connection.execute(sa.select(data_keys)).all()
        with pytest.raises(VaultError, match="rotate again"):
            vault_of(Settings(home=tmp_path), hasty).rotate(LATER, "me")
    assert_all_read(vault)
    assert vault.rotate(LATER + timedelta(days=1), "me").left == ()
    assert len(entries(reader)) == 2
    hasty.dispose()
    reader.dispose()


def test_a_vault_that_was_open_before_a_rotation_reads_and_writes_after_it(tmp_path: Path, engine: sa.Engine) -> None:
    older = filled(tmp_path, engine)
    newer = vault_of(Settings(home=tmp_path), engine)
    newer.rotate(LATER, "me")
    older.put("rec-5", "clip", b"clip 5", LATER)
    assert_all_read(older, 6)
    assert_all_read(newer, 6)


def test_writers_during_rotations_lose_no_key(tmp_path: Path, engine: sa.Engine) -> None:
    code = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from compliance_pipeline import database
from compliance_pipeline.media.vault import vault_of
from compliance_pipeline.settings import Settings
settings = Settings(home=Path(sys.argv[1]))
vault = vault_of(settings, database.connect(settings.inbox_database_url))
for number in range(60):
    vault.put(f"rec-{number}", "clip", f"clip {number}".encode(), datetime.now(UTC))
"""
    vault = filled(tmp_path, engine, 1)
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    rotations = 0
    while writer.poll() is None:
        vault.rotate(LATER, "me")
        rotations += 1
    assert writer.returncode == 0
    assert rotations > 3
    assert_all_read(vault, 60)


def test_a_shredding_during_a_rotation_stays(
    tmp_path: Path, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = filled(tmp_path, engine)
    wrap = LocalKey.wrap

    def shredded_meanwhile(key: LocalKey, data_key: bytes, recording_id: str) -> tuple[bytes, str]:
        if recording_id == "rec-2":
            vault.shred(recording_id, NOW)
        return wrap(key, data_key, recording_id)

    monkeypatch.setattr(LocalKey, "wrap", shredded_meanwhile)
    assert vault.rotate(LATER, "me").rewrapped == 4
    assert rows(engine)[2].wrapped is None


def test_a_key_that_can_not_be_unwrapped_is_named_and_keeps_the_old_key(
    tmp_path: Path, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault_module, "REWRAPPED_AT_ONCE", 2)
    vault = filled(tmp_path, engine)
    whole = rows(engine)[1].wrapped

    def change(wrapped: bytes) -> None:
        with engine.begin() as connection:
            connection.execute(sa.update(data_keys).where(data_keys.c.recording_id == "rec-1").values(wrapped=wrapped))

    change(whole[:-1] + bytes([whole[-1] ^ 1]))
    rotation = vault.rotate(LATER, "me")
    assert (rotation.rewrapped, rotation.left) == (4, ("rec-1",))
    change(whole)
    assert_all_read(vault)
    assert vault.rotate(LATER, "me").left == ()


def test_keys_move_from_a_file_to_kms_to_another_kms_key_and_back(
    kms: list[str], tmp_path: Path, engine: sa.Engine
) -> None:
    filled(tmp_path, engine)
    stored = blobs(tmp_path)
    for key in (kms[0], kms[1], None):
        vault = vault_of(Settings(home=tmp_path, vault_key=key), engine)
        assert_all_read(vault)
        rotation = vault.rotate(LATER, "me")
        assert (rotation.rewrapped, rotation.left) == (5, ())
        assert vault.counts().by_kek == {rotation.kek: 5}
        assert rotation.kek == key or (key is None and rotation.kek.startswith(LOCAL))
        assert (tmp_path / "secrets/vault_key").exists() == (key is None)
        assert_all_read(vault)
    assert blobs(tmp_path) == stored
