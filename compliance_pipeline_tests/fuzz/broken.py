"""Documents and files made from good ones: values swapped, keys gone, bytes flipped, cut, doubled and put in."""

import json
import os
from collections.abc import Sequence
from copy import deepcopy
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CARD, MAIL = "4539578763621486", "jane.canary@example.com"
SENSITIVE = (CARD, MAIL)
_EXAMPLES = os.environ.get("FUZZ_EXAMPLES")


def effort(quick: int) -> settings:
    """quick: examples in an ordinary run; an example may take 10 s on a busy machine, so that a hang is a failure."""
    return settings(
        max_examples=int(_EXAMPLES or quick),
        deadline=timedelta(seconds=10),
        derandomize=_EXAMPLES is None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def says_nothing_of(text: str) -> None:
    assert not [word for word in SENSITIVE if word in text], "an error quotes what it is about"


_odd: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [
            CARD,
            MAIL,
            f"tel:+{CARD}",
            "",
            "\x00",
            "\ud800",
            "9" * 400,
            -1,
            2**63,
            1e308,
            True,
            None,
            [],
            {},
            [[]],
            [CARD],
        ]
    ),
    st.sampled_from(["../../x", "https://[::1", "http://u:p@h/%00", "9999-12-31T23:59:59-23:59", "0001-01-01"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    ),
)


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [place for key, part in inner for place in _places(part, (*at, key))]


@st.composite
def documents(draw: st.DrawFn, good: Sequence[dict[str, Any]]) -> bytes:
    """JSON, or nearly."""
    document = deepcopy(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(0, 3))):
        if not (places := _places(document)):
            break
        *way, last = draw(st.sampled_from(places))
        inner: Any = document
        for step in way:
            inner = inner[step]
        match draw(st.sampled_from(["swap", "swap", "drop", "add"])):
            case "swap":
                inner[last] = deepcopy(draw(_odd))
            case "drop":
                del inner[last]
            case _ if isinstance(inner, dict):
                inner[draw(st.sampled_from([CARD, MAIL, "Type", "Records", "detail", "Message"]))] = deepcopy(
                    draw(_odd)
                )
    text = json.dumps(document).encode()
    return draw(files([text])) if draw(st.integers(0, 3)) == 0 else text


@st.composite
def files(draw: st.DrawFn, good: Sequence[bytes]) -> bytes:
    content = bytearray(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(0, 6))):
        # Most of what can go wrong stands in the head.
        reach = draw(st.sampled_from([64, 512, len(content)]))
        at = draw(st.integers(0, max(0, min(reach, len(content)) - 1)))
        length = draw(st.sampled_from([1, 2, 4, 8, 64, 4096]))
        match draw(st.sampled_from(["set", "set", "flip", "cut", "double", "insert", "end"])):
            case "set":
                fill = draw(st.sampled_from([b"\xff", b"\x00", b"\x7f", b"\x80", b"\x01", b"\n", b"<", b'"']))
                content[at : at + length] = fill * min(length, len(content) - at)
            case "flip" if content:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del content[at : at + length]
            case "double":
                content[at:at] = content[at : at + length]
            case "insert":
                content[at:at] = draw(st.binary(max_size=16) | st.sampled_from([CARD.encode(), MAIL.encode()]))
            case "end":
                del content[at:]
    return bytes(content)
