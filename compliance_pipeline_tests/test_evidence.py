"""Evidence over real parts: every clip is silent where something sensitive was, and what can't be made safe is refused.
Calls are keyed and synthesised, encoded, served over HTTP, screened by the engine and cut by the step."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from compliance_pipeline import evidence
from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.evidence import ORIGINAL, RETRY_AFTER, clip_name, evidence_batch, remaining_digits
from compliance_pipeline.ledger import ledger_table
from compliance_pipeline.media.clips import PAD_MS, MemoryMedia, Remains, decode, encode, to_pcm
from compliance_pipeline.media.vault import LONGEST_NAME, vault_of
from compliance_pipeline.platforms.port import Refused, Unavailable
from compliance_pipeline.retention import hold, lift, why_deleted
from compliance_pipeline.sandbox.calls import Kind, SyntheticRecording
from compliance_pipeline.sandbox.speech import speak
from compliance_pipeline.screening.engine import EmbeddedEngine
from compliance_pipeline.screening.policy import load_policy
from compliance_pipeline_tests.canaries import Canaries
from compliance_pipeline_tests.media.audio import Samples, encoded
from compliance_pipeline_tests.screening.keypad import keyed
from compliance_pipeline_tests.workshop import Failing, Workshop, recording, workshop

ENGINE = EmbeddedEngine(load_policy(), "key")
CARD, OTHER_CARD = "4111111111111111", "5555555555554444"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CONTENT_TYPES = {"mulaw": "audio/wav", "mp3": "audio/mpeg", "ogg": "audio/ogg", "webm": "audio/webm"}


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path) as shop:
        yield shop


def said(digits: str, voice: str = "en-us") -> Samples:
    """Read out in groups of four, as people do."""
    pause = np.zeros(2_800, np.float32)
    groups = [digits[at : at + 4] for at in range(0, len(digits), 4)]
    return np.concatenate(
        [part for group in groups for part in (speak(" ".join(WORDS[int(d)] for d in group), voice=voice), pause)]
    )


def call(seconds: float, *parts: tuple[int, float, Samples]) -> Samples:
    """Two channels of line noise with `parts` (channel, second, samples) in them."""
    sound = np.random.default_rng(1).normal(0, 0.001, (2, round(seconds * 8000))).astype(np.float32)
    for channel, at_s, samples in parts:
        at = round(at_s * 8000)
        sound[channel, at : at + len(samples)] += samples[: sound.shape[1] - at]
    return sound


def voice(
    samples: Samples, name: str = "call-1", kind: str = "mulaw", planted: tuple[str, ...] = ()
) -> SyntheticRecording:
    return replace(
        recording(Kind.VOICE_TONES),
        recording_id=name,
        media=encoded(kind, samples),
        content_type=CONTENT_TYPES[kind],
        planted=planted,
    )


KEYED = call(30, (0, 1, speak("please key in your card number")), (1, 12, keyed(CARD)))


def rows(shop: Workshop) -> list[dict[str, Any]]:
    return shop.warehouse.select(
        "SELECT e.*, f.kind, f.detector, f.start_ms AS found_ms, f.end_ms AS found_until_ms "
        "FROM evidence e JOIN findings f USING (recording_id, engine_version, finding_no) ORDER BY ALL"
    )


def made(shop: Workshop, *recordings: SyntheticRecording) -> list[dict[str, Any]]:
    """The rows after a run over these and the evidence step."""
    shop.announce(*recordings)
    evidence_batch(shop.pipeline, shop.run())
    return rows(shop)


def stored(shop: Workshop, row: Mapping[str, Any]) -> bytes:
    with closing(vault_of(shop.pipeline.settings, shop.inbox.engine)) as vault:
        return b"".join(vault.read(row["recording_id"], row["uri"]))


def in_vault(shop: Workshop, recording_id: str = "call-1") -> list[str]:
    with closing(vault_of(shop.pipeline.settings, shop.inbox.engine)) as vault:
        return vault.names(recording_id)


def clip(shop: Workshop, row: Mapping[str, Any]) -> Samples:
    """The clip of a verified row; checks that it is what the row says, and that it is safe."""
    assert (row["status"], row["reason"]) == ("verified", None)
    content = stored(shop, row)
    assert sha256(content).hexdigest() == row["sha256"]
    assert remaining_digits(ENGINE, content) == Remains()
    assert ENGINE.screen(MemoryMedia(content), Channel.VOICE).findings == []
    samples = decode(content)
    assert samples.shape == (2, (row["end_ms"] - row["start_ms"]) * 8)
    return samples


def is_silent(samples: Samples, row: Mapping[str, Any], start_ms: int, end_ms: int) -> bool:
    """Whether every channel of a row's clip is silent from start to end of the recording's time."""
    start, end = ((ms - row["start_ms"]) * 8 for ms in (start_ms, end_ms))
    part = samples[:, max(0, start) : max(0, end)]
    assert part.size, "nothing of the span lies in the clip"
    return not part.any()


def is_heard(samples: Samples) -> bool:
    """Whether nothing was silenced: of line noise alone, some samples are zero by chance."""
    return bool(samples.any(axis=0).mean() > 0.95)


def test_a_clip_of_any_codec_is_ten_seconds_to_either_side_without_the_number(shop: Workshop) -> None:
    found = made(shop, *(voice(KEYED, kind, kind) for kind in CONTENT_TYPES))
    assert {row["recording_id"] for row in found} == set(CONTENT_TYPES)
    for row in found:
        samples = clip(shop, row)
        assert row["kind"] == "card_number"
        assert (row["start_ms"], row["end_ms"]) == (row["found_ms"] - 10_000, row["found_until_ms"] + 10_000)
        assert is_silent(samples, row, row["found_ms"] - PAD_MS, row["found_until_ms"] + PAD_MS)
        words = samples[0, : 2 * 8_000]
        assert np.abs(words).max() > 0.1, "what is not sensitive is heard"
        assert (row["partition_hour"], row["run_id"]) == (shop.at, "run-1")


def test_a_number_read_out_and_read_back_is_in_no_channel_of_its_clip(shop: Workshop) -> None:
    there, back = said(CARD), said(CARD, "en-gb+f2")
    until = 8 + len(there) / 8000
    found = made(shop, voice(call(40, (1, 8, there), (0, until + 1, back), (0, 1, speak("go ahead please")))))
    [row] = found
    samples = clip(shop, row)
    assert is_silent(samples, row, row["found_ms"], row["found_until_ms"])
    read_back = samples[:, round((until + 1) * 8000) - row["start_ms"] * 8 :]
    assert np.abs(read_back).max() < 0.05, "only the line's noise in its pauses is left"


def test_expiry_date_and_code_after_a_card_number_are_silenced_too(shop: Workshop) -> None:
    number = said(CARD)
    after = 6 + len(number) / 8000
    tail = speak("it expires oh four twenty six, and the security code is one two three")
    found = made(
        shop,
        voice(call(35, (1, 6, number), (1, after + 1, tail)), "spoken"),
        voice(call(35, (1, 6, keyed(CARD)), (1, 10, keyed("0426")), (1, 13, keyed("789"))), "keyed"),
    )
    assert {(row["recording_id"], row["kind"]) for row in found} >= {
        ("keyed", "card_number"),
        ("keyed", "card_verification_code"),
        ("spoken", "card_number"),
    }
    for row in found:
        samples = clip(shop, row)
        if row["recording_id"] == "keyed":
            assert is_silent(samples, row, 10_300, 10_700)
            assert is_silent(samples, row, 13_200, 13_600)


def test_findings_at_the_very_start_and_end_have_clips_that_end_there(shop: Workshop) -> None:
    first, last = keyed(CARD)[1600:], keyed(OTHER_CARD)[:-2160]
    length_s = 40.0
    found = made(shop, voice(call(length_s, (1, 0, first), (0, length_s - len(last) / 8000, last))))
    assert [(row["start_ms"] == 0, row["end_ms"] == length_s * 1000) for row in found] == [(True, False), (False, True)]
    for row in found:
        samples = clip(shop, row)
        assert is_silent(samples, row, row["found_ms"], min(row["found_until_ms"], row["end_ms"]))


def change(shop: Workshop, changes: str) -> None:
    with shop.warehouse.write() as connection:
        connection.execute(f"UPDATE findings SET spans = [], {changes}")


def test_a_clip_of_a_wrong_span_is_refused_and_nothing_of_it_is_kept(shop: Workshop) -> None:
    heard, outside = "a number is still heard outside the masked spans", "the span lies outside the recording"
    wrong = {4_000: heard, 22_000: heard, 28_000: outside, 3_600_000: outside}
    shop.announce(*(voice(KEYED, str(start_ms)) for start_ms in wrong))
    batch = shop.run()
    change(shop, "start_ms = recording_id::BIGINT, end_ms = recording_id::BIGINT + 2500")
    report = evidence_batch(shop.pipeline, batch)
    assert (report.made, report.refused) == (0, len(wrong))
    assert {int(row["recording_id"]): row["reason"] for row in rows(shop)} == wrong
    assert {(row["status"], row["uri"], row["sha256"]) for row in rows(shop)} == {("refused", None, None)}
    assert [name for start_ms in wrong for name in in_vault(shop, str(start_ms))] == []
    shop.clock.ahead += 2 * RETRY_AFTER
    assert evidence_batch(shop.pipeline, batch).refused == 0, "refused is for good"


def test_a_span_that_is_wrong_by_half_a_number_leaves_no_digit(shop: Workshop) -> None:
    shop.announce(voice(KEYED))
    batch = shop.run()
    change(shop, "start_ms = start_ms + 1200, end_ms = end_ms + 1200")
    evidence_batch(shop.pipeline, batch)
    [row] = rows(shop)
    assert is_silent(clip(shop, row), row, 12_250, 14_300)


def test_clips_of_media_that_is_not_what_was_screened_are_refused(shop: Workshop) -> None:
    shop.announce(voice(KEYED))
    batch = shop.run()
    shop.state.add(voice(KEYED[:, : 25 * 8000]))
    evidence_batch(shop.pipeline, batch)
    assert [row["reason"] for row in rows(shop)] == ["the platform served other media than was screened"]
    assert in_vault(shop) == []


def transcribed(shop: Workshop, recording_id: str, number: int, kind: str, start_ms: int, end_ms: int) -> None:
    """A finding of a transcript beside those of the sound."""
    with shop.warehouse.write() as connection:
        connection.execute(
            "INSERT INTO findings BY NAME SELECT * REPLACE ($number AS finding_no, $kind AS kind, $start AS start_ms, "
            "$end AS end_ms, $detector AS detector, [] AS spans) "
            "FROM findings WHERE recording_id = $id AND finding_no = 0",
            {
                "number": number,
                "kind": kind,
                "start": start_ms,
                "end": end_ms,
                "detector": "phrases" if kind == "phrase" else "text",
                "id": recording_id,
            },
        )
        connection.execute(
            "INSERT INTO violations BY NAME SELECT * REPLACE ($rule AS rule_id, $number AS finding_no) FROM violations "
            "WHERE recording_id = $id AND finding_no = 0",
            {"rule": f"RULE-{number}", "number": number, "id": recording_id},
        )


def test_what_can_not_be_located_is_silenced_from_its_cue_to_the_end_of_the_clip(shop: Workshop) -> None:
    shop.announce(voice(call(150, (1, 12, keyed(CARD)), (0, 140, speak("thank you and goodbye")))))
    batch = shop.run()
    transcribed(shop, "call-1", 1, "government_id", 8_000, 8_000)
    transcribed(shop, "call-1", 2, "phrase", 140_000, 142_000)
    evidence_batch(shop.pipeline, batch)
    number, unlocated, phrase = rows(shop)
    for row in (number, unlocated):
        samples = clip(shop, row)
        assert is_silent(samples, row, 8_000 - PAD_MS, row["end_ms"])
        assert is_heard(samples[:, : (8_000 - PAD_MS - row["start_ms"]) * 8])
    assert (unlocated["start_ms"], unlocated["end_ms"]) == (0, 18_000)
    assert is_heard(clip(shop, phrase)), "over a minute after the cue, and a phrase is what its clip is for"


def test_a_phrase_is_heard_and_the_number_beside_it_is_not(shop: Workshop) -> None:
    shop.announce(voice(KEYED))
    batch = shop.run()
    transcribed(shop, "call-1", 1, "phrase", 1_000, 3_000)
    evidence_batch(shop.pipeline, batch)
    _, phrase = rows(shop)
    samples = clip(shop, phrase)
    assert samples[0, 8_000:24_000].any()
    assert np.abs(samples[0, 8_000:24_000]).max() > 0.1
    assert is_silent(samples, phrase, 12_200, 13_000)


def test_chats_and_mails_say_that_the_masked_number_is_the_evidence(shop: Workshop) -> None:
    shop.announce(recording(Kind.CHAT_CARD), recording(Kind.CHAT_CLEAN))
    batch = shop.run()
    report = evidence_batch(shop.pipeline, batch)
    assert (report.text, report.made, report.unavailable) == (1, 0, 0)
    [row] = rows(shop)
    assert (row["status"], row["reason"], row["uri"]) == ("unavailable", "text", None)
    shop.clock.ahead += 2 * RETRY_AFTER
    assert evidence_batch(shop.pipeline, batch).text == 0


def test_a_recording_that_can_not_be_fetched_is_its_own_failure_and_tried_again_after_a_while(shop: Workshop) -> None:
    shop.announce(voice(KEYED, "down"), voice(KEYED, "up"), voice(KEYED, "odd"))
    batch = shop.run()
    platform = shop.pipeline.platform
    down = {("locate", "down"): Unavailable("GET /recordings: 503"), ("locate", "odd"): ValueError(CARD)}
    shop.pipeline.platform = Failing(platform, down)
    report = evidence_batch(shop.pipeline, batch)
    assert report.unavailable == 2
    reasons = {row["recording_id"]: row["reason"] for row in rows(shop)}
    assert reasons["down"] == "GET /recordings: 503"
    assert reasons["odd"] == "the clips failed with ValueError"
    assert reasons["up"] is None
    shop.pipeline.platform = platform
    assert evidence_batch(shop.pipeline, batch).made == 0, "not by every run"
    shop.clock.ahead += 2 * RETRY_AFTER
    assert evidence_batch(shop.pipeline, batch).made == 2
    assert {row["status"] for row in rows(shop)} == {"verified"}


def test_done_again_gives_the_same_clips_and_changes_nothing(shop: Workshop) -> None:
    shop.announce(voice(KEYED), voice(KEYED, "call-2", "ogg"))
    batch = shop.run()
    assert evidence_batch(shop.pipeline, batch).made == 2
    before = rows(shop)
    clips = [stored(shop, row) for row in before]
    assert evidence_batch(shop.pipeline, batch).made == 0
    with shop.warehouse.write() as connection:  # as if killed between a clip and its row
        connection.execute("DELETE FROM evidence")
    assert evidence_batch(shop.pipeline, batch).made == 2
    assert [stored(shop, row) for row in rows(shop)] == clips
    assert [{**row, "made_at": None} for row in rows(shop)] == [{**row, "made_at": None} for row in before]


def test_no_clip_lies_in_the_clear_anywhere_in_the_home_folder(shop: Workshop) -> None:
    found = made(shop, voice(KEYED))
    assert stored(shop, found[0]).startswith(b"fLaC")
    files = [path for path in shop.pipeline.settings.home.rglob("*") if path.is_file()]
    assert [path for path in files if b"fLaC" in path.read_bytes()] == []


def test_a_recording_that_was_shredded_gets_no_clip_any_more(shop: Workshop) -> None:
    shop.announce(voice(KEYED), voice(KEYED, "call-2"))
    batch = shop.run()
    with closing(vault_of(shop.pipeline.settings, shop.inbox.engine)) as vault:
        vault.shred("call-1", shop.clock())
    report = evidence_batch(shop.pipeline, batch)
    assert (report.made, report.unavailable) == (1, 1)
    assert {row["recording_id"]: row["reason"] for row in rows(shop)} == {"call-1": "gone", "call-2": None}
    shop.clock.ahead += 2 * RETRY_AFTER
    assert evidence_batch(shop.pipeline, batch).unavailable == 0


def test_a_vault_that_can_not_be_used_is_said_and_tried_again_after_a_while(shop: Workshop) -> None:
    shop.announce(voice(KEYED))
    batch = shop.run()
    in_the_way = shop.pipeline.settings.home / "vault"
    in_the_way.write_bytes(b"")
    assert evidence_batch(shop.pipeline, batch).unavailable == 1
    [row] = rows(shop)
    assert "call-1" in row["reason"]
    assert "COMPLIANCE_VAULT_URL" in row["reason"]
    in_the_way.unlink()
    shop.clock.ahead += 2 * RETRY_AFTER
    assert evidence_batch(shop.pipeline, batch).made == 1
    [row] = rows(shop)
    clip(shop, row)


def test_a_recording_has_clips_of_its_broken_rules_and_of_so_many_findings(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "MAX_CLIPS", 3)
    shop.announce(voice(KEYED))
    batch = shop.run()
    change(shop, "finding_no = 99")
    with shop.warehouse.write() as connection:
        connection.execute("UPDATE violations SET finding_no = 99")
        connection.execute(
            "INSERT INTO findings BY NAME SELECT f.* EXCLUDE (finding_no, speaker), n AS finding_no, '0' AS speaker "
            "FROM findings f, range(4) AS t(n)"
        )
    evidence_batch(shop.pipeline, batch)
    found = {row["finding_no"]: row for row in rows(shop)}
    assert [number for number, row in found.items() if row["uri"]] == [0, 1, 99]
    assert {found[number]["reason"] for number in (2, 3)} == {evidence.TOO_MANY}
    shop.clock.ahead += 2 * RETRY_AFTER
    report = evidence_batch(shop.pipeline, batch)
    assert (report.made, report.unavailable) == (0, 0), "what was too many stays so"


def test_a_recording_that_was_deleted_since_is_not_asked_for_again(shop: Workshop) -> None:
    shop.announce(voice(KEYED))
    batch = shop.run()
    shop.state.held["call-1"].status = "deleted"
    assert evidence_batch(shop.pipeline, batch).unavailable == 1
    assert [row["reason"] for row in rows(shop)] == ["gone"]
    shop.clock.ahead += 2 * RETRY_AFTER
    assert evidence_batch(shop.pipeline, batch).unavailable == 0


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=120) | st.sampled_from([".", "..", "a/../b"]))
def test_a_clip_of_any_engine_has_a_name_that_fits_a_verdict_and_the_vault(engine: str) -> None:
    name = clip_name(engine, 999_999)
    assert name.isascii()
    assert not re.search(r"\s", name)
    assert len(name) <= LONGEST_NAME
    assert name != clip_name(engine + "x", 999_999)


def test_nothing_that_is_kept_yields_the_digits(shop: Workshop) -> None:
    """Sweeps the bytes of all files, and listens to every clip."""
    calls = [recording(kind, 2) for kind in (Kind.VOICE_TONES, Kind.VOICE_DIGITS)]
    made(shop, *calls)
    leaks, files = Canaries({one.recording_id: one.planted for one in calls}, {}).sweep(shop.pipeline.settings.home)
    assert leaks == []
    assert files > len(calls)
    for row in rows(shop):
        clip(shop, row)
    loud = encode(to_pcm(KEYED[:, 80_000:140_000]))
    assert remaining_digits(ENGINE, loud).spans, "the ear of this test hears what was not masked"


KILLED_STEP = """
import os, signal, sys
from pathlib import Path
from compliance_pipeline import evidence, steps
from compliance_pipeline.intake.hours import hour_of
from compliance_pipeline.media.vault import UNDER_WAY
from compliance_pipeline_tests.workshop import *
home, url, hour = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
configured = Settings(home=home, platform_url=url, client_id=CLIENT[0], client_secret=CLIENT[1], fetch_workers=1)
inbox = Inbox(configured.inbox_database_url)
pipeline = steps.Pipeline(configured, inbox, Warehouse(configured.warehouse_path),
                          GuidePlatform(Transport(url, *CLIENT)), load_policy(),
                          engine_of(configured, load_policy(), inbox))
synced, fsync = [], os.fsync
def second(number):
    fsync(number)
    if os.path.basename(os.path.dirname(os.readlink(f"/proc/self/fd/{number}"))) == UNDER_WAY:
        synced.append(number)
    if len(synced) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = second
evidence.evidence_batch(pipeline, steps.Batch(hour, "killed", "killed", False, Clock()()))
"""


def test_a_step_that_is_killed_while_it_writes_is_made_good_by_the_next_run(shop: Workshop) -> None:
    calls = [voice(KEYED, f"call-{n}", planted=(CARD,)) for n in range(3)]
    shop.announce(*calls)
    batch = shop.run()
    settings = shop.pipeline.settings
    arguments = [sys.executable, "-c", KILLED_STEP, str(settings.home), settings.platform_url, shop.hour]
    assert subprocess.run(arguments, check=False, timeout=60).returncode == -signal.SIGKILL
    assert [len(in_vault(shop, f"call-{n}")) for n in range(3)].count(1) == 1
    evidence_batch(shop.pipeline, batch)
    assert [row["status"] for row in rows(shop)] == ["verified"] * 3
    for row in rows(shop):
        clip(shop, row)


# Originals


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path, keep_originals=True) as shop:
        yield shop


def original(shop: Workshop, recording_id: str = "call-1") -> bytes:
    with closing(vault_of(shop.pipeline.settings, shop.inbox.engine)) as vault:
        return b"".join(vault.read(recording_id, ORIGINAL))


def test_no_original_is_kept_unless_asked_for(shop: Workshop) -> None:
    [row] = made(shop, voice(KEYED))
    assert in_vault(shop) == [row["uri"]]


def test_a_kept_original_is_the_recording_encrypted_and_clips_are_cut_from_it(
    keeping: Workshop, tmp_path: Path
) -> None:
    one = voice(KEYED)
    [row] = made(keeping, one)
    clip(keeping, row)
    assert in_vault(keeping) == [row["uri"], ORIGINAL]
    assert original(keeping) == one.media
    assert not any(one.media[1_000:1_064] in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_clip_that_is_missing_is_made_from_the_kept_original_without_the_platform(keeping: Workshop) -> None:
    [before] = made(keeping, voice(KEYED))
    with keeping.warehouse.write() as connection:
        connection.execute("DELETE FROM evidence")
    keeping.pipeline.platform = Failing(
        keeping.pipeline.platform, {("locate", "*"): Refused("it is gone"), ("open_media", "*"): Refused("it is gone")}
    )
    evidence_batch(keeping.pipeline, keeping.batch())
    [again] = rows(keeping)
    assert (again["status"], again["sha256"]) == ("verified", before["sha256"])


def test_a_recording_with_a_card_verification_code_is_not_kept_whatever_the_setting(keeping: Workshop) -> None:
    samples = call(
        40, (0, 1, speak("please key in your card number")), (1, 8, keyed(CARD)), (1, 18, keyed("123")),
    )  # fmt: skip
    found = made(keeping, voice(samples))
    assert "card_verification_code" in {row["kind"] for row in found}
    assert in_vault(keeping)
    assert ORIGINAL not in in_vault(keeping)


def test_a_transfer_that_breaks_off_leaves_no_original(keeping: Workshop) -> None:
    class Broken(Failing):
        def open_media(self, media: Any) -> Any:
            from contextlib import contextmanager

            @contextmanager
            def opened() -> Iterator[Any]:
                with self._inner.open_media(media) as stream:
                    yield _cut(stream)

            return opened()

    def _cut(stream: Any) -> Iterator[bytes]:
        yield next(iter(stream))
        raise Unavailable("the transfer broke off")

    keeping.announce(voice(KEYED))
    batch = keeping.run()
    platform = keeping.pipeline.platform
    keeping.pipeline.platform = Broken(platform, {})
    evidence_batch(keeping.pipeline, batch)
    [row] = rows(keeping)
    assert (row["status"], row["reason"]) == ("unavailable", "the transfer broke off")
    assert in_vault(keeping) == []


def test_other_media_than_was_screened_is_not_kept_as_the_original(keeping: Workshop) -> None:
    keeping.announce(voice(KEYED))
    batch = keeping.run()
    keeping.state.held["call-1"].recording = voice(call(20))
    evidence_batch(keeping.pipeline, batch)
    [row] = rows(keeping)
    assert (row["status"], row["reason"]) == ("refused", "the platform served other media than was screened")
    assert in_vault(keeping) == []


def test_an_original_that_was_kept_before_stays_when_it_is_not_what_was_screened(keeping: Workshop) -> None:
    made(keeping, voice(KEYED))
    with keeping.warehouse.write() as connection:
        connection.execute("UPDATE media SET sha256 = 'other'")
        connection.execute("DELETE FROM evidence")
    evidence_batch(keeping.pipeline, keeping.batch())
    [row] = rows(keeping)
    assert (row["status"], row["reason"]) == ("refused", "the platform served other media than was screened")
    assert original(keeping) == voice(KEYED).media


def code_found(shop: Workshop) -> None:
    """By another engine than the one that runs."""
    with shop.warehouse.write() as connection:
        connection.execute(
            "INSERT INTO findings BY NAME SELECT * REPLACE ('another' AS engine_version, "
            "'card_verification_code' AS kind) FROM findings"
        )


def test_a_recording_in_which_another_engine_found_a_code_is_not_kept(keeping: Workshop) -> None:
    keeping.announce(voice(KEYED))
    batch = keeping.run()
    code_found(keeping)
    assert evidence_batch(keeping.pipeline, batch).made == 1
    assert ORIGINAL not in in_vault(keeping)


def test_an_original_in_which_a_code_is_found_later_is_deleted_and_the_ledger_has_it(keeping: Workshop) -> None:
    [row] = made(keeping, voice(KEYED))
    engine = keeping.inbox.engine
    hold(engine, "call-1", "litigation", "me", keeping.clock())
    code_found(keeping)
    evidence_batch(keeping.pipeline, keeping.batch())
    assert in_vault(keeping) == [row["uri"], ORIGINAL], "the hold beats it"
    lift(engine, "call-1", "settled", "me", keeping.clock())
    for _ in range(2):
        evidence_batch(keeping.pipeline, keeping.batch())
        assert in_vault(keeping) == [row["uri"]]
    with engine.connect() as connection:
        [entry] = connection.execute(sa.select(ledger_table).where(ledger_table.c.kind == "purge"))
    assert (entry.recording_id, entry.actor) == ("call-1", "run run-3")
    assert why_deleted(engine, "call-1", ORIGINAL) == "a card verification code or PIN was found in it"


def test_a_kept_original_that_was_changed_gives_no_clip(keeping: Workshop, tmp_path: Path) -> None:
    made(keeping, voice(KEYED))
    with keeping.warehouse.write() as connection:
        connection.execute("DELETE FROM evidence")
    largest = max((path for path in (tmp_path / "vault").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[-100] ^= 1
    largest.write_bytes(content)
    evidence_batch(keeping.pipeline, keeping.batch())
    [row] = rows(keeping)
    assert row["status"] == "unavailable"
