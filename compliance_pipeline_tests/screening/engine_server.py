"""A running engine service, a media host with a real call on it, and requests signed apart from the library."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import httpx

from compliance_pipeline.contracts.policy import PolicyPack
from compliance_pipeline.sandbox.calls import Kind, SyntheticRecording, make_recording
from compliance_pipeline.screening.engine import EmbeddedEngine
from compliance_pipeline.screening.policy import load_policy
from compliance_pipeline.screening.service import create_engine_app
from compliance_pipeline_tests.intake.test_receiver import Running, signed
from compliance_pipeline_tests.platforms.loopback import Reply, Server

PATH = "/api/v1/screenings"
KEY, CALLBACK_KEY = b"the secret of engine requests...", b"the secret of engine callbacks.."
SECRET, CALLBACK_SECRET = ("whsec_" + base64.b64encode(key).decode() for key in (KEY, CALLBACK_KEY))
URL_CANARY = "signature-canary-7f3a"
LOOPBACK = ("127.0.0.1",)


@cache
def policy() -> PolicyPack:
    return load_policy()


@cache
def call(kind: Kind = Kind.VOICE_TONES) -> SyntheticRecording:
    return make_recording(1, kind, ended_at=datetime(2026, 3, 1, 12, 0, tzinfo=UTC))


@dataclass
class Site:
    """The engine under test, the host of its media, and a host that takes callbacks."""

    engine: Running
    media: Server
    back: Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.engine.port}"

    def media_url(self, name: str = "call.wav") -> str:
        return f"{self.media.url}/{name}?token={URL_CANARY}"

    @property
    def callback_url(self) -> str:
        return f"{self.back.url}/back"

    def asking(self, recording_id: str = "rec-1", **changes: Any) -> bytes:
        fields = {
            "schemaVersion": "1",
            "correlationId": "msg-1",
            "recordingId": recording_id,
            "channel": "voice",
            "mediaUrl": self.media_url(),
            "contentType": "audio/wav",
            "metadata": {"direction": "inbound", "participants": ["tok_phone_" + "a" * 26]},
            "policyVersion": policy().policy_version,
        }
        return json.dumps({key: value for key, value in (fields | changes).items() if value is not None}).encode()

    def post(self, body: bytes, headers: dict[str, str] | None = None, **signing: Any) -> httpx.Response:
        sent = signed(body, **{"key": KEY} | signing) | (headers or {})
        return self.engine.http.post(PATH, content=body, headers=sent)

    def figures(self) -> list[str]:
        return self.engine.http.get("/metrics").text.splitlines()

    @property
    def fetches(self) -> int:
        return len(self.media.calls("GET", "/call.wav"))


class MediaHost(Server):
    """Serves one call at every path."""

    def answer(self, _asked: object) -> Reply:
        return Reply(200, call().media, {"Content-Type": "audio/wav"})


class Taker(Server):
    def answer(self, _asked: object) -> Reply:
        return Reply(200, b"{}")


@contextmanager
def site(**options: Any) -> Iterator[Site]:
    media, back = MediaHost(), Taker()
    arguments: dict[str, Any] = {"hosts": LOOPBACK, "callback_backoff_s": 0.02} | options
    engine = Running(create_engine_app(policy(), EmbeddedEngine(policy(), "key"), SECRET, CALLBACK_SECRET, **arguments))
    try:
        yield Site(engine, media, back)
    finally:
        engine.stop()
        media.stop()
        back.stop()
