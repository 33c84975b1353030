"""Measures a digit model for its card: unheard people and voices, noise, codecs, pace, word times, false alarms.
Prints Markdown tables; trains nothing and writes nothing."""

import argparse
import inspect
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy.signal import firwin, lfilter
from train_digits import (
    ACCENTS,
    CARRIERS,
    CHAT,
    DOUBLE,
    HELD_OUT_ACCENT,
    HELD_OUT_CLIPS,
    HELD_OUT_FESTIVAL,
    HELD_OUT_VARIANTS,
    HUNDRED,
    NUMBER_WORD,
    OH,
    SPELLED,
    TEN,
    TRIPLE,
    TWENTY,
    WORDS,
    Samples,
    human_words,
    join,
    level,
    mu_law,
    read_wav,
    recode,
    synthesise,
    wav_files,
)

from compliance_pipeline.sandbox.speech import SAMPLE_RATE, speak
from compliance_pipeline.screening import digits, networks
from compliance_pipeline.screening.digits import SpokenDigits, dense_runs
from compliance_pipeline.screening.findings import Symbol

BAND = firwin(201, [300, 3400], fs=SAMPLE_RATE, pass_zero=False)
SEEN_VOICES = ("en-us", "en-gb", "en-us+f2", "en-gb+m1", "en-gb-x-rp+f5", "en-029+f1", "en-us-nyc+m4", "en-us+Annie")
Speaker = dict[int, list[Samples]]
Saying = Callable[[random.Random], tuple[str, Samples]]
"""A number and how it sounds."""

reliability: Counter[tuple[int, bool]] = Counter()


def telephone(samples: Samples) -> Samples:
    return mu_law(lfilter(BAND, 1, samples).astype(np.float32))


def hear(samples: Samples) -> list[Symbol]:
    detector = SpokenDigits()
    return detector.feed(samples) + detector.finish()


def luhn(rng: random.Random) -> str:
    body = "4" + "".join(rng.choice("0123456789") for _ in range(14))
    doubled = sum(sum(divmod(int(d) * (2 if at % 2 == 0 else 1), 10)) for at, d in enumerate(body))
    return body + str(-doubled % 10)


def matched(said: str, heard: str) -> tuple[int, list[bool]]:
    """The edit distance, and for each heard digit whether the best alignment finds it said."""
    costs = np.zeros((len(said) + 1, len(heard) + 1), int)
    costs[:, 0], costs[0] = range(len(said) + 1), range(len(heard) + 1)
    for a in range(1, len(said) + 1):
        for b in range(1, len(heard) + 1):
            same = costs[a - 1, b - 1] + (said[a - 1] != heard[b - 1])
            costs[a, b] = min(costs[a - 1, b] + 1, costs[a, b - 1] + 1, same)
    right = [False] * len(heard)
    a, b = len(said), len(heard)
    while a and b:
        if costs[a, b] == costs[a - 1, b - 1] + (said[a - 1] != heard[b - 1]):
            right[b - 1] = said[a - 1] == heard[b - 1]
            a, b = a - 1, b - 1
        elif costs[a, b] == costs[a - 1, b] + 1:
            a -= 1
        else:
            b -= 1
    return int(costs[-1, -1]), right


def words(card: str) -> str:
    return ", ".join(" ".join(WORDS[int(d)] for d in card[at : at + 4]) for at in range(0, 16, 4))


def synthetic(voice: str, rate: int, carrier: bool) -> Saying:
    def say(rng: random.Random) -> tuple[str, Samples]:
        card = luhn(rng)
        text = rng.choice(CARRIERS).format(words(card)) if carrier else words(card)
        if ":" in voice:
            return card, level(synthesise(text, voice, rng, 1.3))
        return card, level(speak(text, voice=voice, rate=rate, pitch=rng.randint(35, 65)))

    return say


def grouped(card: str, how: str) -> list[list[int]]:
    """The card's tokens in four groups: with 'oh', with doubles and triples, or in pairs ('forty one eleven')."""
    groups = []
    for at in range(0, 16, 4):
        group, tokens = card[at : at + 4], []
        while group:
            same = len(group) - len(group.lstrip(group[0])) if how != "oh" else 1
            pair = int(group[:2]) if len(group) % 2 == 0 else 0
            if how == "double" and same >= 2:
                times = min(same, 3)
                tokens += [DOUBLE if times == 2 else TRIPLE, OH if group[0] == "0" else int(group[0])]
                group = group[times:]
            elif how == "pairs" and pair > 10 and pair % 10 and group[2:] == "00":
                tokens += [TEN + pair - 10] if pair < 20 else [TWENTY + pair // 10 - 2, pair % 10]
                tokens, group = [*tokens, HUNDRED], ""
            elif how == "pairs" and pair >= 10:
                tokens += [TEN + pair - 10] if pair < 20 else [TWENTY + pair // 10 - 2] + [pair % 10] * (pair % 10 > 0)
                group = group[2:]
            else:
                tokens.append(OH if group[0] == "0" else int(group[0]))
                group = group[1:]
        groups.append(tokens)
    return groups


def synthetic_words(voice: str, how: str) -> Saying:
    def say(rng: random.Random) -> tuple[str, Samples]:
        card = list(luhn(rng))
        if how == "double":
            for at in range(1, 16):
                card[at] = card[at - 1] if at % 4 and rng.random() < 0.4 else card[at]
        number = "".join(card)
        text = ", ".join(" ".join(SPELLED[token] for token in group) for group in grouped(number, how))
        return number, level(speak(text, voice=voice, rate=rng.randint(130, 190), pitch=rng.randint(35, 65)))

    return say


def shortened(samples: Samples, seconds: float) -> Samples:
    """In at most so many seconds and with the same pitch (WSOLA: pieces of 30 ms, each where it fits best)."""
    ratio = len(samples) / (seconds * SAMPLE_RATE)
    if ratio <= 1:
        return samples
    window = np.hanning(240).astype(np.float32)
    padded = np.pad(samples, (0, 480))
    result = np.zeros(int(len(samples) / ratio) + 480, np.float32)
    at = 0
    for to in range(0, len(result) - 480, 120):
        wanted = padded[at + 120 : at + 360]
        first = max(0, int(to * ratio) - 60)
        places = np.lib.stride_tricks.sliding_window_view(padded[first : first + 360], 240)
        at = first + int((places @ wanted).argmax()) if to and len(wanted) == 240 else first
        result[to : to + 240] += padded[at : at + 240] * window
    return result[120 : int(seconds * SAMPLE_RATE)]


def human_line(
    speaker: Speaker, groups: list[list[int]], rng: random.Random, fast: bool
) -> tuple[Samples, list[tuple[float, float]]]:
    """Clips of one person side by side, and each word's (start, end) in s; fast: 4.5 words a second, overlapping."""
    line, spans = np.zeros(0, np.float32), []
    for group in groups:
        for at, token in enumerate(group):
            clip = rng.choice(speaker[token])
            if fast:
                clip = shortened(clip, 0.235)
            gap = rng.uniform(0.3, 0.7) if at == 0 else rng.uniform(0.03, 0.2)
            if fast:
                gap = rng.uniform(0.1, 0.3) if at == 0 else rng.uniform(-0.03, 0.0)
            line = join(line, clip, int(SAMPLE_RATE * gap))
            spans.append(((len(line) - len(clip)) / SAMPLE_RATE, len(line) / SAMPLE_RATE))
    return line, spans


def human(speaker: Speaker, around: bool = False, how: str = "", fast: bool = False) -> Saying:
    def say(rng: random.Random) -> tuple[str, Samples]:
        card = luhn(rng)
        plain = [[int(digit) for digit in card[at : at + 4]] for at in range(0, 16, 4)]
        line, _ = human_line(speaker, grouped(card, how) if how else plain, rng, fast)
        if around:
            voice = rng.choice(SEEN_VOICES)
            before, after = (level(speak(rng.choice(CHAT), voice=voice)) for _ in "ab")
            line = np.concatenate([before, line, after])
        return card, line

    return say


def babble(length: int, rng: random.Random) -> Samples:
    return sum(np.resize(level(speak(rng.choice(CHAT), voice=rng.choice(SEEN_VOICES))), length) for _ in "1234")


def row(
    name: str,
    sayings: Iterable[Saying],
    noise: Callable[[int, random.Random], Samples] | None = None,
    db: float = 0,
    codec: tuple[str, int] | None = None,
) -> None:
    wrong = said = exact = alarms = cards = 0
    for number, say in enumerate(sayings):
        rng = random.Random(f"{name} {number}")
        card, spoken = say(rng)
        line = np.pad(spoken, (2400, 4000))
        if noise:
            other = noise(len(line), rng)
            line = line + other * np.sqrt(np.mean(line**2) / np.mean(other**2) / 10 ** (db / 10))
        line = telephone(line.astype(np.float32))
        symbols = hear(recode(line, *codec) if codec else line)
        runs = dense_runs(symbols)
        distance, right = matched(card, "".join(symbol.char for symbol in symbols))
        reliability.update(
            (int(10 * symbol.confidence - 1e-9), good) for symbol, good in zip(symbols, right, strict=True)
        )
        wrong, said = wrong + distance, said + len(card)
        exact += any(card in "".join(symbol.char for symbol in run) for run in runs)
        alarms, cards = alarms + bool(runs), cards + 1
    print(f"| {name} | {100 * wrong / said:.1f}% | {exact}/{cards} | {alarms}/{cards} |", flush=True)


def times(name: str, speaker: Speaker, fast: bool, cards: int) -> None:
    """Errors of start and end (ms) of digits set side by side, against where they were put."""
    starts, ends = [], []
    for number in range(cards):
        rng = random.Random(number)
        card = luhn(rng)
        line, spans = human_line(speaker, [[int(d) for d in card[at : at + 4]] for at in range(0, 16, 4)], rng, fast)
        symbols = hear(telephone(np.pad(line, (2400, 4000)).astype(np.float32)))
        for symbol in symbols:
            middle = (symbol.start + symbol.end) / 2 - 0.3
            at = min(range(16), key=lambda n: abs(sum(spans[n]) / 2 - middle))
            if symbol.char == card[at]:
                starts.append(symbol.start - 0.3 - spans[at][0])
                ends.append(symbol.end - 0.3 - spans[at][1])
    shown = [f"{1000 * np.median(e):+.0f} | {1000 * np.quantile(np.abs(e), 0.9):.0f}" for e in (starts, ends)]
    print(f"| {name} | {len(starts)} | {' | '.join(shown)} |", flush=True)


def unheard_text() -> list[str]:
    """Sentences that were not in training: the docstrings of some large modules."""
    import argparse as a
    import difflib
    import email.message
    import logging
    import statistics
    import tarfile
    import typing
    import unittest.case
    import zipfile

    found = []
    for module in (a, difflib, email.message, logging, statistics, tarfile, typing, unittest.case, zipfile):
        for _, thing in inspect.getmembers(module):
            for _, part in [("", thing), *inspect.getmembers(thing)]:
                found += re.findall(r"[A-Z][a-z ,']{30,150}\.", " ".join((inspect.getdoc(part) or "").split()))
    return sorted({text for text in found if not NUMBER_WORD.search(text)})


def read_audio(path: Path) -> Samples:
    if path.suffix == ".wav":
        return read_wav(path)
    import av

    with av.open(str(path)) as container:
        resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)
        return np.concatenate(
            [f.to_ndarray().ravel() for d in container.decode(audio=0) for f in resampler.resample(d)]
        )


def false_alarms(name: str, recordings: Sequence[Samples]) -> tuple[float, int]:
    """Prints a row; minutes of speech, and the candidates in it."""
    began = time.process_time()
    heard = [hear(recording) for recording in recordings]
    took = time.process_time() - began
    runs = sum(len(dense_runs(symbols)) for symbols in heard)
    minutes = sum(map(len, recordings)) / SAMPLE_RATE / 60
    found = sum(map(len, heard)) / minutes
    print(f"| {name} | {minutes:.1f} | {found:.1f} | {runs} | {60 * minutes / took:.0f}x |", flush=True)
    return minutes, runs


def people_rows(people: dict[str, Speaker], unheard: bool, cards: int) -> None:
    each = range(cards)
    kind = "never heard" if unheard else "heard in training, other clips"
    for who, clips in people.items():
        row(f"{who}, {kind}", [human(clips) for _ in each])
        row(f"{who}, {kind}, in synthetic carrier speech", [human(clips, around=True) for _ in each])
        row(f"{who}, {kind}, fast and overlapping", [human(clips, fast=True) for _ in each])
        row(f"{who}, {kind}, babble 15 dB", [human(clips) for _ in each], babble, 15)
        if OH in clips:
            row(f"{who}, {kind}, 'oh' for zero", [human(clips, how="oh") for _ in each])
            row(f"{who}, {kind}, in pairs ('forty one eleven')", [human(clips, how="pairs") for _ in each])
    print("\n| times of digits | digits | start, median error (ms) | 90% within | end, median | 90% within |")
    print("|---|---|---|---|---|---|")
    for who, clips in people.items():
        times(f"{who}, {kind}", clips, False, cards)
        times(f"{who}, {kind}, fast and overlapping", clips, True, cards)


def noise_rows(people: list[Speaker], music: list[Samples], cards: int) -> None:
    sayings = [human(people[n % len(people)]) for n in range(cards)]

    def white(length: int, rng: random.Random) -> Samples:
        return np.random.default_rng(rng.randrange(10**9)).standard_normal(length)

    def tune(length: int, rng: random.Random) -> Samples:
        piece = rng.choice(music)
        at = rng.randrange(max(1, len(piece) - length))
        return np.resize(piece[at : at + length], length)

    for name, noise, db in (("white", white, 10), ("babble", babble, 15), ("babble", babble, 6), ("music", tune, 10)):
        if music or noise is not tune:
            row(f"people never heard, {name} {db} dB below", sayings, noise, db)
    for codec in (("libopencore_amrnb", 5900), ("libopus", 8000), ("libmp3lame", 8000)):
        row(f"people never heard, through {codec[0].removeprefix('lib')} at {codec[1]} bit/s", sayings, codec=codec)


def synthetic_rows(accents: list[str], cards: int) -> None:
    each = range(cards)
    row("synthetic, seen voices, 160 wpm", [synthetic(SEEN_VOICES[n % 8], 160, False) for n in each])
    row("synthetic, seen voices, in carrier speech", [synthetic(SEEN_VOICES[n % 8], 160, True) for n in each])
    for rate in (130, 180, 220, 260, 300, 330):
        row(f"synthetic, unseen variants, carrier, {rate} wpm", [synthetic(accents[n], rate, True) for n in each])
    row("synthetic, unseen accent (Scotland), carrier", [synthetic(HELD_OUT_ACCENT, 160, True) for _ in each])
    row(
        "synthetic, unseen synthesis (Festival's ked)",
        [synthetic(f"festival:{HELD_OUT_FESTIVAL}", 0, True) for _ in each],
    )
    for how, name in (("oh", "'oh' for zero"), ("double", "'double', 'triple'"), ("pairs", "pairs, teens and tens")):
        row(f"synthetic, unseen variants, {name}", [synthetic_words(accents[n], how) for n in each])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="an ONNX file to measure instead of the one in the package")
    parser.add_argument("--people", type=Path, nargs="*", default=[], help="folders of TOKEN_SPEAKER_INDEX.wav")
    parser.add_argument("--unheard", nargs="*", default=[], help="speakers that the model never heard: all clips")
    parser.add_argument("--heard", nargs="*", default=[], help="speakers in training: the clips kept for measuring")
    parser.add_argument("--clean", type=Path, nargs="*", default=[], help="recordings without digit runs; folders too")
    parser.add_argument("--music", type=Path, nargs="*", default=[], help="the same, and noise under the speech")
    parser.add_argument(
        "--synthetic-hours", type=float, default=0, help="hours of unheard synthetic text; also the rows"
    )
    parser.add_argument("--cards", type=int, default=40, help="cards a row")
    options = parser.parse_args()
    if options.model:
        import onnxruntime

        setup = onnxruntime.SessionOptions()
        setup.intra_op_num_threads = setup.inter_op_num_threads = 1
        networks._loaded["digits.onnx", digits.MODEL_SHA] = onnxruntime.InferenceSession(
            options.model, setup, providers=["CPUExecutionProvider"]
        )

    accents = [f"{accent}+{variant}" for variant in HELD_OUT_VARIANTS for accent in ACCENTS]
    random.Random(0).shuffle(accents)
    music = [read_audio(path) for path in options.music]
    header = "| spoken card numbers | digit error | exact in a run | run of 12 or more |\n|---|---|---|---|"
    for names, unheard in ((options.unheard, True), (options.heard, False)):
        if names:
            print(header)
            everyone = human_words(options.people, lambda _, n, all_clips=unheard: all_clips or n in HELD_OUT_CLIPS)
            people = {who: clips for who, clips in everyone.items() if who in names}
            people_rows(people, unheard, options.cards)
            if unheard:
                print(f"\n{header}")
                noise_rows(list(people.values()), music, options.cards)
            print()
    if options.synthetic_hours:
        print(header)
        synthetic_rows(accents, options.cards)
    if reliability:
        print("\n| confidence | digits | of them right |\n|---|---|---|")
        for tenth in range(10):
            right, wrong = reliability[tenth, True], reliability[tenth, False]
            if right + wrong:
                share = 100 * right / (right + wrong)
                print(f"| {tenth / 10:.1f}-{tenth / 10 + 0.1:.1f} | {right + wrong} | {share:.0f}% |")

    if not (options.clean or options.music or options.synthetic_hours):
        return
    print("\n| without card numbers | minutes | digits a minute | runs | speed |\n|---|---|---|---|---|")
    rows = [false_alarms(path.name, [read_wav(file) for file in wav_files([path])]) for path in options.clean]
    rows += [false_alarms(path.name, [piece]) for path, piece in zip(options.music, music, strict=True)]
    rng, texts = random.Random(0), unheard_text()
    for number in range(round(options.synthetic_hours * 6)):
        said = [np.zeros(0, np.float32)]
        while sum(map(len, said)) < 600 * SAMPLE_RATE:
            said.append(speak(rng.choice(texts), voice=rng.choice(accents), rate=rng.randint(130, 220)))
        rows.append(false_alarms(f"synthetic, unseen voices and text, {number + 1}", [np.concatenate(said)]))
    noise = np.random.default_rng(0).standard_normal((5, 60 * SAMPLE_RATE)).astype(np.float32)
    false_alarms("white noise", list(noise))
    hours, runs = sum(minutes for minutes, _ in rows) / 60, sum(count for _, count in rows)
    bound = {0: 3.0, 1: 4.74, 2: 6.3, 3: 7.75, 4: 9.15, 5: 10.5}.get(runs, runs + 2 * runs**0.5 + 2)
    print(f"\n{runs} runs in {hours:.2f} h without noise: at most {10 * bound / hours:.1f} in 10 h, 95% sure")


if __name__ == "__main__":
    main()
