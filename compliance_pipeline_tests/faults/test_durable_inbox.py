"""The receiver answers 200 only after fsync: killed at random instants, and with what was never synced lost."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline_tests.intake.test_receiver import PATH, SECRET, body_of, signed
from compliance_pipeline_tests.intake.test_receiver_kill import free_port

SEED = 20_261
SENDERS = 6
START_S = 90.0

KEEPS_WHAT_IS_SYNCED = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int keep(int fd, const char *name) {
    int (*sync)(int) = (int (*)(int)) dlsym(RTLD_NEXT, name);
    int done = sync(fd);
    char link[64], path[PATH_MAX], part[PATH_MAX + 64], kept[PATH_MAX + 64], block[65536];
    struct stat about;
    if (done || fstat(fd, &about) || !S_ISREG(about.st_mode)) return done;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) abort();
    path[length] = 0;
    snprintf(part, sizeof part, "%s.part%ld", path, (long) syscall(SYS_gettid));
    snprintf(kept, sizeof kept, "%s.synced", path);
    int to = open(part, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (to < 0) abort();
    off_t at = 0;
    for (ssize_t got; (got = pread(fd, block, sizeof block, at)) > 0; at += got)
        if (write(to, block, got) != got) abort();
    close(to);
    if (rename(part, kept)) abort();
    return 0;
}
int fsync(int fd) { return keep(fd, "fsync"); }
int fdatasync(int fd) { return keep(fd, "fdatasync"); }
"""

COMMITS_WITHOUT_SYNC = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("PRAGMA synchronous=FULL")
connection.execute("CREATE TABLE inbox (recording_id)")
connection.execute("INSERT INTO inbox VALUES ('synced')")
connection.execute("PRAGMA synchronous=OFF")
connection.execute("INSERT INTO inbox VALUES ('not synced')")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("cc"):
        pytest.skip("no C compiler: `cc` builds the library that keeps what was synced (apt-get install gcc)")
    folder = tmp_path_factory.mktemp("shim")
    source, library = folder / "synced.c", folder / "synced.so"
    source.write_text(KEEPS_WHAT_IS_SYNCED)
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    return library


def _files(database: Path) -> list[tuple[Path, Path]]:
    """Each file of the database, and what was synced of it."""
    return [(Path(f"{database}{end}"), Path(f"{database}{end}.synced")) for end in ("", "-wal", "-shm")]


def _become(path: Path, source: Path) -> None:
    if source.exists():
        shutil.copyfile(source, path)
    else:
        path.unlink(missing_ok=True)


def cut_power(database: Path) -> None:
    """Leave of the database's files what was synced: the worst that a power cut leaves."""
    for path, synced in _files(database):
        _become(path, synced)


def all_synced(database: Path) -> None:
    """Count as synced what is there: processes without the library have written since."""
    for path, synced in _files(database):
        _become(synced, path)


def receiver(home: Path, port: int, shim: Path | None) -> subprocess.Popen[bytes]:
    settings = {
        "COMPLIANCE_HOME": str(home),
        "COMPLIANCE_RECEIVER_PORT": str(port),
        "COMPLIANCE_WEBHOOK_SECRET": SECRET.get_secret_value(),
    } | ({"LD_PRELOAD": str(shim)} if shim else {})
    command = [str(Path(sys.executable).with_name("compliance")), "receiver"]
    with (home / "receiver.log").open("ab") as log:
        process = subprocess.Popen(command, env=os.environ | settings, cwd=home, stdout=log, stderr=log)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                return process
        except httpx.TransportError:
            time.sleep(0.05)
    process.kill()
    process.wait()
    raise AssertionError((home / "receiver.log").read_text())


def acknowledged_until_killed(process: subprocess.Popen[bytes], port: int, after_s: float, round_: int) -> set[str]:
    acknowledged: set[str] = set()
    refused: list[int] = []

    def send(sender: int) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
            for number in range(1_000_000):
                recording_id = f"rec-{round_}-{sender}-{number}"
                body = body_of(recording_id)
                try:
                    answer = http.post(PATH, content=body, headers=signed(body, message_id=f"msg-{recording_id}"))
                except httpx.TransportError:
                    return
                if answer.status_code != 200:
                    refused.append(answer.status_code)
                    return
                acknowledged.add(recording_id)

    senders = [threading.Thread(target=send, args=(number,)) for number in range(SENDERS)]
    for sender in senders:
        sender.start()
    deadline = time.monotonic() + START_S
    while not acknowledged and not refused and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for sender in senders:
        sender.join()
    assert refused == []
    return acknowledged


def stored(home: Path) -> set[str]:
    inbox = Inbox(f"sqlite:///{home / 'inbox.db'}")
    with inbox.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        rows = connection.exec_driver_sql("SELECT recording_id FROM inbox").scalars().all()
    inbox.close()
    assert len(rows) == len(set(rows))
    return set(rows)


def kill_rounds(home: Path, rounds: int, shim: Path | None) -> None:
    rng = random.Random(SEED)
    port = free_port()
    acknowledged: set[str] = set()
    for round_ in range(rounds):
        after_s = rng.uniform(0.1, 1.5)
        process = receiver(home, port, shim)
        acknowledged |= (now := acknowledged_until_killed(process, port, after_s, round_))
        if shim:
            cut_power(home / "inbox.db")
        rows = stored(home)
        all_synced(home / "inbox.db")
        print(f"seed {SEED}, round {round_}: killed {after_s:.2f} s after the first answer")
        print(f"acknowledged in it: {len(now)}; in all: {len(acknowledged)}; stored: {len(rows)}")
        assert now, "nothing was acknowledged before the kill: the round showed nothing"
        assert acknowledged <= rows


def test_what_a_receiver_killed_at_a_random_instant_acknowledged_is_stored(tmp_path: Path) -> None:
    """fault: kill -9 of the receiver at random instants; invariant: every acknowledged event is stored, once."""
    kill_rounds(tmp_path, 3, None)


def test_what_was_acknowledged_outlasts_the_loss_of_every_page_that_was_not_synced(tmp_path: Path, shim: Path) -> None:
    """fault: power cut, unsynced pages dropped; invariant: every acknowledged event is stored, once."""
    kill_rounds(tmp_path, 2, shim)


def test_the_power_cut_of_these_tests_does_lose_a_commit_that_was_not_synced(tmp_path: Path, shim: Path) -> None:
    """fault: power cut after a commit without sync; invariant: the test above can fail: that row is lost."""
    database = tmp_path / "inbox.db"
    process = subprocess.run(
        [sys.executable, "-c", COMMITS_WITHOUT_SYNC, database], env=os.environ | {"LD_PRELOAD": str(shim)}, check=False
    )
    assert process.returncode == -signal.SIGKILL
    shutil.copytree(tmp_path, tmp_path / "killed")
    with sqlite3.connect(tmp_path / "killed" / "inbox.db") as before:
        assert len(before.execute("SELECT * FROM inbox").fetchall()) == 2
    cut_power(database)
    with sqlite3.connect(database) as after:
        assert after.execute("SELECT * FROM inbox").fetchall() == [("synced",)]
