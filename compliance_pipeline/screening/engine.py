"""The embedded engine: one pass over a recording's media, while it arrives, gives its findings.

Whether a finding breaks a rule is `policy`'s; which recordings to screen, and what follows, is the pipeline's.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.contracts.policy import Detector, FindingKind
from compliance_pipeline.media.decode import MediaReader, UnscreenableMedia, decode_audio, missing_bytes
from compliance_pipeline.platforms.port import Gone, MediaStream, NotYet, Platform, Ready, TransferBroken
from compliance_pipeline.screening.findings import Finding, Symbol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compliance_pipeline.screening.numbers import Candidate

EMBEDDED_ENGINE = "embedded-0.1.0"
MAX_TEXT_BYTES = 32 * 2**20
MAX_DAMAGED_PACKETS = 2
"""Two lost packets are at most some 0.1 s of audio: too short to hide a number."""
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

    fetch_s: waiting for bytes; analysis_s: everything else; first_finding_s: from the start of the pass.
    """

    findings: list[Finding] = field(default_factory=list)
    media: MediaFacts | None = None
    unscreenable: str | None = None
    fetch_s: float = 0.0
    analysis_s: float = 0.0
    first_finding_s: float | None = None


def screen_recording(
    platform: Platform, recording_id: str, channel: Channel, located: Callable[[MediaStream], None] = lambda _: None
) -> Screening | NotYet | Gone:
    """Locate, fetch and screen one recording. A broken transfer is tried again with a fresh URL, then is a finding
    of its own: UNSCREENABLE, `truncated`. `located` is told of the open transfer. Raises PlatformError.
    """
    for attempt in range(1, TRANSFER_TRIES + 1):
        location = platform.locate(recording_id)
        if not isinstance(location, Ready):
            return location
        with platform.open_media(location.media) as stream:
            located(stream)
            screening = screen(stream, channel)
        if screening.unscreenable != "truncated" or attempt == TRANSFER_TRIES:
            break
    return screening


def screen(stream: MediaStream, channel: Channel) -> Screening:
    """Screen one transfer. Never raises for what the media holds: that becomes `unscreenable`."""
    started = perf_counter()
    reader = MediaReader(stream)
    screening = Screening()
    broken = False

    def progress(findings: list[Finding]) -> None:
        if findings and screening.first_finding_s is None:
            screening.first_finding_s = perf_counter() - started
        screening.findings = findings

    screen_media = _screen_audio if channel is Channel.VOICE else _screen_text
    try:
        screening.media = screen_media(reader, progress)
    except UnscreenableMedia as error:
        screening.unscreenable = error.reason
        with suppress(TransferBroken):
            reader.drain()
    except TransferBroken:
        broken = True
    if broken or (screening.media is not None and not screening.media.complete):
        screening.unscreenable = "truncated"
    if screening.media is None:
        screening.media = MediaFacts(reader.size, reader.sha256, "unknown", "unknown", 0, 0, complete=not broken)
    screening.fetch_s = reader.waited_s
    screening.analysis_s = perf_counter() - started - reader.waited_s
    return screening


def _screen_audio(reader: MediaReader, progress: Callable[[list[Finding]], None]) -> MediaFacts:
    audio, blocks = decode_audio(reader)
    speakers = [_Speaker(str(index)) for index in range(audio.channels)]

    def report() -> None:
        progress(sorted((f for s in speakers for f in s.findings()), key=lambda f: (f.start_ms, f.kind)))

    def complete() -> bool:
        return not missing_bytes(reader)

    try:
        for block in blocks:
            news = [speaker.hear(samples) for speaker, samples in zip(speakers, block, strict=True)]
            if any(news):
                report()
    finally:
        for speaker in speakers:
            speaker.finish()
        report()
    if not audio.duration_s:
        raise UnscreenableMedia("no_audio", "a header without sound")
    if audio.damaged_packets > MAX_DAMAGED_PACKETS:
        raise UnscreenableMedia("damaged", f"{audio.damaged_packets} packets could not be decoded")
    return MediaFacts(
        size_bytes=reader.size,
        sha256=reader.sha256,
        container=audio.container,
        codec=audio.codec,
        audio_channels=audio.channels,
        duration_ms=round(audio.duration_s * 1000),
        complete=complete(),
    )


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


def _screen_text(reader: MediaReader, progress: Callable[[list[Finding]], None]) -> MediaFacts:
    from compliance_pipeline.screening.text import screen_text
    from compliance_pipeline.screening.transcripts import UnreadableTranscript, parse_transcript

    content = reader.peek(MAX_TEXT_BYTES + 1)
    if not content:
        raise UnscreenableMedia("empty", "the platform served no bytes")
    if len(content) > MAX_TEXT_BYTES:
        raise UnscreenableMedia("too_large", f"a text of more than {MAX_TEXT_BYTES >> 20} MiB")
    try:
        transcript = parse_transcript(content)
    except UnreadableTranscript as error:
        raise UnscreenableMedia("unknown_format", str(error)) from None
    progress(screen_text(transcript))
    return MediaFacts(
        size_bytes=reader.size,
        sha256=reader.sha256,
        container="text",
        codec="utf-8",
        audio_channels=0,
        duration_ms=max((turn.start_ms for turn in transcript.turns), default=0),
        complete=True,
    )
