"""What the tone detector owes: ITU-T Q.24's limits, the same answer for any chunks, and silence about speech."""

import io
import tracemalloc

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.tones import VOICES, ragtime, speech
from compliance_pipeline.sandbox.speech import speak
from compliance_pipeline.screening.findings import Symbol
from compliance_pipeline.screening.tones import SETTLE_SECONDS, ToneDetector, detect_tones
from compliance_pipeline_tests.screening.keypad import Samples, edits, keyed, mu_law, noisy, some_digits

KEYS = "0123456789*#ABCD"
SEEDS = range(4)


def heard(samples: Samples) -> str:
    return "".join(symbol.char for symbol in detect_tones(samples))


def coded(samples: Samples, container: str, codec: str, rate: int) -> Samples:
    """There and back through a lossy codec."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate, stream.layout = 16_000, "mono"
        frame = av.AudioFrame.from_ndarray(
            (np.clip(samples[None], -1, 1) * 32767).astype(np.int16), format="s16", layout="mono"
        )
        frame.sample_rate = 8000
        resampler = av.AudioResampler(stream.format, "mono", rate, frame_size=stream.codec_context.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    file.seek(0)
    back = av.AudioResampler("fltp", "mono", 8000)
    with av.open(file, "r") as received:
        frames = [part for frame in received.decode(audio=0) for part in back.resample(frame)]
    return np.concatenate([part.to_ndarray()[0] for part in frames + back.resample(None)])


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


@pytest.mark.parametrize("twist_db", [-8, 4, 6])
@pytest.mark.parametrize("seed", SEEDS)
def test_twist_within_the_limits_is_heard(twist_db: float, seed: int) -> None:
    assert heard(mu_law(keyed(KEYS, on_s=0.04, off_s=0.04, twist_db=twist_db, seed=seed))) == KEYS


@pytest.mark.parametrize("snr_db", [10, 6, 3, 0])
@pytest.mark.parametrize("seed", SEEDS)
def test_noise_even_as_loud_as_the_tones_costs_no_digit(snr_db: float, seed: int) -> None:
    digits = some_digits(seed)
    assert heard(mu_law(noisy(keyed(digits, seed=seed), snr_db, seed))) == digits


@pytest.mark.parametrize("below_db", [12, 6, 0])
@pytest.mark.parametrize("seed", range(6))
def test_speech_even_as_loud_as_the_tones_costs_no_digit(below_db: float, seed: int) -> None:
    digits = some_digits(seed)
    assert heard(mu_law(speech(keyed(digits, on_s=0.1, off_s=0.1, seed=seed), below_db, seed))) == digits


@pytest.mark.parametrize("off_s", [0.04, 0.06])
@pytest.mark.parametrize("seed", SEEDS)
def test_bursts_of_23_ms_are_no_digits(off_s: float, seed: int) -> None:
    assert heard(keyed(KEYS, on_s=0.023, off_s=off_s, seed=seed)) == ""
    assert heard(mu_law(keyed(KEYS, on_s=0.023, off_s=off_s, seed=seed))) == ""


def test_a_short_burst_among_digits_is_none() -> None:
    parts = [keyed("12", seed=1)[:-1600], keyed("7", on_s=0.023)[1600:-1600], keyed("34", seed=2)[1600:]]
    assert heard(np.concatenate(parts)) == "1234"


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
    samples = np.concatenate([keyed("5555"), np.zeros(20 * 8000, np.float32)])
    came_s = []
    for start in range(0, len(samples), 800):
        came_s += [(start + 800) / 8000] * len(detector.feed(samples[start : start + 800]))
    assert len(came_s) == 4
    assert max(came_s) < 0.8 + SETTLE_SECONDS + 0.1


def _line(samples: Samples, effect: str, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    match effect:
        case "mu-law":
            return mu_law(samples)
        case "clipped":
            return np.clip(samples, -0.7 * samples.max(), 0.7 * samples.max())
        case "echo":
            delay = int(rng.integers(80, 800))
            return samples + 0.15 * np.pad(samples, (delay, 0))[: len(samples)]
        case "noise":
            return noisy(samples, float(rng.uniform(6, 20)), seed)
        case "mp3":
            return coded(samples, "mp3", "libmp3lame", 8000)
        case "opus":
            return coded(samples, "ogg", "libopus", 48_000)
    return samples


@settings(max_examples=30, deadline=None)
@given(
    digits=st.text("0123456789*#", min_size=8, max_size=16),
    on_s=st.floats(0.05, 0.15),
    off_s=st.floats(0.05, 0.15),
    dbfs=st.floats(-30, -7),
    twist_db=st.floats(-8, 4),
    detune=st.floats(-0.015, 0.015),
    effect=st.sampled_from(["clean", "mu-law", "clipped", "echo", "noise", "mp3", "opus"]),
    size=st.integers(40, 20_000),
    seed=st.integers(0, 1000),
)
def test_digits_survive_the_line(
    digits: str,
    on_s: float,
    off_s: float,
    dbfs: float,
    twist_db: float,
    detune: float,
    effect: str,
    size: int,
    seed: int,
) -> None:
    sent = keyed(digits, on_s=on_s, off_s=off_s, dbfs=dbfs, twist_db=twist_db, detune=detune, seed=seed)
    received = np.asarray(_line(sent, effect, seed), np.float32)
    assert "".join(symbol.char for symbol in in_chunks(received, [size])) == digits


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(["white", "pink", "piano", "speech", "sweep", "pulses"]),
    seed=st.integers(0, 10_000),
    dbfs=st.floats(-40, -3),
)
def test_noise_speech_and_music_hold_no_digits(kind: str, seed: int, dbfs: float) -> None:
    rng = np.random.default_rng(seed)
    t = np.arange(20 * 8000) / 8000
    sound: NDArray[np.floating]
    match kind:
        case "white":
            sound = rng.standard_normal(len(t))
        case "pink":
            spectrum = np.fft.rfft(rng.standard_normal(len(t)))
            sound = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), len(t))
        case "piano":
            sound = ragtime(20, seed)
        case "speech":
            text = "We will call back about the invoice between nine and five, on any day but the second."
            sound = speak(text, voice=VOICES[seed % 6], rate=int(rng.integers(110, 220)), pitch=int(rng.integers(100)))
        case "sweep":
            sound = np.sin(2 * np.pi * (300 * t + rng.uniform(10, 150) * t**2 / 2))
        case _:
            sound = np.sign(np.sin(2 * np.pi * rng.uniform(80, 700) * t))
    assert heard(mu_law(np.asarray(sound / np.abs(sound).max() * 10 ** (dbfs / 20), np.float32))) == ""


def test_of_digits_that_are_given_a_confidence_as_many_are_right() -> None:
    wrong = total = 0
    expected_wrong = 0.0
    for seed in range(40):
        digits = some_digits(seed)
        found = detect_tones(mu_law(noisy(keyed(digits, seed=seed), -4, seed)))
        total += len(found)
        expected_wrong += sum(1 - symbol.confidence for symbol in found)
        wrong += edits("".join(symbol.char for symbol in found), digits) - (len(digits) - len(found))
    assert total > 200
    assert wrong <= 2 * expected_wrong + 2


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
