"""Speech synthesis (eSpeak NG, from the wheel `espeakng-loader`) for synthetic calls, tests and training.
No telephone effects and no dialogues here: callers mix what `speak` returns."""

import _ctypes
import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE: Final = 8000

# speak_lib.h of eSpeak NG 1.52
_AUDIO_OUTPUT_SYNCHRONOUS = 2  # samples go to the callback, in the calling thread; no sound device is opened
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_POS_CHARACTER = 1
_RATE, _PITCH = 1, 3
_FILE_OF_LANGUAGE = {"en-gb": "en"}  # the only English whose file is not named as its language
_LONGEST_DATA_PATH = 140  # the library keeps the path in a fixed buffer and cuts what is longer

_lock = threading.Lock()
_heard: list[NDArray[np.int16]] = []


class SpeechError(RuntimeError):
    """The synthesiser could not be started or does not know the voice."""


def speak(text: str, *, voice: str = "en-us", rate: int = 160, pitch: int = 50) -> NDArray[np.float32]:
    """Speaks `text`: float32 mono in [-1, 1] at `SAMPLE_RATE`, the same samples for the same arguments.

    voice: eSpeak NG's name of language and variant, such as "en-us" or "en-gb+f2".
    rate: words per minute, 80 to 450. pitch: 0 to 100.
    Raises SpeechError for an unknown voice and ValueError for a rate or pitch out of range.
    """
    if not 80 <= rate <= 450 or not 0 <= pitch <= 100:
        raise ValueError(f"rate {rate} must be in 80..450 and pitch {pitch} in 0..100")
    if not text.strip():
        return np.zeros(0, np.float32)
    language, plus, variant = voice.partition("+")
    if variant and variant not in voice_variants():
        raise SpeechError(f"voice {voice!r}: no variant {variant!r}; there are {', '.join(voice_variants())}")
    with _lock, _synthesiser() as (library, source_rate):
        name = _FILE_OF_LANGUAGE.get(language.lower(), language) + plus + variant
        if library.espeak_SetVoiceByName(name.encode()) != 0:
            raise SpeechError(f"voice {voice!r} is not known: try 'en-us', 'en-gb' or 'en-us+f2'")
        library.espeak_SetParameter(_RATE, rate, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        encoded = text.encode()
        _heard.clear()
        status = library.espeak_Synth(encoded, len(encoded) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
        if status != 0:
            raise SpeechError(f"eSpeak NG answered {status} for a text of {len(text)} characters")
        samples = np.concatenate([*_heard, np.zeros(0, np.int16)])
        _heard.clear()
    return np.clip(resample(samples.astype(np.float32) / np.float32(32768), source_rate, SAMPLE_RATE), -1, 1)


@cache
def voice_variants() -> tuple[str, ...]:
    """Names that may follow the plus sign of a voice: f1, m3, klatt, ..."""
    import espeakng_loader

    folder = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    return tuple(sorted(entry.name for entry in folder.iterdir()))


def resample(samples: NDArray[np.float32], source_rate: int, target_rate: int) -> NDArray[np.float32]:
    """Band-limited conversion between whole-number rates (Hz): windowed sinc, 48 zero crossings, Kaiser beta 9."""
    if source_rate == target_rate or not len(samples):
        return samples
    common = int(np.gcd(source_rate, target_rate))
    down, up = source_rate // common, target_rate // common
    table, half = _phases(down, up)
    padded = np.pad(samples, (half, half + 1))
    at = np.arange((len(samples) * up + down - 1) // down, dtype=np.int64) * down
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    result: NDArray[np.float32] = np.einsum("ij,ij->i", windows[at // up], table[at % up])
    return result


@cache
def _phases(down: int, up: int) -> tuple[NDArray[np.float32], int]:
    """One filter for each of `up` positions between two source samples, shape (up, 2 * half + 1), and half."""
    cutoff = 0.94 * min(1.0, up / down)
    half = int(np.ceil(24 / cutoff))
    away = np.arange(-half, half + 1)[None, :] - np.arange(up)[:, None] / up
    window = np.i0(9 * np.sqrt(np.clip(1 - (away / (half + 1)) ** 2, 0, 1))) / np.i0(9)
    table = np.sinc(cutoff * away) * window
    return (table / table.sum(1, keepdims=True)).astype(np.float32), half


@contextmanager
def _synthesiser() -> Iterator[tuple[Any, int]]:
    """The library, newly loaded, and its sample rate in Hz; the lock is held by the caller.

    Flutter and noise go on from one utterance to the next inside the library, and no call of it resets them:
    only loading it anew (some 5 ms) makes an utterance independent of those before it.
    """
    import espeakng_loader

    data = espeakng_loader.get_data_path().encode()
    if len(data) > _LONGEST_DATA_PATH:
        raise SpeechError(
            f"eSpeak NG's data lies at a path of {len(data)} bytes, and it can use {_LONGEST_DATA_PATH}:"
            " put the virtual environment into a folder with a shorter path"
        )
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        source_rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data, _INITIALIZE_DONT_EXIT)
        if source_rate <= 0:
            raise SpeechError(f"eSpeak NG could not read its data at {data.decode()}: reinstall espeakng-loader")
        library.espeak_ng_SetRandSeed(1)  # else the clock is the seed
        ctypes.CDLL(None).srand(1)  # some variants take their breath from C's own generator
        library.espeak_SetSynthCallback(_KEEP)
        library.espeak_Synth.argtypes = [_Text, _Size, _UInt, ctypes.c_int, _UInt, _UInt, _Pointer, _Pointer]
        yield library, source_rate
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)


_Text, _Size, _UInt, _Pointer = ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_void_p
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def _keep(samples: Any, count: int, _events: Any) -> int:
    if samples and count > 0:
        _heard.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
    return 0


# kept for the life of the process: the library only holds its address
_KEEP = _Callback(_keep)
