"""The page of a recording over real parts: calls that were screened, cut and masked by the pipeline, a published
snapshot, and the app as it is served."""

import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
import uvicorn
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Page
from starlette.testclient import TestClient

from compliance_pipeline import custody, reviews
from compliance_pipeline.contracts.policy import RetentionRule
from compliance_pipeline.dashboard import recordings
from compliance_pipeline.dashboard.app import create_app
from compliance_pipeline.dashboard.recordings import path_of, routes
from compliance_pipeline.dashboard.timeline import timeline
from compliance_pipeline.dashboard.waveform import BARS, Waveforms, masked_spans, waveform
from compliance_pipeline.evidence import ORIGINAL, evidence_batch
from compliance_pipeline.figures.snapshots import folder_of, publish
from compliance_pipeline.intake.hours import hour_of, partition_hour
from compliance_pipeline.ledger import ledger_table
from compliance_pipeline.media.clips import PAD_MS, decode, encode
from compliance_pipeline.media.vault import Vault, vault_of
from compliance_pipeline.objective import Objective
from compliance_pipeline.retention import apply, hold, plan_retention
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.tables import (
    EvidenceRow,
    FindingRow,
    RecordingRow,
    RemediationRow,
    Row,
    StageTimeRow,
    VerdictRow,
    ViolationRow,
)
from compliance_pipeline_tests.workshop import Workshop, recording, workshop

PCM = np.zeros((2, 16_000), np.int16)
PCM[0, 8_000:] = 8_000
"""A second of silence, then a loud one in the first channel."""
CONTENT = encode(PCM)
NAME = "evidence/e1/0.flac"
CARD = "4111 1111 1111 1111"


@dataclass
class Room:
    """A home, its app, and what goes into it. `stopped`: what the app's clock says, where it stands."""

    shop: Workshop
    vault: Vault
    stopped: datetime | None = None

    @property
    def settings(self) -> Settings:
        return self.shop.pipeline.settings

    @property
    def engine(self) -> sa.Engine:
        return self.shop.inbox.engine

    def visitor(self, **of_settings: Any) -> TestClient:
        settings = self.settings.model_copy(update=of_settings)
        app = create_app(settings, clock=lambda: self.stopped or datetime.now(UTC))
        return TestClient(app, base_url="http://127.0.0.1:8060", client=("127.0.0.1", 50_000))

    def publish(self) -> None:
        publish(self.shop.warehouse, self.shop.inbox, folder_of(self.settings.home), Objective(30), datetime.now(UTC))

    def keep(
        self,
        recording_id: str,
        name: str | None = NAME,
        number: int = 0,
        status: str = "verified",
        content: bytes = CONTENT,
        reason: str | None = None,
        hour: datetime | None = None,
        **more: Any,
    ) -> None:
        """A judged recording that the inbox doesn't know, with a finding from 1.2 s to 1.4 s and its clip."""
        now = datetime.now(UTC)
        hour = hour or self.shop.at
        if name:
            self.vault.put(recording_id, name, content, now)
        digest = sha256(content).hexdigest()
        rows: list[Row] = [
            RecordingRow(
                recording_id, hour, "guide", "voice", "inbound", "billing", [], "msg-1", None, None, now, now, now,
                agent="tok_0a",
            ),
            VerdictRow(
                recording_id, "p1", "e1", hour, "voice", "VIOLATION_DETECTED", "PCI_MID_CAPTURE", "PCI-PAN-01", "high",
                0.9, 1_200, None, "ROUTE_TO_COMPLIANCE_QUEUE", "msg-1", None, [], now, "run-1",
            ),
            FindingRow(recording_id, "e1", number, hour, "card_number", "tones", "0", 1_200, 1_400, 0.9, "4111**1111"),
            ViolationRow(
                recording_id, "p1", "e1", f"PCI-PAN-0{number + 1}", hour, "voice", "VIOLATION_DETECTED",
                "PCI_MID_CAPTURE", "high", "tones", "0", 1_200, 0.9, "4111**1111", 1, number,
            ),
            EvidenceRow(recording_id, "e1", number, hour, status, reason, name, 0, 2_000, digest, now, "run-1"),
            *(replace(row, recording_id=recording_id, partition_hour=hour) for row in more.get("rows", ())),
        ]  # fmt: skip
        self.shop.warehouse.append(rows)

    def entries(self, kind: str) -> list[sa.Row[Any]]:
        with self.engine.connect() as connection:
            query = sa.select(ledger_table).where(ledger_table.c.kind == kind).order_by(ledger_table.c.seq)
            return list(connection.execute(query))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    with (
        workshop(tmp_path_factory.mktemp("home")) as shop,
        closing(vault_of(shop.pipeline.settings, shop.inbox.engine)) as vault,
    ):
        ended = shop.clock() - timedelta(seconds=20)
        shop.announce(
            replace(recording(Kind.VOICE_TONES), recording_id="rec-tones", end_time=ended),
            replace(recording(Kind.CHAT_CARD), recording_id="rec-chat", end_time=ended),
        )
        evidence_batch(shop.pipeline, shop.run())
        custody.record(shop.pipeline, shop.at, ["rec-tones", "rec-chat"])
        room = Room(shop, vault)
        room.publish()
        yield room


@pytest.fixture
def http(room: Room) -> Iterator[TestClient]:
    room.stopped = None
    with room.visitor() as http:
        yield http


@pytest.fixture(scope="module")
def address(room: Room) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(create_app(room.settings), port=0, log_config=None, proxy_headers=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def clip_url(page: str) -> str:
    """Of the first player."""
    [found] = re.findall(r'<audio[^>]* src="([^"]+)"', page)[:1]
    return str(found)


# The page


def test_the_page_says_what_it_was_what_came_of_it_and_what_to_do_next(room: Room, http: TestClient) -> None:
    page = http.get("/recordings/rec-tones").text
    assert "<h1>rec-tones</h1>" in page
    assert "Violation detected" in page
    assert "inbound · voice" in page
    assert "confirm or dismiss PCI-DTMF-01" in page
    assert "Card number keyed as tones" in page, "the rule's title"
    assert (
        f"http://127.0.0.1:3000/assets/verdicts?view=partitions&amp;partition={quote(room.shop.hour, safe='')}" in page
    )
    assert "http://127.0.0.1:3000/runs/run-1" in page
    for stage in ("Platform processing", "Queue", "Fetch", "Analysis", "Remediation"):
        assert f'aria-label="{stage}: ' in page
    assert "within the objective of 30 s" in page
    for kind in ("Event received", "Fetched", "Verdict", "Action"):
        assert f"<td>{kind}</td>" in page, "the ledger"
    assert "Create work item" in page
    assert "Data to" in page


def test_times_are_those_of_the_zone_that_the_address_names(room: Room, http: TestClient) -> None:
    with room.shop.warehouse.read() as connection:
        [(judged,)] = connection.execute("SELECT judged_at FROM verdicts WHERE recording_id = 'rec-tones'").fetchall()
    page = http.get("/recordings/rec-tones?tz=Asia/Kathmandu").text
    assert f"{judged + timedelta(hours=5, minutes=45):%Y-%m-%d %H:%M:%S} Asia/Kathmandu" in page


def test_a_chat_shows_its_masked_findings_and_no_player(http: TestClient) -> None:
    page = http.get("/recordings/rec-chat").text
    assert "<audio" not in page
    assert re.search(r'<span class="masked-text">\d{6}\*+\d{4}</span>', page)
    assert "A chat has no audio" in page


def test_an_action_shows_its_tries_and_why_they_failed(room: Room, http: TestClient) -> None:
    now = datetime.now(UTC)
    states = [("planned", None, 0), ("failed", "503 from the platform", 1), ("dead", "gave up after 2 tries", 2)]
    rows = [
        RemediationRow("", "PCI-PAN-01", "create_work_item", number, now, status, None, error, now, "run-7", tries)
        for number, (status, error, tries) in enumerate(states, 1)
    ]
    room.keep("rec-tries", rows=rows)
    room.publish()
    page = http.get("/recordings/rec-tries").text
    assert "given up on" in page
    assert "503 from the platform" in page
    assert "3 states" in page
    assert "compliance remediation retry" in page


def test_ids_of_any_characters_have_a_page_and_a_clip(room: Room, address: str) -> None:
    odd = "a/b?c#d %2F&<i>"
    room.keep(odd)
    room.publish()
    assert path_of(odd) == "/recordings/a%2Fb%3Fc%23d%20%252F%26%3Ci%3E"
    page = httpx.get(f"{address}{path_of(odd)}")
    assert page.status_code == 200
    assert "<h1>a/b?c#d %2F&amp;&lt;i&gt;</h1>" in page.text
    assert httpx.get(f"{address}{clip_url(page.text)}").content == CONTENT
    found = httpx.get(f"{address}/recordings", params={"id": odd})
    assert (found.status_code, found.headers["location"]) == (303, path_of(odd))


# Finding it


def test_the_search_goes_to_the_page_or_says_in_words_that_there_is_none(http: TestClient) -> None:
    answer = http.get("/recordings", params={"id": " rec-tones "}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/recordings/rec-tones")
    for params in ({"id": "rec-none"}, {"id": ""}):
        answer = http.get("/recordings", params=params)
        assert answer.status_code == 404
        assert "To the overview" in answer.text
    missing = http.get("/recordings/<script>alert(1)")
    assert missing.status_code == 404
    assert "No recording &lt;script&gt;alert(1)" in missing.text


def test_a_recording_that_the_inbox_does_not_know_is_looked_for_400_days_back(room: Room, http: TestClient) -> None:
    for name, days in (("rec-last-year", 390), ("rec-before", 420)):
        room.keep(name, None, status="unavailable", hour=room.shop.at - timedelta(days=days))
    room.publish()
    assert http.get("/recordings/rec-last-year").status_code == 200
    assert http.get("/recordings/rec-before").status_code == 404


def test_what_is_not_published_yet_shows_what_the_inbox_has(room: Room, http: TestClient) -> None:
    room.shop.announce(replace(recording(Kind.VOICE_CLEAN), recording_id="rec-waits"), held=False)
    page = http.get("/recordings/rec-waits")
    assert page.status_code == 200
    assert "Waiting" in page.text
    assert "Figures are published within a minute" in page.text
    assert http.get("/recordings", params={"id": "rec-waits"}, follow_redirects=False).status_code == 303


def test_a_conversation_leads_to_its_recordings(room: Room, http: TestClient) -> None:
    room.shop.announce_conversation("conv-1")
    shop, now = room.shop, room.shop.clock()
    [item] = [
        one for one in shop.inbox.claim(shop.hour, "me", now, timedelta(minutes=1), 50) if one.recording_id == "conv-1"
    ]
    shop.inbox.listed(item, "me", "it has no recording", now)
    shop.inbox.release("me", now)
    page = http.get("/recordings/conv-1").text
    assert "A conversation" in page
    assert "it has no recording" in page


# Stages


def stage(name: str, start_s: float, end_s: float) -> dict[str, Any]:
    zero = datetime(2026, 3, 1, 12, tzinfo=UTC)
    start, end = (zero + timedelta(seconds=at) for at in (start_s, end_s))
    return {"stage": name, "started_at": start, "ended_at": end, "seconds": end_s - start_s}


def test_zero_of_the_time_line_is_available_and_stages_lie_end_to_end() -> None:
    rows = [
        stage("platform", -10, 0), stage("delivery", 0, 1), stage("queue", 1, 3), stage("fetch", 3, 6),
        stage("analysis", 6, 10), stage("judged", 0, 10), stage("remediation", 10, 11), stage("flagged", 0, 11),
        stage("first_finding", 3, 5),
    ]  # fmt: skip
    made = timeline(rows, 30)
    assert made is not None
    assert [bar.stage for bar in made.bars] == ["platform", "delivery", "queue", "fetch", "analysis", "remediation"]
    for bar, following in zip(made.bars, made.bars[1:], strict=False):
        assert bar.end == pytest.approx(following.x, abs=0.01)
    assert made.bars[1].x == made.zero
    assert made.objective - made.zero == pytest.approx(3 * (made.zero - made.bars[0].x), abs=0.01), (
        "to scale: 30 s, 10 s"
    )
    assert (made.total_s, made.late_s, made.is_flagged, made.first_finding_s) == (11, 0, True, 2)
    assert all(bar.late_x is None and not bar.is_cut for bar in made.bars)


def test_what_is_past_the_objective_is_late_and_nothing_before_it() -> None:
    rows = [stage("queue", 0, 20), stage("fetch", 20, 50), stage("remediation", 50, 60)]
    made = timeline([*rows, stage("judged", 0, 50), stage("flagged", 0, 60)], 30)
    assert made is not None
    queue, fetch, remediation = made.bars
    assert queue.late_x is None
    assert fetch.late_x == made.objective
    assert remediation.late_x == remediation.x
    assert made.late_s == 30


def test_a_platform_that_took_days_does_not_squeeze_our_stages() -> None:
    made = timeline([stage("platform", -1e6, 0), stage("queue", 0, 3), stage("judged", 0, 3)], 30)
    assert made is not None
    assert made.bars[0].is_cut
    assert made.bars[0].seconds == 1e6
    assert made.zero < 40
    assert made.bars[1].width > 4
    assert not made.is_flagged


def test_what_was_not_judged_has_no_time_line() -> None:
    assert timeline([], 30) is None


def test_a_late_recording_says_so_in_words(room: Room, http: TestClient) -> None:
    now = datetime.now(UTC)
    rows = [
        StageTimeRow("", name, now, "voice", now, now + timedelta(seconds=seconds), seconds)
        for name, seconds in (("queue", 40.0), ("judged", 40.0), ("flagged", 41.0))
    ]
    room.keep("rec-late", rows=rows)
    room.publish()
    page = http.get("/recordings/rec-late").text
    assert "late by 11.0 s" in page
    assert "40.0 s, late" in page
    assert 'aria-label="Queue: 40.0 s, past the objective"' in page


# Waveforms


def test_peaks_are_those_of_the_clip_itself() -> None:
    made = waveform(CONTENT)
    assert made.seconds == 2
    assert [len(lane) for lane in made.peaks] == [BARS, BARS]
    assert set(made.peaks[0][: BARS // 2]) == {0}
    assert made.peaks[0][BARS // 2 :] == pytest.approx([8_000 / 32_768] * (BARS // 2), abs=0.001)
    assert set(made.peaks[1]) == {0}
    loud, silent = made.paths
    assert loud.count("M") == BARS // 2
    assert silent == ""


def test_a_clip_is_read_once_for_its_waveform_and_few_are_kept() -> None:
    read: list[str] = []
    waveforms = Waveforms(most=2)

    def of(name: str) -> None:
        def content() -> bytes:
            read.append(name)
            return CONTENT

        waveforms.of(name, content)

    for name in ("a", "b", "a", "c", "a", "b"):
        of(name)
    assert read == ["a", "b", "c", "b"]


def test_spans_marked_as_masked_are_silence_and_the_rest_is_heard(room: Room, http: TestClient) -> None:
    [row] = room.shop.warehouse.select("FROM evidence WHERE recording_id = 'rec-tones' AND status = 'verified'")
    findings = room.shop.warehouse.select("FROM findings WHERE recording_id = 'rec-tones'")
    samples = decode(b"".join(room.vault.read("rec-tones", row["uri"])))
    spans = masked_spans(findings, row["finding_no"], (row["start_ms"], row["end_ms"]))
    assert len(spans) == 1
    inside = np.zeros(samples.shape[1], bool)
    for start, end in spans:
        inside[(start - row["start_ms"]) * 8 : (end - row["start_ms"]) * 8] = True
    assert not samples[:, inside].any()
    assert samples[:, ~inside].any()
    found = findings[0]
    assert spans == [(found["start_ms"] - PAD_MS, found["end_ms"] + PAD_MS)]
    page = http.get("/recordings/rec-tones").text
    assert "Card number, masked" in page
    paths = re.findall(r'<path class="bars" d="([^"]*)"', page)
    assert paths == waveform(b"".join(room.vault.read("rec-tones", row["uri"]))).paths


def test_a_span_that_is_heard_is_not_called_masked(room: Room, http: TestClient) -> None:
    assert waveform(CONTENT).is_silent(0.1, 0.9)
    assert not waveform(CONTENT).is_silent(0.1, 1.1)
    room.keep("rec-unmasked")
    room.publish()
    page = http.get("/recordings/rec-unmasked").text
    assert "No part of it is masked" in page
    assert ", masked</text>" not in page


def test_spans_that_overlap_are_one_and_end_with_the_clip() -> None:
    def finding(number: int, start: int, end: int) -> dict[str, Any]:
        return {
            "finding_no": number,
            "kind": "card_number",
            "start_ms": start,
            "end_ms": end,
            "located": True,
            "spans": [],
        }

    findings = [finding(0, 100, 1_000), finding(1, 1_200, 2_000), finding(2, 8_000, 9_990)]
    assert masked_spans(findings, 0, (0, 10_000)) == [(0, 2_250), (7_750, 10_000)]


# Audio


def test_opening_the_page_is_no_play_and_a_play_is_entered_once_a_minute_user_and_clip(
    room: Room, http: TestClient
) -> None:
    room.keep("rec-heard")
    room.publish()
    room.stopped = datetime.now(UTC).replace(second=30)
    before = len(room.entries("play"))
    page = http.get("/recordings/rec-heard").text
    assert 'preload="none"' in page
    assert len(room.entries("play")) == before
    url = clip_url(page)
    for part in ("bytes=0-9", "bytes=10-19"):
        answer = http.get(url, headers={"Range": part})
        assert (answer.status_code, len(answer.content)) == (206, 10)
    assert len(room.entries("play")) - before == 1
    play = room.entries("play")[before]
    assert (play.recording_id, play.details) == ("rec-heard", f'{{"clip":"{NAME}"}}')
    assert play.actor
    room.stopped += timedelta(seconds=29)
    http.get(url)
    assert len(room.entries("play")) - before == 1
    room.stopped += timedelta(seconds=1)
    http.get(url)
    assert len(room.entries("play")) - before == 2
    assert "<td>Play</td>" in http.get("/recordings/rec-heard").text


def test_a_clip_is_served_in_parts_kept_out_of_caches_and_not_compressed(room: Room, http: TestClient) -> None:
    room.keep("rec-parts")
    room.publish()
    url = clip_url(http.get("/recordings/rec-parts").text)
    answer = http.get(url)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-type"] == "audio/flac"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["cache-control"] == "private, no-store"
    assert "content-encoding" not in answer.headers
    part = http.get(url, headers={"Range": "bytes=5-"})
    assert (part.status_code, part.content) == (206, CONTENT[5:])
    assert part.headers["content-range"] == f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}"
    before = len(room.entries("play"))
    outside = http.get(url, headers={"Range": f"bytes={len(CONTENT)}-"})
    assert (outside.status_code, outside.headers["content-range"]) == (416, f"bytes */{len(CONTENT)}")
    head = http.head(url)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(CONTENT)), b"")
    assert len(room.entries("play")) == before


def test_a_page_elsewhere_can_not_play_in_the_users_name(room: Room, http: TestClient) -> None:
    clip, before = clip_url(http.get("/recordings/rec-tones").text), len(room.entries("play"))
    for site in ("cross-site", "same-site"):
        answer = http.get(clip, headers={"Sec-Fetch-Site": site})
        assert (answer.status_code, b"fLaC" in answer.content) == (403, False)
    assert len(room.entries("play")) == before


def test_a_page_draws_some_waveforms_and_has_a_player_for_each_clip(
    room: Room, http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "MOST_WAVEFORMS", 1)
    for number, name in enumerate(("evidence/e1/0.flac", "evidence/e1/1.flac")):
        room.keep("rec-clips", name, number)
    room.publish()
    page = http.get("/recordings/rec-clips").text
    assert (page.count('class="wave"'), page.count("<audio")) == (1, 2)
    assert "No clip" not in page


def test_no_address_leads_to_anything_but_a_verified_clip(room: Room, http: TestClient) -> None:
    """The warehouse may be wrong: what lies not among the clips is none, whatever the table says."""
    room.keep("rec-mixed", "evidence/e1/0.flac", 0)
    room.keep("rec-mixed", "evidence/e1/1.flac", 1, "refused", b"unmasked")
    room.keep("rec-mixed", "evidence/e1/2.flac", 2, "unavailable", b"unmasked")
    for number, name in enumerate((ORIGINAL, "original.wav", "evidence"), 3):
        room.keep("rec-mixed", name, number, content=b"unmasked")
    room.vault.put("rec-mixed", "evidence/e1/9.flac", b"unmasked", datetime.now(UTC))
    room.publish()
    names = room.vault.names("rec-mixed")
    assert len(names) == 7
    tried = [f"/recordings/rec-mixed/clips/{number}.flac" for number in range(-1, 12)]
    tried += [f"/recordings/rec-mixed/clips/{quote(name, safe='')}" for name in names]
    tried += [f"/recordings/rec-mixed/{name}" for name in names]
    tried += [f"/recordings/rec-mixed%2F{quote(name, safe='')}/clips/1.flac" for name in names]
    tried += [f"/recordings/rec-mixed/clips/0.flac?v={sha256(b'unmasked').hexdigest()}"]
    heard = []
    for path in tried:
        answer = http.get(path)
        assert b"unmasked" not in answer.content
        if answer.headers["content-type"] == "audio/flac":
            heard.append(path)
    assert heard == ["/recordings/rec-mixed/clips/0.flac"]
    assert "refused, because it would not be safe to hear" in http.get("/recordings/rec-mixed").text


def test_a_clip_that_is_gone_or_not_what_was_verified_is_not_played_and_the_page_says_why(
    room: Room, http: TestClient
) -> None:
    for name in ("rec-shredded", "rec-swapped", "rec-due"):
        room.keep(name)
    room.publish()
    urls = {name: clip_url(http.get(f"/recordings/{name}").text) for name in ("rec-shredded", "rec-swapped", "rec-due")}
    now = datetime.now(UTC)
    room.vault.shred("rec-shredded", now)
    room.vault.put("rec-swapped", NAME, b"something else", now)
    rules = [RetentionRule(name="short", data="clip", days=0)]
    due = [
        one
        for one in plan_retention(room.shop.warehouse, room.vault, room.engine, rules, now)
        if one.recording_id == "rec-due"
    ]
    apply(room.engine, room.vault, due, "me", now)
    before = len(room.entries("play"))
    answers = {name: http.get(url) for name, url in urls.items()}
    assert {name: answer.status_code for name, answer in answers.items()} == {
        "rec-shredded": 410,
        "rec-swapped": 500,
        "rec-due": 410,
    }
    assert "short: kept 0 days" in answers["rec-due"].text
    assert len(room.entries("play")) == before
    with room.visitor() as anew:
        pages = {name: anew.get(f"/recordings/{name}").text for name in urls}
    assert all("<audio" not in page for page in pages.values())
    assert "the recording&#39;s key was destroyed" in pages["rec-shredded"]
    assert "it is not played" in pages["rec-swapped"]
    assert f"deleted at {now:%Y-%m-%d %H:%M:%S} UTC by retention: short: kept 0 days" in pages["rec-due"]


def test_nothing_is_played_that_the_ledger_can_not_take(room: Room, http: TestClient) -> None:
    room.keep("rec-unheard")
    room.publish()
    url = clip_url(http.get("/recordings/rec-unheard").text)
    full = "CREATE TRIGGER full BEFORE INSERT ON ledger BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    file = room.settings.home / "inbox.db"
    with closing(sqlite3.connect(file)) as database_file:
        database_file.execute(full)
    try:
        answer = http.get(url)
    finally:
        with closing(sqlite3.connect(file)) as database_file:
            database_file.execute("DROP TRIGGER full")
    assert answer.status_code == 503
    assert CONTENT[:4] not in answer.content
    assert http.get(url).status_code == 200


def test_a_legal_hold_is_told(room: Room, http: TestClient) -> None:
    room.keep("rec-held")
    room.publish()
    hold(room.engine, "rec-held", "case 12", "counsel", datetime.now(UTC))
    page = http.get("/recordings/rec-held").text
    assert "Legal hold" in page
    assert "by counsel: case 12" in page


# Deciding


def fields(page: str, rule: str) -> dict[str, str]:
    """The hidden fields of a rule's form."""
    found = re.search(rf'<article class="violation" id="rule-{rule}".*?</article>', page, re.DOTALL)
    assert found
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', found[0]))


def test_a_decision_shows_at_once_and_a_form_sent_twice_is_one(room: Room, http: TestClient) -> None:
    room.keep("rec-decided")
    room.publish()
    path, before = "/recordings/rec-decided", len(room.entries("review"))
    sent = fields(http.get(path).text, "PCI-PAN-01") | {"decision": "confirmed", "reason": "read out aloud"}
    answers = [http.post(path, data=sent, follow_redirects=False) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [303, 303]
    assert answers[0].headers["location"] == f"{path}#rule-PCI-PAN-01"
    assert len(room.entries("review")) - before == 1
    page = http.get(path).text
    assert "✓ Confirmed" in page
    assert "read out aloud" in page
    assert "Nothing is left to do here" in page
    again = fields(page, "PCI-PAN-01")
    assert again["request"] != sent["request"]
    http.post(path, data=again | {"decision": "dismissed", "reason": "a test card"})
    page = http.get(path).text
    assert "✗ Dismissed" in page
    assert "<td>Review</td>" in page
    [review] = reviews.state(room.engine, ["rec-decided"]).values()
    assert (review.decision, review.rule_id, review.reason) == ("dismissed", "PCI-PAN-01", "a test card")
    assert reviews.of_hour(room.engine, partition_hour(hour_of(room.shop.hour)))


def test_a_decision_on_what_was_decided_meanwhile_is_shown_that_first(room: Room) -> None:
    room.keep("rec-two")
    room.publish()
    proxied: dict[str, Any] = {
        "dashboard_auth": "proxy",
        "dashboard_trusted_proxies": ("127.0.0.1",),
        "dashboard_roles": {"reviewer": ("rita", "ruth")},
    }
    settings = Settings(_env_file=None, home=room.settings.home, **proxied)
    path, rule = "/recordings/rec-two", "PCI-PAN-01"
    rita, ruth = {"X-Forwarded-User": "rita"}, {"X-Forwarded-User": "ruth"}
    with TestClient(create_app(settings), base_url="http://127.0.0.1:8060", client=("127.0.0.1", 50_000)) as http:
        forms = {name: fields(http.get(path, headers=who).text, rule) for name, who in (("a", rita), ("b", ruth))}
        first = forms["a"] | {"decision": "confirmed", "reason": "read out aloud"}
        assert http.post(path, data=first, headers=rita, follow_redirects=False).status_code == 303
        second = forms["b"] | {"decision": "dismissed", "reason": "a test card"}
        answer = http.post(path, data=second, headers=ruth)
        assert answer.status_code == 422
        assert "Not stored: confirmed meanwhile by rita" in answer.text
        assert ">a test card</textarea>" in answer.text
        again = fields(answer.text, rule) | {"decision": "dismissed", "reason": "a test card"}
        assert http.post(path, data=again, headers=ruth, follow_redirects=False).status_code == 303
    assert [one.by for one in reviews.state(room.engine, ["rec-two"]).values()] == ["ruth"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"reason": ""}, "say why"),
        ({"reason": f"it was {CARD}"}, "number of a card"),
        ({"decision": "maybe"}, "say whether you confirm or dismiss"),
        ({"rule": "PII-GOV-01"}, "it did not break that rule"),
        ({"request": ""}, "load the page again"),
    ],
)
def test_a_decision_that_can_not_be_is_refused_in_words_and_not_stored(
    room: Room, http: TestClient, changed: dict[str, str], said: str
) -> None:
    path = "/recordings/rec-tones"
    sent = fields(http.get(path).text, "PCI-DTMF-01") | {"decision": "confirmed", "reason": "heard it"}
    before = len(room.entries("review"))
    answer = http.post(path, data=sent | changed, follow_redirects=False)
    assert answer.status_code == 422
    assert said in answer.text
    assert 'role="alert"' in answer.text
    assert len(room.entries("review")) == before
    assert reviews.state(room.engine, ["rec-tones"]) == {}


def test_a_forged_form_decides_nothing(room: Room, http: TestClient) -> None:
    sent = fields(http.get("/recordings/rec-tones").text, "PCI-DTMF-01") | {"decision": "confirmed", "reason": "x"}
    for forged in ({"csrf": ""}, {"csrf": "made-up"}):
        assert http.post("/recordings/rec-tones", data=sent | forged).status_code == 403
    elsewhere = {"Origin": "https://elsewhere.test"}
    assert http.post("/recordings/rec-tones", data=sent, headers=elsewhere).status_code == 403
    assert reviews.state(room.engine, ["rec-tones"]) == {}


def test_viewers_look_and_listen_but_do_not_decide_and_strangers_do_neither(room: Room) -> None:
    proxied = {
        "dashboard_auth": "proxy",
        "dashboard_trusted_proxies": ("127.0.0.1",),
        "dashboard_roles": {"viewer": ("vera",), "reviewer": ("rita",)},
    }
    settings = Settings(_env_file=None, home=room.settings.home, **proxied)  # type: ignore[arg-type]
    app = create_app(settings)
    with TestClient(app, base_url="http://127.0.0.1:8060", client=("127.0.0.1", 50_000)) as http:
        vera, rita = {"X-Forwarded-User": "vera"}, {"X-Forwarded-User": "rita"}
        page = http.get("/recordings/rec-tones", headers=vera)
        assert page.status_code == 200
        assert '<form method="post"' not in page.text
        assert http.get(clip_url(page.text), headers=vera).status_code == 200
        assert room.entries("play")[-1].actor == "vera"
        sent = fields(http.get("/recordings/rec-tones", headers=rita).text, "PCI-DTMF-01")
        sent |= {"decision": "confirmed", "reason": "x"}
        assert http.post("/recordings/rec-tones", data=sent, headers=vera).status_code == 403
        for who in ({}, {"X-Forwarded-User": "nobody"}):
            for path in ("/recordings/rec-tones", clip_url(page.text), "/recordings?id=rec-tones"):
                answer = http.get(path, headers=who)
                assert answer.status_code == 403
                assert b"fLaC" not in answer.content
                assert "PCI-DTMF-01" not in answer.text
    assert reviews.state(room.engine, ["rec-tones"]) == {}


def test_every_route_says_who_may_use_it() -> None:
    from compliance_pipeline.dashboard.access import Role, role_of

    assert {(route.path, role_of(route.endpoint)) for route in routes if "POST" not in (route.methods or ())} == {
        ("/recordings", Role.VIEWER),
        ("/recordings/{recording_id:path}/clips/{finding_no:int}.flac", Role.VIEWER),
        ("/recordings/{recording_id:path}", Role.VIEWER),
    }
    assert [role_of(route.endpoint) for route in routes if "POST" in (route.methods or ())] == [Role.REVIEWER]


# In a browser


def test_play_from_finding_plays_there_and_a_click_on_the_waveform_seeks(page: Page, address: str) -> None:
    parts: list[int] = []
    page.on("response", lambda answer: parts.append(answer.status) if ".flac" in answer.url else None)
    page.goto(f"{address}/recordings/rec-tones")
    at = float(page.locator(".from").get_attribute("data-at") or 0)
    assert at > 5
    page.click(".from")
    page.wait_for_function("at => document.querySelector('audio').currentTime > at", arg=at)
    assert page.evaluate("document.querySelector('audio').currentTime") < at + 5
    box = page.locator(".wave svg").first.bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + 30)
    page.wait_for_function(
        "() => { const a = document.querySelector('audio'); return a.currentTime > a.duration * 0.88 }"
    )
    assert set(parts) == {206}


def test_a_decision_takes_no_script(room: Room, open_page: Callable[..., Page], address: str) -> None:
    room.keep("rec-plain")
    room.publish()
    page = open_page(java_script_enabled=False)
    page.goto(f"{address}/recordings/rec-plain")
    page.fill("textarea", "the card was read back")
    page.click("button[value=confirmed]")
    assert "✓ Confirmed" in page.inner_text("#rule-PCI-PAN-01")
    assert page.locator(".stages li").count() == 0, "it has no stage times"
    assert page.locator("audio[controls]").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_page(open_page: Callable[..., Page], address: str, scheme: Any) -> None:
    page = open_page(color_scheme=scheme)
    page.goto(f"{address}/recordings/rec-tones")
    found = Axe().run(page, context="#content")
    assert found.violations_count == 0, found.generate_report()


def test_a_phone_needs_no_sideways_scrolling(open_page: Callable[..., Page], address: str) -> None:
    page = open_page(viewport={"width": 390, "height": 844})
    for name in ("rec-tones", "rec-chat"):
        page.goto(f"{address}/recordings/{name}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
