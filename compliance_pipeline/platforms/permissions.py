"""What our client may do on the platform, and what the platform's audit log says was done there.

Probes are harmless: reads of a nil UUID, writes with an empty body. What follows from an answer is the command's.

By the published behaviour: permissions are checked before anything else, so 403 means not permitted, while 404 (no
such thing) and 400 (an incomplete body) mean permitted. Not verified against a live organisation.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from time import sleep as wait
from urllib.parse import urlsplit

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from compliance_pipeline.platforms.port import PlatformError, Refused, Unavailable
from compliance_pipeline.platforms.transport import MissingPermission, Transport, iso_utc, parse

_SIGN_IN = "POST /oauth/token"
NIL = "00000000-0000-0000-0000-000000000000"
AUDITS = "/api/v2/audits/query"
AUDIT_POLL_S, AUDIT_PATIENCE_S = 1.0, 120.0
AUDITED = (("Quality", "Recording"), ("Triggers", "Trigger"), ("ProcessAutomation", "Trigger"), ("Architect", "Flow"))
"""(service, entity type): recordings, and what stands for subscriptions. Which of the two services logs triggers is
not said by what we have read; both are asked."""
MOST_PAGES = 100


@dataclass(frozen=True, slots=True)
class Permission:
    """name: in the platform's words. optional: the pipeline works without it; `needed_for` says what is lost.

    path None: it can't be tried without harm; `untried` says why.
    """

    name: str
    needed_for: str
    method: str = "GET"
    path: str | None = None
    optional: bool = False
    untried: str = ""


class Held(StrEnum):
    YES = "there"
    NO = "missing"
    UNKNOWN = "can't tell"


@dataclass(frozen=True, slots=True)
class Probed:
    permission: Permission
    held: Held
    said: str


_NOT_PRINTED = "the guide prints no request to try it by"
GUIDE = (
    Permission("recording:read", "status and media", "GET", f"/api/v2/recordings/{NIL}"),
    Permission("recording:write", "tags on recordings", "PATCH", f"/api/v2/recordings/{NIL}"),
    Permission("eventsubscription:read", "platform check, apply", "GET", "/api/v2/eventsub/eventsubscriptions"),
    Permission("eventsubscription:write", "platform apply", "POST", "/api/v2/eventsub/eventsubscriptions"),
    Permission("architect:flow:read", "platform check, apply", "GET", "/api/v2/architect/flows"),
    Permission("architect:flow:write", "platform apply", "POST", "/api/v2/architect/flows"),
    Permission("integration:webhook:read", "the platform's webhooks", optional=True, untried=_NOT_PRINTED),
    Permission("integration:webhook:write", "the platform's webhooks", optional=True, untried=_NOT_PRINTED),
    Permission("(not named by the guide)", "work items", "POST", "/api/v2/analytics/datadatasets/records"),
    Permission("(not named by the guide)", "callbacks", "POST", "/api/v2/conversations/callbacks"),
)
"""The guide's page 1, 'OAuth Scopes'. It prints no request that needs the webhook scopes, and names no scope for
datasets and callbacks, which its step 3 uses."""

_PROTECTION = "/api/v2/recordings/deletionprotection"
_CONVERSATION = f"/api/v2/conversations/{NIL}"
CLOUD = (
    Permission("recording:recording:view", "media of recordings", "GET", f"{_CONVERSATION}/recordings"),
    Permission(
        "recording:annotation:add", "where the violation is", "POST", f"{_CONVERSATION}/recordings/{NIL}/annotations"
    ),
    Permission(
        "recording:annotation:view",
        "no annotation twice; pauses",
        untried="without it the platform shows none, and says nothing",
    ),
    Permission("conversation:communication:view", "external tag, read first", "GET", _CONVERSATION),
    Permission("conversation:externalTag:edit", "external tag", "PUT", f"{_CONVERSATION}/tags"),
    Permission("workitems:workitem:view", "no work item twice", "GET", f"/api/v2/taskmanagement/workitems/{NIL}"),
    Permission("workitems:workitem:add", "work items", "POST", "/api/v2/taskmanagement/workitems"),
    Permission("conversation:callback:create", "supervisor callbacks", "POST", "/api/v2/conversations/callbacks"),
    Permission(
        "analytics:conversationDetail:view", "the sweep", "POST", "/api/v2/analytics/conversations/details/query"
    ),
    Permission(
        "speechAndTextAnalytics:data:view",
        "transcripts of calls",
        "GET",
        f"/api/v2/speechandtextanalytics/conversations/{NIL}/communications/{NIL}/transcripturl",
        optional=True,
    ),
    Permission("recording:deletionProtection:apply", "platform hold", "PUT", _PROTECTION, optional=True),
    Permission(
        "recording:deletionProtection:revoke",
        "platform hold --release",
        "PUT",
        f"{_PROTECTION}?protect=false",
        optional=True,
    ),
    Permission(
        "recording:recording:editRetention",
        "the policy's purge_after_review",
        "PUT",
        f"{_CONVERSATION}/recordings/{NIL}",
        optional=True,
    ),
    Permission("routing:queue:view", "ids of queues", "GET", "/api/v2/routing/queues"),
    Permission("workitems:worktype:view", "id of the worktype", "POST", "/api/v2/taskmanagement/worktypes/query"),
    Permission(
        "workitems:workbin:view", "id of a workbin", "POST", "/api/v2/taskmanagement/workbins/query", optional=True
    ),
    Permission("processautomation:trigger:view", "platform check, apply", "GET", "/api/v2/processautomation/triggers"),
    Permission("processautomation:trigger:add", "platform apply", "POST", "/api/v2/processautomation/triggers"),
    Permission(
        "processautomation:trigger:edit", "platform apply", "PUT", f"/api/v2/processautomation/triggers/{NIL}"
    ),
    Permission("architect:flow:view", "platform check, apply", "GET", "/api/v2/flows"),
    Permission("architect:job:view", "platform apply", "GET", f"/api/v2/flows/jobs/{NIL}"),
    Permission("architect:job:create", "platform apply", untried="trying it would leave an upload behind"),
    Permission("audits:audit:view", "platform audits", "GET", f"{AUDITS}/{NIL}", optional=True),
)  # fmt: skip
"""`x-genesys-permissions` of the published API (SDK 269.0.0)."""


def permissions_of(profile: str) -> tuple[Permission, ...]:
    return CLOUD if profile == "cloud" else GUIDE


def probe_all(transport: Transport, wanted: Sequence[Permission]) -> Iterator[Probed]:
    """One request each. Raises PlatformError where the client can't even sign in: that says nothing of permissions."""
    for permission in wanted:
        yield _probe(transport, permission)


def _probe(transport: Transport, permission: Permission) -> Probed:
    method, path = permission.method, permission.path
    if path is None:
        return Probed(permission, Held.UNKNOWN, permission.untried)
    try:
        answer = transport.ask(method, path, json=None if method == "GET" else {}, repeatable=True)
    except MissingPermission as error:
        return Probed(permission, Held.NO, _grant(permission, error.permissions))
    except PlatformError as error:
        if str(error).startswith(_SIGN_IN):
            raise
        status = re.match(rf"{method} {re.escape(path)}: (\d{{3}})\b", str(error))
        return Probed(permission, *(_means(permission, int(status[1])) if status else (Held.UNKNOWN, str(error))))
    return Probed(permission, *_means(permission, answer.status))


def _means(permission: Permission, status: int) -> tuple[Held, str]:
    writes = permission.method != "GET" and not (permission.path or "").endswith("/query")
    names_nothing = NIL in (permission.path or "")
    if status == 403:
        return Held.NO, _grant(permission, ())
    if status == 404 and not names_nothing:
        return Held.UNKNOWN, "404: there is no such endpoint; is COMPLIANCE_PLATFORM_PROFILE right?"
    if writes and 200 <= status < 300:
        return Held.YES, "it took an empty body; look whether that left something behind"
    if 200 <= status < 300 or status in (400, 404, 409, 422):
        return Held.YES, ""
    return Held.UNKNOWN, f"it answered {status}; try again"


def _grant(permission: Permission, said: Sequence[str]) -> str:
    names = permission.name if permission.name in said or not said else " or ".join(sorted(said))
    if names.startswith("("):
        return "grant the client's role what this request needs"
    return f"grant {names} to the client's role"


# What else must hold


@dataclass(frozen=True, slots=True)
class Found:
    """One check. holds None: it can't be told. fix: what to do where it does not hold."""

    what: str
    holds: bool | None
    said: str
    fix: str = ""


def check_receiver(receiver_url: str, platform_url: str) -> Found:
    """Whether the platform can reach our receiver, as far as the address says: https, and not this machine."""
    ours, theirs = urlsplit(receiver_url), urlsplit(platform_url)
    fix = "set COMPLIANCE_RECEIVER_URL to the https address under which the platform reaches the receiver"
    if _is_loopback(ours.hostname):
        if _is_loopback(theirs.hostname):
            return Found("receiver", True, f"{ours.netloc}, on this machine as the platform is")
        return Found("receiver", False, f"{ours.netloc} is this machine only: the platform can't post to it", fix)
    if ours.scheme != "https":
        return Found("receiver", False, f"{ours.netloc} is not https: events would come in the clear", fix)
    return Found("receiver", True, f"{ours.netloc}, https")


def _is_loopback(host: str | None) -> bool:
    return host in ("localhost", "::1", "0.0.0.0") or (host or "").startswith("127.")  # noqa: S104 - compared, not bound


# The audit log


class _Answer(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore")


class _Ref(_Answer):
    id: str | None = None


class _Message(_Answer):
    """AuditLogMessage, without what names a person or quotes a value (`name`, remoteIp, propertyChanges)."""

    event_date: AwareDatetime | None = None
    entity_type: str | None = None
    entity: _Ref | None = None
    action: str | None = None
    status: str | None = None
    user: _Ref | None = None
    client: _Ref | None = None


class _Results(_Answer):
    cursor: str | None = None
    entities: list[_Message] | None = Field(default=None)


class _Query(_Answer):
    id: str
    state: str | None = None


@dataclass(frozen=True, slots=True)
class Audited:
    """One entry of the platform's audit log. at: UTC. who: id of a user or client, never a name."""

    at: datetime | None
    entity: str
    action: str
    who: str
    status: str


def audits(
    transport: Transport,
    since: datetime,
    until: datetime,
    tell: Callable[[str], None] = lambda _: None,
    sleep: Callable[[float], None] = wait,
) -> list[Audited]:
    """What happened to recordings, triggers and flows, latest first. Raises PlatformError.

    tell: of a service that the platform refuses to be asked about, which hides only its own entries.
    """
    queries: list[_Query] = []
    for service, entity_type in AUDITED:
        body = {
            "interval": f"{iso_utc(since)}/{iso_utc(until)}",
            "serviceName": service,
            "filters": [{"property": "EntityType", "value": entity_type}],
            "sort": [{"name": "Timestamp", "sortOrder": "descending"}],
        }
        try:
            queries.append(parse(_Query, transport.request("POST", AUDITS, json=body), f"POST {AUDITS}"))
        except MissingPermission:
            raise
        except Refused as error:
            tell(f"{service} not included: {error}")
    # All are under way before the first is waited for.
    found = [entry for query in queries for entry in _results(transport, query, sleep)]
    oldest = datetime.min.replace(tzinfo=UTC)
    return sorted(dict.fromkeys(found), key=lambda entry: entry.at or oldest, reverse=True)


def _results(transport: Transport, query: _Query, sleep: Callable[[float], None]) -> list[Audited]:
    path = f"{AUDITS}/{query.id}"
    waited = 0.0
    while (query := parse(_Query, transport.request("GET", path), f"GET {path}")).state != "Succeeded":
        if query.state in ("Failed", "Cancelled"):
            raise Unavailable(f"GET {path}: the audit query {query.state.lower()}; ask again")
        if waited >= AUDIT_PATIENCE_S:
            raise Unavailable(f"GET {path}: no result after {AUDIT_PATIENCE_S:.0f} s; ask for fewer hours")
        sleep(AUDIT_POLL_S)
        waited += AUDIT_POLL_S
    entries: list[Audited] = []
    params: dict[str, str] = {"pageSize": "100"}
    for _ in range(MOST_PAGES):
        page = parse(_Results, transport.request("GET", f"{path}/results", params=params), f"GET {path}/results")
        entries += [_audited(message) for message in page.entities or []]
        if not page.cursor or page.cursor == params.get("cursor"):
            break
        params["cursor"] = page.cursor
    return entries


def _audited(message: _Message) -> Audited:
    user, client = message.user and message.user.id, message.client and message.client.id
    return Audited(
        at=message.event_date and message.event_date.astimezone(UTC),
        entity=f"{message.entity_type or '?'} {(message.entity and message.entity.id) or ''}".strip(),
        action=message.action or "?",
        who=f"user {user}" if user else f"client {client}" if client else "the platform",
        status=(message.status or "").lower(),
    )
