"""Looking for clear values in all that the system wrote: raw, respaced, UTF-16, base64, compressed cells, zips.
What was planted comes in from the caller; what a leak says never quotes the value."""

import base64
import binascii
import re
import sqlite3
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from compliance_pipeline.sandbox.calls import demo_plan

Text = bytes

_SEPARATORS = rb"[ .()_/-]{0,2}"
_NUMBERS = re.compile(rb"\d(?:" + _SEPARATORS + rb"\d){8,}")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{14,}")
_EMAIL = re.compile(rb"[\w.+-]+(?:@|%40)[\w-]+\.\w+")
_CREDENTIALS = {
    "a bearer token": re.compile(rb"[Bb]earer\s+[A-Za-z0-9_-]{20,}"),
    "an access token": re.compile(rb"access_token\W{1,6}[A-Za-z0-9_-]{20,}"),
    "the signature of a media address": re.compile(rb"token(?:=|%3D)\d+\.\d+\.[0-9a-f]{32,}"),
}
SHORTEST_CARD = 13


@dataclass(frozen=True)
class Leak:
    """Where something was found, and what it is in words."""

    file: str
    what: str


def planted_by_demo(seed: int, count: int, spread_s: float) -> dict[str, frozenset[str]]:
    """By recording id, the clear values that the sandbox's demo plan plants; they do not depend on the time of day."""
    made = (
        planned.make(datetime(2026, 1, 1, tzinfo=UTC)) for planned in demo_plan(seed, count=count, spread_s=spread_s)
    )
    return {recording.recording_id: frozenset(recording.planted) for recording in made}


class Canaries:
    """What to look for: planted values by owner, and secrets by name (allowed in the folder `secrets` only)."""

    def __init__(self, planted: Mapping[str, Iterable[str]], secrets: Mapping[str, str]) -> None:
        self._emails: dict[bytes, str] = {}
        self._numbers: dict[re.Pattern[bytes], str] = {}
        self._secrets = {secret.encode(): name for name, secret in secrets.items()}
        for owner, values in planted.items():
            for value in values:
                if "@" in value:
                    self._emails[value.lower().encode()] = f"an e-mail address of {owner}"
                else:
                    self._numbers[_any_spacing(value)] = f"a number of {len(_digits(value))} digits of {owner}"

    def sweep(self, home: Path) -> tuple[list[Leak], int]:
        """Every leak in every file under `home`, and how many files were read."""
        files = [path for path in sorted(home.rglob("*")) if path.is_file()]
        leaks: list[Leak] = []
        for path in files:
            name = str(path.relative_to(home))
            among_secrets = name.startswith("secrets/")
            found = {what for text in _texts(path) for what in self.find(text, secrets=not among_secrets)}
            leaks += [Leak(name, what) for what in sorted(found)]
        return leaks, len(files)

    def find(self, text: Text, *, secrets: bool = True) -> Iterator[str]:
        """What of the canaries is in `text`, in any of the encodings looked at."""
        # UTF-16 of ASCII is the same bytes with a NUL beside each.
        for view in (text, text.replace(b"\0", b""), b"\n".join(_decoded(text))):
            yield from self._find(view, secrets)

    def _find(self, view: Text, secrets: bool) -> Iterator[str]:
        numbers = b"\n".join(_NUMBERS.findall(view))
        yield from (what for pattern, what in self._numbers.items() if pattern.search(numbers))
        for address in {match.lower().replace(b"%40", b"@") for match in _EMAIL.findall(view)}:
            # What stands before an address without a space (a JSON escape) is taken for part of it.
            yield from (what for planted, what in self._emails.items() if address.endswith(planted))
        if secrets:
            yield from (name for secret, name in self._secrets.items() if secret in view)
            yield from (name for name, pattern in _CREDENTIALS.items() if pattern.search(view))


def _digits(value: str) -> str:
    return "".join(char for char in value if char.isdigit())


def _any_spacing(value: str) -> re.Pattern[bytes]:
    """The number however it is grouped. A number shorter than a card's must stand alone: clocks have long figures."""
    digits = _digits(value)
    if len(digits) == 11 and digits.startswith("1"):
        digits = digits[1:]  # the country code may be left out
    spaced = _SEPARATORS.join(digit.encode() for digit in digits)
    if len(digits) >= SHORTEST_CARD:
        return re.compile(spaced)
    return re.compile(rb"(?<!\d)(?:1" + _SEPARATORS + rb")?" + spaced + rb"(?!\d)")


def _decoded(text: Text) -> Iterator[bytes]:
    for match in _BASE64.finditer(text):
        run = match.group().replace(b"-", b"+").replace(b"_", b"/")
        for start in range(4):
            part = run[start : start + (len(run) - start) // 4 * 4]
            rest = run[start + len(part) :]
            try:
                yield base64.b64decode(part)
                if len(rest) > 1:
                    yield base64.b64decode(part[-4:] + rest + b"=" * (-len(rest) % 4))
            except binascii.Error:  # pragma: no cover - the alphabet and the length are right
                continue


def _texts(path: Path) -> Iterator[Text]:
    """The file's name and bytes; of a database its cells too, which lie compressed or cut over pages in the file."""
    yield path.name.encode()
    content = path.read_bytes()
    yield content
    if content.startswith(b"SQLite format 3\0"):
        yield from _sqlite_cells(path)
    elif content[8:12] == b"DUCK":
        yield from _duckdb_cells(path)
    elif content.startswith(b"PAR1"):
        yield _parquet_cells(path)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())


def _sqlite_cells(path: Path) -> Iterator[Text]:
    # Read-only: a writer's last close would fold the write-ahead log in and remove it before it is read.
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            yield _joined(connection.execute(f'SELECT * FROM "{table}"'))


def _duckdb_cells(path: Path) -> Iterator[Text]:
    import duckdb

    with duckdb.connect(path, read_only=True) as connection:
        tables = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
        for (table,) in tables:
            yield _joined(connection.execute(f'FROM "{table}"').fetchall())


def _parquet_cells(path: Path) -> Text:
    import duckdb

    with duckdb.connect() as connection:
        return _joined(connection.execute("FROM read_parquet($path)", {"path": str(path)}).fetchall())


def _joined(rows: Iterable[tuple[object, ...]]) -> Text:
    return b"\n".join(
        cell if isinstance(cell, bytes) else str(cell).encode() for row in rows for cell in row if cell is not None
    )
