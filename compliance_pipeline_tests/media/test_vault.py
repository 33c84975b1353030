"""The vault over real parts: SQLite, files, processes that are killed, moto's S3, a Postgres."""

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from compliance_pipeline import database
from compliance_pipeline.media.vault import (
    LONGEST_NAME,
    UNDER_WAY,
    NotInVault,
    Shredded,
    Tampered,
    Vault,
    VaultError,
    _name,
    _path,
    data_keys,
    vault_of,
)
from compliance_pipeline.settings import Settings

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
CLIP = b"fLaC" + bytes(range(256)) * 12_000
"""Three segments of the cipher."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = database.connect(f"sqlite:///{tmp_path / 'inbox.db'}")
    yield engine
    engine.dispose()


@pytest.fixture
def vault(tmp_path: Path, engine: sa.Engine) -> Vault:
    return vault_of(Settings(home=tmp_path), engine)


def whole(vault: Vault, recording_id: str = "rec-1", name: str = "clip") -> bytes:
    return b"".join(vault.read(recording_id, name))


def blob(home: Path, recording_id: str = "rec-1", name: str = "clip") -> Path:
    return home / "vault" / _path(recording_id, name)


def wrapped_key(engine: sa.Engine, recording_id: str = "rec-1") -> bytes:
    with engine.connect() as connection:
        return bytes(
            connection.execute(
                sa.select(data_keys.c.wrapped).where(data_keys.c.recording_id == recording_id)
            ).scalar_one()
        )


def python(code: str, *arguments: object, wait: bool = True) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    if wait:
        process.wait(60)
    return process


PRELUDE = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from compliance_pipeline import database
from compliance_pipeline.media import vault as v
from compliance_pipeline.settings import Settings
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
settings = Settings(home=Path(sys.argv[1]))
vault = v.vault_of(settings, database.connect(settings.inbox_database_url))
"""


@pytest.mark.parametrize("content", [b"", b"x", CLIP], ids=["nothing", "a byte", "three segments"])
def test_what_is_put_is_read_again_and_described(vault: Vault, content: bytes) -> None:
    stored = vault.put("rec-1", "clip", content, NOW)
    assert (stored.sha256, stored.size_bytes) == (sha256(content).hexdigest(), len(content))
    assert whole(vault) == content
    assert stored.uri.startswith("file:///")


def test_pieces_of_any_size_are_one_blob(vault: Vault) -> None:
    pieces = [CLIP[:7], b"", CLIP[7 : 2 << 20], CLIP[2 << 20 :]]
    assert vault.put("rec-1", "clip", iter(pieces), NOW).sha256 == sha256(CLIP).hexdigest()
    assert whole(vault) == CLIP


def test_nothing_clear_lies_on_the_disk_and_all_is_the_owner_s_only(vault: Vault, tmp_path: Path) -> None:
    vault.put("rec-1", "clip", b"4111111111111111" * 1000, NOW)
    paths = list((tmp_path / "vault").rglob("*"))
    files = [path for path in paths if path.is_file()]
    assert len(files) == 1
    assert b"41111111" not in files[0].read_bytes()
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    folders = [tmp_path / "vault", *(path for path in paths if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


def test_the_same_name_again_replaces_and_names_are_listed_per_recording(vault: Vault) -> None:
    for name, content in (("b/2", b"old"), ("a.flac", b"a"), ("b/2", b"new")):
        vault.put("rec-1", name, content, NOW)
    vault.put("rec-2", "other", b"o", NOW)
    assert vault.names("rec-1") == ["a.flac", "b/2"]
    assert whole(vault, name="b/2") == b"new"
    assert vault.names("rec-3") == []


def test_what_is_deleted_is_gone_and_nothing_else_is(vault: Vault) -> None:
    vault.put("rec-1", "clip", b"1", NOW)
    vault.put("rec-1", "other", b"2", NOW)
    assert vault.delete("rec-1", "clip")
    assert not vault.delete("rec-1", "clip")
    with pytest.raises(NotInVault, match="rec-1"):
        vault.read("rec-1", "clip")
    assert whole(vault, name="other") == b"2"
    with pytest.raises(NotInVault, match="rec-9"):
        vault.read("rec-9", "clip")


def swap_recordings(home: Path) -> None:
    blob(home).write_bytes(blob(home, "rec-2").read_bytes())


def swap_names(home: Path) -> None:
    blob(home).write_bytes(blob(home, name="other").read_bytes())


def change_first(home: Path) -> None:
    change(home, 100)


def change_last(home: Path) -> None:
    change(home, -1)


def change(home: Path, at: int) -> None:
    content = bytearray(blob(home).read_bytes())
    content[at] ^= 1
    blob(home).write_bytes(content)


def cut_off(home: Path) -> None:
    os.truncate(blob(home), blob(home).stat().st_size - 1)


def cut_off_after_a_segment(home: Path) -> None:
    os.truncate(blob(home), 1 << 20)


def empty(home: Path) -> None:
    os.truncate(blob(home), 0)


@pytest.mark.parametrize(
    "harm", [swap_recordings, swap_names, change_first, change_last, cut_off, cut_off_after_a_segment, empty]
)
def test_a_blob_that_was_changed_cut_off_or_swapped_is_refused(vault: Vault, tmp_path: Path, harm: Any) -> None:
    for recording_id, name in (("rec-1", "clip"), ("rec-1", "other"), ("rec-2", "clip")):
        vault.put(recording_id, name, CLIP, NOW)
    harm(tmp_path)
    with pytest.raises(Tampered, match="rec-1"):
        whole(vault)
    assert whole(vault, "rec-2") == CLIP


def test_a_wrapped_key_of_another_recording_does_not_unwrap(vault: Vault, engine: sa.Engine) -> None:
    vault.put("rec-1", "clip", b"1", NOW)
    vault.put("rec-2", "clip", b"2", NOW)
    with engine.begin() as connection:
        connection.execute(sa.update(data_keys).values(wrapped=wrapped_key(engine, "rec-2")))
    with pytest.raises(VaultError, match="rec-1"):
        vault.read("rec-1", "clip")


def test_no_blob_of_a_shredded_recording_is_read_or_put_again(vault: Vault, engine: sa.Engine) -> None:
    vault.put("rec-1", "clip", CLIP, NOW)
    vault.put("rec-2", "clip", CLIP, NOW)
    assert vault.shred("rec-1", NOW)
    assert not vault.shred("rec-1", NOW)
    with pytest.raises(Shredded, match="rec-1"):
        vault.read("rec-1", "clip")
    with pytest.raises(Shredded, match="rec-1"):
        vault.put("rec-1", "clip", b"again", NOW)
    assert whole(vault, "rec-2") == CLIP
    assert vault.names("rec-1") == ["clip"], "what can still be deleted"
    assert vault.delete("rec-1", "clip")
    with engine.connect() as connection:
        row = connection.execute(sa.select(data_keys).where(data_keys.c.recording_id == "rec-1")).one()
    assert (row.wrapped, row.kek, row.shredded_at) == (None, None, NOW)


def test_a_recording_can_be_shredded_before_anything_of_it_is_stored(vault: Vault) -> None:
    assert not vault.shred("rec-1", NOW)
    with pytest.raises(Shredded):
        vault.put("rec-1", "clip", b"late", NOW)
    assert (vault.counts().by_kek, vault.counts().shredded) == ({}, 1)


def test_a_shredded_key_is_in_no_file_of_the_database(vault: Vault, engine: sa.Engine, tmp_path: Path) -> None:
    """Among many, put in no order and re-wrapped, so that pages were split and cells were moved."""
    ids = [f"rec-{number * 7919 % 127}" for number in range(127)]
    for recording_id in ids:
        vault.put(recording_id, "clip", b"", NOW)
    before = {recording_id: wrapped_key(engine, recording_id) for recording_id in ids}
    vault.rotate(NOW, "me")
    keys = [key for recording_id in ids[:20] for key in (before[recording_id], wrapped_key(engine, recording_id))]
    kept = wrapped_key(engine, ids[30])

    def files() -> bytes:
        return b"".join(path.read_bytes() for path in tmp_path.glob("inbox.db*"))

    assert keys[1] in files(), "this test sees what is there"
    for recording_id in ids[:20]:
        vault.shred(recording_id, NOW)
    left = files()
    assert kept in left
    assert [key for key in keys if key in left or key[8:40] in left] == []


def test_a_reader_that_holds_the_log_is_told_and_shredding_again_erases(vault: Vault, tmp_path: Path) -> None:
    vault.put("rec-1", "clip", b"1", NOW)
    quick = sa.create_engine(f"sqlite:///{tmp_path / 'inbox.db'}", connect_args={"timeout": 0.1})
    hasty = vault_of(Settings(home=tmp_path), quick)
    reader = database.connect(f"sqlite:///{tmp_path / 'inbox.db'}")
    key = wrapped_key(reader)
    with reader.connect() as connection:
        connection.execute(sa.select(data_keys)).all()
        with pytest.raises(VaultError, match="shred it again"):
            hasty.shred("rec-1", NOW)
    with pytest.raises(Shredded):
        vault.read("rec-1", "clip")
    assert not vault.shred("rec-1", NOW)
    assert key not in b"".join(path.read_bytes() for path in tmp_path.glob("inbox.db*"))
    reader.dispose()
    quick.dispose()


def test_processes_and_threads_that_put_first_blobs_at_once_agree_on_one_key(vault: Vault, tmp_path: Path) -> None:
    code = """
print("ready", flush=True)
sys.stdin.readline()
for number in range(10):
    vault.put(f"rec-{number}", sys.argv[2], sys.argv[2].encode(), NOW)
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code, str(tmp_path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two", "three")
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    threads = [
        threading.Thread(target=vault.put, args=(f"rec-{number}", f"thread-{number}", b"t", NOW)) for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    for number in range(10):
        for name in ("one", "two", "three"):
            assert whole(vault, f"rec-{number}", name) == name.encode()
    assert sum(vault.counts().by_kek.values()) == 10


def test_a_writer_that_is_killed_leaves_nothing_half_and_what_was_there_stays(vault: Vault, tmp_path: Path) -> None:
    killed_amid = """
def content():
    yield b"n" * 5_000_000
    os.kill(os.getpid(), signal.SIGKILL)
vault.put("rec-1", "clip", content(), NOW)
"""
    killed_before_it_is_safe = """
fsync = os.fsync
def at_blobs(number):
    if os.path.basename(os.path.dirname(os.readlink(f"/proc/self/fd/{number}"))) == v.UNDER_WAY:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(number)
os.fsync = at_blobs
vault.put("rec-1", "clip", b"new" * 100_000, NOW)
"""
    for code in (killed_amid, killed_before_it_is_safe):
        assert python(code, tmp_path).returncode == -signal.SIGKILL
        assert vault.names("rec-1") == []
        with pytest.raises(NotInVault):
            vault.read("rec-1", "clip")
    vault.put("rec-1", "clip", b"whole", NOW)
    for code in (killed_amid, killed_before_it_is_safe):
        assert python(code, tmp_path).returncode == -signal.SIGKILL
        assert (vault.names("rec-1"), whole(vault)) == (["clip"], b"whole")


def test_killed_at_any_moment_a_blob_is_old_or_new_and_never_half(vault: Vault, tmp_path: Path) -> None:
    code = """
print("ready", flush=True)
while True:
    for byte in (b"a", b"b"):
        vault.put("rec-1", "clip", byte * 3_000_000, NOW)
"""
    vault.put("rec-1", "clip", b"a" * 3_000_000, NOW)
    for looks in (1, 4, 9):
        process = python(code, tmp_path, wait=False)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        for _ in range(looks):
            assert whole(vault) in (b"a" * 3_000_000, b"b" * 3_000_000)
        process.kill()
        process.wait(10)
        process.stdout.close()
        assert whole(vault) in (b"a" * 3_000_000, b"b" * 3_000_000)


def test_what_a_killed_writer_left_is_removed_once_it_is_old(vault: Vault, tmp_path: Path) -> None:
    vault.put("rec-1", "clip", b"1", NOW)
    part = tmp_path / "vault" / UNDER_WAY / "1.ab"
    part.write_bytes(b"left")
    vault.put("rec-1", "clip", b"2", NOW)
    assert part.exists(), "another process may be writing it"
    os.utime(part, (0, 0))
    vault.put("rec-1", "clip", b"3", NOW)
    assert list(part.parent.iterdir()) == []


def test_a_source_that_fails_is_its_own_error_and_nothing_is_stored(vault: Vault, tmp_path: Path) -> None:
    def content() -> Iterator[bytes]:
        yield CLIP
        raise ConnectionResetError("the media host hung up")

    vault.put("rec-1", "clip", b"before", NOW)
    with pytest.raises(ConnectionResetError, match="hung up"):
        vault.put("rec-1", "clip", content(), NOW)
    assert whole(vault) == b"before"
    assert list((tmp_path / "vault" / UNDER_WAY).iterdir()) == []


def test_a_full_disk_is_said_with_the_recording(vault: Vault) -> None:
    import resource

    vault.put("rec-1", "clip", b"before", NOW)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(VaultError, match=r"rec-1.*File too large"):
            vault.put("rec-1", "clip", CLIP, NOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert whole(vault) == b"before"


def test_two_hundred_megabytes_go_in_and_out_in_little_memory(tmp_path: Path) -> None:
    code = """
import resource
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
vault.put("rec-1", "small", bytes(3_000_000), NOW)
assert sum(map(len, vault.read("rec-1", "small"))) == 3_000_000
before = peak()
vault.put("rec-1", "large", (bytes(100_000) for _ in range(2_000)), NOW)
assert sum(map(len, vault.read("rec-1", "large"))) == 200_000_000
print(peak() - before)
"""
    process = python(code, tmp_path)
    assert process.returncode == 0
    assert int(process.communicate()[0]) < 30, "MiB"


text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=120) | st.sampled_from(
    [".", "..", "/etc/passwd", "a/../b", "A", "a", "a\0b", "C:\\x", "#1", "'; DROP TABLE data_keys; --"]
)
short = text.filter(lambda name: len(name.encode()) <= LONGEST_NAME)


@given(text, short, text, short)
def test_any_id_and_name_is_a_place_of_its_own_inside_the_vault(one: str, name: str, other: str, second: str) -> None:
    for path, said in ((_path(one, name), name), (_path(other, second), second)):
        folder, part = path.split("/")
        assert len(part) <= 255
        assert (folder + part).isalnum()
        assert (folder + part).isascii()
        assert _name(part) == said
    assert (_path(one, name).lower() == _path(other, second).lower()) == ((one, name) == (other, second))


@pytest.mark.parametrize("name", ["", "x" * (LONGEST_NAME + 1)])
def test_a_name_of_no_or_too_many_bytes_is_refused(vault: Vault, name: str) -> None:
    with pytest.raises(ValueError, match="150 bytes"):
        vault.put("rec-1", name, b"", NOW)


def test_hostile_ids_and_names_stay_inside(vault: Vault, tmp_path: Path) -> None:
    for hostile in ("../../outside", "/etc/shadow", "a\0b", "."):
        vault.put(hostile, hostile, hostile.encode(), NOW)
        assert whole(vault, hostile, hostile) == hostile.encode()
        assert vault.names(hostile) == [hostile]
    assert {path.name for path in tmp_path.iterdir()} <= {
        "vault", "secrets", "inbox.db", "inbox.db-wal", "inbox.db-shm", "inbox.db.lock",
    }  # fmt: skip


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a bucket on moto's server."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"vault-{uuid4().hex}"
    boto3.client("s3").create_bucket(
        Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": environment["AWS_REGION"]}
    )
    yield f"s3://{bucket}/clips"
    server.stop()


def test_a_bucket_is_a_vault_too(s3: str, tmp_path: Path, engine: sa.Engine) -> None:
    vault = vault_of(Settings(home=tmp_path, vault_url=s3), engine)
    pieces = 20
    assert vault.put("rec-1", "large", (CLIP[: 1 << 20] for _ in range(pieces)), NOW).uri.startswith(s3)
    vault.put("rec-1", "clip", CLIP, NOW)
    assert whole(vault, name="large") == CLIP[: 1 << 20] * pieces
    assert whole(vault) == CLIP
    assert vault.names("rec-1") == ["clip", "large"]

    def content() -> Iterator[bytes]:
        yield from (CLIP for _ in range(4))
        raise ConnectionResetError("hung up")

    with pytest.raises(ConnectionResetError):
        vault.put("rec-1", "clip", content(), NOW)
    assert whole(vault) == CLIP, "what was cut off is not published"
    assert vault.delete("rec-1", "clip")
    assert not vault.delete("rec-1", "clip")
    with pytest.raises(NotInVault):
        vault.read("rec-1", "clip")
    assert not (tmp_path / "vault").exists()


def test_a_store_that_is_down_is_no_tampering(tmp_path: Path, engine: sa.Engine, s3: str) -> None:
    vault = vault_of(Settings(home=tmp_path, vault_url="s3://no-such-bucket/x"), engine)
    with pytest.raises(VaultError, match=r"rec-1.*COMPLIANCE_VAULT_URL") as raised:
        vault.put("rec-1", "clip", b"1", NOW)
    assert type(raised.value) is VaultError


def test_no_file_tells_a_data_key(vault: Vault, tmp_path: Path) -> None:
    vault.put("rec-1", "clip", b"1", NOW)
    secret = vault._data_key("rec-1", NOW).partition(b"\x1a\x20")[2][:32]
    assert len(secret) == 32
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert secret not in path.read_bytes()
