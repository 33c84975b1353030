"""Redaction validation: does the platform hide, in what it gives out, the numbers that we planted? By channel.

Guide, edge case 2: 'Validate redaction rules against sample interactions'. Judging recordings is not done here.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.contracts.policy import FindingKind
from compliance_pipeline.platforms.port import Gone, Media, Platform, PlatformError, Ready, Unavailable

if TYPE_CHECKING:
    from compliance_pipeline.platforms.transport import Transport
    from compliance_pipeline.screening.engine import EmbeddedEngine
    from compliance_pipeline.screening.findings import Finding
    from compliance_pipeline.steps import Pipeline

CARD, SSN, PHONE, EMAIL = "4111 1111 1111 1111", "078-05-1120", "415-555-0143", "redaction.check@example.com"
"""Nobody's: the card networks' test number, the number that the SSA withdrew in 1943, the range that is kept for
fiction (NANP 555-01XX), the domain that is kept for examples (RFC 2606)."""
WORDS = f"My card number is {CARD}. My social security number is {SSN}. You can call me on {PHONE} or write to {EMAIL}."
PATIENCE_S, POLL_S = 60.0, 2.0

_HEARD = frozenset({FindingKind.CARD_NUMBER, FindingKind.CARD_LENGTH_NUMBER})
"""What the sound alone gives away; a card number of which a digit is misheard is as long as one."""


@dataclass(frozen=True, slots=True)
class Planted:
    """A value that a sample holds. Ours, so that it may be kept in the clear; still not shown."""

    kind: FindingKind
    value: str = field(repr=False)


PLANTED = (
    Planted(FindingKind.CARD_NUMBER, CARD),
    Planted(FindingKind.GOVERNMENT_ID, SSN),
    Planted(FindingKind.PHONE_NUMBER, PHONE),
    Planted(FindingKind.EMAIL_ADDRESS, EMAIL),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """An interaction that somebody made with the values of `planted` in it. spoken: they are in its sound as well."""

    recording_id: str
    channel: Channel
    planted: tuple[Planted, ...] = PLANTED
    spoken: bool = True


class Medium(StrEnum):
    TEXT = "text"
    SOUND = "sound"
    TRANSCRIPT = "transcript"


class Outcome(StrEnum):
    LEAK = "leak"
    REDACTED = "redacted"
    NOT_READ = "not read"


@dataclass(frozen=True, slots=True)
class ChannelResult:
    """Whether one planted value came through. detail: where it was, or why nothing was read; holds no value."""

    channel: Channel
    medium: Medium
    kind: FindingKind
    outcome: Outcome
    detail: str
    recording_id: str


def redaction_report(
    platform: Platform,
    engine: "EmbeddedEngine",
    samples: Sequence[Sample],
    *,
    patience_s: float = PATIENCE_S,
    sleep: Callable[[float], None] = time.sleep,
) -> list[ChannelResult]:
    """Fetch each sample as screening does, and look for what was planted in it. Never raises PlatformError.

    patience_s: how long to wait for a sample that is not available yet. In the sound only card numbers are listened
    for: the detectors know no others.
    """
    results: list[ChannelResult] = []
    for sample in samples:
        try:
            location = _ready(platform, sample.recording_id, patience_s, sleep)
        except PlatformError as error:
            location = str(error)
        if isinstance(location, str):
            for medium in _media_of(sample):
                results += _unread(sample, medium, location)
        elif sample.channel is not Channel.VOICE:
            results += _read(platform, engine, sample, Medium.TEXT, location.media)
        else:
            if sample.spoken:
                results += _listen(platform, engine, sample, location)
            if location.transcript:
                results += _read(platform, engine, sample, Medium.TRANSCRIPT, location.transcript)
            else:
                results += _unread(sample, Medium.TRANSCRIPT, "the platform has no transcript of it")
    return results


def named_samples(texts: Sequence[str]) -> list[Sample]:
    """Samples written as CHANNEL=ID. Raises ValueError."""
    samples = []
    for text in texts:
        channel, _, recording_id = text.partition("=")
        if channel not in list(Channel) or not recording_id:
            raise ValueError(f"a sample is CHANNEL=ID, CHANNEL one of {', '.join(Channel)}")
        samples.append(Sample(recording_id, Channel(channel)))
    return samples


def check_redaction(pipeline: "Pipeline") -> list[ChannelResult]:
    """The samples that COMPLIANCE_REDACTION_SAMPLES names; without any, those that the sandbox makes, or none.

    Raises PlatformError, ValueError for samples that are misspelt.
    """
    from compliance_pipeline.platforms.profiles import transport_of
    from compliance_pipeline.platforms.transport import NotFound
    from compliance_pipeline.screening.engine import from_settings

    settings = pipeline.settings
    samples = named_samples(settings.redaction_samples)
    if not samples and settings.is_sandboxed:
        with closing(transport_of(settings, pipeline.inbox.engine)) as transport, suppress(NotFound):
            samples = sandbox_samples(transport)
    return redaction_report(pipeline.platform, from_settings(settings, pipeline.policy), samples)


def sandbox_samples(transport: "Transport") -> list[Sample]:
    """Has the sandbox make a sample a channel. It speaks none, so a call's sound holds nothing.

    Raises PlatformError; NotFound where the platform is not the sandbox.
    """
    samples = []
    for channel in Channel:
        body = {"channel": channel.value, "text": WORDS}
        answer = transport.request("POST", "/sandbox/sample", json=body)
        if not isinstance(answer, dict) or not isinstance(answer.get("recordingId"), str):
            raise Unavailable("POST /sandbox/sample: the answer names no recording")
        samples.append(Sample(answer["recordingId"], channel, spoken=False))
    return samples


def _ready(platform: Platform, recording_id: str, patience_s: float, sleep: Callable[[float], None]) -> Ready | str:
    """Where the sample is, or why it can't be read."""
    waited = 0.0
    while not isinstance(location := platform.locate(recording_id), Ready):
        if isinstance(location, Gone):
            return location.why
        if waited >= patience_s:
            return f"not available after {waited:.0f} s: {location.why}"
        pause = min(location.after_s or POLL_S, patience_s - waited)
        sleep(pause)
        waited += pause
    return location


def _read(
    platform: Platform, engine: "EmbeddedEngine", sample: Sample, medium: Medium, media: Media
) -> Iterator[ChannelResult]:
    """Words: by the engine's detectors, and as they were planted, wherever in the file."""
    from compliance_pipeline.media.decode import MediaReader, UnscreenableMedia
    from compliance_pipeline.screening.engine import MAX_TEXT_BYTES
    from compliance_pipeline.screening.transcripts import UnreadableTranscript, parse_transcript

    try:
        with platform.open_media(media) as stream:
            content = MediaReader(stream).rest(MAX_TEXT_BYTES)
            transcript = parse_transcript(content, stream.content_type)
    except (PlatformError, UnscreenableMedia, UnreadableTranscript) as error:
        yield from _unread(sample, medium, str(error))
        return
    findings = engine.read(transcript)
    words = " ".join(turn.text for turn in transcript.turns)
    file = content.decode(errors="replace")
    for planted in sample.planted:
        known = _fingerprints(engine, planted)
        found = [f for f in findings if f.kind is planted.kind and f.fingerprint in known]
        if found:
            yield _result(sample, medium, planted.kind, Outcome.LEAK, _where(sample.channel, found[0]))
        elif _holds(words, planted) or _holds(file, planted):
            yield _result(sample, medium, planted.kind, Outcome.LEAK, "as it was planted")
        else:
            yield _result(sample, medium, planted.kind, Outcome.REDACTED, "")


def _listen(platform: Platform, engine: "EmbeddedEngine", sample: Sample, location: Ready) -> Iterator[ChannelResult]:
    """Sound: whatever is as long as a card number counts, since the sample holds no other."""
    heard = [planted for planted in sample.planted if planted.kind in _HEARD]
    try:
        with platform.open_media(location.media) as stream:
            screening = engine.screen(stream, Channel.VOICE, location.speakers)
    except PlatformError as error:
        yield from _unread(sample, Medium.SOUND, str(error))
        return
    found = [finding for finding in screening.findings if finding.kind in _HEARD]
    for planted in heard:
        if found:
            yield _result(sample, Medium.SOUND, planted.kind, Outcome.LEAK, _where(sample.channel, found[0]))
        elif screening.unscreenable:
            yield _result(sample, Medium.SOUND, planted.kind, Outcome.NOT_READ, screening.unscreenable)
        else:
            yield _result(sample, Medium.SOUND, planted.kind, Outcome.REDACTED, "")


def _fingerprints(engine: "EmbeddedEngine", planted: Planted) -> set[str]:
    """The engine's fingerprints of the planted value: what it finds in the value itself, said with its name."""
    from compliance_pipeline.screening.transcripts import Transcript, Turn

    said = f"{planted.kind.replace('_', ' ')} {planted.value}"
    found = engine.read(Transcript((Turn("customer", 0, said),)))
    return {f.fingerprint for f in found if f.kind is planted.kind and f.fingerprint}


def _holds(text: str, planted: Planted) -> bool:
    """However it is spaced or hyphenated."""
    if planted.kind is FindingKind.EMAIL_ADDRESS:
        return planted.value.casefold() in text.casefold()
    digits = re.sub(r"\D", "", planted.value)
    return re.search(r"[ ().-]{0,2}".join(digits), text) is not None


def _media_of(sample: Sample) -> tuple[Medium, ...]:
    if sample.channel is not Channel.VOICE:
        return (Medium.TEXT,)
    return (Medium.SOUND, Medium.TRANSCRIPT) if sample.spoken else (Medium.TRANSCRIPT,)


def _unread(sample: Sample, medium: Medium, why: str) -> Iterator[ChannelResult]:
    for planted in sample.planted:
        if medium is not Medium.SOUND or planted.kind in _HEARD:
            yield _result(sample, medium, planted.kind, Outcome.NOT_READ, why)


def _where(channel: Channel, finding: "Finding") -> str:
    seconds = finding.start_ms // 1000
    at = f"at {seconds // 60}:{seconds % 60:02d}, " if channel is Channel.VOICE else ""
    return f"{at}by {finding.detector}: {finding.masked}"


def _result(sample: Sample, medium: Medium, kind: FindingKind, outcome: Outcome, detail: str) -> ChannelResult:
    return ChannelResult(sample.channel, medium, kind, outcome, detail, sample.recording_id)
