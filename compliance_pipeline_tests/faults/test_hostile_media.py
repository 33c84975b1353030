"""fault: media made to cost memory or time, to lie about itself, or to change between two fetches; invariant: memory
and time bounded, a clear reason stored to the recording, the rest of the batch judged, verdict and clip of one content.
"""

import gzip
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from compliance_pipeline.contracts.verdict import VerdictValue
from compliance_pipeline.evidence import ORIGINAL, REFUSED, VERIFIED, evidence_batch
from compliance_pipeline.media.vault import vault_of
from compliance_pipeline_tests.faults.bombs import BLOCK, silent_flac
from compliance_pipeline_tests.media.audio import Samples, encoded, sound
from compliance_pipeline_tests.platforms.loopback import Asked, Reply, Server
from compliance_pipeline_tests.screening.keypad import keyed
from compliance_pipeline_tests.test_evidence import CARD, OTHER_CARD, call, in_vault, rows, voice
from compliance_pipeline_tests.workshop import Workshop, workshop

CHAOS = os.environ.get("CHAOS") == "1"
HOURS = 24 if CHAOS else 1
OTHER_MEDIA = "the platform served other media than was screened"
GROWS_AT_MOST_MIB = 64
SECONDS_AT_MOST = 120 if CHAOS else 20

BATCH = """
import json, resource, sys, time
from dataclasses import replace
from pathlib import Path
from compliance_pipeline.media import decode
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline_tests.workshop import recording, workshop
home, longest_s = Path(sys.argv[1]), float(sys.argv[2])
decode.MAX_AUDIO_S = longest_s
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
call, chat = recording(Kind.VOICE_CLEAN), recording(Kind.CHAT_CLEAN)
bombs = [
    replace(call, recording_id=path.stem, media=path.read_bytes(), content_type="application/octet-stream", speakers=())
    for path in sorted(home.glob("*.bomb"))
]
with workshop(home / "data") as shop:
    shop.announce(call)
    shop.run()
    before, begun = peak(), time.monotonic()
    shop.announce(*bombs, chat)
    shop.run()
    told = {"seconds": time.monotonic() - begun, "mib": peak() - before, "states": shop.states()}
    told["rows"] = {row["recording_id"]: [row["verdict"], row["unscreenable_reason"]] for row in shop.rows("verdicts")}
    told["actions"] = len(shop.rows("remediations"))
    print(json.dumps(told | {"clean": [call.recording_id, chat.recording_id]}))
"""

TRANSFER = """
import resource, sys
from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.platforms.port import PlatformError
from compliance_pipeline.platforms.transport import Transport
from compliance_pipeline.screening.engine import EmbeddedEngine
from compliance_pipeline.screening.policy import load_policy
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
transport = Transport(sys.argv[1], "id", "secret", backoff_s=0.001)
engine = EmbeddedEngine(load_policy(), "key")
for path in ("/plain", "/bomb"):
    before = peak()
    try:
        with transport.open_media(sys.argv[1] + path) as stream:
            said = engine.screen(stream, Channel.CHAT).unscreenable
    except PlatformError as error:
        said = str(error)
    print(peak() - before, said, sep="|")
"""


def said_by(script: str, *arguments: object) -> str:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
    return child.stdout


def wav(data_bytes: int | None, riff_bytes: int | None = None) -> bytes:
    """Ten seconds, with these sizes in its head."""
    made = bytearray(encoded("wav", sound(10)))
    at = made.index(b"data")
    for where, said in ((4, riff_bytes), (at + 4, data_bytes)):
        if said is not None:
            struct.pack_into("<I", made, where, said)
    return bytes(made)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "one-sample-a-second": (lambda: silent_flac(1, rate=1), "not_audio"),
    "too-long": (lambda: silent_flac(HOURS * 3600 * 8000 // BLOCK + 1), "too_long"),
    "wav-that-says-4-GiB": (lambda: wav(2**32 - 2), "truncated"),
    "wav-that-says-1-s": (lambda: wav(16_000), "damaged"),
    "wav-that-says-nothing": (lambda: wav(4, 40), "damaged"),
    "two-sounds-in-one-wav": (lambda: (half := wav(None)) + half[half.index(b"data") :], "damaged"),
    "a-megabyte-of-brackets": (lambda: b"[" * 2**20, "unknown_format"),
}


def test_small_files_that_are_long_to_hear_or_lie_about_it_end_with_a_reason_and_spoil_no_batch(tmp_path: Path) -> None:
    """fault: bombs of silence, 24 hours of audio, headers that lie about length or rate; invariant: bounded memory and
    time, a reason stored, the rest of the batch judged."""
    for name, (make, _) in BOMBS.items():
        (tmp_path / f"{name}.bomb").write_bytes(make())
    size = sum(path.stat().st_size for path in tmp_path.glob("*.bomb"))
    told: dict[str, Any] = json.loads(said_by(BATCH, tmp_path, 12 * 3600 if CHAOS else 1800))
    print(f"{size / 2**20:.1f} MiB of bombs: {told['seconds']:.1f} s, {told['mib']:.0f} MiB more at most")
    assert told["mib"] < GROWS_AT_MOST_MIB
    assert told["seconds"] < SECONDS_AT_MOST
    assert set(told["states"].values()) == {"done"}
    expected = {name: [VerdictValue.UNSCREENABLE, reason] for name, (_, reason) in BOMBS.items()}
    assert told["rows"] == expected | {name: [VerdictValue.NO_VIOLATION, None] for name in told["clean"]}


class Host(Server):
    def __init__(self, bomb: Reply) -> None:
        self.bomb = bomb
        super().__init__()

    def answer(self, asked: Asked) -> Reply:
        return self.bomb if asked.path == "/bomb" else Reply(200, b"agent: hello", {"Content-Type": "text/plain"})


def packed(size: int, times: int) -> bytes:
    content = bytes(size)
    for _ in range(times):
        content = gzip.compress(content, 9)
    return content


@pytest.mark.parametrize("times", [1, 2])
def test_a_transfer_that_unpacks_to_gigabytes_is_refused_in_bounded_memory(times: int) -> None:
    """fault: a media host that packs its answer, once or twice over, though asked not to; invariant: as above."""
    headers = {"Content-Type": "text/plain", "Content-Encoding": ", ".join(["gzip"] * times)}
    host = Host(Reply(200, packed(2**28, times), headers))
    try:
        plain, bomb = (line.partition("|") for line in said_by(TRANSFER, host.url).splitlines())
    finally:
        host.stop()
    print(f"{len(host.bomb.body)} bytes sent; {float(bomb[0]):.0f} MiB more: {bomb[2]}")
    assert plain[2] == "None"
    assert bomb[2] != "None"
    assert float(bomb[0]) < 160


FIRST = call(30, (1, 12, keyed(CARD)))
SHORTER, NOT_THE_SAME = FIRST[:, : 25 * 8000], call(30, (1, 3, keyed(OTHER_CARD)))


def evidence_after_a_change(shop: Workshop, then: Samples) -> tuple[str, list[dict[str, Any]]]:
    """The digest of what was judged, and the evidence rows, where the platform serves `then` after the verdict."""
    one = voice(FIRST)
    shop.announce(one)
    batch = shop.run()
    [media] = shop.rows("media")
    shop.state.held[one.recording_id].recording = voice(then)
    evidence_batch(shop.pipeline, batch)
    return media["sha256"], rows(shop)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    "then",
    [
        pytest.param(SHORTER, id="shorter"),
        pytest.param(NOT_THE_SAME, id="as-long"),
    ],
)
def test_media_that_changes_after_its_verdict_give_no_clip_and_are_not_kept(
    tmp_path: Path, then: Samples, keep: bool
) -> None:
    """fault: the platform serves other media at the second fetch; invariant: no clip of what was not judged; a refusal
    that says so, and nothing of it in the vault."""
    with workshop(tmp_path, keep_originals=keep) as shop:
        _, found = evidence_after_a_change(shop, then)
        assert {(row["status"], row["reason"]) for row in found} == {(REFUSED, OTHER_MEDIA)}
        assert in_vault(shop) == []


def test_media_that_stay_as_they_were_give_clips(tmp_path: Path) -> None:
    """fault: none; invariant: the refusals above have another reason than the second fetch."""
    with workshop(tmp_path, keep_originals=True) as shop:
        judged, found = evidence_after_a_change(shop, FIRST)
        assert {row["status"] for row in found} == {VERIFIED}
        with closing(vault_of(shop.pipeline.settings, shop.inbox.engine)) as vault:
            assert sha256(b"".join(vault.read("call-1", ORIGINAL))).hexdigest() == judged
