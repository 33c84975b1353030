"""`compliance scan` on a folder of real files, through the real pipeline: what it says, and what it leaves behind."""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from compliance_pipeline.cli import app
from compliance_pipeline.clock import utc_now
from compliance_pipeline.intake.inbox import Inbox, State
from compliance_pipeline.promotion import promote
from compliance_pipeline.sandbox.calls import Container, Damage, Kind, make_recording
from compliance_pipeline.scan import ScanInProgress, ScanResult, scan
from compliance_pipeline.screening.policy import DEFAULT_PACK, PolicyError, load_policy
from compliance_pipeline.settings import Settings
from compliance_pipeline_tests.canaries import Canaries
from compliance_pipeline_tests.intake.samples import incoming
from compliance_pipeline_tests.workshop import ENDED_AT, recording

CARD, SSN, CLEAN = recording(Kind.CHAT_CARD), recording(Kind.CHAT_SSN), recording(Kind.CHAT_CLEAN)
EMAIL, TONES = recording(Kind.EMAIL_CARD), recording(Kind.VOICE_TONES)
MP3 = make_recording(5, Kind.VOICE_CLEAN, ended_at=ENDED_AT, container=Container.MP3)
DAMAGED = recording(Kind.VOICE_CLEAN, damage=Damage.TRUNCATED)
NOTE = "agent: how can I help?\ncustomer: where is my parcel?\n"
FILES = {
    "calls/tones.wav": TONES.media,
    "calls/clean.mp3": MP3.media,
    "calls/broken.wav": DAMAGED.media,
    "chats/card.json": CARD.media,
    "chats/note.txt": NOTE.encode(),
    "mail/card.eml": EMAIL.media,
    "readme.pdf": b"%PDF-1.7",
    "noname": b"?",
}
VERDICTS = {
    "calls/broken.wav": "UNSCREENABLE",
    "calls/clean.mp3": "UNDETERMINED",
    "calls/tones.wav": "VIOLATION_DETECTED",
    "chats/card.json": "VIOLATION_DETECTED",
    "chats/note.txt": "NO_VIOLATION",
    "mail/card.eml": "VIOLATION_DETECTED",
}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def snapshot(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    return {
        str(path.relative_to(folder)): (
            path.read_bytes() if path.is_file() else b"",
            path.stat().st_mtime_ns,
            path.stat().st_mode,
        )
        for path in folder.rglob("*")
    }


@dataclass
class Finished:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.out)
        return parsed

    @property
    def verdicts(self) -> dict[str, str]:
        return {r["file"]: r["verdict"] for r in self.document["recordings"]}


COMMAND = [sys.executable, "-c", "from compliance_pipeline.cli import app; app()"]


def compliance_scan(home: Path, path: Path, *options: str, before: Callable[[], None] = lambda: None) -> Finished:
    variables = {"COMPLIANCE_HOME": str(home), "HOME": str(home.parent), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [*COMMAND, "scan", str(path), *options],
        capture_output=True, text=True, env=variables, cwd=home.parent, timeout=120, preexec_fn=before,
    )  # fmt: skip
    return Finished(done.returncode, done.stdout, done.stderr)


def scan_here(home: Path, path: Path, *options: str) -> Finished:
    """The command in this process: quicker."""
    done = CliRunner().invoke(app, ["scan", str(path), *options], env={"COMPLIANCE_HOME": str(home)})
    return Finished(done.exit_code, done.stdout, done.stderr)


def scanned(path: Path, home: Path) -> ScanResult:
    """What the command would show, as it is."""
    *_, last = scan(path, Settings(home=home))
    assert isinstance(last, ScanResult)
    return last


def verdicts(result: ScanResult) -> dict[str, str | None]:
    return {one.recording.name: one.verdict["verdict"] if one.verdict else None for one in result.files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("mine") / "recordings", FILES)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work") / "home"


@pytest.fixture(scope="module")
def first(folder: Path, home: Path) -> Finished:
    before = snapshot(folder)
    finished = compliance_scan(home, folder, "--json")
    assert snapshot(folder) == before, "the user's folder is only read"
    return finished


def test_each_file_gets_the_verdict_of_its_truth_and_the_exit_code_says_found(first: Finished) -> None:
    assert first.verdicts == VERDICTS, first.err
    assert first.code == 3
    assert "Traceback" not in first.err


def test_the_json_names_rule_offset_and_masked_value_of_each_finding(first: Finished) -> None:
    of = {r["file"]: r for r in first.document["recordings"]}
    assert first.document.keys() == {"recordings", "skipped"}
    for one in of.values():
        assert one.keys() == {
            "file", "recordingId", "channel", "verdict", "reason", "undeterminedRules", "violations",
        }  # fmt: skip
        assert bool(one["violations"]) is (one["verdict"] == "VIOLATION_DETECTED")
        assert (one["reason"] is not None) is (one["verdict"] == "UNSCREENABLE")
        if one["verdict"] == "UNDETERMINED":
            assert "REC-CONSENT-01" in one["undeterminedRules"]
    [tones] = of["calls/tones.wav"]["violations"]
    assert tones.keys() == {
        "rule_id", "violation_type", "severity", "detector", "speaker", "start_ms", "confidence", "masked", "hits",
    }  # fmt: skip
    assert (tones["rule_id"], tones["violation_type"], tones["detector"]) == (
        "PCI-DTMF-01",
        "PCI_DTMF_CAPTURE",
        "tones",
    )
    assert abs(tones["start_ms"] - (TONES.truth.offset_ms or 0)) < 300
    card = TONES.planted[-1]
    assert tones["masked"].startswith(card[:6])
    assert tones["masked"].endswith(card[-4:])
    assert "*" in tones["masked"]
    assert {r["channel"] for r in of.values()} == {"voice", "chat", "email"}


def test_a_damaged_file_is_unscreenable_with_its_reason(first: Finished) -> None:
    [broken] = [r for r in first.document["recordings"] if r["file"] == "calls/broken.wav"]
    assert (broken["verdict"], broken["reason"]) == ("UNSCREENABLE", "truncated")


def test_what_is_not_screened_is_named_with_the_reason(first: Finished) -> None:
    assert first.document["skipped"] == [
        {"file": "noname", "why": "no suffix to tell the type by"},
        {"file": "readme.pdf", "why": "unknown type '.pdf'"},
    ]


def test_nothing_sensitive_lies_in_any_file_that_the_scan_wrote_or_in_what_it_printed(
    first: Finished, home: Path
) -> None:
    planted = {one.kind.value: one.planted for one in (TONES, MP3, CARD, EMAIL)}
    canaries = Canaries(planted, {})
    leaks, files = canaries.sweep(home)
    assert leaks == []
    assert files > 5
    assert list(canaries.find((first.out + first.err).encode())) == []
    # And the sweep finds what is there.
    found, _ = canaries.sweep(write(home.parent / "control", {"chat.json": CARD.media}))
    assert found


def test_a_second_scan_reads_nothing_again_and_says_the_same(
    first: Finished, folder: Path, home: Path, tmp_path: Path
) -> None:
    warehouse = (home / "scan" / "warehouse.duckdb").read_bytes()
    hidden = {path: path.read_bytes() for path in (folder / "calls/tones.wav", folder / "chats/card.json")}
    try:
        for path, content in hidden.items():
            # Same name, size and time: to whoever does not read it, the same file.
            times = path.stat()
            path.write_bytes(b"\0" * len(content))
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        again = compliance_scan(home, folder, "--json")
    finally:
        for path, content in hidden.items():
            times = path.stat()
            path.write_bytes(content)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert again.document == first.document
    assert again.code == first.code
    assert (home / "scan" / "warehouse.duckdb").read_bytes() == warehouse


def test_the_remediation_files_name_the_violation_once_each(first: Finished, home: Path) -> None:
    made = home / "scan" / "remediations"
    assert len(list((made / "tags").iterdir())) == len(list((made / "work_items").iterdir())) == 3


def test_the_table_shows_findings_unscreenable_and_skipped_files(first: Finished, folder: Path, home: Path) -> None:
    shown = compliance_scan(home, folder)
    assert shown.code == 3
    for expected in ("PCI-DTMF-01", "PCI-PAN-01", "UNSCREENABLE", "calls/broken.wav: truncated", "readme.pdf"):
        assert expected in shown.out
    assert (
        "6 recordings: 3 with findings, 1 with none, 1 undetermined, 1 that could not be screened; 2 files skipped."
        in shown.out
    )


def test_nothing_found_exits_with_zero(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", {"note.txt": NOTE.encode(), "clean.json": CLEAN.media})
    finished = scan_here(tmp_path / "home", folder)
    assert (finished.code, "2 with none" in finished.out) == (0, True)


def test_nothing_found_but_not_all_screened_exits_with_four(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", {"note.txt": NOTE.encode(), "empty.wav": b""})
    finished = scan_here(tmp_path / "home", folder / "empty.wav", "--json")
    assert (finished.code, finished.verdicts) == (4, {"empty.wav": "UNSCREENABLE"})


def test_a_folder_of_unknown_files_is_told_so(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", {"readme.pdf": b"%PDF"})
    assert verdicts(scanned(folder, tmp_path / "home")) == {}


def obey_permissions() -> None:
    """Root reads everything: take that power (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH) from what is executed next."""
    if os.geteuid() == 0:
        prctl, drop = ctypes.CDLL(None, use_errno=True).prctl, 24  # PR_CAPBSET_DROP
        for capability in (1, 2):
            if prctl(drop, capability, 0, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "prctl")


def test_a_file_that_may_not_be_read_is_unscreenable_and_says_what_to_do(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", {"note.txt": NOTE.encode(), "secret.txt": NOTE.encode()})
    (folder / "secret.txt").chmod(0)
    try:
        finished = compliance_scan(tmp_path / "home", folder, "--json", before=obey_permissions)
    except subprocess.SubprocessError:
        pytest.skip("root reads everything here, and may not give that up")
    assert finished.verdicts == {"note.txt": "NO_VIOLATION", "secret.txt": "UNSCREENABLE"}, finished.err
    [secret] = [r for r in finished.document["recordings"] if r["file"] == "secret.txt"]
    assert "the file can't be read (EACCES); check its permissions" in secret["reason"]
    assert finished.code == 4


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    folder, home = write(tmp_path / "mine", {"chat.json": CLEAN.media}), tmp_path / "home"
    assert verdicts(scanned(folder, home)) == {"chat.json": "NO_VIOLATION"}
    write(folder, {"chat.json": CARD.media})
    assert verdicts(scanned(folder, home)) == {"chat.json": "VIOLATION_DETECTED"}


def test_progress_is_told_from_none_to_all(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", {f"{n}.txt": f"{n} {NOTE}".encode() for n in range(3)})
    told = [step for step in scan(folder, Settings(home=tmp_path / "home")) if isinstance(step, tuple)]
    assert told[0][0] <= told[-1][0]
    assert told[-1] == (3, 3)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_two_scans_of_one_home_at_once_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", {"note.txt": NOTE.encode()})
    running = scan(folder, Settings(home=tmp_path / "home"))
    next(running)
    with pytest.raises(ScanInProgress, match="COMPLIANCE_HOME"):
        list(scan(folder, Settings(home=tmp_path / "home")))
    *_, last = running
    assert isinstance(last, ScanResult)


STOPPED = """
import os, sys
from pathlib import Path
from compliance_pipeline import scan as scans
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline.platforms import folder
from compliance_pipeline.screening.policy import load_policy
from compliance_pipeline.settings import Settings
from compliance_pipeline.clock import utc_now
from datetime import timedelta

settings = Settings(home=Path(sys.argv[2]) / "scan")
inbox = Inbox(settings.inbox_database_url)
inbox.create()
scans._announce(settings, load_policy(), inbox, folder.from_settings(Path(sys.argv[1]), settings).recordings())
[work] = inbox.pending(utc_now())
inbox.claim(work.partition_hour, "a run", utc_now(), timedelta(minutes=2), 1)
os._exit(9)
"""


def stop_in_the_middle(folder: Path, home: Path) -> None:
    """A scan that was killed when it had announced its files and a run had claimed one of them."""
    done = subprocess.run([sys.executable, "-c", STOPPED, str(folder), str(home)], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr


def test_a_scan_that_was_killed_is_finished_by_the_next(tmp_path: Path) -> None:
    folder, home = write(tmp_path / "mine", {"a.json": CARD.media, "b.json": CLEAN.media}), tmp_path / "home"
    stop_in_the_middle(folder, home)
    assert verdicts(scanned(folder, home)) == {"a.json": "VIOLATION_DETECTED", "b.json": "NO_VIOLATION"}


def test_what_a_killed_scan_of_another_folder_left_is_not_taken_for_gone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    mine = write(tmp_path / "mine", {"a.json": CARD.media, "b.json": SSN.media})
    other = write(tmp_path / "other", {"c.json": CLEAN.media})
    stop_in_the_middle(mine, home)
    assert verdicts(scanned(other, home)) == {"c.json": "NO_VIOLATION"}
    assert verdicts(scanned(mine, home)) == {"a.json": "VIOLATION_DETECTED", "b.json": "VIOLATION_DETECTED"}


def test_the_live_inbox_and_warehouse_are_not_touched(first: Finished, home: Path) -> None:
    assert [path.name for path in home.iterdir()] == ["scan"]
    inbox = Inbox(f"sqlite:///{home / 'scan' / 'inbox.db'}")
    assert inbox.pending(utc_now()) == []
    inbox.close()


def test_another_policy_judges_the_same_files_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "mine", {"a.json": CARD.media})
    home = tmp_path / "home"
    assert verdicts(scanned(folder, home)) == {"a.json": "VIOLATION_DETECTED"}
    pack = tmp_path / "pack.yaml"
    pack.write_text(DEFAULT_PACK.read_text().replace("min_confidence: 0.8", "min_confidence: 1.0"))
    monkeypatch.setenv("COMPLIANCE_POLICY", str(pack))
    assert verdicts(scanned(folder, home)) == {"a.json": "REVIEW_REQUIRED"}


def test_the_pack_that_was_promoted_judges_in_a_scan_too(tmp_path: Path) -> None:
    folder, home = write(tmp_path / "mine", {"a.json": CARD.media}), tmp_path / "home"
    assert verdicts(scanned(folder, home)) == {"a.json": "VIOLATION_DETECTED"}
    pack = tmp_path / "pack.yaml"
    pack.write_text(DEFAULT_PACK.read_text().replace("min_confidence: 0.8", "min_confidence: 1.0"))
    settings = Settings(home=home)
    inbox = Inbox(settings.inbox_database_url)
    inbox.create()
    promote(settings, inbox.engine, load_policy(pack), "anna", utc_now(), without_diff="for a test")
    inbox.close()
    assert verdicts(scanned(folder, home)) == {"a.json": "REVIEW_REQUIRED"}


def test_an_inbox_that_does_not_answer_is_named_with_what_to_do(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", {"a.json": CARD.media})
    unreachable = Settings(home=tmp_path / "home", inbox_url="postgresql+psycopg://127.0.0.1:1/none")
    with pytest.raises(PolicyError, match="see `compliance doctor`"):
        next(scan(folder, unreachable))


def test_an_inbox_set_by_variable_is_not_the_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = f"sqlite:///{tmp_path / 'live.db'}"
    inbox = Inbox(live)
    inbox.create()
    inbox.store([incoming("live-1", at=utc_now())], utc_now())
    monkeypatch.setenv("COMPLIANCE_INBOX_URL", live)
    folder = write(tmp_path / "mine", {"a.json": CARD.media})
    assert verdicts(scanned(folder, tmp_path / "home")) == {"a.json": "VIOLATION_DETECTED"}
    item = inbox.get("live-1")
    assert item is not None
    assert (item.state, item.attempts) == (State.NEW, 0)
    inbox.close()
