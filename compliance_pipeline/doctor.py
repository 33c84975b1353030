"""What keeps an installation from working, or would lose or leak something, and how to mend it.

Looks only: it makes no key and no table (opening a warehouse of an earlier version brings it up to date). No finding
holds a secret, nor the text of an unforeseen error.
"""

import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TypeGuard
from urllib.parse import quote, urlsplit

import sqlalchemy as sa

from compliance_pipeline import database

if TYPE_CHECKING:
    from compliance_pipeline.settings import Settings

State = Literal["ok", "warn", "bad"]

OTHERS = stat.S_IRWXG | stat.S_IRWXO
MADE_SECRETS: dict[str, str | None] = {
    "webhook": "webhook_secret",
    "token": "token_key",
    "fingerprint": "fingerprint_key",
    "engine": "engine_secret",
    "callback": "callback_secret",
    "client": "client_secret",
    "warehouse": "warehouse_secret",
    "ledger": None,
    "links": None,
    "dead_messages": None,
}
"""Files of the secrets folder, with the setting that takes their place."""
OURS_ALONE = {
    "token": ("inbox", "the same person would get another token from here on"),
    "fingerprint": ("inbox", "the same number would get another fingerprint from here on"),
    "dead_messages": ("dead_messages", "what is set aside can't be opened"),
}
"""What nobody else can give again, with the table that has rows once it was used, and what its loss means."""
TOLERANCE = timedelta(minutes=5)
"""Of webhook signatures (Standard Webhooks)."""
NOTICEABLE = timedelta(minutes=1)
LEAST_FREE, LITTLE_FREE = 1 << 30, 5 << 30
REACH_S, NEARBY_S = 5.0, 1.0


@dataclass(frozen=True, slots=True)
class Finding:
    """fix: what to do; empty where nothing is to be done."""

    name: str
    state: State
    what: str
    fix: str = ""


def check(settings: "Settings", now: datetime) -> list[Finding]:
    """Every check, in the order in which to mend what they find. `now`: this machine's clock. Takes some seconds."""
    probes: dict[str, Callable[[Settings, datetime], Iterator[Finding]]] = {
        "permissions": _permissions,
        "disk": _disk,
        "database": _database,
        "secrets": _secrets,
        "vault key": _vault_key,
        "warehouse": _warehouse,
        "policy": _policy,
        "dagster": _dagster,
        "ports": _ports,
        "platform": _platform,
        "clock": _clock,
        "breakers": _breakers,
    }
    findings: list[Finding] = []
    began = monotonic()
    for name, probe in probes.items():
        try:
            findings += probe(settings, now + timedelta(seconds=monotonic() - began))
        except Exception as error:
            # Whatever else is wrong must not hide what the other checks find; its text may hold anything.
            what = f"could not be checked ({type(error).__name__})"
            findings.append(Finding(name, "bad", what, "mend what is found beside this, then look again"))
    return findings


def _permissions(settings: "Settings", _now: datetime) -> Iterator[Finding]:
    from compliance_pipeline.media.vault import vault_folder

    home, name = settings.home, "permissions"
    if not home.exists():
        yield Finding(name, "ok", f"{home} is made at the first start")
        return
    folder, loose = home / "secrets", False
    # Where it is mounted read-only, its modes are the mount's, and can't be mended here.
    mounted = folder.exists() and not os.access(folder, os.W_OK)
    for path in (folder, *folder.rglob("*")) if folder.exists() and not mounted else ():
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode) and mode & OTHERS:
            loose = True
            what = f"{path} can be used by other users of this machine (mode {stat.S_IMODE(mode):03o})"
            yield Finding(name, "bad", what, f"chmod {'700' if stat.S_ISDIR(mode) else '600'} '{path}'")
    vault = vault_folder(settings)
    if vault is not None and vault.exists() and vault.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        loose = True
        yield Finding(name, "bad", f"{vault} can be written by other users of this machine", f"chmod 700 '{vault}'")
    if home.stat().st_mode & OTHERS & ~(stat.S_IXGRP | stat.S_IXOTH):
        what = f"other users of this machine can look into {home}: findings, verdicts and logs lie there"
        yield Finding(name, "warn", what, f"chmod 700 '{home}'")
    variables = Path(".env")
    if variables.exists() and variables.stat().st_mode & OTHERS:
        yield Finding(name, "bad", ".env can be read by other users of this machine", "chmod 600 .env")
    if not os.access(home, os.W_OK | os.X_OK):
        yield Finding(name, "bad", f"{home} can't be written", f"give it to this user: chown -R $(id -un) '{home}'")
    elif not loose:
        whose = "mounted read-only" if mounted else "this user's alone"
        yield Finding(name, "ok", f"{home} is writable, its secrets are {whose}")


def _disk(settings: "Settings", _now: datetime) -> Iterator[Finding]:
    folder = next(folder for folder in (settings.home, *settings.home.parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    what = f"{free / (1 << 30):.1f} GiB free at {folder}"
    fix = "free some space or move COMPLIANCE_HOME; a full disk refuses events, and loses none"
    state: State = "bad" if free < LEAST_FREE else "warn" if free < LITTLE_FREE else "ok"
    yield Finding("disk", state, what, "" if state == "ok" else fix)


def _database_file(settings: "Settings") -> Path | None:
    """None where the operational database is a server."""
    url = sa.make_url(settings.inbox_database_url)
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


@contextmanager
def _operational(settings: "Settings") -> Iterator[sa.Connection | None]:
    """None where there is no database yet."""
    path = _database_file(settings)
    if path is not None and not path.exists():
        yield None
        return
    engine = database.connect(settings.inbox_database_url)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _has(connection: sa.Connection | None, table: str) -> TypeGuard[sa.Connection]:
    return connection is not None and sa.inspect(connection).has_table(table)


def _database(settings: "Settings", _now: datetime) -> Iterator[Finding]:
    name, path = "database", _database_file(settings)
    if path is None:
        try:
            with _operational(settings) as server:
                durable = server.scalar(sa.text("SHOW synchronous_commit")) if server else None
        except sa.exc.SQLAlchemyError as error:
            what = f"the operational database does not answer ({type(error).__name__})"
            yield Finding(name, "bad", what, "start it, or mend COMPLIANCE_INBOX_URL")
            return
        if durable == "off":
            fix = "ALTER ROLE ... SET synchronous_commit = on"
            yield Finding(name, "bad", "synchronous_commit is off: answered events can be lost", fix)
        else:
            yield Finding(name, "ok", "the operational database answers, and commits durably")
        return
    if not path.exists():
        yield Finding(name, "ok", f"{path} is made at the first start")
        return
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            [[said]] = connection.execute("PRAGMA quick_check(1)").fetchall()
            [[journal]] = connection.execute("PRAGMA journal_mode").fetchall()
    except sqlite3.OperationalError as error:
        fix = "stop what holds it, or mend its permissions"
        yield Finding(name, "bad", f"{path} can't be read ({error.sqlite_errorname})", fix)
        return
    except sqlite3.DatabaseError:
        said, journal = "", "wal"
    if said != "ok":
        fix = f"stop everything, then: sqlite3 '{path}' .recover | sqlite3 mended.db; or restore your backup"
        yield Finding(name, "bad", f"{path} is damaged", fix)
        return
    if journal != "wal":
        fix = "keep it on a local disk (a network folder has no write-ahead log), then restart"
        yield Finding(name, "bad", f"{path} has no write-ahead log (journal mode {journal})", fix)
    with _operational(settings) as ours:
        level = ours.exec_driver_sql("PRAGMA synchronous").scalar() if ours else None
    if level is None or level < 2:
        yield Finding(name, "bad", "commits don't wait for the disk", "this is a defect: report it")
    elif journal == "wal":
        yield Finding(name, "ok", f"{path} is whole; commits wait for the disk")


def _secrets(settings: "Settings", _now: datetime) -> Iterator[Finding]:
    from compliance_pipeline.audit import SEALS_FILE

    name, folder, good = "secrets", settings.home / "secrets", 0
    for file, setting in MADE_SECRETS.items():
        path = folder / file
        fix = "put the file back from your backup" + (f", or set COMPLIANCE_{setting.upper()}" if setting else "")
        if setting and getattr(settings, setting) is not None:
            good += 1
        elif not path.exists():
            table, meaning = OURS_ALONE.get(file, ("", ""))
            if file == "ledger" and (settings.home / SEALS_FILE).exists():
                yield Finding(name, "bad", f"{path} is gone: the seals can't be checked, nor new ones made", fix)
            elif table and _has_rows(settings, table):
                yield Finding(name, "warn", f"{path} is not there yet or no more: {meaning}", fix)
        elif len(path.read_bytes().strip()) < 32:
            yield Finding(name, "bad", f"{path} is empty or too short for a key", fix)
        else:
            good += 1
    if settings.client_secret is None and not settings.is_sandboxed:
        fix = "set COMPLIANCE_CLIENT_SECRET to the secret of the OAuth client"
        yield Finding(name, "bad", "the platform's client secret is not set", fix)
    yield Finding(
        name, "ok", f"{good} of {len(MADE_SECRETS)} are there; others not named above are made when first used"
    )


def _has_rows(settings: "Settings", table: str) -> bool:
    with _operational(settings) as connection:
        any_row = sa.select(sa.literal(1)).select_from(sa.table(table)).limit(1)
        return _has(connection, table) and connection.scalar(any_row) is not None


def _vault_key(settings: "Settings", _now: datetime) -> Iterator[Finding]:
    from compliance_pipeline.media.keys import keys_of
    from compliance_pipeline.media.vault import VaultError, data_keys

    name = "vault key"
    try:
        keys = keys_of(settings)
        newest = _newest_data_key(settings, data_keys)
        if newest is None:
            yield Finding(name, "ok", "nothing is in the vault yet")
            return
        keys.unwrap(newest.wrapped, newest.recording_id, newest.kek)
    except VaultError as error:
        yield Finding(name, "bad", str(error), "evidence can't be read or stored until then")
    else:
        yield Finding(name, "ok", "opens the newest data key")


def _newest_data_key(settings: "Settings", data_keys: sa.Table) -> "sa.Row[Any, Any, Any] | None":
    query = sa.select(data_keys.c.recording_id, data_keys.c.wrapped, data_keys.c.kek)
    query = query.where(data_keys.c.wrapped.is_not(None)).order_by(data_keys.c.made_at.desc()).limit(1)
    with _operational(settings) as connection:
        return connection.execute(query).first() if _has(connection, data_keys.name) else None


def _warehouse(settings: "Settings", _now: datetime) -> Iterator[Finding]:
    import duckdb

    from compliance_pipeline.warehouse.warehouse import (
        WarehouseBusy,
        WarehouseDamaged,
        WarehouseError,
        WarehouseUnavailable,
        warehouse_of,
    )

    name, path = "warehouse", settings.warehouse_url or settings.warehouse_path
    is_secret = settings.warehouse_secret is not None or (settings.home / "secrets" / "warehouse").exists()
    if settings.warehouse_url and not is_secret:
        fix = "set COMPLIANCE_WAREHOUSE_SECRET to that of the server"
        yield Finding(name, "bad", "the served warehouse's secret is not set", fix)
        return
    if not warehouse_of(settings).exists():
        yield Finding(name, "ok", f"{path} is made by the first run")
        return
    try:
        [counted] = warehouse_of(settings, lock_timeout_s=10).select("SELECT count(*) AS verdicts FROM verdicts")
    except WarehouseUnavailable as error:
        yield Finding(name, "bad", "the served warehouse can't be reached", str(error))
    except WarehouseBusy as error:
        yield Finding(name, "warn", "the warehouse is in use", str(error))
    except (WarehouseDamaged, duckdb.Error) as error:
        fix = "stop everything and restore your backup; what came in since is fetched again by a backfill"
        yield Finding(name, "bad", f"{path} does not open ({type(error).__name__})", fix)
    except WarehouseError as error:
        yield Finding(name, "bad", "the served warehouse can't be used", str(error))
    else:
        yield Finding(name, "ok", f"{path} opens: {counted['verdicts']} verdicts")


def _policy(settings: "Settings", _now: datetime) -> Iterator[Finding]:
    from compliance_pipeline.promotion import live_policy_of
    from compliance_pipeline.screening.policy import PolicyError

    try:
        policy = live_policy_of(settings)
    except PolicyError as error:
        pack = settings.policy
        if pack is None:
            fix = "promote one that can be used: compliance policy promote PACK --without-diff REASON"
            yield Finding("policy", "bad", str(error), fix)
            return
        yield Finding("policy", "bad", f"the pack {pack} is refused", f"see its faults: compliance policy check {pack}")
        return
    yield Finding("policy", "ok", policy.policy_version)
    channels = {wanted.to for rule in policy.rules for wanted in rule.actions if wanted.to}
    for channel in sorted(channels - settings.notify_urls.keys()):
        what = f"the pack sends messages to the channel {channel}, which has no address"
        yield Finding("policy", "bad", what, f"give {channel} an address in COMPLIANCE_NOTIFY_URLS")


def _dagster(settings: "Settings", _now: datetime) -> Iterator[Finding]:
    home = Path(os.environ.get("DAGSTER_HOME") or settings.home / "dagster")
    if not home.exists():
        yield Finding("dagster", "ok", f"{home} is made at the first start")
    elif not os.access(home, os.W_OK | os.X_OK):
        fix = f"give it to this user: chown -R $(id -un) '{home}'"
        yield Finding("dagster", "bad", f"{home} can't be written", fix)
    else:
        yield Finding("dagster", "ok", f"{home} is writable")


def _ports(settings: "Settings", _now: datetime) -> Iterator[Finding]:
    import httpx

    from compliance_pipeline.stack import is_open

    for setting, port in (("RECEIVER_PORT", settings.receiver_port), ("EVIDENCE_PORT", settings.evidence_port)):
        if not is_open(port):
            yield Finding("ports", "ok", f"{port} ({setting.lower()}) is free")
            continue
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=NEARBY_S, trust_env=False)
            ours = answer.json() == {"status": "alive"}
        except (httpx.HTTPError, ValueError):
            ours = False
        if ours:
            yield Finding("ports", "ok", f"{port} ({setting.lower()}) is ours")
        else:
            fix = f"stop that program, or choose another port with COMPLIANCE_{setting}"
            yield Finding("ports", "bad", f"{port} ({setting.lower()}) is in use by another program", fix)


def _platform(settings: "Settings", now: datetime) -> Iterator[Finding]:
    """Whether anything answers there; the clock, by what it answers."""
    import httpx

    parts, name = urlsplit(settings.platform_url), "platform"
    at = parts.hostname or "the platform"
    if parts.scheme != "https" and not settings.is_sandboxed:
        yield Finding(name, "bad", f"{at} would be asked in the clear", "set COMPLIANCE_PLATFORM_URL to https://...")
        return
    try:
        answer = httpx.get(settings.platform_url, timeout=REACH_S, trust_env=False)
    except httpx.HTTPError as error:
        if settings.is_sandboxed:
            yield Finding(name, "warn", "the sandbox does not run", "compliance up starts it")
        else:
            fix = "check COMPLIANCE_PLATFORM_URL and the network; no proxy is used"
            yield Finding(name, "bad", f"{at} can't be reached ({type(error).__name__})", fix)
        return
    yield Finding(name, "ok", f"{at} answers; what it lets us do: compliance platform check")
    try:
        theirs = parsedate_to_datetime(answer.headers.get("date", ""))
    except (ValueError, TypeError):
        return
    if theirs.tzinfo is None:
        return
    apart = abs(now + answer.elapsed - theirs)
    if apart >= NOTICEABLE:
        state: State = "bad" if apart >= TOLERANCE else "warn"
        what = f"this machine's clock is {apart.total_seconds():.0f} s off {at}'s; signatures hold for 5 minutes"
        yield Finding("clock", state, what, "set the clock by NTP: timedatectl set-ntp true")
    else:
        yield Finding("clock", "ok", f"agrees with {at}'s")


def _clock(settings: "Settings", now: datetime) -> Iterator[Finding]:
    newest = _newest_time(settings)
    if newest and newest > now + NOTICEABLE:
        what = f"what was stored last is from {newest.isoformat(timespec='seconds')}, after now: the clock went back"
        fix = "set the clock by NTP: timedatectl set-ntp true; what is due waits until then"
        yield Finding("clock", "bad", what, fix)
    else:
        yield Finding("clock", "ok", "nothing stored is from the future")


def _newest_time(settings: "Settings") -> datetime | None:
    newest: list[datetime] = []
    with _operational(settings) as connection:
        for table, column in (("inbox", "updated_at"), ("ledger", "at")):
            if _has(connection, table):
                query = sa.select(sa.func.max(sa.column(column, database.UtcTime))).select_from(sa.table(table))
                if found := connection.scalar(query):
                    newest.append(found)
    return max(newest, default=None)


def _breakers(settings: "Settings", now: datetime) -> Iterator[Finding]:
    from compliance_pipeline.breaker import failing

    with _operational(settings) as connection:
        broken = failing(connection, now) if connection else []
    for name in broken:
        fix = "nothing, if it answers again: a probe closes it; else mend what it names"
        yield Finding("breakers", "warn", f"{name} fails and is left alone for now", fix)
    if not broken:
        yield Finding("breakers", "ok", "nothing fails")
