"""How well and how fast the whole engine screens: every rule on synthetic recordings with known truth, people's
recordings where they are, and the peers where they are installed. Run as `make bench-screening`.

The tables go into docs/benchmarks.md between its markers; nothing of them is asserted in a test.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import say_ratios
from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.contracts.policy import FindingKind
from compliance_pipeline.media.decode import MediaReader, decode_audio
from compliance_pipeline.sandbox.calls import Kind, SyntheticRecording, card_number, make_recording
from compliance_pipeline.screening.engine import EmbeddedEngine, Screening, facts_of
from compliance_pipeline.screening.findings import Finding
from compliance_pipeline.screening.policy import RuleOutcome, evaluate, load_policy
from compliance_pipeline.screening.transcripts import parse_transcript
from compliance_pipeline_tests.media.audio import MemoryStream, Samples, encoded

ENDED = datetime(2026, 3, 12, 15, 0, tzinfo=UTC)
DOCS = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- bench-screening begins -->", "<!-- bench-screening ends -->"
SEEDS = 30
PEOPLE = Path(__file__).parent.parent.parent / "shared" / "audio"
HOURS_TO_CLAIM = 10

POLICY = load_policy()
ENGINE = EmbeddedEngine(POLICY, "benchmark")
RATIOS: dict[str, float] = {}
"""Filled by the sections that have a limit or a peer."""


def wilson(hits: int, of: int) -> str:
    """`0.98 (0.95-0.99)`: a share and its 95% interval (Wilson's score)."""
    if not of:
        return "-"
    share, z = hits / of, 1.96
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z * ((share * (1 - share) / of + z * z / (4 * of * of)) ** 0.5) / (1 + z * z / of)
    return f"{share:.3f} ({max(0, middle - half):.2f}-{min(1, middle + half):.2f})"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


@dataclass(slots=True)
class Screened:
    made: SyntheticRecording
    screening: Screening
    outcomes: list[RuleOutcome]

    @property
    def types(self) -> set[str]:
        return {outcome.rule.violation_type for outcome in self.outcomes if outcome.fired}


def screened(made: SyntheticRecording) -> Screened:
    transcript = parse_transcript(made.transcript, "application/json") if made.transcript else None
    stream = MemoryStream(made.media, content_type=made.content_type)
    screening = ENGINE.screen(stream, made.channel, made.speakers, transcript)
    queue = next((person["queue"] for person in made.participants if "queue" in person), None)
    facts = facts_of(screening, made.channel, direction=made.direction, queue=queue, started_at=made.start_time)
    return Screened(made, screening, evaluate(screening.findings, facts, POLICY))


# Rules: synthetic recordings of every kind

ALSO: dict[Kind, set[str]] = {Kind.VOICE_CVV: {"PCI_MID_CAPTURE"}}
"""Violations that a kind holds besides the one of its truth."""


@dataclass(slots=True)
class Score:
    found: int = 0
    accused: int = 0
    missed: int = 0
    false: int = 0

    def row(self) -> list[str]:
        held = self.found + self.missed
        precision, recall = self.found / max(1, self.found + self.false), self.found / max(1, held)
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return [
            str(held),
            wilson(self.found, held),
            str(self.accused),
            wilson(self.found, self.found + self.false),
            f"{f1:.3f}",
        ]


def corpus(seeds: int, *, words: bool) -> Iterator[Screened]:
    for kind in Kind:
        if not words and kind.channel is not Channel.VOICE:
            continue
        for seed in range(1000, 1000 + seeds):
            made = make_recording(seed, kind, ended_at=ENDED)
            yield screened(made if words else without_words(made))


def without_words(made: SyntheticRecording) -> SyntheticRecording:
    return replace(made, transcript=None)


def right_types(made: SyntheticRecording) -> set[str]:
    own = {made.truth.violation_type} if made.truth.violation_type else set()
    return own | ALSO.get(made.kind, set())


def rules(all_screened: Sequence[Screened]) -> str:
    """Recordings by violation type: whether any rule of the type fired, and whether it accused or asked for review."""
    scores: dict[str, Score] = {}
    for one in all_screened:
        right = right_types(one.made)
        accused = {o.rule.violation_type for o in one.outcomes if o.fired and o.rule.verdict == "VIOLATION_DETECTED"}
        for kind in right | one.types:
            score = scores.setdefault(kind, Score())
            if kind not in right:
                score.false += 1
            elif kind in one.types:
                score.found += 1
                score.accused += kind in accused
            else:
                score.missed += 1
    return table(
        ["violation type", "recordings", "recall", "of these accused", "precision", "F1"],
        [[kind, *scores[kind].row()] for kind in sorted(scores)],
    )


def by_rule(all_screened: Sequence[Screened]) -> str:
    rows = []
    for rule in POLICY.rules:
        fired = [one for one in all_screened if any(o.fired and o.rule.id == rule.id for o in one.outcomes)]
        undecided = sum(o.status == "undetermined" for one in all_screened for o in one.outcomes if o.rule is rule)
        right = sum(rule.violation_type in right_types(one.made) for one in fired)
        rows.append([rule.id, len(fired), wilson(right, len(fired)), undecided])
    return table(["rule", "fired", "rightly", "undetermined"], rows)


def offsets(all_screened: Sequence[Screened]) -> str:
    errors: dict[str, list[float]] = {}
    for one in all_screened:
        at, kind = one.made.truth.offset_ms, one.made.truth.violation_type
        starts = [o.start_ms for o in one.outcomes if o.fired and o.rule.violation_type == kind and o.finding]
        if at is not None and kind and starts and one.made.channel is Channel.VOICE:
            errors.setdefault(kind, []).append(min(abs(start - at) for start in starts))
    rows = [
        [kind, len(of), f"{np.median(of):.0f} ms", f"{np.percentile(of, 95):.0f} ms"]
        for kind, of in sorted(errors.items())
    ]
    return table(["violation type", "calls", "offset error, median", "95%"], rows)


_MEANS = {
    FindingKind.CARD_NUMBER: "PCI_MID_CAPTURE PCI_DTMF_CAPTURE",
    FindingKind.CARD_LENGTH_NUMBER: "PCI_MID_CAPTURE PCI_DTMF_CAPTURE",
    FindingKind.CARD_VERIFICATION_CODE: "PCI_SAD_CAPTURE",
    FindingKind.CARD_PIN: "PCI_SAD_CAPTURE",
    FindingKind.GOVERNMENT_ID: "PII_GOVERNMENT_ID",
    FindingKind.HEALTH_ID: "PII_GOVERNMENT_ID",
    FindingKind.BANK_ACCOUNT: "PII_GOVERNMENT_ID",
}


def reliability(all_screened: Sequence[Screened]) -> str:
    """Of the findings that are given so much confidence, how many are right."""
    bins: dict[float, Counter[bool]] = {}
    for one in all_screened:
        for finding in one.screening.findings:
            if finding.kind in _MEANS:
                right = bool(set(_MEANS[finding.kind].split()) & right_types(one.made))
                edge = next(e for e in (0.97, 0.9, 0.8, 0.7, 0.6, 0.0) if finding.confidence >= e)
                bins.setdefault(edge, Counter())[right] += 1
    return table(
        ["confidence", "findings", "right"],
        [[f"{edge:.2f} and more", of.total(), wilson(of[True], of.total())] for edge, of in sorted(bins.items())[::-1]],
    )


# Speed and memory


def decoded(media: bytes) -> Samples:
    _, blocks = decode_audio(MediaReader(MemoryStream(media)))
    return np.concatenate(list(blocks), axis=1)


def pcm(seconds: float, seed: int = 1) -> Samples:
    """A two-channel call of that length: synthetic calls one after the other."""
    parts: list[Samples] = []
    length = 0
    kinds = [kind for kind in Kind if kind.channel is Channel.VOICE]
    while length < seconds * 8000:
        made = make_recording(seed, kinds[seed % len(kinds)], ended_at=ENDED)
        parts.append(decoded(made.media))
        length = sum(part.shape[1] for part in parts)
        seed += 1
    return np.concatenate(parts, axis=1)[:, : round(seconds * 8000)]


def speed() -> str:
    samples = pcm(180)
    rows = []
    for container in ("mulaw", "mp3", "ogg"):
        data = encoded(container, samples)
        ENGINE.screen(MemoryStream(data[: len(data) // 8]), Channel.VOICE)
        taken = []
        for _ in range(3):
            before = time.process_time()
            ENGINE.screen(MemoryStream(data), Channel.VOICE)
            taken.append(time.process_time() - before)
        RATIOS[f"CPU of 3 minutes on two channels, {container} / 1 s (limit 1)"] = min(taken)
        rows.append([container, f"{min(taken):.2f} s", f"{180 / min(taken):.0f}"])
    return table(["3 minutes, two channels", "CPU", "x real time"], rows)


class Counted(MemoryStream):
    """Counts what was taken of it."""

    given = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in super().__iter__():
            self.given += len(chunk)
            yield chunk


def first_finding() -> str:
    rows = []
    for kind, name in ((Kind.VOICE_DIGITS, "spoken"), (Kind.VOICE_TONES, "keyed")):
        made = make_recording(7, kind, ended_at=ENDED)
        call, silence = decoded(made.media), np.zeros((2, 70 * 8000), np.float32)
        samples = np.concatenate([silence, call, silence], axis=1)
        stream = Counted(encoded("mulaw", samples), chunk=16_384)
        reported: list[int] = []
        ENGINE.screen(stream, Channel.VOICE, report=partial(_note, stream, reported))
        ends_ms = 70_000 + (made.truth.end_ms or 0)
        behind = f"{reported[0] / 16_000 - ends_ms / 1000:.1f} s" if reported else "not found"
        rows.append([name, f"{ends_ms / 1000:.1f} s", behind])
    return table(["card number", "its last digit ends at", "reported after so much more sound"], rows)


def _note(stream: Counted, reported: list[int], found: Sequence[Finding], _settled: Sequence[Finding]) -> None:
    if any(f.kind is FindingKind.CARD_NUMBER for f in found) and not reported:
        reported.append(stream.given)


def memory() -> str:
    """Peak of a process that screens two hours, above one that screens a minute."""
    peaks = []
    for minutes in (1, 120):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.screening", "--screen-minutes", str(minutes)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        peaks.append([float(part) for part in done.stdout.split()])
    (short, _), (long, seconds) = peaks
    RATIOS["memory of two hours beyond that of a minute / 64 MB (limit 1)"] = (long - short) / 64
    return (
        f"Two hours on two channels, mu-law: {seconds:.0f} s CPU ({7200 / seconds:.0f} x real time), "
        f"{long - short:.0f} MB above the {short:.0f} MB of a process that screens one minute (limit 64 MB)."
    )


def screen_minutes(minutes: int) -> None:
    """Prints peak MB and CPU seconds. The file is never held whole."""
    minute = encoded("mulaw", pcm(60))
    head, body = minute[:-960_000], minute[-960_000:]
    size = len(body) * minutes
    header = head[:-4] + size.to_bytes(4, "little")

    class Long(MemoryStream):
        def __iter__(self) -> Iterator[bytes]:
            yield header
            for _ in range(minutes):
                for at in range(0, len(body), 16_384):
                    yield body[at : at + 16_384]

    before = time.process_time()
    screening = ENGINE.screen(Long(b""), Channel.VOICE)
    assert screening.media is not None
    assert round(screening.media.duration_ms / 60_000) == minutes, screening.media
    # getrusage would give the parent's peak, which a child inherits until it executes.
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    print(int(peak) / 1024, time.process_time() - before)


# People


def people(folder: Path) -> str:
    def read(path: Path) -> Samples:
        return np.asarray(decoded(path.read_bytes()).mean(0), np.float32)

    rng = random.Random(11)
    speakers: dict[str, dict[str, list[Path]]] = {}
    for path in sorted((folder / "digits").rglob("*.wav")):
        digit, speaker, index = path.stem.split("_")
        if int(index) >= 42:
            speakers.setdefault(speaker, {}).setdefault(digit, []).append(path)
    rows = []
    talk = read(next((folder / "conversation").glob("*.wav")))
    conditions: list[tuple[str, float, float | None]] = [
        ("pauses of 0.1 s", 0.1, None),
        ("connected (60 ms overlap)", -0.06, None),
        ("babble 15 dB", 0.1, 15),
        ("babble 6 dB", 0.1, 6),
    ]
    for name, gap, babble in conditions:
        for speaker, clips in speakers.items():
            flagged = exact = 0
            for _ in range(20):
                number = card_number(rng)
                line = np.zeros(8000, np.float32)
                for at, digit in enumerate(number):
                    clip = read(rng.choice(clips[digit]))
                    clip = clip * np.float32(0.1 / (np.sqrt(np.mean(clip**2)) + 1e-9))
                    pause = round(8000 * (gap + (0.35 if at % 4 == 0 else 0)))
                    start = max(0, len(line) + pause)
                    line = np.pad(line, (0, max(0, start + len(clip) - len(line))))
                    line[start : start + len(clip)] += clip
                line = np.pad(line, (0, 16_000))
                if babble is not None:
                    noise = sum(np.roll(np.resize(talk, len(line)), rng.randrange(len(talk))) for _ in range(4))
                    line = line + noise * np.float32(
                        np.sqrt(np.mean(line**2) / np.mean(noise**2)) * 10 ** (-babble / 20)
                    )
                found = ENGINE.screen(MemoryStream(encoded("mulaw", line[None])), Channel.VOICE).findings
                flagged += any(f.kind in (FindingKind.CARD_NUMBER, FindingKind.CARD_LENGTH_NUMBER) for f in found)
                exact += any(f.masked.startswith(number[:5]) and f.masked.endswith(number[-4:]) for f in found)
            rows.append([name, speaker, wilson(flagged, 20), f"{exact}/20"])
    return table(["cards read by people whose other clips are in training", "speaker", "noticed", "exact"], rows)


def false_alarms(folders: Sequence[Path]) -> str:
    rows = []
    seconds = alarms = 0.0
    for folder in folders:
        own_seconds = own = 0.0
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".wav", ".ogg", ".mp3", ".flac")):
            screening = ENGINE.screen(MemoryStream(path.read_bytes()), Channel.VOICE)
            own_seconds += screening.media.duration_ms / 1000 if screening.media else 0
            own += len(screening.findings)
        rows.append([folder.name, f"{own_seconds / 60:.1f}", f"{own:.0f}"])
        seconds, alarms = seconds + own_seconds, alarms + own
    rows.append(["together", f"{seconds / 60:.1f}", f"{alarms:.0f}"])
    most = (alarms + 1.96 * (alarms + 1) ** 0.5 + 1.9) / max(seconds / 3600, 1e-9) * HOURS_TO_CLAIM
    return (
        table(["speech and music without numbers", "minutes", "findings"], rows)
        + f"\n\nSo, at 95%, fewer than {most:.1f} in {HOURS_TO_CLAIM} hours; the material does not allow to claim less."
    )


def peer(module: str) -> str:
    done = subprocess.run([sys.executable, "-m", module], check=True, capture_output=True, text=True)
    said, _, ratios = done.stdout.strip().rpartition("\n")
    RATIOS.update(json.loads(ratios)["ratios"])
    return said if said.startswith("|") else f"```text\n{said}\n```"


def sections(seeds: int, people_folder: Path, quiet: Sequence[Path]) -> Iterator[tuple[str, Callable[[], str]]]:
    """Titles and what makes their text, in order; some rest on the same screened corpus."""
    read: list[Screened] = []
    heard: list[Screened] = []

    def with_words() -> str:
        read.extend(corpus(seeds, words=True))
        return rules(read)

    def by_sound() -> str:
        heard.extend(corpus(seeds, words=False))
        return rules(heard)

    yield (
        f"Violations, {seeds} recordings of each kind, calls with their transcript where the platform has one",
        with_words,
    )
    yield "The same calls without any transcript: sound alone", by_sound
    yield "By rule", lambda: by_rule(read)
    yield "Where in the call (sound alone)", lambda: offsets(heard)
    yield "Is the confidence true?", lambda: reliability([*read, *heard])
    yield "Speed, one thread", speed
    yield "Time to first finding", first_finding
    yield "Memory", memory
    if people_folder.is_dir():
        yield "People's voices", lambda: people(people_folder)
        folders = [people_folder / name for name in ("calls", "conversation", "music", "prompts")]
        yield "False alarms", lambda: false_alarms([*folders, *quiet])
    yield "Tones", lambda: peer("benchmarks.tones")
    yield "Text", lambda: peer("benchmarks.text")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="recordings of each kind")
    parser.add_argument("--people", type=Path, default=PEOPLE, help="folder with people's recordings, if you have it")
    parser.add_argument(
        "--quiet", type=Path, nargs="*", default=[], help="folders of speech and music, no numbers in it"
    )
    parser.add_argument("--only", default="", help="sections whose title holds this; docs stay as they are")
    parser.add_argument("--screen-minutes", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.screen_minutes:
        screen_minutes(options.screen_minutes)
        return
    parts = []
    for title, make in sections(options.seeds, options.people, options.quiet):
        if options.only and options.only.lower() not in title.lower():
            continue
        started = time.monotonic()
        print(f"{title} ...", end=" ", file=sys.stderr, flush=True)
        parts.append(f"### {title}\n\n{make()}")
        print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
        print(parts[-1] + "\n", flush=True)
    if not options.only:
        before, _, rest = DOCS.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        DOCS.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}")
    say_ratios("screening", RATIOS)


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    main()
