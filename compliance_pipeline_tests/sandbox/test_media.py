"""The media host over real HTTP: each fault as a client sees it, what passes and what stays."""

import io
import time
import wave
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import av
import httpx
import numpy as np
import pytest

from compliance_pipeline.sandbox.calls import Kind, make_recording
from compliance_pipeline.sandbox.faults import FaultKind, PlannedFault
from compliance_pipeline.sandbox.platform import PlatformState, serve
from compliance_pipeline_tests.sandbox.struck import chat, fault, state_under


def fetched(*faults: PlannedFault, kind: Kind = Kind.CHAT_CARD, tries: int = 2) -> list[httpx.Response | str]:
    """What each try to fetch the same recording gives; a broken transfer by its name."""
    state = state_under(*faults)
    state.add(recording := chat(kind=kind))
    answers: list[httpx.Response | str] = []
    with serve(state):
        for _ in range(tries):
            try:
                answers.append(httpx.get(state.media_url(recording.recording_id)))
            except httpx.TransportError as error:
                answers.append(type(error).__name__)
    return answers


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (FaultKind.MEDIA_EXPIRED, 403, "Request has expired"),
        (FaultKind.MEDIA_NOT_FOUND, 404, "NoSuchKey"),
        (FaultKind.MEDIA_SLOW_DOWN, 503, "SlowDown"),
    ],
)
def test_refusals_are_xml_and_pass_after_so_many_times(kind: FaultKind, status: int, code: str) -> None:
    first, second, third = fetched(fault(kind, times=2), tries=3)
    for refused in (first, second):
        assert isinstance(refused, httpx.Response)
        assert refused.status_code == status
        assert refused.headers["content-type"].startswith("application/xml")
        assert code in refused.text
    assert isinstance(third, httpx.Response)
    assert third.status_code == 200


@pytest.mark.parametrize(
    ("kind", "error"), [(FaultKind.MEDIA_SHORT, "RemoteProtocolError"), (FaultKind.MEDIA_RESET, "ReadError")]
)
def test_a_transfer_breaks_off_once_then_comes_whole(kind: FaultKind, error: str) -> None:
    broken, whole = fetched(fault(kind), kind=Kind.VOICE_CLEAN)
    assert broken == error
    assert isinstance(whole, httpx.Response)
    assert len(whole.content) == int(whole.headers["content-length"])


def test_a_short_body_is_shorter_than_its_content_length() -> None:
    state = state_under(fault(FaultKind.MEDIA_SHORT))
    state.add(recording := chat())
    with serve(state), httpx.stream("GET", state.media_url(recording.recording_id)) as answer:
        assert int(answer.headers["content-length"]) == len(recording.media)
        chunks = answer.iter_raw()
        got = next(chunks)
        with pytest.raises(httpx.RemoteProtocolError):
            b"".join(chunks)
    assert 0 < len(got) < len(recording.media)
    assert recording.media.startswith(got)


def test_a_header_without_sound_and_a_web_page_stay_and_the_truth_says_so() -> None:
    for kind, content_type in ((FaultKind.MEDIA_HEADER_ONLY, "audio/wav"), (FaultKind.MEDIA_HTML, "text/html")):
        for answer in fetched(fault(kind), kind=Kind.VOICE_TONES):
            assert isinstance(answer, httpx.Response)
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(content_type)
            if kind is FaultKind.MEDIA_HEADER_ONLY:
                assert len(answer.content) == 44
                with wave.open(io.BytesIO(answer.content)) as sound:
                    assert sound.getnframes() == 0
        state = state_under(fault(kind))
        state.add(chat(kind=Kind.VOICE_TONES))
        state.add(chat())
        call, text = state.truth()["recordings"]
        assert (call["expectation"], call["expectedVerdict"]) == ("unscreenable", "UNSCREENABLE")
        assert (call["violationType"], call["offsetMs"]) == (None, None)
        assert (text["expectation"], text["expectedVerdict"]) == ("verdict", "VIOLATION_DETECTED")


def test_a_wrong_type_comes_with_the_right_bytes() -> None:
    state = state_under(fault(FaultKind.MEDIA_WRONG_TYPE))
    state.add(recording := chat())
    with serve(state):
        answer = httpx.get(state.media_url(recording.recording_id))
    assert (answer.content, answer.headers["content-type"]) == (recording.media, "binary/octet-stream")


def test_a_slow_drip_takes_its_seconds_and_is_whole() -> None:
    began = time.monotonic()
    slow, quick = fetched(fault(FaultKind.MEDIA_SLOW_DRIP, seconds=0.6))
    assert isinstance(slow, httpx.Response)
    assert isinstance(quick, httpx.Response)
    assert slow.content == quick.content
    assert time.monotonic() - began > 0.5


def test_media_elsewhere_is_inside_the_network_or_redirects_there_and_who_follows_is_seen() -> None:
    state = state_under(fault(FaultKind.MEDIA_ELSEWHERE))
    recordings = [chat(seed) for seed in range(1, 20)]
    for recording in recordings:
        state.add(recording)
    with serve(state) as base_url:
        urls = [state.media_url(recording.recording_id) for recording in recordings]
        outside = {urlsplit(url).hostname for url in urls if not url.startswith(base_url)}
        assert outside == {"169.254.169.254", "10.0.0.1"}
        own = next(url for url in urls if url.startswith(base_url))
        answer = httpx.get(own)
        assert answer.status_code == 302
        assert state.counts["inside reached"] == 0
        assert httpx.get(own, follow_redirects=True).status_code == 200
    assert state.counts["inside reached"] == 1
    assert {row["expectation"] for row in state.truth()["recordings"]} == {"refused"}


def samples(media: bytes, channel: int) -> list[float]:
    with av.open(io.BytesIO(media), mode="r") as container:
        planes = av.AudioResampler(format="fltp", layout="stereo", rate=8000)
        parts = [part.to_ndarray() for frame in container.decode(audio=0) for part in planes.resample(frame)]
    found: list[float] = np.concatenate(parts, axis=1)[channel].tolist()
    return found


def test_each_channel_of_a_call_can_be_had_as_a_mono_file() -> None:
    state = state_under()
    state.add(call := chat(2, Kind.VOICE_TONES))
    heard_of_each: list[Any] = []
    with serve(state):
        for channel in (0, 1):
            answer = httpx.get(state.media_url(call.recording_id, str(channel)))
            with wave.open(io.BytesIO(answer.content)) as sound:
                assert (sound.getnchannels(), sound.getframerate(), sound.getsampwidth()) == (1, 8000, 2)
                heard = np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2") / 32768
            assert np.allclose(heard, samples(call.media, channel), atol=1e-3)
            heard_of_each.append(heard)
        with wave.open(io.BytesIO(httpx.get(state.media_url(call.recording_id, "mono")).content)) as mixed:
            assert mixed.getnchannels() == 1
            together = np.frombuffer(mixed.readframes(mixed.getnframes()), dtype="<i2") / 32768
        assert np.corrcoef(together, np.sum(heard_of_each, axis=0))[0, 1] > 0.99
        for wrong in ("2", "-1", "stereo"):
            assert httpx.get(state.media_url(call.recording_id, wrong)).status_code == 404
        other = state.media_url(call.recording_id, "0")
        assert httpx.get(other.replace("/0?", "/1?")).status_code == 403
        assert httpx.get(other, headers={"Authorization": "Bearer x"}).status_code == 400
    assert state.held[call.recording_id].seen["bearer leaked"] == 1


def test_of_an_endless_run_only_the_newest_calls_keep_their_media(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compliance_pipeline.sandbox.state._MOST_CALLS", 3)
    state = state_under()
    call = chat(kind=Kind.VOICE_THREAT)
    calls = [
        state.add(replace(call, recording_id=f"call-{number}", media=call.media + bytes(number))) for number in range(5)
    ]
    text = state.add(chat())
    with serve(state):
        for number, held in enumerate(calls):
            urls = [state.media_url(f"call-{number}"), state.transcript_url(f"call-{number}")]
            answers = [httpx.get(url) for url in urls]
            assert [answer.status_code for answer in answers] == ([404, 404] if number < 2 else [200, 200])
            assert bool(held.recording.media) == (number >= 2)
        assert "NoSuchKey" in httpx.get(state.media_url("call-0")).text
        assert httpx.get(state.media_url(text.recording.recording_id)).content == text.recording.media
    assert [row["transcript"] for row in state.truth()["recordings"]] == [True] * 5 + [False]


def test_calls_that_share_their_media_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compliance_pipeline.sandbox.state._MOST_CALLS", 3)
    state = state_under()
    call = chat(kind=Kind.VOICE_CLEAN)
    shared = [state.add(replace(call, recording_id=f"call-{number}")) for number in range(10)]
    assert all(held.recording.media for held in shared)


def test_what_strikes_a_recording_does_not_change_with_the_plan() -> None:
    state: PlatformState = state_under(fault(FaultKind.DELETED))
    before = state.add(make_recording(1, Kind.CHAT_CLEAN, ended_at=datetime.now(UTC)))
    state.follow(state_under().plan)
    after = state.add(make_recording(2, Kind.CHAT_CLEAN, ended_at=datetime.now(UTC)))
    assert (state.expectation(before), state.expectation(after)) == ("refused", "verdict")
