"""Speech to text as a plug: who implements `Recogniser` is heard window by window, in memory that does not grow.

What the words break is `policy`'s; transcripts that the platform has come in by `transcripts`.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from compliance_pipeline.screening.transcripts import Turn

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

SAMPLE_RATE: Final = 8000
WINDOW_S: Final = 30.0
"""Whisper reads 30 s at a time, and fills up what is shorter."""
OVERLAP_S: Final = 5.0
SAME_WORD_S: Final = 0.3
"""The same word gets times that differ by up to this in two windows."""
PAUSE_S: Final = 1.0
LONGEST_TURN_S: Final = 60.0
SETTING: Final = "COMPLIANCE_RECOGNISER_MODEL"

Samples = NDArray[np.float32]


class RecogniserError(Exception):
    """The recogniser can't be used. Says what is wrong, by which setting, and what to do."""


@dataclass(frozen=True, slots=True, repr=False)
class Word:
    """One recognised word. Seconds."""

    text: str
    start_s: float
    end_s: float

    @property
    def middle_s(self) -> float:
        return (self.start_s + self.end_s) / 2

    def __repr__(self) -> str:
        return f"Word(<{len(self.text)} characters>, {self.start_s:.2f}-{self.end_s:.2f} s)"


class Recogniser(Protocol):
    """version: changes with everything that can change the words; verdicts are kept under it."""

    version: str

    def words(self, samples: Samples) -> Sequence[Word]:
        """What is said in up to `WINDOW_S` of one speaker (mono, 8 kHz, [-1, 1]), timed from the first sample.

        Called from several threads at once. Raises RecogniserError.
        """
        ...

    def transcribe(self, samples: Samples, speaker: str, offset_s: float = 0.0) -> tuple[Turn, ...]:
        """What one speaker says in audio of any length that starts `offset_s` into the recording."""
        transcriber = Transcriber(self, speaker, offset_s)
        return (*transcriber.feed(samples), *transcriber.finish())


class Transcriber:
    """One audio channel as it arrives: windows that overlap, stitched by their words; holds one window at most."""

    def __init__(self, recogniser: Recogniser, speaker: str, offset_s: float = 0.0) -> None:
        self._recogniser = recogniser
        self._speaker = speaker
        self._start_s = offset_s
        self._parts: list[Samples] = []
        self._length = 0
        self._overlap = 0
        self._unsure: list[Word] = []
        self._turn: list[Word] = []

    def feed(self, samples: Samples) -> list[Turn]:
        """Takes mono samples at 8 kHz; gives the turns that are complete by now. Raises RecogniserError."""
        turns = []
        window, overlap = round(WINDOW_S * SAMPLE_RATE), round(OVERLAP_S * SAMPLE_RATE)
        # In slices: a block may hold several windows.
        for start in range(0, len(samples), window):
            self._parts.append(samples[start : start + window])
            self._length += len(self._parts[-1])
            while self._length >= window:
                held = np.concatenate(self._parts)
                words = self._heard(held[:window])
                sure_until = self._start_s + WINDOW_S - OVERLAP_S
                turns += self._turns(word for word in words if word.middle_s < sure_until)
                self._unsure = [word for word in words if word.middle_s >= sure_until]
                self._start_s = sure_until
                self._parts = [held[window - overlap :].copy()]
                self._length = len(self._parts[0])
                self._overlap = overlap
        return turns

    def finish(self) -> list[Turn]:
        """The turns that the end of the audio completes."""
        words = self._unsure
        if self._length > self._overlap:
            words = self._heard(np.concatenate(self._parts))
        turns = self._turns(words)
        if self._turn:
            turns.append(_turn(self._turn, self._speaker))
        self._parts, self._length, self._overlap, self._unsure, self._turn = [], 0, 0, [], []
        return turns

    def _heard(self, window: Samples) -> list[Word]:
        at = self._start_s
        words = [
            replace(word, start_s=word.start_s + at, end_s=word.end_s + at) for word in self._recogniser.words(window)
        ]
        return stitch(self._unsure, words, at, at + self._overlap / SAMPLE_RATE)

    def _turns(self, words: Iterable[Word]) -> list[Turn]:
        turns = []
        for word in words:
            current = self._turn
            if current and (
                word.start_s - current[-1].end_s >= PAUSE_S or word.end_s - current[0].start_s > LONGEST_TURN_S
            ):
                turns.append(_turn(current, self._speaker))
                self._turn = []
            self._turn.append(word)
        return turns


def _turn(words: Sequence[Word], speaker: str) -> Turn:
    start, end = round(words[0].start_s * 1000), round(words[-1].end_s * 1000)
    return Turn(speaker, start, " ".join(word.text for word in words), end)


def stitch(before: Sequence[Word], after: Sequence[Word], start_s: float, end_s: float) -> list[Word]:
    """The words of two windows that both cover `start_s` to `end_s`, each once.

    What lies at the edge of a window may be half a word. So they are joined at the word, nearest to the middle of the
    overlap, that both windows have at about the same time; where they share none, at the middle.
    """
    middle = (start_s + end_s) / 2
    shared = [
        (abs(mine.middle_s - middle), abs(mine.middle_s - theirs.middle_s), at, then)
        for at, mine in enumerate(before)
        for then, theirs in enumerate(after)
        if start_s <= mine.middle_s <= end_s
        and abs(mine.middle_s - theirs.middle_s) <= SAME_WORD_S
        and _plain(mine.text) == _plain(theirs.text)
    ]
    if shared:
        *_, at, then = min(shared)
        return [*before[: at + 1], *after[then + 1 :]]
    return [
        *(word for word in before if word.middle_s < middle),
        *(word for word in after if word.middle_s >= middle),
    ]


def _plain(text: str) -> str:
    return "".join(char for char in text.casefold() if char.isalnum())


# faster-whisper

_NEEDED: Final = ("model.bin", "config.json", "tokenizer.json")


class FasterWhisper(Recogniser):
    """Whisper on the CPU by faster-whisper (the extra `whisper`), from a folder with a CTranslate2 model.

    The folder is checked at once, the model is loaded when first used. Nothing is ever downloaded. Raises
    RecogniserError.
    """

    def __init__(self, model: Path) -> None:
        self._folder = model.expanduser()
        self._lock = Lock()
        self._model: WhisperModel | None = None
        # faster-whisper takes a name that is no folder for one on a model hub, and fetches a missing tokenizer.
        if not self._folder.is_dir():
            raise RecogniserError(
                f"{SETTING}: {model} is not a folder; it must be one with a CTranslate2 Whisper model "
                f"({', '.join(_NEEDED)}, vocabulary), such as a copy of Systran/faster-whisper-small"
            )
        missing = [name for name in _NEEDED if not (self._folder / name).is_file()]
        if not any(self._folder.glob("vocabulary.*")):
            missing.append("vocabulary.json or vocabulary.txt")
        if missing:
            raise RecogniserError(
                f"{SETTING}: {model} lacks {', '.join(missing)}; copy the whole folder of a CTranslate2 Whisper model"
            )
        try:
            library = version("faster-whisper")
        except PackageNotFoundError:
            raise RecogniserError(
                f"{SETTING} is set but faster-whisper is not installed: "
                "pip install 'compliance-pipeline[whisper]', or unset it"
            ) from None
        self.version = f"faster-whisper-{library}+{_digest(self._folder)}"

    def words(self, samples: Samples) -> tuple[Word, ...]:
        model = self._loaded()
        try:
            segments, _ = model.transcribe(
                _at_16_khz(samples), word_timestamps=True, vad_filter=True, condition_on_previous_text=False
            )
            heard = [word for segment in segments for word in segment.words or ()]
        except (RuntimeError, ValueError) as error:
            raise RecogniserError(
                f"{SETTING}: the model in {self._folder} failed on {len(samples) / SAMPLE_RATE:.1f} s of audio "
                f"({type(error).__name__}); try another model, or unset it"
            ) from None
        # Whisper times the last word of a window beyond its end now and then.
        longest = len(samples) / SAMPLE_RATE
        return tuple(
            Word(word.word.strip(), min(word.start, longest), min(word.end, longest))
            for word in heard
            if word.word.strip()
        )

    def _loaded(self) -> "WhisperModel":
        with self._lock:
            if self._model is None:
                self._model = self._load()
            return self._model

    def _load(self) -> "WhisperModel":
        from faster_whisper import WhisperModel

        threads = os.cpu_count() or 1
        try:
            return WhisperModel(
                str(self._folder), device="cpu", compute_type="int8", cpu_threads=threads, local_files_only=True
            )
        except Exception as error:  # what a damaged file raises depends on the file
            raise RecogniserError(
                f"{SETTING}: the model in {self._folder} can't be loaded ({error}); "
                "is it a CTranslate2 Whisper model, and complete?"
            ) from None


def recogniser_from(model: Path | None) -> Recogniser | None:
    """The recogniser of the setting COMPLIANCE_RECOGNISER_MODEL; none where it is unset. Raises RecogniserError."""
    return FasterWhisper(model) if model else None


def _digest(folder: Path) -> str:
    """Of the configuration, the tokens, the size of the weights and their last megabyte: the rest takes seconds."""
    digest = sha256()
    for name in ("config.json", "tokenizer.json"):
        digest.update((folder / name).read_bytes())
    with (folder / "model.bin").open("rb") as weights:
        size = weights.seek(0, os.SEEK_END)
        weights.seek(max(0, size - 2**20))
        digest.update(str(size).encode() + weights.read())
    return digest.hexdigest()[:8]


def _at_16_khz(samples: Samples) -> Samples:
    """Twice the rate: a zero between every two samples, and a low-pass at 4 kHz (windowed sinc)."""
    spread = np.zeros(2 * len(samples), np.float32)
    spread[::2] = samples
    doubled: Samples = np.convolve(spread, _half_band(), "same").astype(np.float32) if len(samples) else spread
    return doubled


@cache
def _half_band() -> NDArray[np.float32]:
    at = np.arange(-48, 49)
    taps = np.sinc(at / 2) * np.kaiser(len(at), 8)
    scaled: NDArray[np.float32] = (taps / taps.sum() * 2).astype(np.float32)
    return scaled
