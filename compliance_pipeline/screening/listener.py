"""Turns the digits of a call's channels, as they are heard, into findings: which stand, which may still change.
What digits amount to belongs to `dictation`; hearing them belongs to `tones` and `digits`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from compliance_pipeline.contracts.policy import Detector, FindingKind
from compliance_pipeline.screening.dictation import (
    ACROSS_S,
    MANNERS,
    Heard,
    Place,
    Stretch,
    is_digits,
    numbers_in,
)
from compliance_pipeline.screening.findings import Finding, Symbol
from compliance_pipeline.screening.fingerprint import Fingerprint
from compliance_pipeline.screening.numbers import mask_all, mask_card

LONGEST_STRETCH = 60
LONGEST_PASSAGE = 160
"""In digits. Longer ones are cut at their longest pause, so that memory and work don't grow with the call."""

IsSpeech = Callable[[str, Sequence[tuple[float, float]]], bool]
"""Whether what a speaker's channel holds at these times (seconds) is speech, taken together."""


class NumberListener:
    """Numbers in one recording. What is found does not depend on how the symbols come in chunks.

    A finding is settled when nothing heard later can change it: a number said in one go, of the length that its
    network uses, that verifies, as soon as 2.5 s (keyed: 6 s or `#`) without a digit of its speaker follow; every
    other one when nobody said digits for 60 s after it, when its passage exceeds 160 digits, or at the end.

    speakers: the names of all channels. is_speech: asked for the spoken digits of a finding, once for each place.
    """

    def __init__(
        self, fingerprint: Fingerprint, speakers: Sequence[str], is_speech: IsSpeech = lambda _speaker, _spans: True
    ) -> None:
        self._passages = {detector: _Passage(detector, speakers, fingerprint, is_speech) for detector in MANNERS}

    def hear(self, speaker: str, detector: Detector, symbols: Sequence[Symbol], until_s: float) -> None:
        """Takes what a channel's detector heard since the last time, by time.

        until_s: from the recording's start; no symbol that starts before it will follow. All channels are waited for.
        """
        self._passages[detector].hear(speaker, symbols, until_s)

    def finish(self) -> list[Finding]:
        """The recording is over: all that was found, by time, with every place where its digits were said."""
        for passage in self._passages.values():
            passage.finish()
        return _by_time(
            [
                replace(entry.finding, spans=tuple(sorted(entry.spans | passage.again.get(entry.key, frozenset()))))
                for passage in self._passages.values()
                for entry in passage.settled
            ]
        )

    def findings(self) -> list[Finding]:
        """As of now, by time."""
        return _by_time([entry.finding for p in self._passages.values() for entry in (*p.settled, *p.open_entries())])

    def settled(self) -> list[Finding]:
        """Those of `findings` that stay as they are."""
        return _by_time([entry.finding for passage in self._passages.values() for entry in passage.settled])


@dataclass(frozen=True, slots=True)
class _Entry:
    key: str
    finding: Finding
    spans: frozenset[tuple[int, int]]
    """Where its digits were said, milliseconds."""


@dataclass(slots=True, repr=False)
class _Stream:
    open: list[Symbol] = field(default_factory=list)
    until: float = 0.0

    @property
    def horizon(self) -> float:
        return self.open[0].start if self.open else self.until


class _Passage:
    """One detector's digits of all channels: those not yet settled, and what was found."""

    def __init__(
        self, detector: Detector, speakers: Sequence[str], fingerprint: Fingerprint, is_speech: IsSpeech
    ) -> None:
        self._detector = detector
        self._manner = MANNERS[detector]
        self._fingerprint = fingerprint
        self._is_speech = is_speech
        self._streams = {speaker: _Stream() for speaker in speakers}
        self._waiting: list[Stretch] = []
        self._stretches: list[Stretch] = []
        self._speech: dict[tuple[str, tuple[tuple[float, float], ...]], bool] = {}
        self._found: list[_Entry] | None = None
        self._known: set[str] = set()
        self.settled: list[_Entry] = []
        self.again: dict[str, frozenset[tuple[int, int]]] = {}
        """Where settled numbers were said again, by key."""

    def hear(self, speaker: str, symbols: Sequence[Symbol], until_s: float) -> None:
        stream = self._streams[speaker]
        for symbol in symbols:
            if stream.open and symbol.start - stream.open[-1].end > self._manner.stretch_s:
                self._close(speaker, stream)
            if not symbol.char.isdigit():
                self._close(speaker, stream, ended=True)
                continue
            stream.open.append(symbol)
            if len(stream.open) > LONGEST_STRETCH:
                self._split(speaker, stream)
        stream.until = max(stream.until, until_s)
        if stream.open and stream.until - stream.open[-1].end > self._manner.stretch_s:
            self._close(speaker, stream)
        if symbols:
            self._found = None
        self._advance(min(stream.horizon for stream in self._streams.values()))

    def finish(self) -> None:
        for speaker, stream in self._streams.items():
            self._close(speaker, stream)
        self._advance(float("inf"))

    def open_entries(self) -> list[_Entry]:
        if self._found is None:
            still_said = [
                Stretch(speaker, tuple(stream.open))
                for speaker, stream in self._streams.items()
                if is_digits(stream.open)
            ]
            stretches = sorted([*self._stretches, *self._waiting, *still_said], key=_order)
            self._found = [entry for entry in self._entries(stretches) if entry.key not in self._known]
        return self._found

    def _close(self, speaker: str, stream: _Stream, *, ended: bool = False) -> None:
        if is_digits(stream.open):
            self._waiting.append(Stretch(speaker, tuple(stream.open), ended))
        stream.open = []

    def _split(self, speaker: str, stream: _Stream) -> None:
        """Ends a stretch that has no pause, at the longest one it has."""
        gaps = [stream.open[at].start - stream.open[at - 1].end for at in range(20, LONGEST_STRETCH + 1)]
        at = 20 + gaps.index(max(gaps))
        rest, stream.open = stream.open[at:], stream.open[:at]
        self._close(speaker, stream)
        stream.open = rest

    def _advance(self, horizon: float) -> None:
        """Takes up, by time, the stretches before which none can follow any more."""
        ready = sorted([stretch for stretch in self._waiting if stretch.start < horizon], key=_order)
        self._waiting = [stretch for stretch in self._waiting if stretch.start >= horizon]
        for stretch in ready:
            if self._ended_before(stretch.start):
                self._settle(self._stretches)
                self._stretches = []
            self._stretches.append(stretch)
            self._settle_whole(stretch)
            if sum(len(each.symbols) for each in self._stretches) > LONGEST_PASSAGE:
                self._cut()
        if self._ended_before(horizon):
            self._settle(self._stretches)
            self._stretches = []
        if not self._stretches and not self._waiting:
            self._speech.clear()

    def _ended_before(self, time_s: float) -> bool:
        return bool(self._stretches) and time_s - max(stretch.end for stretch in self._stretches) > ACROSS_S

    def _settle_whole(self, stretch: Stretch) -> None:
        """What was said in one go and verifies is settled at once, unless it is first known from earlier pieces."""
        if not any(number.whole for number in numbers_in([stretch], self._detector)):
            return
        for entry, number in self._heard(self._stretches):
            if number.whole and entry.key not in self._known and number.start >= stretch.start:
                self._keep(entry)

    def _settle(self, stretches: Sequence[Stretch]) -> None:
        for entry in self._entries(stretches):
            if entry.key in self._known:
                self.again[entry.key] = self.again.get(entry.key, frozenset()) | entry.spans
            else:
                self._keep(entry)
        self._found = None

    def _keep(self, entry: _Entry) -> None:
        self._known.add(entry.key)
        self.settled.append(entry)
        self._found = None

    def _cut(self) -> None:
        """Settles the front up to the longest pause in the passage's middle half."""
        ends, digits, best = 0.0, 0, (-1.0, 1)
        for at, stretch in enumerate(self._stretches):
            if at and LONGEST_PASSAGE // 4 <= digits <= 3 * LONGEST_PASSAGE // 4:
                best = max(best, (stretch.start - ends, at))
            ends, digits = max(ends, stretch.end), digits + len(stretch.symbols)
        self._settle(self._stretches[: best[1]])
        self._stretches = self._stretches[best[1] :]
        self._speech = {key: said for key, said in self._speech.items() if key[1][0][0] >= self._stretches[0].start}

    def _entries(self, stretches: Sequence[Stretch]) -> list[_Entry]:
        return [entry for entry, _ in self._heard(stretches)]

    def _heard(self, stretches: Sequence[Stretch]) -> list[tuple[_Entry, Heard]]:
        return [
            (self._entry(number), number)
            for number in numbers_in(stretches, self._detector)
            if self._detector is not Detector.DIGITS or self._is_said(number.places)
        ]

    def _is_said(self, places: Sequence[Place]) -> bool:
        for speaker in {speaker for speaker, _, _ in places}:
            spans = tuple((start, end) for name, start, end in places if name == speaker)
            if (speaker, spans) not in self._speech:
                self._speech[speaker, spans] = self._is_speech(speaker, spans)
            if not self._speech[speaker, spans]:
                return False
        return True

    def _entry(self, number: Heard) -> _Entry:
        is_card = number.kind is FindingKind.CARD_NUMBER
        fingerprint = self._fingerprint(number.kind, number.digits)
        key = fingerprint or f"{number.kind}:{hash(number.digits)}"
        finding = Finding(
            kind=number.kind,
            detector=self._detector,
            speaker=number.places[0][0],
            start_ms=round(number.start * 1000),
            end_ms=round(number.end * 1000),
            confidence=number.confidence,
            masked=mask_card(number.digits) if is_card else mask_all(number.digits),
            fingerprint=fingerprint,
        )
        said = (*number.places, *number.again)
        return _Entry(key, finding, frozenset((round(start * 1000), round(end * 1000)) for _, start, end in said))


def _order(stretch: Stretch) -> tuple[float, str]:
    return stretch.start, stretch.speaker


def _by_time(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: (finding.start_ms, finding.end_ms, finding.kind, finding.speaker))
