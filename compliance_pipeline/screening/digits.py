"""Spoken digits in a stream of telephone speech: features, the CTC recogniser, and runs dense enough to be a card.
Whether a run is a card number (Luhn, IIN) is decided in `numbers`; training is in `training/`, outside the package."""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compliance_pipeline.screening.findings import Symbol

SAMPLE_RATE: Final = 8000
MEL_BANDS: Final = 40
FRAME: Final = 320
"""Samples from one answer of the network to the next (40 ms)."""
MODEL_SHA: Final = "a2a7026651d3a27767e59f38ac2da0807aa20cecb6c3a1bbe849776ef75c0dd9"
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
_BEFORE, _AFTER = 0.2, 0.12  # seconds from a word's edges to its answer, at the median

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


class ModelError(RuntimeError):
    """The model's file is missing or is not the one that this code was measured with."""


def model_version() -> str:
    """Names the model in an engine's version: the same string, the same answers."""
    return f"digits-{MODEL_SHA[:12]}"


class SpokenDigits:
    """Hears digits in one channel, fed in chunks of any size; the symbols don't depend on the chunking.

    Keeps at most 14 s of sound beyond the chunk it is given. A digit is reported at most 8 s after it was said,
    or by `finish`.
    """

    def __init__(self) -> None:
        self._chunks: list[Samples] = []
        self._from = self._until = 0  # what the chunks are of the recording, in samples
        self._next_window = 0
        self._held = np.zeros((0, 11), np.float32)  # answers of the last window from the seam on
        self._held_from = 0  # in frames of the recording
        self._open: _Run | None = None

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
        answers = _log_probabilities(window)
        first = start // FRAME
        if len(self._held):
            cut = _seam(self._held, answers[self._held_from - first :])
            answers = np.concatenate([self._held[:cut], answers[self._held_from - first + cut :]])
            first = self._held_from
        keep = len(answers) if last else start // FRAME + _SEAM_BEGINS - first
        self._held, self._held_from = answers[keep:], first + keep
        found = self._read(answers[:keep], first)
        if last and self._open:
            found.append(self._open.symbol())
            self._open = None
        return [symbol for symbol in found if symbol.confidence >= _LEAST_CONFIDENCE]

    def _read(self, answers: Samples, first: int) -> list[Symbol]:
        """Best path: each stretch of one class is a digit; it may have begun in the call before."""
        found: list[Symbol] = []
        chances = np.exp(answers.max(1))
        for frame, (kind, chance) in enumerate(zip(answers.argmax(1).tolist(), chances.tolist(), strict=True), first):
            if self._open and self._open.kind != kind:
                found.append(self._open.symbol())
                self._open = None
            if kind:
                self._open = self._open or _Run(kind, frame)
                self._open.last = frame
                self._open.confidence = max(self._open.confidence, chance)
        return found


@dataclass(slots=True)
class _Run:
    kind: int
    first: int
    last: int = 0
    confidence: float = 0.0

    def symbol(self) -> Symbol:
        seconds = FRAME / SAMPLE_RATE
        start = max(0.0, self.first * seconds - _BEFORE)
        return Symbol(str(self.kind - 1), start, (self.last + 1) * seconds + _AFTER, self.confidence)


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


def _seam(before: Samples, after: Samples) -> int:
    """The frame at which `after` takes over: the middle of the longest stretch that both hear as no digit.

    A digit may peak a frame earlier in one window than in the other; cut through it, and it is lost or doubled.
    """
    blank = (before[:_SEAM_FRAMES].argmax(1) == 0) & (after[:_SEAM_FRAMES].argmax(1) == 0)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], blank, [False]]).astype(np.int8)))
    if not len(edges):
        return len(blank) // 2
    begins, ends = edges[::2], edges[1::2]
    longest = int((ends - begins).argmax())
    return int(begins[longest] + ends[longest]) // 2


def _log_probabilities(samples: Samples) -> Samples:
    """The network's answers, shape (frames of 40 ms, blank and ten digits)."""
    loudest = _loudest(samples)
    if loudest < _QUIET:
        silence = np.full((-(-len(samples) // FRAME), 11), -30, np.float32)
        silence[:, 0] = 0
        return silence
    gain = np.float32(min(_SPEECH / loudest, _MOST_GAIN))
    answers: Samples = _session().run(None, {"features": features(samples * gain)[None]})[0][0]
    return answers


def _loudest(samples: Samples) -> float:
    """RMS of the loudest 50 ms; 0 for less than the network can take."""
    if len(samples) < _SHORTEST:
        return 0.0
    blocks = samples[: len(samples) // 400 * 400].reshape(-1, 400)
    return float(np.sqrt(np.einsum("ij,ij->i", blocks, blocks).max() / 400))


_session_lock = threading.Lock()
_sessions: list[Any] = []


def _session() -> Any:
    """The process's one session: a session may run on many threads, and each would cost memory."""
    with _session_lock:
        if not _sessions:
            import onnxruntime

            path = Path(__file__).parent / "models" / "digits.onnx"
            try:
                model = path.read_bytes()
            except OSError as problem:
                raise ModelError(
                    f"the digit model {path} can't be read ({problem}): reinstall the package"
                ) from problem
            if hashlib.sha256(model).hexdigest() != MODEL_SHA:
                raise ModelError(
                    f"the digit model {path} is not the one with SHA-256 {MODEL_SHA}: reinstall the package"
                )
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            _sessions.append(onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]))
        return _sessions[0]
