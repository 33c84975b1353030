"""fault: a full disk, a disk that may only be read; invariant: what is acknowledged is stored, nothing is half done,
and work goes on by itself once there is room.

The disk is a tmpfs of a few MB, whose writes end in ENOSPC as a real disk's do.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import httpx
import pytest
import sqlalchemy as sa

from compliance_pipeline import database, steps
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline.media.vault import UNDER_WAY, NotInVault, VaultError, vault_of
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.settings import Settings
from compliance_pipeline.stack import is_open
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.faults.test_durable_inbox import START_S, receiver
from compliance_pipeline_tests.intake.test_receiver import PATH, SECRET, body_of, signed
from compliance_pipeline_tests.intake.test_receiver_kill import free_port
from compliance_pipeline_tests.warehouse.rows import recording as row
from compliance_pipeline_tests.workshop import recording, workshop

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SIZE = "32m"


class Disk:
    """A mounted tmpfs that can be filled and emptied."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self, but: int = 0) -> None:
        """Until not a byte more fits, except for about `but` bytes."""
        size = 1 << 16
        with self._ballast.open("ab", buffering=0) as ballast:
            while size:
                try:
                    ballast.write(bytes(size))
                except OSError:
                    size //= 2
            ballast.truncate(max(0, ballast.tell() - but))

    def make_room(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "tmpfs", path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk: `unshare -Urm` before the command lets any user do it")
    yield Disk(path)
    subprocess.run(["umount", "-l", path], check=True)


def send(port: int, recording_id: str) -> httpx.Response:
    body = body_of(recording_id)
    headers = signed(body, message_id=f"msg-{recording_id}")
    return httpx.post(f"http://127.0.0.1:{port}{PATH}", content=body, headers=headers, timeout=30)


def stored(home: Path) -> set[str]:
    inbox = Inbox(f"sqlite:///{home / 'inbox.db'}")
    with inbox.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        ids = connection.exec_driver_sql("SELECT recording_id FROM inbox").scalars().all()
        heard = connection.exec_driver_sql("SELECT recording_id FROM ledger").scalars().all()
    inbox.close()
    assert sorted(ids) == sorted(heard)
    return set(ids)


def assert_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert answer.json() == {"error": "the inbox can't store now: send again", "reason": "storage"}


def test_a_receiver_on_a_full_disk_acknowledges_only_what_is_stored_and_goes_on_when_there_is_room(disk: Disk) -> None:
    """fault: the inbox's disk is full; invariant: 503, never 200 for what is not stored; goes on without hands."""
    port = free_port()
    process = receiver(disk.path, port, None)
    try:
        assert send(port, "before").status_code == 200
        disk.fill()
        answers = {name: send(port, name) for name in (f"during-{number}" for number in range(30))}
        # The database's log may have had room of its own for the first few.
        refused = {name for name, answer in answers.items() if answer.status_code != 200}
        assert len(refused) > 15, "the disk was not full: this shows nothing"
        for name in refused:
            assert_refused(answers[name])
        assert stored(disk.path) == {"before"} | (set(answers) - refused)
        disk.make_room()
        for name in refused:
            assert send(port, name).json()["duplicate"] is False
        assert process.poll() is None
        assert stored(disk.path) == {"before"} | set(answers)
    finally:
        process.kill()
        process.wait()


def obeying_modes() -> list[str]:
    """What to start a process with so that it obeys file modes: root would not."""
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


@contextmanager
def started(home: Path, inbox_url: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A receiver that lives, ready or not."""
    settings = {
        "COMPLIANCE_HOME": str(home),
        "COMPLIANCE_INBOX_URL": inbox_url,
        "COMPLIANCE_RECEIVER_PORT": str(port),
        "COMPLIANCE_WEBHOOK_SECRET": SECRET.get_secret_value(),
        "COMPLIANCE_TOKEN_KEY": "key",
    }
    command = [*obeying_modes(), str(Path(sys.executable).with_name("compliance")), "receiver"]
    with (home / "receiver.log").open("ab") as log:
        process = subprocess.Popen(command, env=os.environ | settings, cwd=home, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_S
        while not is_open(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((home / "receiver.log").read_text())
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_receiver_whose_inbox_is_read_only_says_so_and_goes_on_once_it_may_write(what: str, tmp_path: Path) -> None:
    """fault: the inbox's file or folder may only be read; invariant: 503 and a reason; goes on without a restart."""
    folder, port = tmp_path / "folder", free_port()
    inbox_url = f"sqlite:///{folder / 'inbox.db'}"
    inbox = Inbox(inbox_url)
    inbox.create()
    inbox.close()
    paths = [folder / "inbox.db"] if what == "file" else [*folder.iterdir(), folder]
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(modes[path] & ~0o222)
    try:
        with started(tmp_path, inbox_url, port) as process:
            assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 503
            for number in range(5):
                assert_refused(send(port, f"during-{number}"))
            for path, mode in modes.items():
                path.chmod(mode)
            for path in folder.iterdir():  # SQLite made its log with the mode of the file
                path.chmod(0o600)
            deadline = time.monotonic() + 20
            while send(port, "during-0").status_code != 200:  # connections that could not write are given up one by one
                assert time.monotonic() < deadline
                time.sleep(0.2)
            for number in range(1, 5):
                assert send(port, f"during-{number}").status_code == 200
            assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
            assert process.poll() is None
        assert stored(folder) == {f"during-{number}" for number in range(5)}
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert '"outcome": "storage", "error": ' in (tmp_path / "receiver.log").read_text()


def test_a_transaction_of_the_warehouse_is_there_as_a_whole_or_not_at_all_however_little_room_there_is(
    disk: Disk,
) -> None:
    """fault: the warehouse's disk is full; invariant: no partial row; done again it is there."""
    path = disk.path / "warehouse.duckdb"
    assert Warehouse(path).append([row("before")]) == 1
    wanted, failed = {"before"}, 0
    for free in (0, 4096, 65_536, 131_072, 262_144, 400_000, 600_000, 1_000_000, 2_000_000):
        disk.fill(but=free)
        batch = {f"{free}-{number}" for number in range(1_000)}
        refused = ""
        try:
            Warehouse(path).append([row(one) for one in batch])
        except duckdb.Error as error:
            refused = str(error)
        assert held(path) == (wanted if refused else wanted | batch)
        assert not refused or "No space left on device" in refused
        failed += bool(refused)
        disk.make_room()
        Warehouse(path).append([row(one) for one in batch])
        wanted |= batch
        assert held(path) == wanted
    assert 1 < failed < 9, "the disk was never full, or always: this shows little"


def held(path: Path) -> set[str]:
    rows = [one["recording_id"] for one in Warehouse(path).select("SELECT recording_id FROM recordings")]
    assert len(rows) == len(set(rows))
    return set(rows)


def test_a_run_that_meets_a_full_disk_is_done_again_as_if_nothing_had_been(disk: Disk, tmp_path: Path) -> None:
    """fault: the disk is full in the middle of a run; invariant: the next run ends it, nothing twice."""
    kinds = (Kind.CHAT_CVV, Kind.CHAT_CARD, Kind.CHAT_CLEAN)
    with workshop(tmp_path / "undisturbed") as shop:
        shop.announce(*(recording(kind) for kind in kinds))
        shop.run()
        wanted = shop.end_state()
    for step in ("claim", "screen"):
        with workshop(disk.path / step) as shop:
            shop.announce(*(recording(kind) for kind in kinds))
            batch = shop.batch()
            if step == "screen":
                steps.claim(shop.pipeline, batch)
            disk.fill()
            with pytest.raises((duckdb.Error, sa.exc.SQLAlchemyError)):
                shop.run(batch)
            disk.make_room()
            shop.clock.wait(300)
            shop.run()
            assert shop.end_state() == wanted, step


def test_a_vault_on_a_full_disk_keeps_what_it_has_and_no_half_blob(disk: Disk, tmp_path: Path) -> None:
    """fault: the vault's disk is full; invariant: only whole blobs can be read; done again it is stored."""
    old, new = b"old clip" * 1000, bytes(range(256)) * 8_000
    settings = Settings(home=tmp_path, vault_url=(disk.path / "vault").as_uri())
    engine = database.connect(settings.inbox_database_url)
    with closing(vault_of(settings, engine)) as vault:
        vault.put("rec-1", "clip", old, NOW)
        for free in (0, 100_000, 1_500_000):
            disk.fill(but=free)
            for recording_id, name in (("rec-1", "clip"), ("rec-1", "other"), ("rec-2", "clip")):
                with pytest.raises(VaultError, match=rf"{recording_id}: .*can't be stored.*No space left"):
                    vault.put(recording_id, name, iter([new[:700_000], new[700_000:]]), NOW)
            assert b"".join(vault.read("rec-1", "clip")) == old
            for recording_id, name in (("rec-1", "other"), ("rec-2", "clip")):
                with pytest.raises(NotInVault):
                    vault.read(recording_id, name)
            assert vault.names("rec-1") == ["clip"]
            assert list((disk.path / "vault" / UNDER_WAY).iterdir()) == []
            disk.make_room()
        vault.put("rec-1", "clip", new, NOW)
        assert b"".join(vault.read("rec-1", "clip")) == new
    engine.dispose()


def test_a_data_key_that_could_not_be_stored_is_made_anew_when_there_is_room(disk: Disk) -> None:
    """fault: the disk of keys and blobs is full; invariant: no blob without its key; done again it is stored."""
    settings = Settings(home=disk.path)
    engine = database.connect(settings.inbox_database_url)
    with closing(vault_of(settings, engine)) as vault:
        disk.fill()
        with pytest.raises((VaultError, OSError, sa.exc.SQLAlchemyError)):
            vault.put("rec-1", "clip", b"clip", NOW)
        assert not (disk.path / "secrets" / "vault_key").exists()
        disk.make_room()
        vault.put("rec-1", "clip", b"clip", NOW)
        assert b"".join(vault.read("rec-1", "clip")) == b"clip"
    engine.dispose()
