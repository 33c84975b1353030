"""Evidence over HTTP: real vault, ledger, warehouse and sockets."""

import hashlib
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
import uvicorn
from itsdangerous import URLSafeTimedSerializer
from starlette.routing import Route

from compliance_pipeline import database
from compliance_pipeline.asgi import MAX_UNFINISHED
from compliance_pipeline.contracts.policy import RetentionRule
from compliance_pipeline.evidence import ORIGINAL
from compliance_pipeline.evidence_service import MAX_CLIP_BYTES, Link, byte_range, clips_of, create_app, serve, sign
from compliance_pipeline.ledger import ledger_table
from compliance_pipeline.media.vault import Vault, vault_of
from compliance_pipeline.retention import Outcome, apply, plan_retention
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.tables import EvidenceRow, FindingRow, RecordingRow, Row
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.intake.test_receiver_kill import free_port

CONTENT = bytes(range(256)) * 40
NAME = "evidence/clip-0.flac"


@dataclass
class Room:
    """A running service and what it reads from. `ahead`: how far its clock is."""

    settings: Settings
    engine: sa.Engine
    warehouse: Warehouse
    vault: Vault
    http: httpx.Client
    routes: list[str]
    ahead: timedelta = timedelta()

    def keep(
        self, recording_id: str, name: str = NAME, number: int = 0, status: str = "verified", content: bytes = CONTENT
    ) -> None:
        """A clip in the vault, and its row."""
        now = datetime.now(UTC)
        self.vault.put(recording_id, name, content, now)
        hour = now.replace(minute=0, second=0, microsecond=0)
        digest = hashlib.sha256(content).hexdigest()
        rows: list[Row] = [
            RecordingRow(
                recording_id, hour, "guide", "voice", None, None, [], f"msg-{recording_id}", None, None, now, now, now
            ),
            FindingRow(recording_id, "e1", number, hour, "card_number", "tones", "agent", 1, 2, 0.9, "masked"),
            EvidenceRow(recording_id, "e1", number, hour, status, None, name, 1, 2, digest, now, "run-1"),
        ]
        self.warehouse.append(rows)

    def path(self, recording_id: str, name: str = NAME, who: str = "D. Ansah") -> str:
        return sign(self.settings, Link(recording_id, name, who)).partition(f":{self.settings.evidence_port}")[2]

    def plays(self) -> list[sa.Row]:  # type: ignore[type-arg]
        with self.engine.connect() as connection:
            if not sa.inspect(connection).has_table("ledger"):
                return []
            query = sa.select(ledger_table).where(ledger_table.c.kind == "play").order_by(ledger_table.c.seq)
            return list(connection.execute(query))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    settings = Settings(_env_file=None, home=tmp_path_factory.mktemp("home"))
    engine = database.connect(settings.inbox_database_url)
    database.create(engine)
    made: list[Room] = []
    app = create_app(settings, clock=lambda: datetime.now(UTC) + made[0].ahead)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        routes = [route.path for route in app.routes if isinstance(route, Route)]
        assert len(routes) == len(app.routes)
        room = Room(settings, engine, Warehouse(settings.warehouse_path), vault_of(settings, engine), http, routes)
        made.append(room)
        room.keep("rec-1")
        yield room
    server.should_exit = True
    thread.join()
    room.vault.close()
    engine.dispose()


@pytest.fixture(autouse=True)
def _on_time(room: Room) -> None:
    room.ahead = timedelta()


def test_a_link_plays_the_clip_and_keeps_it_out_of_caches_and_referrers(room: Room) -> None:
    answer = room.http.get(room.path("rec-1"))
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-type"] == "audio/flac"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["content-disposition"] == "inline"
    assert answer.headers["accept-ranges"] == "bytes"


def test_a_play_is_in_the_ledger_with_who_and_the_whole_clip_once_a_minute(room: Room) -> None:
    room.keep("rec-heard")
    path = room.path("rec-heard", who="Ngozi")
    before = len(room.plays())
    for part in ("bytes=0-9", "bytes=10-19"):
        assert room.http.get(path, headers={"Range": part}).status_code == 206
    assert len(room.plays()) - before in (1, 2), "two only where the minute changed between"
    play = room.plays()[before]
    assert (play.actor, play.recording_id) == ("Ngozi", "rec-heard")
    assert play.details == '{"clip":"evidence/clip-0.flac"}', "of several parts, the first alone would say too little"
    assert path.rpartition("/")[2] not in str(tuple(play)), "the token is a key to the clip"
    room.ahead = timedelta(seconds=61)
    room.http.get(path)
    assert len(room.plays()) - before in (2, 3)


def test_head_says_how_long_it_is_and_is_no_play(room: Room) -> None:
    before = len(room.plays())
    answer = room.http.head(room.path("rec-1"))
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, str(len(CONTENT)), b"")
    assert len(room.plays()) == before


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=10000-", 10_000, 10_240),
        ("bytes=-240", 10_000, 10_240),
        ("bytes=-99999", 0, 10_240),
        ("bytes=10239-99999", 10_239, 10_240),
    ],
)
def test_a_range_is_played_as_rfc_9110_says(room: Room, header: str, start: int, end: int) -> None:
    answer = room.http.get(room.path("rec-1"), headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, CONTENT[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/10240"


@pytest.mark.parametrize("header", ["bytes=10240-", "bytes=99999-100000", "bytes=-0"])
def test_a_range_outside_the_clip_is_refused_with_its_size_and_is_no_play(room: Room, header: str) -> None:
    before = len(room.plays())
    answer = room.http.get(room.path("rec-1", who="nobody"), headers={"Range": header})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */10240")
    assert len(room.plays()) == before


@pytest.mark.parametrize("header", [None, "", "bytes=", "bytes=-", "bytes=5-4", "bytes=0-1,5-6", "items=0-1", "0-1"])
def test_what_is_no_single_range_plays_all(header: str | None) -> None:
    assert byte_range(header, 100) is None


def test_a_link_works_as_long_as_it_says_and_no_longer(room: Room) -> None:
    path = room.path("rec-1")
    room.ahead = timedelta(seconds=room.settings.link_seconds - 5)
    assert room.http.get(path).status_code == 200
    room.ahead = timedelta(seconds=room.settings.link_seconds + 1)
    answer = room.http.get(path)
    assert (answer.status_code, answer.json()["reason"]) == (410, "expired")
    assert answer.headers["cache-control"] == "no-store"


def test_forged_and_unknown_links_get_the_same_answer(room: Room, tmp_path: Path) -> None:
    genuine = room.path("rec-1")
    elsewhere = Settings(_env_file=None, home=tmp_path)
    other_key = sign(elsewhere, Link("rec-1", NAME, "me")).rpartition("/")[2]
    signer = partial(
        URLSafeTimedSerializer,
        room.settings._secret(None, "links"),
        signer_kwargs={"digest_method": hashlib.sha256},
    )
    assert room.http.get(f"/evidence/{signer(salt='evidence').dumps(['rec-1', NAME, 'him'])}").status_code == 200
    unsalted = signer().dumps(["rec-1", NAME, "me"])
    odd = signer(salt="evidence").dumps({"a": 1})
    forged = [
        genuine[:-9] + ("A" if genuine[-9] != "A" else "B") + genuine[-8:],
        *(f"/evidence/{t}" for t in (other_key, unsalted)),
    ]
    unknown = [room.path("rec-1", "evidence/other.flac"), room.path("no-such"), f"/evidence/{odd}", "/evidence/x"]
    answers = [room.http.get(path) for path in [*forged, *unknown]]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1
    assert not any(play.actor == "me" for play in room.plays())


def test_no_route_plays_what_is_not_a_verified_clip(room: Room) -> None:
    room.keep("rec-mixed", "evidence/safe.flac", 0)
    room.keep("rec-mixed", "evidence/refused.flac", 1, "refused", b"unmasked")
    room.keep("rec-mixed", "evidence/pending.flac", 2, "unavailable", b"unmasked")
    # The warehouse may be wrong, or someone else's: what is not among the clips is none, whatever it says.
    for number, name in enumerate((ORIGINAL, "original.wav", "evidence"), 3):
        room.keep("rec-mixed", name, number, content=b"unmasked")
    room.vault.put("rec-mixed", "evidence/unlisted.flac", b"unmasked", datetime.now(UTC))
    # A verified name of another recording opens nothing of this one.
    room.keep("rec-neighbour", "evidence/unlisted.flac", 0)
    assert len(room.vault.names("rec-mixed")) == 7
    played = []
    for route in room.routes:
        for name in room.vault.names("rec-mixed"):
            token = room.path("rec-mixed", name).rpartition("/")[2]
            for path in (route.replace("{token}", part) for part in (token, name, f"rec-mixed%2F{name}")):
                answer = room.http.get(path)
                assert b"unmasked" not in answer.content
                if answer.headers.get("content-type") == "audio/flac":
                    played.append(name)
    assert played == ["evidence/safe.flac"]
    assert room.http.get("/openapi.json").status_code == 404


def test_nothing_is_played_that_the_ledger_can_not_take(room: Room) -> None:
    path = room.path("rec-1", who="unseen")
    before = len(room.plays())
    full = "CREATE TRIGGER full BEFORE INSERT ON ledger BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    with sqlite3.connect(room.settings.home / "inbox.db") as database_file:
        database_file.execute(full)
    try:
        answer = room.http.get(path, headers={"Range": "bytes=0-1"})
    finally:
        with sqlite3.connect(room.settings.home / "inbox.db") as database_file:
            database_file.execute("DROP TRIGGER full")
    assert (answer.status_code, answer.json()["reason"]) == (503, "ledger")
    assert answer.headers["retry-after"]
    assert CONTENT[:2] not in answer.content
    assert len(room.plays()) == before
    assert room.http.get(path).status_code == 200


def test_a_clip_of_a_shredded_recording_is_gone(room: Room) -> None:
    room.keep("rec-shredded")
    path = room.path("rec-shredded")
    assert room.http.get(path).status_code == 200
    room.vault.shred("rec-shredded", datetime.now(UTC))
    answer = room.http.get(path)
    assert (answer.status_code, answer.json()["error"]) == (
        410,
        "this clip is no longer kept: the recording's key was destroyed",
    )


def test_a_clip_that_retention_deleted_is_gone_with_the_rule_that_did_it(room: Room) -> None:
    room.keep("rec-due")
    path, now = room.path("rec-due"), datetime.now(UTC)
    rules = [RetentionRule(name="short", data="clip", days=0)]
    planned = plan_retention(room.warehouse, room.vault, room.engine, rules, now)
    due = [deletion for deletion in planned if deletion.recording_id == "rec-due"]
    assert [outcome for _, outcome in apply(room.engine, room.vault, due, "me", now)] == [Outcome.DELETED]
    answer = room.http.get(path)
    assert (answer.status_code, answer.json()["error"]) == (410, "this clip is no longer kept: short: kept 0 days")


def test_a_clip_that_is_not_what_was_verified_is_not_played(room: Room) -> None:
    room.keep("rec-swapped")
    room.vault.put("rec-swapped", NAME, b"something else", datetime.now(UTC))
    room.keep("rec-damaged")
    before = {path: path.read_bytes() for path in (room.settings.home / "vault").rglob("*") if path.is_file()}
    room.keep("rec-damaged", content=CONTENT[::-1])
    [blob] = [
        path
        for path in (room.settings.home / "vault").rglob("*")
        if path.is_file() and before.get(path) != path.read_bytes()
    ]
    blob.write_bytes(blob.read_bytes()[:-20] + bytes(20))
    for recording_id in ("rec-swapped", "rec-damaged"):
        answer = room.http.get(room.path(recording_id))
        assert (answer.status_code, answer.json()["reason"]) == (500, "tampered")
    assert not any(play.recording_id in ("rec-swapped", "rec-damaged") for play in room.plays())


def test_a_play_does_not_keep_others_from_the_warehouse(room: Room) -> None:
    """The clip is far larger than what sockets take, so that the answer is still under way."""
    room.keep("rec-long", content=bytes(MAX_CLIP_BYTES))
    with room.http.stream("GET", room.path("rec-long")) as answer:
        assert answer.status_code == 200
        start = time.monotonic()
        with room.warehouse.write() as connection:
            connection.execute("UPDATE evidence SET run_id = 'run-2' WHERE recording_id = 'rec-long'")
        assert time.monotonic() - start < 2
        assert len(answer.read()) == MAX_CLIP_BYTES


def test_half_requests_do_not_keep_others_from_the_service(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, home=tmp_path, evidence_port=free_port())
    process = get_context("spawn").Process(target=serve, args=(settings,))
    process.start()
    halves: list[socket.socket] = []
    try:
        until(settings.evidence_port)
        for _ in range(MAX_UNFINISHED + 50):
            halves.append(socket.create_connection(("127.0.0.1", settings.evidence_port), timeout=10))
            halves[-1].sendall(b"GET /evidence/x HTTP/1.1\r\nHost: x\r\n")
        with httpx.Client(base_url=f"http://127.0.0.1:{settings.evidence_port}", timeout=10) as http:
            assert [http.get("/evidence/x").status_code for _ in range(3)] == [404] * 3
    finally:
        for half in halves:
            half.close()
        process.terminate()
        process.join(30)
        if process.is_alive():
            process.kill()


def until(port: int) -> None:
    """Something listens there."""
    for _ in range(600):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError("the service did not start within a minute")


def test_a_link_is_made_for_a_name_only(room: Room) -> None:
    for nobody in ("", "x" * 129, "line\nbreak"):
        with pytest.raises(ValueError, match="name"):
            sign(room.settings, Link("rec-1", NAME, nobody))


def test_links_to_a_service_on_all_addresses_name_this_machine(room: Room) -> None:
    assert sign(room.settings, Link("rec-1", NAME, "me")).startswith("http://127.0.0.1:8085/evidence/")
    everywhere = Settings(_env_file=None, home=room.settings.home, host="0.0.0.0")
    assert "0.0.0.0" not in sign(everywhere, Link("rec-1", NAME, "me")).partition("/evidence/")[0]
    outside = Settings(_env_file=None, home=room.settings.home, evidence_url="https://clips.example.com/")
    assert sign(outside, Link("rec-1", NAME, "me")).startswith("https://clips.example.com/evidence/")


def test_clips_of_a_recording_are_those_verified_in_the_order_of_findings(room: Room) -> None:
    room.keep("rec-many", "evidence/b.flac", 1)
    room.keep("rec-many", "evidence/a.flac", 0)
    room.keep("rec-many", "evidence/c.flac", 2, "refused")
    room.keep("rec-many", ORIGINAL, 3)
    clips = clips_of(room.warehouse, "rec-many")
    assert [(clip.finding_no, clip.name) for clip in clips] == [(0, "evidence/a.flac"), (1, "evidence/b.flac")]
    assert replace(clips[0], finding_no=1, name="evidence/b.flac") == clips[1]
