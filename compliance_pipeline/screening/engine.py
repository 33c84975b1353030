"""The embedded engine: one pass over a recording's media, while it arrives, gives its findings.

Whether a finding breaks a rule is `policy`'s; which recordings to screen, and what follows, is the pipeline's.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from compliance_pipeline.contracts.event import Channel, Direction, RecordingEvent
from compliance_pipeline.contracts.policy import Annotation, Detector, FindingKind, PolicyPack
from compliance_pipeline.contracts.verdict import Verdict
from compliance_pipeline.media.decode import SAMPLE_RATE, MediaReader, UnscreenableMedia, decode_audio, missing_bytes
from compliance_pipeline.platforms.port import (
    Gone,
    MediaStream,
    NotYet,
    Platform,
    Ready,
    Refused,
    TransferBroken,
    Unavailable,
)
from compliance_pipeline.screening.findings import Finding
from compliance_pipeline.screening.fingerprint import fingerprints
from compliance_pipeline.screening.policy import Facts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compliance_pipeline.screening.listener import IsSpeech, NumberListener
    from compliance_pipeline.screening.phrases import Lexicon
    from compliance_pipeline.screening.recogniser import Recogniser, Transcriber
    from compliance_pipeline.screening.transcripts import Transcript, Turn
    from compliance_pipeline.settings import Settings

EMBEDDED_ENGINE = "embedded-0.3.0"
MAX_TEXT_BYTES = 32 * 2**20
MAX_LOST_S = 0.5
"""Too short to hide a number: 13 digits keyed as fast as ITU-T Q.24 allows (40 ms on, 40 ms off) take 1 s."""
TRANSFER_TRIES = 3
TONES_LAG_S, DIGITS_LAG_S = 20.0, 16.0
"""How long after it sounded a detector may still report a digit."""

Report = Callable[[Sequence[Finding], Sequence[Finding]], None]
"""Told of all findings so far, and of those of them that nothing heard later can change, whenever either changes."""

log = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class WordsRead:
    """Who has a turn in the words of a recording, and whether the turns have times."""

    speakers: frozenset[str]
    timed: bool


@dataclass(slots=True)
class Screening:
    """The result of one pass. With `unscreenable` set (one word), what was found until then still stands.

    words: None where nobody knows what was said, so that rules about words can't be decided.
    transfer_broken: another try may bring more. retracted: findings that were reported and that later context took
    back. fetch_s: waiting for bytes; analysis_s: everything else; first_finding_s: from the start of the pass to the
    first report of a finding that stood. annotations: what the platform noted about the recording; None: not known.
    transcript_missing: there may be a transcript, which could not be had for now.
    """

    findings: list[Finding] = field(default_factory=list)
    media: MediaFacts | None = None
    words: WordsRead | None = None
    unscreenable: str | None = None
    transfer_broken: bool = False
    retracted: int = 0
    fetch_s: float = 0.0
    analysis_s: float = 0.0
    first_finding_s: float | None = None
    annotations: frozenset[Annotation] | None = None
    transcript_missing: bool = False


@dataclass(frozen=True, slots=True)
class Accepted:
    """The engine works on it: its verdict will be called back, else ask again after `after_s` seconds.

    waits: to be called once the recording waits, for a callback that came before it did.
    """

    after_s: float
    waits: Callable[[], None]


ENGINE_BREAKER = "engine"
"""The circuit breaker of an engine over HTTP."""


class EngineError(Exception):
    """A request that an engine did not answer with a verdict. Names recording and status; no URL, body or secret."""


class EngineUnavailable(EngineError):
    """The engine, or the media it was pointed to, failed for now: ask again, with a fresh media URL.

    retry_after: seconds until then, if the engine says. is_down: it is the engine that fails, whatever it is asked.
    """

    def __init__(self, message: str, retry_after: float | None = None, *, is_down: bool = False) -> None:
        super().__init__(message)
        self.retry_after, self.is_down = retry_after, is_down


class EngineBusy(EngineUnavailable):
    """The engine has as much to do as it takes (429), or its circuit breaker is open: no fault of the recording's."""


class EngineRefused(EngineError):
    """The engine said no for good (signature, policy, schema, address): a person must act."""


class EngineAnswerRefused(EngineError):
    """The engine answered, but not by the contract, or about something else than was asked: nothing of it is used."""


Located = Callable[[MediaStream], None]


class Engine(Protocol):
    """Who judges: the embedded engine gives findings for the policy to judge, another one may give its verdict."""

    @property
    def version(self) -> str:
        """The key under which verdicts are kept: the same string, the same answers."""
        ...

    def judge(
        self, platform: Platform, event: RecordingEvent, correlation_id: str, located: Located
    ) -> Screening | Verdict | Accepted | NotYet | Gone:
        """Locate, fetch and screen one recording. `located` is told of the open transfer. Raises PlatformError."""
        ...

    def close(self) -> None: ...


class EmbeddedEngine:
    """The detectors of this package, in this process. Safe to use from several threads.

    policy: its lexicon says which phrases to find. key: for fingerprints. recogniser: hears the words of voice
    recordings for which the platform has no transcript.
    """

    def __init__(self, policy: PolicyPack, key: str, recogniser: "Recogniser | None" = None) -> None:
        self._policy = policy
        self._key = key
        self._fingerprint = fingerprints(key)
        self._recogniser = recogniser

    @property
    def version(self) -> str:
        """Changes with the code's version, the models, the lexicon and the recogniser."""
        from compliance_pipeline.screening.digits import model_version
        from compliance_pipeline.screening.speech import gate_version

        parts = [EMBEDDED_ENGINE, model_version(), gate_version(), f"lexicon-{self._policy.lexicon_version}"]
        return "+".join(parts + ([self._recogniser.version] if self._recogniser else []))

    def judge(
        self,
        platform: Platform,
        event: RecordingEvent,
        correlation_id: str,  # noqa: ARG002 - others need it
        located: Located = lambda _: None,
    ) -> Screening | NotYet | Gone:
        """A broken transfer is tried again with a fresh URL, then is what it is: UNSCREENABLE, `truncated`."""
        tries: list[Screening] = []
        transcript: Transcript | None = None
        missing = False
        while len(tries) < TRANSFER_TRIES:
            location = platform.locate(event.recording_id)
            if isinstance(location, Gone) and tries:
                break
            if not isinstance(location, Ready):
                return location
            if transcript is None:
                transcript, missing = _platform_transcript(platform, location, event.recording_id)
            with platform.open_media(location.media) as stream:
                located(stream)
                tries.append(self.screen(stream, event.channel, location.speakers, transcript))
            tries[-1].annotations, tries[-1].transcript_missing = location.annotations, missing
            if not tries[-1].transfer_broken:
                break
        screening = max(tries, key=reach) if tries[-1].transfer_broken else tries[-1]
        if screening.first_finding_s is not None:
            screening.first_finding_s += sum(t.fetch_s + t.analysis_s for t in tries[: tries.index(screening)])
        screening.fetch_s, screening.analysis_s = sum(t.fetch_s for t in tries), sum(t.analysis_s for t in tries)
        return screening

    def screen(
        self,
        stream: MediaStream,
        channel: Channel,
        speakers: Sequence[str] = (),
        transcript: "Transcript | None" = None,
        report: Report = lambda _all, _settled: None,
    ) -> Screening:
        """Screen one transfer. Never raises for what the media holds: that becomes `unscreenable`.

        speakers: who is on each audio channel, where the platform says so. transcript: of a voice recording.
        """
        started = perf_counter()
        reader = MediaReader(stream)
        progress = _Progress(report, started)
        screen_media = _VoiceScreening if channel is Channel.VOICE else _TextScreening
        media = screen_media(self, reader, progress)
        screening = Screening()
        try:
            try:
                screening.unscreenable = media.screen(stream, speakers, transcript)
            except UnscreenableMedia as error:
                screening.unscreenable = error.reason
            reader.drain()
        except TransferBroken:
            screening.unscreenable = "truncated"
            screening.transfer_broken = True
        screening.findings, screening.words = progress.findings, media.words
        screening.first_finding_s, screening.retracted = progress.first_s, progress.retracted
        complete = screening.unscreenable != "truncated"
        screening.media = replace(media.facts, size_bytes=reader.size, sha256=reader.sha256, complete=complete)
        screening.fetch_s = reader.waited_s
        screening.analysis_s = perf_counter() - started - reader.waited_s
        return screening

    def close(self) -> None:
        """Holds nothing open."""

    def without_words(self) -> "EmbeddedEngine":
        """The same, for sound alone."""
        return EmbeddedEngine(self._policy, self._key)

    def read(self, transcript: "Transcript") -> list[Finding]:
        """What the words give away: numbers and the lexicon's phrases, by time."""
        from compliance_pipeline.screening.phrases import find_phrases
        from compliance_pipeline.screening.text import screen_text

        return _by_time([*screen_text(transcript, self._fingerprint), *find_phrases(transcript, self._lexicon)])

    @cached_property
    def _lexicon(self) -> "Lexicon":
        from compliance_pipeline.screening.phrases import compile_lexicon

        return compile_lexicon(self._policy.phrases)

    def numbers(self, speakers: Sequence[str], is_speech: "IsSpeech") -> "NumberListener":
        from compliance_pipeline.screening.listener import NumberListener

        return NumberListener(self._fingerprint, speakers, is_speech)

    def transcribers(self, speakers: Sequence[str]) -> "list[Transcriber]":
        """One for each audio channel; none without a recogniser."""
        from compliance_pipeline.screening.recogniser import Transcriber

        return [Transcriber(self._recogniser, speaker) for speaker in speakers] if self._recogniser else []


def from_settings(settings: "Settings", policy: PolicyPack) -> EmbeddedEngine:
    """Raises RecogniserError where the recogniser's model can't be used."""
    from compliance_pipeline.screening.recogniser import recogniser_from

    return EmbeddedEngine(policy, settings.fingerprint_secret, recogniser_from(settings.recogniser_model))


def facts_of(
    screening: Screening,
    channel: Channel,
    *,
    direction: Direction | None = None,
    queue: str | None = None,
    started_at: datetime | None = None,
    called_time_zone: str | None = None,
) -> Facts:
    """What the policy may know of a recording besides its findings."""
    return Facts(
        channel=channel,
        transcript_read=screening.words is not None,
        words_timed=screening.words is None or screening.words.timed or channel is not Channel.VOICE,
        speakers=screening.words.speakers if screening.words else frozenset(),
        complete=screening.unscreenable is None,
        direction=direction,
        queue=queue,
        started_at=started_at,
        duration_ms=screening.media.duration_ms if screening.media else None,
        annotations=screening.annotations,
        called_time_zone=called_time_zone,
    )


def reach(screening: Screening) -> tuple[int, int]:
    """How far a transfer that broke off got: the farthest of several tries counts."""
    return len(screening.findings), screening.media.size_bytes if screening.media else 0


def _platform_transcript(platform: Platform, location: Ready, recording_id: str) -> "tuple[Transcript | None, bool]":
    """The platform's transcript of a voice recording, None where it has none that can be read; and whether there may
    be one that can't be had for now. That does not keep the sound from being screened."""
    if location.transcript is None:
        return None, location.transcript_missing
    try:
        return read_transcript(platform.open_media(location.transcript), recording_id), False
    except Unavailable as error:
        log.warning("recording %s: its transcript can't be had for now: %s", recording_id, error)
        return None, True


def read_transcript(transfer: AbstractContextManager[MediaStream], recording_id: str) -> "Transcript | None":
    """None for one that can't be read or is refused. Raises Unavailable."""
    from compliance_pipeline.screening.transcripts import UnreadableTranscript, parse_transcript

    try:
        with transfer as stream:
            return parse_transcript(MediaReader(stream).rest(MAX_TEXT_BYTES), stream.content_type)
    except (Refused, UnscreenableMedia, UnreadableTranscript) as error:
        log.warning("recording %s: its transcript is not used: %s", recording_id, error)
        return None


def _by_time(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda f: (f.start_ms, f.kind, f.detector, f.speaker))


_Key = tuple[FindingKind, str] | tuple[FindingKind, Detector, str, int]


def _key(finding: Finding) -> _Key:
    """The same for the same number, wherever and however it was found."""
    if finding.fingerprint:
        return finding.kind, finding.fingerprint
    return finding.kind, finding.detector, finding.speaker, finding.start_ms


class _Progress:
    """What was reported, and when."""

    def __init__(self, report: Report, started: float) -> None:
        self._report = report
        self._started = started
        self._settled: list[Finding] = []
        self._first: dict[_Key, float] = {}
        self.findings: list[Finding] = []

    def tell(self, findings: list[Finding], settled: list[Finding]) -> None:
        if (findings, settled) == (self.findings, self._settled):
            return
        now = perf_counter() - self._started
        for finding in findings:
            self._first.setdefault(_key(finding), now)
        self.findings, self._settled = findings, settled
        self._report(findings, settled)

    @property
    def first_s(self) -> float | None:
        """Of numbers: that a phrase was said is known when the transcript is there, and most are no violation."""
        numbers = [finding for finding in self.findings if finding.kind is not FindingKind.PHRASE]
        return min((self._first[_key(finding)] for finding in numbers), default=None)

    @property
    def retracted(self) -> int:
        return len(self._first.keys() - {_key(finding) for finding in self.findings})


class _MediaScreening:
    """One recording under way: what the media turned out to be, and the words that were read."""

    def __init__(self, engine: EmbeddedEngine, reader: MediaReader, progress: _Progress) -> None:
        self._engine = engine
        self._reader = reader
        self._progress = progress
        self.facts = MediaFacts(0, "", "unknown", "unknown", 0, 0, complete=False)
        self.words: WordsRead | None = None

    def _read(self, transcript: "Transcript") -> list[Finding]:
        self.words = WordsRead(frozenset(turn.speaker for turn in transcript.turns), transcript.timed)
        return self._engine.read(transcript)


class _VoiceScreening(_MediaScreening):
    """Each audio channel with its detectors, and what they and the transcript amount to."""

    def screen(self, _stream: MediaStream, speakers: Sequence[str], transcript: "Transcript | None") -> str | None:
        """Why the recording is not screened to its end, or None."""
        read = self._spoken(transcript) if transcript else []
        self._progress.tell(read, [])
        audio, blocks = decode_audio(self._reader)
        self.facts.container, self.facts.codec, self.facts.audio_channels = audio.container, audio.codec, audio.channels
        told = len(set(speakers)) == len(speakers) == audio.channels
        names = list(speakers) if told else [str(n) for n in range(audio.channels)]
        channels = {name: _Channel() for name in names}
        numbers = self._engine.numbers(names, lambda name, spans: channels[name].sound.is_speech(spans))
        recognition = _Recognition([] if transcript else self._engine.transcribers(names))

        def tell() -> None:
            settled = {_key(finding) for finding in numbers.settled()}
            found = _united(numbers.findings(), read)
            self._progress.tell(found, [finding for finding in found if _key(finding) in settled])

        try:
            for block in blocks:
                for (name, channel), samples in zip(channels.items(), block, strict=True):
                    channel.hear(name, samples, numbers)
                recognition.hear(block)
                tell()
        finally:
            self.facts.duration_ms = round(audio.duration_s * 1000)
            for name, channel in channels.items():
                channel.finish(name, numbers)
            heard = numbers.finish()
            if recognised := recognition.finish():
                read = self._spoken(recognised)
            if self.words and not self.words.timed:
                # They may have been said at any time of the recording.
                read = [replace(finding, end_ms=self.facts.duration_ms) for finding in read]
            found = _united(heard, read)
            self._progress.tell(found, found)
        if audio.cut_short or missing_bytes(self._reader):
            return "truncated"
        return "damaged" if audio.lost_s > MAX_LOST_S else None

    def _spoken(self, transcript: "Transcript") -> list[Finding]:
        # A turn's times hold what was said in it only where both are known.
        located = all(turn.end_ms is not None for turn in transcript.turns)
        return [replace(finding, located=located) for finding in self._read(transcript)]


class _Recognition:
    """The recogniser on each audio channel; one that fails leaves the words unknown, and the sound screened."""

    def __init__(self, transcribers: "list[Transcriber]") -> None:
        self._transcribers = transcribers
        self._turns: list[Turn] = []

    def hear(self, block: "NDArray[np.float32]") -> None:
        from compliance_pipeline.screening.recogniser import RecogniserError

        try:
            for transcriber, samples in zip(self._transcribers, block, strict=False):
                self._turns += transcriber.feed(samples)
        except RecogniserError as error:
            self._give_up(error)

    def finish(self) -> "Transcript | None":
        from compliance_pipeline.screening.recogniser import RecogniserError
        from compliance_pipeline.screening.transcripts import Transcript

        try:
            for transcriber in self._transcribers:
                self._turns += transcriber.finish()
        except RecogniserError as error:
            self._give_up(error)
        if not self._transcribers:
            return None
        return Transcript(tuple(sorted(self._turns, key=lambda turn: turn.start_ms)))

    def _give_up(self, error: Exception) -> None:
        log.warning("rules about words stay undetermined: %s", error)
        self._transcribers = []


def _united(heard: list[Finding], read: list[Finding]) -> list[Finding]:
    """What was heard and what was read; a number that was both is one finding, where it was heard."""
    sure: dict[str, float] = {}
    for finding in read:
        if finding.fingerprint:
            sure[finding.fingerprint] = max(finding.confidence, sure.get(finding.fingerprint, 0.0))
    both = [replace(f, confidence=max(f.confidence, sure.get(f.fingerprint or "", 0.0))) for f in heard]
    known = {finding.fingerprint for finding in heard} - {None}
    return _by_time([*both, *(finding for finding in read if finding.fingerprint not in known)])


class _Channel:
    """One audio channel: its detectors, and its sound of late."""

    def __init__(self) -> None:
        from compliance_pipeline.screening.digits import SpokenDigits
        from compliance_pipeline.screening.speech import RecentSound
        from compliance_pipeline.screening.tones import ToneDetector

        self._tones = ToneDetector()
        self._digits = SpokenDigits()
        self._heard_s = 0.0
        self.sound = RecentSound()

    def hear(self, name: str, samples: "NDArray[np.float32]", numbers: "NumberListener") -> None:
        self.sound.feed(samples)
        self._heard_s += len(samples) / SAMPLE_RATE
        numbers.hear(name, Detector.TONES, self._tones.feed(samples), self._heard_s - TONES_LAG_S)
        numbers.hear(name, Detector.DIGITS, self._digits.feed(samples), self._heard_s - DIGITS_LAG_S)

    def finish(self, name: str, numbers: "NumberListener") -> None:
        numbers.hear(name, Detector.TONES, self._tones.finish(), self._heard_s)
        numbers.hear(name, Detector.DIGITS, self._digits.finish(), self._heard_s)


class _TextScreening(_MediaScreening):
    """One chat or e-mail."""

    def screen(self, stream: MediaStream, _speakers: Sequence[str], _transcript: "Transcript | None") -> str | None:
        """Why the text is not all that was said, or None."""
        from compliance_pipeline.screening.transcripts import UnreadableTranscript, parse_transcript

        content = self._reader.rest(MAX_TEXT_BYTES)
        if not content:
            raise UnscreenableMedia("empty", "the platform served no bytes")
        try:
            transcript = parse_transcript(content, stream.content_type)
        except UnreadableTranscript as error:
            raise UnscreenableMedia("unknown_format", str(error)) from None
        self.facts.container, self.facts.codec = "text", "utf-8"
        self.facts.duration_ms = max((turn.start_ms for turn in transcript.turns), default=0)
        found = self._read(transcript)
        self._progress.tell(found, found)
        if content.lstrip()[:15].lower().startswith(_PAGES):
            return "not_transcript"
        return "unread_attachment" if transcript.unread else None


_PAGES = (b"<!doctype html", b"<html", b"<?xml")
