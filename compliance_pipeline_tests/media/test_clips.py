"""Clips: cut where they should be, silent wherever anything is sensitive, and refused rather than doubted."""

import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance_pipeline.media.clips import (
    AROUND_MS,
    MAX_SPAN_MS,
    PAD_MS,
    ROUNDS,
    Clip,
    MemoryMedia,
    Refusal,
    Remains,
    Span,
    Wanted,
    cut,
    decode,
    encode,
    make_clips,
    masked_clip,
    silenced,
    to_pcm,
)
from compliance_pipeline.media.decode import MediaReader, decode_audio
from compliance_pipeline.platforms.port import TransferBroken
from compliance_pipeline_tests.media.audio import Samples


def hears_nothing(_: bytes) -> Remains:
    return Remains()


def loud(seconds: float, channels: int = 2) -> Samples:
    """Noise without a single zero sample: what is silent in a clip was silenced."""
    noise = np.random.default_rng(5).uniform(0.1, 0.9, (channels, round(seconds * 8000)))
    return np.asarray(noise, np.float32)


LOUD = loud(40)


def in_blocks(samples: Samples, size: int = 16_000) -> Iterator[Samples]:
    for at in range(0, samples.shape[1], size):
        yield samples[:, at : at + size]


spans_ms = st.lists(st.tuples(st.integers(0, 9_000), st.integers(0, 4_000)).map(lambda s: (s[0], sum(s))), max_size=6)


@settings(max_examples=60, deadline=None)
@given(spans_ms, st.lists(st.integers(0, 30_000), max_size=12))
def test_a_cut_is_the_stretch_of_the_recording_however_its_blocks_fall(spans: list[Span], sizes: list[int]) -> None:
    samples = LOUD[:, :80_000]
    edges = [0, *np.minimum(np.cumsum(sizes), samples.shape[1]).tolist(), samples.shape[1]]
    blocks = (samples[:, a:b] for a, b in pairwise(edges))
    pieces = dict(cut(blocks, spans))
    assert pieces.keys() == set(range(len(spans)))
    for at, (start, end) in enumerate(spans):
        assert np.array_equal(pieces[at], samples[:, start * 8 : end * 8])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-500, 6_000), st.integers(0, 3_000)), min_size=1, max_size=4), st.integers(1, 2))
def test_no_sample_of_a_padded_span_survives_in_any_channel_and_every_other_one_does(
    spans: list[Span], channels: int
) -> None:
    samples = LOUD[:channels, :48_000]
    sensitive = [(start, start + length) for start, length in spans]
    content = masked_clip(samples, sensitive, hears_nothing)
    assert isinstance(content, bytes)
    decoded = decode(content)
    assert decoded.shape == samples.shape
    kept = np.ones(samples.shape[1], bool)
    for start, end in sensitive:
        kept[max(0, (start - PAD_MS) * 8) : max(0, (end + PAD_MS) * 8)] = False
    assert not decoded[:, ~kept].any()
    assert np.array_equal(to_pcm(decoded)[:, kept], to_pcm(samples)[:, kept])


def test_masking_leaves_what_it_was_given_alone() -> None:
    samples = LOUD[:, :8_000].copy()
    silenced(samples, [(0, 1_000)])
    assert np.array_equal(samples, LOUD[:, :8_000])


@pytest.mark.parametrize("channels", [1, 2])
def test_the_same_samples_are_the_same_bytes_with_nothing_but_sound_in_them(channels: int) -> None:
    pcm = to_pcm(LOUD[:channels, :80_000])
    content = encode(pcm)
    assert encode(pcm) == content
    with av.open(MemoryMediaFile(content)) as container:
        assert container.format.name == "flac"
        assert {k: v for k, v in container.metadata.items() if not k.lower().startswith("encoder")} == {}
        assert container.streams.audio[0].channels == channels
        assert container.streams.audio[0].rate == 8000
    audio, blocks = decode_audio(MediaReader(MemoryMedia(content)))
    assert np.array_equal(np.concatenate([to_pcm(block) for block in blocks], axis=1), pcm)
    assert (audio.cut_short, audio.lost_s) == (False, 0)


class MemoryMediaFile:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, size: int) -> bytes:
        taken, self._content = self._content[:size], self._content[size:]
        return taken


def only(outcomes: Iterator[Clip | Refusal]) -> Clip | Refusal:
    [outcome] = outcomes
    return outcome


@pytest.mark.parametrize(
    ("span", "clip"),
    [
        ((0, 500), (0, 10_500)),
        ((15_000, 17_000), (5_000, 27_000)),
        ((38_000, 40_000), (28_000, 40_000)),
        ((39_900, 40_000 + PAD_MS), (29_900, 40_000)),
    ],
)
def test_a_clip_is_ten_seconds_to_either_side_as_far_as_the_recording_goes(span: Span, clip: Span) -> None:
    made = only(make_clips(in_blocks(LOUD), [Wanted(3, *span, (span,))], hears_nothing))
    assert isinstance(made, Clip)
    assert (made.number, made.start_ms, made.end_ms) == (3, *clip)
    expected = silenced(LOUD, [span])[:, clip[0] * 8 : clip[1] * 8]
    assert np.array_equal(to_pcm(decode(made.content)), to_pcm(expected))


@pytest.mark.parametrize(
    ("start", "end", "why"),
    [
        (40_000, 41_000, "outside the recording"),
        (100_000, 101_000, "outside the recording"),
        (39_000, 40_000 + PAD_MS + 1, "outside the recording"),
        (5_000, 4_000, "backwards"),
        (-1, 4_000, "backwards"),
        (0, MAX_SPAN_MS + 1, "over 120 s"),
    ],
)
def test_a_span_that_can_not_be_right_is_refused(start: int, end: int, why: str) -> None:
    refused = only(make_clips(in_blocks(LOUD), [Wanted(1, start, end, ((start, end),))], hears_nothing))
    assert isinstance(refused, Refusal)
    assert why in refused.reason


def test_a_recording_without_sound_has_no_clip() -> None:
    assert only(make_clips(iter(()), [Wanted(1, 0, 100, ())], hears_nothing)) == Refusal(
        1, "the span lies outside the recording"
    )


def test_what_is_still_heard_is_silenced_too_and_heard_again() -> None:
    asked: list[bytes] = []

    def screener(content: bytes) -> Remains:
        asked.append(content)
        return Remains(((3_000, 4_000),)) if len(asked) == 1 else Remains()

    content = masked_clip(LOUD[:, :80_000], [(1_000, 2_000)], screener)
    assert len(asked) == 2
    assert content == asked[-1] == encode(to_pcm(silenced(LOUD[:, :80_000], [(1_000, 2_000), (3_000, 4_000)])))


def test_a_clip_in_which_digits_are_heard_again_and_again_is_refused() -> None:
    asked = 0

    def screener(_: bytes) -> Remains:
        nonlocal asked
        asked += 1
        return Remains(((asked * 1_000, asked * 1_000 + 10),))

    assert masked_clip(LOUD[:, :80_000], [], screener) == "digits are still heard after masking"
    assert asked == ROUNDS


def test_a_clip_in_which_a_whole_number_is_heard_outside_the_spans_is_refused_at_once() -> None:
    said = masked_clip(LOUD[:, :80_000], [(0, 10)], lambda _: Remains(((3_000, 9_000),), whole_number=True))
    assert said == "a number is still heard outside the masked spans"


def test_what_breaks_the_stream_is_let_through() -> None:
    def breaking() -> Iterator[Samples]:
        yield LOUD[:, :16_000]
        raise TransferBroken("ended short")

    with pytest.raises(TransferBroken):
        list(make_clips(breaking(), [Wanted(1, 0, 100, ())], hears_nothing))


def test_of_a_long_recording_no_more_is_held_than_its_longest_clip() -> None:
    second = LOUD[:, :16_000]
    wanted = [Wanted(n, n * 4_000, n * 4_000 + 3_000, ((n * 4_000, n * 4_000 + 3_000),)) for n in (1, 2, 3, 200, 448)]
    made = {}
    tracemalloc.start()
    for one in make_clips((second.copy() for _ in range(900)), wanted, hears_nothing):
        made[one.number] = one
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {number for number, one in made.items() if isinstance(one, Clip)} == {1, 2, 3, 200, 448}
    assert peak < 20 * 2**20, "30 minutes are 115 MB"


def test_clips_that_overlap_are_each_whole() -> None:
    wanted = [Wanted(n, 12_000 + n * 700, 14_000 + n * 700, ()) for n in range(8)]
    for one in make_clips(in_blocks(LOUD, 1_600), wanted, hears_nothing):
        assert isinstance(one, Clip)
        start = 12_000 + one.number * 700 - AROUND_MS
        expected = LOUD[:, start * 8 : (start + 2_000 + 2 * AROUND_MS) * 8]
        assert np.array_equal(to_pcm(decode(one.content)), to_pcm(expected))
