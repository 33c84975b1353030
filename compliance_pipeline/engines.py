"""Which engine judges, by one setting: the one in this process, or any that speaks `contracts.engine` over HTTP.
How either judges is screening's; how a verdict that is called back gets here is intake's."""

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from compliance_pipeline.clock import utc_now
from compliance_pipeline.contracts.event import RecordingEvent
from compliance_pipeline.contracts.policy import PolicyPack
from compliance_pipeline.contracts.verdict import Verdict
from compliance_pipeline.platforms.port import Gone, NotYet, Platform, Ready
from compliance_pipeline.screening.engine import Accepted, Engine, EngineRefused, Located, from_settings

if TYPE_CHECKING:
    from compliance_pipeline.intake.inbox import Inbox
    from compliance_pipeline.settings import Settings


class RemoteEngine:
    """An HTTP engine as the pipeline sees it: asked once, answered at once or by a signed callback."""

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
        if location.media.content is not None or location.media.channels:
            raise EngineRefused(
                f"recording {event.recording_id}: the platform gives its media in a form that has no single address; "
                "an HTTP engine can't fetch it, the engine in the package can: unset COMPLIANCE_ENGINE_URL"
            )
        answer = self._http.request(
            event,
            correlation_id,
            location.media,
            self._policy_version,
            self._callback_url,
            transcript=location.transcript,
            speakers=location.speakers,
        )
        if isinstance(answer, Verdict):
            return answer
        return Accepted(self._answer_s, lambda: self._wake(event.recording_id, correlation_id))

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
