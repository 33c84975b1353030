"""What the simulated platform does wrong, as a plan: kinds of faults with rates and windows, drawn by seed.

Whether a fault strikes is decided here; what it then does is done by whoever serves the request or sends the event.
"""

from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field


class FaultKind(StrEnum):
    """The fifteen groups of misbehaviour that platforms are known for; the number is the group's.

    What is set for good is no fault of a plan: a missing permission (11: POST /sandbox/permissions) and what the
    platform redacts (14: PUT /sandbox/redaction).
    """

    TRANSCODING_202 = "transcoding_202"  # 1: 202 without body n times, then 200
    TRANSCODING_EMPTY_LIST = "transcoding_empty_list"  # 1: 202 with []
    TRANSCODING_WITHOUT_URIS = "transcoding_without_uris"  # 1: 202, estimatedTranscodeTimeMs but no mediaUris
    LISTED_LATE = "listed_late"  # 2: 200 [] just after hang-up, filled later
    NOT_RECORDED = "not_recorded"  # 2: 200 [] for ever
    NOT_FOUND_FOR_NOW = "not_found_for_now"  # 3
    NOT_FOUND_EVER = "not_found_ever"  # 3
    UPLOADING = "uploading"  # 4: UPLOADING, then AVAILABLE
    ARCHIVED = "archived"  # 4
    RESTORING = "restoring"  # 4: RESTORING, then AVAILABLE
    DELETED = "deleted"  # 4
    FILE_ERROR = "file_error"  # 4
    UNKNOWN_STATE = "unknown_state"  # 4: a word that no client knows, then AVAILABLE
    MEDIA_URIS_NULL = "media_uris_null"  # 5: for a while
    CHANNEL_FILES = "channel_files"  # 5: {"0", "1"}: one file an audio channel; or {"0"}: one mono file
    SEVERAL_RECORDINGS = "several_recordings"  # 6: transfer, consult, screen in one conversation
    MEDIA_EXPIRED = "media_expired"  # 7: 403 XML 'Request has expired'
    MEDIA_NOT_FOUND = "media_not_found"  # 7
    MEDIA_SLOW_DOWN = "media_slow_down"  # 7: 503 SlowDown
    MEDIA_SHORT = "media_short"  # 7: fewer bytes than Content-Length
    MEDIA_RESET = "media_reset"  # 7: connection reset mid-stream
    MEDIA_HEADER_ONLY = "media_header_only"  # 7: a 44-byte WAV
    MEDIA_WRONG_TYPE = "media_wrong_type"  # 7: wrong Content-Type
    MEDIA_HTML = "media_html"  # 7: a web page with 200
    MEDIA_SLOW_DRIP = "media_slow_drip"  # 7
    MEDIA_ELSEWHERE = "media_elsewhere"  # an address inside the network, or a redirect to one (SSRF)
    UNAUTHORISED = "unauthorised"  # 8: 401 mid-run
    TOKEN_BUSY = "token_busy"  # noqa: S105 - 8: 429 or 5xx from the token endpoint
    TOO_MANY_REQUESTS = "too_many_requests"  # 9: 429, with and without Retry-After
    SERVER_ERROR = "server_error"  # 10: 500, 502, 503, 504
    DROPPED_AFTER_EFFECT = "dropped_after_effect"  # 10: the connection ends after a POST took effect
    FORBIDDEN_FOR_NOW = "forbidden_for_now"  # 11
    BATCH_TROUBLE = "batch_trouble"  # 12: partial, per-item errors, growing expectedResultCount
    EVENT_TWICE = "event_twice"  # 13: the same id again
    EVENT_NEW_ID = "event_new_id"  # 13: the same recording or conversation under a new id
    EVENT_REVERSED = "event_reversed"  # 13
    EVENT_EARLY = "event_early"  # 13: before the recording exists
    EVENT_LOST = "event_lost"  # 13: only a sweep can find it
    EVENT_LATE = "event_late"  # 13: days late
    EVENT_MALFORMED = "event_malformed"  # 13: malformed JSON, beside the real one
    EVENT_UNKNOWN_TOPIC = "event_unknown_topic"  # 13: beside the real one
    EVENT_STORM = "event_storm"  # 15: the same message three times at once
    TAG_OVERWRITTEN = "tag_overwritten"  # 14: by someone else, before we read it; never between our read and our write
    WORK_ITEM_DELETED = "work_item_deleted"  # 14: by someone else, after it was made
    CONFLICT = "conflict"  # 14: 409 for now
    TOO_LARGE = "too_large"  # 14: 413
    BAD_SIGNATURE = "bad_signature"  # 15: a forged event and a forged verdict, beside the real event
    REPLAYED = "replayed"  # 15: an event and a verdict that were signed long ago, beside the real event


class PlannedFault(BaseModel):
    """rate: share of what it could strike that it does strike. after_s, for_s: its window, from the plan's start.

    times: how often in a row, for faults that pass. seconds: how long, for faults that last (or Retry-After).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: FaultKind
    rate: Annotated[float, Field(ge=0, le=1)]
    after_s: float = Field(default=0.0, ge=0)
    for_s: float | None = Field(default=None, gt=0)
    times: int = Field(default=1, ge=1)
    seconds: float | None = Field(default=None, ge=0)


class FaultPlan(BaseModel):
    """seed: the same plan and seed strike the same recordings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 1
    faults: tuple[PlannedFault, ...] = ()

    def strikes(self, kind: FaultKind, key: str, at_s: float) -> PlannedFault | None:
        """The fault of that kind that strikes `key` (a recording, a request's number) `at_s` seconds into the plan."""
        for number, fault in self._by_kind.get(kind, ()):
            if at_s < fault.after_s:
                continue
            if fault.for_s is not None and at_s >= fault.after_s + fault.for_s:
                continue
            drawn = int.from_bytes(sha256(f"{self.seed}/{number}/{kind}/{key}".encode()).digest()[:8]) / 2**64
            if drawn < fault.rate:
                return fault
        return None

    @cached_property
    def _by_kind(self) -> dict[FaultKind, list[tuple[int, PlannedFault]]]:
        found: dict[FaultKind, list[tuple[int, PlannedFault]]] = {}
        for number, fault in enumerate(self.faults):
            found.setdefault(fault.kind, []).append((number, fault))
        return found


FULL: Final = Path(__file__).with_name("plans") / "full.yaml"


def load_plan(path: Path) -> FaultPlan:
    """Raises OSError, yaml.YAMLError, pydantic.ValidationError."""
    return FaultPlan.model_validate(yaml.safe_load(path.read_text()))
