"""Spoken digits, on synthetic telephone calls with known truth: what is heard, in which chunks, and what is not."""

import hashlib
import itertools
import random
import time
import tracemalloc
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compliance_pipeline.sandbox.speech import speak
from compliance_pipeline.screening import digits
from compliance_pipeline.screening.digits import SAMPLE_RATE, SpokenDigits, dense_runs, model_version
from compliance_pipeline.screening.findings import Symbol
from compliance_pipeline.screening.networks import ModelError

Samples = NDArray[np.float32]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SEEN_VOICES = ("en-us", "en-gb", "en-us+f2", "en-gb-x-rp+f5", "en-us-nyc+m4", "en-029+f1")
# see training/README.md: these variants and this accent were kept for measuring
UNSEEN_VOICES = ("en-us+f4", "en-gb+m3", "en-us+m7", "en-us+steph2", "en-gb+victor", "en-us+grandma")
UNSEEN_ACCENT = ("en-gb-scotland", "en-gb-scotland+f2")
FILLER = (
    "hello, thanks for calling, this is Sandra, how may I help you today?",
    "yes I was looking at the statement and there is a charge on it that I did not make",
    "I understand, let me open your account and see what happened there",
    "the parcel was left at the door of the neighbour although nobody was at home",
    "sure, I can send you a new one, would you like it delivered to the same address?",
    "that would be lovely, thank you very much for your help",
)


def luhn_valid_number(rng: random.Random) -> str:
    body = "4" + "".join(rng.choice("0123456789") for _ in range(14))
    doubled = sum(sum(divmod(int(digit) * (2 - at % 2), 10)) for at, digit in enumerate(body))
    return body + str(-doubled % 10)


def telephone(samples: Samples) -> Samples:
    """300-3400 Hz, then the 8-bit steps of mu-law (ITU-T G.711, continuous form)."""
    taps = np.arange(-100, 101)
    band = (0.85 * np.sinc(0.85 * taps) - 0.075 * np.sinc(0.075 * taps)) * np.hamming(201)
    line = np.clip(np.convolve(samples, band, "same"), -1, 1)
    steps = np.round(np.sign(line) * np.log1p(255 * np.abs(line)) / np.log(256) * 127) / 127
    decoded: Samples = (np.sign(steps) * (256 ** np.abs(steps) - 1) / 255).astype(np.float32)
    return decoded


def read_out(card: str) -> str:
    return ", ".join(" ".join(WORDS[int(digit)] for digit in card[at : at + 4]) for at in range(0, 16, 4))


def without_silence(samples: Samples) -> Samples:
    loud = np.flatnonzero(np.abs(samples) > np.abs(samples).max() / 30)
    return samples[loud[0] : loud[-1] + 1]


def card_call(card: str, voice: str, rate: int = 160) -> Samples:
    return np.concatenate(
        [
            speak(FILLER[0], voice="en-us+f3"),
            speak(f"yes sure, my card number is {read_out(card)}, and my name is Morgan", voice=voice, rate=rate),
            speak(FILLER[2], voice="en-us+f3"),
        ]
    )


def hear(samples: Samples, chunk: int = 10**9) -> list[Symbol]:
    detector = SpokenDigits()
    found = [symbol for at in range(0, len(samples), chunk) for symbol in detector.feed(samples[at : at + chunk])]
    return found + detector.finish()


def text(symbols: list[Symbol]) -> str:
    return "".join(symbol.char for symbol in symbols)


@cache
def one_call() -> Samples:
    return telephone(card_call("4111111111111111", "en-us"))


def heard_in(voices: tuple[str, ...], calls: int = 24) -> tuple[float, float]:
    """Shares of calls with a card number in which there is a run, and in which the run has the number exactly."""
    noticed = exact = 0
    for number in range(calls):
        rng = random.Random(number)
        card = luhn_valid_number(rng)
        call = telephone(card_call(card, voices[number % len(voices)], rng.choice((140, 160, 180))))
        runs = dense_runs(hear(call))
        noticed += bool(runs)
        exact += any(card in text(run) for run in runs)
    return noticed / calls, exact / calls


def test_card_numbers_in_voices_of_the_training_are_read_exactly_over_the_telephone() -> None:
    noticed, exact = heard_in(SEEN_VOICES)
    assert noticed == 1
    assert exact >= 0.9


def test_card_numbers_in_voices_that_were_not_in_training_are_mostly_read_exactly_over_the_telephone() -> None:
    noticed, exact = heard_in(UNSEEN_VOICES)
    assert noticed == 1
    assert exact >= 0.85


def test_card_numbers_in_an_accent_that_was_not_in_training_are_noticed() -> None:
    noticed, _ = heard_in(UNSEEN_ACCENT, 10)
    assert noticed == 1


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 30_000), min_size=1, max_size=12))
def test_any_chunking_gives_the_symbols_of_one_feed(sizes: list[int]) -> None:
    call = one_call()
    detector = SpokenDigits()
    found: list[Symbol] = []
    at = turn = 0
    while at < len(call):
        size = sizes[turn % len(sizes)] + 200  # a chunk of one sample would make the test slow, not stricter
        found += detector.feed(call[at : at + size])
        at, turn = at + size, turn + 1
    assert found + detector.finish() == hear(call)
    assert text(found), "the call is long enough for digits before its end"


def test_no_digit_is_lost_or_doubled_where_two_windows_meet() -> None:
    card = "4539148803436467"
    call = speak(read_out(card), voice="en-gb")
    noise = np.random.default_rng(0).standard_normal(len(call) + 8 * SAMPLE_RATE).astype(np.float32) * 1e-3
    for lead in np.arange(0, 6, 0.37):
        line = noise.copy()
        start = int(lead * SAMPLE_RATE)
        line[start : start + len(call)] += call
        assert text(hear(telephone(line))) == card, f"call begins at {lead:.2f} s"


def test_times_are_seconds_of_the_recording_and_lie_on_the_words() -> None:
    before, said, after = speak(FILLER[1]), speak("seven three nine two"), speak(FILLER[3])
    symbols = hear(telephone(np.concatenate([before, said, after])))
    assert text(symbols) == "7392"
    begin, end = len(before) / SAMPLE_RATE, (len(before) + len(said)) / SAMPLE_RATE
    assert begin - 0.2 <= symbols[0].start
    assert symbols[-1].end <= end + 0.2
    assert all(one.start < one.end <= other.start for one, other in itertools.pairwise(symbols))
    assert all(digits._LEAST_CONFIDENCE <= symbol.confidence <= 1.0001 for symbol in symbols)


def test_nine_in_ten_digits_start_and_end_within_a_tenth_of_a_second_of_the_word() -> None:
    off: list[tuple[float, float]] = []
    for number, voice in enumerate(SEEN_VOICES + UNSEEN_VOICES):
        rng = random.Random(number)
        said = [rng.randrange(10) for _ in range(12)]
        line, spans = np.zeros(SAMPLE_RATE // 2, np.float32), []
        for digit in said:
            word = without_silence(speak(WORDS[digit], voice=voice, rate=rng.randint(130, 200)))
            spans.append((len(line) / SAMPLE_RATE, (len(line) + len(word)) / SAMPLE_RATE))
            line = np.concatenate([line, word, np.zeros(int(SAMPLE_RATE * rng.uniform(0.03, 0.3)), np.float32)])
        heard = hear(telephone(np.pad(line, (0, SAMPLE_RATE))))
        if text(heard) == "".join(map(str, said)):
            off += [
                (abs(one.start - start), abs(one.end - end)) for one, (start, end) in zip(heard, spans, strict=True)
            ]
    assert len(off) >= 60, "too few lines were read as they were said"
    assert (np.quantile(np.array(off), 0.9, axis=0) <= 0.1).all()


def test_doubles_teens_tens_and_oh_are_mostly_heard_as_the_digits_they_stand_for() -> None:
    read = {
        "four one one one, double four, nine": "4111449",
        "forty one, eleven, eighteen, twenty": "41111820",
        "triple seven, double oh, five": "777005",
        "fifty two, sixty, thirteen, ninety nine": "52601399",
        "five four hundred, double six": "540066",
        "thirty eight, forty six, seventeen, eleven": "38461711",
    }
    right = 0
    for voice in SEEN_VOICES:
        for said, number in read.items():
            call = [speak(FILLER[2], voice=voice), speak(said, voice=voice, rate=150), np.zeros(8000, np.float32)]
            right += text(hear(telephone(np.concatenate(call)))).endswith(number)
    assert right >= 0.7 * len(read) * len(SEEN_VOICES)


def words(said: str, gap: float = 0.1) -> list[digits._Word]:
    """Words of 0.3 s each; a bar is a pause of 0.8 s."""
    found, now = [], 0.0
    for word in said.split():
        if word != "|":
            found.append(digits._Word(word, now, now + 0.3, 0.9))
            now += 0.3 + gap
        else:
            now += 0.8
    return found


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("4 1 oh", "410"),
        ("double 4", "44"),
        ("triple oh 5", "0005"),
        ("double | 4", "44"),
        ("double | | 4", "4"),
        ("double double 4", "44"),
        ("double 12", "12"),
        ("40 1 11", "4111"),
        ("40 | 1", "401"),
        ("40 oh 1", "4001"),
        ("20 20", "2020"),
        ("4 hundred", "400"),
        ("4 hundred 12", "412"),
        ("4 hundred 20 3", "423"),
        ("4 hundred 5", "405"),
        ("double", ""),
    ],
)
def test_words_are_spelled_as_the_digits_of_a_number_read_aloud(said: str, expected: str) -> None:
    symbols, left = digits._spell(words(said), np.inf)
    assert text(symbols) == expected
    assert not left
    assert all(one.end <= other.start + 1e-9 for one, other in itertools.pairwise(symbols))


def test_a_word_waits_for_the_next_only_while_the_next_may_still_belong_to_it() -> None:
    said = words("4 40")
    symbols, left = digits._spell(said, 1.0)
    assert (text(symbols), left) == ("4", said[1:])
    symbols, left = digits._spell([*left, digits._Word("2", 0.8, 1.1, 0.9)], 2.0)
    assert (text(symbols), left) == ("42", [])
    symbols, left = digits._spell(said, 1.2)
    assert (text(symbols), left) == ("440", [])


@given(
    st.lists(st.tuples(st.sampled_from(digits.TOKENS), st.sampled_from([0.0, 0.3, 0.7, 1.5])), max_size=20),
    st.integers(0, 20),
)
def test_words_that_come_in_two_parts_are_spelled_as_if_they_came_in_one(
    said: list[tuple[str, float]], split: int
) -> None:
    every: list[digits._Word] = []
    now = 0.0
    for word, pause in said:
        every.append(digits._Word(word, now, now + 0.3, 0.9))
        now += 0.3 + pause
    until = every[split].start if split < len(every) else np.inf
    first, left = digits._spell(every[:split], until)
    rest, none = digits._spell([*left, *every[split:]], np.inf)
    assert first + rest == digits._spell(every, np.inf)[0]
    assert not none


def test_a_quiet_caller_is_heard_as_a_loud_one_is() -> None:
    assert text(hear(one_call() * np.float32(0.02))) == text(hear(one_call()))


@pytest.mark.parametrize("loud", [0.0, 1e-4, 0.01, 0.3])
def test_silence_and_noise_give_no_run(loud: float) -> None:
    noise = np.random.default_rng(1).standard_normal(60 * SAMPLE_RATE).astype(np.float32) * np.float32(loud)
    assert dense_runs(hear(noise)) == []


def test_conversation_without_numbers_gives_no_run() -> None:
    voices = SEEN_VOICES + UNSEEN_VOICES + UNSEEN_ACCENT
    talk = np.concatenate([speak(sentence, voice=voice) for voice in voices for sentence in FILLER])
    assert len(talk) > 200 * SAMPLE_RATE
    assert dense_runs(hear(telephone(talk))) == []


@pytest.mark.parametrize("length", [0, 1, 199, 839, 840, 8000, 64_000, 64_001, 112_000])
def test_a_recording_of_any_length_ends_without_an_error(length: int) -> None:
    noise = np.random.default_rng(2).standard_normal(length).astype(np.float32) * np.float32(0.1)
    assert dense_runs(hear(noise)) == []


def test_memory_does_not_grow_with_the_recording() -> None:
    hear(one_call())  # the model is loaded
    chunk = np.random.default_rng(3).standard_normal(1600).astype(np.float32) * np.float32(1e-5)
    detector = SpokenDigits()
    tracemalloc.start()
    try:
        for _ in range(5 * 600):
            detector.feed(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000, "ten minutes are 19 MB"


def test_one_thread_screens_at_least_three_hundred_times_as_fast_as_speech() -> None:
    call = np.resize(one_call(), 120 * SAMPLE_RATE)
    hear(call[: 10 * SAMPLE_RATE])
    began = time.process_time()
    hear(call, SAMPLE_RATE)
    assert time.process_time() - began < 120 / 300


def test_the_model_is_the_one_that_the_code_names() -> None:
    model = Path(digits.__file__).parent / "models" / "digits.onnx"
    assert hashlib.sha256(model.read_bytes()).hexdigest() == digits.MODEL_SHA
    assert model.stat().st_size < 1_000_000
    assert model_version() == f"digits-{digits.MODEL_SHA[:12]}"


def test_another_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "MODEL_SHA", "0" * 64)
    with pytest.raises(ModelError, match="reinstall the package"):
        hear(one_call())


def evenly(count: int, every: float = 0.5, confidence: float = 0.9, start: float = 0.0) -> list[Symbol]:
    return [Symbol("4", start + n * every, start + n * every + 0.2, confidence) for n in range(count)]


def test_twelve_digits_are_a_run_and_eleven_are_not() -> None:
    assert dense_runs(evenly(11)) == []
    assert dense_runs(evenly(12)) == [evenly(12)]


def test_slow_uncertain_or_interrupted_digits_are_no_run() -> None:
    assert dense_runs(evenly(19, every=1.4)) == []
    assert dense_runs(evenly(19, confidence=0.6)) == []
    assert dense_runs(evenly(8) + evenly(8, start=8 * 0.5 + 2.6)) == []


def test_a_pause_between_groups_keeps_a_run_together() -> None:
    card = evenly(8) + evenly(8, start=8 * 0.5 + 2.0)
    assert dense_runs(card) == [card]


def test_two_cards_far_apart_are_two_runs() -> None:
    assert dense_runs(evenly(16) + evenly(16, start=60)) == [evenly(16), evenly(16, start=60)]


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.4, 0.8, 1.5, 3.0]), st.sampled_from([0.4, 0.7, 0.95])), max_size=60))
def test_a_digit_is_in_a_run_exactly_if_twelve_around_it_qualify(said: list[tuple[float, float]]) -> None:
    symbols: list[Symbol] = []
    now = 0.0
    for gap, confidence in said:
        symbols.append(Symbol("1", now + gap, now + gap + 0.2, confidence))
        now += gap + 0.2
    expected: set[float] = set()
    for at in range(len(symbols) - 11):
        twelve = symbols[at : at + 12]
        close = all(b.start - a.end <= 2.5 for a, b in itertools.pairwise(twelve))
        fast = 12 / (twelve[-1].end - twelve[0].start) >= 0.8
        if close and fast and np.mean([symbol.confidence for symbol in twelve]) >= 0.65:
            expected |= {symbol.start for symbol in twelve}
    runs = dense_runs(symbols)
    assert {symbol.start for run in runs for symbol in run} == expected
    assert [symbol for run in runs for symbol in run] == sorted((s for r in runs for s in r), key=lambda s: s.start)
