"""What the simulated Genesys Cloud takes and refuses: request bodies, strict; query parameters; the error body.
Shapes are facts of the published API (its SDK, 269.0.0); nothing is kept or decided here."""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from starlette.requests import Request
from starlette.responses import JSONResponse

from compliance_pipeline.sandbox.answers import error_answer
from compliance_pipeline.sandbox.cloud_state import CloudState, cloud_state
from compliance_pipeline.sandbox.state import PlatformState

MediaFormat = Literal["WAV", "WEBM", "WAV_ULAW", "OGG_VORBIS", "OGG_OPUS", "MP3", "NONE"]
MEDIA_FORMATS: Final = ("WAV", "WEBM", "WAV_ULAW", "OGG_VORBIS", "OGG_OPUS", "MP3", "NONE")


class Problem(Exception):
    """A request that is refused, with the platform's error body. Holds nothing of the request but field names."""

    def __init__(
        self, status: int, code: str, message: str, *, fields: Sequence[str] = (), extra: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self._more = {"details": [{"errorCode": code, "fieldName": name} for name in fields]} | (extra or {})

    def answer(self) -> JSONResponse:
        return error_answer(self.status, self.code, str(self), **self._more)


def bad(message: str, *fields: str) -> Problem:
    return Problem(400, "bad.request", message, fields=fields)


def not_found(what: str, code: str = "not.found") -> Problem:
    return Problem(404, code, f"Unable to find {what}: it does not exist or is not accessible")


M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Call:
    """One request with what it is about."""

    request: Request
    state: PlatformState

    @property
    def cloud(self) -> CloudState:
        return cloud_state(self.state)

    def path(self, name: str) -> str:
        value: str = self.request.path_params[name]
        return value

    async def body(self, model: type[M], *, optional: bool = False) -> M:
        """Raises Problem 400 or 415 naming fields, never values."""
        raw = await self._raw()
        # The vendor's SDK sends null for a body that it was not given.
        if optional and raw in (b"", b"null"):
            raw = b"{}"
        try:
            return model.model_validate_json(raw)
        except ValidationError as error:
            fields = [".".join(map(str, found["loc"])) for found in error.errors(include_input=False)]
            reasons = sorted({found["type"] for found in error.errors(include_input=False)})
            raise bad(f"The request body is not valid: {', '.join(reasons)}", *fields) from None

    async def json_object(self) -> dict[str, Any]:
        try:
            body = json.loads(await self._raw())
        except ValueError:
            raise bad("The request body is not JSON") from None
        if not isinstance(body, dict):
            raise bad("The request body is not a JSON object")
        return body

    async def _raw(self) -> bytes:
        raw = await self.request.body()
        self.state.note_planted(raw)
        kind = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if raw and kind != "application/json":
            raise Problem(415, "unsupported.media.type", "The request body must be application/json")
        return raw

    def integer(self, name: str, default: int, *, least: int = 1, most: int | None = None) -> int:
        """A query parameter. Raises Problem 400."""
        try:
            value = int(self.request.query_params.get(name, default))
        except ValueError:
            raise bad(f"{name} must be a number", name) from None
        if value < least or (most is not None and value > most):
            raise bad(f"{name} must be from {least} to {most or 'any'}", name)
        return value

    def flag(self, name: str, default: bool | None = None) -> bool | None:
        value = self.request.query_params.get(name)
        if value is None:
            return default
        if value.lower() not in ("true", "false"):
            raise bad(f"{name} must be true or false", name)
        return value.lower() == "true"

    def choices(self, name: str, allowed: Sequence[str]) -> list[str]:
        """A query parameter that may come several times or comma-separated. Raises Problem 400."""
        values = [part for given in self.request.query_params.getlist(name) for part in given.split(",")]
        if any(value not in allowed for value in values):
            raise bad(f"{name} must be of {', '.join(allowed)}", name)
        return values


def interval_of(text: str) -> tuple[datetime, datetime]:
    """ISO 8601 'start/end'; UTC where no zone is given. Raises Problem 400."""
    parts = text.split("/")
    try:
        since, until = (datetime.fromisoformat(part) for part in parts)
    except ValueError:
        raise bad("interval must be two ISO 8601 times with '/' between", "interval") from None
    since, until = (at if at.tzinfo else at.replace(tzinfo=UTC) for at in (since, until))
    if since >= until:
        raise bad("interval must end after it starts", "interval")
    return since.astimezone(UTC), until.astimezone(UTC)


def cursor_of(offset: int) -> str:
    return base64.urlsafe_b64encode(f"at:{offset}".encode()).decode()


def offset_of(cursor: str | None) -> int:
    """Raises Problem 400 for a cursor that was not given out here."""
    if not cursor:
        return 0
    try:
        name, _, number = base64.urlsafe_b64decode(cursor.encode()).decode().partition(":")
        if name == "at":
            return int(number)
    except (binascii.Error, ValueError):
        pass
    raise bad("The cursor is not one that was given", "after")


def page(entities: list[Any], number: int, size: int) -> dict[str, Any]:
    """One page of a listing by number."""
    return {
        "entities": entities[(number - 1) * size : number * size],
        "pageSize": size,
        "pageNumber": number,
        "total": len(entities),
        "pageCount": -(-len(entities) // size),
    }


# Request bodies


class _Body(BaseModel):
    """Strict: unknown fields and nulls are refused, as the contract tightens it."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True)

    @model_validator(mode="after")
    def _nothing_is_null(self) -> Self:
        if any(getattr(self, name) is None for name in self.model_fields_set):
            raise ValueError("null")
        return self


class _Open(BaseModel):
    """For bodies of entities: they may carry what the server ignores."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", strict=True)


class ConversationTags(_Body):
    external_tag: str


class RecordingChange(_Open):
    archive_date: AwareDatetime | None = None
    delete_date: AwareDatetime | None = None
    export_date: AwareDatetime | None = None
    restore_expiration_time: AwareDatetime | None = None


class NewAnnotation(_Open):
    name: str | None = None
    type: str | None = None
    location: int | None = None
    duration_ms: int | None = None
    absolute_location: int | None = None
    absolute_duration_ms: int | None = None
    recording_location: int | None = None
    recording_duration_ms: int | None = None
    realtime_location: int | None = None
    description: str | None = None
    reason: Literal["Hold", "SecurePause", "FlowOrQueue", "Pause"] | None = None


class BatchItem(_Body):
    conversation_id: str | None = None
    recording_id: str | None = None


class NewBatch(_Body):
    batch_download_request_list: list[BatchItem]


class Protection(_Body):
    conversation_ids: list[str]


class NewWorkItem(_Body):
    name: str = Field(min_length=3, max_length=256)
    type_id: str
    priority: int = Field(default=0, ge=-25_000_000, le=25_000_000)
    date_due: AwareDatetime | None = None
    date_expires: AwareDatetime | None = None
    duration_seconds: int | None = None
    ttl: int | None = None
    status_id: str | None = None
    workbin_id: str | None = None
    auto_status_transition: bool | None = None
    description: str | None = None
    custom_fields: dict[str, Any] | None = None
    queue_id: str | None = None
    assignee_id: str | None = None
    language_id: str | None = None
    external_contact_id: str | None = None
    external_tag: str | None = None
    skill_ids: list[str] | None = None
    script_id: str | None = None
    wrapup_code: str | None = None
    utilization_label_id: str | None = None
    scored_agents: list[dict[str, Any]] | None = None
    preferred_agent_ids: list[str] | None = None


class Filter(_Open):
    name: str
    type: Literal["String", "Int"]
    operator: Literal["EQ", "NEQ", "GT", "LT", "GTE", "LTE", "IN", "CONTAINS", "BETWEEN", "BEGINS_WITH"]
    values: list[str]


class Query(_Body):
    """Of work items, worktypes, workbins."""

    page_size: int = Field(default=25, ge=1, le=200)
    select: Literal["Count"] | None = None
    filters: list[Filter]
    attributes: list[str] | None = None
    after: str | None = None
    sort: dict[str, Any] | None = None


class WorkItemQuery(Query):
    expands: list[str] | None = None


class WorktypeQuery(Query):
    expands: Literal["schema"] | None = None


class RoutingData(_Open):
    queue_id: str


class NewCallback(_Body):
    callback_numbers: Annotated[list[str], Field(min_length=1)]
    script_id: str | None = None
    queue_id: str | None = None
    routing_data: RoutingData | None = None
    customer_first_callback_delivery_mode: (
        Literal["UseQueueSetting", "UseAgentReservation", "NoAgentReservation"] | None
    ) = None
    callback_user_name: str | None = None
    callback_scheduled_time: AwareDatetime | None = None
    country_code: str | None = None
    validate_callback_numbers: bool | None = None
    data: dict[str, str] = Field(default_factory=dict)
    caller_id: str | None = None
    caller_id_name: str | None = None


class TriggerTarget(_Open):
    type: Literal["Workflow"]
    id: str
    workflow_target_settings: dict[str, Any] | None = None


class MatchCriterion(_Open):
    json_path: str
    operator: Literal[
        "GreaterThanOrEqual",
        "LessThanOrEqual",
        "Equal",
        "NotEqual",
        "LessThan",
        "GreaterThan",
        "NotIn",
        "In",
        "Contains",
        "All",
        "Exists",
        "Size",
    ]
    value: Any = None
    values: list[Any] | None = None


class NewTrigger(_Body):
    target: TriggerTarget
    enabled: bool
    name: str
    topic_name: str
    match_criteria: list[MatchCriterion] | None = None
    event_ttl_seconds: int | None = Field(default=None, alias="eventTTLSeconds")
    delay_by_seconds: int | None = None
    description: str | None = None


class TriggerChange(NewTrigger):
    version: int


class NewFlowJob(_Body):
    create_stubs: bool | None = None


class NewExecution(_Body):
    flow_id: str
    flow_version: str | None = None
    input_data: dict[str, Any] | None = None
    name: str | None = None


class AuditFilter(_Open):
    property: Literal["UserId", "TrusteeOrganizationId", "ClientId", "Action", "EntityType", "EntityId"]
    value: str


class AuditSort(_Open):
    name: Literal["Timestamp"]
    sort_order: Literal["ascending", "descending"]


class AuditQuery(_Body):
    interval: str
    service_name: str | None = None
    filters: list[AuditFilter] = Field(default_factory=list)
    sort: list[AuditSort] = Field(default_factory=list)


class RealtimeAuditQuery(AuditQuery):
    page_number: int = Field(default=1, ge=1)
    page_size: int = Field(default=25, ge=1, le=500)


class UsageQuery(_Body):
    interval: str
    event_definition_ids: list[str] | None = None
    search_term: str | None = None
    sort_order: Literal["ASC", "DESC"] | None = None


class Paging(_Body):
    page_size: int = Field(ge=1, le=100)
    page_number: int = Field(ge=1)


class Predicate(_Open):
    type: Literal["dimension", "property", "metric"] | None = None
    dimension: str
    operator: Literal["matches", "exists", "notExists"] = "matches"
    value: str | None = None


class Clause(_Body):
    type: Literal["and", "or"]
    predicates: list[Predicate]


class DetailFilter(_Body):
    type: Literal["and", "or"]
    clauses: list[Clause] = Field(default_factory=list)
    predicates: list[Predicate] = Field(default_factory=list)


class ConversationQuery(_Body):
    interval: str
    conversation_filters: list[DetailFilter] = Field(default_factory=list)
    segment_filters: list[DetailFilter] = Field(default_factory=list)
    evaluation_filters: list[dict[str, Any]] | None = None
    survey_filters: list[dict[str, Any]] | None = None
    resolution_filters: list[dict[str, Any]] | None = None
    order: Literal["asc", "desc", "unordered"] = "asc"
    order_by: Literal["conversationStart", "conversationEnd", "segmentStart", "segmentEnd"] = "conversationStart"
    aggregations: list[dict[str, Any]] | None = None
    paging: Paging = Field(default_factory=lambda: Paging(pageSize=25, pageNumber=1))
