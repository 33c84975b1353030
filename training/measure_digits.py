"""Measures the shipped digit model for its model card: unheard voices, unheard clips of people, noise, false alarms.
Prints Markdown tables; trains nothing and writes nothing."""

import argparse
import inspect
import random
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from scipy.signal import firwin, lfilter
from train_digits import (
    ACCENTS,
    CARRIERS,
    CHAT,
    HELD_OUT_ACCENT,
    HELD_OUT_CLIPS,
    HELD_OUT_VARIANTS,
    NUMBER_WORD,
    WORDS,
    Samples,
    human_digits,
    level,
    mu_law,
    read_wav,
)

from compliance_pipeline.sandbox.speech import SAMPLE_RATE, speak
from compliance_pipeline.screening.digits import SpokenDigits, dense_runs
from compliance_pipeline.screening.findings import Symbol

BAND = firwin(201, [300, 3400], fs=SAMPLE_RATE, pass_zero=False)
SEEN_VOICES = ("en-us", "en-gb", "en-us+f2", "en-gb+m1", "en-gb-x-rp+f5", "en-029+f1", "en-us-nyc+m4", "en-us+Annie")


def telephone(samples: Samples) -> Samples:
    return mu_law(lfilter(BAND, 1, samples).astype(np.float32))


def hear(samples: Samples) -> list[Symbol]:
    detector = SpokenDigits()
    return detector.feed(samples) + detector.finish()


def luhn(rng: random.Random) -> str:
    digits = "4" + "".join(rng.choice("0123456789") for _ in range(14))
    doubled = sum(sum(divmod(int(d) * (2 if at % 2 == 0 else 1), 10)) for at, d in enumerate(digits))
    return digits + str(-doubled % 10)


def distance(said: str, heard: str) -> int:
    row = list(range(len(heard) + 1))
    for at, a in enumerate(said, 1):
        before, row[0] = row[0], at
        for to, b in enumerate(heard, 1):
            before, row[to] = row[to], min(row[to] + 1, row[to - 1] + 1, before + (a != b))
    return row[-1]


def words(card: str) -> str:
    return ", ".join(" ".join(WORDS[int(d)] for d in card[at : at + 4]) for at in range(0, 16, 4))


def synthetic(voice: str, rate: int, carrier: bool) -> Callable[[str, random.Random], Samples]:
    def say(card: str, rng: random.Random) -> Samples:
        text = rng.choice(CARRIERS).format(words(card)) if carrier else words(card)
        return level(speak(text, voice=voice, rate=rate, pitch=rng.randint(35, 65)))

    return say


def human(speaker: list[list[Samples]], around: bool) -> Callable[[str, random.Random], Samples]:
    def say(card: str, rng: random.Random) -> Samples:
        parts = []
        for at, digit in enumerate(card):
            parts.append(rng.choice(speaker[int(digit)]))
            pause = rng.uniform(0.3, 0.7) if at % 4 == 3 else rng.uniform(0.03, 0.2)
            parts.append(np.zeros(int(SAMPLE_RATE * pause), np.float32))
        if around:
            voice = rng.choice(SEEN_VOICES)
            parts = [level(speak(rng.choice(CHAT), voice=voice)), *parts, level(speak(rng.choice(CHAT), voice=voice))]
        return np.concatenate(parts)

    return say


def row(name: str, sayings: Iterable[Callable[[str, random.Random], Samples]], noise: str = "", db: float = 0) -> None:
    wrong = digits = exact = alarms = cards = 0
    for number, say in enumerate(sayings):
        rng = random.Random(f"{name} {number}")
        card = luhn(rng)
        line = np.pad(say(card, rng), (2400, 4000))
        if noise:
            other = np.random.default_rng(number).standard_normal(len(line))
            if noise == "babble":
                other = sum(
                    np.resize(level(speak(rng.choice(CHAT), voice=rng.choice(SEEN_VOICES))), len(line)) for _ in "1234"
                )
            line = line + other * np.sqrt(np.mean(line**2) / np.mean(other**2) / 10 ** (db / 10))
        runs = dense_runs(symbols := hear(telephone(line.astype(np.float32))))
        text = "".join(symbol.char for symbol in symbols)
        wrong, digits = wrong + distance(card, text), digits + len(card)
        exact += any(card in "".join(symbol.char for symbol in run) for run in runs)
        alarms, cards = alarms + bool(runs), cards + 1
    print(f"| {name} | {100 * wrong / digits:.1f}% | {exact}/{cards} | {alarms}/{cards} |", flush=True)


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


def false_alarms(name: str, recordings: list[Samples]) -> None:
    began = time.process_time()
    heard = [hear(recording) for recording in recordings]
    took = time.process_time() - began
    runs = sum(len(dense_runs(symbols)) for symbols in heard)
    minutes = sum(map(len, recordings)) / SAMPLE_RATE / 60
    print(
        f"| {name} | {minutes:.1f} | {sum(map(len, heard)) / minutes:.1f} | {runs} | {60 * minutes / took:.0f}x |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", type=Path, required=True, help="folder with the Free Spoken Digit Dataset's wav")
    parser.add_argument("--left-out", default="", help="measure this speaker only, all clips (not seen in training)")
    parser.add_argument("--clean", type=Path, nargs="*", default=[], help="wav files without digit runs; folders too")
    parser.add_argument("--cards", type=int, default=40, help="cards a row")
    options = parser.parse_args()
    each = range(options.cards)

    print("| spoken card numbers | digit error | exact in a run | run of 12 or more |\n|---|---|---|---|")
    if options.left_out:
        people = human_digits(options.digits, lambda who, _: who == options.left_out)
        for who, clips in people.items():
            row(f"person not in training: {who}", [human(clips, False) for _ in each])
        return
    accents = [f"{accent}+{variant}" for variant in HELD_OUT_VARIANTS for accent in ACCENTS]
    random.Random(0).shuffle(accents)
    row("synthetic, seen voices, 160 wpm", [synthetic(SEEN_VOICES[n % 8], 160, False) for n in each])
    row("synthetic, seen voices, in carrier speech", [synthetic(SEEN_VOICES[n % 8], 160, True) for n in each])
    for rate in (130, 180, 220, 260, 300):
        row(f"synthetic, unseen variants, carrier, {rate} wpm", [synthetic(accents[n], rate, True) for n in each])
    row("synthetic, unseen accent (Scotland), carrier", [synthetic(HELD_OUT_ACCENT, 160, True) for _ in each])
    people = human_digits(options.digits, lambda _, index: index in HELD_OUT_CLIPS)
    for who, clips in people.items():
        row(f"person {who}, unseen clips", [human(clips, False) for _ in each])
    everyone = list(people.values())
    row("people, unseen clips, in synthetic carrier speech", [human(everyone[n % len(everyone)], True) for n in each])
    for noise, db in (("white", 10), ("babble", 15), ("babble", 6)):
        row(
            f"people, unseen clips, {noise} {db} dB",
            [human(everyone[n % len(everyone)], False) for n in each],
            noise,
            db,
        )

    print("\n| without card numbers | minutes | digits a minute | runs | speed |\n|---|---|---|---|---|")
    rng = random.Random(0)
    texts = unheard_text()
    unheard = [speak(rng.choice(texts), voice=rng.choice(accents), rate=rng.randint(130, 220)) for _ in range(500)]
    false_alarms("synthetic filler, unseen voices and text", [np.concatenate(unheard[n::10]) for n in range(10)])
    for path in options.clean:
        files = sorted(path.glob("*.wav")) if path.is_dir() else [path]
        false_alarms(path.name, [read_wav(file) for file in files])
    noise = np.random.default_rng(0).standard_normal((5, 60 * SAMPLE_RATE)).astype(np.float32)
    false_alarms("white noise", list(noise))


if __name__ == "__main__":
    main()
