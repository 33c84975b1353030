"""fault: senders that mean harm, by raw sockets, forged and replayed messages; invariant: a real receiver process
refuses them with the right status, in bounded time and memory, goes on serving others, and stores nothing of theirs."""

import base64
import hashlib
import hmac
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from compliance_pipeline.asgi import HEAD_SECONDS, MAX_UNFINISHED
from compliance_pipeline.intake.inbox import Inbox, InboxItem
from compliance_pipeline_tests.faults.test_durable_inbox import receiver
from compliance_pipeline_tests.intake.test_receiver import KEY, PATH, body_of, signed
from compliance_pipeline_tests.intake.test_receiver_kill import free_port

SOURCE = "X-Genesys-Event-Source: recording-pipeline\r\n"
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\n"


@dataclass
class Target:
    process: subprocess.Popen[bytes]
    port: int
    home: Path

    def post(self, body: bytes, headers: dict[str, str] | None = None, message_id: str = "msg-1") -> httpx.Response:
        url = f"http://127.0.0.1:{self.port}{PATH}"
        return httpx.post(url, content=body, headers=headers or signed(body, message_id), timeout=10)

    def connect(self, *said: str | bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        for part in said:
            connection.sendall(part.encode() if isinstance(part, str) else part)
        return connection

    def item(self, recording_id: str) -> InboxItem | None:
        inbox = Inbox(f"sqlite:///{self.home / 'inbox.db'}")
        try:
            return inbox.get(recording_id)
        finally:
            inbox.close()

    def rss_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    home, port = tmp_path_factory.mktemp("hostile"), free_port()
    process = receiver(home, port, None)
    yield Target(process, port, home)
    alive = process.poll() is None
    process.terminate()
    process.wait()
    assert alive, "a request ended the receiver"
    assert "Traceback" not in (home / "receiver.log").read_text()


def raw(recording_id: str) -> bytes:
    body = body_of(recording_id)
    headers = "".join(f"{name}: {value}\r\n" for name, value in signed(body, message_id=recording_id).items())
    return f"{HEAD}{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    answer = b""
    with suppress(ConnectionError):
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


HALF_OPEN = {
    "no byte at all": ("", ""),
    "headers without an end": (HEAD, "X-Pad: x\r\n"),
    "a body without an end": (f"{HEAD}{SOURCE}Content-Length: 9000\r\n\r\n", "x"),
    "a body that is not read, for its answer is known": (f"{HEAD}Content-Length: 9000\r\n\r\n", "x"),
    "a second request without an end": ("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + HEAD, "X-Pad: x\r\n"),
    "trailers without an end": (f"{HEAD}{SOURCE}Transfer-Encoding: chunked\r\n\r\n0\r\n", "X-Pad: x\r\n"),
}


def test_every_request_that_is_never_finished_is_ended(target: Target) -> None:
    """fault: slow loris, a byte now and then in headers, bodies and trailers; invariant: the connection is ended in
    bounded time and requests of others are answered meanwhile."""
    open_ = {name: (target.connect(begin), drip) for name, (begin, drip) in HALF_OPEN.items()}
    began = time.monotonic()
    slowest = 0.0
    while open_ and time.monotonic() - began < HEAD_SECONDS + 10:
        time.sleep(0.5)
        for name, (connection, drip) in list(open_.items()):
            connection.settimeout(0.001)
            try:
                connection.sendall(drip.encode())
                while connection.recv(65536):
                    pass
            except TimeoutError:
                continue
            except ConnectionError:
                pass
            connection.close()
            del open_[name]
            print(f"{name}: ended after {time.monotonic() - began:.1f} s")
        asked = time.monotonic()
        assert target.post(body_of("rec-beside-slow-ones")).status_code == 200
        slowest = max(slowest, time.monotonic() - asked)
    assert list(open_) == []
    assert slowest < 3


def test_thousands_of_unfinished_requests_keep_no_honest_one_from_being_answered(target: Target) -> None:
    """fault: 1,200 half-open connections, in headers and in bodies, more than the receiver takes at a time;
    invariant: honest requests are answered 200, soon, and the half-open ones are not kept."""
    with ExitStack() as stack:
        many: list[socket.socket] = []
        stop = threading.Event()

        def open_more() -> None:
            begins = (HALF_OPEN["headers without an end"][0], HALF_OPEN["a body without an end"][0])
            while len(many) < 1200 and not stop.is_set():
                with suppress(OSError):
                    many.append(stack.enter_context(target.connect(begins[len(many) % 2])))

        opening = threading.Thread(target=open_more)
        opening.start()
        answers: list[tuple[int, float]] = []
        while opening.is_alive() or len(answers) < 20:
            asked = time.monotonic()
            status = target.post(body_of(f"rec-honest-{len(answers)}")).status_code
            answers.append((status, time.monotonic() - asked))
        stop.set()
        opening.join()
        kept = sum(map(is_open, many))
    print(f"{len(answers)} honest requests, the slowest {max(seconds for _, seconds in answers):.2f} s; kept {kept}")
    assert len(many) == 1200
    assert {status for status, _ in answers} == {200}
    assert max(seconds for _, seconds in answers) < 5
    assert 0 < kept <= MAX_UNFINISHED + 10


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


CHUNKED = f"{HEAD}{SOURCE}Transfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "one header": (f"{HEAD}X-Pad: ", b"x" * 65536),
    "many headers": (HEAD, b"X-Pad: x\r\n" * 6000),
    "the address": ("GET /", b"x" * 65536),
    "a chunked body": (CHUNKED, b"10000\r\n" + b"x" * 65536 + b"\r\n"),
    "a chunk's extension": (f"{CHUNKED}1;", b"x" * 65536),
    "trailers": (f"{CHUNKED}0\r\n", b"X-Pad: x\r\n" * 6000),
    "a body of one-byte chunks": (CHUNKED, b"1\r\nx\r\n" * 10000),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_request_that_never_ends_is_cut_off_before_it_costs_memory(target: Target, what: str) -> None:
    """fault: headers, address, body, chunk extension or trailers without end; invariant: the connection is ended after
    a few MiB and the receiver's memory stays where it was."""
    begin, more = ENDLESS[what]
    before, sent = target.rss_mib(), 0
    with target.connect(begin) as connection, suppress(ConnectionError):
        while sent < 256 * 2**20:
            connection.sendall(more)
            sent += len(more)
    print(f"{what}: cut off after {sent / 2**20:.1f} MiB, memory grew by {target.rss_mib() - before:.1f} MiB")
    assert sent < 32 * 2**20
    assert target.rss_mib() - before < 32


def test_a_body_announced_as_enormous_is_refused_before_any_of_it_comes(target: Target) -> None:
    """fault: Content-Length of an exabyte, or of more digits than a number has; invariant: refused at once."""
    for length, statuses in ((10**18, (b"413",)), (10**40, (b"400", b"413"))):
        with target.connect(f"{HEAD}{SOURCE}Content-Length: {length}\r\n\r\n") as connection:
            assert received(connection).split()[1] in statuses


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: -1\r\n",
        "Content-Length: 1e3\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        "X-Nul: a\0b\r\n",
        "No colon at all\r\n",
        " X-Folded: line\r\n",
        "X-Bare: a\rb\r\n",
    ],
)
def test_a_head_that_two_servers_could_read_in_two_ways_is_400_and_ends_the_connection(
    target: Target, head: str
) -> None:
    """fault: request smuggling by lengths, encodings, control characters; invariant: 400, and what comes after it on
    the connection is not taken for a request."""
    with target.connect(f"{HEAD}{SOURCE}{head}\r\nhello", raw("rec-smuggled")) as connection:
        answer = received(connection)
    assert answer.split()[1] == b"400"
    assert answer.count(b"HTTP/1.1 ") == 1
    assert target.item("rec-smuggled") is None


def test_garbage_after_a_good_request_on_the_same_connection_takes_nothing_from_it(target: Target) -> None:
    """fault: pipelined garbage; invariant: the request before it is stored and answered, the garbage is refused."""
    for number, garbage in enumerate(
        (b"\0\xff\xfe garbage\r\n\r\n", b"GET\r\n\r\n", b"\r\n\r\n{}\r\n\r\n", os.urandom(999))
    ):
        recording_id = f"rec-before-garbage-{number}"
        with target.connect(raw(recording_id) + garbage) as connection:
            answer = received(connection)
        # Where the refusal overtakes the answer the sender, unsure, sends again.
        assert answer.split()[1] in (b"200", b"400")
        assert answer.endswith(b"Invalid HTTP request received.")
        again = target.post(body_of(recording_id)).json()
        assert again["duplicate"] or b"HTTP/1.1 200" not in answer


def test_requests_sent_without_waiting_for_answers_are_answered_each_in_its_order(target: Target) -> None:
    """fault: 50 requests pipelined in one write; invariant: each is stored once and answered in order."""
    ids = [f"rec-pipelined-{number}" for number in range(50)]
    with target.connect(b"".join(map(raw, ids))) as connection:
        connection.settimeout(5)
        answer = b""
        while answer.count(b'"duplicate":false') < 50:
            answer += connection.recv(65536)
    told = [json.loads(b"{" + part.partition(b"}")[0] + b"}")["recordingId"] for part in answer.split(b"{")[1:]]
    assert told == ids
    assert all(target.item(one) for one in ids)


def upgrade(name: str) -> str:
    return f"GET {PATH} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {name}\r\n"


def test_no_other_protocol_is_spoken(target: Target) -> None:
    """fault: an upgrade to websocket or HTTP/2; invariant: refused as the ordinary request that it also is."""
    key = "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\nConnection: close\r\n"
    for head in (upgrade("websocket") + key, upgrade("h2c") + "Connection: close\r\n"):
        with target.connect(head + "\r\n") as connection:
            assert received(connection).startswith((b"HTTP/1.1 405", b"HTTP/1.1 400"))


def digest(body: bytes, message_id: str, stamp: str, key: bytes = KEY) -> bytes:
    return hmac.digest(key, b".".join([message_id.encode(), stamp.encode(), body]), hashlib.sha256)


def headers_with(signature: str, body: bytes, message_id: str = "msg-1") -> dict[str, str]:
    return signed(body, message_id=message_id) | {"webhook-signature": signature}


def test_one_good_signature_among_many_is_enough_and_a_thousand_bad_ones_are_not(target: Target) -> None:
    """fault: many signatures in one header, as at a change of keys or in a guessing attack; invariant: 200 with a good
    one among them, 401 without, either within a second."""
    body = body_of("rec-many-signatures")
    headers = signed(body)
    good = headers["webhook-signature"]
    bad = [f"v1,{base64.b64encode(digest(body, 'msg-1', str(n))).decode()}" for n in range(1000)]
    began = time.monotonic()
    for signatures, status in ((bad, 401), ([*bad[:500], good, *bad[500:]], 200)):
        assert target.post(body, headers | {"webhook-signature": " ".join(signatures)}).status_code == status
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("form", ["hex", "url-safe", "without padding", "another version", "of the key's text"])
def test_a_signature_in_a_wrong_encoding_is_401(target: Target, form: str) -> None:
    """fault: the right digest in a wrong encoding, or by the secret's text for its bytes; invariant: 401, and nothing
    is stored."""
    stamp = str(int(time.time()))
    bodies = (body_of(f"rec-{form[:3]}-{number}") for number in range(999))
    body, made = next((b, d) for b in bodies if set(base64.b64encode(d := digest(b, "msg-1", stamp))) >= set(b"+/"))
    by_text = digest(body, "msg-1", stamp, base64.b64encode(KEY))
    signature = {
        "hex": f"v1,{made.hex()}",
        "url-safe": f"v1,{base64.urlsafe_b64encode(made).decode()}",
        "without padding": f"v1,{base64.b64encode(made).decode().rstrip('=')}",
        "another version": f"v1a,{base64.b64encode(made).decode()}",
        "of the key's text": f"v1,{base64.b64encode(by_text).decode()}",
    }[form]
    headers = headers_with(signature, body) | {"webhook-timestamp": stamp}
    assert target.post(body, headers).status_code == 401
    assert target.item(json.loads(body)["recordingId"]) is None


def test_what_was_captured_once_brings_nothing_new(target: Target) -> None:
    """fault: a captured message sent again as it was, with another body, id or time; invariant: the same answer as a
    repeat, or 401; still one row."""
    body = body_of("rec-captured")
    captured = signed(body, message_id="msg-captured")
    first = target.post(body, captured).json()
    other = body_of("rec-captured-2")
    later = str(int(captured["webhook-timestamp"]) + 1)
    assert target.post(body, captured).json() == first | {"duplicate": True}
    assert target.post(other, captured).status_code == 401
    assert target.post(body, captured | {"webhook-id": "msg-other"}).status_code == 401
    assert target.post(body, captured | {"webhook-timestamp": later}).status_code == 401
    assert target.item("rec-captured-2") is None
    item = target.item("rec-captured")
    assert item is not None
    assert (item.correlation_id, item.duplicates) == ("msg-captured", 1)


def test_a_sender_that_uses_an_id_twice_loses_no_event(target: Target) -> None:
    """fault: another event under a webhook-id that was used; invariant: signed by the key, it is stored like any."""
    for name in ("rec-same-id-1", "rec-same-id-2"):
        assert target.post(body_of(name), message_id="msg-same").json()["duplicate"] is False
        assert target.item(name) is not None


def test_a_header_given_twice_is_read_in_one_way(target: Target) -> None:
    """fault: forged webhook headers beside the signed ones, before or after them; invariant: what is checked is what
    is used: the forged id is never stored."""
    for forged_first in (True, False):
        recording_id = f"rec-twice-{forged_first}"
        body = body_of(recording_id)
        good = list(signed(body, message_id="msg-signed").items())
        forged = [("webhook-id", "msg-forged"), ("webhook-signature", "v1,AAAA")]
        headers = [*forged, *good] if forged_first else [*good, *forged]
        url = f"http://127.0.0.1:{target.port}{PATH}"
        answer = httpx.post(url, content=body, headers=headers, timeout=10)
        item = target.item(recording_id)
        assert answer.status_code == 401 if item is None else item.correlation_id == "msg-signed"
