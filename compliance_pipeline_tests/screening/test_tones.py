"""What the tone detector owes: ITU-T Q.24's limits, the same answer for any chunks, and silence about speech."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance_pipeline.sandbox.speech import speak
from compliance_pipeline.screening.findings import Symbol
from compliance_pipeline.screening.tones import SETTLE_SECONDS, ToneDetector, detect_tones
from compliance_pipeline_tests.screening.keypad import Samples, keyed, mu_law, noisy, some_digits

KEYS = "0123456789*#ABCD"
SEEDS = range(4)


def heard(samples: Samples) -> str:
    return "".join(symbol.char for symbol in detect_tones(samples))


def in_chunks(samples: Samples, sizes: list[int]) -> list[Symbol]:
    detector = ToneDetector()
    found, at, turn = [], 0, 0
    while at < len(samples):
        size = sizes[turn % len(sizes)]
        found += detector.feed(samples[at : at + size])
        at, turn = at + size, turn + 1
    return found + detector.finish()


@pytest.mark.parametrize("dbfs", [-6.1, -13, -25, -40])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_key_is_heard_at_40_ms_on_and_40_ms_off_at_any_level(dbfs: float, seed: int) -> None:
    samples = keyed(KEYS, on_s=0.04, off_s=0.04, dbfs=dbfs, seed=seed)
    assert heard(samples) == KEYS
    assert heard(mu_law(samples)) == KEYS


@pytest.mark.parametrize("detune", [-0.015, 0.015])
@pytest.mark.parametrize("seed", SEEDS)
def test_tones_one_and_a_half_percent_off_are_heard(detune: float, seed: int) -> None:
    assert heard(keyed(KEYS, on_s=0.04, off_s=0.04, detune=detune, seed=seed)) == KEYS


@pytest.mark.parametrize("detune", [-0.035, 0.035])
def test_tones_three_and_a_half_percent_off_are_no_digits(detune: float) -> None:
    assert heard(keyed(KEYS, detune=detune)) == ""


@pytest.mark.parametrize("twist_db", [-8, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_twist_within_the_limits_is_heard(twist_db: float, seed: int) -> None:
    assert heard(mu_law(keyed(KEYS, on_s=0.04, off_s=0.04, twist_db=twist_db, seed=seed))) == KEYS


@pytest.mark.parametrize("snr_db", [10, 6])
@pytest.mark.parametrize("seed", SEEDS)
def test_noise_10_and_6_db_below_the_tones_costs_no_digit(snr_db: float, seed: int) -> None:
    digits = some_digits(seed)
    assert heard(mu_law(noisy(keyed(digits, seed=seed), snr_db, seed))) == digits


@pytest.mark.parametrize("seed", SEEDS)
def test_bursts_of_23_ms_are_no_digits(seed: int) -> None:
    assert heard(keyed(KEYS, on_s=0.023, off_s=0.06, seed=seed)) == ""


def test_a_key_pressed_twice_is_two_digits_and_a_dropout_within_one_is_none() -> None:
    assert heard(keyed("5500")) == "5500"
    whole = keyed("5", on_s=0.2)
    whole[1600 + 800 : 1600 + 840] = 0  # 5 ms; Q.24 wants 10 ms bridged
    assert heard(whole) == "5"


def test_a_tone_with_a_faint_echo_after_it_is_a_digit() -> None:
    samples = keyed("4084", on_s=0.1, off_s=0.1)
    samples[400:] += 0.12 * samples[:-400]
    assert heard(samples) == "4084"


def test_the_times_are_those_of_the_tones() -> None:
    for number, symbol in enumerate(detect_tones(keyed("159", on_s=0.1, off_s=0.1))):
        assert symbol.start == pytest.approx(0.2 + 0.2 * number, abs=0.02)
        assert symbol.end == pytest.approx(0.3 + 0.2 * number, abs=0.02)
        assert symbol.confidence > 0.8


CALL = np.concatenate(
    [
        speak("Please key in your card number now."),
        mu_law(noisy(keyed("4111111111111111#", on_s=0.05, off_s=0.05, seed=3), 12)),
        np.zeros(9 * 8000, np.float32),
        keyed("7", on_s=12.5),
        keyed("123", on_s=0.04, off_s=0.04),
    ]
)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 30_000), min_size=1, max_size=6))
def test_the_symbols_do_not_depend_on_the_chunks(sizes: list[int]) -> None:
    sizes = [max(size, 40) for size in sizes]
    assert in_chunks(CALL, sizes) == detect_tones(CALL)


def test_a_key_held_down_for_long_is_one_digit() -> None:
    assert heard(CALL) == "4111111111111111#7123"
    assert heard(keyed("55", on_s=31.0)) == "55"


def test_a_digit_comes_out_within_the_promised_time() -> None:
    detector = ToneDetector()
    samples = np.concatenate([keyed("5555"), np.zeros(10 * 8000, np.float32)])
    came_s = []
    for start in range(0, len(samples), 800):
        came_s += [(start + 800) / 8000] * len(detector.feed(samples[start : start + 800]))
    assert len(came_s) == 4
    assert max(came_s) < 0.8 + SETTLE_SECONDS + 1.2


def test_silence_noise_and_speech_hold_no_digits() -> None:
    rng = np.random.default_rng(5)
    assert heard(np.zeros(8000 * 20, np.float32)) == ""
    assert heard(rng.normal(0, 0.1, 8000 * 60).astype(np.float32)) == ""
    assert heard(rng.uniform(-1, 1, 100).astype(np.float32)) == ""
    assert detect_tones(np.zeros(0, np.float32)) == []
    text = "Good morning, I am calling about the invoice which you sent to my old address, and about the seven lamps."
    for voice in ("en-us", "en-us+f3", "en-gb", "en-gb+f2", "en-us+m5"):
        for rate in (130, 190):
            assert heard(speak(text, voice=voice, rate=rate)) == ""


@pytest.mark.parametrize("hertz", [350, 425, 440, 480, 620, 1100, 1400, 2100])
def test_the_tones_of_the_line_and_of_faxes_hold_no_digits(hertz: int) -> None:
    t = np.arange(8000 * 5) / 8000
    assert heard((0.3 * np.sin(2 * np.pi * hertz * t)).astype(np.float32)) == ""


@pytest.mark.parametrize("digits", ["", "5"])
def test_memory_stays_bounded_in_silence_and_under_an_endless_tone(digits: str) -> None:
    second = keyed(digits, on_s=1.0)[1600:-1600][:8000] if digits else np.zeros(8000, np.float32)
    detector = ToneDetector()
    for _ in range(15):
        detector.feed(second)
    tracemalloc.start()
    try:
        for _ in range(300):
            detector.feed(second)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 200_000
    assert peak < 10_000_000


def test_many_digits_are_all_heard_and_not_kept() -> None:
    digits = some_digits(9, 600)
    assert heard(keyed(digits)) == digits
