import json
import resource
import sqlite3
import tempfile
import zipfile
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from compliance_pipeline import audit, database, ledger
from compliance_pipeline.audit import SEALS_FILE, LedgerBroken, check_bundle, custody, export, seal, verify
from compliance_pipeline.contracts.policy import PolicyPack
from compliance_pipeline.ledger import GENESIS, Entry, record
from compliance_pipeline.media.vault import vault_of
from compliance_pipeline.screening.policy import load_policy
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.tables import EvidenceRow, VerdictRow
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.intake.conftest import postgres_uri

__all__ = ["postgres_uri"]
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
COLUMNS = [column.name for column in ledger.ledger_table.columns]


class Place:
    """A home folder with an operational database, as an attacker with the file sees it too."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home, _env_file=None)
        self.engine = database.connect(self.settings.inbox_database_url)
        self.made = 0

    def write(self, count: int, recording_id: str = "rec-1") -> None:
        keys = range(self.made, self.made + count)
        self.made += count
        record(self.engine, [Entry(f"k{n}", "action", "pipeline", recording_id, details={"n": n}) for n in keys], NOON)

    def seal(self) -> audit.Seal | None:
        return seal(self.engine, self.settings, NOON + timedelta(seconds=self.made))

    def tamper(self, *statements: str) -> None:
        """As somebody who has the file and drops the triggers first."""
        connection = sqlite3.connect(self.settings.home / "inbox.db")
        for table in ("ledger", "ledger_seals"):
            for verb in ("update", "delete"):
                connection.execute(f"DROP TRIGGER IF EXISTS {table}_no_{verb}")
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    def rehash(self) -> None:
        """Make the chain hang together again, as somebody who knows how it is made."""
        connection = sqlite3.connect(self.settings.home / "inbox.db")
        connection.row_factory = sqlite3.Row
        previous = GENESIS
        for row in connection.execute("SELECT * FROM ledger ORDER BY seq").fetchall():
            digest = ledger.content_digest(dict(row))
            hashed = ledger.chain_hash(previous, digest)
            connection.execute(
                "UPDATE ledger SET content_digest = ?, previous_hash = ?, hash = ? WHERE seq = ?",
                (digest, previous, hashed, row["seq"]),
            )
            previous = hashed
        connection.commit()
        connection.close()

    def rows(self) -> list[tuple[object, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql("SELECT * FROM ledger ORDER BY seq")]

    def faults(self, *, since_seal: bool = False, copy: Path | None = None) -> list[tuple[int, str]]:
        result = verify(self.engine, self.settings, since_seal=since_seal, copy=copy)
        return [(fault.seq, fault.what) for fault in result.faults]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.engine.dispose()


def test_a_ledger_that_nobody_touched_is_unbroken(place: Place) -> None:
    assert place.faults() == []
    assert place.seal() is None
    place.write(5)
    assert place.faults() == []
    sealed = place.seal()
    assert sealed is not None
    assert place.seal() is None
    place.write(3)
    result = verify(place.engine, place.settings)
    assert (result.entries, result.checked, result.fault_count, result.sealed) == (8, 8, 0, sealed)
    assert sealed.seq == 5
    assert (place.settings.home / "secrets" / "ledger").stat().st_mode & 0o777 == 0o600
    assert (place.settings.home / SEALS_FILE).stat().st_mode & 0o777 == 0o600


def test_checking_since_the_last_seal_reads_only_what_is_new(place: Place) -> None:
    place.write(500)
    place.seal()
    place.write(3)
    result = verify(place.engine, place.settings, since_seal=True)
    assert (result.entries, result.checked, result.fault_count) == (503, 4, 0)
    place.tamper("UPDATE ledger SET actor = 'nobody' WHERE seq = 502")
    assert [seq for seq, _ in place.faults(since_seal=True)] == [502]


def test_checking_since_the_last_seal_checks_no_older_seal(place: Place) -> None:
    for _ in range(3):
        place.write(2)
        place.seal()
    place.tamper("UPDATE ledger_seals SET signature = 'x' WHERE seq = 2")
    file = place.settings.home / SEALS_FILE
    first, second, third = file.read_text().splitlines(keepends=True)
    file.write_text(f"{first}nonsense\n{third}")
    assert [seq for seq, _ in place.faults()] == [0, 2, 4]
    assert place.faults(since_seal=True) == []
    file.write_text(first + second)
    assert [seq for seq, _ in place.faults(since_seal=True)] == [6], "the table's newest is not in the file"


def test_a_seal_that_only_the_file_has_after_a_crash_is_no_fault(place: Place) -> None:
    for _ in range(2):
        place.write(2)
        place.seal()
    place.tamper("DELETE FROM ledger_seals WHERE seq = 4")
    assert (place.faults(), place.faults(since_seal=True)) == ([], [])
    assert place.seal() is not None
    assert place.faults() == []


@pytest.mark.parametrize(
    ("statement", "where", "words"),
    [
        ("UPDATE ledger SET actor = 'nobody' WHERE seq = 3", 3, "changed"),
        ("UPDATE ledger SET details = '{\"n\": 2}' WHERE seq = 3", 3, "changed"),
        ("UPDATE ledger SET at = at + 1 WHERE seq = 3", 3, "changed"),
        ("UPDATE ledger SET at = x'00ff' WHERE seq = 3", 3, "changed"),
        ("DELETE FROM ledger WHERE seq = 3", 3, "missing: entry 3"),
        ("DELETE FROM ledger WHERE seq IN (3, 4)", 3, "missing: entries 3 to 4"),
        ("DELETE FROM ledger WHERE seq > 4", 5, "missing: entries 5 to 6, sealed at"),
        ("DELETE FROM ledger", 1, "missing: entries 1 to 6, sealed at"),
        ("UPDATE ledger SET seq = -3 WHERE seq = 3", -3, "before the first"),
    ],
)
def test_what_was_done_to_an_entry_is_said_with_its_number(
    place: Place, statement: str, where: int, words: str
) -> None:
    place.write(6)
    place.seal()
    place.tamper(statement)
    faults = place.faults()
    assert faults[0][0] == where
    assert words in faults[0][1]


def test_entries_that_changed_places_are_found(place: Place) -> None:
    place.write(6)
    place.tamper(
        "UPDATE ledger SET seq = 99 WHERE seq = 3", "UPDATE ledger SET seq = 3 WHERE seq = 4",
        "UPDATE ledger SET seq = 4 WHERE seq = 99",
    )  # fmt: skip
    assert {seq for seq, _ in place.faults()} == {3, 4, 5}


@pytest.mark.parametrize(
    "statement", ["UPDATE ledger SET actor = 'x' WHERE seq = 2", "DELETE FROM ledger WHERE seq = 6"]
)
def test_a_chain_that_was_made_anew_is_found_by_the_seal(place: Place, statement: str) -> None:
    place.write(6)
    place.seal()
    place.tamper(statement)
    place.rehash()
    assert [seq for seq, _ in place.faults()] == [6]
    place.tamper("DELETE FROM ledger_seals")
    assert [seq for seq, _ in place.faults()] == [6], "the file of seals knows"


def test_a_broken_ledger_is_not_sealed(place: Place) -> None:
    place.write(4)
    place.tamper("DELETE FROM ledger WHERE seq = 2")
    with pytest.raises(LedgerBroken, match="entry 2"):
        place.seal()
    assert not (place.settings.home / SEALS_FILE).exists()


def test_a_forged_seal_is_found(place: Place) -> None:
    place.write(4)
    sealed = place.seal()
    assert sealed is not None
    place.tamper("UPDATE ledger SET actor = 'x' WHERE seq = 2")
    place.rehash()
    place.tamper("UPDATE ledger_seals SET hash = (SELECT hash FROM ledger WHERE seq = 4)")
    faults = place.faults()
    assert any("not made with this installation's key" in what for _, what in faults)
    assert any("sealed at" in what for _, what in faults)


def test_seals_that_went_are_missed(place: Place) -> None:
    place.write(4)
    place.seal()
    file = place.settings.home / SEALS_FILE
    kept = file.read_bytes()
    file.unlink()
    assert "is gone" in place.faults()[0][1]
    file.write_bytes(b"")
    assert place.faults() == [(4, f"its seal is in the table but not in {SEALS_FILE}")]
    wrong = {**json.loads(kept), "seq": []}
    for line in (b"nonsense", json.dumps(wrong).encode(), b"[" * 100_000, b"{}", b"\xff"):
        file.write_bytes(kept + line + b"\n")
        for since_seal in (False, True):
            assert place.faults(since_seal=since_seal)[0] == (0, f"line 2 of {SEALS_FILE} is not a seal")


def test_without_the_key_of_the_seals_nothing_is_sealed_or_handed_out_and_no_key_made(
    place: Place, tmp_path: Path
) -> None:
    place.write(4)
    place.seal()
    place.write(1)
    key = place.settings.home / "secrets" / "ledger"
    key.unlink()
    before = place.rows()
    assert "is gone" in place.faults()[0][1]
    with pytest.raises(LedgerBroken, match=r"^the ledger is broken: the key .* is gone"):
        place.seal()
    with pytest.raises(audit.KeyLost):
        export(place.engine, place.settings, "rec-1", tmp_path / "bundle.zip", "me", NOON)
    place.tamper("DELETE FROM ledger_seals")
    with pytest.raises(audit.KeyLost):
        export(place.engine, place.settings, "rec-1", tmp_path / "bundle.zip", "me", NOON)
    assert place.rows() == before
    assert not key.exists()
    assert not list(tmp_path.glob("*bundle*"))


def test_a_ledger_cut_back_to_an_older_seal_is_shown_by_a_copy_of_the_seals(place: Place, tmp_path: Path) -> None:
    file, copy = place.settings.home / SEALS_FILE, tmp_path / "elsewhere.jsonl"
    for _ in range(2):
        place.write(3)
        place.seal()
    copy.write_bytes(file.read_bytes())
    place.write(2)
    place.seal()
    assert place.faults(copy=copy) == [], "an older copy is no fault"
    place.tamper("DELETE FROM ledger WHERE seq > 3", "DELETE FROM ledger_seals WHERE seq > 3")
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    assert place.faults() == [], "nothing on this machine shows it"
    for since_seal in (False, True):
        [(seq, what)] = place.faults(since_seal=since_seal, copy=copy)
        assert (seq, what.split(",")[0]) == (4, "missing: entries 4 to 6")
    with pytest.raises(FileNotFoundError):
        place.faults(copy=tmp_path / "nowhere")


def test_a_ledger_written_anew_is_shown_by_the_key_that_was_left_or_a_copy_of_the_seals(
    place: Place, tmp_path: Path
) -> None:
    file, key = place.settings.home / SEALS_FILE, place.settings.home / "secrets" / "ledger"
    copy = tmp_path / "elsewhere.jsonl"
    place.write(3)
    place.seal()
    file.rename(copy)
    place.tamper("DELETE FROM ledger_seals", "UPDATE ledger SET actor = 'nobody'")
    place.rehash()
    [(seq, what)] = place.faults()
    assert (seq, "no seal that holds" in what) == (0, True)
    with pytest.raises(LedgerBroken, match="were they removed"):
        place.seal()
    key.unlink()
    assert place.faults() == [], "as if it had never been sealed"
    assert "is gone" in place.faults(copy=copy)[0][1]
    place.seal()
    assert place.faults() == []
    place.write(1)
    place.seal()
    for since_seal in (False, True):
        assert place.faults(since_seal=since_seal, copy=copy) == [
            (3, "the seal in the copy was not made with this installation's key")
        ]


def test_a_ledger_written_anew_by_somebody_with_the_key_is_shown_by_a_copy_of_the_seals(
    place: Place, tmp_path: Path
) -> None:
    file, copy = place.settings.home / SEALS_FILE, tmp_path / "elsewhere.jsonl"
    place.write(3)
    sealed = place.seal()
    assert sealed is not None
    copy.write_bytes(file.read_bytes())
    place.tamper("UPDATE ledger SET actor = 'nobody'")
    place.rehash()
    key = Ed25519PrivateKey.from_private_bytes(b64decode(place.settings.ledger_signing_key))
    forged = audit.Seal(3, str(place.rows()[-1][COLUMNS.index("hash")]), sealed.at, "")
    forged = replace(forged, signature=b64encode(key.sign(forged.signed_text)).decode())
    file.write_text(json.dumps(asdict(forged)) + "\n")
    place.tamper(f"UPDATE ledger_seals SET hash = '{forged.hash}', signature = '{forged.signature}'")
    place.write(1)
    place.seal()
    assert place.faults() == [], "nothing on this machine shows it"
    for since_seal in (False, True):
        assert place.faults(since_seal=since_seal, copy=copy)[0] == (
            3, "the seal in the copy is of another ledger than one elsewhere",
        )  # fmt: skip


def test_what_a_power_cut_left_of_a_seal_is_no_fault_and_goes(place: Place) -> None:
    place.write(4)
    place.seal()
    file = place.settings.home / SEALS_FILE
    with file.open("a") as opened:
        opened.write('{"seq":')
    assert place.faults() == []
    place.write(1)
    assert place.seal() is not None
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 2
    assert place.faults() == []


@pytest.mark.parametrize("room", [0, 1, 50])
def test_a_seal_that_the_disk_had_room_for_in_part_only_leaves_nothing(place: Place, room: int) -> None:
    place.write(4)
    place.seal()
    place.write(1)
    file = place.settings.home / SEALS_FILE
    kept = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) + room, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            place.seal()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == kept
    assert place.seal() is not None
    assert place.faults() == []


CHANGES: dict[str, Callable[[st.DataObject, int], list[str]]] = {
    "delete": lambda data, count: [f"DELETE FROM ledger WHERE seq = {data.draw(st.integers(1, count))}"],
    "truncate": lambda data, count: [f"DELETE FROM ledger WHERE seq > {data.draw(st.integers(0, count - 1))}"],
    "change": lambda data, count: [
        f"UPDATE ledger SET {data.draw(st.sampled_from(COLUMNS[1:]))} = {data.draw(st.integers(10**6, 10**7))} "
        f"WHERE seq = {data.draw(st.integers(1, count))}"
    ],
    "swap": lambda data, count: [
        f"UPDATE ledger SET seq = seq + 1000 WHERE seq = {(first := data.draw(st.integers(1, count - 1)))}",
        f"UPDATE ledger SET seq = {first} WHERE seq = {(second := data.draw(st.integers(first + 1, count)))}",
        f"UPDATE ledger SET seq = {second} WHERE seq = {first + 1000}",
    ],
}


@given(st.data(), st.sampled_from(list(CHANGES)), st.integers(2, 12), st.integers(0, 4), st.booleans())
@hypothesis_settings(max_examples=30, deadline=None)
def test_any_change_to_sealed_entries_is_found_also_when_the_chain_is_made_anew(
    data: st.DataObject, change: str, count: int, unsealed: int, made_anew: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        place.write(count)
        place.seal()
        place.write(unsealed)
        before = place.rows()
        assert place.faults() == []
        place.tamper(*CHANGES[change](data, count))
        if made_anew:
            place.rehash()
        # A digest or hash that was changed is as it was when the chain is made anew.
        assert bool(place.faults()) == (place.rows() != before)
        assert made_anew or place.rows() != before
        place.engine.dispose()


def fill(place: Place, policy: PolicyPack) -> bytes:
    """A verdict, a clip in the vault, and entries; the clip."""
    clip = b"masked clip" * 1000
    vault = vault_of(place.settings, place.engine)
    vault.put("rec-1", "evidence/e/0.flac", clip, NOON)
    vault.put("rec-1", "evidence/e/1.flac", b"another clip", NOON)
    for name in ("media/original.wav", "evidence"):
        vault.put("rec-1", name, b"unmasked", NOON)
    vault.close()
    digest, unmasked = sha256(clip).hexdigest(), sha256(b"unmasked").hexdigest()
    verdict = VerdictRow(
        "rec-1", policy.policy_version, "e", NOON, "voice", "VIOLATION_DETECTED", "PCI", "R-1", "high", 0.9, 1,
        "[card]", "tag", "msg-1", None, [], NOON, "run-1",
    )  # fmt: skip
    evidence = [
        EvidenceRow("rec-1", "e", 0, NOON, "verified", None, "evidence/e/0.flac", 0, 1, digest, NOON, "r"),
        EvidenceRow("rec-1", "e", 1, NOON, "verified", None, "evidence/e/1.flac", 0, 1, "0" * 64, NOON, "r"),
        *(
            EvidenceRow("rec-1", "e", number, NOON, "verified", None, uri, 0, 1, unmasked, NOON, "r")
            for number, uri in ((3, "media/original.wav"), (4, "evidence"), (5, None))
        ),
        EvidenceRow("rec-1", "e", 2, NOON, "refused", "digits remain", None, None, None, None, NOON, "r"),
    ]  # fmt: skip
    Warehouse(place.settings.warehouse_path).append([verdict, *evidence])
    place.write(3)
    place.write(2, "rec-2")
    place.seal()
    place.write(4, "rec-2")
    place.write(1)
    place.write(2, "rec-2")
    return clip


def test_a_bundle_holds_what_an_auditor_needs_and_checks_itself(place: Place, tmp_path: Path) -> None:
    clip = fill(place, load_policy())
    path = tmp_path / "bundle.zip"
    made = export(place.engine, place.settings, "rec-1", path, "A. Auditor", NOON)
    assert (made.clips, made.entries, path.stat().st_mode & 0o777) == (1, 6, 0o600)
    assert any("finding 1" in note and "left out" in note for note in made.notes)
    assert any("digits remain" in note for note in made.notes)
    assert [note for note in made.notes if "what is stored is none" in note] == [
        f"finding {number} has no clip: what is stored is none" for number in (3, 4, 5)
    ]
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert [archive.read(name) for name in names if name.startswith("clips/")] == [clip]
        assert len([name for name in names if name.startswith("policy/")]) == 1
        assert json.loads(archive.read("warehouse/verdicts.json"))[0]["verdict"] == "VIOLATION_DETECTED"
        links = [json.loads(line)["seq"] for line in archive.read("ledger/chain.jsonl").splitlines()]
        assert not any(b"unmasked" in archive.read(name) for name in names)
    assert links == [1, 2, 3, 4, 5, 10, 11, 12, 13, 14], "only from each entry to the seal after it"
    checked = check_bundle(path)
    assert (checked.recording_id, checked.entries, checked.faults) == ("rec-1", 6, ())
    assert checked.key == verify(place.engine, place.settings).key
    assert [(event.kind, event.actor) for event in custody(place.engine, "rec-1")][-2:] == [
        ("export", "A. Auditor"),
        ("play", "A. Auditor"),
    ]
    assert place.faults() == []


def test_a_bundle_whose_clips_were_shredded_says_so_and_stays_sound(place: Place, tmp_path: Path) -> None:
    fill(place, load_policy())
    vault = vault_of(place.settings, place.engine)
    vault.shred("rec-1", NOON)
    vault.close()
    made = export(place.engine, place.settings, "rec-1", tmp_path / "bundle.zip", "me", NOON)
    assert made.clips == 0
    assert any("can't be had" in note for note in made.notes)
    assert check_bundle(made.path).faults == ()


def test_anything_changed_in_a_bundle_is_found(place: Place, tmp_path: Path) -> None:
    fill(place, load_policy())
    path = export(place.engine, place.settings, "rec-1", tmp_path / "bundle.zip", "me", NOON).path
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    forged = tmp_path / "forged.zip"

    def put(changed: dict[str, bytes]) -> tuple[str, ...]:
        with zipfile.ZipFile(forged, "w") as archive:
            for name, content in changed.items():
                archive.writestr(name, content)
        try:
            return check_bundle(forged).faults
        except audit.NotABundle as error:
            return (str(error),)

    assert put(parts) == ()
    for name in parts:
        assert put({**parts, name: parts[name] + b" "}), name
        assert put({other: content for other, content in parts.items() if other != name}), name
    assert put({**parts, "added.txt": b"x"})
    entries = parts["ledger/entries.jsonl"].replace(b'"actor":"pipeline"', b'"actor":"somebody"', 1)
    manifest = json.loads(parts["manifest.json"])
    manifest["sha256"]["ledger/entries.jsonl"] = sha256(entries).hexdigest()
    faults = put({**parts, "ledger/entries.jsonl": entries, "manifest.json": json.dumps(manifest).encode()})
    assert "entry 1 was changed" in faults
    assert "manifest.json was not signed with the bundle's key" in faults
    for broken in (b"", b"PK nonsense"):
        forged.write_bytes(broken)
        with pytest.raises(audit.NotABundle):
            check_bundle(forged)


def encrypted(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("public-key.pem", b"x" * 1000)
    packed = bytearray(path.read_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        packed[packed.index(mark) + at] |= 1
    path.write_bytes(packed)


def packed(method: int) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("public-key.pem", b"x" * 1000)
        packed = bytearray(path.read_bytes())
        packed[30 + len("public-key.pem") + 10] ^= 255
        path.write_bytes(packed)

    return spoil


def pointing_before_itself(path: Path) -> None:
    packed = bytearray(path.read_bytes())
    at = packed.rindex(b"PK\5\6") + 16
    packed[at : at + 4] = (int.from_bytes(packed[at : at + 4], "little") + 1_000_000).to_bytes(4, "little")
    path.write_bytes(packed)


def nested(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**parts, "manifest.json": b"[" * 100_000}.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    "spoil", [encrypted, packed(zipfile.ZIP_BZIP2), packed(zipfile.ZIP_LZMA), pointing_before_itself, nested]
)
def test_a_file_made_to_break_the_check_is_no_bundle(
    place: Place, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    place.write(2)
    path = export(place.engine, place.settings, "rec-1", tmp_path / "bundle.zip", "me", NOON).path
    spoil(path)
    with pytest.raises(audit.NotABundle):
        check_bundle(path)


@pytest.mark.parametrize("actor", ["A. Auditor, card 4111 1111 1111 1111", "A. Auditor \udcff"])
def test_a_bundle_is_made_for_nobody_whose_name_the_ledger_may_not_keep(
    place: Place, tmp_path: Path, actor: str
) -> None:
    place.write(2)
    before = place.rows()
    with pytest.raises(ValueError, match="the name of who gets it") as refusal:
        export(place.engine, place.settings, "rec-1", tmp_path / "bundle.zip", actor, NOON)
    assert "4111" not in str(refusal.value)
    assert place.rows() == before
    assert not list(tmp_path.glob("*bundle*"))


def test_a_recording_that_nobody_knows_has_no_bundle(place: Place, tmp_path: Path) -> None:
    with pytest.raises(audit.NothingKnown):
        export(place.engine, place.settings, "rec-9", tmp_path / "bundle.zip", "me", NOON)
    assert not list(tmp_path.glob("*bundle*"))
    assert custody(place.engine, "rec-9") == []


def test_checking_takes_no_more_memory_for_more_entries(place: Place) -> None:
    import tracemalloc

    def peak() -> int:
        tracemalloc.start()
        assert place.faults() == []
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    place.write(3000)
    first = peak()
    place.write(7000)
    assert peak() < 1.5 * first


def test_a_postgres_ledger_is_checked_the_same(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("postgres_uri")
    settings = Settings(home=tmp_path, inbox_url=url, _env_file=None)
    engine = database.connect(url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    record(engine, [Entry(f"k{n}", "action", "pipeline", "rec-1", details={"n": n}) for n in range(5)], NOON)
    assert seal(engine, settings, NOON) is not None
    assert verify(engine, settings).is_unbroken
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TRIGGER ledger_only_grows ON ledger"))
        connection.execute(sa.text("UPDATE ledger SET actor = 'x' WHERE seq = 2"))
    assert [fault.seq for fault in verify(engine, settings).faults] == [2]
    engine.dispose()
