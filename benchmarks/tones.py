"""Speed and error rates of the tone detector beside multimon-ng's DTMF decoder, on the same audio, as markdown.

Run as `python -m benchmarks.tones`. The peer is left out unless it is installed (`apt-get install multimon-ng`). Speeds
are seconds of audio per second of CPU; the peer reads 22,050 Hz, and its resampling isn't counted. Recordings of people
and music are used where they are (`apt-get install asterisk-core-sounds-en-wav asterisk-moh-opsound-wav`).
"""

import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks import say_ratios
from compliance_pipeline.sandbox.speech import speak
from compliance_pipeline.screening.findings import Symbol
from compliance_pipeline.screening.tones import ToneDetector, detect_tones
from compliance_pipeline_tests.screening.keypad import (
    Samples,
    edits,
    keyed,
    mu_law,
    noisy,
    some_digits,
)

REPEATS, DIGITS = 20, 16
SPEED_RUNS = 6
CARRIER = "I would like to pay the invoice for the seven lamps which you have sent to my old address last week. "
VOICES = ("en-us", "en-gb+f2", "en-us+m5", "en-gb+f4", "en-us+f3", "en-gb+m3")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "audio"
ASTERISK = Path("/usr/share/asterisk")
RECORDINGS = {
    "calls and conversations": [SHARED / "calls", SHARED / "conversation"],
    "digits read out by people": [SHARED / "digits"],
    "prompts read by people": [SHARED / "prompts", ASTERISK / "sounds" / "en"],
    "recorded music": [SHARED / "music", ASTERISK / "moh"],
}
HOLD_TONES = ("tone", "beep", "ring", "busy", "dial", "dtmf")

Hear = Callable[[Samples], str]


def multimon(samples: Samples) -> str:
    return _multimon(_for_peer(samples))


def _for_peer(samples: Samples) -> bytes:
    import av

    resampler = av.AudioResampler("s16", "mono", 22_050)
    raw = []
    for at in range(0, len(samples), 80_000):
        whole = (np.clip(samples[None, at : at + 80_000], -1, 1) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(whole, format="s16", layout="mono")
        frame.sample_rate = 8000
        raw += [done.to_ndarray().tobytes() for done in resampler.resample(frame)]
    return b"".join(raw + [done.to_ndarray().tobytes() for done in resampler.resample(None)])


def _multimon(raw: bytes) -> str:
    done = subprocess.run(
        ["multimon-ng", "-q", "-t", "raw", "-a", "DTMF", "-"], input=raw, capture_output=True, check=True
    )
    lines = done.stdout.decode().splitlines()
    return "".join(line.partition(":")[2].strip() for line in lines if line.startswith("DTMF:"))


def ours(samples: Samples) -> str:
    return "".join(symbol.char for symbol in detect_tones(samples))


def speech(samples: Samples, below_db: float, seed: int) -> Samples:
    """Speech under the tones, `below_db` below them where it is loud."""
    spoken = speak(CARRIER * 3, voice=VOICES[seed % len(VOICES)])[: len(samples)]
    loud = np.sqrt(np.mean(spoken[np.abs(spoken) > 0.3 * spoken.std()] ** 2))
    tones = np.sqrt(np.mean(samples[np.abs(samples) > 0] ** 2))
    spoken = np.pad(spoken, (0, len(samples) - len(spoken))) * (tones / loud * 10 ** (-below_db / 20))
    return np.asarray(samples + spoken, np.float32)


def ragtime(seconds: float, seed: int) -> Samples:
    """A piano after Joplin's manner: octaves and chords in the left hand, syncopated octaves and thirds in the right,
    two strings a note that beat, stretched partials up to 3.7 kHz, and an instrument up to 40 cents out of tune."""
    rng = np.random.default_rng(seed)
    tuning = 440 * 2 ** (rng.uniform(-40, 40) / 1200)
    out = np.zeros(int(seconds * 8000) + 12_000)
    strings: dict[int, Samples] = {}

    def string(midi: int) -> Samples:
        if midi not in strings:
            t = np.arange(9600) / 8000
            hertz = tuning * 2 ** ((midi - 69) / 12) * (1 + rng.normal(0, 0.001))
            sound = np.zeros_like(t)
            for beat in (1, 1 + rng.normal(0, 0.0006)):
                for partial in range(1, 40):
                    pitch = partial * hertz * beat * np.sqrt(1 + 0.0004 * partial * partial)
                    if pitch < 3700:
                        fade = np.exp(-t * (1.5 + 0.9 * partial * np.sqrt(hertz / 260)))
                        sound += fade * np.sin(2 * np.pi * pitch * t + rng.uniform(0, 6.28)) / partial**1.1
            strings[midi] = (sound * (1 - np.exp(-t / 0.002))).astype(np.float32)
        return strings[midi]

    def strike(at_s: float, midi: int, loudness: float, held_s: float) -> None:
        sound = string(midi).copy()
        held = int(held_s * 8000)
        sound[held:] *= np.exp(-np.arange(len(sound) - min(held, len(sound))) / 400)
        at = int(at_s * 8000)
        out[at : at + len(sound)] += loudness * sound[: len(out) - at]

    beat = 60 / rng.uniform(150, 220)
    for bar in range(int(seconds / (2 * beat))):
        root, start = (0, 5, 7, 0, 9, 2, 7, 0)[bar % 8], bar * 2 * beat
        for half in range(4):
            left = (36, 48) if half % 2 == 0 else (60, 64, 67) if root <= 6 else (48, 52, 55)
            for midi in left:
                strike(start + half * beat / 2, midi + root, 0.5 if half % 2 == 0 else 0.3, 0.4 * beat)
        at = 0.0
        while at < 2:
            length = float(rng.choice([0.25, 0.25, 0.25, 0.5, 0.75]))
            midi, loudness = 72 + root + int(rng.choice([0, 2, 3, 4, 5, 7, 9, 10, 11])), rng.uniform(0.5, 1)
            strike(start + at * beat, midi, loudness, length * beat * rng.uniform(0.6, 1.3))
            if rng.random() < 0.6:
                strike(start + at * beat, midi + 12, 0.8 * loudness, length * beat)
            if rng.random() < 0.4:
                strike(start + at * beat, midi + int(rng.choice([3, 4, 7, 9])), 0.7 * loudness, length * beat)
            at += length
    return np.asarray(0.3 * out[: int(seconds * 8000)] / np.abs(out).max(), np.float32)


Make = Callable[[str, int], tuple[Samples, str]]
"""What is made of a string of digits and a seed, and what should be heard in it."""


def rows() -> dict[str, Make]:
    def noise(snr_db: float) -> Make:
        return lambda digits, seed: (mu_law(noisy(keyed(digits, seed=seed), snr_db, seed)), digits)

    def talk(below_db: float) -> Make:
        return lambda digits, seed: (
            mu_law(speech(keyed(digits, on_s=0.1, off_s=0.1, seed=seed), below_db, seed)),
            digits,
        )

    def music(below_db: float) -> Make:
        def make(digits: str, seed: int) -> tuple[Samples, str]:
            tones = keyed(digits, on_s=0.1, off_s=0.1, seed=seed)
            piano = ragtime(len(tones) / 8000, seed)[: len(tones)]
            scale = np.sqrt(np.mean(tones[tones != 0] ** 2) / np.mean(piano**2)) * 10 ** (-below_db / 20)
            return mu_law(tones + np.pad(piano, (0, len(tones) - len(piano))) * np.float32(scale)), digits

        return make

    def line(on_s: float = 0.07, dbfs: float = -13, detune: float = 0, twist_db: float = 0) -> Make:
        return lambda digits, seed: (
            mu_law(keyed(digits, on_s=on_s, off_s=on_s, dbfs=dbfs, detune=detune, twist_db=twist_db, seed=seed)),
            digits,
        )

    def bursts(pause_ms: int) -> Make:
        return lambda digits, seed: (keyed(digits, on_s=0.023, off_s=pause_ms / 1000, seed=seed), "")

    return {
        **{f"40/40 ms, {level:g} dBFS": line(on_s=0.04, dbfs=level) for level in (-6.1, -20, -40)},
        **{f"white noise {snr} dB": noise(snr) for snr in (10, 6, 3, 0)},
        **{f"frequency {100 * detune:+.1f}%": line(detune=detune) for detune in (-0.015, 0.015)},
        **{f"twist {twist:+d} dB": line(twist_db=twist) for twist in (-8, 4, 6)},
        **{f"speech {below} dB below": talk(below) for below in (12, 6, 0)},
        **{f"piano {below} dB below": music(below) for below in (12, 6)},
        **{f"23 ms bursts, {pause} ms apart (must be refused)": bursts(pause) for pause in (60, 40)},
    }


def error(hear: Hear, make: Make) -> float:
    wrong = 0
    for seed in range(REPEATS):
        samples, truth = make(some_digits(seed, DIGITS), seed)
        wrong += edits(hear(samples), truth)
    return wrong / (REPEATS * DIGITS)


def without_tones() -> Iterator[tuple[str, Samples]]:
    """Audio in which nobody presses a key."""
    voices = [speak(CARRIER * 6, voice=voice, rate=rate) for voice in VOICES for rate in (130, 160, 190)]
    yield "synthetic speech", np.concatenate(voices)
    yield "synthetic ragtime piano", np.concatenate([ragtime(60, seed) for seed in range(100, 115)])
    for name, folders in RECORDINGS.items():
        files = sorted(
            path
            for folder in folders
            for path in folder.rglob("*")
            if path.suffix in (".wav", ".ogg") and not any(word in path.name for word in HOLD_TONES)
        )
        if missing := [str(folder) for folder in folders if not folder.is_dir()]:
            print(f"left out of {name!r}, not there: {', '.join(missing)}\n")
        if files:
            yield name, np.concatenate([part for path in files for part in (_read(path), np.zeros(2400, np.float32))])


def _read(path: Path) -> Samples:
    import av

    resampler = av.AudioResampler("fltp", "mono", 8000)
    with av.open(str(path)) as container:
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    return np.concatenate([part.to_ndarray()[0] for part in frames + resampler.resample(None)]).astype(np.float32)


def reliability() -> Iterator[tuple[float, float, int, int]]:
    """Of the digits between two confidences, how many there are and how many are right: loud noise, speech and piano,
    tones twisted and off, and the audio without tones."""
    sure, right = [], []
    for seed in range(1000, 1240):
        rng = np.random.default_rng(seed)
        digits, length_s = some_digits(seed, int(rng.choice([1, 2, 4, 16]))), rng.uniform(0.045, 0.15)
        samples = keyed(
            digits,
            on_s=length_s,
            off_s=length_s,
            dbfs=rng.uniform(-30, -8),
            detune=rng.uniform(-0.012, 0.012),
            twist_db=rng.uniform(-8, 6),
            seed=seed,
        )
        if seed % 3 == 0:
            samples = noisy(samples, rng.uniform(-3, 3), seed)
        elif seed % 3 == 1:
            samples = speech(samples, rng.uniform(-6, 3), seed)
        else:
            piano = ragtime(len(samples) / 8000 + 1, seed)[: len(samples)]
            power = np.mean(samples[samples != 0] ** 2) / np.mean(piano**2)
            samples = samples + piano * np.float32(np.sqrt(power) * 10 ** (-rng.uniform(-3, 6) / 20))
        found = detect_tones(mu_law(samples))
        sure += [symbol.confidence for symbol in found]
        right += _right(found, digits, round(length_s * 8000) / 8000)
    for low, high in ((0.95, 0.98), (0.98, 0.99), (0.99, 0.999), (0.999, 1.01)):
        chosen = [(low <= confidence < high) for confidence in sure]
        yield low, high, sum(chosen), sum(good for good, inside in zip(right, chosen, strict=True) if inside)


def _right(found: list[Symbol], digits: str, length_s: float) -> list[bool]:
    """A second one within the same tone is wrong."""
    heard: set[int] = set()
    verdicts = []
    for symbol in found:
        middle = (symbol.start + symbol.end) / 2 - 0.2
        number = int(middle // (2 * length_s))
        inside = 0 <= number < len(digits) and middle - 2 * length_s * number < length_s + 0.02
        verdicts.append(inside and number not in heard and digits[number] == symbol.char)
        heard.add(number)
    return verdicts


def speed_of_ours(samples: Samples) -> float:
    detector = ToneDetector()
    start = time.process_time()
    for at in range(0, len(samples), 16_000):
        detector.feed(samples[at : at + 16_000])
    detector.finish()
    return len(samples) / 8000 / (time.process_time() - start)


def speed_of_multimon(raw: bytes) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _multimon(raw)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return len(raw) / 2 / 22_050 / (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> None:
    hears: dict[str, Hear] = {"ours": ours}
    if shutil.which("multimon-ng"):
        hears["multimon-ng"] = multimon
    else:
        print("multimon-ng is not installed and is left out; install it with: apt-get install multimon-ng\n")

    def row(*cells: object) -> None:
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)

    row(f"digits wrong, lost or added, of {REPEATS * DIGITS} keyed", *hears)
    row(*["---"] * (1 + len(hears)))
    for name, make in rows().items():
        row(name, *(f"{100 * error(hear, make):.1f}%" for hear in hears.values()))
    print()
    quiet = list(without_tones())
    row("false digits in", *hears)
    row(*["---"] * (1 + len(hears)))
    for name, samples in quiet:
        row(f"{len(samples) / 480_000:.0f} min of {name}", *(len(hear(samples)) for hear in hears.values()))
    print()
    tones = keyed(some_digits(1, 3000), on_s=0.07, off_s=0.07)
    talk = quiet[0][1]
    speeds = {
        "speech with a card number now and then": np.tile(np.concatenate([talk, keyed(some_digits(1, 60))]), 2),
        "tones only, 70/70 ms": tones,
        "tones only, 50/50 ms": keyed(some_digits(1, 3000), on_s=0.05, off_s=0.05),
        **dict(quiet[1:]),
    }
    ratios: dict[str, float] = {}
    row("speed, x real time", *hears, *(["ratio"] if "multimon-ng" in hears else []))
    row(*["---"] * (2 * len(hears) if "multimon-ng" in hears else 2))
    for name, samples in speeds.items():
        best_of_ours = best_of_peer = 0.0
        raw = _for_peer(samples[: 8000 * 600]) if "multimon-ng" in hears else b""
        for _ in range(SPEED_RUNS):
            best_of_ours = max(best_of_ours, speed_of_ours(samples[: 8000 * 600]))
            best_of_peer = max(best_of_peer, speed_of_multimon(raw) if raw else 0.0)
        peer = (f"{best_of_peer:.0f}", f"{best_of_ours / best_of_peer:.1f}") if raw else ()
        row(name, f"{best_of_ours:.0f}", *peer)
        if peer:
            ratios[f"speed, {name} / multimon-ng"] = best_of_ours / best_of_peer
    print()
    row("confidence given", "digits", "right")
    row("---", "---", "---")
    for low, high, count, right in reliability():
        row(f"{low:g} to {min(high, 1):g}", count, f"{100 * right / count:.1f}%" if count else "")
    say_ratios("tones", ratios)


if __name__ == "__main__":
    main()
