"""Keyed digits for tests and benchmarks: tones after ITU-T Q.23/Q.24, line effects, and how far two strings differ."""

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

_KEYS = "123A456B789C*0#D"
_ROWS, _COLUMNS = (697, 770, 852, 941), (1209, 1336, 1477, 1633)


def keyed(
    digits: str,
    *,
    on_s: float = 0.07,
    off_s: float = 0.07,
    dbfs: float = -13.0,
    twist_db: float = 0.0,
    detune: float = 0.0,
    seed: int = 0,
) -> Samples:
    """dbfs: level of a tone pair whose tones are equal, each 3 dB below; twist_db: high tone above low tone."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(on_s * 8000)) / 8000
    amplitude = 10 ** (dbfs / 20)
    parts = [np.zeros(1600)]
    for digit in digits:
        row, column = divmod(_KEYS.index(digit), 4)
        tones = [
            amplitude * 10 ** (sign * twist_db / 40) * np.sin(2 * np.pi * hertz * (1 + detune) * t + phase)
            for sign, hertz, phase in zip((-1, 1), (_ROWS[row], _COLUMNS[column]), rng.uniform(0, 6.28, 2), strict=True)
        ]
        parts += [tones[0] + tones[1], np.zeros(round(off_s * 8000))]
    return np.concatenate([*parts, np.zeros(1600)]).astype(np.float32)


def mu_law(samples: Samples) -> Samples:
    """There and back through 8 bits (the curve of ITU-T G.711, not its segments)."""
    code = np.sign(samples) * np.round(np.log1p(255 * np.minimum(np.abs(samples), 1)) / np.log(256) * 127) / 127
    return np.asarray(np.sign(code) * (256 ** np.abs(code) - 1) / 255, np.float32)


def noisy(samples: Samples, snr_db: float, seed: int = 0) -> Samples:
    """White noise, as far below the tones as `snr_db` says."""
    power = np.mean(samples[np.abs(samples) > 0] ** 2)
    noise = np.random.default_rng(seed).standard_normal(len(samples))
    return np.asarray(samples + noise * np.sqrt(power / 10 ** (snr_db / 10)), np.float32)


def some_digits(seed: int, count: int = 16) -> str:
    return "".join(np.random.default_rng(seed).choice(list("0123456789"), count))


def edits(heard: str, truth: str) -> int:
    """Substitutions, losses and insertions (Levenshtein)."""
    row = list(range(len(truth) + 1))
    for at, char in enumerate(heard, 1):
        above, row = row, [at]
        for column, wanted in enumerate(truth, 1):
            row.append(min(above[column] + 1, row[-1] + 1, above[column - 1] + (char != wanted)))
    return row[-1]
