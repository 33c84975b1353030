"""The vault: clips at rest, each recording under a data key of its own, which lies wrapped in the operational database.

Whoever has the store alone has nothing; a destroyed wrapped key makes all of a recording's blobs unreadable for ever.
Tink encrypts in segments (AES-256-GCM), so that reading and writing need no more memory for an hour than for a second.
"""

import io
import json
import os
import secrets
import sqlite3
from base64 import b32decode, b32encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import sqlalchemy as sa

from compliance_pipeline import database, ledger
from compliance_pipeline.database import UtcTime, metadata
from compliance_pipeline.media.keys import LOCAL, Keys, KeyUnavailable, KeyWrapper, VaultError, keys_of
from compliance_pipeline.private_file import sync
from compliance_pipeline.settings import Settings

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["NotInVault", "Shredded", "StoredBlob", "Tampered", "Vault", "VaultError", "vault_of"]

CHUNK = 1 << 20
PART_BYTES, PARTS_AT_ONCE = 8 << 20, 2
LONGEST_NAME = 150
STALE_S = 3600.0
"""Older parts are of processes that were killed."""
UNDER_WAY = ".parts"
REWRAPPED_AT_ONCE = 200

data_keys = sa.Table(
    "data_keys",
    metadata,
    sa.Column("recording_id", sa.String(128), primary_key=True),
    sa.Column("wrapped", sa.LargeBinary, nullable=True),
    sa.Column("kek", sa.String(256), nullable=True),
    sa.Column("made_at", UtcTime, nullable=False),
    sa.Column("wrapped_at", UtcTime, nullable=True),
    sa.Column("shredded_at", UtcTime, nullable=True),
)


class Shredded(VaultError):
    """The recording's data key was destroyed: nothing of it can be read or stored any more."""


class NotInVault(VaultError):
    """There is no such blob."""


class Tampered(VaultError):
    """The blob was changed, cut off or swapped."""


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """sha256 (hex) and size are of the clear bytes."""

    uri: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class KeyCounts:
    """Data keys by the key-encryption key that wraps them, and how many were destroyed."""

    by_kek: dict[str, int]
    shredded: int


@dataclass(frozen=True, slots=True)
class Rotation:
    """left: recordings whose data key could not be unwrapped. While there are any, old keys stay."""

    kek: str
    rewrapped: int
    left: tuple[str, ...]


class Vault:
    """Blobs of recordings. Safe to use from several threads and processes at once.

    Methods raise VaultError and its kinds, and SQLAlchemyError.
    """

    def __init__(self, url: str, root: Path | None, keys: Keys, engine: sa.Engine) -> None:
        self.url = url
        self._root = root
        self._keys = keys
        self._engine = engine

    def put(self, recording_id: str, name: str, content: bytes | Iterable[bytes], now: datetime) -> StoredBlob:
        """Store under a name (1 to 150 bytes of UTF-8), all at once; what was there is replaced.

        Raises Shredded; ValueError for the name.
        """
        path = _path(recording_id, name)
        cipher = _cipher(self._data_key(recording_id, now))
        chunks = (content,) if isinstance(content, bytes) else content
        digest, size = sha256(), 0

        def clear() -> Iterator[bytes]:
            nonlocal size
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                yield chunk

        with self._publishing(path, recording_id) as sink:
            _encrypt(cipher, clear(), sink, _bound_to(recording_id, name))
        return StoredBlob(f"{self.url.rstrip('/')}/{path}", digest.hexdigest(), size)

    def read(self, recording_id: str, name: str) -> Iterator[bytes]:
        """The clear bytes, authenticated chunk by chunk; the first chunk is read at once.

        Raises NotInVault and Shredded when called; Tampered then, or later where only what follows was changed.
        """
        import obstore

        path = _path(recording_id, name)
        data_key = self._unwrapped(recording_id)
        if data_key is None:
            raise NotInVault(f"recording {recording_id}: nothing is in the vault: see `compliance audit show`")
        cipher = _cipher(data_key)
        try:
            source = _Source(iter(obstore.get(self._store, path).stream(min_chunk_size=CHUNK)))
        except FileNotFoundError:
            raise NotInVault(
                f"recording {recording_id}: {name!r} is not in the vault; see its other names, or make it anew"
            ) from None
        except Exception as error:
            raise _failed(recording_id, "be read", error) from None
        chunks = _decrypt(cipher, source, recording_id, name)
        return _resumed(next(chunks, b""), chunks)

    def names(self, recording_id: str) -> list[str]:
        """Sorted. After shredding too: what is there, readable or not."""
        import obstore

        folder = _folder(recording_id)
        try:
            found = [meta["path"] for batch in obstore.list(self._store, folder) for meta in batch]
        except Exception as error:
            raise _failed(recording_id, "be listed", error) from None
        return sorted(_name(path.rpartition("/")[2]) for path in found)

    def recording_ids(self) -> list[str]:
        """Sorted: those whose data key was not destroyed. Asks the database, not the store."""
        database.ensure(self._engine, data_keys)
        kept = sa.select(data_keys.c.recording_id).where(data_keys.c.wrapped.is_not(None))
        with self._engine.connect() as connection:
            return list(connection.execute(kept.order_by(data_keys.c.recording_id)).scalars())

    def delete(self, recording_id: str, name: str) -> bool:
        """Whether there was one. Works after shredding too."""
        import obstore

        path = _path(recording_id, name)
        try:
            obstore.head(self._store, path)
            obstore.delete(self._store, path)
        except FileNotFoundError:
            return False
        except Exception as error:
            raise _failed(recording_id, "be deleted", error) from None
        if self._root:
            sync((self._root / path).parent)
        return True

    def shred(self, recording_id: str, now: datetime) -> bool:
        """Destroy the wrapped data key, in the database's free pages and log too; blobs stay, unreadable for ever.

        Nothing of the recording can be put afterwards. Whether there was a key. Done again it erases again.
        """
        with self._changing() as connection:
            found = connection.execute(
                sa.select(data_keys.c.wrapped).where(data_keys.c.recording_id == recording_id)
            ).first()
            if found is None:
                gone = {"recording_id": recording_id, "made_at": now, "shredded_at": now}
                connection.execute(sa.insert(data_keys).values(gone))
            elif found.wrapped is not None:
                connection.execute(
                    sa.update(data_keys)
                    .where(data_keys.c.recording_id == recording_id)
                    .values(wrapped=None, kek=None, wrapped_at=None, shredded_at=now)
                )
        if not self._erase():
            raise VaultError(
                f"recording {recording_id}: its data key is destroyed, but a reader holds the database's log, where "
                "a copy lies until the reader ends: shred it again"
            )
        return found is not None and found.wrapped is not None

    def counts(self) -> KeyCounts:
        database.ensure(self._engine, data_keys)
        with self._engine.connect() as connection:
            found = connection.execute(
                sa.select(data_keys.c.kek, data_keys.c.wrapped.is_(None), sa.func.count()).group_by(
                    data_keys.c.kek, data_keys.c.wrapped.is_(None)
                )
            ).all()
        return KeyCounts(
            {kek: number for kek, is_shredded, number in found if not is_shredded},
            sum(number for _, is_shredded, number in found if is_shredded),
        )

    def rotate(self, now: datetime, by: str) -> Rotation:
        """Wrap every data key anew, by a new local key or by the KMS key that is set; blobs are not touched.

        Killed in between, the next one carries on. Once the ledger has it, what wrapped before is forgotten. At the end
        SQLite's file is written anew, for pages that were split keep copies of keys: others who write wait meanwhile.
        """
        self._wrapper()
        with self._changing():
            self._keys.begin_rotation()
        kek = self._keys.current.kek
        rewrapped, left, last = 0, [], ""
        stale = data_keys.c.wrapped.is_not(None) & (data_keys.c.kek != kek)
        while True:
            with self._engine.connect() as connection:
                rows = connection.execute(
                    sa.select(data_keys.c.recording_id, data_keys.c.wrapped, data_keys.c.kek)
                    .where(stale, data_keys.c.recording_id > last)
                    .order_by(data_keys.c.recording_id)
                    .limit(REWRAPPED_AT_ONCE)
                ).all()
            if not rows:
                break
            changed = []
            for row in rows:
                try:
                    data_key = self._keys.unwrap(row.wrapped, row.recording_id, row.kek)
                except VaultError:
                    left.append(row.recording_id)
                    continue
                changed.append((row, *self._keys.current.wrap(data_key, row.recording_id)))
            with self._changing() as connection:
                for row, wrapped, wrapped_by in changed:
                    # Not what was shredded meanwhile.
                    rewrapped += connection.execute(
                        sa.update(data_keys)
                        .where(data_keys.c.recording_id == row.recording_id, data_keys.c.wrapped == row.wrapped)
                        .values(wrapped=wrapped, kek=wrapped_by, wrapped_at=now)
                    ).rowcount
            last = rows[-1].recording_id
        details: dict[str, ledger.Detail] = {"kek": kek, "rewrapped": rewrapped, "left": len(left)}
        entry = ledger.Entry(f"key_rotated:{now.isoformat()}", "key_rotated", by, details=details)
        ledger.record(self._engine, [entry], now)
        with self._changing() as connection:
            used = connection.execute(
                sa.select(data_keys.c.kek).where(data_keys.c.wrapped.is_not(None)).distinct()
            ).scalars()
            self._keys.end_rotation(set(used))
        if not self._erase(rebuild=True):
            raise VaultError(
                f"the data keys are wrapped by {kek}, but the database was in use or its disk is full, and former "
                "copies may lie in its free pages or its log: rotate again"
            )
        return Rotation(kek, rewrapped, tuple(left))

    def close(self) -> None:
        """Lets go of the store. The engine is the caller's."""
        self.__dict__.pop("_store", None)

    def _wrapped(self, recording_id: str) -> tuple[bytes | None, str]:
        """(None, "") where there is no key yet. Raises Shredded."""
        database.ensure(self._engine, data_keys)
        with self._engine.connect() as connection:
            row = connection.execute(
                sa.select(data_keys.c.wrapped, data_keys.c.kek).where(data_keys.c.recording_id == recording_id)
            ).first()
        if row is None:
            return None, ""
        if row.wrapped is None:
            raise Shredded(
                f"recording {recording_id}: its data key was destroyed; its verdict and its part of the ledger remain: "
                "see `compliance audit show`"
            )
        return row.wrapped, row.kek

    def _data_key(self, recording_id: str, now: datetime) -> bytes:
        """The recording's, made if it is the first; whoever comes first, all get the same."""
        while (data_key := self._unwrapped(recording_id)) is None:
            wrapped, kek = self._wrapper().wrap(_new_data_key(), recording_id)
            with self._changing() as connection:
                # A rotation that ended since may have dropped the key that wrapped this.
                if kek == self._keys.current.kek:
                    row = {"recording_id": recording_id, "wrapped": wrapped, "kek": kek, "made_at": now}
                    connection.execute(
                        database.insert(self._engine, data_keys)
                        .values(**row, wrapped_at=now)
                        .on_conflict_do_nothing(index_elements=["recording_id"])
                    )
        return data_key

    def _wrapper(self) -> KeyWrapper:
        """What wraps now. A key file is made only where no data key needs the one that is missing."""
        local = self._keys.local
        if self._keys.current is local and not local.path.exists():
            with self._changing() as connection:
                is_local = data_keys.c.kek.startswith(LOCAL)
                if connection.execute(sa.select(data_keys.c.kek).where(is_local).limit(1)).first() is None:
                    local.make()
        return self._keys.current

    def _unwrapped(self, recording_id: str) -> bytes | None:
        """None where there is no key yet. Raises Shredded."""
        wrapped, kek = self._wrapped(recording_id)
        while wrapped is not None:
            try:
                return self._keys.unwrap(wrapped, recording_id, kek)
            except KeyUnavailable:
                tried = wrapped
                wrapped, kek = self._wrapped(recording_id)
                if wrapped == tried:  # otherwise a rotation came in between, and dropped what had wrapped it
                    raise
        return None

    @contextmanager
    def _changing(self) -> Iterator[sa.Connection]:
        """A transaction over the keys, one at a time in all processes. SQLite leaves no copy of what it changes."""
        database.ensure(self._engine, data_keys)
        with database.writer(self._engine).begin() as connection:
            if self._engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA secure_delete=ON")
            else:
                connection.exec_driver_sql("LOCK TABLE data_keys IN SHARE ROW EXCLUSIVE MODE")
            yield connection

    def _erase(self, rebuild: bool = False) -> bool:
        """Empty SQLite's log, which holds former pages, or vacuum Postgres's. False: others are in it.

        rebuild: SQLite's file too.
        """
        if self._engine.dialect.name != "sqlite":
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as apart:
                apart.exec_driver_sql("VACUUM data_keys")
            return True
        connection = self._engine.raw_connection()
        try:
            cursor = connection.cursor()
            if rebuild:
                cursor.execute("VACUUM")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            [[busy, *_]] = cursor.fetchall()
            cursor.close()
        except sqlite3.OperationalError:
            return False
        finally:
            connection.close()
        return not busy

    @cached_property
    def _store(self) -> "ObjectStore":
        from obstore.store import LocalStore, from_url

        if not self._root:
            return from_url(self.url)
        _make_folder(self._root)
        return LocalStore(self._root)

    @contextmanager
    def _publishing(self, path: str, recording_id: str) -> Iterator["_Sink"]:
        """What is written appears under its path all at once and durably, and only if nothing was raised."""
        try:
            publication = _file(self._root, path) if self._root else _upload(self._store, path)
            sink, publish, clean_up = publication
        except Exception as error:
            raise _failed(recording_id, "be stored", error) from None
        try:
            try:
                yield sink
            except Exception as error:
                if error is not sink.failure:
                    raise
                raise _failed(recording_id, "be stored", error) from None
            finally:
                sink.drop()
            try:
                publish()
            except Exception as error:
                raise _failed(recording_id, "be stored", error) from None
        finally:
            clean_up()


def vault_folder(settings: Settings) -> Path | None:
    """Where blobs lie; None where that is no folder of this machine."""
    if settings.vault_url is None:
        return settings.home / "vault"
    parts = urlsplit(settings.vault_url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def vault_of(settings: Settings, engine: sa.Engine) -> Vault:
    """engine: the operational database's. Raises VaultError for a COMPLIANCE_VAULT_KEY that is none."""
    root = vault_folder(settings)
    return Vault(settings.vault_url or (settings.home / "vault").as_uri(), root, keys_of(settings), engine)


class _Sink(io.RawIOBase):
    """Where Tink writes to. Closing it does nothing: what is cut off by an error must not be finished."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file
        self.failure: Exception | None = None
        self._dropped = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if not self._dropped:
            try:
                rest = memoryview(bytes(data))
                while rest:
                    rest = rest[self._file.write(rest) :]
            except Exception as error:
                self.failure = error
                raise
        return len(data)

    def drop(self) -> None:
        self._dropped = True


_Publication = tuple[_Sink, Callable[[], None], Callable[[], None]]
"""Where to write to, what publishes it, and what to do at the end in any case."""


def _file(root: Path, path: str) -> _Publication:
    """obstore's local store would neither sync nor set modes."""
    final, under_way = root / path, root / UNDER_WAY
    for folder in (root, under_way, final.parent):
        _make_folder(folder)
    for left in under_way.iterdir():
        with suppress(FileNotFoundError):
            if time() - left.stat().st_mtime > STALE_S:
                left.unlink()
    made = under_way / f"{os.getpid()}.{secrets.token_hex(8)}"
    file = os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)

    def publish() -> None:
        os.fsync(file.fileno())
        made.replace(final)
        sync(final.parent)

    def clean_up() -> None:
        file.close()
        made.unlink(missing_ok=True)

    return _Sink(file), publish, clean_up


def _upload(store: "ObjectStore", path: str) -> _Publication:
    """An upload in parts; what is not closed never appears."""
    import obstore

    writer = obstore.open_writer(store, path, buffer_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)
    return _Sink(writer), writer.close, lambda: None


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync(folder.parent)


class _Source(io.RawIOBase):
    """What Tink reads from: the store's chunks."""

    def __init__(self, chunks: Iterator[Any]) -> None:
        super().__init__()
        self.failure: Exception | None = None
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        try:
            while not self._rest:
                self._rest = memoryview(next(self._chunks))
        except StopIteration:
            return b""
        except Exception as error:
            self.failure = error
            raise
        given = self._rest if size is None or size < 0 else self._rest[:size]
        self._rest = self._rest[len(given) :]
        return bytes(given)


def _encrypt(cipher: Any, chunks: Iterable[bytes], sink: _Sink, bound_to: bytes) -> None:
    import tink

    try:
        stream = cipher.new_encrypting_stream(sink, bound_to)
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                rest = rest[stream.write(rest[:CHUNK]) :]
        stream.close()
    except tink.TinkError:
        if sink.failure:
            raise sink.failure from None
        raise VaultError("the clip could not be encrypted: try again") from None


def _decrypt(cipher: Any, source: _Source, recording_id: str, name: str) -> Iterator[bytes]:
    import tink

    try:
        stream = cipher.new_decrypting_stream(source, _bound_to(recording_id, name))
        while chunk := stream.read(CHUNK):
            yield chunk
    except tink.TinkError:
        if source.failure:
            raise _failed(recording_id, "be read", source.failure) from None
        raise Tampered(
            f"recording {recording_id}: {name!r} was changed, cut off or swapped in the vault: restore it from your "
            "backup, and find out who can write there"
        ) from None


def _resumed(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _failed(recording_id: str, what: str, error: BaseException) -> VaultError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    return VaultError(
        f"recording {recording_id}: its blobs can't {what} ({why}): check COMPLIANCE_VAULT_URL, and that the store "
        "can be reached and has room"
    )


def _new_data_key() -> bytes:
    import tink
    from tink import proto_keyset_format, secret_key_access, streaming_aead

    streaming_aead.register()
    handle = tink.new_keyset_handle(streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB)
    return bytes(proto_keyset_format.serialize(handle, secret_key_access.TOKEN))


def _cipher(data_key: bytes) -> Any:
    from tink import proto_keyset_format, secret_key_access, streaming_aead

    streaming_aead.register()
    return proto_keyset_format.parse(data_key, secret_key_access.TOKEN).primitive(streaming_aead.StreamingAead)


def _bound_to(recording_id: str, name: str) -> bytes:
    return json.dumps([recording_id, name]).encode()


def _folder(recording_id: str) -> str:
    return sha256(b"recording " + recording_id.encode()).hexdigest()


def _path(recording_id: str, name: str) -> str:
    """Below the vault; whatever the id and the name are, it is two plain parts of letters and digits."""
    said = name.encode()
    if not 1 <= len(said) <= LONGEST_NAME:
        raise ValueError(f"a blob's name has 1 to {LONGEST_NAME} bytes")
    return f"{_folder(recording_id)}/{b32encode(said).decode().rstrip('=').lower()}"


def _name(part: str) -> str:
    return b32decode(part.upper() + "=" * (-len(part) % 8)).decode()
