"""The speech gate on synthetic speech, music, tones and noise; the sound it keeps."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from compliance_pipeline.sandbox.speech import speak
from compliance_pipeline.screening import speech
from compliance_pipeline.screening.speech import GATE, KEPT_S, SAMPLE_RATE, RecentSound, speech_share
from compliance_pipeline_tests.screening.keypad import keyed

Samples = NDArray[np.float32]
RNG = np.random.default_rng(1)


def as_float32(samples: NDArray[np.floating]) -> Samples:
    return np.asarray(samples, np.float32)


def read_out(voice: str = "en-us") -> Samples:
    return speak("four nine two nine, eight three four one, five seven two zero, three eight seven zero", voice=voice)


def tune(notes: int = 16, partials: int = 8) -> Samples:
    """Notes with overtones and vibrato, a quarter of a second each."""
    pitch = np.repeat(RNG.choice([196.0, 220, 247, 262, 294, 330, 392], notes), SAMPLE_RATE // 4)
    at = np.arange(len(pitch)) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.015 * np.sin(2 * np.pi * 5.5 * at))) / SAMPLE_RATE
    overtones = np.arange(1, partials + 1)[:, None]
    return as_float32(0.05 * (np.sin(overtones * phase) / overtones).sum(axis=0))


@pytest.mark.parametrize("voice", ["en-us", "en-gb+f4", "en-gb-scotland", "en-us+grandma"])
@pytest.mark.parametrize("level", [1.0, 0.02])
def test_digits_that_somebody_reads_out_are_speech_loud_or_quiet(voice: str, level: float) -> None:
    assert speech_share(as_float32(read_out(voice) * level)) > 0.5


@pytest.mark.parametrize(
    "sound",
    [
        tune(),
        as_float32(RNG.normal(0, 0.1, 4 * SAMPLE_RATE)),
        as_float32(keyed("4929834157203870")),
        as_float32(np.sin(2 * np.pi * 440 * np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE)),
        np.zeros(4 * SAMPLE_RATE, np.float32),
        np.zeros(0, np.float32),
    ],
    ids=["tune", "noise", "keys", "dial tone", "silence", "nothing"],
)
def test_music_noise_tones_and_silence_are_no_speech(sound: Samples) -> None:
    assert speech_share(sound) < GATE


def test_the_share_grows_with_the_speech_in_the_sound() -> None:
    said = read_out()
    half = np.concatenate([said, tune(len(said) * 4 // SAMPLE_RATE)])
    assert GATE < 0.35 * speech_share(said) < speech_share(half) < speech_share(said)


@pytest.mark.parametrize("chunk", [160, 6 * SAMPLE_RATE, 10**7])
def test_kept_sound_is_judged_where_it_was_heard(chunk: int) -> None:
    said, music = read_out(), tune(40)
    sound = np.concatenate([music, said, music])
    recent = RecentSound()
    for at in range(0, len(sound), chunk):
        recent.feed(sound[at : at + chunk])
    before, until = len(music) / SAMPLE_RATE, (len(music) + len(said)) / SAMPLE_RATE
    assert recent.is_speech([(before, until)])
    assert not recent.is_speech([(1.0, before - 2)])
    assert not recent.is_speech([(until + 2, until + 8)])
    assert recent.is_speech([(1.0, before - 2), (before, until)])


def test_sound_is_kept_for_two_minutes_and_what_nobody_can_check_any_more_counts_as_speech() -> None:
    recent = RecentSound()
    for _ in range(30):
        recent.feed(np.zeros(6 * SAMPLE_RATE, np.float32))
    assert recent.size_bytes <= 2 * SAMPLE_RATE * (KEPT_S + 6)
    assert recent.is_speech([(10, 20)])
    assert not recent.is_speech([(100, 120)])


def test_a_model_other_than_the_measured_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Path(speech.__file__).parent / "models" / "silero_vad_8k.onnx"
    assert hashlib.sha256(model.read_bytes()).hexdigest() == speech.SPEECH_MODEL_SHA
    monkeypatch.setattr(speech, "SPEECH_MODEL_SHA", "0" * 64)
    with pytest.raises(match="reinstall the package"):
        speech_share(read_out())
