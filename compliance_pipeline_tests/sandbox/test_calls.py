"""Recordings: reproducible, of the kind that they say, with the truth that they hold."""

import email
import email.policy
import io
import json
import re
import wave
from datetime import UTC, datetime, timedelta

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.contracts.verdict import VerdictValue
from compliance_pipeline.sandbox.calls import (
    Container,
    Damage,
    Kind,
    PlannedRecording,
    Readiness,
    SyntheticRecording,
    _worded,
    card_number,
    demo_plan,
    endless_plan,
    make_recording,
    recording_id_of,
)
from compliance_pipeline.screening.policy import load_policy
from compliance_pipeline.screening.transcripts import Turn, parse_transcript

ENDED_AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
VOICE = [kind for kind in Kind if kind.channel is Channel.VOICE]
TEXT = [kind for kind in Kind if kind.channel is not Channel.VOICE]


def make(
    seed: int, kind: Kind, container: Container = Container.WAV, damage: Damage | None = None
) -> SyntheticRecording:
    return make_recording(seed, kind, ended_at=ENDED_AT, container=container, damage=damage)


def decoded(media: bytes) -> NDArray[np.float32]:
    """Samples of shape (2, n) at 8 kHz."""
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=8000)
    with av.open(io.BytesIO(media), mode="r") as container:
        parts = [part.to_ndarray() for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    return np.concatenate(parts, axis=1)


def text_of(recording: SyntheticRecording) -> str:
    if recording.channel is Channel.CHAT:
        return "\n".join(message["text"] for message in json.loads(recording.media)["messages"])
    message = email.message_from_bytes(recording.media, policy=email.policy.default)
    content: str = message.get_content()
    return content


def passes_luhn(number: str) -> bool:
    doubled = [int(d) * (1 + at % 2) for at, d in enumerate(reversed(number))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def keyed_digits(channel: NDArray[np.float32]) -> str:
    """What a plain 25 ms spectrum hears on a keypad: one key for each run of frames with two strong keypad tones."""
    rows, columns = (697, 770, 852, 941), (1209, 1336, 1477)
    t = np.arange(200) / 8000
    bank = np.exp(-2j * np.pi * np.outer([*rows, *columns], t))
    heard, last = "", ""
    for start in range(0, len(channel) - 200, 80):
        frame = channel[start : start + 200]
        power = np.abs(bank @ frame) ** 2 * 2 / 200 / (np.sum(frame**2) + 1e-9)
        row, column = int(np.argmax(power[:4])), int(np.argmax(power[4:]))
        pure = power[row] + power[4 + column] > 0.85 and min(power[row], power[4 + column]) > 0.1
        key = "123456789*0#"[3 * row + column] if pure and np.std(frame) > 0.05 else ""
        heard += key if key and not last else ""
        last = key
    return heard


@pytest.mark.parametrize("kind", TEXT)
@given(seed=st.integers(0, 2**40))
@settings(max_examples=25, deadline=None)
def test_the_same_seed_gives_the_same_text_recording(kind: Kind, seed: int) -> None:
    assert make(seed, kind) == make(seed, kind)


@pytest.mark.parametrize("container", Container)
def test_the_same_seed_gives_the_same_voice_recording(container: Container) -> None:
    first = make(3, Kind.VOICE_TONES, container)
    assert make(3, Kind.VOICE_TONES, container) == first
    assert make(4, Kind.VOICE_TONES, container).media != first.media


def test_the_same_seed_gives_the_same_sound_after_other_calls_were_made() -> None:
    first = make(5, Kind.VOICE_DIGITS)
    make(6, Kind.VOICE_CLEAN)
    make(7, Kind.VOICE_DIGITS)
    assert make(5, Kind.VOICE_DIGITS).media == first.media


@given(seed=st.integers())
def test_a_planned_recording_knows_its_id_before_it_is_made(seed: int) -> None:
    assert make(seed, Kind.CHAT_CLEAN).recording_id == recording_id_of(seed, Kind.CHAT_CLEAN)
    assert recording_id_of(seed, Kind.CHAT_CLEAN) != recording_id_of(seed, Kind.CHAT_CARD)


@given(rng=st.randoms(use_true_random=False))
def test_card_numbers_pass_luhn_within_real_issuer_ranges(rng: object) -> None:
    import random

    assert isinstance(rng, random.Random)
    number = card_number(rng)
    assert passes_luhn(number)
    if number.startswith("37"):
        assert len(number) == 15
    else:
        assert len(number) == 16
        assert number[0] == "4" or 51 <= int(number[:2]) <= 55 or 2221 <= int(number[:4]) <= 2720


def test_voice_is_two_channel_mu_law_wav_at_8_khz_of_15_to_40_seconds() -> None:
    for kind in VOICE:
        recording = make(1, kind)
        with av.open(io.BytesIO(recording.media)) as container:
            assert container.format.name == "wav"
            stream = container.streams.audio[0]
            assert (stream.codec_context.name, stream.rate, stream.channels) == ("pcm_mulaw", 8000, 2)
        seconds = decoded(recording.media).shape[1] / 8000
        assert 15 <= seconds <= 40
        assert seconds == pytest.approx((recording.end_time - recording.start_time).total_seconds(), abs=0.01)


@pytest.mark.parametrize("container", Container)
def test_the_card_number_is_keyed_on_the_customers_channel_where_the_truth_says(container: Container) -> None:
    recording = make(2, Kind.VOICE_TONES, container)
    card = recording.planted[-1]
    agent, customer = decoded(recording.media)
    assert card in keyed_digits(customer)
    assert keyed_digits(agent) == ""
    assert recording.truth.offset_ms is not None
    assert recording.truth.end_ms is not None
    span = slice((recording.truth.offset_ms - 150) * 8, (recording.truth.end_ms + 150) * 8)
    assert keyed_digits(customer[span]) == card


def test_spoken_digits_sound_in_the_customers_channel_between_the_offsets_of_the_truth() -> None:
    recording = make(2, Kind.VOICE_DIGITS)
    agent, customer = decoded(recording.media)
    assert recording.truth.offset_ms is not None
    assert recording.truth.end_ms is not None
    start, end = recording.truth.offset_ms * 8, recording.truth.end_ms * 8
    assert np.std(customer[start:end]) > 0.03
    assert np.std(customer[start - 2400 : start - 80]) < 0.01
    assert np.std(agent[start:end]) < 0.01
    assert keyed_digits(customer) == ""


def said_in(recording: SyntheticRecording) -> list[Turn]:
    assert recording.transcript is not None
    return list(parse_transcript(recording.transcript, "application/json").turns)


@pytest.mark.parametrize("kind", VOICE)
def test_a_transcript_says_who_spoke_when(kind: Kind) -> None:
    recording = next(made for made in (make(seed, kind) for seed in range(20)) if made.transcript)
    sound = decoded(recording.media)
    assert recording.speakers == ("agent", "customer")
    for turn in said_in(recording):
        assert turn.end_ms is not None
        channel = recording.speakers.index(turn.speaker)
        span = slice(turn.start_ms * 8, turn.end_ms * 8)
        assert np.std(sound[channel][span]) > 0.02
        assert np.std(sound[1 - channel][span]) < 0.01


@pytest.mark.parametrize("kind", VOICE)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=5, deadline=None)
def test_a_call_begins_with_a_notice_unless_its_kind_is_the_lack_of_one(kind: Kind, seed: int) -> None:
    recording = make(seed, kind)
    if recording.transcript:
        notices = [t.start_ms for t in said_in(recording) if t.speaker == "agent" and "record" in t.text]
        assert all(start < 10_000 for start in notices)
        assert len(notices) == (kind is not Kind.VOICE_NO_NOTICE)


def test_most_calls_have_a_transcript_and_a_clean_one_without_is_undetermined() -> None:
    clean = [make(seed, kind) for kind in (Kind.VOICE_CLEAN, Kind.VOICE_LOOKALIKE) for seed in range(30)]
    without = [recording for recording in clean if recording.transcript is None]
    assert 4 <= len(without) <= 20
    for recording in clean:
        undecided = recording.transcript is None
        assert recording.truth.verdict is (VerdictValue.UNDETERMINED if undecided else VerdictValue.NO_VIOLATION)


@pytest.mark.parametrize(
    ("kind", "violation"),
    [
        (Kind.VOICE_READ_BACK, "PCI_MID_CAPTURE"),
        (Kind.VOICE_WORDED, "PCI_MID_CAPTURE"),
        (Kind.VOICE_CVV, "PCI_SAD_CAPTURE"),
        (Kind.VOICE_NO_NOTICE, "REC_NOTICE_MISSING"),
        (Kind.VOICE_THREAT, "FDCPA_THREAT"),
    ],
)
def test_what_only_words_can_tell_always_has_a_transcript_and_its_span_is_what_was_said(
    kind: Kind, violation: str
) -> None:
    for seed in range(6):
        recording = make(seed, kind)
        assert (recording.truth.verdict, recording.truth.violation_type) == (
            VerdictValue.VIOLATION_DETECTED,
            violation,
        )
        turns = said_in(recording)
        if kind is Kind.VOICE_NO_NOTICE:
            assert (recording.truth.offset_ms, recording.truth.end_ms) == (None, None)
            assert recording.end_time - recording.start_time > timedelta(seconds=31)
        else:
            assert recording.truth.offset_ms in [turn.start_ms for turn in turns]
            assert recording.truth.end_ms in [turn.end_ms for turn in turns]


def test_the_default_policy_knows_every_violation_that_is_planted() -> None:
    known = {rule.violation_type for rule in load_policy().rules}
    planted = {make(1, kind).truth.violation_type for kind in Kind} - {None}
    assert len(planted) >= 6
    assert planted <= known


DIGITS = {"zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7"}
DIGITS |= {"eight": "8", "nine": "9", "oh": "0"}
TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def written(words: str) -> str:
    """Digits of a number in words, read as a person would."""
    digits, times, tens = "", 1, ""
    for word in words.split():
        if word in ("double", "triple"):
            times = 2 if word == "double" else 3
        elif word in TEENS:
            digits += str(10 + TEENS.index(word))
        elif word in TENS:
            tens = str(2 + TENS.index(word))
        else:
            digits += tens + DIGITS[word] * times
            times, tens = 1, ""
    return digits


@given(st.lists(st.text("0123456789", min_size=1, max_size=6), min_size=1, max_size=4))
@example(["4111", "2203", "1000", "0000", "4412"])
def test_a_number_in_words_can_be_read_one_way_only(groups: list[str]) -> None:
    assert written(" ".join(_worded(group) for group in groups)) == "".join(groups)


def test_numbers_are_worded_as_people_say_them() -> None:
    said = {group: _worded(group) for group in ("4111", "5544", "4217", "1012", "4020", "1203", "5678")}
    assert said == {
        "4111": "four triple one",
        "5544": "double five double four",
        "4217": "forty two seventeen",
        "1012": "ten twelve",
        "4020": "four zero two zero",
        "1203": "one two zero three",
        "5678": "fifty six seventy eight",
    }


def test_the_number_in_a_worded_call_is_the_card_number() -> None:
    for seed in range(6):
        recording = make(seed, Kind.VOICE_WORDED)
        (text,) = (t.text for t in said_in(recording) if t.start_ms == recording.truth.offset_ms)
        assert written(text) == recording.planted[-1]
        assert {"double", "triple"} & set(text.split())
        assert set(TENS) & set(text.split())


def test_a_read_back_repeats_the_first_half_on_the_other_channel() -> None:
    recording = make(1, Kind.VOICE_READ_BACK)
    numbers = [(t.speaker, written(t.text)) for t in said_in(recording) if set(t.text.split()) <= set(DIGITS)]
    (first, half), (reader, again), (second, rest) = numbers
    assert (first, reader, second) == ("customer", "agent", "customer")
    assert half == again
    assert half + rest == recording.planted[-1]


def test_a_clean_call_keys_at_most_one_digit() -> None:
    for seed in range(6):
        assert len(keyed_digits(decoded(make(seed, Kind.VOICE_CLEAN).media)[1])) <= 1


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        (Kind.CHAT_CARD, r"\d{4}[ -]?\d{4,6}[ -]?\d{4,5}"),
        (Kind.EMAIL_CARD, r"\d{4}[ -]?\d{4,6}[ -]?\d{4,5}"),
        (Kind.CHAT_SSN, r"\b\d{3}-\d{2}-\d{4}\b"),
        (Kind.CHAT_CVV, r"cvv is \d{3}\b"),
        (Kind.CHAT_IBAN, r"IBAN (DE|AT)\d\d[\d ]{16,}"),
        (Kind.CHAT_NHS, r"NHS number is \d{3} ?\d{3} ?\d{4}\b"),
    ],
)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_text_holds_what_its_truth_says(kind: Kind, pattern: str, seed: int) -> None:
    recording = make(seed, kind)
    assert re.search(pattern, text_of(recording))
    assert recording.truth.verdict is VerdictValue.VIOLATION_DETECTED
    if recording.channel is Channel.CHAT:
        messages = json.loads(recording.media)["messages"]
        first, guilty = messages[0], next(m for m in messages if re.search(pattern, m["text"]))
        gap = datetime.fromisoformat(guilty["time"]) - datetime.fromisoformat(first["time"])
        assert gap / timedelta(milliseconds=1) == recording.truth.offset_ms
        assert datetime.fromisoformat(first["time"]) == recording.start_time


@pytest.mark.parametrize("kind", [Kind.CHAT_CLEAN, Kind.EMAIL_CLEAN])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_clean_text_has_no_number_longer_than_a_phone_number_and_none_like_an_ssn(kind: Kind, seed: int) -> None:
    recording = make(seed, kind)
    text = text_of(recording)
    assert recording.truth.violation_type is None
    assert all(len(re.sub(r"\D", "", run)) <= 10 for run in re.findall(r"[\d()\- ]+", text))
    assert not re.search(r"\b\d{3}[- ]\d{2}[- ]\d{4}\b|\b\d{9}\b|cvv", text)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_identifiers_carry_valid_check_digits(seed: int) -> None:
    iban, nhs = make(seed, Kind.CHAT_IBAN).planted[2], make(seed, Kind.CHAT_NHS).planted[2]
    assert len(iban) == {"DE": 22, "AT": 20}[iban[:2]]
    assert int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1
    assert len(nhs) == 10
    assert sum(int(digit) * weight for digit, weight in zip(nhs, range(10, 0, -1), strict=True)) % 11 == 0


@given(seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_numbers_that_look_like_cards_are_none(seed: int) -> None:
    recording = make(seed, Kind.CHAT_LOOKALIKE)
    runs = re.findall(r"\d+", text_of(recording))
    assert sum(len(run) >= 13 for run in runs) == 2
    assert not any(len(run) == 16 and (passes_luhn(run) or run[0] in "23456") for run in runs)
    assert recording.truth.violation_type is None


@pytest.mark.parametrize("kind", Kind)
def test_the_truth_and_the_repr_hold_nothing_that_was_planted(kind: Kind) -> None:
    recording = make(11, kind)
    assert recording.planted
    for value in recording.planted:
        assert value not in repr(recording)
        assert value not in repr(recording.truth)


def test_the_callers_number_and_address_are_in_the_metadata_of_the_audio() -> None:
    for container in Container:
        recording = make(1, Kind.VOICE_CLEAN, container)
        with av.open(io.BytesIO(recording.media)) as opened:
            metadata = {**opened.metadata, **opened.streams.audio[0].metadata}
        assert recording.planted[0] in " ".join(metadata.values())


def test_damaged_media_is_what_its_name_says() -> None:
    whole = make(1, Kind.VOICE_TONES)
    damaged = {damage: make(1, Kind.VOICE_TONES, damage=damage) for damage in Damage}
    assert {recording.truth.verdict for recording in damaged.values()} == {VerdictValue.UNSCREENABLE}
    assert {recording.transcript for recording in damaged.values()} == {None}
    assert damaged[Damage.EMPTY].media == b""
    with wave.open(io.BytesIO(damaged[Damage.HEADER_ONLY].media)) as header:
        assert (len(damaged[Damage.HEADER_ONLY].media), header.getnframes()) == (44, 0)
    assert damaged[Damage.HTML].media.startswith(b"<!doctype html>")
    assert damaged[Damage.HTML].content_type == "audio/wav"
    cut = damaged[Damage.TRUNCATED].media
    assert whole.media.startswith(cut)
    assert whole.truth.offset_ms is not None
    assert 1000 < len(cut) < whole.truth.offset_ms * 16
    with pytest.raises(av.error.InvalidDataError):
        av.open(io.BytesIO(damaged[Damage.UNKNOWN_FORMAT].media))


def test_damage_that_nobody_could_see_is_refused() -> None:
    with pytest.raises(ValueError, match="voice recordings only"):
        make(1, Kind.EMAIL_CARD, damage=Damage.EMPTY)
    with pytest.raises(ValueError, match="truncated"):
        make(1, Kind.VOICE_TONES, Container.MP3, Damage.TRUNCATED)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30)
def test_the_demo_plan_has_40_recordings_of_every_kind_5_twice_3_late_2_damaged(seed: int) -> None:
    plan = demo_plan(seed)
    assert plan == demo_plan(seed)
    assert len(plan) == len({planned.recording_id for planned in plan}) == 40
    assert {planned.kind for planned in plan} == set(Kind)
    assert sum(planned.deliveries == 2 for planned in plan) == 5
    late = [planned.readiness for planned in plan if planned.not_ready_for]
    assert sorted(late) == [Readiness.COMPLETED, Readiness.COMPLETED, Readiness.EARLY]
    assert {planned.damage for planned in plan} == {None, Damage.TRUNCATED, Damage.HTML}
    assert sum(planned.damage is not None for planned in plan) == 2
    assert {planned.kind for planned in plan if planned.damage is None} == set(Kind)
    assert [planned.at_s for planned in plan] == sorted(planned.at_s for planned in plan)
    assert plan[0].at_s >= 0
    assert plan[-1].at_s <= 40


@given(seed=st.integers(0, 10**6), count=st.integers(0, 100))
def test_a_demo_plan_of_any_length_can_be_asked_for(seed: int, count: int) -> None:
    assert len(demo_plan(seed, count=count, spread_s=3)) == count


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30)
def test_a_demo_plan_of_12_has_tones_digits_and_typed_numbers_that_can_be_screened(seed: int) -> None:
    whole = {planned.kind for planned in demo_plan(seed, count=12) if planned.damage is None}
    wanted = {Kind.VOICE_TONES, Kind.VOICE_DIGITS, Kind.CHAT_CARD, Kind.CHAT_SSN, Kind.CHAT_CVV, Kind.CHAT_CLEAN}
    assert wanted | {Kind.EMAIL_CARD, Kind.EMAIL_CLEAN} <= whole


def test_the_endless_plan_is_reproducible_and_keeps_its_pace() -> None:
    def first(seed: int) -> list[PlannedRecording]:
        return [planned for planned, _ in zip(endless_plan(seed, interval_s=6), range(400), strict=False)]

    plan = first(1)
    assert plan == first(1)
    assert plan != first(2)
    assert plan[-1].at_s / 399 == pytest.approx(6, rel=0.1)
    assert {planned.kind for planned in plan} == set(Kind)
    assert {planned.damage for planned in plan} == {None, *Damage}
