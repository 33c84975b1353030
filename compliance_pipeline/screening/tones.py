"""Keyed digits: a streaming, vectorised DTMF detector after ITU-T Q.24. Speech and number rules live elsewhere.

Method: the audio is mixed down by each of the eight tones and summed over steps of 8 ms, so that a steady tone is a
nearly constant complex number. Windows of three steps say cheaply where a pair of tones leads its two groups; only
there the steps are looked at one by one: how long both tones last, how steady they are, what else sounds.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compliance_pipeline.screening.findings import Symbol

SAMPLE_RATE = 8000
STEP = 64
WINDOW_STEPS = 3
ROWS = np.array([697.0, 770.0, 852.0, 941.0])
COLUMNS = np.array([1209.0, 1336.0, 1477.0, 1633.0])
KEYPAD = "123A456B789C*0#D"

MIN_WINDOW_SHARE = 0.12
"""Of a window's power, in its two tones. Low, for noise and speech as loud as the tones: it is only a first sieve."""
MIN_WINDOW_LEAD = 0.6
"""Of the power in a group's four tones, in the strongest."""
MAX_COLUMN_OVER_ROW = 10.0
MAX_ROW_OVER_COLUMN = 20.0
"""Ratios of power, 10 and 13 dB: Q.24's +4 and -8 dB, and room for noise and for what lines do."""
MIN_WINDOWS = 4
MAX_MISSED_STEPS = 12
"""Windows of one key this far apart may belong to one tone, if it goes on between them."""
MAX_FREQUENCY_ERROR = 0.024
"""Q.24: 1.8% off is a digit, 3.5% is none."""
MIN_LEVEL = 1e-5
"""Power of each tone, of full scale: -50 dB."""
MIN_STEPS = 4.1
"""Q.24: at least 40 ms is a digit, at most 23 ms is none; those measure 4.9 steps or more and 3.6 or less."""
MAX_GAP_STEPS = 2
"""A longer hole ends the tone. Q.24: 10 ms do not, 40 ms do."""
MAX_ECHO_DB = 10.0
ECHO_STEPS = 5
"""The same key again, sooner and fainter than this, is an echo."""

BIAS = -1.127
WEIGHTS = np.array([0.547, 0.125, -0.094, -0.089, -2.559])
"""Log odds that a tone is a keyed digit: per dB of the two tones over all else, per dB of the lead in its group, per
dB of what sounds in its place before and after it, per percent that it is off.

Logistic regression on 11,465 digits under noise, speech, music, echo, clipping, MP3 and Opus, and on what looked like
digits in 114 minutes of speech and music; `python -m benchmarks.tones` shows how well it is calibrated elsewhere."""
NEIGHBOUR_BIAS, NEIGHBOUR_SLOPE, PER_NEIGHBOUR = -2.899, 0.825, 2.308
"""The same again, knowing how many likely digits of like level are near: keys are seldom pressed once."""
MAX_NEIGHBOURS = 3.0
LIKE_LEVEL_DB = 3.0
LINK_SECONDS = 2.0
CERTAIN_LOG_ODDS = 6.0
MIN_CONFIDENCE = 0.95
"""What is less sure is not reported: a wrong digit spoils a number as a lost one does, and talk is full of them."""

_LINK = round(LINK_SECONDS * SAMPLE_RATE / STEP)

_BLOCK = 1000  # steps: eight seconds, so that what each call of numpy costs is little
_LEAD = 8  # steps kept before what is not decided yet, to see how it began
_TAIL = MAX_MISSED_STEPS + WINDOW_STEPS + 4
_STEPS_AT_ONCE = 250
_LONGEST_TONE = 500  # steps
_CAPACITY = _LONGEST_TONE + _BLOCK + _LEAD + 2 * _TAIL
SETTLE_SECONDS = LINK_SECONDS + (_BLOCK + _TAIL) * STEP / SAMPLE_RATE

Samples = NDArray[np.float32]
Integers = NDArray[np.int64]

_TONES = np.concatenate([ROWS, COLUMNS])


def _bank() -> Samples:
    phase = -2j * np.pi * np.outer(np.arange(STEP), _TONES) / SAMPLE_RATE
    bank = np.exp(phase) * np.sqrt(2) / STEP
    return np.concatenate([bank.real, bank.imag], axis=1).astype(np.float32)


def _turns() -> tuple[Samples, Samples]:
    turn = np.exp(-2j * np.pi * np.outer(_TONES, np.arange(_CAPACITY) * STEP) / SAMPLE_RATE)
    return turn.real.astype(np.float32), np.stack([-turn.imag, turn.imag]).astype(np.float32)


_BANK = _bank()
_COS, _SIN = _turns()
_CHANNELS = np.stack([np.arange(16) // 4, 4 + np.arange(16) % 4])
"""The row's and the column's index among the eight tones, for each key."""
_FIRST = np.zeros(1, np.int64)


@dataclass(frozen=True, slots=True)
class _Baseband:
    parts: Samples
    """Shape (2, 8, steps): each tone's part of the signal (real, imaginary), turning only as fast as it is off."""
    power: Samples
    """Shape (8, steps - 2): of windows of three steps; a tone of amplitude a gives a*a/2."""
    total: Samples
    """Shape (steps,): power of the whole signal."""

    def at(self, channels: Integers, steps: Integers) -> tuple[Samples, Samples]:
        where = channels * len(self.total) + steps
        return self.parts[0].take(where), self.parts[1].take(where)

    def power_at(self, channels: Integers, steps: Integers) -> Samples:
        real, imaginary = self.at(channels, steps)
        real *= real
        imaginary *= imaginary
        real += imaginary
        return real


def _mix_down(samples: Samples, work: Samples) -> _Baseband:
    """work: shape (3, 16 * _CAPACITY), where the result lies until the next call. New arrays would cost as much as the
    arithmetic: the allocator gives their pages back each time."""
    steps = samples.reshape(-1, STEP)
    count = len(steps)
    product, mixed, other = (part[: 16 * count] for part in work)
    by_step = product.reshape(count, 16)
    # BLAS gives a larger product to all cores, which spin for longer than it takes.
    for at in range(0, count, _STEPS_AT_ONCE):
        np.matmul(steps[at : at + _STEPS_AT_ONCE], _BANK, out=by_step[at : at + _STEPS_AT_ONCE])
    np.copyto(mixed.reshape(16, count), by_step.T)
    mixed, parts, other = (part.reshape(2, 8, count) for part in (mixed, product, other))
    np.multiply(mixed, _COS[:, :count], out=parts)
    parts += np.multiply(mixed[::-1], _SIN[:, :, :count], out=other)
    window = work[1, : 16 * (count - 2)].reshape(2, 8, count - 2)
    np.add(parts[:, :, 2:], parts[:, :, 1:-1], out=window)
    window += parts[:, :, :-2]
    window *= window
    power = window[0]
    power += window[1]
    power *= np.float32(1 / WINDOW_STEPS**2)
    return _Baseband(parts, power, np.vecdot(steps, steps) * np.float32(1 / STEP))


def _candidate_windows(band: _Baseband) -> tuple[Integers, Integers]:
    """Index and key of each window in which a pair of tones leads."""
    groups = band.power.reshape(2, 4, -1)
    most = groups.max(axis=1)
    row, column = most
    window_total = band.total[2:] + band.total[1:-1]
    window_total += band.total[:-2]
    window_total *= np.float32(MIN_WINDOW_SHARE / WINDOW_STEPS)
    leads = most > MIN_WINDOW_LEAD * groups.sum(axis=1)
    good = leads[0] & leads[1]
    good &= row + column > window_total
    good &= column < MAX_COLUMN_OVER_ROW * row
    good &= row < MAX_ROW_OVER_COLUMN * column
    good &= row > np.float32(MIN_LEVEL / 10)
    good &= column > np.float32(MIN_LEVEL / 10)
    at = np.flatnonzero(good)
    found = groups.take(at, axis=2).argmax(axis=1)
    return at, found[0] * 4 + found[1]


def _starts(changes: NDArray[np.bool_]) -> Integers:
    """Where the groups start, of things between which there may be changes."""
    return np.concatenate([_FIRST, changes.nonzero()[0] + 1])


def _counts(starts: Integers, total: int) -> Integers:
    counts = np.empty_like(starts)
    np.subtract(starts[1:], starts[:-1], out=counts[:-1])
    counts[-1] = total - starts[-1]
    return counts


def _drop_strays(at: Integers, keys: Integers) -> tuple[Integers, Integers]:
    """Without single windows of another key, and without keys held for too few windows."""
    for least in (2, MIN_WINDOWS):
        if len(at) < MIN_WINDOWS:
            return at[:0], keys[:0]
        starts = _starts((keys[1:] != keys[:-1]) | (at[1:] - at[:-1] > WINDOW_STEPS + 1))
        counts = _counts(starts, len(at))
        kept = np.repeat(counts >= least, counts)
        at, keys = at[kept], keys[kept]
    return at, keys


def _ranges(starts: Integers, lengths: Integers) -> tuple[Integers, Integers, Integers]:
    """The members of many ranges in one array, which range each is of, and where each range begins in it."""
    begin = lengths.cumsum() - lengths
    owner = np.repeat(np.arange(len(starts)), lengths)
    return np.arange(len(owner)) + (starts - begin).take(owner), owner, begin


def _tones(band: _Baseband, at: Integers, keys: Integers) -> tuple[Integers, Integers, Integers]:
    """Key, first and last step of each stretch over which both tones of a key go on."""
    starts = _starts((keys[1:] != keys[:-1]) | (at[1:] - at[:-1] > MAX_MISSED_STEPS))
    counts = _counts(starts, len(at))
    key, start = keys[starts], at[starts]
    # Amplitudes, not powers: a syllable over the tone must not set the measure.
    amplitude = np.sqrt(band.power.take(_CHANNELS.take(keys, axis=1) * band.power.shape[1] + at))
    threshold = 0.25 * (np.add.reduceat(amplitude, starts, axis=1) / counts) ** 2
    step, owner, _ = _ranges(start, at[starts + counts - 1] + WINDOW_STEPS - start)
    power = band.power_at(_CHANNELS.take(key, axis=1).take(owner, axis=1), step)
    on = power > threshold.take(owner, axis=1)
    sounding = np.flatnonzero(on[0] & on[1])
    if not len(sounding):
        return key[:0], key[:0], key[:0]
    step, owner = step[sounding], owner[sounding]
    begin = _starts((owner[1:] != owner[:-1]) | (step[1:] - step[:-1] > MAX_GAP_STEPS + 1))
    end = np.concatenate([begin[1:], [len(step)]]) - 1
    return key[owner[begin]], step[begin], step[end]


_PER_TURN = SAMPLE_RATE / (2 * np.pi * STEP) / _TONES
_AROUND = np.array([[[-1], [1]], [[-2], [2]], [[-3], [3]]])
_LEAST = np.array([[-30.0], [0.0], [-25.0], [-25.0], [0.0]])
_MOST = np.array([[30.0], [20.0], [5.0], [5.0], [10.0]])


def _measure(
    band: _Baseband, key: Integers, first: Integers, last: Integers
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """What speaks for and against each tone (5, tones), its levels in dB (2, tones), and if it is within the limits."""
    pair = _CHANNELS.take(key, axis=1)
    length = last - first + 1
    step, owner, begin = _ranges(first, length)
    real, imaginary = band.at(pair.take(owner, axis=1), step)
    terms = np.zeros((17, len(step)), np.float32)
    power, amplitude, along, across = terms[:8].reshape(4, 2, -1)
    np.multiply(real, real, out=power)
    power += imaginary * imaginary
    np.sqrt(power, out=amplitude)
    # The turn from step to step is how far the tone is off. Between the end of a tone and the next there is none.
    along[:, 1:] = real[:, :-1] * real[:, 1:] + imaginary[:, :-1] * imaginary[:, 1:]
    across[:, 1:] = real[:, :-1] * imaginary[:, 1:] - imaginary[:, :-1] * real[:, 1:]
    terms[4:8, begin] = 0
    terms[8] = band.total.take(step)
    terms[9:] = band.power.take(step - 1, axis=1, mode="clip")
    sums = np.add.reduceat(terms, begin, axis=1).astype(np.float64)
    energy, sum_of_amplitudes, cosines, sines = sums[:8].reshape(4, 2, -1)
    mean = energy / length
    turn = np.abs(np.arctan2(sines, cosines)) * _PER_TURN.take(pair)
    off = np.maximum(turn[0], turn[1])

    around = np.minimum(np.stack([first, last]) + _AROUND, len(band.total) - 1)
    outside = band.power_at(pair[:, None, None], around)
    # With its first and last step, of which a tone may fill only a part.
    edges = outside[:, 0]
    steps = (sum_of_amplitudes + np.add.reduce(np.sqrt(edges), axis=1)) ** 2 / (energy + np.add.reduce(edges, axis=1))
    beside = np.minimum(outside[:, 1], outside[:, 2]) / mean[:, None]

    leads = sums[9:]
    one = np.arange(len(key))
    own = leads[pair, one]
    leads[pair, one] = 1e-12
    lead = own / np.maximum.reduce(leads.reshape(2, 4, -1), axis=1)
    share = np.minimum((energy[0] + energy[1]) / (sums[8] + 1e-12), 1)
    ratios = np.empty((6, len(key)))
    np.divide(share + 0.01, 1.01 - share, out=ratios[0])
    np.minimum(lead[0], lead[1], out=ratios[1])
    np.maximum(beside[0], beside[1], out=ratios[2:4])
    ratios[4:] = mean
    decibels = 10 * np.log10(ratios + 1e-12)
    features = np.empty((5, len(key)))
    features[:4] = decibels[:4]
    features[4] = 100 * off
    np.minimum(np.maximum(features, _LEAST, out=features), _MOST, out=features)
    row, column = mean
    within = (steps[0] >= MIN_STEPS) & (steps[1] >= MIN_STEPS) & (off < MAX_FREQUENCY_ERROR)
    within &= (row > MIN_LEVEL) & (column > MIN_LEVEL)
    within &= (column < MAX_COLUMN_OVER_ROW * row) & (row < MAX_ROW_OVER_COLUMN * column)
    return features, decibels[4:], within


class ToneDetector:
    """Finds keyed digits in one audio channel; feed it chunks of any size.

    Symbols come out in order, at most SETTLE_SECONDS of audio after they ended: a weak digit (noise, speech beneath)
    counts only near others, and that needs the digits after it. Their confidence is the share of such that are right.
    A tone of more than 4 s is reported once, as if it ended there; so memory is bounded. The chunks make no
    difference: the work is done on blocks of eight seconds.
    """

    def __init__(self) -> None:
        self._buffer: Samples = np.zeros(_CAPACITY * STEP, dtype=np.float32)
        self._work: Samples = np.zeros((3, 16 * _CAPACITY), dtype=np.float32)
        # The silence before the first sample is there for a tone that starts with the recording.
        self._filled = _LEAD * STEP
        self._needed = self._filled + _BLOCK * STEP
        self._position = -_LEAD
        """Of the buffer's first step in the recording."""
        self._tones = np.zeros((6, 0))
        """Key, first and last step from the recording's start, log odds, and levels in dB of the row's and the column's
        tone, of those not reported yet and of those that others may still lean on."""
        self._settled = -_LEAD

    def feed(self, samples: Samples) -> list[Symbol]:
        """samples: float32 in [-1, 1], 8 kHz, one channel."""
        symbols: list[Symbol] = []
        taken = 0
        while taken < len(samples):
            count = min(len(samples) - taken, self._needed - self._filled)
            self._buffer[self._filled : self._filled + count] = samples[taken : taken + count]
            self._filled += count
            taken += count
            if self._filled == self._needed:
                symbols += self._advance(final=False)
        return symbols

    def finish(self) -> list[Symbol]:
        """The rest, once, after the last chunk."""
        end = (-(-self._filled // STEP) + _LEAD) * STEP
        self._buffer[self._filled : end] = 0
        self._filled = end
        return self._advance(final=True)

    def _advance(self, final: bool) -> list[Symbol]:
        count = self._filled // STEP
        decided = count if final else count - _TAIL
        keep_from = self._detect(_mix_down(self._buffer[: self._filled], self._work), decided)
        start = keep_from - _LEAD
        self._buffer[: self._filled - start * STEP] = self._buffer[start * STEP : self._filled]
        self._filled -= start * STEP
        self._needed = self._filled + _BLOCK * STEP
        self._position += start
        known = self._position + _LEAD
        return self._settle(known + _CAPACITY if final else known - _LINK)

    def _detect(self, band: _Baseband, decided: int) -> int:
        """Weighs the tones that ended before the step `decided`, and returns the step up to which all is done."""
        at, keys = _drop_strays(*_candidate_windows(band))
        if not len(at):
            return decided
        key, first, last = _tones(band, at, keys)
        # What began before was dealt with; a beginning may come out a step earlier now that its tone is known whole.
        chosen = (last - first >= 2) & (first >= _LEAD - 2)
        key, first, last = key[chosen], first[chosen], last[chosen]
        waiting = np.flatnonzero((last >= decided) & (first > len(band.total) - _LONGEST_TONE))
        if len(waiting):
            decided = min(decided, int(first[waiting[0]]))
            key, first, last = key[: waiting[0]], first[: waiting[0]], last[: waiting[0]]
        if len(key):
            features, levels_db, within = _measure(band, key, first, last)
            tones = np.empty((6, len(key)))
            tones[0] = key
            tones[1] = first + self._position
            tones[2] = last + self._position
            tones[3] = BIAS + WEIGHTS @ features
            tones[4:] = levels_db
            self._add(tones[:, within])
        return decided

    def _add(self, tones: NDArray[np.float64]) -> None:
        known = self._tones.shape[1]
        tones = np.concatenate([self._tones, tones], axis=1)
        earlier, later = tones[:, :-1], tones[:, 1:]
        pause = later[1] - earlier[2]
        fainter = (later[4] < earlier[4] - MAX_ECHO_DB) & (later[5] < earlier[5] - MAX_ECHO_DB)
        dropped = (later[0] == earlier[0]) & ((fainter & (pause <= ECHO_STEPS)) | (pause <= 0))
        dropped[: max(known - 1, 0)] = False
        self._tones = tones if not dropped.any() else tones[:, np.concatenate([[True], ~dropped])]

    def _settle(self, until: int) -> list[Symbol]:
        """The digits that started before the step `until` and hold, given all tones known by now."""
        tones = self._tones
        firsts, log_odds, levels_db = tones[1], tones[3], tones[4:]
        due = slice(*np.searchsorted(firsts, [self._settled, until]))
        self._settled = until
        self._tones = tones[:, np.searchsorted(firsts, until - _LINK) :]
        weighed = NEIGHBOUR_BIAS + NEIGHBOUR_SLOPE * log_odds[due]
        # The others are sure enough by themselves.
        doubtful = (weighed < CERTAIN_LOG_ODDS).nonzero()[0]
        if len(doubtful):
            which = due.start + doubtful
            unlike = (levels_db[:, which, None] - levels_db[:, None]) / LIKE_LEVEL_DB
            alike = np.exp(-(unlike * unlike).sum(axis=0))
            alike[np.abs(firsts[which, None] - firsts) > _LINK] = 0
            alike[np.arange(len(which)), which] = 0
            neighbours = np.minimum(alike @ _probability(log_odds), MAX_NEIGHBOURS)
            weighed[doubtful] += PER_NEIGHBOUR * neighbours
        confidence = _probability(weighed)
        held = (confidence >= MIN_CONFIDENCE).nonzero()[0]
        chosen = tones[:3, due.start + held]
        return list(
            map(
                Symbol,
                map(KEYPAD.__getitem__, chosen[0].astype(np.int64).tolist()),
                np.maximum(chosen[1] * (STEP / SAMPLE_RATE), 0).tolist(),
                ((chosen[2] + 1) * (STEP / SAMPLE_RATE)).tolist(),
                confidence[held].tolist(),
            )
        )


def _probability(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-log_odds)), np.float64)


def detect_tones(samples: Samples) -> list[Symbol]:
    """All keyed digits of one whole channel (float32, 8 kHz)."""
    detector = ToneDetector()
    return detector.feed(samples) + detector.finish()
