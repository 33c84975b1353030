"""The embedded engine: one pass over a recording's media, while it arrives, gives its findings.

Whether a finding breaks a rule is `policy`'s; which recordings to screen, and what follows, is the pipeline's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.contracts.policy import Detector, FindingKind
from compliance_pipeline.media.decode import MediaReader, UnscreenableMedia, decode_audio, missing_bytes
from compliance_pipeline.platforms.port import Gone, MediaStream, NotYet, Platform, Ready, TransferBroken
from compliance_pipeline.screening.findings import Finding, Symbol

if TYPE_CHECKING:
    from email.message import EmailMessage

    import numpy as np
    from numpy.typing import NDArray

    from compliance_pipeline.screening.numbers import Candidate

EMBEDDED_ENGINE = "embedded-0.1.0"
MAX_TEXT_BYTES = 32 * 2**20
MAX_LOST_S = 0.5
"""Too short to hide a number: 13 digits keyed as fast as ITU-T Q.24 allows (40 ms on, 40 ms off) take 1 s."""
SMALL_IMAGE_BYTES = 16 * 1024
"""A picture within a mail's text is taken for a logo up to here; a photo in which a number can be read is larger."""
TRANSFER_TRIES = 3


def engine_version() -> str:
    """The key under which this engine's verdicts are kept; changes with the code's version and the digit model."""
    from compliance_pipeline.screening.digits import model_version

    return f"{EMBEDDED_ENGINE}+{model_version()}"


@dataclass(slots=True)
class MediaFacts:
    """What arrived. `complete` is False where the transfer or the container says that its end is missing."""

    size_bytes: int
    sha256: str
    container: str
    codec: str
    audio_channels: int
    duration_ms: int
    complete: bool


@dataclass(slots=True)
class Screening:
    """The result of one pass. With `unscreenable` set (one word), what was found until then still stands.

    transfer_broken: another try may bring more. fetch_s: waiting for bytes; analysis_s: everything else;
    first_finding_s: from the start of the pass.
    """

    findings: list[Finding] = field(default_factory=list)
    media: MediaFacts | None = None
    unscreenable: str | None = None
    transfer_broken: bool = False
    fetch_s: float = 0.0
    analysis_s: float = 0.0
    first_finding_s: float | None = None


def screen_recording(
    platform: Platform, recording_id: str, channel: Channel, located: Callable[[MediaStream], None] = lambda _: None
) -> Screening | NotYet | Gone:
    """Locate, fetch and screen one recording. A broken transfer is tried again with a fresh URL, then is a finding
    of its own: UNSCREENABLE, `truncated`. `located` is told of the open transfer. Raises PlatformError.
    """
    tries: list[Screening] = []
    while len(tries) < TRANSFER_TRIES:
        location = platform.locate(recording_id)
        if isinstance(location, Gone) and tries:
            break
        if not isinstance(location, Ready):
            return location
        with platform.open_media(location.media) as stream:
            located(stream)
            tries.append(screen(stream, channel))
        if not tries[-1].transfer_broken:
            break
    screening = max(tries, key=_reach) if tries[-1].transfer_broken else tries[-1]
    if screening.first_finding_s is not None:
        screening.first_finding_s += sum(t.fetch_s + t.analysis_s for t in tries[: tries.index(screening)])
    screening.fetch_s, screening.analysis_s = sum(t.fetch_s for t in tries), sum(t.analysis_s for t in tries)
    return screening


def _reach(screening: Screening) -> tuple[int, int]:
    return len(screening.findings), screening.media.size_bytes if screening.media else 0


def screen(stream: MediaStream, channel: Channel) -> Screening:
    """Screen one transfer. Never raises for what the media holds: that becomes `unscreenable`."""
    started = perf_counter()
    reader = MediaReader(stream)
    screening = Screening()
    facts = _Facts()

    def progress(findings: list[Finding]) -> None:
        if findings and screening.first_finding_s is None:
            screening.first_finding_s = perf_counter() - started
        screening.findings = findings

    screen_media = _screen_audio if channel is Channel.VOICE else _screen_text
    try:
        try:
            screening.unscreenable = screen_media(reader, stream, facts, progress)
        except UnscreenableMedia as error:
            screening.unscreenable = error.reason
        reader.drain()
    except TransferBroken:
        screening.unscreenable = "truncated"
        screening.transfer_broken = True
    screening.media = MediaFacts(
        size_bytes=reader.size,
        sha256=reader.sha256,
        container=facts.container,
        codec=facts.codec,
        audio_channels=facts.audio_channels,
        duration_ms=facts.duration_ms,
        complete=screening.unscreenable != "truncated",
    )
    screening.fetch_s = reader.waited_s
    screening.analysis_s = perf_counter() - started - reader.waited_s
    return screening


@dataclass(slots=True)
class _Facts:
    """What the media turned out to be, as far as it was read."""

    container: str = "unknown"
    codec: str = "unknown"
    audio_channels: int = 0
    duration_ms: int = 0


def _screen_audio(
    reader: MediaReader, _stream: MediaStream, facts: _Facts, progress: Callable[[list[Finding]], None]
) -> str | None:
    """Why the recording is not screened to its end, or None."""
    audio, blocks = decode_audio(reader)
    facts.container, facts.codec, facts.audio_channels = audio.container, audio.codec, audio.channels
    speakers = [_Speaker(str(index)) for index in range(audio.channels)]

    def report() -> None:
        progress(sorted((f for s in speakers for f in s.findings()), key=lambda f: (f.start_ms, f.kind)))

    try:
        for block in blocks:
            news = [speaker.hear(samples) for speaker, samples in zip(speakers, block, strict=True)]
            if any(news):
                report()
    finally:
        facts.duration_ms = round(audio.duration_s * 1000)
        for speaker in speakers:
            speaker.finish()
        report()
    if audio.cut_short or missing_bytes(reader):
        return "truncated"
    return "damaged" if audio.lost_s > MAX_LOST_S else None


class _Speaker:
    """One audio channel: its detectors and what they heard so far."""

    def __init__(self, name: str) -> None:
        from compliance_pipeline.screening.digits import SpokenDigits
        from compliance_pipeline.screening.tones import ToneDetector

        self._name = name
        self._tones = ToneDetector()
        self._digits = SpokenDigits()
        self._keyed: list[Symbol] = []
        self._spoken: list[Symbol] = []

    def hear(self, samples: "NDArray[np.float32]") -> bool:
        return self._add(self._tones.feed(samples), self._digits.feed(samples))

    def finish(self) -> bool:
        return self._add(self._tones.finish(), self._digits.finish())

    def _add(self, keyed: list[Symbol], spoken: list[Symbol]) -> bool:
        self._keyed += keyed
        self._spoken += spoken
        return bool(keyed or spoken)

    def findings(self) -> Iterator[Finding]:
        from compliance_pipeline.screening.digits import dense_runs
        from compliance_pipeline.screening.numbers import spoken_candidates, tone_candidates

        for candidate in tone_candidates(self._keyed):
            yield self._finding(Detector.TONES, candidate)
        for candidate in spoken_candidates(dense_runs(self._spoken)):
            yield self._finding(Detector.DIGITS, candidate)

    def _finding(self, detector: Detector, candidate: "Candidate") -> Finding:
        return Finding(
            kind=FindingKind(candidate.kind),
            detector=detector,
            speaker=self._name,
            start_ms=round(candidate.start_s * 1000),
            end_ms=round(candidate.end_s * 1000),
            confidence=candidate.confidence,
            masked=candidate.masked,
        )


def _screen_text(
    reader: MediaReader, stream: MediaStream, facts: _Facts, progress: Callable[[list[Finding]], None]
) -> str | None:
    """Why the text is not all that was said, or None."""
    from compliance_pipeline.screening.text import screen_text
    from compliance_pipeline.screening.transcripts import UnreadableTranscript, parse_transcript

    content = reader.rest(MAX_TEXT_BYTES)
    if not content:
        raise UnscreenableMedia("empty", "the platform served no bytes")
    try:
        transcript = parse_transcript(content, stream.content_type)
    except UnreadableTranscript as error:
        raise UnscreenableMedia("unknown_format", str(error)) from None
    facts.container, facts.codec = "text", "utf-8"
    facts.duration_ms = max((turn.start_ms for turn in transcript.turns), default=0)
    progress(screen_text(transcript))
    if content.lstrip()[:15].lower().startswith(_PAGES):
        return "not_transcript"
    return "unread_attachment" if transcript.unread and _matters_unread(content) else None


_PAGES = (b"<!doctype html", b"<html", b"<?xml")


def _matters_unread(mail: bytes) -> bool:
    """Whether an e-mail carries what nobody has read: anything but text, signatures and the logos of a signature."""
    from email import message_from_bytes, policy

    try:
        return any(_is_unread(part) for part in message_from_bytes(mail, policy=policy.default).walk())
    except Exception:  # the standard library fails on damaged mail in many ways
        return True


def _is_unread(part: "EmailMessage") -> bool:
    payload = part.get_payload(decode=True)
    if not payload or part.get_content_maintype() == "text" or part.get_content_type() in _READ_OR_EMPTY:
        return False
    within_text = part.get_content_disposition() == "inline" or "content-id" in part
    return part.get_content_maintype() != "image" or not within_text or len(payload) > SMALL_IMAGE_BYTES


_READ_OR_EMPTY = frozenset(
    {
        "application/json",
        "application/xml",
        "application/pgp-signature",
        "application/pkcs7-signature",
        "application/x-pkcs7-signature",
    }
)
