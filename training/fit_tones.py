"""Fits the two logistic regressions whose constants stand in `screening/tones.py`; prints both and how they differ.
Not shipped, and writes nothing: what a tone is and what is measured of it is the detector's own code.

It comes near the constants, not to them: they were fitted with another synthetic piano and the pieces of music in
another order. With those sounds this code gives them to the last digit; what differs is in training/README.md."""

import argparse
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import av
import numpy as np
from numpy.typing import NDArray

from benchmarks.tones import CARRIER, HOLD_TONES, VOICES, _read, ragtime
from compliance_pipeline.sandbox.speech import speak
from compliance_pipeline.screening import tones
from compliance_pipeline.screening.tones import KEYPAD, SAMPLE_RATE, STEP, Integers, Samples
from compliance_pipeline_tests.screening.keypad import mu_law, noisy

EFFECTS = ("white", "white", "none", "echo", "mp3", "opus", "clip")
RIDGE = 0.01
_BLOCK, _BEFORE, _AFTER = 1000, 40, 60  # steps looked at together, and around them to see a tone whole

Truth = list[tuple[float, float, str]]
"""Start and end in seconds, and the key."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """What the detector takes for tones, in the order of time within each line."""

    key: Integers
    first: Integers
    """Step from the line's start; `last` too."""
    last: Integers
    features: Floats
    """Shape (n, 5), as `tones._measure` gives them."""
    levels_db: Floats
    """Shape (n, 2)."""
    right: NDArray[np.bool_]
    line: Integers

    @classmethod
    def together(cls, parts: Sequence[Self]) -> Self:
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def candidates(samples: Samples, truth: Truth, line: int) -> Candidates | None:
    """Of one line; None where there are none. Each key of the truth is found once, the rest is wrong."""
    samples = np.pad(samples, (_BEFORE * STEP, 80 * STEP))
    work = np.zeros((3, 16 * tones._CAPACITY), np.float32)
    parts = []
    for block in range(0, len(samples) // STEP - 9, _BLOCK):
        part = samples[block * STEP : (block + _BEFORE + _BLOCK + _AFTER) * STEP]
        band = tones._mix_down(part[: len(part) // STEP * STEP], work)
        at, keys = tones._drop_strays(*tones._candidate_windows(band))
        if not len(at):
            continue
        key, first, last = tones._tones(band, at, keys)
        chosen = (last - first >= 2) & (first >= _BEFORE) & (first < _BEFORE + _BLOCK)
        key, first, last = key[chosen], first[chosen], last[chosen]
        if not len(key):
            continue
        features, levels_db, within = tones._measure(band, key, first, last)
        count = np.count_nonzero(within)
        parts.append(
            Candidates(
                key[within],
                first[within] + block - _BEFORE,
                last[within] + block - _BEFORE,
                features[:, within].T,
                levels_db[:, within].T,
                np.zeros(count, bool),
                np.full(count, line),
            )
        )
    if not parts:
        return None
    found = Candidates.together(parts)
    middles = (found.first + found.last + 1) / 2 * STEP / SAMPLE_RATE
    missing = list(truth)
    for number, (key_index, middle) in enumerate(zip(found.key, middles, strict=True)):
        for pressed in missing:
            start, end, digit = pressed
            if KEYPAD[key_index] == digit and start - 0.03 <= middle <= end + 0.03:
                found.right[number] = True
                missing.remove(pressed)
                break
    return found


def coded(samples: Samples, container: str, codec: str, hertz: int, bits_per_second: int) -> Samples:
    """There and back through a lossy codec."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=hertz)
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate, stream.layout = bits_per_second, "mono"
        pcm = (np.clip(samples[None], -1, 1) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    file.seek(0)
    back = av.AudioResampler("fltp", "mono", SAMPLE_RATE)
    with av.open(file, "r") as received:
        frames = [part for frame in received.decode(audio=0) for part in back.resample(frame)]
    return np.concatenate([part.to_ndarray()[0] for part in frames + back.resample(None)])


def keyed_line(seed: int, beneath: Sequence[Samples]) -> tuple[Samples, Truth]:
    """Keys pressed on a telephone line: in four of five lines the tones are unlike and off by up to 1.5%. Something of
    `beneath` sounds with them, or one of EFFECTS is done to them; then mu-law."""
    rng = np.random.default_rng(seed)
    count, hard = int(rng.choice([1, 2, 4, 16, 16, 16])), rng.random() < 0.8
    digits = rng.choice(list("0123456789*#"), count)
    on_s = rng.choice([0.04, rng.uniform(0.04, 0.08), rng.uniform(0.06, 0.2)])
    off_s = rng.choice([0.04, rng.uniform(0.04, 0.15), rng.uniform(0.1, 0.6)])
    amplitude = 10 ** (rng.uniform(-34, -7) / 20)
    twist_db = rng.uniform(-8, 6) if hard else rng.uniform(-2, 2)
    common = rng.uniform(-0.0075, 0.0075)
    own = rng.uniform(-0.0075, 0.0075, 2) if hard else np.zeros(2)
    t = np.arange(round(on_s * SAMPLE_RATE)) / SAMPLE_RATE
    parts = [np.zeros(int(rng.uniform(0.3, 1.5) * SAMPLE_RATE))]
    at, truth = len(parts[0]), []
    for digit in digits:
        row, column = divmod(KEYPAD.index(digit), 4)
        pause = np.zeros(round((off_s * rng.uniform(0.7, 1.5) if off_s > 0.06 else off_s) * SAMPLE_RATE))
        pair = np.zeros_like(t)
        for sign, hertz, off, phase in zip(
            (-1, 1), (tones.ROWS[row], tones.COLUMNS[column]), own, rng.uniform(0, 6.28, 2), strict=True
        ):
            turned = 2 * np.pi * hertz * (1 + hard * common + off) * t + phase
            pair += amplitude * 10 ** (sign * twist_db / 40) * np.sin(turned)
        truth.append((at / SAMPLE_RATE, (at + len(t)) / SAMPLE_RATE, str(digit)))
        parts += [pair, pause]
        at += len(pair) + len(pause)
    parts.append(np.zeros(int(rng.uniform(0.5, 1.5) * SAMPLE_RATE)))
    x = np.concatenate(parts).astype(np.float32)
    kind = int(rng.integers(len(beneath) + len(EFFECTS)))
    if kind < len(beneath):
        start = rng.integers(len(beneath[kind]) - len(x))
        y = beneath[kind][start : start + len(x)]
        loud = np.sqrt(np.mean(y[np.abs(y) > 0.3 * y.std()] ** 2)) if y.std() > 1e-4 else 1
        x = x + y * np.sqrt(np.mean(x[x != 0] ** 2)) / loud * 10 ** (-rng.uniform(-3, 20) / 20)
    else:
        match EFFECTS[kind - len(beneath)]:
            case "white":
                x = noisy(x, rng.uniform(-2 if on_s > 0.06 else 3, 15), seed)
            case "echo":
                delay = int(rng.uniform(100, 800))
                x[delay:] += rng.uniform(0.05, 0.25) * x[:-delay]
            case "clip":
                x = np.clip(x, -amplitude * rng.uniform(0.7, 1.2), amplitude * rng.uniform(0.7, 1.2))
            case "mp3":
                x = coded(x, "mp3", "libmp3lame", SAMPLE_RATE, int(rng.choice([8000, 16000, 24000])))
            case "opus":
                x = coded(x, "ogg", "libopus", 48_000, int(rng.choice([8000, 12000, 16000, 24000])))
    return mu_law(x.astype(np.float32)), truth


def synthetic_piano() -> Samples:
    return np.concatenate([ragtime(60, seed) for seed in range(20)])


def synthetic_speech() -> Samples:
    rng, spoken = np.random.default_rng(0), []
    for voice in VOICES:
        for rate, pitch in zip(rng.integers(110, 220, 5), rng.integers(20, 80, 5), strict=True):
            spoken.append(speak(CARRIER * 3, voice=voice, rate=int(rate), pitch=int(pitch)))
    return np.concatenate(spoken)


def recordings(folder: Path) -> Samples:
    """All that a folder holds but tones, with pauses of 0.3 s."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".wav", ".ogg"))
    paths = [path for path in paths if not any(word in path.name for word in HOLD_TONES)]
    if not paths:
        raise SystemExit(f"no .wav or .ogg in {folder}: name another folder, or leave it out")
    return np.concatenate([part for path in paths for part in (_read(path), np.zeros(2400, np.float32))])


def corpus(seed: int, lines: int, beneath: Sequence[Samples], alone: Iterable[Samples]) -> tuple[Candidates, int]:
    """The candidates in keyed lines and in what has no keys in it, and how many keys were pressed."""
    parts, pressed = [], 0
    for number in range(lines):
        samples, truth = keyed_line(seed + number, beneath)
        parts.append(candidates(samples, truth, number))
        pressed += len(truth)
    for number, samples in enumerate(alone, lines):
        parts.append(candidates(samples, [], number))
    return Candidates.together([part for part in parts if part]), pressed


def logistic(columns: Floats, right: NDArray[np.bool_]) -> Floats:
    """Bias and weights, by Newton's method."""
    inputs = np.column_stack([np.ones(len(columns)), columns])
    weights = np.zeros(inputs.shape[1])
    for _ in range(40):
        p = tones._probability(inputs @ weights)
        gradient = inputs.T @ (right - p) - RIDGE * weights
        hessian = (inputs * (p * (1 - p))[:, None]).T @ inputs + RIDGE * np.eye(len(weights))
        weights += np.linalg.solve(hessian, gradient)
    return weights


def neighbours(found: Candidates, log_odds: Floats) -> Floats:
    """How many likely digits of like level are near each, as `ToneDetector._settle` counts them; echoes don't count."""
    fainter = (np.diff(found.levels_db, axis=0) < -tones.MAX_ECHO_DB).all(axis=1)
    again = (np.diff(found.line) == 0) & (np.diff(found.key) == 0)
    echo = again & fainter & (found.first[1:] - found.last[:-1] <= tones.ECHO_STEPS)
    likely = tones._probability(log_odds) * ~np.concatenate([[False], echo])
    count = np.zeros(len(likely))
    for line in np.unique(found.line):
        of = np.flatnonzero(found.line == line)
        near = np.abs(found.first[of, None] - found.first[of]) <= tones._LINK
        np.fill_diagonal(near, False)
        unlike = (found.levels_db[of, None] - found.levels_db[of]) / tones.LIKE_LEVEL_DB
        count[of] = (near * np.exp(-(unlike**2).sum(axis=2))) @ likely[of]
    return np.minimum(count, tones.MAX_NEIGHBOURS)


def confidence(found: Candidates, first: Floats, second: Floats) -> Floats:
    log_odds = first[0] + found.features @ first[1:]
    return tones._probability(second[0] + second[1] * log_odds + second[2] * neighbours(found, log_odds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beneath", type=Path, nargs="*", default=[], help="folders of recordings, under tones too")
    parser.add_argument("--alone", type=Path, nargs="*", default=[], help="folders of recordings, never under tones")
    parser.add_argument("--lines", type=int, default=1200, help="how many lines with keys pressed")
    parser.add_argument("--seed", type=int, default=0, help="of the first line; the next has the next")
    args = parser.parse_args()
    sounds = {folder: recordings(folder) for folder in dict.fromkeys([*args.beneath, *args.alone])}
    piano, speech = synthetic_piano(), synthetic_speech()
    beneath = [*(sounds[folder] for folder in args.beneath), piano, speech, speech]
    alone = [*sounds.values(), piano, speech]
    found, pressed = corpus(args.seed, args.lines, beneath, alone)

    first = logistic(found.features, found.right)
    log_odds = first[0] + found.features @ first[1:]
    second = logistic(np.column_stack([log_odds, neighbours(found, log_odds)]), found.right)
    kept_first = np.array([tones.BIAS, *tones.WEIGHTS])
    kept_second = np.array([tones.NEIGHBOUR_BIAS, tones.NEIGHBOUR_SLOPE, tones.PER_NEIGHBOUR])

    minutes = sum(map(len, alone)) / SAMPLE_RATE / 60
    print(f"{pressed} keys, {found.right.sum()} of them among {len(found.key)} candidates; {minutes:.0f} min without")
    print("| constant | fitted | in tones.py | difference |\n|---|---|---|---|")
    names = ["BIAS", *(f"WEIGHTS[{at}]" for at in range(5)), "NEIGHBOUR_BIAS", "NEIGHBOUR_SLOPE", "PER_NEIGHBOUR"]
    for name, new, old in zip(names, [*first, *second], [*kept_first, *kept_second], strict=True):
        print(f"| {name} | {new:.3f} | {old:.3f} | {new - old:+.3f} |")
    held_new, held_old = (
        confidence(found, *pair) >= tones.MIN_CONFIDENCE for pair in ((first, second), (kept_first, kept_second))
    )
    print("\n| reported | right | wrong |\n|---|---|---|")
    for name, held in (("as fitted", held_new), ("as in tones.py", held_old), ("by one only", held_new ^ held_old)):
        print(f"| {name} | {(held & found.right).sum()} | {(held & ~found.right).sum()} |")


if __name__ == "__main__":
    main()
