"""One pass of the engine over the sandbox's recordings, from memory and over HTTP: findings, verdicts, damage."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.message import EmailMessage
from hashlib import sha256

import numpy as np
import pytest

from compliance_pipeline.contracts.event import Channel, RecordingEvent
from compliance_pipeline.contracts.policy import Detector, FindingKind
from compliance_pipeline.contracts.verdict import Verdict, VerdictValue
from compliance_pipeline.platforms.guide import GuidePlatform
from compliance_pipeline.platforms.port import (
    Gone,
    Location,
    Media,
    NotYet,
    Platform,
    Ready,
    TransferBroken,
    Unavailable,
)
from compliance_pipeline.platforms.transport import Transport
from compliance_pipeline.sandbox.calls import Container, Damage, Kind, SyntheticRecording, make_recording
from compliance_pipeline.sandbox.platform import PlatformState, serve
from compliance_pipeline.screening.engine import (
    MAX_TEXT_BYTES,
    TRANSFER_TRIES,
    EmbeddedEngine,
    Located,
    Screening,
    facts_of,
)
from compliance_pipeline.screening.policy import evaluate, judge, load_policy
from compliance_pipeline.screening.transcripts import SMALL_IMAGE_BYTES, parse_transcript
from compliance_pipeline_tests.media.audio import MemoryStream, Samples, encoded, sound
from compliance_pipeline_tests.platforms.loopback import CLIENT, GuideServer, Reply, Server, ok
from compliance_pipeline_tests.screening.keypad import keyed

ENDED = datetime(2026, 3, 12, 15, 0, tzinfo=UTC)
POLICY = load_policy()
ENGINE = EmbeddedEngine(POLICY, "the key of these tests")
screen = ENGINE.screen
CARD = "4111111111111111"


def recording(kind: Kind, container: Container = Container.WAV, damage: Damage | None = None) -> SyntheticRecording:
    return make_recording(1, kind, ended_at=ENDED, container=container, damage=damage)


def verdict(screening: Screening, channel: Channel) -> Verdict:
    outcomes = evaluate(screening.findings, facts_of(screening, channel), POLICY)
    return judge("r-1", "c-1", outcomes, screening.unscreenable)


def screened(made: SyntheticRecording) -> Screening:
    stream = MemoryStream(made.media, content_type=made.content_type)
    transcript = parse_transcript(made.transcript, "application/json") if made.transcript else None
    return screen(stream, made.channel, made.speakers, transcript)


def screen_recording(
    platform: Platform, recording_id: str, channel: Channel, located: Located = lambda _: None
) -> Screening | NotYet | Gone:
    event = RecordingEvent(recording_id=recording_id, media_uri="sandbox:", channel=channel)
    return ENGINE.judge(platform, event, "c-1", located)


def call(agent: Samples, customer: Samples) -> Samples:
    length = max(len(agent), len(customer))
    return np.stack([np.pad(channel, (0, length - len(channel))) for channel in (agent, customer)])


def assert_true_to(made: SyntheticRecording, screening: Screening) -> None:
    said = verdict(screening, made.channel)
    assert (said.verdict, said.violation_type) == (made.truth.verdict, made.truth.violation_type)
    if made.truth.offset_ms is not None:
        assert said.timestamp_offset_ms == pytest.approx(made.truth.offset_ms, abs=500)
    if any(finding.kind is not FindingKind.PHRASE for finding in screening.findings):
        assert screening.first_finding_s is not None
        assert 0 < screening.first_finding_s < screening.fetch_s + screening.analysis_s
    assert screening.media is not None
    assert (screening.media.size_bytes, screening.media.sha256) == (len(made.media), sha256(made.media).hexdigest())


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_of_recording_gets_its_verdict_at_its_offset(kind: Kind) -> None:
    made = recording(kind)
    screening = screened(made)
    assert_true_to(made, screening)
    assert screening.media
    assert screening.media.complete
    length_ms = (made.end_time - made.start_time).total_seconds() * 1000
    if made.channel is Channel.VOICE:
        assert screening.media.duration_ms == pytest.approx(length_ms, abs=5)
        assert (screening.media.container, screening.media.codec, screening.media.audio_channels) == (
            "wav",
            "pcm_mulaw",
            2,
        )


@pytest.mark.parametrize("container", [Container.MP3, Container.OGG, Container.WEBM])
@pytest.mark.parametrize("kind", [Kind.VOICE_TONES, Kind.VOICE_DIGITS, Kind.VOICE_CLEAN])
def test_every_container_gives_the_same_verdict(kind: Kind, container: Container) -> None:
    made = recording(kind, container)
    assert_true_to(made, screened(made))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (Damage.TRUNCATED, "truncated"),
        (Damage.EMPTY, "empty"),
        (Damage.HEADER_ONLY, "no_audio"),
        (Damage.HTML, "not_audio"),
        (Damage.UNKNOWN_FORMAT, "unknown_format"),
    ],
)
def test_damaged_media_is_unscreenable_and_says_why(damage: Damage, reason: str) -> None:
    made = recording(Kind.VOICE_TONES, damage=damage)
    screening = screened(made)
    assert screening.unscreenable == reason
    assert_true_to(made, screening)
    assert screening.media
    assert screening.media.complete is (reason != "truncated")
    assert not screening.transfer_broken


def test_findings_name_the_channel_in_which_they_were_heard() -> None:
    digits = keyed(CARD)
    for speaker, samples in (("0", call(digits, sound(1)[0] * 0)), ("1", call(sound(1)[0] * 0, digits))):
        screening = screen(MemoryStream(encoded("mulaw", samples)), Channel.VOICE)
        assert [(f.kind, f.detector, f.speaker) for f in screening.findings] == [
            (FindingKind.CARD_NUMBER, Detector.TONES, speaker)
        ]


def test_digits_of_two_speakers_do_not_make_one_number() -> None:
    half = keyed(CARD[:8])
    samples = call(np.pad(half, (0, len(half))), np.concatenate([half * 0, keyed(CARD[8:])]))
    assert screen(MemoryStream(encoded("mulaw", samples)), Channel.VOICE).findings == []


@pytest.mark.parametrize("kind", Kind)
def test_no_finding_holds_a_digit_that_may_not_be_shown(kind: Kind) -> None:
    made = recording(kind)
    screening = screened(made)
    for clear in made.planted:
        for form in (clear, re.sub(r"\D", "", clear)):
            assert len(form) < 7 or form not in repr(screening.findings)
    for finding in screening.findings:
        if finding.kind is FindingKind.PHRASE:
            description = POLICY.phrases[finding.phrase or ""].description
            assert finding.masked == f"[{description}]", "what the lexicon says, never what was said"
            continue
        shown = re.sub(r"[^0-9]", "", finding.masked)
        assert len(shown) <= (10 if finding.kind is FindingKind.CARD_NUMBER else 0)
        assert re.fullmatch(r"\d{0,6}\*+\d{0,4}|\*+@\*+", finding.masked)


@pytest.mark.parametrize("kind", ["mulaw", "mp3", "ogg", "webm"])
def test_a_violation_before_the_cut_is_kept_and_the_recording_is_still_called_truncated(kind: str) -> None:
    data = encoded(kind, call(sound(30)[0], keyed(CARD)))
    screening = screen(MemoryStream(data[: len(data) // 2]), Channel.VOICE)
    assert screening.unscreenable == "truncated"
    assert screening.media
    assert not screening.media.complete
    assert screening.media.duration_ms == pytest.approx(15_000, abs=1500)
    said = verdict(screening, Channel.VOICE)
    assert (said.verdict, said.violation_type) == (VerdictValue.VIOLATION_DETECTED, "PCI_DTMF_CAPTURE")


@pytest.mark.parametrize("kind", ["ogg", "webm", "mp3"])
def test_a_hole_in_the_middle_is_never_called_clean(kind: str) -> None:
    data = bytearray(encoded(kind, np.concatenate([sound(20, 2), sound(20, 2)], axis=1)))
    size = 200 if kind != "mp3" else 6000
    data[len(data) // 2 : len(data) // 2 + size] = bytes(size)
    screening = screen(MemoryStream(bytes(data)), Channel.VOICE)
    assert screening.unscreenable == "damaged"
    assert screening.media
    assert screening.media.codec != "unknown"


def test_silence_is_clean() -> None:
    screening = screen(MemoryStream(encoded("mulaw", np.zeros((2, 16_000), np.float32))), Channel.VOICE)
    assert (screening.unscreenable, screening.findings) == (None, [])


# Text


def mail(text: str = "Hello, see below.\n", *attached: tuple[str, int, dict[str, str]]) -> bytes:
    """attached: content type, size, and 'disposition' or 'cid' of each attachment."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@example.com", "b@example.org", "My order"
    message.set_content(text)
    for number, (kind, size, how) in enumerate(attached):
        main, _, sub = kind.partition("/")
        message.add_attachment(
            bytes(at % 251 for at in range(size)),
            maintype=main,
            subtype=sub,
            filename=f"part{number}",
            disposition=how.get("disposition", "attachment"),
            cid=how.get("cid"),
        )
    return message.as_bytes()


def screened_mail(data: bytes) -> Screening:
    return screen(MemoryStream(data, content_type="message/rfc822"), Channel.EMAIL)


@pytest.mark.parametrize(
    ("kind", "size", "how"),
    [
        ("application/pdf", 900, {}),
        ("application/pdf", 900, {"disposition": "inline"}),
        ("application/vnd.openxmlformats-officedocument.wordprocessingml.document", 5000, {}),
        ("application/octet-stream", 3000, {}),
        ("application/zip", 300, {}),
        ("audio/mpeg", 20_000, {}),
        ("image/jpeg", 80_000, {}),
        ("image/jpeg", SMALL_IMAGE_BYTES + 1, {"disposition": "inline", "cid": "<photo@example>"}),
        ("image/png", 3000, {}),
    ],
)
def test_an_attachment_that_nobody_read_keeps_a_mail_from_being_clean(
    kind: str, size: int, how: dict[str, str]
) -> None:
    screening = screened_mail(mail("Here is my card.\n", (kind, size, how)))
    assert screening.unscreenable == "unread_attachment"
    assert verdict(screening, Channel.EMAIL).verdict is VerdictValue.UNSCREENABLE


@pytest.mark.parametrize(
    ("kind", "size", "how"),
    [
        ("image/png", 6000, {"disposition": "inline"}),
        ("image/gif", SMALL_IMAGE_BYTES, {"cid": "<logo@example>"}),
        ("application/pgp-signature", 800, {}),
        ("application/pkcs7-signature", 4000, {}),
        ("application/pdf", 0, {}),
        ("text/csv", 500, {}),
    ],
)
def test_a_logo_a_signature_or_text_does_not(kind: str, size: int, how: dict[str, str]) -> None:
    body = mail("Where is my order?\n", ("image/png", 10, {"disposition": "inline"}))
    assert screened_mail(body).unscreenable is None
    if kind.startswith("text/"):
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = "a@example.com", "b@example.org", "My order"
        message.set_content("Where is my order?")
        message.add_attachment("a,b\n1,2\n", subtype="csv")
        body = message.as_bytes()
    else:
        body = mail("Where is my order?\n", (kind, size, how))
    screening = screened_mail(body)
    assert screening.unscreenable is None
    assert verdict(screening, Channel.EMAIL).verdict is VerdictValue.NO_VIOLATION


def test_what_the_text_of_a_mail_says_counts_beside_an_unread_attachment() -> None:
    screening = screened_mail(mail(f"Please charge {CARD}.\n", ("application/pdf", 900, {})))
    assert screening.unscreenable == "unread_attachment"
    assert verdict(screening, Channel.EMAIL).violation_type == "PCI_MID_CAPTURE"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"  \n", "unknown_format"),
        (b'{"messages": [{"text": "hel', "unknown_format"),
        (b"\x00\x01\x02\x03" * 100, "unknown_format"),
        (b"a" * (MAX_TEXT_BYTES + 1), "too_large"),
        (b"<!DOCTYPE html><html><body>Service unavailable</body></html>", "not_transcript"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "not_transcript"),
    ],
    ids=["empty", "blank", "cut json", "binary", "too large", "html", "xml"],
)
@pytest.mark.parametrize("channel", [Channel.CHAT, Channel.EMAIL])
def test_text_that_can_not_be_read_is_unscreenable_and_says_why(data: bytes, reason: str, channel: Channel) -> None:
    screening = screen(MemoryStream(data, chunk=65_536), channel)
    assert screening.unscreenable == reason
    assert verdict(screening, channel).verdict is VerdictValue.UNSCREENABLE
    assert screening.media
    assert (screening.media.size_bytes, screening.media.sha256) == (len(data), sha256(data).hexdigest())


# Over HTTP


@contextmanager
def guide(base_url: str) -> Iterator[GuidePlatform]:
    transport = Transport(base_url, *CLIENT, backoff_s=0.001)
    try:
        yield GuidePlatform(transport)
    finally:
        transport.close()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[tuple[PlatformState, GuidePlatform]]:
    state = PlatformState(*CLIENT)
    with serve(state) as url, guide(url) as platform:
        yield state, platform


@pytest.mark.parametrize(
    ("kind", "damage"),
    [(Kind.VOICE_TONES, None), (Kind.VOICE_CLEAN, None), (Kind.CHAT_CARD, None), (Kind.EMAIL_CARD, None)]
    + [(Kind.VOICE_TONES, damage) for damage in Damage],
)
def test_recordings_of_the_sandbox_platform_get_their_verdicts(
    sandbox: tuple[PlatformState, GuidePlatform], kind: Kind, damage: Damage | None
) -> None:
    state, platform = sandbox
    made = recording(kind, damage=damage)
    state.add(made)
    opened: list[datetime | None] = []
    screening = screen_recording(
        platform, made.recording_id, made.channel, lambda stream: opened.append(stream.last_modified)
    )
    assert isinstance(screening, Screening)
    assert_true_to(made, screening)
    assert len(opened) == 1  # what is damaged at the source does not get better by fetching it again
    assert opened[0]


def test_a_media_host_that_drops_a_connection_or_fails_once_costs_nothing(
    sandbox: tuple[PlatformState, GuidePlatform],
) -> None:
    state, platform = sandbox
    made = recording(Kind.CHAT_SSN)
    state.add(made)
    state.fail_next("/media/", None)
    state.fail_next("/media/", 503)
    screening = screen_recording(platform, made.recording_id, made.channel)
    assert isinstance(screening, Screening)
    assert_true_to(made, screening)


def test_an_expired_url_is_left_to_a_later_try(sandbox: tuple[PlatformState, GuidePlatform]) -> None:
    state, platform = sandbox
    made = recording(Kind.CHAT_CLEAN)
    state.add(made)
    state.fail_next("/media/", 403)
    with pytest.raises(Unavailable):
        screen_recording(platform, made.recording_id, made.channel)
    assert isinstance(screen_recording(platform, made.recording_id, made.channel), Screening)


def offered(server: GuideServer, media_host: Server, replies: list[Reply]) -> None:
    """The recording r-1, whose media lies at a new URL each time it is located, with these replies in turn."""
    for at, reply in enumerate(replies, 1):
        media_host.plan("GET", f"/m-{at}", reply)
        located = {"id": "r-1", "status": "available", "mediaUri": f"{media_host.url}/m-{at}"}
        server.plan("GET", "/api/v2/recordings/r-1", ok(located))


def media(cut_at: float | None = None) -> Reply:
    data = encoded("mulaw", call(sound(20)[0], keyed(CARD)))
    return Reply(200, data, {"Content-Type": "audio/wav"}, cut=None if cut_at is None else round(cut_at * len(data)))


def test_a_transfer_that_breaks_off_is_tried_again_with_a_fresh_url(server: GuideServer, media_host: Server) -> None:
    offered(server, media_host, [media(0.01), media(0.6), media()])
    with guide(server.url) as platform:
        screening = screen_recording(platform, "r-1", Channel.VOICE)
    assert isinstance(screening, Screening)
    assert [asked.path for asked in media_host.asked] == ["/m-1", "/m-2", "/m-3"]
    assert screening.unscreenable is None
    assert verdict(screening, Channel.VOICE).violation_type == "PCI_DTMF_CAPTURE"
    assert screening.media
    assert screening.media.complete


def test_three_broken_transfers_are_truncated_and_the_one_that_went_farthest_counts(
    server: GuideServer, media_host: Server
) -> None:
    offered(server, media_host, [media(0.001), media(0.6), media(0.02), media()])
    with guide(server.url) as platform:
        screening = screen_recording(platform, "r-1", Channel.VOICE)
    assert isinstance(screening, Screening)
    assert len(media_host.asked) == TRANSFER_TRIES
    assert screening.unscreenable == "truncated"
    assert screening.media
    assert not screening.media.complete
    assert screening.media.duration_ms == pytest.approx(12_000, abs=600)
    assert verdict(screening, Channel.VOICE).violation_type == "PCI_DTMF_CAPTURE"
    assert screening.first_finding_s is not None
    assert screening.first_finding_s < screening.fetch_s + screening.analysis_s


def test_three_broken_transfers_without_a_finding_are_unscreenable(server: GuideServer, media_host: Server) -> None:
    offered(server, media_host, [media(0.001), media(0.0), media(0.001)])
    with guide(server.url) as platform:
        screening = screen_recording(platform, "r-1", Channel.VOICE)
    assert isinstance(screening, Screening)
    assert screening.findings == []
    assert verdict(screening, Channel.VOICE).verdict is VerdictValue.UNSCREENABLE


class _Shelf:
    """A platform that says and serves what it was told, in turn; only what fetching needs."""

    name = "shelf"

    def __init__(self, locations: list[Location], streams: list[MemoryStream]) -> None:
        self._locations, self._streams = locations, streams

    def locate(self, recording_id: str) -> Location:
        return self._locations.pop(0)

    @contextmanager
    def open_media(self, media: Media) -> Iterator[MemoryStream]:
        yield self._streams.pop(0)


def broken_call() -> MemoryStream:
    data = encoded("mulaw", call(sound(20)[0], keyed(CARD)))
    return MemoryStream(data, breaks=TransferBroken("broke off"), breaks_at=len(data) // 2)


READY = Ready(Media("http://media.example/1"))


def test_what_is_not_there_is_passed_on_as_it_is() -> None:
    for location in (NotYet("processing", 3.0), Gone("deleted")):
        assert screen_recording(_Shelf([location], []), "r-1", Channel.VOICE) is location  # type: ignore[arg-type]


def test_media_that_vanishes_between_two_tries_keeps_what_was_found() -> None:
    platform = _Shelf([READY, Gone("deleted")], [broken_call()])
    screening = screen_recording(platform, "r-1", Channel.VOICE)  # type: ignore[arg-type]
    assert isinstance(screening, Screening)
    assert screening.unscreenable == "truncated"
    assert verdict(screening, Channel.VOICE).violation_type == "PCI_DTMF_CAPTURE"


def test_the_engine_s_version_names_its_models_and_the_lexicon() -> None:
    digest = r"[0-9a-f]{12}"
    assert re.fullmatch(rf"embedded-[\d.]+\+digits-{digest}\+speech-{digest}\+lexicon-[0-9a-f]{{8}}", ENGINE.version)
