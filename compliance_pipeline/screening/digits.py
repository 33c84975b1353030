"""Spoken digits in a stream of telephone speech: features, the CTC recogniser, and runs dense enough to be a card.
Whether a run is a card number (Luhn, IIN) is decided in `numbers`; training is in `training/`, outside the package."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compliance_pipeline.screening.findings import Symbol
from compliance_pipeline.screening.networks import network

SAMPLE_RATE: Final = 8000
MEL_BANDS: Final = 40
TOKENS: Final = (
    *"0123456789", "oh", "double", "triple", *map(str, range(10, 20)), *map(str, range(20, 100, 10)), "hundred",
)  # fmt: skip
"""The words that the network knows; its first answer is 'none of them', the next are these."""
FRAME: Final = 320
"""Samples from one answer of the network to the next (40 ms)."""
MODEL_SHA: Final = "02df21b3aa5e6f582018f86168d9dbb6c95746b8685fee8a87b3ec68cf7c390f"
"""SHA-256 of the model that this code was measured with; no other is loaded."""

_STEP, _SPAN, _FFT, _BLOCK = 80, 200, 256, 32
_SHORTEST = _SPAN + 8 * _STEP

# Neighbouring windows share two seconds; in the second in their middle, where both hear enough to either side,
# one takes over from the other.
_WINDOW, _HOP = 8 * SAMPLE_RATE, 6 * SAMPLE_RATE
_SEAM_BEGINS, _SEAM_FRAMES = 163, 25

# RMS of a window's loudest 50 ms: below -66 dBFS nobody speaks; else it is brought to the level of the training
_QUIET, _SPEECH, _MOST_GAIN = 5e-4, 0.15, 30
_LEAST_CONFIDENCE = 0.4
_NO_WORD = float(np.log(0.9))  # a frame that is surer than this to be none isn't part of a word

_CLASSES = 1 + len(TOKENS)
_ANSWERS = _CLASSES + 2  # log-probabilities, then the seconds since the word's start and until its end
_DIGITS: Final = {**{digit: digit for digit in "0123456789"}, "oh": "0"}
_TIMES: Final = {"double": 2, "triple": 3}
_OPEN_ENDED: Final = {*map(str, range(20, 100, 10)), "hundred"}
# Seconds of silence after which 'forty' and 'one', or 'double' and 'four', don't belong together; no word is longer
# than the third
_TOGETHER, _REPEATED, _SETTLED = 0.4, 1.0, 1.0
_SHORTEST_WORD = 0.04

_FEWEST, _LONGEST_GAP, _SLOWEST, _LEAST_MEAN_CONFIDENCE = 12, 2.5, 0.8, 0.65

Samples = NDArray[np.float32]


def mel_bank(warp: float = 1.0) -> Samples:
    """Triangular filters from 120 to 3800 Hz, shape (129, 40); `warp` scales the speaker's frequencies (training)."""

    def mel(hertz: Any) -> Any:
        return 2595 * np.log10(1 + hertz / 700)

    edges = 700 * (10 ** (np.linspace(mel(120), mel(3800), MEL_BANDS + 2) / 2595) - 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = np.arange(_FFT // 2 + 1) * SAMPLE_RATE / _FFT * warp
    filters = np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle))
    return np.ascontiguousarray(np.maximum(0, filters).T, np.float32)


_BANK = mel_bank()
_HANN = np.hanning(_SPAN).astype(np.float32)


def features(samples: Samples, bank: Samples = _BANK) -> Samples:
    """Log-mel energies each 10 ms, free of level and channel: shape (frames, 40) for at least 200 samples."""
    spans = np.lib.stride_tricks.sliding_window_view(samples, _SPAN)[::_STEP] * _HANN
    power = np.abs(np.fft.rfft(spans, _FFT)).astype(np.float32) ** 2
    # in blocks, because BLAS gives a larger product to all cores, and they spin for longer than it takes
    blocks = np.zeros((-(-len(power) // _BLOCK), _BLOCK, power.shape[1]), np.float32)
    blocks.reshape(-1, power.shape[1])[: len(power)] = power
    energies = np.log((blocks @ bank).reshape(-1, MEL_BANDS)[: len(power)] + np.float32(1e-5))
    normal: Samples = (energies - energies.mean(0)) / (energies.std() + np.float32(1e-3))
    return normal


def model_version() -> str:
    """Names the model in an engine's version: the same string, the same answers."""
    return f"digits-{MODEL_SHA[:12]}"


class SpokenDigits:
    """Hears digits in one channel, fed in chunks of any size; the symbols don't depend on the chunking.

    Keeps at most 14 s of sound beyond the chunk it is given. A digit is reported at most 8 s after it was said (14 s
    if it hangs on the next word, as that of 'forty' does), or by `finish`.
    """

    def __init__(self) -> None:
        self._chunks: list[Samples] = []
        self._from = self._until = 0  # what the chunks are of the recording, in samples
        self._next_window = 0
        self._held = np.zeros((0, _ANSWERS), np.float32)  # answers of the last window from the seam on
        self._held_from = 0  # in frames of the recording
        # the word now open: its class; start, end (s) and chance of its surest frame; the chance that it wasn't said
        self._kind, self._surest, self._missed = 0, (0.0, 0.0, 0.0), 1.0
        self._spoken_until = 0.0
        self._words: list[_Word] = []  # whose digits hang on what is said next

    def feed(self, samples: Samples) -> list[Symbol]:
        """Takes mono float32 in [-1, 1] at 8 kHz; the digits that are now certain, in order of time."""
        self._chunks.append(np.array(samples, np.float32))
        self._until += len(samples)
        found: list[Symbol] = []
        while self._until >= self._next_window + _WINDOW:
            # the window stays in memory: should the recording end soon, the last window reaches back into it
            audio = self._sound(self._next_window)
            found += self._hear(audio[:_WINDOW], self._next_window, last=False)
            self._next_window += _HOP
        return found

    def finish(self) -> list[Symbol]:
        """The digits up to the end of the recording; nothing may be fed afterwards."""
        start = max(self._from, -(-(self._until - _WINDOW) // FRAME) * FRAME)
        return self._hear(self._sound(start), start, last=True)

    def _sound(self, start: int) -> Samples:
        """Everything from `start` on; what lies before is let go."""
        if len(self._chunks) != 1:  # a recording fed in one piece is not copied for each window
            self._chunks = [np.concatenate([np.zeros(0, np.float32), *self._chunks])]
        audio = self._chunks[0][start - self._from :]
        self._chunks, self._from = [audio], start
        return audio

    def _hear(self, window: Samples, start: int, *, last: bool) -> list[Symbol]:
        answers = _answers(window)
        first = start // FRAME
        if len(self._held):
            cut = _seam(self._held, answers[self._held_from - first :])
            answers = np.concatenate([self._held[:cut], answers[self._held_from - first + cut :]])
            first = self._held_from
        keep = len(answers) if last else start // FRAME + _SEAM_BEGINS - first
        self._held, self._held_from = answers[keep:], first + keep
        self._read(answers[:keep], first)
        if last:
            self._close()
        until = np.inf if last else (first + keep) * FRAME / SAMPLE_RATE - _SETTLED
        found, self._words = _spell(self._words, until)
        return found

    def _read(self, answers: Samples, first: int) -> None:
        """Each stretch of one class is a word, with the edges of its surest frame; it may have begun before.

        A word's chance is often shared by two frames, and 'nothing' is likelier in either: so their chances are joined.
        """
        kinds, chances = _likeliest(answers)
        for at in np.flatnonzero((kinds > 0) | (np.diff(kinds, prepend=-1) != 0)).tolist():
            kind, chance = int(kinds[at]), float(chances[at])
            if kind != self._kind:
                self._close()
                self._kind, self._surest, self._missed = kind, (0.0, 0.0, 0.0), 1.0
            if kind:
                self._missed *= 1 - min(1.0, chance)
                if chance > self._surest[2]:
                    now = (first + at) * FRAME / SAMPLE_RATE
                    self._surest = now - float(answers[at, -2]), now + float(answers[at, -1]), chance

    def _close(self) -> None:
        """The stretch of one class is over; words don't overlap, even if their edges are a little off."""
        start, end, _ = self._surest
        confidence = 1 - self._missed
        if self._kind and confidence >= _LEAST_CONFIDENCE:
            start = max(start, self._spoken_until)
            self._spoken_until = max(end, start + _SHORTEST_WORD)
            self._words.append(_Word(TOKENS[self._kind - 1], start, self._spoken_until, confidence))
        self._kind = 0


@dataclass(frozen=True, slots=True)
class _Word:
    said: str
    start: float
    end: float
    confidence: float


def _spell(words: Sequence[_Word], until: float) -> tuple[list[Symbol], list[_Word]]:
    """The digits that the words stand for ('double four': 44, 'forty one eleven': 4111), and the words left for later.

    Left is a last word whose digits may hang on one that begins at `until` (s) or later.
    """
    found: list[Symbol] = []
    at = 0
    while at < len(words):
        word, times = words[at], _TIMES.get(words[at].said, 0)
        patience = _REPEATED if times else _TOGETHER if word.said in _OPEN_ENDED else 0.0
        if at + 1 == len(words) and patience and word.end + patience >= until:
            break
        after = words[at + 1] if patience and at + 1 < len(words) else None
        if after and after.start - word.end > patience:
            after = None
        ones = _DIGITS.get(after.said, "") if after else ""
        if times:  # without a digit after it, it is another 'double'
            if after and ones:
                found += _shared(ones * times, word.start, after.end, min(word.confidence, after.confidence))
                at += 1
        elif word.said == "hundred":
            rest = "0" if ones else "" if after and after.said.isdigit() else "00"
            found += _shared(rest, word.start, word.end, word.confidence)
        elif word.said in _OPEN_ENDED and ones and ones != "0":
            found += _shared(word.said[0], word.start, word.end, word.confidence)
        else:
            found += _shared(_DIGITS.get(word.said, word.said), word.start, word.end, word.confidence)
        at += 1
    return found, list(words[at:])


def _shared(chars: str, start: float, end: float, confidence: float) -> list[Symbol]:
    """Digits said in one word, each with an equal part of its time."""
    each = (end - start) / max(1, len(chars))
    return [Symbol(char, start + n * each, start + (n + 1) * each, confidence) for n, char in enumerate(chars)]


def dense_runs(symbols: Sequence[Symbol]) -> list[list[Symbol]]:
    """Stretches in which somebody reads out a number as long as a card's, in order of time.

    Every digit of a stretch is among some 12 in a row that follow each other by at most 2.5 s, come at 0.8 a
    second or faster and are on average at least 0.65 certain.
    """
    if len(symbols) < _FEWEST:
        return []
    starts = np.array([symbol.start for symbol in symbols])
    ends = np.array([symbol.end for symbol in symbols])
    sums = np.concatenate([[0.0], np.cumsum([symbol.confidence for symbol in symbols])])
    breaks = np.concatenate([[0], np.cumsum(starts[1:] - ends[:-1] > _LONGEST_GAP)])
    first = np.arange(len(symbols) - _FEWEST + 1)
    last = first + _FEWEST - 1
    dense = (breaks[first] == breaks[last]) & (ends[last] - starts[first] <= _FEWEST / _SLOWEST)
    sure = sums[last + 1] - sums[first] >= _LEAST_MEAN_CONFIDENCE * _FEWEST
    runs: list[list[Symbol]] = []
    reached = 0
    for begin in np.flatnonzero(dense & sure).tolist():
        if begin < reached:
            runs[-1] += symbols[reached : begin + _FEWEST]
        else:
            runs.append(list(symbols[begin : begin + _FEWEST]))
        reached = begin + _FEWEST
    return runs


def _likeliest(answers: Samples) -> tuple[NDArray[np.int64], Samples]:
    """For each frame its likeliest word, 0 where there is hardly a chance of any, and the word's chance."""
    words = answers[:, 1:_CLASSES]
    best = words.argmax(1)
    return np.where(answers[:, 0] < _NO_WORD, best + 1, 0), np.exp(words[np.arange(len(words)), best])


def _seam(before: Samples, after: Samples) -> int:
    """The frame at which `after` takes over: the middle of the longest stretch that both hear as no digit.

    A digit may peak a frame earlier in one window than in the other; cut through it, and it is lost or doubled.
    """
    blank = (_likeliest(before[:_SEAM_FRAMES])[0] == 0) & (_likeliest(after[:_SEAM_FRAMES])[0] == 0)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], blank, [False]]).astype(np.int8)))
    if not len(edges):
        return len(blank) // 2
    begins, ends = edges[::2], edges[1::2]
    longest = int((ends - begins).argmax())
    return int(begins[longest] + ends[longest]) // 2


def _answers(samples: Samples) -> Samples:
    """The network's answers, shape (frames of 40 ms, blank and tokens and two edges)."""
    loudest = _loudest(samples)
    if loudest < _QUIET:
        silence = np.full((-(-len(samples) // FRAME), _ANSWERS), -30, np.float32)
        silence[:, 0] = 0
        return silence
    gain = np.float32(min(_SPEECH / loudest, _MOST_GAIN))
    answers: Samples = network("digits.onnx", MODEL_SHA).run(None, {"features": features(samples * gain)[None]})[0][0]
    return answers


def _loudest(samples: Samples) -> float:
    """RMS of the loudest 50 ms; 0 for less than the network can take."""
    if len(samples) < _SHORTEST:
        return 0.0
    blocks = samples[: len(samples) // 400 * 400].reshape(-1, 400)
    return float(np.sqrt(np.einsum("ij,ij->i", blocks, blocks).max() / 400))
