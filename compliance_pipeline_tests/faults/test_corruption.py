"""fault: a damaged, cut off, emptied or swapped file; invariant: an error that says which file and what to do next, no
wrong answer, no new empty database over the old one, nothing sensitive in what is said; restored, all goes on.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from compliance_pipeline import database
from compliance_pipeline.database import DatabaseDamaged
from compliance_pipeline.doctor import Finding, check
from compliance_pipeline.intake.inbox import Inbox, State
from compliance_pipeline.media.vault import Tampered, Vault, VaultError, data_keys, vault_of
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.warehouse import Warehouse, WarehouseDamaged
from compliance_pipeline_tests.intake.samples import incoming
from compliance_pipeline_tests.media.test_vault import blob
from compliance_pipeline_tests.warehouse.rows import recording

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SEED = 5
SENSITIVE = "4111111111111111"
CLIP = SENSITIVE.encode() * 160_000
"""Three segments of the cipher."""

Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "cut off in the middle": lambda content: content[: len(content) // 2],
    "cut off in its header": lambda content: content[:100],
    "header overwritten": lambda content: bytes(12_288) + content[12_288:],
    "all overwritten": lambda content: random.Random(SEED).randbytes(len(content)),
    "emptied": lambda _: b"",
    "another file": lambda _: SENSITIVE.encode() * 1_000,
}


@pytest.fixture(params=list(DAMAGES))
def damage(request: pytest.FixtureRequest) -> Damage:
    return DAMAGES[request.param]


def found(home: Path, name: str) -> Finding:
    """What `compliance doctor` says of one thing."""
    settings = Settings(home=home, platform_url="http://127.0.0.1:9")
    [finding] = [one for one in check(settings, NOW) if one.name == name]
    return finding


def is_quiet(error: object) -> bool:
    return SENSITIVE not in f"{error}{error!r}"


def test_a_damaged_warehouse_is_refused_untouched_and_works_again_when_restored(damage: Damage, tmp_path: Path) -> None:
    """fault: the warehouse's file is damaged; invariant: refused by name with what to do; not written; restored, all
    is there."""
    path = tmp_path / "warehouse.duckdb"
    Warehouse(path).append([recording(f"{SENSITIVE}-{number}") for number in range(3_000)])
    whole = path.read_bytes()
    path.write_bytes(damaged := damage(whole))
    attempts: list[Callable[[Warehouse], object]] = [
        lambda warehouse: warehouse.select("SELECT count(*) FROM recordings"),
        lambda warehouse: warehouse.append([recording("new")]),
    ]
    for attempt in attempts:
        with pytest.raises(WarehouseDamaged, match="restore your backup") as refused:
            attempt(Warehouse(path))
        assert str(path) in str(refused.value)
        assert is_quiet(refused.value)
        assert path.read_bytes() == damaged
    said = found(tmp_path, "warehouse")
    assert said.state == "bad"
    assert "restore your backup" in said.fix
    path.write_bytes(whole)
    assert Warehouse(path).append([recording("new")]) == 1
    assert len(Warehouse(path).select("SELECT recording_id FROM recordings")) == 3_001


def test_no_byte_of_the_warehouse_can_be_changed_into_another_answer(tmp_path: Path) -> None:
    """fault: single blocks of the warehouse's file are overwritten; invariant: the same answer, or an error by name."""
    path = tmp_path / "warehouse.duckdb"
    Warehouse(path).append([recording(f"rec-{number}", queue=f"queue-{number % 7}") for number in range(3_000)])
    query = "SELECT recording_id, queue, participants, received_at FROM recordings ORDER BY ALL"
    wanted, whole = Warehouse(path).select(query), path.read_bytes()
    errors = 0
    for begin in range(0, len(whole), 65_536):
        path.write_bytes(whole[: begin + 16] + bytes([whole[begin + 16] ^ 0xFF]) + whole[begin + 17 :])
        try:
            assert Warehouse(path).select(query) == wanted
        except WarehouseDamaged as error:
            errors += 1
            told = str(error)
            assert "restore your backup" in told, told
    assert errors > 1, "nothing that is read was changed: this shows nothing"


@pytest.fixture
def inbox_path(tmp_path: Path) -> Path:
    path = tmp_path / "inbox.db"
    with closing(Inbox(f"sqlite:///{path}")) as inbox:
        inbox.create()
        inbox.store([incoming(f"rec-{SENSITIVE}-{number}") for number in range(300)], NOW)
    return path


def without_log(path: Path) -> None:
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


def stored_anew(inbox: Inbox) -> None:
    """As the receiver does it."""
    inbox.create()
    inbox.store([incoming("rec-new")], NOW)


def test_a_damaged_inbox_is_refused_by_name_and_works_again_when_restored(damage: Damage, inbox_path: Path) -> None:
    """fault: the inbox's file is damaged or emptied; invariant: no new inbox over it, the error says which file and
    what to do; restored, the same process goes on."""
    without_log(inbox_path)
    whole = inbox_path.read_bytes()
    inbox_path.write_bytes(damage(whole))
    with closing(Inbox(f"sqlite:///{inbox_path}")) as inbox:
        for attempt in (inbox.ping, inbox.create, partial(stored_anew, inbox)):
            with pytest.raises(DatabaseDamaged, match="restore your backup") as refused:
                attempt()
            assert str(inbox_path) in str(refused.value)
            assert is_quiet(refused.value)
        without_log(inbox_path)
        inbox_path.write_bytes(whole)
        inbox.create()
        assert inbox.counts()[State.NEW] == 300
        assert not inbox.store([incoming("rec-new")], NOW)[0].duplicate


def test_an_inbox_that_is_gone_is_not_begun_anew_unless_one_says_so(inbox_path: Path) -> None:
    """fault: the inbox's file was deleted; invariant: refused with what to do, for keys and ledger went with it."""
    without_log(inbox_path)
    inbox_path.unlink()
    with closing(Inbox(f"sqlite:///{inbox_path}")) as inbox:
        for _ in range(2):
            with pytest.raises(DatabaseDamaged, match=r"inbox\.db is gone or empty.*remove inbox\.db\.lock"):
                inbox.create()
    inbox_path.with_name("inbox.db.lock").unlink()
    with closing(Inbox(f"sqlite:///{inbox_path}")) as inbox:
        inbox.create()
        assert sum(inbox.counts().values()) == 0


def test_doctor_says_which_inbox_is_damaged_and_how_to_save_what_can_be_saved(inbox_path: Path) -> None:
    """fault: pages of the inbox's file are overwritten; invariant: doctor names it and what to do."""
    content = inbox_path.read_bytes()
    inbox_path.write_bytes(content[:8_192] + bytes(len(content) - 8_192))
    said = found(inbox_path.parent, "database")
    assert said.state == "bad"
    assert "inbox.db is damaged" in said.what
    assert "restore your backup" in said.fix


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    settings = Settings(home=tmp_path)
    engine = database.connect(settings.inbox_database_url)
    with closing(vault_of(settings, engine)) as vault:
        vault.put("rec-1", "clip", CLIP, NOW)
        vault.put("rec-2", "clip", CLIP, NOW)
        yield vault
    engine.dispose()


def all_of(vault: Vault) -> bytes:
    return b"".join(vault.read("rec-1", "clip"))


def test_a_damaged_blob_is_refused_by_its_recording_and_works_again_when_restored(
    damage: Damage, tmp_path: Path, vault: Vault
) -> None:
    """fault: a blob is damaged; invariant: Tampered names the recording and what to do; restored, it is read."""
    path = blob(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.raises(Tampered, match=r"recording rec-1: 'clip' was changed, cut off or swapped.*backup") as refused:
        all_of(vault)
    assert is_quiet(refused.value)
    path.write_bytes(whole)
    assert all_of(vault) == CLIP


def test_a_blob_in_which_one_bit_is_changed_or_that_is_anothers_gives_no_wrong_byte(
    tmp_path: Path, vault: Vault
) -> None:
    """fault: one bit anywhere in a blob, or another recording's blob; invariant: what is given is right up to there."""
    path, rng = blob(tmp_path), random.Random(SEED)
    whole = path.read_bytes()
    print(f"seed {SEED}")
    for at in (0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(20))):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        got: list[bytes] = []
        with pytest.raises(Tampered, match="recording rec-1"):
            got.extend(vault.read("rec-1", "clip"))
        assert CLIP.startswith(b"".join(got))
    shutil.copyfile(blob(tmp_path, "rec-2"), path)
    with pytest.raises(Tampered, match="recording rec-1"):
        all_of(vault)


def test_a_damaged_key_is_refused_by_the_recording_or_file_it_belongs_to(tmp_path: Path, vault: Vault) -> None:
    """fault: the wrapped data key or the key file is damaged; invariant: an error says which, and what to restore."""
    engine = database.connect(Settings(home=tmp_path).inbox_database_url)
    key_file = tmp_path / "secrets" / "vault_key"
    whole = key_file.read_text()
    for content in (whole[: len(whole) // 2], "", "{}", whole.replace("A", "B")):
        key_file.write_text(content)
        with pytest.raises(VaultError, match=r"vault_key.*from your backup") as refused:
            all_of(vault)
        assert is_quiet(refused.value)
        assert found(tmp_path, "vault key").state == "bad"
        assert key_file.read_text() == content
    key_file.write_text(whole)
    with engine.begin() as connection:
        connection.execute(sa.update(data_keys).where(data_keys.c.recording_id == "rec-1").values(wrapped=b"\0" * 60))
    with pytest.raises(VaultError, match=r"recording rec-1: .*from your backup"):
        all_of(vault)
    assert b"".join(vault.read("rec-2", "clip")) == CLIP
    engine.dispose()
