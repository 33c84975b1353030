"""What a masked clip sounds like: peaks of its own samples, and which of its parts were silenced."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from threading import Lock
from typing import Any

from compliance_pipeline.evidence import wanted_clips
from compliance_pipeline.media.clips import PAD_MS, Span, decode
from compliance_pipeline.media.decode import SAMPLE_RATE

BARS = 400
QUIET = 0.05
"""Bars are drawn to the loudest of their clip, but not to less than this: noise is not to look like speech."""
HALF_HEIGHT = 30
"""Of a channel's lane, in the drawing's units; a bar is 3 units from the next."""


@dataclass(frozen=True, slots=True)
class Waveform:
    """seconds: of the clip. peaks: by audio channel, the loudest of each BARS-th of it, 0 to 1."""

    seconds: float
    peaks: tuple[tuple[float, ...], ...]

    @property
    def channels(self) -> int:
        return len(self.peaks)

    def is_silent(self, from_s: float, to_s: float) -> bool:
        """Whether nothing at all is heard there, as far as whole bars lie in it."""
        first, last = (at / self.seconds * BARS for at in (from_s, to_s))
        return not any(any(lane[ceil(first) : int(last)]) for lane in self.peaks)

    @property
    def paths(self) -> list[str]:
        """Of each channel, its bars as an SVG path in a box of 3 * BARS by 2 * HALF_HEIGHT."""
        loudest = max(QUIET, *(max(lane) for lane in self.peaks))
        return ["".join(_bar(at, peak / loudest) for at, peak in enumerate(lane)) for lane in self.peaks]


def _bar(at: int, height: float) -> str:
    half = round(height * (HALF_HEIGHT - 1))
    return f"M{3 * at + 1} {HALF_HEIGHT - half}v{2 * half}" if half else ""


def waveform(content: bytes) -> Waveform:
    """Of a whole clip (FLAC). Raises UnscreenableMedia."""
    import numpy as np

    samples = np.abs(decode(content))
    edges = np.linspace(0, samples.shape[1], BARS + 1).astype(int)
    peaks = [[float(lane[a:b].max()) if b > a else 0.0 for a, b in pairwise(edges)] for lane in samples]
    return Waveform(samples.shape[1] / SAMPLE_RATE, tuple(tuple(round(peak, 3) for peak in lane) for lane in peaks))


class Waveforms:
    """Those that were asked for last, by the clip's SHA-256. Threads may share it."""

    def __init__(self, most: int = 500) -> None:
        self._most = most
        self._known: OrderedDict[str, Waveform] = OrderedDict()
        self._lock = Lock()

    def of(self, sha256: str, read: Callable[[], bytes]) -> Waveform:
        """Lets through what `read` and `waveform` raise."""
        with self._lock:
            if sha256 in self._known:
                self._known.move_to_end(sha256)
                return self._known[sha256]
        made = waveform(read())
        with self._lock:
            self._known[sha256] = made
            while len(self._known) > self._most:
                self._known.popitem(last=False)
        return made


def masked_spans(findings: Sequence[Mapping[str, Any]], number: int, clip: Span) -> list[Span]:
    """Where finding `number`'s clip is silenced, milliseconds from the recording's start, in order and apart.

    findings: all rows of the recording and engine. Digits that were heard beside them are silenced too.
    """
    [wanted] = wanted_clips(findings, [number])
    spans: list[Span] = []
    for start, end in sorted(wanted.sensitive):
        start, end = max(clip[0], start - PAD_MS), min(clip[1], end + PAD_MS)
        if start >= end:
            continue
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    return spans
