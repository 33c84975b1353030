"""The client of an engine behind HTTP (guide, step 2): ours elsewhere, or anyone's that speaks `contracts.engine`.

When to ask, and what follows from a verdict, is the pipeline's.
"""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from hashlib import sha256

import httpx
from httpx_retries import Retry, RetryTransport
from pydantic import ValidationError
from standardwebhooks.webhooks import Webhook

from compliance_pipeline.contracts.engine import (
    SCREENINGS_PATH,
    UNMAPPED_RULE,
    Accepted,
    ScreeningRequest,
    SealedMedia,
    TokenisedMetadata,
    is_address,
    stored_form,
)
from compliance_pipeline.contracts.event import RecordingEvent
from compliance_pipeline.contracts.policy import PolicyPack, Severity
from compliance_pipeline.contracts.verdict import Verdict, VerdictRefused, VerdictValue, parse_verdict
from compliance_pipeline.platforms.port import Media, PlatformError
from compliance_pipeline.platforms.transport import WholeAnswers
from compliance_pipeline.screening.engine import EngineAnswerRefused, EngineBusy, EngineRefused, EngineUnavailable

TRIES = 3
LONGEST_WAIT_S = 15.0
"""All waits of one request together. The signature holds for 5 minutes: three tries of a minute and this fit in."""
ANSWER_S = 60.0

_FOR_NOW = frozenset({408, 424, 425})


class HttpEngine:
    """One engine at `url` (up to, and without, /api/v1/screenings). Safe to use from several threads.

    secret: whsec_..., signs the requests by the Standard Webhooks specification. answer_s: how long the engine may
    take. backoff_s: base of the exponential backoff between tries. Raises ValueError for what is no http(s) URL.
    """

    def __init__(self, url: str, secret: str, *, answer_s: float = ANSWER_S, backoff_s: float = 0.25) -> None:
        # httpx logs whole URLs at INFO, httpcore headers at DEBUG.
        for name in ("httpx", "httpx_retries", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)
        if not is_address(url):
            raise ValueError("the engine's URL is not an http or https URL (COMPLIANCE_ENGINE_URL)")
        # 429 is not among them: the pipeline puts the recording back and lets others go first.
        retry = Retry(
            total=TRIES - 1,
            allowed_methods=("POST",),
            status_forcelist=(500, 502, 503, 504),
            backoff_factor=backoff_s,
            backoff_jitter=0.5,
            max_backoff_wait=LONGEST_WAIT_S,
            total_timeout=LONGEST_WAIT_S,
        )
        self._webhook = Webhook(secret)
        self._http = httpx.Client(
            base_url=url,
            transport=RetryTransport(WholeAnswers(verify=httpx.create_ssl_context()), retry),
            timeout=httpx.Timeout(answer_s, connect=5.0),
            headers={"Accept": "application/json", "Content-Type": "application/json"},
        )

    def request(
        self,
        event: RecordingEvent,
        correlation_id: str,
        media: Media | SealedMedia,
        policy_version: str,
        callback_url: str | None = None,
        *,
        transcript: Media | None = None,
        speakers: tuple[str, ...] = (),
    ) -> Verdict | Accepted:
        """Have a recording screened. Asking again is harmless: the engine answers a repeat from its memory.

        event: as stored, so tokenised; raises EngineRefused if it holds anything else. Accepted: the verdict will come
        to `callback_url`. Raises EngineError.
        """
        recording = event.recording_id
        try:
            asked = ScreeningRequest(
                correlation_id=correlation_id,
                recording_id=recording,
                channel=event.channel,
                media_url=media.url if isinstance(media, Media) else None,
                sealed=media if isinstance(media, SealedMedia) else None,
                content_type=media.content_type if isinstance(media, Media) else None,
                transcript_url=transcript.url if transcript else None,
                speakers=speakers,
                metadata=TokenisedMetadata(
                    direction=event.direction,
                    queue=next((person.queue for person in event.participants if person.queue), None),
                    participants=tuple(person.id for person in event.participants if person.id),
                    start_time=event.start_time,
                    end_time=event.end_time,
                ),
                callback_url=callback_url,
                policy_version=policy_version,
            )
        except ValidationError as error:
            raise EngineRefused(f"recording {recording}: not sent to the engine, wrong at {_fields(error)}") from None
        body = asked.model_dump_json(by_alias=True, exclude_none=True)
        try:
            response = self._http.post(SCREENINGS_PATH, content=body, headers=self._signed(asked, body))
        except httpx.HTTPError as error:
            why = f"recording {recording}: no whole answer from the engine ({type(error).__name__}) in {TRIES} tries"
            raise EngineUnavailable(why, is_down=True) from None
        except PlatformError:
            raise EngineAnswerRefused(f"recording {recording}: the engine's answer is too large") from None
        return self._answer(asked, response)

    def close(self) -> None:
        self._http.close()

    def _signed(self, asked: ScreeningRequest, body: str) -> dict[str, str]:
        key = "\0".join((asked.recording_id, asked.correlation_id, asked.policy_version))
        message_id, now = f"req_{sha256(key.encode()).hexdigest()[:40]}", datetime.now(UTC)
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._webhook.sign(message_id, now, body),
        }

    def _answer(self, asked: ScreeningRequest, response: httpx.Response) -> Verdict | Accepted:
        status, recording = response.status_code, asked.recording_id
        said = f"recording {recording}: the engine answered {status}"
        if status == 429:
            raise EngineBusy(said, _retry_after(response))
        if status in _FOR_NOW or status >= 500:
            raise EngineUnavailable(said, _retry_after(response), is_down=status >= 500)
        if 300 <= status < 500:
            hint = {
                401: ": the signature; both sides need the same COMPLIANCE_ENGINE_SECRET, and clocks within 5 minutes",
                404: f": nothing at {SCREENINGS_PATH}; check COMPLIANCE_ENGINE_URL",
                409: ": it screens under another policy; give both sides the same pack",
                422: ": it does not take the request or the media's address; see its log",
            }
            raise EngineRefused(said + hint.get(status, ""))
        answer: Verdict | Accepted
        try:
            match status:
                case 200:
                    answer = stored_form(parse_verdict(response.content))
                case 202 if asked.callback_url:
                    answer = Accepted.model_validate_json(response.content, strict=True)
                case _:
                    raise EngineAnswerRefused(f"{said}, which the contract does not have here")
        except VerdictRefused as error:
            raise EngineAnswerRefused(f"{said}, but {error}") from None
        except ValidationError as error:
            raise EngineAnswerRefused(f"{said}, but its body is wrong at {_fields(error)}") from None
        if (answer.recording_id, answer.correlation_id) != (recording, asked.correlation_id):
            raise EngineAnswerRefused(f"{said}, but about another recording or request")
        return answer


def _fields(error: ValidationError) -> str:
    """The names of the fields at fault, without their values; an unknown field's name is the sender's."""
    names = {
        "an unknown field" if fault["type"] == "extra_forbidden" else ".".join(map(str, fault["loc"])) or "the whole"
        for fault in error.errors(include_url=False, include_context=False, include_input=False)
    }
    return ", ".join(sorted(names))


def _retry_after(response: httpx.Response) -> float | None:
    """RFC 9110, 10.2.3: seconds, or a date."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


@dataclass(frozen=True, slots=True)
class ExternalHit:
    """What an external verdict means under our policy. rule_id: UNMAPPED_RULE where no rule has its type."""

    rule_id: str
    verdict: VerdictValue
    violation_type: str
    severity: Severity
    confidence: float
    start_ms: int


def external_hit(verdict: Verdict, policy: PolicyPack) -> ExternalHit | None:
    """The gravest rule of the pack with the verdict's violation type; None where the verdict names no violation.

    A type that no rule has is for a person to review, whatever the engine called it. So is what its rule would only
    have reviewed.
    """
    if verdict.violation_type is None or verdict.confidence_score is None or verdict.timestamp_offset_ms is None:
        return None
    rules = [rule for rule in policy.rules if rule.violation_type == verdict.violation_type]
    rule = max(rules, key=lambda one: one.severity.rank, default=None)
    both_accuse = rule is not None and VerdictValue.VIOLATION_DETECTED == verdict.verdict == rule.verdict
    return ExternalHit(
        rule_id=rule.id if rule else UNMAPPED_RULE,
        verdict=VerdictValue.VIOLATION_DETECTED if both_accuse else VerdictValue.REVIEW_REQUIRED,
        violation_type=verdict.violation_type,
        severity=rule.severity if rule else Severity.MEDIUM,
        confidence=verdict.confidence_score,
        start_ms=verdict.timestamp_offset_ms,
    )
