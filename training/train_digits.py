"""Trains the spoken-digit recogniser and exports it to ONNX: data synthesis, augmentation, training.
Not shipped: the product only reads the exported file (see `compliance_pipeline/screening/digits.py`)."""

import argparse
import copy
import multiprocessing
import pydoc_data.topics
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import wavfile
from scipy.signal import fftconvolve, firwin, lfilter
from torch import nn
from torch.nn import functional

from compliance_pipeline.sandbox.speech import SAMPLE_RATE, resample, speak, voice_variants
from compliance_pipeline.screening.digits import FRAME, MEL_BANDS, TOKENS, features, mel_bank

Samples = NDArray[np.float32]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPELLED = (
    *WORDS, "oh", "double", "triple", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen",
    "seventeen", "eighteen", "nineteen", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
    "hundred",
)  # fmt: skip
"""How each of `TOKENS` is said."""
CLASSES = 1 + len(TOKENS)  # CTC blank first
OH, DOUBLE, TRIPLE, TEN, TWENTY, HUNDRED = (
    TOKENS.index(name) for name in ("oh", "double", "triple", "10", "20", "hundred")
)
HELD_OUT_CLIPS = range(42, 50)  # of the 50 that each speaker of the Free Spoken Digit Dataset has for each digit

ACCENTS = ("en-us", "en-gb", "en-gb-x-rp", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc")
HELD_OUT_ACCENT = "en-gb-scotland"
HELD_OUT_VARIANTS = ("f4", "m3", "m7", "Alicia", "belinda", "quincy", "victor", "steph2", "grandma", "david")
# not telephone speech, or not speech: robots, whispers and the like
NOVELTY = re.compile(r"robot|robosoft|whisper|demonic|tweaky|croak|Ricishay|UniRobot|anxious|fast|Mr serious", re.I)
FOREIGN = ("de", "es", "fr", "it", "pt-br", "nl", "pl", "ru", "tr", "hi", "sv", "id", "sw", "ro", "vi")
FLITE = ("slt", "rms", "awb", "kal16", "kal")
FESTIVAL = ("cmu_us_slt_arctic_hts", "kal_diphone")
HELD_OUT_FESTIVAL = "ked_diphone"

CARRIERS = (
    "my card number is {} and it expires next summer",
    "yes sure it is {}",
    "okay the number is {} thank you",
    "let me read that out, {}, did you get that",
    "so that was {} correct",
    "I have it here {} is that right",
    "could you please read me the card number, {}",
    "the account ends in {} I believe",
    "my phone number is {} please call me back",
    "the reference is {} and my name is Alex",
    "um {} uh sorry let me check",
    "that will be {} dollars and some cents",
    "no sorry, {}, I misread it",
)
CHAT = (
    "hello thanks for calling how can I help you today",
    "could you confirm your date of birth and your postcode please",
    "I am going to place you on a short hold for a moment",
    "your order should arrive by friday at the latest",
    "can you read me the number on the back of your policy",
    "the refund takes several working days to reach your account",
    "I would like to speak with a supervisor please",
    "sorry could you repeat that for me the line is not very good",
    "sure let me check that for you it will not take long",
    "is there anything else that I can help with",
    "have a great day and thank you for your patience",
    "yes that is correct", "no thank you", "okay great", "uh huh", "all right then",
    "my address is on main street opposite the station",
    "we are so sorry about that I will send a replacement to you",
    "this call may be monitored or recorded for quality and training",
    "I ordered it for my mother and it never arrived at her house",
    "what would you like to do with the remaining balance",
    "please do not share your password with anybody",
    "the technician will be there between breakfast and lunch",
    "I see that your payment failed because the card has expired",
    "can I put you through to the billing department",
    "so the box was broken when I opened it",
    "do you want me to cancel the subscription for you",
    "the weather has been terrible the whole week hasn't it",
    "we ate before the meeting and went home after",
    "who won the game at the weekend",
    "turn the router off then wait until the light is green",
    "I already told your colleague the same story this morning",
    "there is a fee for changing the date of the flight",
    "that is fine by me", "hold on a second please", "what do you mean", "right", "hmm let me see",
    "go to the front door and wait for her", "for the whole family", "I want to try it too", "then again", "sick of it",
    "they have sent it to the wrong state", "it's a nice day to be fair", "we need more time for this to be honest",
    "the tenant went to the tennis court", "her teenage son is away", "I have to wait for the train", "into the site",
)  # fmt: skip
NUMBER_WORD = re.compile(
    r"\d|\b(" + "|".join(WORDS) + r"|oh|o|ten|eleven|twelve|hundred|double|triple|thousand|\w*teen\w*|"
    r"(?:twen|thir|for|fif|six|seven|eigh|nine)ty)\b",
    re.I,
)


# --- what is said -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """Speech at 8 kHz, the tokens in it, and where they are: (start, end) in samples, none where nobody knows."""

    samples: Samples
    tokens: tuple[int, ...]
    spans: tuple[tuple[float, float], ...] = ()


def level(samples: Samples) -> Samples:
    return (samples * (0.06 / (np.sqrt(np.mean(samples**2)) + 1e-6))).astype(np.float32)


def reading(rng: random.Random, length: int) -> list[int]:
    """Some `length` random tokens: digits alone (with 'oh' or without), or with doubles, teens, tens and hundreds."""
    said: list[int] = []
    oh = rng.random() < 0.4
    mixed = rng.random() < 0.45
    while len(said) < length:
        digit = rng.randrange(10)
        digit = OH if digit == 0 and oh else digit
        kind = rng.random() if mixed else 0
        if kind < 0.3:
            said.append(digit)
        elif kind < 0.44:
            said += [DOUBLE, digit]
        elif kind < 0.52:
            said += [TRIPLE, digit]
        elif kind < 0.7:
            said.append(TEN + rng.randrange(10))
        elif kind < 0.94:
            said.append(TWENTY + rng.randrange(8))
            if rng.random() < 0.6:
                said.append(rng.randrange(1, 10))
        else:
            said += [rng.randrange(1, 10), HUNDRED]
    return said


def spoken(tokens: Sequence[int], rng: random.Random) -> str:
    """The tokens as words in a card's groups, each alone, or evenly."""
    words = [SPELLED[token] for token in tokens]
    style = rng.random()
    if style < 0.45:  # groups of three or four, with a pause that the synthesiser makes at a comma
        size = rng.choice((2, 3, 4, 4))
        return ", ".join(" ".join(words[at : at + size]) for at in range(0, len(words), size))
    if style < 0.55:
        return ", ".join(words)
    return " ".join(words)


def english_voices() -> list[str]:
    plain = [name for name in voice_variants() if not NOVELTY.search(name) and name not in HELD_OUT_VARIANTS]
    return [f"{accent}+{variant}" for accent in ACCENTS for variant in plain] + list(ACCENTS) * 4


def synthesise(text: str, voice: str, rng: random.Random, fastest: float = 2.0) -> Samples:
    """`voice` is eSpeak NG's, or `flite:` or `festival:` and one of theirs; the rate is drawn up to `fastest`."""
    engine, _, name = voice.rpartition(":")
    speed = fastest ** rng.uniform(-0.45, 1.0)
    if not engine:
        return speak(text, voice=voice, rate=min(330, int(160 * speed)), pitch=rng.randint(10, 90))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "said.wav"
        if engine == "flite":
            pitch = rng.uniform(0.75, 1.35) * (170 if name == "slt" else 115)
            settings = ["--setf", f"duration_stretch={1 / speed:.2f}", "--setf", f"int_f0_target_mean={pitch:.0f}"]
            subprocess.run(["flite", "-voice", name, *settings, "-t", text, "-o", str(path)], check=True)
        else:
            stretch = f"(voice_{name}) (Parameter.set 'Duration_Stretch {1 / speed:.2f})"
            subprocess.run(["text2wave", "-eval", stretch, "-o", str(path)], input=text.encode(), check=True)
        return read_wav(path)


def any_voice(rng: random.Random, voices: list[str]) -> str:
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(voices)
    return "flite:" + rng.choice((*FLITE, "slt", "slt")) if kind < 0.95 else "festival:" + rng.choice(FESTIVAL)


def phrase_clip(seed: int) -> Clip:
    rng = random.Random(seed)
    tokens = reading(rng, rng.choice((1, 2, 3, 4, 4, 5, 6, 7, 8, 10, 12, 16, 19)))
    if rng.random() < 0.08:
        tokens = [rng.choice(tokens)] * min(len(tokens), 6)
    text = spoken(tokens, rng)
    if rng.random() < 0.4:
        text = rng.choice(CARRIERS).format(text)
    return Clip(level(synthesise(text, any_voice(rng, english_voices()), rng)), tuple(tokens))


def filler_clip(seed: int) -> Clip:
    rng = random.Random(seed)
    text = rng.choice(CHAT) if rng.random() < 0.5 else rng.choice(filler_sentences())
    voice = any_voice(rng, english_voices()) if rng.random() < 0.85 else rng.choice(FOREIGN)
    return Clip(level(synthesise(text, voice, rng, 1.6)), ())


def word_clips(seed: int) -> list[Clip]:
    """One synthetic voice saying each of the tokens alone, cut at the word's edges: speech whose times we know."""
    rng = random.Random(seed)
    voice = any_voice(rng, english_voices())
    style = rng.random()  # one rate and one pitch for all words of a voice
    return [
        Clip(level(trim(synthesise(word, voice, random.Random(style), 1.5))), (token,))
        for token, word in enumerate(SPELLED)
    ]


@cache
def filler_sentences() -> list[str]:
    text = re.sub(r"[^a-zA-Z0-9. ,']", " ", " ".join(pydoc_data.topics.topics.values()))
    return [s for raw in text.split(".") if 25 < len(s := " ".join(raw.split())) < 160 and not NUMBER_WORD.search(s)]


def trim(samples: Samples) -> Samples:
    """Without what is 32 dB or more below the loudest 10 ms at either end."""
    blocks = samples[: len(samples) // 80 * 80].reshape(-1, 80)
    power = np.mean(blocks**2, 1)
    loud = np.flatnonzero(power > power.max() * 10**-3.2)
    return samples[loud[0] * 80 : (loud[-1] + 1) * 80]


def read_wav(path: Path) -> Samples:
    """Mono float32 at 8 kHz from a wav file of integers or floats."""
    rate, samples = wavfile.read(path)
    scale = np.iinfo(samples.dtype).max if np.issubdtype(samples.dtype, np.integer) else 1
    mono = (samples.reshape(len(samples), -1).mean(1) / scale).astype(np.float32)
    return resample(mono, rate, SAMPLE_RATE)


def human_words(folders: Sequence[Path], keep: Callable[[str, int], bool]) -> dict[str, dict[int, list[Samples]]]:
    """People's clips, `<token>_<speaker>_<index>.wav`, cut at the word's edges: speaker -> token -> clips."""
    speakers: dict[str, dict[int, list[Samples]]] = {}
    for path in sorted(path for folder in folders for path in folder.rglob("*_*_*.wav")):
        token, speaker, index = path.stem.split("_")
        if keep(speaker, int(index)):
            clips = speakers.setdefault(speaker, {})
            clips.setdefault(TOKENS.index(token), []).append(level(trim(read_wav(path))))
    return speakers


# --- how it sounds ------------------------------------------------------------------------------------------------


def mu_law(samples: Samples) -> Samples:
    """Through the 8-bit codec of the telephone network (ITU-T G.711) and back."""
    linear = np.clip(samples * 32768, -32635, 32635).astype(np.int32)
    magnitude = np.abs(linear) + 132
    exponent = np.clip(np.floor(np.log2(magnitude)).astype(np.int32) - 7, 0, 7)
    mantissa = (magnitude >> (exponent + 3)) & 15
    decoded = (((mantissa << 3) + 132) << exponent) - 132
    return (np.sign(linear) * decoded / 32768).astype(np.float32)


CODECS = (
    ("libopencore_amrnb", 12200), ("libopencore_amrnb", 5900), ("libopus", 8000), ("libopus", 16000),
    ("libmp3lame", 16000), ("libmp3lame", 8000), ("g723_1", 6300),
)  # fmt: skip
"""FFmpeg's names and bits a second; AMR-NB is what GSM phones speak."""


def recode(samples: Samples, codec: str, bit_rate: int) -> Samples:
    """Through a lossy codec and back, with its delay taken off (it is measured once for each)."""
    decoded = _coded(samples, codec, bit_rate)[_delay(codec, bit_rate) :]
    return np.pad(decoded, (0, max(0, len(samples) - len(decoded))))[: len(samples)]


@cache
def _delay(codec: str, bit_rate: int) -> int:
    said = level(speak("where were you a year ago"))
    return max(0, int(np.argmax(fftconvolve(_coded(said, codec, bit_rate), said[::-1]))) - len(said) + 1)


def _coded(samples: Samples, codec: str, bit_rate: int) -> Samples:
    import av

    encoder = av.CodecContext.create(codec, "w")
    encoder.sample_rate, encoder.bit_rate, encoder.layout = SAMPLE_RATE, bit_rate, "mono"
    encoder.format = {"libopencore_amrnb": "s16", "g723_1": "s16", "libopus": "flt", "libmp3lame": "fltp"}[codec]
    encoder.time_base = Fraction(1, SAMPLE_RATE)
    encoder.open()
    decoder = av.CodecContext.create(
        {"libopencore_amrnb": "amrnb", "libopus": "libopus", "libmp3lame": "mp3float"}.get(codec, codec), "r"
    )
    decoder.sample_rate, decoder.layout = SAMPLE_RATE, "mono"
    if encoder.extradata:
        decoder.extradata = encoder.extradata
    clipped = np.clip(samples, -1, 1)
    data = (clipped * 32767).astype(np.int16) if encoder.format.name == "s16" else clipped
    size = encoder.frame_size or 800
    data = np.pad(data, (0, -len(data) % size + 4 * size))
    heard = []
    resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)
    for number, at in enumerate(range(0, len(data), size)):
        frame = av.AudioFrame.from_ndarray(data[None, at : at + size], format=encoder.format.name, layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, number * size
        for packet in encoder.encode(frame):
            for decoded in decoder.decode(packet):
                decoded.pts = None
                heard += [part.to_ndarray().ravel() for part in resampler.resample(decoded)]
    return np.concatenate([np.zeros(0, np.float32), *heard])


def faster(clip: Clip, ratio: float) -> Clip:
    """Tempo, pitch and formants together, as a tape would."""
    length = len(clip.samples)
    samples = np.interp(np.arange(0, length - 1, ratio), np.arange(length), clip.samples).astype(np.float32)
    return Clip(samples, clip.tokens, tuple((start / ratio, end / ratio) for start, end in clip.spans))


class Mixer:
    """Endless training examples: digits and other speech on one line, through a telephone."""

    def __init__(
        self,
        clips: list[Clip],
        words: list[list[Clip]],
        speaker: dict[int, list[Samples]],
        filler: list[Samples],
        music: list[Samples],
        seed: int,
    ):
        self.rng = np.random.default_rng(seed)
        self.dice = random.Random(seed)
        self.phrases = [clip for clip in clips if clip.tokens]
        self.fillers = [clip.samples for clip in clips if not clip.tokens]
        self.human_filler, self.music, self.speaker = filler, music, speaker
        self.hurried = 0.0
        self.voices = [{clip.tokens[0]: [clip.samples] for clip in voice} for voice in words]
        self.banks = [mel_bank(warp) for warp in np.linspace(0.76, 1.28, 14)]

    def pick(self, items):
        return items[int(self.rng.integers(len(items)))]

    def word_string(self, speaker: dict[int, list[Samples]]) -> Clip:
        """Words of one speaker in a row; more than half of the time tight, as in connected speech."""
        rng = self.rng
        tokens = [token for token in reading(self.dice, int(rng.integers(1, 11))) if token in speaker]
        tight = rng.random() < 0.6
        line, spans, gap = np.zeros(0, np.float32), [], 0
        for token in tokens:
            clip = self.pick(speaker[token]) * np.float32(10 ** (rng.uniform(-3, 3) / 20))
            if tight:
                clip = clip[int(len(clip) * rng.uniform(0, 0.1)) : len(clip) - int(len(clip) * rng.uniform(0, 0.15))]
                gap = int(SAMPLE_RATE * rng.uniform(-0.08, 0.06))
            else:
                gap = int(SAMPLE_RATE * (rng.uniform(0.03, 0.3) if rng.random() < 0.8 else rng.uniform(0.3, 0.9)))
            line = join(line, clip, gap)
            spans.append((len(line) - len(clip), len(line)))
        string = Clip(line, tuple(tokens), tuple(spans))
        return (
            faster(string, 2 ** rng.uniform(-0.65, 0.6 - self.hurried)) if rng.random() < 0.8 and len(line) else string
        )

    def phrase(self) -> Clip:
        clip = self.pick(self.phrases)
        return faster(clip, 2 ** self.rng.uniform(-0.4, 0.4 - self.hurried)) if self.rng.random() < 0.6 else clip

    def filler(self) -> Clip:
        # warped like the digits, or 'warped' would come to mean 'digit'
        rng = self.rng
        kind = rng.random()
        sources = self.human_filler if kind < 0.45 else self.music if kind < 0.53 else self.fillers
        source = self.pick(sources or self.fillers)
        length = int(SAMPLE_RATE * rng.uniform(0.5, 4))
        start = int(rng.integers(max(1, len(source) - length)))
        part = Clip(source[start : start + length], ())
        return faster(part, 2 ** rng.uniform(-0.5, 0.5)) if rng.random() < 0.75 else part

    def line(self, length: int) -> Clip:
        rng = self.rng
        parts: list[Samples] = []
        tokens: list[int] = []
        spans: list[tuple[float, float]] = []
        filled = 0
        people = 0.5 if self.speaker else 0.0
        while True:
            kind = rng.random()
            if kind < people:
                clip = self.word_string(self.speaker)
            elif kind < people + 0.68 * (0.72 - people):
                clip = self.phrase()
            elif kind < 0.72:
                clip = self.word_string(self.pick(self.voices))
            elif kind < 0.93:
                clip = self.filler()
            else:
                clip = Clip(np.zeros(int(SAMPLE_RATE * rng.uniform(0.2, 1.5)), np.float32), ())
            pause = int(SAMPLE_RATE * rng.uniform(0, 0.25))
            if filled + len(clip.samples) + pause > length:
                if filled or rng.random() < 0.1:
                    break
                continue
            parts += [clip.samples * np.float32(10 ** (rng.uniform(-6, 6) / 20)), np.zeros(pause, np.float32)]
            tokens += clip.tokens
            known = clip.spans or ((np.nan, np.nan),) * len(clip.tokens)
            spans += [(start + filled, end + filled) for start, end in known]
            filled += len(clip.samples) + pause
        lead = int(rng.integers(0, length - filled + 1))
        padded = np.zeros(length, np.float32)
        if parts:
            padded[lead : lead + filled] = np.concatenate(parts)
        return Clip(padded, tuple(tokens), tuple((start + lead, end + lead) for start, end in spans))

    def noise(self, length: int) -> tuple[NDArray[np.float64], float]:
        """Something else on the line, and how far below the speech it is (dB)."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.3:
            return rng.standard_normal(length), rng.uniform(4, 40)
        if kind < 0.48:
            return lfilter([1], [1, -0.9], rng.standard_normal(length)), rng.uniform(2, 40)
        if kind < 0.62 and self.music:
            return self.cut(self.pick(self.music), length), rng.uniform(3, 35)
        noise = np.zeros(length)
        for _ in range(int(rng.integers(1, 6))):  # one other talker, or several in the room
            noise += self.cut(
                self.pick(self.human_filler if self.human_filler and rng.random() < 0.35 else self.fillers), length
            )
        return noise, rng.uniform(4, 35)

    def cut(self, source: Samples, length: int) -> Samples:
        start = int(self.rng.integers(len(source)))
        return np.resize(
            np.concatenate([source[start : start + length], source[: max(0, start + length - len(source))]]), length
        )

    def telephone(self, samples: Samples) -> Samples:
        rng = self.rng
        length = len(samples)
        if rng.random() < 0.35:  # room
            taps = int(SAMPLE_RATE * rng.uniform(0.05, 0.35))
            room = rng.standard_normal(taps) * np.exp(-6.9 * np.arange(taps) / taps)
            room[0] = rng.uniform(4, 10)
            samples = fftconvolve(samples, room / np.linalg.norm(room))[:length]
        if rng.random() < 0.6:
            band = [rng.uniform(80, 400), rng.uniform(2600, 3800)]
            samples = lfilter(firwin(63, band, fs=SAMPLE_RATE, pass_zero=False), 1, samples)
        if rng.random() < 0.5:  # tilt of the handset
            samples = lfilter([1, rng.uniform(-0.7, 0.7)], 1, samples)
        power = np.mean(samples**2) + 1e-9
        noise, below = self.noise(length)
        samples = samples + noise / (noise.std() + 1e-9) * np.sqrt(power / 10 ** (below / 10))
        samples = samples / (np.abs(samples).max() + 1e-6)
        if rng.random() < 0.1:  # overdriven
            samples = np.clip(samples * rng.uniform(1.5, 6), -1, 1)
        samples = (samples * 10 ** (rng.uniform(-25, 0) / 20)).astype(np.float32)
        kind = rng.random()
        if kind < 0.1:
            return recode(samples, *self.pick(CODECS))
        return mu_law(samples) if kind < 0.55 else samples

    def example(self, length: int) -> tuple[Samples, tuple[int, ...], Samples]:
        """Features (frames, 40), tokens, and each answer's seconds since and until its word's edges (frames / 4, 2)."""
        rng = self.rng
        tempo = 2 ** rng.uniform(-0.55, 0.75) if rng.random() < 0.6 else 1.0  # without pitch, unlike `faster`
        self.hurried = 0.5 if tempo > 1.2 else 0.0  # not both: nobody speaks that fast
        clip = self.line(int(length * tempo))
        bank = self.pick(self.banks) if rng.random() < 0.75 else mel_bank()
        frames = features(self.telephone(clip.samples), bank)
        count = 1 + (length - 200) // 80
        if tempo != 1:
            at = np.linspace(0, len(frames) - 1, count)
            before = np.minimum(at.astype(int), len(frames) - 2)
            share = (at - before).astype(np.float32)[:, None]
            frames = frames[before] * (1 - share) + frames[before + 1] * share
        frames = frames[:count]
        return frames, clip.tokens, edges(clip.spans, tempo * SAMPLE_RATE, (count + 3) // 4)


def edges(spans: Sequence[tuple[float, float]], rate: float, count: int) -> Samples:
    """For each answer: seconds since the start and until the end of the nearest word; NaN where it isn't known."""
    result = np.full((count, 2), np.nan, np.float32)
    if spans:
        now = np.arange(count)[:, None] * FRAME / SAMPLE_RATE
        starts, ends = np.array(spans).T / rate
        away = np.abs(now - (starts + ends) / 2) - (ends - starts) / 2
        nearest = np.nan_to_num(away, nan=1e9).argmin(1)
        close = away[np.arange(count), nearest] < 0.2
        result[:, 0] = np.where(close, now[:, 0] - starts[nearest], np.nan)
        result[:, 1] = np.where(close, ends[nearest] - now[:, 0], np.nan)
    return result


def join(line: Samples, clip: Samples, gap: int) -> Samples:
    """`clip` after `line`; a negative gap lets them overlap by so many samples."""
    if gap >= 0 or len(line) < -gap or len(clip) < -gap:
        return np.concatenate([line, np.zeros(max(0, gap) if len(line) else 0, np.float32), clip])
    ramp = np.linspace(0, 1, -gap, dtype=np.float32)
    seam = line[gap:] * (1 - ramp) + clip[:-gap] * ramp
    return np.concatenate([line[:gap], seam, clip[-gap:]])


LENGTHS = (4, 5, 6, 7, 8)  # seconds of a line
ROWS, SYNTHETIC_PARTS, PARTS_OF_A_PERSON = 240, 13, 3  # lines in a file, and files for each length
_mixers: dict[str, Mixer] = {}


def make_lines(job: tuple[str, int, int, Path]) -> None:
    """`ROWS` lines of one length in seconds, of one of `_mixers`, as a file."""
    who, seconds, seed, path = job
    mixer = _mixers[who]
    mixer.rng, mixer.dice = np.random.default_rng([seed, seconds]), random.Random(seed * 10 + seconds)
    examples = [mixer.example(seconds * SAMPLE_RATE) for _ in range(ROWS)]
    np.savez(
        path,
        frames=np.stack([frames for frames, _, _ in examples]).astype(np.float16),
        near=np.stack([near for _, _, near in examples]).astype(np.float16),
        counts=[len(tokens) for _, tokens, _ in examples],
        tokens=[token for _, tokens, _ in examples for token in tokens],
    )


@dataclass
class Lines:
    """Lines of one length: features, tokens and edges of each."""

    frames: NDArray[np.float16]
    near: NDArray[np.float16]
    tokens: list[NDArray[np.int64]]


def read_lines(paths: Sequence[Path]) -> Lines:
    files = [np.load(path) for path in paths]
    tokens = [part for file in files for part in np.split(file["tokens"], np.cumsum(file["counts"])[:-1])]
    return Lines(np.concatenate([f["frames"] for f in files]), np.concatenate([f["near"] for f in files]), tokens)


def batch(
    lines: Sequence[tuple[Lines, Lines | None]], size: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, numbers of tokens, all tokens, edges; half synthetic lines, half those of people if there are any."""
    synthetic, people = lines[int(rng.integers(len(lines)))]
    parts = [(synthetic, size - size // 2 if people else size), *([(people, size // 2)] if people else [])]
    frames, near, tokens = [], [], []
    for source, count in parts:
        rows = rng.integers(len(source.tokens), size=count)
        frames.append(source.frames[rows].astype(np.float32))
        near.append(source.near[rows].astype(np.float32))
        tokens += [source.tokens[row] for row in rows]
    seen = np.concatenate(frames)
    seen += rng.standard_normal(seen.shape, np.float32) * rng.uniform(0, 0.2, (size, 1, 1)).astype(np.float32)
    for line in seen:
        for _ in range(2):
            if rng.random() < 0.6:
                band = int(rng.integers(MEL_BANDS - 6))
                line[:, band : band + int(rng.integers(1, 7))] = 0
            if rng.random() < 0.3:
                moment = int(rng.integers(len(line) - 10))
                line[moment : moment + int(rng.integers(1, 9))] = 0
    return (
        torch.from_numpy(seen),
        torch.tensor([len(said) for said in tokens]),
        torch.from_numpy(np.concatenate(tokens) + 1),
        torch.from_numpy(np.concatenate(near)),
    )


# --- the network --------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, channels: int, kernel: int, dilation: int):
        super().__init__()
        padding = dilation * (kernel // 2)
        self.along = nn.Conv1d(
            channels, channels, kernel, padding=padding, dilation=dilation, groups=channels, bias=False
        )
        self.across = nn.Conv1d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm1d(channels)
        self.drop = nn.Dropout1d(0.05)  # of whole channels: drawing for each value took a fifth of the time

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(functional.relu(self.norm(self.across(self.along(x)))))


class Recogniser(nn.Module):
    """(batch, frames of 10 ms, 40) -> (batch, frames of 40 ms, log-probabilities of blank and tokens, edges in s)."""

    def __init__(self, channels: int = 136):
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        )  # fmt: skip
        self.narrow = nn.Sequential(
            nn.Conv1d(24 * MEL_BANDS // 4, channels, 1, bias=False), nn.BatchNorm1d(channels), nn.ReLU()
        )
        shape = ((5, 1), (7, 1), (7, 1), (9, 1), (9, 1), (11, 1), (9, 2), (9, 3))
        self.blocks = nn.Sequential(*[Block(channels, kernel, dilation) for kernel, dilation in shape])
        self.out = nn.Conv1d(channels, CLASSES + 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image = self.front(x.unsqueeze(1).transpose(2, 3))
        batch, maps, bands, frames = image.shape
        hidden = self.blocks(self.narrow(image.reshape(batch, maps * bands, frames)))
        answers = self.out(hidden).transpose(1, 2)
        return torch.cat([answers[..., :CLASSES].log_softmax(-1), answers[..., CLASSES:] * 0.1], -1)


def export(network: nn.Module, path: Path) -> float:
    """Writes ONNX (float32, opset 17) and returns the largest difference of its answers from torch's."""
    import onnxruntime

    network.eval()
    axes = {"features": {0: "batch", 1: "time"}, "answers": {0: "batch", 1: "time"}}
    torch.onnx.export(
        network, (torch.zeros(1, 400, MEL_BANDS),), str(path), input_names=["features"],
        output_names=["answers"], dynamic_axes=axes, opset_version=17, dynamo=False,
    )  # fmt: skip
    probe = np.random.default_rng(0).standard_normal((2, 798, MEL_BANDS)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        return float(np.abs(session.run(None, {"features": probe})[0] - network(torch.from_numpy(probe)).numpy()).max())


# --- training -----------------------------------------------------------------------------------------------------


def average_into(mean: nn.Module, network: nn.Module, keep: float) -> None:
    with torch.no_grad():
        for old, new in zip(mean.state_dict().values(), network.state_dict().values(), strict=True):
            if old.is_floating_point():
                old.mul_(keep).add_(new, alpha=1 - keep)
            else:
                old.copy_(new)


def clip_pool(path: Path, seed: int, phrases: int, fillers: int, voices: int) -> tuple[list[Clip], list[list[Clip]]]:
    """Synthetic phrases and fillers, and voices that say each word alone; kept in `path` between runs."""
    if not path.exists():
        first = seed * 10**6
        with multiprocessing.Pool(2) as workers:
            words = workers.map(word_clips, range(first + 800_000, first + 800_000 + voices), 4)
            clips = workers.map(phrase_clip, range(first, first + phrases), 16)
            clips += workers.map(filler_clip, range(first + 500_000, first + 500_000 + fillers), 16)
        clips = [clip for clip in clips if len(clip.samples) > SAMPLE_RATE // 10]
        every = [clip for voice in words for clip in voice] + clips
        np.savez(
            path,
            samples=np.concatenate([(np.clip(clip.samples, -1, 1) * 32767).astype(np.int16) for clip in every]),
            lengths=[len(clip.samples) for clip in every],
            tokens=[" ".join(map(str, clip.tokens)) for clip in every],
        )
    stored = np.load(path)
    parts = np.split(stored["samples"], np.cumsum(stored["lengths"])[:-1])
    every = [
        Clip(part.astype(np.float32) / 32768, tuple(map(int, text.split())))
        for part, text in zip(parts, stored["tokens"].tolist(), strict=True)
    ]
    alone = voices * len(TOKENS)
    return every[alone:], [every[at : at + len(TOKENS)] for at in range(0, alone, len(TOKENS))]


def wav_files(paths: Sequence[Path]) -> list[Path]:
    return [file for path in paths for file in (sorted(path.glob("*.wav")) if path.is_dir() else [path])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=Path, nargs="*", default=[], help="folders of TOKEN_SPEAKER_INDEX.wav")
    parser.add_argument("--filler", type=Path, nargs="*", default=[], help="wav files of people, no digits in them")
    parser.add_argument("--prompts", nargs="*", default=[], help="SPEAKER=FOLDER: more filler by one of --people")
    parser.add_argument("--music", type=Path, nargs="*", default=[], help="wav files of music")
    parser.add_argument("--work", type=Path, required=True, help="folder for clips, lines and checkpoints")
    parser.add_argument("--out", type=Path, help="the ONNX file; without it, only the data is made")
    parser.add_argument("--base", type=Path, help="start from the weights of this checkpoint")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rate", type=float, default=4e-3, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--leave-out", nargs="*", default=[], help="speakers of --people kept for measuring")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    paths = make_corpus(options)
    if not options.out:
        return
    names = [who for who in paths if who and who not in options.leave_out]
    lines = []
    for seconds in LENGTHS:
        people = read_lines([path for who in names for path in paths[who][seconds]]) if names else None
        lines.append((read_lines(paths[""][seconds]), people))
    print(f"lines: {sum(len(a.tokens) for a, _ in lines)} synthetic,", end=" ")
    print(f"{sum(len(b.tokens) for _, b in lines if b)} of {names}", flush=True)

    network = Recogniser()
    if options.base:
        network.load_state_dict(torch.load(options.base))
    mean = copy.deepcopy(network)
    print(f"{sum(p.numel() for p in network.parameters())} parameters", flush=True)
    rng = np.random.default_rng(options.seed)
    optimiser = torch.optim.AdamW(network.parameters(), options.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.rate, total_steps=options.steps, pct_start=0.12)
    shown = late = 0.0
    started = time.monotonic()
    for step in range(1, options.steps + 1):
        frames, lengths, targets, near = batch(lines, 32, rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            answers = network(frames).float()
        outputs = answers[..., :CLASSES].transpose(0, 1)
        inputs = torch.full((len(frames),), len(outputs))
        loss = functional.ctc_loss(outputs, targets, inputs, lengths, reduction="sum", zero_infinity=True)
        loss = loss / max(1, int(lengths.sum()))
        known = ~near.isnan()
        off = functional.smooth_l1_loss(answers[..., CLASSES:][known] * 10, near[known] * 10, beta=0.3)
        optimiser.zero_grad()
        (loss + 0.2 * off).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        average_into(mean, network, min(0.99, step / (step + 20)))
        shown = loss.item() if step == 1 else 0.97 * shown + 0.03 * loss.item()
        late = off.item() if step == 1 else 0.97 * late + 0.03 * off.item()
        if step in (10, 50) or step % 100 == 0:
            pace = (time.monotonic() - started) / step
            print(f"{step} loss {shown:.3f}, edges {late:.3f}, {pace:.2f} s a step", flush=True)
        if step % 300 == 0 or step == options.steps:
            candidate = copy.deepcopy(mean)
            torch.save(candidate.state_dict(), options.out.with_suffix(".pt"))
            difference = export(candidate, options.out)
            print(f"{step}: {options.out}, ONNX differs from torch by at most {difference:.1e}", flush=True)


def make_corpus(options: argparse.Namespace) -> dict[str, dict[int, list[Path]]]:
    """Files of lines by speaker ('' for synthetic ones) and seconds; made where they are missing.

    What one of the people says is in no line of another, so that a run can leave them out altogether.
    """
    people = human_words(options.people, lambda _, n: n not in HELD_OUT_CLIPS)
    jobs = [
        (who, seconds, part, options.work / f"lines-{who or 'synthetic'}-{seconds}-{part}.npz")
        for who in ["", *people]
        for part in range(PARTS_OF_A_PERSON if who else SYNTHETIC_PARTS)
        for seconds in LENGTHS
    ]
    missing = [job for job in jobs if not job[3].exists()]
    if missing:
        clips, words = clip_pool(options.work / "clips.npz", 1, 6000, 3500, 150)
        filler = [level(read_wav(path)) for path in wav_files(options.filler)]
        music = [level(read_wav(path)) for path in options.music]
        prompts = {who: Path(folder) for who, folder in (entry.split("=") for entry in options.prompts)}
        for who in ["", *people]:
            more = [level(read_wav(path)) for path in wav_files([prompts[who]])] if who in prompts else []
            _mixers[who] = Mixer(clips, words, people.get(who, {}), filler + more, music, options.seed)
        with multiprocessing.Pool(2) as workers:
            for done, _ in enumerate(workers.imap_unordered(make_lines, missing), 1):
                print(f"{done} of {len(missing)} files of lines", flush=True)
    paths: dict[str, dict[int, list[Path]]] = {}
    for who, seconds, _, path in jobs:
        paths.setdefault(who, {}).setdefault(seconds, []).append(path)
    return paths


if __name__ == "__main__":
    main()
