"""Small files that are long to hear: FLAC frames of one value each, fourteen bytes for up to 65,535 samples."""

import struct
from collections.abc import Iterator

BLOCK = 65_535


def silent_flac(frames: int, rate: int = 8000) -> bytes:
    """`frames` blocks of silence at `rate` Hz, mono, 16 bits (RFC 9639, 8.2 and 9)."""
    info = struct.pack(">HH6x", BLOCK, BLOCK) + struct.pack(">Q", rate << 44 | 15 << 36) + bytes(16)
    return b"fLaC" + struct.pack(">I", 0x80 << 24 | len(info)) + info + b"".join(_frames(frames, rate))


def _frames(frames: int, rate: int) -> Iterator[bytes]:
    for number in range(frames):
        head = b"\xff\xf8\x7d\x08" + chr(number).encode("utf-8", "surrogatepass")
        head += struct.pack(">HH", BLOCK - 1, rate)
        whole = head + bytes([_crc(head, 0x07, 8)]) + bytes(3)
        yield whole + struct.pack(">H", _crc(whole, 0x8005, 16))


def _crc(data: bytes, polynomial: int, bits: int) -> int:
    value, top = 0, 1 << bits
    for byte in data:
        value ^= byte << bits - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial | top if value & top >> 1 else 0)
    return value
