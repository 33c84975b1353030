"""Seals over the ledger, checking all of it, and handing out the part of it that a recording has. No printing.

The chain shows a change to whoever knows a later hash. Seals are those hashes, signed (Ed25519; the key is
`<home>/secrets/ledger`), in the database and in `<home>/ledger-seals.jsonl`. What they can't show:

- changes to entries that no seal covers yet;
- to whoever has only this machine: that ledger, table and file were all cut back to an older seal (which takes no
  key), or that seals and key were all removed, and everything written anew.

So copy the file to where nobody who runs this can write: checked with such a copy, everything up to its last seal is
shown, whatever was done here.
"""

import json
import lzma
import os
import re
import secrets
import zipfile
import zlib
from base64 import b64decode, b64encode
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from compliance_pipeline import database, ledger
from compliance_pipeline.ledger import Entry, canonical, chain_hash, content_digest, ledger_table, seals_table
from compliance_pipeline.plain_text import refuse_sensitive
from compliance_pipeline.private_file import sync
from compliance_pipeline.settings import Settings

SEALS_FILE = "ledger-seals.jsonl"
MOST_FAULTS = 100
"""Described; all are counted."""
_KEY_NAME = "ledger"
_SEAL, _BUNDLE = b"compliance_pipeline seal\n", b"compliance_pipeline bundle\n"
_LARGEST_BUNDLE = 1024**3
_STREAMED = 2000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_row = ledger_table.c
_RAW = [
    sa.type_coerce(_row.at, sa.BigInteger).label("at") if column is _row.at else column for column in ledger_table.c
]
"""The columns as they are stored, so that a value of a wrong kind is found and doesn't raise."""


@dataclass(frozen=True, slots=True)
class Seal:
    """The ledger up to entry `seq` had `hash` at `at` (microseconds since 1970): signed, base64."""

    seq: int
    hash: str
    at: int
    signature: str

    @property
    def sealed_at(self) -> datetime:
        return _time(self.at)

    @property
    def signed_text(self) -> bytes:
        return _SEAL + canonical({"seq": self.seq, "hash": self.hash, "at": self.at}).encode()


@dataclass(frozen=True, slots=True)
class Fault:
    """seq: the entry, or what would be its number; 0 where it is about no entry."""

    seq: int
    what: str


@dataclass(frozen=True, slots=True)
class Verification:
    """entries: the number of the last one. checked: how many were read. faults: the first MOST_FAULTS of `fault_count`.

    sealed: the latest seal that holds. key: the fingerprint of the key that seals were checked with, if there is one.
    """

    entries: int
    checked: int
    head: str
    sealed: Seal | None
    faults: tuple[Fault, ...]
    fault_count: int
    key: str | None

    @property
    def is_unbroken(self) -> bool:
        return self.fault_count == 0


class LedgerBroken(Exception):
    """The ledger was not sealed: what was written since the last seal has faults."""

    def __init__(self, verification: Verification) -> None:
        first = verification.faults[0]
        where = f" at entry {first.seq}" if first.seq else ""
        super().__init__(f"the ledger is broken{where}: {first.what}")
        self.verification = verification


class KeyLost(Exception):
    """The key that the seals were made with is gone or damaged: a new one could not check them."""


class _Faults:
    def __init__(self) -> None:
        self.first: list[Fault] = []
        self.count = 0

    def add(self, seq: int, what: str) -> None:
        self.count += 1
        if len(self.first) < MOST_FAULTS:
            self.first.append(Fault(seq, what))


def _time(microseconds: int) -> datetime:
    return _EPOCH + microseconds * datetime.resolution


# The key


def _signing_key(settings: Settings) -> Ed25519PrivateKey:
    """Raises KeyLost where its file is damaged."""
    try:
        return Ed25519PrivateKey.from_private_bytes(b64decode(settings.ledger_signing_key))
    except ValueError:
        raise KeyLost(f"the key of the seals, {_key_path(settings)}, is damaged: restore it from your backup") from None


def _key_path(settings: Settings) -> Path:
    return settings.home / "secrets" / _KEY_NAME


def _known_key(settings: Settings) -> Ed25519PublicKey | None:
    """The public key, without making one."""
    return _signing_key(settings).public_key() if _key_path(settings).exists() else None


def fingerprint(key: Ed25519PublicKey) -> str:
    return sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:32]


def _is_signed(key: Ed25519PublicKey, signature: str, text: bytes) -> bool:
    try:
        key.verify(b64decode(signature, validate=True), text)
    except (InvalidSignature, ValueError):
        return False
    return True


# Seals


def seal(engine: sa.Engine, settings: Settings, now: datetime) -> Seal | None:
    """Sign the ledger's head, after checking what was written since the last seal; None where nothing was.

    In the file first, then in the table. Raises LedgerBroken, and OSError where the file can't be written.
    """
    verification = verify(engine, settings, since_seal=True)
    if not verification.is_unbroken:
        raise LedgerBroken(verification)
    seq, head = verification.entries, verification.head
    unsigned = Seal(seq, head, (now - _EPOCH) // datetime.resolution, "")
    with database.writer(engine).begin() as connection:
        ledger.lock(connection)
        if seq <= (connection.scalar(sa.select(sa.func.max(seals_table.c.seq))) or 0):
            return None
        # Only now: a key without any seal looks as if the seals had been removed.
        signature = b64encode(_signing_key(settings).sign(unsigned.signed_text)).decode()
        made = replace(unsigned, signature=signature)
        _keep(settings.home / SEALS_FILE, made)
        values = {"seq": seq, "hash": head, "at": now, "signature": signature}
        connection.execute(sa.insert(seals_table), [values])
    return made


def _line(made: Seal) -> str:
    return canonical({"seq": made.seq, "hash": made.hash, "at": made.at, "signature": made.signature})


def _keep(path: Path, made: Seal) -> None:
    """Add a line, whole and durable on return, or none. What a power cut left of an unfinished one goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        file.truncate(end)
        file.seek(end)
        left = f"{_line(made)}\n".encode()
        try:
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
            if not end:
                sync(path.parent)
        except OSError:
            file.truncate(end)
            raise


def _seals_in_file(path: Path, faults: _Faults, *, newest: bool = False) -> list[Seal]:
    """What the file holds (newest: its last line), less an unfinished last line."""
    content = path.read_bytes()
    lines = list(enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1))
    found = []
    for number, line in lines[-1:] if newest else lines:
        try:
            made = Seal(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            made = None
        if made and _is_seal(made):
            found.append(made)
        else:
            faults.add(0, f"line {number} of {path.name} is not a seal")
    return found


def _seals(
    engine: sa.Engine, settings: Settings, faults: _Faults, *, newest: bool = False, copy: Path | None = None
) -> dict[int, Seal]:
    """The seals of table, file and copy that are signed with the key, by entry. Raises KeyLost.

    newest: only the last of the table and the last of the file.
    """
    key, seals = _known_key(settings), seals_table.c
    query = sa.select(seals.seq, seals.hash, sa.type_coerce(seals.at, sa.BigInteger), seals.signature)
    query = query.order_by(seals.seq.desc()).limit(1 if newest else None)
    with engine.connect() as connection:
        stored = [Seal(*row) for row in connection.execute(query)][::-1]
    # The file after the table: a seal is in the file first.
    file = settings.home / SEALS_FILE
    filed = _seals_in_file(file, faults, newest=newest) if file.exists() else None
    copied = _seals_in_file(copy, faults) if copy else []
    if key is None:
        if stored or filed or copied:
            raise KeyLost(f"the key that the seals were made with, {_key_path(settings)}, is gone")
        return {}
    if stored and filed is None:
        faults.add(0, f"there are seals, but their file, {SEALS_FILE}, is gone")
    held: dict[int, Seal] = {}
    for place, its in (("table of seals", stored), (SEALS_FILE, filed), ("copy", copied)):
        for made in its or []:
            if not _is_sound(key, made):
                faults.add(_number(made.seq), f"the seal in the {place} was not made with this installation's key")
            elif made.seq in held and held[made.seq].hash != made.hash:
                faults.add(made.seq, f"the seal in the {place} is of another ledger than one elsewhere")
            else:
                held[made.seq] = made
    if filed is not None:
        in_file = {made.seq for made in filed}
        for made in stored:
            # After a crash the file's newest is one that the table lacks.
            if made.seq not in in_file and not (newest and made.seq < max(in_file, default=0)):
                faults.add(_number(made.seq), f"its seal is in the table but not in {SEALS_FILE}")
    return held


def _is_seal(said: Seal) -> bool:
    numbers, texts = (said.seq, said.at), (said.hash, said.signature)
    return all(isinstance(one, int) for one in numbers) and all(isinstance(one, str) for one in texts)


def _is_sound(key: Ed25519PublicKey, made: Seal) -> bool:
    return _is_seal(made) and _is_signed(key, made.signature, made.signed_text)


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


# Verifying


def verify(
    engine: sa.Engine, settings: Settings, *, since_seal: bool = False, copy: Path | None = None
) -> Verification:
    """Check every entry, or those from the last seal on, against chain and seals; memory does not grow with them.

    since_seal: of the seals, only the newest is checked. copy: of the file of seals, from where nobody here can write;
    with it everything is checked. Raises OSError for a copy that can't be read.
    """
    since_seal = since_seal and copy is None
    database.ensure(engine, ledger_table)
    faults = _Faults()
    seals: dict[int, Seal] = {}
    key = None
    try:
        key = _known_key(settings)
        seals = _seals(engine, settings, faults, newest=since_seal, copy=copy)
    except KeyLost as error:
        faults.add(0, str(error))
    begin = max(seals, default=0) if since_seal else 0
    query = sa.select(*_RAW).order_by(_row.seq)
    if begin:
        query = query.where(_row.seq >= begin)
    expected, previous = (begin or 1), (None if begin else ledger.GENESIS)
    head, checked, held = ledger.GENESIS, 0, None
    with engine.connect() as connection:
        for row in connection.execution_options(yield_per=_STREAMED).execute(query):
            checked += 1
            seq = row.seq
            if seq < expected:
                faults.add(seq, "an entry stands before the first")
                continue
            if seq > expected:
                faults.add(expected, f"missing: {_from_to(expected, seq - 1)}")
                previous = None
            for what in _faults_of(row._asdict(), previous):
                faults.add(seq, what)
            if made := seals.get(seq):
                if made.hash == row.hash:
                    held = made
                else:
                    faults.add(seq, f"it is not the entry that was sealed at {made.sealed_at.isoformat()}")
            previous = head = row.hash
            expected = seq + 1
    if key and checked and not seals:
        faults.add(
            0,
            "there is the key of the seals, but no seal that holds: were they removed? "
            f"If not even the first was ever finished, remove {_key_path(settings)} and seal again",
        )
    last = max(expected - 1, 0)
    if lost := [made for made in seals.values() if made.seq > last]:
        until = max(lost, key=lambda made: made.seq)
        faults.add(last + 1, f"missing: {_from_to(last + 1, until.seq)}, sealed at {until.sealed_at.isoformat()}")
    return Verification(
        entries=last if checked else 0,
        checked=checked,
        head=head,
        sealed=held,
        faults=tuple(faults.first),
        fault_count=faults.count,
        key=fingerprint(key) if key else None,
    )


def _from_to(first: int, last: int) -> str:
    return f"entry {first}" if first == last else f"entries {first} to {last}"


def _faults_of(row: Mapping[str, Any], previous: str | None) -> Iterator[str]:
    try:
        digest = content_digest(row)
    except (TypeError, ValueError):
        digest = ""
    if digest != row["content_digest"]:
        yield "it was changed: its fields are not those of its digest"
    if previous is not None and row["previous_hash"] != previous:
        yield "it does not follow the entry before it"
    if chain_hash(row["previous_hash"], row["content_digest"]) != row["hash"]:
        yield "its hash was changed"


# Chain of custody


@dataclass(frozen=True, slots=True)
class Event:
    """One entry as it is read by people; `details` by name."""

    seq: int
    at: datetime
    kind: str
    actor: str
    correlation_id: str | None
    run_id: str | None
    details: dict[str, Any]


def custody(engine: sa.Engine, recording_id: str) -> list[Event]:
    """What happened to a recording, in order; not checked (`verify` does that)."""
    database.ensure(engine, ledger_table)
    query = sa.select(ledger_table).where(_row.recording_id == recording_id).order_by(_row.seq)
    with engine.connect() as connection:
        return [
            Event(row.seq, row.at, row.kind, row.actor, row.correlation_id, row.run_id, json.loads(row.details))
            for row in connection.execute(query)
        ]


# The bundle

_TABLES = ("recordings", "media", "verdicts", "violations", "findings", "remediations", "evidence")
_NOT_EXPORTED = ("fingerprint", "participants")
"""Columns of no use to an auditor that tie recordings to people or numbers."""
_READ_ME = """\
What happened to one recording, for an auditor. `compliance audit check-bundle FILE` checks all of it, offline.

manifest.json       SHA-256 of each file, and what could not be put in, with the reason
manifest.sig        Ed25519 signature (base64) of "compliance_pipeline bundle\\n" and manifest.json
public-key.pem      the key; compare its fingerprint with the one that the installation's owner gives you
warehouse/*.json    what is stored about the recording: verdicts, findings (masked), actions
policy/*            the policy packs that judged it
clips/*             masked evidence
ledger/entries.jsonl  the recording's entries in the audit trail; `at` is microseconds since 1970 (UTC)
ledger/chain.jsonl  how they hang on a seal: hash = SHA-256(previous hash + content_digest), both as hexadecimal text;
                    content_digest = SHA-256 of the entry's canonical JSON (sorted names, no spaces, ASCII) without
                    content_digest, previous_hash and hash; a line with previous_hash begins a new stretch
ledger/seals.jsonl  signed hashes: Ed25519 over "compliance_pipeline seal\\n" and the canonical JSON of at, hash and seq
"""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What was put in. notes: what was not, with reasons."""

    path: Path
    clips: int
    entries: int
    notes: tuple[str, ...]


class NothingKnown(Exception):
    """Neither ledger nor warehouse has anything of the recording."""


class _Files:
    """Files of a bundle that is being written, with their SHA-256."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.digests: dict[str, str] = {}

    def add(self, name: str, chunks: Iterable[bytes]) -> None:
        digest = sha256()
        with self._archive.open(name, "w") as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
        self.digests[name] = digest.hexdigest()


def export(engine: sa.Engine, settings: Settings, recording_id: str, path: Path, actor: str, now: datetime) -> Bundle:
    """Write the evidence bundle (a zip, 0600) of a recording; who had it is recorded and sealed before it is there.

    Raises ValueError for an actor that the ledger may not keep, NothingKnown, KeyLost, and OSError where it can't be
    written.
    """
    refuse_sensitive(actor, "the name of who gets it")
    database.ensure(engine, ledger_table)
    _seals(engine, settings, _Faults(), newest=True)
    tables = _stored(settings, recording_id)
    if not any(tables.values()) and not custody(engine, recording_id):
        raise NothingKnown
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    notes: list[str] = []
    try:
        with (
            os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b") as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            files = _Files(archive)
            files.add("README.txt", [_READ_ME.encode()])
            for table, rows in tables.items():
                files.add(f"warehouse/{table}.json", [_document(rows)])
            for name, text in _policies(settings, tables["verdicts"], notes):
                files.add(f"policy/{name}", [text])
            clips = _add_clips(engine, settings, recording_id, tables["evidence"], files, notes)
            _record_export(engine, recording_id, actor, clips, now)
            entries = _add_ledger(engine, settings, recording_id, files, notes, now)
            key = _signing_key(settings)
            pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            files.add("public-key.pem", [pem])
            manifest = _document(
                {"recording_id": recording_id, "made_at": now, "for": actor, "notes": notes, "sha256": files.digests}
            )
            signature = b64encode(key.sign(_BUNDLE + manifest))
            files.add("manifest.json", [manifest])
            files.add("manifest.sig", [signature])
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return Bundle(path, len(clips), entries, tuple(notes))


def _document(value: Any) -> bytes:
    def plain(other: Any) -> str:
        return other.isoformat() if isinstance(other, datetime) else str(other)

    return json.dumps(value, indent=2, default=plain).encode()


def _stored(settings: Settings, recording_id: str) -> dict[str, list[dict[str, Any]]]:
    """The recording's rows of each table; none where there is no warehouse yet."""
    from compliance_pipeline.warehouse.warehouse import warehouse_of

    warehouse = warehouse_of(settings)
    if not warehouse.exists():
        return {table: [] for table in _TABLES}
    return {
        table: [
            {name: value for name, value in row.items() if name not in _NOT_EXPORTED}
            for row in warehouse.select(
                f"FROM {table} WHERE recording_id = $id ORDER BY ALL",
                {"id": recording_id},
            )
        ]
        for table in _TABLES
    }


def _policies(
    settings: Settings, verdicts: Sequence[Mapping[str, Any]], notes: list[str]
) -> Iterator[tuple[str, bytes]]:
    from compliance_pipeline.screening.policy import DEFAULT_PACK, PolicyError, load_policy
    from compliance_pipeline.warehouse.warehouse import warehouse_of

    versions = sorted({row["policy_version"] for row in verdicts})
    if not versions:
        return
    query = "SELECT policy_version, content FROM policies WHERE list_contains($versions, policy_version)"
    rows = warehouse_of(settings).select(query, {"versions": versions})
    known = {row["policy_version"]: row["content"] for row in rows}
    try:
        current = load_policy(settings.policy).policy_version
    except PolicyError:
        current = None
    for number, version in enumerate(versions, 1):
        name = f"{number:02d}-{_safe(version)}"
        if version in known:
            yield f"{name}.json", known[version].encode()
        elif version == current:
            yield f"{name}.yaml", (settings.policy or DEFAULT_PACK).read_bytes()
        else:
            notes.append(f"the text of policy {version} is not stored, and the present pack is another one")


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:80]


def _add_clips(
    engine: sa.Engine,
    settings: Settings,
    recording_id: str,
    evidence: Sequence[Mapping[str, Any]],
    files: _Files,
    notes: list[str],
) -> dict[str, str]:
    """Name in the bundle -> SHA-256. Only clips that are verified to be masked, by their digest, are put in."""
    from compliance_pipeline.media.vault import VaultError, vault_of
    from compliance_pipeline.retention import CLIP, data_of

    clips: dict[str, str] = {}
    verified = []
    for row in evidence:
        if row["status"] == "verified" and data_of(row["uri"] or "") == CLIP:
            verified.append(row)
        else:
            notes.append(f"finding {row['finding_no']} has no clip: {row['reason'] or 'what is stored is none'}")
    if not verified:
        return clips
    with closing(vault_of(settings, engine)) as vault:
        for number, row in enumerate(verified, 1):
            try:
                content = b"".join(vault.read(recording_id, row["uri"]))
            except VaultError as error:
                notes.append(f"the clip of finding {row['finding_no']} can't be had: {error}")
                continue
            if sha256(content).hexdigest() != row["sha256"]:
                notes.append(f"the clip of finding {row['finding_no']} is not the one that was verified; left out")
                continue
            name = f"clips/{number:02d}-finding-{row['finding_no']}-{_safe(row['engine_version'])}.flac"
            files.add(name, [content])
            clips[name] = row["sha256"]
    return clips


def _record_export(engine: sa.Engine, recording_id: str, actor: str, clips: Mapping[str, str], now: datetime) -> None:
    which = secrets.token_hex(8)
    entries = [Entry(f"export/{recording_id}/{which}", "export", actor, recording_id, details={"clips": len(clips)})]
    entries += [
        Entry(
            f"play/{recording_id}/{which}/{name}",
            "play",
            actor,
            recording_id,
            details={"in": "export", "clip": name, "sha256": digest},
        )
        for name, digest in clips.items()
    ]
    ledger.record(engine, entries, now)


def _add_ledger(
    engine: sa.Engine, settings: Settings, recording_id: str, files: _Files, notes: list[str], now: datetime
) -> int:
    """The recording's entries, the chain from each to the next seal, and those seals; how many entries."""
    try:
        seal(engine, settings, now)
    except LedgerBroken as error:
        notes.append(str(error))
    query = sa.select(*_RAW).where(_row.recording_id == recording_id).order_by(_row.seq)
    with engine.connect() as connection:
        entries = [row._asdict() for row in connection.execute(query)]
    seals = _seals(engine, settings, _Faults())
    stretches, unsealed = _stretches([entry["seq"] for entry in entries], sorted(seals))
    if unsealed:
        notes.append(f"no seal covers the ledger's entries from {unsealed[0]} on")
    files.add("ledger/entries.jsonl", (f"{canonical(entry)}\n".encode() for entry in entries))
    files.add("ledger/chain.jsonl", (f"{line}\n".encode() for line in _links(engine, stretches)))
    files.add("ledger/seals.jsonl", (f"{_line(seals[end])}\n".encode() for _, end in stretches))
    return len(entries)


def _stretches(entries: Sequence[int], sealed: Sequence[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """From each entry to the first seal at or after it, those of one seal as one; and entries that no seal covers."""
    begins: dict[int, int] = {}
    unsealed = []
    for entry in sorted(entries):
        at = bisect_left(sealed, entry)
        if at == len(sealed):
            unsealed.append(entry)
        else:
            begins.setdefault(sealed[at], entry)
    return [(begin, end) for end, begin in begins.items()], unsealed


def _links(engine: sa.Engine, stretches: Sequence[tuple[int, int]]) -> Iterator[str]:
    with engine.connect() as connection:
        for begin, end in stretches:
            query = sa.select(_row.seq, _row.content_digest, _row.hash, _row.previous_hash)
            query = query.where(_row.seq.between(begin, end)).order_by(_row.seq)
            for row in connection.execution_options(yield_per=_STREAMED).execute(query):
                link = row._asdict()
                if row.seq != begin:
                    del link["previous_hash"]
                yield canonical(link)


@dataclass(frozen=True, slots=True)
class Checked:
    """key: the fingerprint of the bundle's key: whose it is, only its owner can say."""

    recording_id: str
    key: str
    entries: int
    notes: tuple[str, ...]
    faults: tuple[str, ...]


class NotABundle(Exception):
    """Says why the file is none."""


def check_bundle(path: Path) -> Checked:
    """Check a bundle by nothing but itself: digests, signature, entries, chain and seals.

    Raises NotABundle, and OSError for a file that can't be opened.
    """
    file = path.open("rb")
    try:
        with file, zipfile.ZipFile(file) as archive:
            return _check(archive)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        raise NotABundle(f"it is not a whole zip file ({type(error).__name__})") from None
    except KeyError:
        raise NotABundle("a part of it is missing") from None
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm, RuntimeError) as error:
        raise NotABundle(f"a part of it can't be read ({type(error).__name__})") from None


def _check(archive: zipfile.ZipFile) -> Checked:
    names = archive.namelist()
    if sum(info.file_size for info in archive.infolist()) > _LARGEST_BUNDLE:
        raise NotABundle("it is too large")
    key = load_pem_public_key(archive.read("public-key.pem"))
    if not isinstance(key, Ed25519PublicKey):
        raise NotABundle("its key is no Ed25519 key")
    text = archive.read("manifest.json")
    manifest = json.loads(text)
    faults = []
    if not _is_signed(key, archive.read("manifest.sig").decode(), _BUNDLE + text):
        faults.append("manifest.json was not signed with the bundle's key")
    digests = manifest["sha256"]
    faults += [f"{name} is missing" for name in sorted(digests.keys() - set(names))]
    faults += [f"{name} was added" for name in sorted(set(names) - digests.keys() - {"manifest.json", "manifest.sig"})]
    if len(names) != len(set(names)):
        faults.append("a name stands for two files")
    for name in digests.keys() & set(names):
        digest = sha256()
        with archive.open(name) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != digests[name]:
            faults.append(f"{name} was changed")
    entries = _lines(archive, "ledger/entries.jsonl")
    faults += _faults_of_chain(
        key, entries, _lines(archive, "ledger/chain.jsonl"), _lines(archive, "ledger/seals.jsonl")
    )
    for entry in entries:
        if entry["recording_id"] != manifest["recording_id"]:
            faults.append(f"entry {entry['seq']} is of another recording")
    return Checked(
        str(manifest["recording_id"]), fingerprint(key), len(entries), tuple(map(str, manifest["notes"])), tuple(faults)
    )


def _lines(archive: zipfile.ZipFile, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in archive.read(name).splitlines()]


def _faults_of_chain(
    key: Ed25519PublicKey,
    entries: Sequence[Mapping[str, Any]],
    links: Sequence[Mapping[str, Any]],
    seals: Sequence[Mapping[str, Any]],
) -> Iterator[str]:
    """Entries must be links, links must hang together, and each stretch must end in a sound seal."""
    sound = {made.seq: made.hash for made in (Seal(**said) for said in seals) if _is_sound(key, made)}
    digests: dict[int, str] = {}
    waiting: dict[int, str] = {}
    previous: tuple[int, str] | None = None
    for link in links:
        seq = link["seq"]
        if "previous_hash" in link:
            before, waiting = link["previous_hash"], {}
        elif previous and previous[0] == seq - 1:
            before = previous[1]
        else:
            yield f"link {seq} of the chain does not follow the one before it"
            return
        if chain_hash(before, link["content_digest"]) != link["hash"]:
            yield f"link {seq} of the chain is not what follows from the one before it"
            return
        previous = seq, link["hash"]
        waiting[seq] = link["content_digest"]
        if sound.get(seq) == link["hash"]:
            digests |= waiting
            waiting = {}
    for entry in entries:
        if content_digest(entry) != entry["content_digest"]:
            yield f"entry {entry['seq']} was changed"
        elif digests.get(entry["seq"]) != entry["content_digest"]:
            yield f"entry {entry['seq']} does not hang on a seal"
