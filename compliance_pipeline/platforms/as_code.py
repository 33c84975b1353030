"""What the platform should hold of ours, as data: subscription or trigger, and remediation flow; and how it gets there.

Reads, compares, writes; who is asked before anything is written is the command's. No media and no recordings here.
"""

import hmac
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import unified_diff
from enum import StrEnum
from hashlib import sha256
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from compliance_pipeline.platforms.port import Refused, Unavailable
from compliance_pipeline.platforms.transport import MissingPermission, NotFound, Transport, parse
from compliance_pipeline.settings import Settings

SUBSCRIPTIONS = "/api/v2/eventsub/eventsubscriptions"
GUIDE_FLOWS = "/api/v2/architect/flows"
TRIGGERS = "/api/v2/processautomation/triggers"
CLOUD_FLOWS = "/api/v2/flows"
FLOW_JOBS = "/api/v2/flows/jobs"
INGEST_PATH = "/api/v1/ingest/recording"
"""Guide, step 1: where the subscription posts its events."""

SUBSCRIPTION = "ComplianceRecordingIngestion"
FLOW = "ComplianceViolationRemediation"
TRIGGER = "ComplianceConversationEnd"
TOPIC = "v2.detail.events.conversation.{id}.customer.end"

DEDUPLICATION_WINDOW = 86_400
"""The guide prints no unit. As seconds a day, as milliseconds 86 s: either outlasts the three retries (1 + 2 + 4 s)."""
JOB_POLL_S, JOB_PATIENCE_S = 1.0, 180.0
HIDDEN = "<secret>"

_SECRET_NAME = re.compile(r"(?i)secret|token|password|authorization|api[-_]?key|signature")
_PRINTED_ENGINE, _PRINTED_QUEUE = "https://compliance-engine.internal", "compliance_review_queue"
_ANY_REASON = re.compile(r" Includes (?P<fields>[\w., ]+) although personal data, because: (?P<why>.+)$")


# Which fields of an event we need, and which name people


@dataclass(frozen=True, slots=True)
class EventField:
    """A field that an event can carry. personal: what of a person it holds; needed_for: '' where we need it not."""

    name: str
    personal: str = ""
    needed_for: str = ""


GUIDE_FIELDS = (
    EventField("recordingId", needed_for="which recording it is"),
    EventField("mediaUri", needed_for="says where the media is"),
    EventField("startTime", needed_for="rules by time of day"),
    EventField("endTime", needed_for="latency"),
    EventField("direction", needed_for="rules by direction"),
    EventField("channel", needed_for="which detectors to use"),
    EventField("tags"),
    EventField("participants", "everyone's extension, email, externalCallerId"),
    EventField("extension", "an agent's extension"),
    EventField("email", "e-mail address"),
    EventField("externalCallerId", "telephone number"),
    EventField("ani", "telephone number of who called"),
    EventField("dnis", "telephone number that was called"),
    EventField("transcript", "all that was said"),
    EventField("attributes", "whatever a flow has put there"),
)
CLOUD_FIELDS = (
    EventField("conversationId", needed_for="what to ask for"),
    EventField("eventTime", needed_for="latency"),
    EventField("mediaType", needed_for="which detectors to use"),
    EventField("direction", needed_for="rules by direction"),
    *(EventField(name) for name in ("participantId", "sessionId", "disconnectType", "provider", "messageType")),
    *(EventField(name) for name in ("interactingDurationMs", "divisionId", "utilizationLabel")),
    EventField("callbackScheduledTime"),
    EventField("ani", "who called"),
    EventField("dnis", "who was called", needed_for="time zone of an outbound call; the number is dropped"),
    EventField("addressFrom", "address of the sender"),
    EventField("addressTo", "address of the receiver"),
    EventField("callbackUserName", "a person's name"),
    EventField("callbackNumbers", "telephone numbers"),
    EventField("subject", "as a customer wrote it"),
    EventField("externalContactId", "leads to a customer"),
    EventField("externalOrganizationId", "leads to an employer"),
    EventField("conversationExternalContactIds", "lead to customers"),
    EventField("conversationExternalOrganizationIds", "lead to employers"),
)
"""CustomerEndDetailEventTopicCustomerEndEvent, as Genesys publishes it. EventBridge sends all of it, always."""

NEEDED = tuple(known.name for known in GUIDE_FIELDS if known.needed_for)


class Judgement(StrEnum):
    NEEDED = "needed"
    SUPERFLUOUS = "not needed, no personal data"
    REFUSED = "refuse: personal data, not needed"
    OVERRIDDEN = "allowed, with a reason"
    DROPPED = "dropped on arrival"


@dataclass(frozen=True, slots=True)
class FieldAudit:
    field: EventField
    judgement: Judgement


def field_named(name: str) -> EventField:
    """Of `participants.email`, the first part that is personal decides; nobody vouches for what nobody knows."""
    known = {entry.name.lower(): entry for entry in GUIDE_FIELDS}
    parts = [known.get(part.lower()) for part in name.split(".")]
    personal = next((part.personal for part in parts if part and part.personal), "")
    if not personal and None in parts:
        personal = "unknown: nobody has said what it holds"
    needed = parts[0].needed_for if parts[0] and len(parts) == 1 else ""
    return EventField(name, personal, needed)


def audit_guide(subscribed: Sequence[str], overridden: Sequence[str] = ()) -> list[FieldAudit]:
    """Guide, edge case 2, 'Audit the eventData.include array': each subscribed field, in its order."""
    audits = []
    for name in subscribed:
        entry = field_named(name)
        if entry.needed_for:
            judgement = Judgement.NEEDED
        elif not entry.personal:
            judgement = Judgement.SUPERFLUOUS
        else:
            judgement = Judgement.OVERRIDDEN if name in overridden else Judgement.REFUSED
        audits.append(FieldAudit(entry, judgement))
    return audits


def audit_cloud() -> list[FieldAudit]:
    """Nobody can subscribe to fewer fields there; what the consumer does with them is what can be said."""
    return [
        FieldAudit(entry, Judgement.NEEDED if entry.needed_for else Judgement.DROPPED)
        for entry in sorted(CLOUD_FIELDS, key=lambda entry: not entry.needed_for)
    ]


def overridden_in(subscription: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """The personal fields that a subscription's description gives a reason for, and the reason."""
    said = _ANY_REASON.search(str(subscription.get("description")))
    if said is None:
        return (), ""
    return tuple(name.strip() for name in said["fields"].split(",")), said["why"]


# What we want


def receiver_of(settings: Settings) -> str:
    """Where the platform reaches us, without a trailing slash."""
    return (settings.receiver_url or f"http://{settings.host}:{settings.receiver_port}").rstrip("/")


def event_subscription(settings: Settings, include: Sequence[str] = (), because: str | None = None) -> dict[str, Any]:
    """Guide, step 1, as printed, with the fields that we need and no more; edge case 3 adds deduplicationWindow.

    include: further fields. Raises Refused for one that carries personal data where there is no reason `because`.
    The platform signs in to our receiver with the client that it issued to us.
    """
    extra = [name for name in dict.fromkeys(include) if name not in NEEDED]
    personal = [audit.field for audit in audit_guide(extra) if audit.judgement is Judgement.REFUSED]
    why = _reason(because) if because is not None else ""
    if personal and not why:
        held = "; ".join(f"{entry.name} carries {entry.personal}" for entry in personal)
        raise Refused(
            f"not subscribed: {held}. The pipeline doesn't need it. Leave it out, or say why it must be there "
            "with --because; the reason is kept in the subscription's description"
        )
    description = f"Triggers external compliance validation for all completed interactions; {_secret_mark(settings)}"
    if personal:
        names = ", ".join(entry.name for entry in personal)
        description += f". Includes {names} although personal data, because: {why}"
    return {
        "name": SUBSCRIPTION,
        "description": description,
        "event": "recording:recordingAvailable",
        "eventData": {"include": [*NEEDED, *extra]},
        "destination": {
            "type": "webhook",
            "url": receiver_of(settings) + INGEST_PATH,
            "headers": {"Content-Type": "application/json", "X-Genesys-Event-Source": "recording-pipeline"},
            "authentication": {
                "type": "oauth2",
                "clientId": settings.client_id,
                "clientSecret": settings.platform_client_secret,
            },
        },
        "retryPolicy": {
            "maxRetries": 3,
            "backoffStrategy": "exponential",
            "initialDelayMs": 1000,
            "deduplicationWindow": DEDUPLICATION_WINDOW,
        },
    }


def _secret_mark(settings: Settings) -> str:
    """Changes with the secret, which the platform never shows. Keyed, so that it gives nothing away."""
    mark = hmac.digest(settings.fingerprint_secret.encode(), settings.platform_client_secret.encode(), "sha256")
    return f"client secret {mark.hex()[:8]}"


def guide_flow(settings: Settings) -> dict[str, Any]:
    """Guide, step 3, as printed; with our receiver for the printed host and our queue for the printed one."""
    printed = _packaged("guide_remediation.json")
    queue = json.dumps(json.dumps(settings.compliance_queue)[1:-1])[1:-1]  # a JSON text within a JSON text
    ours = printed.replace(_PRINTED_ENGINE, receiver_of(settings)).replace(_PRINTED_QUEUE, queue)
    flow: dict[str, Any] = json.loads(ours)
    return flow


def cloud_workflow() -> tuple[str, str]:
    """(YAML, description). The platform never gives the YAML back, so the description carries its digest."""
    template = _packaged("cloud_remediation.yaml")
    digest = sha256(template.encode()).hexdigest()[:16]
    description = f"Compliance remediation; compliance_pipeline workflow {digest}"
    return template.replace("{name}", FLOW).replace("{description}", description), description


def conversation_trigger(flow_id: str) -> dict[str, Any]:
    """CreateTriggerRequest: the end of the customer's part in any conversation starts the workflow."""
    return {
        "name": TRIGGER,
        "topicName": TOPIC,
        "enabled": True,
        "target": {
            "type": "Workflow",
            "id": flow_id,
            "workflowTargetSettings": {"dataFormat": "TopLevelPrimitives"},
        },
        "matchCriteria": [],
        "description": "Starts compliance remediation when a conversation ends",
    }


# What is there, and making it so


@dataclass(frozen=True, slots=True)
class Part:
    """One thing of ours on the platform. present, wanted: as text fit to show, no secret in it; None: not there.

    note: what else to know about it. write: creates or changes it; raises PlatformError.
    """

    kind: str
    name: str
    present: str | None
    wanted: str
    write: Callable[[], object] = field(repr=False)
    note: str = ""

    @property
    def is_as_wanted(self) -> bool:
        return self.present == self.wanted

    @property
    def diff(self) -> list[str]:
        """Unified, without line ends; empty where nothing differs."""
        before = (self.present or "").splitlines()
        here = f"{self.name} on the platform" if self.present is not None else "nothing on the platform"
        return list(unified_diff(before, self.wanted.splitlines(), here, f"{self.name} as code", lineterm="", n=3))


class _Answer(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore")


class _Listing(_Answer):
    entities: list[dict[str, Any]] = Field(default_factory=list)
    next_uri: str | None = None


class _Job(_Answer):
    """RegisterArchitectJobResponse, then ArchitectJobStateResponse."""

    id: str
    presigned_url: str | None = Field(default=None, repr=False)
    headers: dict[str, str] | None = Field(default=None, repr=False)
    status: str | None = None
    messages: list[dict[str, Any]] | None = None


def parts(
    transport: Transport, settings: Settings, include: Sequence[str] = (), because: str | None = None
) -> list[Part]:
    """Everything of ours, compared with what the platform has, in the order in which it must be written.

    Raises PlatformError; Refused also for fields that must not be subscribed.
    """
    if settings.platform_profile == "cloud":
        if include:
            raise Refused(
                "Genesys Cloud's events can't be narrowed or widened: leave --include out, "
                "and see `compliance platform audit-fields`"
            )
        return _cloud_parts(transport)
    return [_subscription_part(transport, settings, include, because), _guide_flow_part(transport, settings)]


def present_parts(transport: Transport, settings: Settings) -> list[Part]:
    """The same, taking a personal field that the subscription itself gives a reason for as wanted."""
    if settings.platform_profile == "cloud":
        return _cloud_parts(transport)
    mine = _named(subscriptions(transport), SUBSCRIPTION)
    fields, why = overridden_in(mine[0]) if mine else ((), "")
    return parts(transport, settings, fields, why or None)


def subscriptions(transport: Transport) -> list[dict[str, Any]]:
    """All event subscriptions of the guide's platform. The listing is ours: the guide prints none."""
    return _entities(transport, SUBSCRIPTIONS)


def _subscription_part(transport: Transport, settings: Settings, include: Sequence[str], because: str | None) -> Part:
    wanted = event_subscription(settings, include, because)
    mine = _named(subscriptions(transport), SUBSCRIPTION)
    present = mine[0] if mine else None
    notes = [_doubles(len(mine), "every event comes as often")]
    expected = wanted
    if present and "deduplicationWindow" not in (present.get("retryPolicy") or {"deduplicationWindow": 0}):
        # Guide, edge case 3: 'if your platform version supports it'.
        policy = {key: value for key, value in wanted["retryPolicy"].items() if key != "deduplicationWindow"}
        expected = {**wanted, "retryPolicy": policy}
        notes.append("this platform keeps no deduplicationWindow; our inbox takes each recording once anyway")

    def write() -> None:
        try:
            _upsert(transport, "PATCH", SUBSCRIPTIONS, present, wanted)
        except (MissingPermission, NotFound):
            raise
        except Refused:
            policy = {key: value for key, value in wanted["retryPolicy"].items() if key != "deduplicationWindow"}
            _upsert(transport, "PATCH", SUBSCRIPTIONS, present, {**wanted, "retryPolicy": policy})

    return _json_part("event subscription", present, expected, write, notes)


def _guide_flow_part(transport: Transport, settings: Settings) -> Part:
    wanted = guide_flow(settings)
    mine = _named(_entities(transport, GUIDE_FLOWS, name=FLOW), FLOW)
    present = mine[0] if mine else None
    notes = [_doubles(len(mine), "each may act on a verdict")]
    return _json_part("flow", present, wanted, lambda: _upsert(transport, "PUT", GUIDE_FLOWS, present, wanted), notes)


def _cloud_parts(transport: Transport) -> list[Part]:
    yaml, description = cloud_workflow()
    mine = _named(_entities(transport, CLOUD_FLOWS, name=FLOW, type="workflow"), FLOW)
    flow = mine[0] if mine else None
    published = bool(flow and flow.get("publishedVersion"))
    is_current = published and description in ((flow or {}).get("description") or "")
    notes = [_doubles(len(mine), "the trigger starts the first")]
    if flow and not is_current:
        notes.append(
            "the platform gives no YAML back; its description says that it is not this version"
            if published
            else "it is not published, so no trigger can start it"
        )
    stale = f"# another version, described as: {(flow.get('description') or 'nothing')[:200]}" if flow else None
    before = yaml if is_current else stale
    workflow = Part("workflow", FLOW, before, yaml, lambda: _publish(transport, yaml), _joined(notes))
    return [workflow, _trigger_part(transport, str(flow["id"]) if flow else None)]


def _trigger_part(transport: Transport, flow_id: str | None) -> Part:
    mine = _named(_entities(transport, TRIGGERS, topicName=TOPIC, pageSize="200"), TRIGGER)
    present = mine[0] if mine else None
    # Shown before the workflow exists, the trigger can only name it.
    wanted = conversation_trigger(flow_id or f"<id of {FLOW}>")

    def write() -> None:
        found = flow_id or _flow_id(transport)
        body = conversation_trigger(found)
        version = {"version": present.get("version")} if present else {}
        _upsert(transport, "PUT", TRIGGERS, present, body | version)

    shown = None if present is None else {**present, "matchCriteria": present.get("matchCriteria") or []}
    return _json_part("trigger", shown, wanted, write, [_doubles(len(mine), "the workflow runs as often")])


def _publish(transport: Transport, yaml: str, sleep: Callable[[float], None] = time.sleep) -> None:
    """Registers a job, PUTs the YAML to the URL that it names, and waits for the outcome."""
    path = f"POST {FLOW_JOBS}"
    job = parse(_Job, transport.request("POST", FLOW_JOBS, json={}), path)
    if not job.presigned_url:
        raise Unavailable(f"{path}: the answer names no URL to upload the workflow to; apply again")
    transport.upload(job.presigned_url, job.headers or {}, yaml.encode())
    asked = f"{FLOW_JOBS}/{job.id}"
    waited = 0.0
    while waited < JOB_PATIENCE_S:
        state = parse(_Job, transport.request("GET", asked, params={"expand": "messages"}), f"GET {asked}")
        if state.status == "Success":
            return
        if state.status == "Failure":
            said = "; ".join(str(message.get("text", ""))[:200] for message in state.messages or []) or "no reason"
            raise Refused(f"the workflow {FLOW} was not published: {said}")
        sleep(JOB_POLL_S)
        waited += JOB_POLL_S
    raise Unavailable(f"the workflow {FLOW} is not published after {JOB_PATIENCE_S:.0f} s; apply again later")


def _flow_id(transport: Transport) -> str:
    mine = _named(_entities(transport, CLOUD_FLOWS, name=FLOW, type="workflow"), FLOW)
    if not mine:
        raise Unavailable(f"the workflow {FLOW} is published but not listed yet; apply again in a minute")
    return str(mine[0]["id"])


def _upsert(
    transport: Transport, method: str, path: str, present: Mapping[str, Any] | None, body: Mapping[str, Any]
) -> None:
    if present is None:
        transport.request("POST", path, json=dict(body))
    else:
        transport.request(method, f"{path}/{present['id']}", json=dict(body))


def _entities(transport: Transport, path: str, **params: str) -> list[dict[str, Any]]:
    """A listing, page by page, by the cursor in nextUri."""
    found: list[dict[str, Any]] = []
    for _ in range(50):
        page = parse(_Listing, transport.request("GET", path, params=params), f"GET {path}")
        found += page.entities
        asked = parse_qs(urlsplit(page.next_uri).query) if page.next_uri else {}
        cursor = {key: values[0] for key, values in asked.items() if key in ("after", "pageNumber")}
        if not cursor or cursor.items() <= params.items():
            break
        params = {**params, **cursor}
    return found


def _named(entities: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """A platform may take the name for a pattern, or ignore it."""
    return [entity for entity in entities if entity.get("name") == name and "id" in entity]


def _json_part(
    kind: str,
    present: Mapping[str, Any] | None,
    wanted: Mapping[str, Any],
    write: Callable[[], None],
    notes: Sequence[str],
) -> Part:
    """Of what is there, only the keys count that we set: ids, dates and versions are the platform's."""
    ours = None if present is None else {key: present.get(key) for key in wanted}
    before = None if ours is None else _shown(ours, like=wanted)
    return Part(kind, str(wanted["name"]), before, _shown(wanted), write, _joined(notes))


def _shown(body: Mapping[str, Any], like: Mapping[str, Any] | None = None) -> str:
    return json.dumps(_hidden(body, like), indent=2, ensure_ascii=False)


def _hidden(value: Any, like: Any = None, name: str = "") -> Any:
    """Without secrets, and with keys in the order of `like`; a secret that is not given back counts as kept."""
    if isinstance(value, Mapping):
        kept = dict.fromkeys(key for key in (like if isinstance(like, Mapping) else value) if key in value)
        order = [*kept, *sorted(key for key in value if key not in kept)]
        shown = {key: _hidden(value[key], like.get(key) if isinstance(like, Mapping) else None, key) for key in order}
        if isinstance(like, Mapping) and "clientSecret" in like:
            shown.setdefault("clientSecret", HIDDEN)
        return shown
    if _SECRET_NAME.search(name) and value is not None:
        return HIDDEN
    if isinstance(value, list):
        return [_hidden(entry) for entry in value]
    return value


def _doubles(count: int, effect: str) -> str:
    return f"there are {count} of that name and {effect}: delete all but one" if count > 1 else ""


def _joined(notes: Sequence[str]) -> str:
    return "; ".join(note for note in notes if note)


def _reason(because: str) -> str:
    text = " ".join(because.split())
    if not 1 <= len(text) <= 200 or not text.isprintable() or "@" in text or re.search(r"(?:\d[ -]?){7}", text):
        raise Refused("the reason must be one line of up to 200 characters, without addresses or long numbers")
    return text


def _packaged(name: str) -> str:
    return (files("compliance_pipeline.platforms") / "flows" / name).read_text(encoding="utf-8")
