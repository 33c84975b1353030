"""Which engine judges, by one setting: the one in this process, or any that speaks `contracts.engine` over HTTP.
How either judges is screening's; how a verdict that is called back gets here is intake's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from compliance_pipeline.clock import utc_now
from compliance_pipeline.contracts.engine import SealedMedia, seal
from compliance_pipeline.contracts.event import RecordingEvent
from compliance_pipeline.contracts.policy import PolicyPack
from compliance_pipeline.contracts.verdict import Verdict
from compliance_pipeline.platforms.port import Gone, Media, NotYet, Platform, Ready
from compliance_pipeline.screening.engine import (
    ENGINE_BREAKER,
    Accepted,
    Engine,
    EngineBusy,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    Located,
    from_settings,
)

if TYPE_CHECKING:
    from compliance_pipeline.intake.inbox import Inbox
    from compliance_pipeline.settings import Settings


MAX_SEALED_BYTES = 16 * 2**20
"""Of media. In base64, with what goes along, they stay below what the engine service takes (32 MiB)."""


class RemoteEngine:
    """An HTTP engine as the pipeline sees it: asked once, answered at once or by a signed callback.

    With COMPLIANCE_ENGINE_SEAL_KEY the media themselves go along, sealed, in place of their address: one stream of
    up to MAX_SEALED_BYTES. A transcript goes by its address all the same.
    """

    def __init__(self, settings: "Settings", policy: PolicyPack, inbox: "Inbox") -> None:
        from compliance_pipeline.intake.callbacks import callback_url
        from compliance_pipeline.screening.external import HttpEngine

        assert settings.engine_url is not None  # noqa: S101
        self._http = HttpEngine(settings.engine_url, settings.engine_signing_secret)
        receiver = settings.receiver_url or f"http://{settings.host}:{settings.receiver_port}"
        self._callback_url = callback_url(receiver, policy.policy_version)
        self._policy_version = policy.policy_version
        self._inbox = inbox
        inbox.create()  # the tables of what is called back are known from here on
        self._answer_s = settings.engine_seconds
        self._seal_key = next(iter(settings.engine_seal_key.items()), None)
        self.version = f"http:{urlsplit(settings.engine_url).netloc}"

    def judge(
        self, platform: Platform, event: RecordingEvent, correlation_id: str, _located: Located = lambda _: None
    ) -> Verdict | Accepted | NotYet | Gone:
        """Raises PlatformError, EngineError."""
        if known := self.called_back(event.recording_id, correlation_id):
            return known
        location = platform.locate(event.recording_id)
        if not isinstance(location, Ready):
            return location
        media = location.media
        if media.channels or (media.content is not None and self._seal_key is None):
            raise EngineRefused(
                f"recording {event.recording_id}: the platform gives its media in a form that has no single address; "
                "an HTTP engine can't fetch it, the engine in the package can: unset COMPLIANCE_ENGINE_URL"
            )
        with self._behind_breaker():
            answer = self._http.request(
                event,
                correlation_id,
                media if self._seal_key is None else self._sealed(platform, media, event.recording_id, correlation_id),
                self._policy_version,
                self._callback_url,
                transcript=location.transcript,
                speakers=location.speakers,
            )
        if isinstance(answer, Verdict):
            return answer
        return Accepted(self._answer_s, lambda: self._wake(event.recording_id, correlation_id))

    @contextmanager
    def _behind_breaker(self) -> Iterator[None]:
        from compliance_pipeline.breaker import admitted, circuit_breaker, tell

        breaker, now = circuit_breaker(self._inbox.engine, ENGINE_BREAKER), utc_now()
        if until := admitted(breaker, now):
            raise EngineBusy("the engine's circuit breaker is open", (until - now).total_seconds())
        failed: bool | None = None
        try:
            yield
            failed = False
        except EngineRefused:
            raise  # by the engine, or by us before it was asked
        except EngineError as error:
            # One of an engine that is not down is an answer: about this recording, or for now.
            failed = isinstance(error, EngineUnavailable) and error.is_down
            raise
        finally:
            tell(breaker, failed=failed)

    def _sealed(self, platform: Platform, media: Media, recording_id: str, correlation_id: str) -> SealedMedia:
        assert self._seal_key is not None  # noqa: S101
        content = bytearray()
        with platform.open_media(media) as stream:
            for chunk in stream:
                content += chunk
                if len(content) > MAX_SEALED_BYTES:
                    raise EngineRefused(
                        f"recording {recording_id}: its media is over {MAX_SEALED_BYTES >> 20} MiB, which is too large "
                        "to send sealed; unset COMPLIANCE_ENGINE_SEAL_KEY or COMPLIANCE_ENGINE_URL"
                    )
        key_id, key = self._seal_key
        return seal(bytes(content), key_id, key.get_secret_value(), recording_id, correlation_id)

    def close(self) -> None:
        self._http.close()

    def called_back(self, recording_id: str, correlation_id: str) -> Verdict | None:
        from compliance_pipeline.intake.callbacks import verdict_for

        stored = verdict_for(self._inbox.engine, recording_id, correlation_id, self._policy_version)
        return stored.verdict if stored else None

    def _wake(self, recording_id: str, correlation_id: str) -> None:
        from compliance_pipeline.intake.callbacks import wake

        if self.called_back(recording_id, correlation_id):
            wake(self._inbox.engine, recording_id, utc_now())


def engine_of(settings: "Settings", policy: PolicyPack, inbox: "Inbox") -> Engine:
    """Raises RecogniserError, ValueError for settings that can't be used."""
    return RemoteEngine(settings, policy, inbox) if settings.engine_url else from_settings(settings, policy)
