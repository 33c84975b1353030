"""Speed and error rates of the tone detector beside multimon-ng's DTMF decoder, on the same audio.

Run as `python -m benchmarks.tones`. The peer is left out unless it is installed (`apt-get install multimon-ng`). Speeds
are seconds of audio per second of CPU; the peer reads 22,050 Hz, and its resampling isn't counted.
"""

import resource
import shutil
import subprocess
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from compliance_pipeline.sandbox.speech import resample, speak
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
CARRIER = "I would like to pay the invoice for the seven lamps which you have sent to my old address last week. "
VOICES = ("en-us", "en-gb+f2", "en-us+m5", "en-gb+f4", "en-us+f3", "en-gb+m3")

Hear = Callable[[Samples], str]


def multimon(samples: Samples) -> str:
    return _multimon(_for_peer(samples))


def _for_peer(samples: Samples) -> bytes:
    return (np.clip(resample(samples, 8000, 22_050), -1, 1) * 32767).astype("<i2").tobytes()


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

    def line(on_s: float = 0.07, dbfs: float = -13, detune: float = 0, twist_db: float = 0) -> Make:
        return lambda digits, seed: (
            mu_law(keyed(digits, on_s=on_s, off_s=on_s, dbfs=dbfs, detune=detune, twist_db=twist_db, seed=seed)),
            digits,
        )

    return {
        **{f"40/40 ms, {level:g} dBFS": line(on_s=0.04, dbfs=level) for level in (-6.1, -20, -40)},
        **{f"white noise {snr} dB": noise(snr) for snr in (10, 6, 3, 0)},
        **{f"frequency {100 * detune:+.1f}%": line(detune=detune) for detune in (-0.015, 0.015)},
        **{f"twist {twist:+d} dB": line(twist_db=twist) for twist in (-8, 4, 6)},
        **{f"speech {below} dB below": talk(below) for below in (12, 6, 0)},
        "23 ms bursts (must be refused)": lambda digits, seed: (
            keyed(digits, on_s=0.023, off_s=0.06, seed=seed),
            "",
        ),
    }


def error(hear: Hear, make: Make) -> float:
    wrong = 0
    for seed in range(REPEATS):
        samples, truth = make(some_digits(seed, DIGITS), seed)
        wrong += edits(hear(samples), truth)
    return wrong / (REPEATS * DIGITS)


def speed_of_ours(samples: Samples) -> float:
    detector = ToneDetector()
    start = time.process_time()
    for at in range(0, len(samples), 16_000):
        detector.feed(samples[at : at + 16_000])
    detector.finish()
    return len(samples) / 8000 / (time.process_time() - start)


def speed_of_multimon(samples: Samples) -> float:
    raw = _for_peer(samples)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _multimon(raw)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return len(samples) / 8000 / (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> None:
    hears: dict[str, Hear] = {"ours": ours}
    if shutil.which("multimon-ng"):
        hears["multimon-ng"] = multimon
    else:
        print("multimon-ng is not installed and is left out; install it with: apt-get install multimon-ng")
    talk = np.concatenate([speak(CARRIER * 6, voice=voice, rate=rate) for voice in VOICES for rate in (130, 160, 190)])
    table = Table("digits wrong, lost or added, of those keyed", *hears)
    for name, make in rows().items():
        table.add_row(name, *(f"{100 * error(hear, make):.1f}%" for hear in hears.values()))
    minutes = len(talk) / 8000 / 60
    table.add_row(f"false digits in {minutes:.0f} min of speech", *(str(len(hear(talk))) for hear in hears.values()))
    call = np.tile(np.concatenate([talk, keyed(some_digits(1, 60))]), 2)
    speeds = {"ours": max(speed_of_ours(call) for _ in range(3))}
    if "multimon-ng" in hears:
        speeds["multimon-ng"] = max(speed_of_multimon(call) for _ in range(3))
    table.add_row("speed, x real time", *(f"{speeds[name]:.0f}" for name in hears))
    table.add_row("speed, ratio to ours", *(f"{speeds[name] / speeds['ours']:.2f}" for name in hears))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
