"""Trains the spoken-digit recogniser and exports it to ONNX: data synthesis, augmentation, training, measuring.
Not shipped: the product only reads the exported file (see `compliance_pipeline/screening/digits.py`)."""

import argparse
import copy
import pydoc_data.topics
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import wavfile
from scipy.signal import fftconvolve, firwin, lfilter
from torch import nn
from torch.nn import functional

from compliance_pipeline.sandbox.speech import SAMPLE_RATE, resample, speak, voice_variants
from compliance_pipeline.screening.digits import MEL_BANDS, features, mel_bank

Samples = NDArray[np.float32]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSES = 1 + len(WORDS)  # CTC blank first
HELD_OUT_CLIPS = range(42, 50)  # of the 50 that each speaker has for each digit

ACCENTS = ("en-us", "en-gb", "en-gb-x-rp", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc")
HELD_OUT_ACCENT = "en-gb-scotland"
HELD_OUT_VARIANTS = ("f4", "m3", "m7", "Alicia", "belinda", "quincy", "victor", "steph2", "grandma", "david")
# not telephone speech, or not speech: robots, whispers and the like
NOVELTY = re.compile(r"robot|robosoft|whisper|demonic|tweaky|croak|Ricishay|UniRobot|anxious|fast|Mr serious", re.I)
FOREIGN = ("de", "es", "fr", "it", "pt-br", "nl", "pl", "ru", "tr", "hi", "sv", "id", "sw", "ro", "vi")

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
)  # fmt: skip
NUMBER_WORD = re.compile(
    r"\d|\b(" + "|".join(WORDS) + r"|oh|o|ten|eleven|twelve|hundred|thousand|\w*teen\w*|(?:twen|thir|for|fif|six|"
    r"seven|eigh|nine)ty)\b",
    re.I,
)


# --- what is said -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """Speech at 8 kHz and the digits in it."""

    samples: Samples
    digits: tuple[int, ...]


def level(samples: Samples) -> Samples:
    return (samples * (0.06 / (np.sqrt(np.mean(samples**2)) + 1e-6))).astype(np.float32)


def spoken(digits: str, rng: random.Random) -> str:
    """The digits as words, now and then with 'oh', in a card's groups or evenly."""
    oh = rng.random() < 0.35
    words = ["oh" if digit == "0" and oh else WORDS[int(digit)] for digit in digits]
    style = rng.random()
    if style < 0.45:  # groups of three or four, with a pause that the synthesiser makes at a comma
        size = rng.choice((3, 4, 4))
        return ", ".join(" ".join(words[at : at + size]) for at in range(0, len(words), size))
    if style < 0.6:
        return ", ".join(words)
    return " ".join(words)


def english_voices() -> list[str]:
    plain = [name for name in voice_variants() if not NOVELTY.search(name) and name not in HELD_OUT_VARIANTS]
    return [f"{accent}+{variant}" for accent in ACCENTS for variant in plain] + list(ACCENTS) * 4


def digit_clip(seed: int, voices: list[str]) -> Clip:
    rng = random.Random(seed)
    digits = "".join(rng.choice("0123456789") for _ in range(rng.choice((1, 2, 3, 4, 4, 5, 6, 7, 8, 10, 12, 16, 19))))
    if rng.random() < 0.1:
        digits = rng.choice(digits) * min(len(digits), 6)
    text = spoken(digits, rng)
    if rng.random() < 0.4:
        text = rng.choice(CARRIERS).format(text)
    rate = rng.randint(110, 210) if rng.random() < 0.6 else rng.randint(210, 330)
    samples = speak(text, voice=rng.choice(voices), rate=rate, pitch=rng.randint(10, 90))
    return Clip(level(samples), tuple(map(int, digits)))


def filler_sentences() -> list[str]:
    text = re.sub(r"[^a-zA-Z0-9. ,']", " ", " ".join(pydoc_data.topics.topics.values()))
    return [s for raw in text.split(".") if 25 < len(s := " ".join(raw.split())) < 160 and not NUMBER_WORD.search(s)]


def filler_clip(seed: int, voices: list[str], sentences: list[str]) -> Clip:
    rng = random.Random(seed)
    text = rng.choice(CHAT) if rng.random() < 0.5 else rng.choice(sentences)
    voice = rng.choice(voices) if rng.random() < 0.8 else rng.choice(FOREIGN)
    return Clip(level(speak(text, voice=voice, rate=rng.randint(120, 260), pitch=rng.randint(10, 90))), ())


def read_wav(path: Path) -> Samples:
    """Mono float32 at 8 kHz from a wav file of integers or floats."""
    rate, samples = wavfile.read(path)
    scale = np.iinfo(samples.dtype).max if np.issubdtype(samples.dtype, np.integer) else 1
    mono = (samples.reshape(len(samples), -1).mean(1) / scale).astype(np.float32)
    return resample(mono, rate, SAMPLE_RATE)


def human_digits(folder: Path, keep: Callable[[str, int], bool]) -> dict[str, list[list[Samples]]]:
    """Clips of the Free Spoken Digit Dataset, `<digit>_<speaker>_<index>.wav`: speaker -> digit -> clips."""
    speakers: dict[str, list[list[Samples]]] = {}
    for path in sorted(folder.rglob("*_*_*.wav")):
        digit, speaker, index = path.stem.split("_")
        if keep(speaker, int(index)):
            speakers.setdefault(speaker, [[] for _ in WORDS])[int(digit)].append(level(read_wav(path)))
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


def faster(samples: Samples, ratio: float) -> Samples:
    """Tempo, pitch and formants together, as a tape would."""
    return np.interp(np.arange(0, len(samples) - 1, ratio), np.arange(len(samples)), samples).astype(np.float32)


class Mixer:
    """Endless training examples: digits and other speech on one line, through a telephone."""

    def __init__(self, clips: list[Clip], humans: dict[str, list[list[Samples]]], filler: list[Samples], seed: int):
        self.rng = np.random.default_rng(seed)
        self.digit_clips = [clip for clip in clips if clip.digits]
        self.fillers = [clip.samples for clip in clips if not clip.digits]
        self.human_filler = filler
        self.speakers = list(humans.values())
        self.banks = [mel_bank(warp) for warp in np.linspace(0.82, 1.2, 9)]

    def pick(self, items):
        return items[int(self.rng.integers(len(items)))]

    def human_string(self) -> Clip:
        """Clips of one speaker in a row; half of the time tight, as in connected speech."""
        rng = self.rng
        speaker = self.pick(self.speakers)
        tight = rng.random() < 0.6
        line = np.zeros(0, np.float32)
        digits = rng.integers(0, 10, rng.integers(1, 11))
        for digit in digits:
            clip = self.pick(speaker[digit]) * np.float32(10 ** (rng.uniform(-3, 3) / 20))
            if tight:
                clip = clip[int(len(clip) * rng.uniform(0, 0.1)) : len(clip) - int(len(clip) * rng.uniform(0, 0.15))]
                gap = int(SAMPLE_RATE * rng.uniform(-0.06, 0.06))
            else:
                gap = int(SAMPLE_RATE * (rng.uniform(0.03, 0.3) if rng.random() < 0.8 else rng.uniform(0.3, 0.9)))
            line = join(line, clip, gap)
        if rng.random() < 0.8:
            line = faster(line, 2 ** rng.uniform(-0.5, 0.5))
        return Clip(line, tuple(map(int, digits)))

    def synthetic_string(self) -> Clip:
        clip = self.pick(self.digit_clips)
        if self.rng.random() < 0.5:
            return Clip(faster(clip.samples, 2 ** self.rng.uniform(-0.3, 0.3)), clip.digits)
        return clip

    def filler(self) -> Clip:
        # warped like the digits, or 'warped' would come to mean 'digit'
        rng = self.rng
        source = self.pick(self.human_filler) if self.human_filler and rng.random() < 0.45 else self.pick(self.fillers)
        length = int(SAMPLE_RATE * rng.uniform(0.5, 4))
        start = int(rng.integers(max(1, len(source) - length)))
        part = source[start : start + length]
        return Clip(faster(part, 2 ** rng.uniform(-0.5, 0.5)) if rng.random() < 0.75 else part, ())

    def line(self, length: int) -> Clip:
        rng = self.rng
        parts: list[Samples] = []
        digits: list[int] = []
        filled = 0
        while True:
            kind = rng.random()
            if kind < 0.42 and self.speakers:
                clip = self.human_string()
            elif kind < 0.72:
                clip = self.synthetic_string()
            elif kind < 0.92:
                clip = self.filler()
            else:
                clip = Clip(np.zeros(int(SAMPLE_RATE * rng.uniform(0.2, 1.5)), np.float32), ())
            pause = int(SAMPLE_RATE * rng.uniform(0, 0.25))
            if filled + len(clip.samples) + pause > length:
                if filled or rng.random() < 0.1:
                    break
                continue
            parts += [clip.samples * np.float32(10 ** (rng.uniform(-6, 6) / 20)), np.zeros(pause, np.float32)]
            filled += len(clip.samples) + pause
            digits += clip.digits
        lead = int(rng.integers(0, length - filled + 1))
        padded = np.zeros(length, np.float32)
        if parts:
            padded[lead : lead + filled] = np.concatenate(parts)
        return Clip(padded, tuple(digits))

    def telephone(self, samples: Samples) -> Samples:
        rng = self.rng
        length = len(samples)
        if rng.random() < 0.35:  # room
            taps = int(SAMPLE_RATE * rng.uniform(0.05, 0.3))
            room = rng.standard_normal(taps) * np.exp(-6.9 * np.arange(taps) / taps)
            room[0] = 8
            samples = fftconvolve(samples, room / np.linalg.norm(room))[:length]
        if rng.random() < 0.6:
            band = [rng.uniform(80, 350), rng.uniform(2800, 3800)]
            samples = lfilter(firwin(63, band, fs=SAMPLE_RATE, pass_zero=False), 1, samples)
        if rng.random() < 0.5:  # tilt of the handset
            samples = lfilter([1, rng.uniform(-0.5, 0.5)], 1, samples)
        kind = rng.random()
        signal_to_noise = rng.uniform(4, 40)
        noise = rng.standard_normal(length)
        if 0.4 < kind < 0.75:
            noise = lfilter([1], [1, -0.9], noise)
        elif kind >= 0.75:  # other people in the room
            signal_to_noise = rng.uniform(6, 35)
            noise = np.zeros(length)
            for _ in range(int(rng.integers(2, 6))):
                other = self.pick(self.fillers + self.human_filler)
                noise += np.roll(np.resize(other, length), int(rng.integers(length)))
        power = np.mean(samples**2) + 1e-9
        samples = samples + noise / (noise.std() + 1e-9) * np.sqrt(power / 10 ** (signal_to_noise / 10))
        samples = samples / (np.abs(samples).max() + 1e-6) * 10 ** (rng.uniform(-25, 0) / 20)
        samples = samples.astype(np.float32)
        return mu_law(samples) if rng.random() < 0.5 else samples

    def example(self, length: int) -> tuple[Samples, tuple[int, ...]]:
        rng = self.rng
        clip = self.line(length)
        bank = self.pick(self.banks) if rng.random() < 0.7 else mel_bank()
        frames = features(self.telephone(clip.samples), bank)
        for _ in range(2):
            if rng.random() < 0.5:
                first = int(rng.integers(MEL_BANDS - 6))
                frames[:, first : first + int(rng.integers(1, 6))] = 0
        return frames, clip.digits


def join(line: Samples, clip: Samples, gap: int) -> Samples:
    """`clip` after `line`; a negative gap lets them overlap by so many samples."""
    if gap >= 0 or len(line) < -gap or len(clip) < -gap:
        return np.concatenate([line, np.zeros(max(0, gap), np.float32), clip])
    ramp = np.linspace(0, 1, -gap, dtype=np.float32)
    seam = line[gap:] * (1 - ramp) + clip[:-gap] * ramp
    return np.concatenate([line[:gap], seam, clip[-gap:]])


class Batches(torch.utils.data.IterableDataset[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    def __init__(self, mixer: Mixer, size: int):
        self.mixer, self.size = mixer, size

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        torch.set_num_threads(1)
        while True:
            length = int(SAMPLE_RATE * self.mixer.rng.uniform(3.5, 8))
            examples = [self.mixer.example(length) for _ in range(self.size)]
            yield (
                torch.from_numpy(np.stack([frames for frames, _ in examples])),
                torch.tensor([len(digits) for _, digits in examples]),
                torch.tensor([digit + 1 for _, digits in examples for digit in digits]),
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
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(functional.relu(self.norm(self.across(self.along(x)))))


class Recogniser(nn.Module):
    """(batch, frames of 10 ms, 40) -> log-probabilities (batch, frames of 40 ms, blank and ten digits)."""

    def __init__(self, channels: int = 128):
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
        self.out = nn.Conv1d(channels, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image = self.front(x.unsqueeze(1).transpose(2, 3))
        batch, maps, bands, frames = image.shape
        hidden = self.blocks(self.narrow(image.reshape(batch, maps * bands, frames)))
        return self.out(hidden).transpose(1, 2).log_softmax(-1)


def export(network: nn.Module, path: Path) -> float:
    """Writes ONNX (float32, opset 17) and returns the largest difference of its answers from torch's."""
    import onnxruntime

    network.eval()
    axes = {"features": {0: "batch", 1: "time"}, "log_probabilities": {0: "batch", 1: "time"}}
    torch.onnx.export(
        network, (torch.zeros(1, 400, MEL_BANDS),), str(path), input_names=["features"],
        output_names=["log_probabilities"], dynamic_axes=axes, opset_version=17, dynamo=False,
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


def clip_pool(path: Path, seed: int, digit_clips: int, filler_clips: int) -> list[Clip]:
    """Synthetic clips, kept in `path` between runs (a minute or two to make)."""
    if path.exists():
        stored = np.load(path)
        ends = np.cumsum(stored["lengths"])
        parts = np.split(stored["samples"], ends[:-1])
        texts = stored["digits"]
        return [
            Clip(part.astype(np.float32) / 32768, tuple(map(int, text)))
            for part, text in zip(parts, texts, strict=True)
        ]
    voices, sentences = english_voices(), filler_sentences()
    clips = [digit_clip(seed * 10**6 + n, voices) for n in range(digit_clips)]
    clips += [filler_clip(seed * 10**6 + 500_000 + n, voices, sentences) for n in range(filler_clips)]
    clips = [clip for clip in clips if len(clip.samples) > SAMPLE_RATE // 10]
    np.savez(
        path,
        samples=np.concatenate([(np.clip(clip.samples, -1, 1) * 32767).astype(np.int16) for clip in clips]),
        lengths=[len(clip.samples) for clip in clips],
        digits=["".join(map(str, clip.digits)) for clip in clips],
    )
    return clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", type=Path, required=True, help="folder with the Free Spoken Digit Dataset's wav")
    parser.add_argument("--filler", type=Path, nargs="*", default=[], help="wav files of people, no digits in them")
    parser.add_argument("--work", type=Path, required=True, help="folder for the clip pool and checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="the ONNX file")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--leave-out", default="", help="a speaker of --digits kept for measuring")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    clips = clip_pool(options.work / f"pool-{options.seed}.npz", options.seed, 5000, 3000)
    humans = human_digits(options.digits, lambda who, n: who != options.leave_out and n not in HELD_OUT_CLIPS)
    filler = [level(read_wav(path)) for path in options.filler]
    hours = sum(len(clip.samples) for clip in clips) / SAMPLE_RATE / 3600
    print(f"{len(clips)} synthetic clips, {hours:.1f} h, speakers {list(humans)}, {time.monotonic() - started:.0f} s")

    network = Recogniser()
    mean = copy.deepcopy(network)
    print(f"{sum(p.numel() for p in network.parameters())} parameters", flush=True)
    mixer = Mixer(clips, humans, filler, options.seed)
    batches = iter(torch.utils.data.DataLoader(Batches(mixer, 32), batch_size=None, num_workers=1, prefetch_factor=8))
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=options.steps, pct_start=0.12)
    shown, started = 0.0, time.monotonic()
    for step in range(1, options.steps + 1):
        frames, lengths, targets = next(batches)
        outputs = network(frames).transpose(0, 1)
        inputs = torch.full((len(frames),), len(outputs))
        loss = functional.ctc_loss(outputs, targets, inputs, lengths, reduction="sum", zero_infinity=True)
        loss = loss / max(1, int(lengths.sum()))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        average_into(mean, network, min(0.99, step / (step + 20)))
        shown = loss.item() if step == 1 else 0.97 * shown + 0.03 * loss.item()
        if step in (10, 50) or step % 100 == 0:
            print(f"{step} loss {shown:.3f}, {(time.monotonic() - started) / step:.2f} s a step", flush=True)
        if step % 200 == 0 or step == options.steps:
            candidate = copy.deepcopy(mean)
            torch.save(candidate.state_dict(), options.work / f"{options.out.stem}.pt")
            difference = export(candidate, options.out)
            print(f"{step}: {options.out}, ONNX differs from torch by at most {difference:.1e}", flush=True)


if __name__ == "__main__":
    main()
