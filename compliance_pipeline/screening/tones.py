"""Keyed digits: a streaming, vectorised DTMF detector after ITU-T Q.24. Speech and number rules live elsewhere.

Method: 25.6 ms windows every 8 ms; one matrix product gives the power of the eight tones, of side bins 1.6% off
(Q.24's frequency tolerance) and of second harmonics; the phase advance between windows gives the true frequency.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compliance_pipeline.screening.findings import Symbol

SAMPLE_RATE = 8000
WINDOW = 205
HOP = 64
ROWS = np.array([697.0, 770.0, 852.0, 941.0])
COLUMNS = np.array([1209.0, 1336.0, 1477.0, 1633.0])
KEYPAD = "123A456B789C*0#D"

MIN_TONE_SHARE = 0.5
MIN_MEAN_TONE_SHARE = 0.6
MAX_COLUMN_OVER_ROW_DB = 9.0
MAX_ROW_OVER_COLUMN_DB = 12.0
MIN_LEAD_IN_GROUP_DB = 5.0
MAX_SECOND_HARMONIC_DB = -9.0
MAX_FREQUENCY_ERROR = 0.024
MIN_LEVEL_DB = -45.0
MIN_WINDOWS = 3
MIN_SECONDS = 0.031
"""Q.24: at least 40 ms is a digit, at most 23 ms is none."""
MAX_GAP_WINDOWS = 2
MAX_LEVEL_SWING_DB = 6.0
MAX_ECHO_DB = 10.0
ECHO_SECONDS = 0.04

STRONG_SHARE = 0.78
STRONG_SECONDS = 0.045
LINK_SECONDS = 2.0
BURST_DIGITS = 4
BURST_SECONDS = 3.0
SETTLE_SECONDS = LINK_SECONDS + BURST_SECONDS

_BLOCK = SAMPLE_RATE
_ROWS_AT_ONCE = 16
_BEAT = 40  # samples; longer than a beat of any row against any column
_LONGEST_TONE = 10 * SAMPLE_RATE

Samples = NDArray[np.float32]


def _filter_bank() -> Samples:
    tones = np.concatenate([ROWS, COLUMNS])
    frequencies = np.concatenate([tones, tones * 0.984, tones * 1.016, tones * 2])
    n = np.arange(WINDOW) - (WINDOW - 1) / 2
    bank = np.exp(-2j * np.pi * np.outer(n, frequencies) / SAMPLE_RATE)
    return np.concatenate([bank.real, bank.imag], axis=1).astype(np.float32)


_BANK = _filter_bank()
_TONES = np.concatenate([ROWS, COLUMNS])
_STEP = 2 * np.pi * _TONES * HOP / SAMPLE_RATE


def _decibels(a: Samples, b: Samples | float = 1.0) -> Samples:
    return np.asarray(10 * np.log10((a + 1e-12) / (b + 1e-12)), dtype=np.float32)


def _second_largest(group: Samples) -> Samples:
    return np.partition(group, -2, axis=1)[:, -2]


@dataclass(frozen=True, slots=True)
class _Windows:
    key: NDArray[np.int64]
    """Index into KEYPAD, -1 where no valid pair of tones sounds."""
    share: Samples
    level_db: Samples


def _classify(samples: Samples) -> _Windows:
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    # In blocks, because BLAS gives a larger product to all cores, which spin for longer than it takes.
    blocks = np.zeros((-(-len(frames) // _ROWS_AT_ONCE), _ROWS_AT_ONCE, WINDOW), np.float32)
    blocks.reshape(-1, WINDOW)[: len(frames)] = frames
    projected = (blocks @ _BANK).reshape(-1, _BANK.shape[1])[: len(frames)]
    real, imaginary = projected[:, :32], projected[:, 32:]
    power = (real * real + imaginary * imaginary) * np.float32(2 / WINDOW**2)
    tone = np.maximum(np.maximum(power[:, :8], power[:, 8:16]), power[:, 16:24])
    harmonic = power[:, 24:]
    total = np.einsum("ij,ij->i", frames, frames) / WINDOW + 1e-12

    index = np.arange(len(frames))
    row = tone[:, :4].argmax(axis=1)
    column = 4 + tone[:, 4:].argmax(axis=1)
    row_power, column_power = tone[index, row], tone[index, column]
    share = (row_power + column_power) / total
    twist = _decibels(column_power, row_power)

    # The advance is measured against the next and the previous window, the better one counts: at a tone's
    # first and last window only one neighbour holds the same tone.
    phase = np.arctan2(imaginary[:, :8], real[:, :8])
    advance = np.diff(phase, axis=0) - _STEP
    error = np.abs((advance + np.pi) % (2 * np.pi) - np.pi) / _STEP
    unknown = np.full((1, 8), np.inf)
    error = np.minimum(np.concatenate([error, unknown]), np.concatenate([unknown, error]))

    valid = (
        (share > MIN_TONE_SHARE)
        & (twist < MAX_COLUMN_OVER_ROW_DB)
        & (twist > -MAX_ROW_OVER_COLUMN_DB)
        & (_decibels(row_power, _second_largest(tone[:, :4])) > MIN_LEAD_IN_GROUP_DB)
        & (_decibels(column_power, _second_largest(tone[:, 4:])) > MIN_LEAD_IN_GROUP_DB)
        & (_decibels(harmonic[index, row], row_power) < MAX_SECOND_HARMONIC_DB)
        & (_decibels(harmonic[index, column], column_power) < MAX_SECOND_HARMONIC_DB)
        & (error[index, row] < MAX_FREQUENCY_ERROR)
        & (error[index, column] < MAX_FREQUENCY_ERROR)
        & (_decibels(np.minimum(row_power, column_power)) > MIN_LEVEL_DB)
    )
    return _Windows(
        key=np.where(valid, row * 4 + column - 4, -1), share=share, level_db=_decibels(row_power + column_power)
    )


def _loud_seconds(samples: Samples) -> float:
    """How long a burst sounds: the windows are too coarse to tell 23 ms from 40 ms."""
    power = np.convolve(samples * samples, np.full(_BEAT, 1 / _BEAT, np.float32), mode="same")
    return float((power > 0.4 * power.max()).mean() * len(samples) / SAMPLE_RATE)


class ToneDetector:
    """Finds keyed digits in one audio channel; feed it chunks of any size.

    Symbols come out in order, at most SETTLE_SECONDS of audio after they sounded: a weak digit (noise, speech
    beneath) counts only near a strong one or in a burst, and that needs the digits after it. A tone of more than
    10 s is reported once, as if it ended there; so memory is bounded. The chunks make no difference: the work is
    done on blocks of one second.
    """

    def __init__(self) -> None:
        self._fed: Samples = np.zeros(0, dtype=np.float32)
        self._buffer: Samples = np.zeros(0, dtype=np.float32)
        self._position = 0
        self._sounding: tuple[int, int] | None = None
        """Key and sample of a tone that was reported while it went on."""
        self._context = 0
        self._last = (-1, 0.0, 0.0)
        """Key, end and level of the last tone, to know its echo by."""
        self._digits: list[Symbol] = []
        self._settled = 0

    def feed(self, samples: Samples) -> list[Symbol]:
        """samples: float32 in [-1, 1], 8 kHz, one channel."""
        self._fed = np.concatenate([self._fed, samples])
        symbols = []
        while len(self._fed) >= _BLOCK:
            self._buffer = np.concatenate([self._buffer, self._fed[:_BLOCK]])
            self._fed = self._fed[_BLOCK:]
            symbols += self._advance(final=False)
        return symbols

    def finish(self) -> list[Symbol]:
        self._buffer = np.concatenate([self._buffer, self._fed])
        self._fed = self._fed[:0]
        return self._advance(final=True)

    def _advance(self, final: bool) -> list[Symbol]:
        if len(self._buffer) >= WINDOW + HOP:
            self._detect(final)
        # A tone that still sounds is not among the digits yet: what hangs on it has to wait.
        return self._settle(np.inf if final else self._position / SAMPLE_RATE - SETTLE_SECONDS)

    def _detect(self, final: bool) -> None:
        windows = _classify(self._buffer)
        # The last window's neighbour is not there yet, and the first one is kept for its phase only.
        end = len(windows.key) if final else len(windows.key) - 1
        keyed = self._context + np.flatnonzero(windows.key[self._context : end] >= 0)
        keys = windows.key[keyed]
        edges = np.flatnonzero((np.diff(keyed) > MAX_GAP_WINDOWS) | (np.diff(keys) != 0)) + 1
        keep_from = end
        for run in np.split(keyed, edges) if len(keyed) else []:
            key, last = int(windows.key[run[0]]), self._position + int(run[-1]) * HOP
            if self._goes_on(key, self._position + int(run[0]) * HOP):
                self._sounding = key, last
                continue
            open_ended = run[-1] + MAX_GAP_WINDOWS >= end and not final
            if open_ended and len(self._buffer) - run[0] * HOP < _LONGEST_TONE:
                keep_from = int(run[0])
                break
            self._add(windows, run)
            if open_ended:
                self._sounding = key, last
        first = max(keep_from - 1, 0)
        self._context = keep_from - first
        self._buffer = self._buffer[first * HOP :]
        self._position += first * HOP

    def _goes_on(self, key: int, start: int) -> bool:
        if self._sounding is None:
            return False
        sounding, last = self._sounding
        return key == sounding and start - last <= (MAX_GAP_WINDOWS + 1) * HOP

    def _add(self, windows: _Windows, run: NDArray[np.int64]) -> None:
        # MP3 and room echo carry a tone on at a low level before and after it.
        loud = run[windows.level_db[run] > np.percentile(windows.level_db[run], 90) - MAX_ECHO_DB]
        run = run[(run >= loud[0]) & (run <= loud[-1])]
        whole = slice(run[0], run[-1] + 1)
        level = windows.level_db[whole]
        if (
            len(run) < MIN_WINDOWS
            or _loud_seconds(self._buffer[run[0] * HOP : run[-1] * HOP + WINDOW]) < MIN_SECONDS
            or windows.share[run].mean() <= MIN_MEAN_TONE_SHARE
            or np.percentile(level, 90) - np.percentile(level, 25) >= MAX_LEVEL_SWING_DB
        ):
            return
        start = (self._position + int(run[0]) * HOP) / SAMPLE_RATE
        end = (self._position + int(run[-1]) * HOP + WINDOW) / SAMPLE_RATE
        key, loudness = int(windows.key[run[0]]), float(np.median(level))
        before, self._last = self._last, (key, end, loudness)
        if before[0] == key and start - before[1] < ECHO_SECONDS and loudness < before[2] - MAX_ECHO_DB:
            return
        confidence = min(1.0, float(windows.share[whole].mean()))
        self._digits.append(Symbol(KEYPAD[key], start, end, confidence))

    def _settle(self, until: float) -> list[Symbol]:
        """The digits that started before `until` and hold, given all digits known by now."""
        starts = np.array([digit.start for digit in self._digits])
        strong = np.array(
            [d.confidence >= STRONG_SHARE and d.end - d.start >= STRONG_SECONDS for d in self._digits], dtype=bool
        )
        for i in np.flatnonzero(starts[BURST_DIGITS - 1 :] - starts[: 1 - BURST_DIGITS] <= BURST_SECONDS):
            strong[i : i + BURST_DIGITS] = True
        settled = []
        while self._settled < len(self._digits) and starts[self._settled] < until:
            near = np.abs(starts - starts[self._settled]) <= LINK_SECONDS
            if (near & strong).any():
                settled.append(self._digits[self._settled])
            self._settled += 1
        if self._settled:
            past = starts[self._settled - 1] - SETTLE_SECONDS
            forget = int(np.searchsorted(starts[: self._settled], past))
            del self._digits[:forget]
            self._settled -= forget
        return settled


def detect_tones(samples: Samples) -> list[Symbol]:
    """All keyed digits of one whole channel (float32, 8 kHz)."""
    detector = ToneDetector()
    return detector.feed(samples) + detector.finish()
