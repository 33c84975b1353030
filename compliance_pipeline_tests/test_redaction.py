"""Redaction validation over real files: what is planted is found where it leaks, and only there."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.contracts.policy import FindingKind
from compliance_pipeline.platforms.folder import FolderPlatform
from compliance_pipeline.platforms.port import Location, NotYet
from compliance_pipeline.redaction import (
    CARD,
    EMAIL,
    PHONE,
    PLANTED,
    SSN,
    WORDS,
    ChannelResult,
    Medium,
    Outcome,
    Planted,
    Sample,
    _holds,
    redaction_report,
)
from compliance_pipeline.sandbox.calls import Kind, make_recording
from compliance_pipeline.screening.engine import EmbeddedEngine
from compliance_pipeline.screening.policy import load_policy

SAFE = "My card number is [redacted]. My social security number is ***-**-****. Call me or write to me."


@pytest.fixture(scope="module")
def engine() -> EmbeddedEngine:
    return EmbeddedEngine(load_policy(None), "redaction-test-key")


def chat(text: str) -> bytes:
    return json.dumps({"messages": [{"participant": "customer", "text": text}]}).encode()


def mail(text: str) -> bytes:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "someone@example.net", "service@example.org", "Sample"
    message.set_content(text, cte="base64")
    return message.as_bytes()


def report(engine: EmbeddedEngine, folder: Path, files: dict[str, bytes]) -> list[ChannelResult]:
    recordings = folder / "recordings"
    recordings.mkdir()
    for name, content in files.items():
        (recordings / name).write_bytes(content)
    platform = FolderPlatform(recordings, folder / "home")
    samples = [Sample(recording.recording_id, recording.channel) for recording in platform.recordings()]
    return redaction_report(platform, engine, samples)


@pytest.mark.parametrize(("name", "made"), [("chat.json", chat), ("mail.eml", mail)])
@pytest.mark.parametrize(
    ("text", "leaking"),
    [
        (WORDS, set(PLANTED)),
        (SAFE, set()),
        (f"{SAFE} {CARD.replace(' ', '-')}", {PLANTED[0]}),
        ("four one one one, one one one one, one one one one, one one one one", {PLANTED[0]}),
        (f"ssn {SSN}", {PLANTED[1]}),
        (f"ring ({PHONE[:3]}) {PHONE[4:]}", {PLANTED[2]}),
        (EMAIL.upper(), {PLANTED[3]}),
        ("My other card is 5555 5555 5555 4444", set()),
    ],
)
def test_what_was_planted_leaks_or_it_does_not(
    engine: EmbeddedEngine,
    tmp_path: Path,
    name: str,
    made: Callable[[str], bytes],
    text: str,
    leaking: set[Planted],
) -> None:
    results = report(engine, tmp_path, {name: made(text)})
    assert [result.kind for result in results] == [planted.kind for planted in PLANTED]
    assert {result.kind for result in results if result.outcome is Outcome.LEAK} == {one.kind for one in leaking}
    assert {result.outcome for result in results} <= {Outcome.LEAK, Outcome.REDACTED}


def test_a_value_beside_the_words_leaks_too(engine: EmbeddedEngine, tmp_path: Path) -> None:
    message = {"participant": "customer", "text": SAFE, "original": f"my card {CARD}"}
    (card, *others) = report(engine, tmp_path, {"chat.json": json.dumps({"messages": [message]}).encode()})
    assert card.outcome is Outcome.LEAK
    assert {other.outcome for other in others} == {Outcome.REDACTED}


@pytest.mark.parametrize(("kind", "outcome"), [(Kind.VOICE_DIGITS, Outcome.LEAK), (Kind.VOICE_CLEAN, Outcome.REDACTED)])
def test_a_card_number_that_can_be_heard_leaks_by_the_sound(
    engine: EmbeddedEngine, tmp_path: Path, kind: Kind, outcome: Outcome
) -> None:
    call = make_recording(1, kind, ended_at=datetime(2026, 11, 23, tzinfo=UTC))
    transcript = {"transcripts": [{"phrases": [{"text": SAFE, "participantPurpose": "external", "startTimeMs": 0}]}]}
    files = {"call.wav": call.media, "call.wav.transcript.json": json.dumps(transcript).encode()}
    (sound, *read) = report(engine, tmp_path, files)
    assert (sound.medium, sound.kind, sound.outcome) == (Medium.SOUND, FindingKind.CARD_NUMBER, outcome)
    assert {(result.medium, result.outcome) for result in read} == {(Medium.TRANSCRIPT, Outcome.REDACTED)}


def test_a_call_without_transcript_is_not_called_redacted(engine: EmbeddedEngine, tmp_path: Path) -> None:
    call = make_recording(1, Kind.VOICE_CLEAN, ended_at=datetime(2026, 11, 23, tzinfo=UTC))
    read = [r for r in report(engine, tmp_path, {"call.wav": call.media}) if r.medium is Medium.TRANSCRIPT]
    assert {result.outcome for result in read} == {Outcome.NOT_READ}


@pytest.mark.parametrize("content", [b"", b"\x00\x01", b"RIFF0000WAVE"])
def test_what_cant_be_read_is_not_called_redacted(engine: EmbeddedEngine, tmp_path: Path, content: bytes) -> None:
    results = report(engine, tmp_path, {"chat.json": content, "call.wav": content})
    assert {result.outcome for result in results} == {Outcome.NOT_READ}
    assert all(result.detail for result in results)


def test_no_planted_value_is_in_a_report(engine: EmbeddedEngine, tmp_path: Path) -> None:
    text = repr(report(engine, tmp_path, {"chat.json": chat(WORDS), "mail.eml": mail(WORDS)})) + repr(PLANTED)
    assert not any(_holds(text, planted) for planted in PLANTED)


class Waiting(FolderPlatform):
    """Not available until it was asked three times."""

    asked = 0

    def locate(self, recording_id: str) -> Location:
        self.asked += 1
        return NotYet("being made", 4.0) if self.asked < 3 else super().locate(recording_id)


@pytest.mark.parametrize(("patience_s", "outcome"), [(60.0, Outcome.LEAK), (5.0, Outcome.NOT_READ)])
def test_a_sample_is_waited_for_as_long_as_agreed(
    engine: EmbeddedEngine, tmp_path: Path, patience_s: float, outcome: Outcome
) -> None:
    (tmp_path / "chat.json").write_bytes(chat(WORDS))
    platform = Waiting(tmp_path, tmp_path / "home")
    platform.asked = 0 if patience_s > 5 else -9
    samples = [Sample(platform.recordings()[0].recording_id, Channel.CHAT)]
    slept: list[float] = []
    results = redaction_report(platform, engine, samples, patience_s=patience_s, sleep=slept.append)
    assert {result.outcome for result in results} == {outcome}
    assert sum(slept) == min(8.0, patience_s)


@given(st.sampled_from(PLANTED[:3]), st.lists(st.sampled_from(["", " ", "-", ". "]), min_size=16, max_size=16))
def test_a_planted_number_is_recognised_however_it_is_spaced(planted: Planted, gaps: list[str]) -> None:
    digits = [char for char in planted.value if char.isdigit()]
    text = "".join(digit + gap for digit, gap in zip(digits, gaps, strict=False))
    assert _holds(f"it is {text}, thanks", planted)
    assert not _holds(f"it is {text[1:]}, thanks", planted)
