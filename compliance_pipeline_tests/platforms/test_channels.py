import io
import wave
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance_pipeline.media.decode import MediaReader, UnscreenableMedia, decode_audio
from compliance_pipeline.platforms.channels import HEADER_LIMIT_BYTES, InterleavedStream, open_channels
from compliance_pipeline.platforms.port import Media, Refused, TransferBroken

UNTOLD = 0xFFFFFFFF


class Served:
    """A transfer of `data` in chunks of `sizes`, the last size for ever. breaks: the transfer ends in an error."""

    content_type: str | None = "audio/wav"

    def __init__(
        self, data: bytes, sizes: Sequence[int] = (65536,), *, told: bool = True, breaks: bool = False
    ) -> None:
        self._data, self._sizes, self._breaks = data, sizes, breaks
        self.content_length: int | None = len(data) if told else None
        self.last_modified: datetime | None = datetime(2026, 1, len(data) % 27 + 1, tzinfo=UTC)
        self.longest = 0

    def __iter__(self) -> Iterator[bytes]:
        at, turn = 0, 0
        while at < len(self._data):
            size = self._sizes[min(turn, len(self._sizes) - 1)]
            yield self._data[at : at + size]
            at, turn = at + size, turn + 1
        if self._breaks:
            raise TransferBroken("media host test: broke off")


def wav(
    sound: bytes,
    *,
    tag: int = 1,
    channels: int = 1,
    rate: int = 8000,
    bits: int = 16,
    says: int | None = None,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    block = bits // 8 * channels
    fmt = pack("<HHIIHH", tag, channels, rate, rate * block, block, bits)
    size = len(sound) if says is None else says
    chunks = b"WAVEfmt " + pack("<I", len(fmt)) + fmt + before + b"data" + pack("<I", size) + sound + after
    return b"RIFF" + pack("<I", min(len(chunks), UNTOLD)) + chunks


def joined(*files: bytes, told: bool = True) -> bytes:
    return b"".join(InterleavedStream([Served(file, told=told) for file in files]))


def until_broken(stream: InterleavedStream) -> tuple[bytes, str]:
    """What was given out, and why the transfer is called broken."""
    given_out = bytearray()
    try:
        for chunk in stream:
            given_out += chunk
    except TransferBroken as error:
        return bytes(given_out), str(error)
    return bytes(given_out), ""


def read(data: bytes) -> tuple[int, int, int, bytes]:
    with wave.open(io.BytesIO(data)) as file:
        return file.getnchannels(), file.getframerate(), file.getsampwidth(), file.readframes(file.getnframes())


def test_two_mono_files_become_one_stereo_file_sample_by_sample() -> None:
    left, right = b"\x01\x02\x03\x04\x05\x06", b"\x11\x12\x13\x14\x15\x16"
    stream = InterleavedStream([Served(wav(left)), Served(wav(right))])
    data = b"".join(stream)
    assert read(data) == (2, 8000, 2, b"\x01\x02\x11\x12\x03\x04\x13\x14\x05\x06\x15\x16")
    assert stream.content_length == len(data)
    assert stream.content_type == "audio/wav"
    assert stream.last_modified is not None


def test_the_shorter_channel_ends_in_silence() -> None:
    assert read(joined(wav(b"\x01\x02\x03\x04"), wav(b"\x11\x12")))[3] == b"\x01\x02\x11\x12\x03\x04\0\0"
    assert joined(wav(b"ab", tag=7, bits=8), wav(b"x", tag=7, bits=8)).endswith(b"axb\xff")
    assert joined(wav(b"x", tag=6, bits=8), wav(b"ab", tag=6, bits=8)).endswith(b"xa\xd5b")
    assert read(joined(wav(b"ab", bits=8), wav(b"x", bits=8)))[3] == b"axb\x80"


def test_mu_law_files_are_joined_byte_by_byte_and_can_be_decoded() -> None:
    data = joined(wav(b"\x80" * 800, tag=7, bits=8), wav(b"\xff" * 800, tag=7, bits=8))
    audio, blocks = decode_audio(MediaReader(Served(data)))
    loudest = [max(abs(block[n]).max() for block in blocks_) for blocks_ in [list(blocks)] for n in (0, 1)]
    assert audio.channels == 2
    assert loudest[0] > 0.5
    assert loudest[1] < 0.01


def test_other_chunks_before_and_after_the_sound_are_left_out() -> None:
    odd = b"LIST" + pack("<I", 3) + b"abc\0"
    assert joined(wav(b"\x01\x02", before=odd, after=odd), wav(b"\x11\x12", after=odd)) == joined(
        wav(b"\x01\x02"), wav(b"\x11\x12")
    )


@pytest.mark.parametrize("says", [0, UNTOLD, 0x7FFFF000, 0x7FFFFFFF])
def test_a_header_that_does_not_say_the_length_is_made_up_for_by_the_host(says: int) -> None:
    files = [wav(b"\x01\x02\x03\x04", says=says), wav(b"\x11\x12\x13\x14", says=says)]
    assert read(joined(*files))[3] == b"\x01\x02\x11\x12\x03\x04\x13\x14"
    untold = InterleavedStream([Served(file, told=False) for file in files])
    assert untold.content_length is None
    assert b"".join(untold).endswith(b"\x01\x02\x11\x12\x03\x04\x13\x14")


def test_a_file_of_unknown_length_can_be_decoded() -> None:
    data = joined(wav(b"\x01\x02" * 4000, says=UNTOLD), wav(b"\x03\x04" * 4000, says=UNTOLD), told=False)
    _, blocks = decode_audio(MediaReader(Served(data)))
    assert sum(block.shape[1] for block in blocks) == 4000


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (wav(b"\0\0", rate=16000), "channel 1 has another format or sample rate"),
        (wav(b"\0\0", tag=7, bits=8), "channel 1 has another format"),
        (wav(b"\0" * 4, channels=2), "channel 1: its file has 2 channels"),
        (wav(b"\0\0", tag=17), "channel 1: WAV format 17"),
        (b"OggS" + bytes(60), "channel 1: not a WAV file"),
        (b"RIFF\0\0\0\0AVI " + bytes(60), "channel 1: a RIFF file that is not WAVE"),
        (wav(b"", before=b"LIST" + pack("<I", HEADER_LIMIT_BYTES + 1)), "channel 1: a WAV header of more"),
    ],
)
def test_files_that_can_not_be_joined_are_refused_with_the_reason(other: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        joined(wav(b"\0\0"), other)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (wav(b"\0\0")[:30], "ends within its header"),
        (wav(b"\0\0", says=4), "ends after 2 of the 4 bytes"),
        (wav(b""), "channel 1 is a header without sound, and another is not"),
        (wav(b"", says=3200), "channel 1 is a header without sound, and another is not"),
    ],
)
def test_a_file_that_may_be_whole_next_time_is_a_broken_transfer(other: bytes, reason: str) -> None:
    with pytest.raises(TransferBroken, match=reason):
        joined(wav(b"\0\0"), other)


@pytest.mark.parametrize("sizes", [(65536,), (1,), (45, 7)])
@pytest.mark.parametrize(
    "after",
    [
        b"\x01\x02" * 50,
        b"\0" * 100,
        b"data" + pack("<I", 200) + bytes(100),
        b"RIFF" + pack("<I", 0x7FFFFFFF) + bytes(100),
    ],
)
def test_sound_after_the_size_that_the_header_says_is_a_broken_transfer(after: bytes, sizes: tuple[int, ...]) -> None:
    files = [wav(b"\x01\x02" * 50), wav(b"\x11\x12" * 50, after=after)]
    given_out, why = until_broken(InterleavedStream([Served(file, sizes) for file in files]))
    assert f"channel 1: {len(after)} bytes follow the 100 bytes" in why
    assert given_out.endswith(b"\x01\x02\x11\x12" * 50), "what was heard until then is screened"


@pytest.mark.parametrize("sizes", [(65536,), (1,)])
def test_a_byte_of_padding_and_chunks_after_it_are_no_sound(sizes: tuple[int, ...]) -> None:
    odd = wav(b"abc", tag=7, bits=8, after=b"\0LIST" + pack("<I", 4) + b"INFO")
    padded = wav(b"xyz", tag=7, bits=8, after=b"\0")
    data = b"".join(InterleavedStream([Served(odd, sizes), Served(padded, sizes)]))
    assert data.endswith(b"axbycz")


@pytest.mark.parametrize(
    ("seconds", "broken"),
    [
        ((10, 8.1), False),
        ((10, 7.9), True),
        ((100, 95.5), False),
        ((100, 94), True),
        ((94, 100), True),
        ((1.5, 0.01), False),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_a_channel_that_ends_much_earlier_than_the_other_is_cut_off(
    seconds: tuple[float, float], broken: bool, told: bool
) -> None:
    size = None if told else UNTOLD
    files = [wav(b"\x80" * round(8000 * length), tag=7, bits=8, says=size) for length in seconds]
    given_out, why = until_broken(InterleavedStream([Served(file, told=told) for file in files]))
    assert ("ends after" in why) is broken
    assert len(given_out) > 2 * 8000 * max(seconds), "what was heard until then is screened"


def test_a_page_in_place_of_a_channel_is_judged_as_one_in_place_of_a_file() -> None:
    page = b" <!doctype html><title>Sign in</title>"
    stream = InterleavedStream([Served(wav(b"\0\0")), Served(page, (7,))])
    assert b"".join(stream) == page
    with pytest.raises(UnscreenableMedia, match="page"):
        decode_audio(MediaReader(InterleavedStream([Served(page), Served(page)])))


def test_a_transfer_that_breaks_off_is_told_even_after_the_sound() -> None:
    for files in ((wav(b"\x01\x02" * 50), wav(b"\x11\x12" * 50)), (wav(b"\x01\x02"), wav(b"\x11\x12" * 50))):
        stream = InterleavedStream([Served(files[0], breaks=True), Served(files[1])])
        with pytest.raises(TransferBroken, match="broke off"):
            list(stream)


def test_header_only_files_are_an_empty_recording_whatever_they_promise() -> None:
    data = joined(wav(b""), wav(b"", says=16000))
    assert len(wav(b"")) == 44
    assert read(data) == (2, 8000, 2, b"")
    with pytest.raises(UnscreenableMedia):
        list(decode_audio(MediaReader(Served(data)))[1])


def test_no_more_than_a_chunk_a_channel_is_held() -> None:
    frames = 300_000
    sizes = ((65536,), (1000,))
    stream = InterleavedStream([Served(wav(b"\x01\x02" * frames), size) for size in sizes])
    longest, total = 0, 0
    for chunk in stream:
        longest, total = max(longest, len(chunk)), total + len(chunk)
        assert all(len(channel.buffer) <= 65536 + 2 for channel in stream._channels)
    assert total == stream.content_length
    assert longest <= 2 * 65536


def test_the_channels_of_a_medium_are_opened_in_their_order_and_closed() -> None:
    files = {"u0": wav(b"\x01\x02"), "u1": wav(b"\x11\x12")}
    with open_channels(lambda url: nullcontext(Served(files[url])), Media("u0", channels=("u0", "u1"))) as stream:
        assert read(b"".join(stream))[3] == b"\x01\x02\x11\x12"


SOUND = st.integers(1, 60).flatmap(lambda frames: st.binary(min_size=frames * 2, max_size=frames * 2))
SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(
    sounds=st.lists(SOUND, min_size=2, max_size=3), sizes=st.lists(SIZES, min_size=3, max_size=3), told=st.booleans()
)
def test_any_chunking_gives_the_same_bytes_as_the_samples_put_side_by_side(
    sounds: list[bytes], sizes: list[list[int]], told: bool
) -> None:
    stream = InterleavedStream(
        [Served(wav(sound), size, told=told) for sound, size in zip(sounds, sizes, strict=False)]
    )
    data = b"".join(stream)
    frames = max(len(sound) // 2 for sound in sounds)
    padded = [sound.ljust(frames * 2, b"\0") for sound in sounds]
    expected = b"".join(sound[at : at + 2] for at in range(0, frames * 2, 2) for sound in padded)
    assert read(data) == (len(sounds), 8000, 2, expected)
    assert stream.content_length == len(data)


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=120), start=st.sampled_from([b"", b"RIFF\0\0\0\0WAVE", wav(b"")[:36], wav(b"")]))
def test_any_bytes_give_a_file_or_one_of_the_ports_errors(data: bytes, start: bytes) -> None:
    try:
        made = joined(wav(b"\0\0"), start + data)
    except (Refused, TransferBroken):
        return
    assert made.startswith(b"RIFF") or made == start + data
