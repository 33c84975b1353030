"""What the decoder promises of any file it is given, whole, cut, damaged or something else altogether."""

import struct
import tracemalloc
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compliance_pipeline.media.decode import AudioFormat, MediaReader, UnscreenableMedia, decode_audio, missing_bytes
from compliance_pipeline.platforms.port import Refused, TransferBroken
from compliance_pipeline_tests.media.audio import CODECS, MemoryStream, Samples, encoded, sound, video_without_audio

SECONDS = 6.0
TELLS_ITS_SIZE = ("wav", "mulaw", "mp3", "ogg", "webm")
STREAMED = tuple(kind for kind in CODECS if kind != "m4a")


@cache
def file(kind: str, channels: int = 2) -> bytes:
    return encoded(kind, sound(SECONDS, channels))


def decoded(data: bytes, chunk: int = 4096) -> tuple[AudioFormat, Samples, MediaReader]:
    reader = MediaReader(MemoryStream(data, chunk=chunk))
    audio, blocks = decode_audio(reader)
    return audio, np.concatenate(list(blocks), axis=1), reader


def level(samples: Samples, hertz: float) -> float:
    t = np.arange(len(samples)) / 8000
    return float(abs(np.mean(samples * np.exp(-2j * np.pi * hertz * t)))) * 2


def is_short(audio: AudioFormat, reader: MediaReader) -> bool:
    return audio.cut_short or bool(missing_bytes(reader))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", CODECS)
def test_every_format_becomes_8_khz_with_its_channels_apart(kind: str, channels: int) -> None:
    audio, samples, reader = decoded(file(kind, channels))
    assert samples.dtype == np.float32
    assert samples.shape[0] == audio.channels == channels
    assert samples.shape[1] / 8000 == pytest.approx(SECONDS, abs=0.15) == audio.duration_s
    for channel in range(channels):
        assert level(samples[channel], 440 * (channel + 1)) == pytest.approx(0.3, rel=0.15)
        assert level(samples[channel], 440 * (2 - channel)) < 0.03 or channels == 1
    assert audio.lost_s == 0
    assert not is_short(audio, reader)


@pytest.mark.parametrize("kind", CODECS)
def test_the_samples_do_not_depend_on_the_chunks_in_which_the_bytes_come(kind: str) -> None:
    _, whole, _ = decoded(file(kind), chunk=10**9)
    for chunk in (1 if kind in ("mp3", "mulaw") else 33, 777, 65_536):
        np.testing.assert_array_equal(decoded(file(kind), chunk)[1], whole)


@pytest.mark.parametrize("kind", STREAMED)
def test_the_first_block_comes_long_before_the_last_byte(kind: str) -> None:
    data = encoded(kind, sound(30, 2))
    stream = MemoryStream(data, chunk=1024)
    _, blocks = decode_audio(MediaReader(stream))
    assert next(blocks).shape[1] <= 3 * 8000
    assert stream.sent < len(data) / 3


@pytest.mark.parametrize("kind", CODECS)
def test_size_and_digest_are_those_of_all_bytes_even_behind_the_audio(kind: str) -> None:
    data = file(kind)
    if kind in ("wav", "mulaw"):
        data += b"LIST\x0a\x00\x00\x00behind it!"
    _, _, reader = decoded(data)
    assert (reader.size, reader.sha256) == (len(data), sha256(data).hexdigest())


@pytest.mark.parametrize("kind", CODECS)
def test_a_file_cut_anywhere_never_crashes_and_is_never_taken_for_whole(kind: str) -> None:
    data = file(kind)
    cuts = {*range(1, 200, 7), *range(200, len(data), len(data) // 40), len(data) - 1, len(data) - 100}
    for cut in sorted(cuts):
        try:
            audio, _, reader = decoded(data[:cut])
        except UnscreenableMedia:
            continue
        lacks_s = SECONDS - audio.duration_s
        if kind in TELLS_ITS_SIZE:
            assert missing_bytes(reader) is True, cut
        else:
            assert audio.cut_short or lacks_s < 0.5, cut


def test_a_wav_whose_size_was_not_known_when_it_was_begun_is_not_called_short() -> None:
    data = bytearray(file("mulaw"))
    at = data.index(b"data") + 4
    for size in (0, 0xFFFFFFFF):
        data[at : at + 4] = struct.pack("<I", size)
        reader = MediaReader(MemoryStream(bytes(data)))
        reader.rest()
        assert missing_bytes(reader) is None


def test_the_tag_before_an_mp3_does_not_count_as_audio() -> None:
    data = file("mp3")
    assert data.startswith(b"ID3")
    audio = data[10 + (data[8] << 7 | data[9]) :]
    tagged = b"ID3\x04\x00\x00\x00\x00" + bytes([4000 >> 7, 4000 & 127]) + bytes(4000) + audio
    for file_, short in ((tagged, False), (tagged[:-300], True)):
        reader = MediaReader(MemoryStream(file_))
        reader.rest()
        assert missing_bytes(reader) is short


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!doctype html><html><body>Service unavailable</body></html>", "not_audio"),
        (b'\n <?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "not_audio"),
        (np.random.default_rng(1).integers(0, 128, 20_000, np.uint8).tobytes(), "unknown_format"),
        (b"hello", "unknown_format"),
        (b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
         + b"data" + bytes(4), "no_audio"),
        (b"RIFF" + struct.pack("<I", 9036) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
         + b"data" + struct.pack("<I", 9000), "truncated"),
        (b"RIFF" + struct.pack("<I", 9036) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 500_000_000, 16000, 2, 16)
         + b"data" + struct.pack("<I", 9000) + bytes(9000), "not_audio"),
        (video_without_audio(), "no_audio"),
        (file("m4a")[:-2000], "truncated"),
    ],
    ids=["empty", "html", "xml", "random", "text", "44 bytes", "44 of 9044 bytes", "500 MHz", "video",
         "m4a without its index"],
)  # fmt: skip
def test_what_holds_no_audio_says_why_in_one_word(data: bytes, reason: str) -> None:
    with pytest.raises(UnscreenableMedia) as caught:
        decoded(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "data",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n%s\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile '%s'\n",
    ],
)
def test_a_playlist_does_not_make_the_decoder_open_what_it_names(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = tmp_path_factory.mktemp("named") / "target.wav"
    target.write_bytes(file("wav"))
    with pytest.raises(UnscreenableMedia) as caught:
        decoded(data % str(target).encode())
    assert caught.value.reason == "unknown_format"


def test_a_comment_that_is_not_utf_8_does_no_harm() -> None:
    data = encoded("wav", sound(3), comment="caf# on the line").replace(b"caf#", b"caf\xe9")
    assert b"caf\xe9" in data
    assert decoded(data)[0].duration_s == pytest.approx(3)


@pytest.mark.parametrize("hole", [200, 6000])
@pytest.mark.parametrize("kind", ["mp3", "ogg", "webm", "m4a", "flac"])
def test_a_hole_in_the_middle_costs_itself_and_is_counted(kind: str, hole: int) -> None:
    data = bytearray(encoded(kind, sound(20, 2)))
    middle = len(data) // 2
    data[middle : middle + hole] = bytes(hole)
    audio, samples, _ = decoded(bytes(data))
    clean = 20 - samples.shape[1] / 8000
    assert audio.lost_s >= max(0.02, clean - 0.1)
    if kind != "mp3":  # MP3 has no time line, so what is lost can't be put back as silence
        assert clean == pytest.approx(0, abs=0.3)
    assert level(samples[0][-8000:], 440) == pytest.approx(0.3, rel=0.2)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(CODECS)), st.data())
@example("m4a", None)
def test_no_damage_makes_it_raise_anything_but_its_own_word(kind: str, draw: st.DataObject | None) -> None:
    data = bytearray(encoded(kind, sound(1.0, 2)) if kind == "wav" else file(kind))
    if draw:
        for _ in range(draw.draw(st.integers(1, 8))):
            at = draw.draw(st.integers(0, len(data) - 1))
            piece = draw.draw(st.binary(min_size=1, max_size=40))
            data[at : at + len(piece)] = piece
        del data[draw.draw(st.integers(1, len(data))) :]
    try:
        _, samples, _ = decoded(bytes(data))
    except UnscreenableMedia:
        return
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() <= 1


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=2000), st.sampled_from([b"", b"RIFF", b"OggS", b"\x1aE\xdf\xa3", b"ID3", b"\xff\xfb", b"fLaC"])
)
def test_missing_bytes_answers_for_any_bytes(data: bytes, magic: bytes) -> None:
    reader = MediaReader(MemoryStream(magic + data))
    reader.rest()
    assert missing_bytes(reader) in (True, False, None)


@pytest.mark.parametrize("failure", [TransferBroken("broke off"), Refused("too large")])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("kind", CODECS)
def test_what_the_stream_raises_comes_through_the_decoder(
    kind: str, share: float, failure: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    data = file(kind)
    reader = MediaReader(MemoryStream(data, breaks=failure, breaks_at=round(share * len(data))))

    def run() -> int:
        _, blocks = decode_audio(reader)
        return sum(block.shape[1] for block in blocks)

    with pytest.raises(type(failure)) as caught:
        run()
    assert caught.value is failure
    assert "dropped" not in capfd.readouterr().err
    with pytest.raises(type(failure)):
        reader.drain()


def test_what_came_before_the_break_is_heard() -> None:
    data = file("mulaw")
    reader = MediaReader(MemoryStream(data, breaks=TransferBroken("broke off"), breaks_at=len(data) // 2))
    _, blocks = decode_audio(reader)
    heard: list[int] = []
    with pytest.raises(TransferBroken):
        heard.extend(block.shape[1] for block in blocks)
    assert sum(heard) / 8000 == pytest.approx(SECONDS / 2, abs=0.6)


class _HalfAnHour:
    """30 minutes of two-channel mu-law that exist only as they are read."""

    content_length: int | None = None
    content_type: str | None = None
    last_modified: datetime | None = None

    def __iter__(self) -> Iterator[bytes]:
        header = file("mulaw")[: file("mulaw").index(b"data") + 4] + struct.pack("<I", 0xFFFFFFFF)
        yield header
        chunk = np.random.default_rng(3).integers(0, 256, 64_000, np.uint8).tobytes()
        for _ in range(30 * 60 * 16_000 // len(chunk)):
            yield chunk


def test_memory_does_not_grow_with_the_length_of_the_call() -> None:
    reader = MediaReader(_HalfAnHour())
    audio, blocks = decode_audio(reader)
    next(blocks)
    tracemalloc.start()
    try:
        for _ in blocks:
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert audio.duration_s == pytest.approx(1800, abs=1)
    assert reader.size > 28e6
    assert peak < 4e6


def test_what_must_be_held_whole_has_a_limit() -> None:
    with pytest.raises(UnscreenableMedia) as caught:
        MediaReader(MemoryStream(bytes(3 * 2**20))).rest(2 * 2**20)
    assert caught.value.reason == "too_large"
