"""Speech to text: windows stitched without a word lost or doubled; models that can't be used refused in clear words.

What Whisper does with the audio is asked of a real CTranslate2 model, which a fixture makes: 0.5 MB, and it says the
same three words of whatever it hears.
"""

import os
import random
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compliance_pipeline.sandbox.speech import speak
from compliance_pipeline.screening.recogniser import (
    OVERLAP_S,
    SAMPLE_RATE,
    WINDOW_S,
    FasterWhisper,
    Recogniser,
    RecogniserError,
    Transcriber,
    Word,
    _at_16_khz,
    recogniser_from,
    stitch,
)

REAL_MODEL = os.environ.get("COMPLIANCE_TEST_WHISPER_MODEL")
NEEDS_WHISPER = pytest.mark.skipif(
    find_spec("faster_whisper") is None,
    reason="faster-whisper is not installed: pip install 'compliance-pipeline[whisper]'",
)
SAID = ["my", "card", "number"]


# --- stitching


def spoken(rng: random.Random, seconds: float, texts: Sequence[str]) -> list[Word]:
    """Words one after the other, with pauses, some of them long."""
    words: list[Word] = []
    at = 0.0
    while True:
        at += rng.choice((0.05, 0.1, 0.4, 3.0, 9.0))
        length = rng.uniform(0.15, 0.7)
        if at + length > seconds:
            return words
        words.append(Word(rng.choice(texts), at, at + length))
        at += length


def heard_in(words: Sequence[Word], start: float, end: float, rng: random.Random) -> list[Word]:
    """What a recogniser makes of a window: times a little off, and words that the edges cut garbled or lost."""
    heard = []
    for word in words:
        if word.end_s <= start or word.start_s >= end:
            continue
        off = rng.uniform(-0.05, 0.05)
        cut = word.start_s < start or word.end_s > end
        if not cut:
            heard.append(Word(word.text, word.start_s + off, word.end_s + off))
        elif rng.random() < 0.7:
            heard.append(Word("uh", max(word.start_s, start), min(word.end_s, end)))
    return heard


@given(st.integers(0, 10**6), st.sampled_from([("one", "two", "three"), ("one",)]))
@settings(max_examples=200, deadline=None)
def test_two_windows_give_every_word_once(seed: int, texts: tuple[str, ...]) -> None:
    rng = random.Random(seed)
    words = spoken(rng, 55, texts)
    first, second = heard_in(words, 0, 30, rng), heard_in(words, 25, 55, rng)
    assert [word.text for word in stitch(first, second, 25, 30)] == [word.text for word in words]


def test_windows_that_share_no_word_are_joined_at_the_middle() -> None:
    before = [Word("four", 26, 26.4), Word("won", 27, 27.4), Word("uh", 29, 29.4)]
    after = [Word("for", 26, 26.4), Word("one", 27, 27.3), Word("two", 28.8, 29.4)]
    assert [word.text for word in stitch(before, after, 25, 30)] == ["four", "won", "two"]
    assert stitch([], after, 0, 0) == after
    assert stitch(before, [], 25, 30) == before[:2]


def test_a_word_is_the_same_with_other_punctuation() -> None:
    before, after = [Word("Recorded.", 27, 27.5), Word("ca", 29.8, 30)], [Word("recorded", 27.1, 27.5)]
    assert stitch(before, after, 25, 30) == [before[0]]


# --- transcribing


class Levels(Recogniser):
    """Reads words from audio in which each is a stretch of samples of one level: a recogniser without an ear."""

    version = "levels-1"

    def __init__(self) -> None:
        self.longest_s = 0.0

    def words(self, samples: NDArray[np.float32]) -> list[Word]:
        self.longest_s = max(self.longest_s, len(samples) / SAMPLE_RATE)
        level = np.concatenate([[0], np.round(samples * 100), [0]])
        edges = np.flatnonzero(np.diff(level))
        return [
            Word(f"w{int(level[start + 1])}", float(start) / SAMPLE_RATE, float(end) / SAMPLE_RATE)
            for start, end in pairwise(edges)
            if level[start + 1]
        ]


def sounding(words: Sequence[Word], seconds: float) -> NDArray[np.float32]:
    samples = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    for word in words:
        samples[round(word.start_s * SAMPLE_RATE) : round(word.end_s * SAMPLE_RATE)] = int(word.text[1:]) / 100
    return samples


@given(seed=st.integers(0, 10**6), seconds=st.floats(0, 200), block=st.integers(1_000, 600_000))
@settings(max_examples=25, deadline=None)
def test_any_blocks_give_the_same_turns_with_every_word_once(seed: int, seconds: float, block: int) -> None:
    words = spoken(random.Random(seed), seconds, [f"w{n}" for n in range(1, 90)])
    samples = sounding(words, seconds)
    recogniser = Levels()
    transcriber = Transcriber(recogniser, "agent")
    turns = []
    for start in range(0, len(samples), block):
        turns += transcriber.feed(samples[start : start + block])
    turns += transcriber.finish()
    assert " ".join(turn.text for turn in turns).split() == [word.text for word in words]
    assert tuple(turns) == Levels().transcribe(samples, "agent")
    assert recogniser.longest_s <= WINDOW_S
    for turn, following in pairwise(turns):
        assert turn.end_ms is not None
        assert turn.start_ms < turn.end_ms <= following.start_ms


def test_a_pause_of_a_second_parts_two_turns_and_times_are_the_recordings() -> None:
    words = [Word("w1", 1, 1.5), Word("w2", 1.9, 2.25), Word("w3", 3.5, 4)]
    turns = Levels().transcribe(sounding(words, 5), "customer", offset_s=100)
    assert [(t.speaker, t.start_ms, t.end_ms, t.text) for t in turns] == [
        ("customer", 101_000, 102_250, "w1 w2"),
        ("customer", 103_500, 104_000, "w3"),
    ]


def test_who_never_pauses_is_heard_in_turns_of_a_minute() -> None:
    words = [Word("w1", n * 0.5, n * 0.5 + 0.4) for n in range(400)]
    turns = Levels().transcribe(sounding(words, 200), "customer")
    assert [turn.end_ms - turn.start_ms for turn in turns if turn.end_ms][:3] == [59_900] * 3
    assert sum(len(turn.text.split()) for turn in turns) == 400


def test_a_turn_comes_as_soon_as_it_is_complete_and_no_more_than_a_window_is_kept() -> None:
    transcriber = Transcriber(Levels(), "agent")
    second = sounding([Word("w7", 0.1, 0.5)], 3)
    given_after = []
    for n in range(100):
        given_after += [n] * len(transcriber.feed(second))
        assert transcriber._length <= WINDOW_S * SAMPLE_RATE
    assert given_after[0] == WINDOW_S // 3 - 1
    assert len(given_after) + len(transcriber.finish()) == 100


def test_nothing_in_gives_nothing_out_and_a_transcriber_can_be_finished_twice() -> None:
    transcriber = Transcriber(Levels(), "agent")
    assert transcriber.finish() == []
    assert transcriber.feed(sounding([Word("w1", 1, 2)], OVERLAP_S)) == []
    assert len(transcriber.finish()) == 1
    assert transcriber.finish() == []


def test_a_word_does_not_show_itself() -> None:
    assert "4111" not in repr(Word("4111111111111111", 0, 1))


@pytest.mark.parametrize("hz", [300, 1000, 3400])
def test_audio_gets_twice_the_rate_and_nothing_above_the_telephone_band(hz: int) -> None:
    tone = np.sin(2 * np.pi * hz * np.arange(8000) / 8000).astype(np.float32)
    wanted = np.sin(2 * np.pi * hz * np.arange(16000) / 16000)
    doubled = _at_16_khz(tone)
    assert (doubled.dtype.name, len(doubled)) == ("float32", 16000)
    assert np.abs(doubled - wanted)[200:-200].max() < 0.01
    assert len(_at_16_khz(tone[:0])) == 0


# --- models that can't be used


def test_without_the_setting_there_is_no_recogniser() -> None:
    assert recogniser_from(None) is None


@pytest.mark.parametrize("name", ["tiny", "Systran/faster-whisper-tiny", "nowhere"])
def test_a_folder_that_is_not_there_is_refused_and_not_looked_for_on_a_hub(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecogniserError, match=r"COMPLIANCE_RECOGNISER_MODEL: .*is not a folder"):
        recogniser_from(tmp_path / name)


@pytest.mark.parametrize("lost", ["model.bin", "config.json", "tokenizer.json", "vocabulary.json"])
def test_what_is_missing_in_the_folder_is_named(tmp_path: Path, lost: str) -> None:
    for name in {"model.bin", "config.json", "tokenizer.json", "vocabulary.json"} - {lost}:
        (tmp_path / name).touch()
    with pytest.raises(RecogniserError, match=f"COMPLIANCE_RECOGNISER_MODEL: .*lacks {lost}"):
        recogniser_from(tmp_path)


@pytest.mark.skipif(find_spec("faster_whisper") is not None, reason="faster-whisper is installed")
def test_without_the_library_the_error_says_what_to_install(tmp_path: Path) -> None:
    for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.json"):
        (tmp_path / name).touch()
    with pytest.raises(RecogniserError, match=r"COMPLIANCE_RECOGNISER_MODEL .*pip install .*\[whisper\]"):
        recogniser_from(tmp_path)


# --- a model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make_model(tmp_path_factory.mktemp("whisper"))


def _make_model(folder: Path) -> Path:
    """A Whisper of one layer whose decoder goes by its position only: it says SAID, and hears word n at second n."""
    import tokenizers  # comes with faster-whisper, as do the other two
    from ctranslate2.specs.model_spec import visit_spec  # type: ignore[import-untyped,import-not-found,unused-ignore]
    from ctranslate2.specs.whisper_spec import WhisperSpec  # type: ignore[import-untyped,import-not-found,unused-ignore]

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    text = [*alphabet, *(f"Ġ{word}" for word in SAID)]
    names = ["endoftext", "startoftranscript", "translate", "transcribe", "startoflm", "startofprev"]
    names += ["nospeech", "notimestamps", *(f"{0.02 * n:.2f}" for n in range(1501))]
    special = [f"<|{name}|>" for name in names]
    tokens = [*text, *special]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({token: at for at, token in enumerate(text)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(special)

    width = 64
    unit = np.eye(width, dtype=np.float32)
    answers = np.zeros((len(tokens), width), np.float32)
    for at, token in enumerate(["<|0.00|>", *(f"Ġ{word}" for word in SAID), "<|4.00|>", "<|endoftext|>"]):
        answers[tokens.index(token), at] = 5
    weights = {
        "decoder/position_encodings/encodings": np.resize(unit, (448, width)),
        "decoder/projection/weight": answers,
        "decoder/layer_0/attention/linear_0/weight": unit,
        "decoder/layer_0/attention/linear_1/weight": np.concatenate([unit, 0 * unit]),
        "encoder/position_encodings/encodings": np.repeat(unit[:30], 50, axis=0),
    }
    shapes = {
        "conv1/weight": (width, 80, 3),
        "conv2/weight": (width, width, 3),
        "embeddings/weight": (len(tokens), width),
        "ffn/linear_0/weight": (4 * width, width),
        "ffn/linear_1/weight": (width, 4 * width),
        "self_attention/linear_0/weight": (3 * width, width),
        "linear_1/weight": (width, width),
        "linear_2/weight": (width, width),
        "beta": (width,),
    }

    def fill(part: Any, name: str, value: Any) -> None:
        if name in weights:
            value = weights[name]
        elif value is None and name.endswith("gamma"):
            value = np.ones(width, np.float32)
        elif value is None:
            value = np.zeros(next(shape for end, shape in shapes.items() if name.endswith(end)), np.float32)
        setattr(part, name.rpartition("/")[2], value)

    spec = WhisperSpec(1, 2, 1, 2)
    visit_spec(spec, fill)
    spec.register_vocabulary(tokens)
    spec.config.alignment_heads = [(0, 0)]
    spec.config.suppress_ids = spec.config.suppress_ids_begin = spec.config.lang_ids = []
    spec.validate()
    spec.optimize()
    spec.save(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def speech(seconds: float) -> NDArray[np.float32]:
    said = speak("This call may be recorded for quality and training purposes, and so on and so forth.")
    return np.resize(said, round(seconds * SAMPLE_RATE))


@NEEDS_WHISPER
def test_whisper_says_when_each_word_was_said(model: Path) -> None:
    words = FasterWhisper(model).words(speech(8))
    assert [word.text for word in words] == SAID
    assert [word.end_s for word in words] == pytest.approx([2, 3, 4], abs=0.1)


@NEEDS_WHISPER
def test_whisper_says_nothing_of_silence_and_of_nothing(model: Path) -> None:
    recogniser = FasterWhisper(model)
    assert recogniser.words(np.zeros(8 * SAMPLE_RATE, np.float32)) == ()
    assert recogniser.transcribe(np.zeros(0, np.float32), "agent") == ()


@NEEDS_WHISPER
def test_whisper_hears_a_long_call_window_by_window(model: Path) -> None:
    turns = FasterWhisper(model).transcribe(speech(2 * WINDOW_S), "agent", offset_s=10)
    step = WINDOW_S - OVERLAP_S
    # The middle of an overlap is 2.5 s into a window: the first word there lies before it.
    assert [turn.text for turn in turns] == ["my card number", "card number", "card number"]
    assert [turn.end_ms for turn in turns] == pytest.approx([1000 * (14 + n * step) for n in range(3)], abs=100)


@NEEDS_WHISPER
def test_other_weights_are_another_version(model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    assert FasterWhisper(other).version == FasterWhisper(model).version
    weights = bytearray((other / "model.bin").read_bytes())
    weights[-1] ^= 1
    (other / "model.bin").write_bytes(weights)
    assert FasterWhisper(other).version != FasterWhisper(model).version


@NEEDS_WHISPER
@pytest.mark.parametrize("damaged", ["model.bin", "tokenizer.json"])
def test_a_damaged_model_is_refused_when_it_is_first_used(model: Path, tmp_path: Path, damaged: str) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    (other / damaged).write_bytes(b"{")
    recogniser = FasterWhisper(other)
    with pytest.raises(RecogniserError, match=r"COMPLIANCE_RECOGNISER_MODEL: .*can't be loaded"):
        recogniser.words(speech(1))


@pytest.mark.skipif(
    not REAL_MODEL,
    reason="COMPLIANCE_TEST_WHISPER_MODEL names no folder with a CTranslate2 Whisper model "
    "(such as a copy of Systran/faster-whisper-small.en)",
)
def test_a_trained_model_hears_a_recording_notice() -> None:
    assert REAL_MODEL
    (turn, *_) = FasterWhisper(Path(REAL_MODEL)).transcribe(speech(8), "agent")
    assert "this call may be recorded" in turn.text.lower().replace(",", "")
