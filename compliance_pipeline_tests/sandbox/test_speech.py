"""The synthesiser: the same words give the same samples, whatever was said before and on however many threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from compliance_pipeline.sandbox.speech import SAMPLE_RATE, SpeechError, resample, speak, voice_variants

SENTENCE = "my card number is four one one one"


def test_speech_is_mono_float32_within_one_and_lasts_as_long_as_the_words_need() -> None:
    said = speak(SENTENCE)
    assert said.dtype == np.float32
    assert said.ndim == 1
    assert 0.2 < np.abs(said).max() <= 1
    assert 1.5 < len(said) / SAMPLE_RATE < 4


def test_an_utterance_does_not_depend_on_those_before_it() -> None:
    first = speak(SENTENCE, voice="en-us+f2")
    speak("something else in between", voice="en-gb+klatt3", rate=220)
    assert np.array_equal(first, speak(SENTENCE, voice="en-us+f2"))


def test_threads_get_the_samples_that_one_thread_gets() -> None:
    voices = ["en-us", "en-gb", "en-us+f2", "en-gb+m3"] * 4
    alone = {voice: speak(SENTENCE, voice=voice) for voice in set(voices)}
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda voice: speak(SENTENCE, voice=voice), voices))
    assert all(np.array_equal(alone[voice], said) for voice, said in zip(voices, together, strict=True))


def test_voice_variant_rate_and_pitch_are_heard() -> None:
    plain = speak(SENTENCE)
    for other in (speak(SENTENCE, voice="en-us+f2"), speak(SENTENCE, voice="en-gb"), speak(SENTENCE, pitch=90)):
        assert len(other) != len(plain) or not np.allclose(other, plain, atol=0.01)
    assert len(speak(SENTENCE, rate=260)) < 0.8 * len(plain)
    assert "f2" in voice_variants()


@pytest.mark.parametrize("voice", ["xx", "xx+f1", "en-us+nobody"])
def test_an_unknown_voice_is_an_error_that_names_it(voice: str) -> None:
    with pytest.raises(SpeechError, match=voice.replace("+", r"\+")):
        speak(SENTENCE, voice=voice)


def test_rate_and_pitch_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="rate 20"):
        speak(SENTENCE, rate=20)
    with pytest.raises(ValueError, match="pitch 101"):
        speak(SENTENCE, pitch=101)


def test_no_words_are_no_samples() -> None:
    assert len(speak("  ")) == 0


@pytest.mark.parametrize(("hertz", "least", "most"), [(300, -0.1, 0.1), (3400, -0.3, 0.1), (4600, -200, -60)])
def test_resampling_keeps_the_telephone_band_and_lets_nothing_fold_into_it(
    hertz: int, least: float, most: float
) -> None:
    tone = np.sin(2 * np.pi * hertz * np.arange(22050) / 22050).astype(np.float32)
    heard = resample(tone, 22050, SAMPLE_RATE)
    assert len(heard) == SAMPLE_RATE
    decibels = 20 * np.log10(np.sqrt(2) * heard[200:-200].std() + 1e-12)
    assert least <= decibels <= most
