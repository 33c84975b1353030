"""Work items, callbacks, triggers, flows, webhooks, audits and permissions as the published API gives them.
What they are about (conversations, recordings) is `cloud_recordings`."""

import fnmatch
import re
import secrets
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from compliance_pipeline.sandbox.cloud_state import CloudState, FlowJob, cloud_state, id_of, iso
from compliance_pipeline.sandbox.cloud_wire import (
    AuditQuery,
    Call,
    Filter,
    NewCallback,
    NewExecution,
    NewFlowJob,
    NewTrigger,
    NewWorkItem,
    Problem,
    Query,
    RealtimeAuditQuery,
    TriggerChange,
    UsageQuery,
    WorkItemQuery,
    WorktypeQuery,
    bad,
    cursor_of,
    interval_of,
    not_found,
    offset_of,
    page,
)
from compliance_pipeline.sandbox.faults import FaultKind
from compliance_pipeline.sandbox.state import Held, PlatformState, shown

TOPICS: Final = (
    "v2.detail.events.conversation.{id}.acw",
    "v2.detail.events.conversation.{id}.attributes",
    "v2.detail.events.conversation.{id}.customer.end",
    "v2.detail.events.conversation.{id}.customer.start",
    "v2.detail.events.conversation.{id}.user.end",
    "v2.detail.events.conversation.{id}.user.start",
    "v2.taskmanagement.workitems.{id}",
)
_MOST_FILTERS: Final = 3
_NEEDED_FILTERS: Final = frozenset({"workbinId", "assigneeId", "queueId", "typeId"})
_REALTIME: Final = timedelta(days=14)
_UPLOAD_HEADERS: Final = {"x-amz-server-side-encryption": "AES256"}
_FLOW_TYPES: Final = {"workflow": "WORKFLOW", "inboundCall": "INBOUNDCALL", "commonModule": "COMMONMODULE"}


def _about(state: PlatformState, texts: Iterable[str | None]) -> Held | None:
    """The recording that one of the texts is about: the key is recording, rule and action, joined by '/'."""
    for text in texts:
        address = (text or "").partition("/")[0]
        held = state.held.get(address.rpartition(":")[2])
        if held and address in (held.address, held.recording.recording_id):
            return held
    return None


# Names


async def list_queues(call: Call) -> Response:
    return _by_number(call, _entities(call.cloud.queues, "/api/v2/routing/queues"))


async def query_worktypes(call: Call) -> Response:
    query = await call.body(WorktypeQuery)
    return _by_cursor(query, _entities(call.cloud.worktypes, "/api/v2/taskmanagement/worktypes"))


async def query_workbins(call: Call) -> Response:
    query = await call.body(Query)
    return _by_cursor(query, _entities(call.cloud.workbins, "/api/v2/taskmanagement/workbins"))


def _entities(ids: dict[str, str], path: str) -> list[dict[str, Any]]:
    home = {"id": id_of("division", "Home"), "name": "Home"}
    return [
        {"id": ids[name], "name": name, "division": home, "selfUri": f"{path}/{ids[name]}"}
        for name in sorted(ids, key=str.casefold)
    ]


def _by_number(call: Call, entities: list[dict[str, Any]]) -> Response:
    """Filtered by `name` (asterisks allowed before and after) and `id`, one page by number."""
    name, ids = call.request.query_params.get("name"), call.request.query_params.getlist("id")
    if name is not None:
        pattern = name.replace("[", "[[]").replace("?", "[?]").casefold()
        entities = [one for one in entities if fnmatch.fnmatchcase(one["name"].casefold(), pattern)]
    if ids:
        entities = [one for one in entities if one["id"] in ids]
    return JSONResponse(page(entities, call.integer("pageNumber", 1), call.integer("pageSize", 25, most=500)))


def _by_cursor(query: Query, entities: list[dict[str, Any]]) -> Response:
    found = [one for one in entities if all(_meets(one, wanted) for wanted in query.filters)]
    if query.select == "Count":
        return JSONResponse({"count": len(found)})
    start = offset_of(query.after)
    end = start + query.page_size
    body: dict[str, Any] = {"entities": found[start:end], "selfUri": ""}
    if end < len(found):
        body["after"] = cursor_of(end)
    return JSONResponse(body)


# Work items


async def create_work_item(call: Call) -> Response:
    new = await call.body(NewWorkItem)
    cloud, state = call.cloud, call.state
    item: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "name": new.name,
        "type": _reference(cloud.worktypes, new.type_id, "typeId", "/api/v2/taskmanagement/worktypes"),
        "division": {"id": id_of("division", "Home"), "name": "Home"},
        "priority": new.priority,
        "dateCreated": iso(datetime.now(UTC)),
        "dateModified": iso(datetime.now(UTC)),
        "status": {"id": id_of("status", "Open"), "name": "Open"},
        "statusCategory": "Open",
        "assignmentState": "AcdStarted" if new.queue_id else "Idle",
        "customFields": new.custom_fields or {},
    }
    workbin_id = new.workbin_id or next(iter(cloud.workbins.values()))
    item["workbin"] = _reference(cloud.workbins, workbin_id, "workbinId", "/api/v2/taskmanagement/workbins")
    if new.queue_id:
        item["queue"] = _reference(cloud.queues, new.queue_id, "queueId", "/api/v2/routing/queues")
    if new.description is not None:
        item["description"] = new.description
    if new.external_tag is not None:
        item["externalTag"] = new.external_tag
    if new.assignee_id is not None:
        item["assignee"] = {"id": new.assignee_id}
    item |= {
        name: iso(at) for name, at in (("dateDue", new.date_due), ("dateExpires", new.date_expires)) if at is not None
    }
    item |= {
        name: value
        for name, value in (("durationSeconds", new.duration_seconds), ("ttl", new.ttl))
        if value is not None
    }
    item["selfUri"] = f"/api/v2/taskmanagement/workitems/{item['id']}"
    cloud.work_items[item["id"]] = item
    if new.external_tag:
        cloud.tagged_items.setdefault(new.external_tag, []).append(item["id"])
    cloud.audit("TaskManagement", "Create", "Workitem", item["id"])
    _note_item(state, cloud, item)
    return JSONResponse(item, 201)


def _reference(names: dict[str, str], wanted: str, field: str, path: str) -> dict[str, str]:
    """{id, name, selfUri} of the thing with that id. Raises Problem 400."""
    for name, its_id in names.items():
        if its_id == wanted:
            return {"id": its_id, "name": name, "selfUri": f"{path}/{its_id}"}
    raise bad(f"{field} names nothing that exists", field)


def _note_item(state: PlatformState, cloud: CloudState, item: dict[str, Any]) -> None:
    """What the sandbox shows of it: about which recording, of which violation; and whether someone deletes it."""
    fields = [value for value in item["customFields"].values() if isinstance(value, str)]
    held = _about(state, [item.get("externalTag"), *fields])
    words = " ".join([*fields, item["name"], item.get("description", "")])
    found = re.search(r"\b[A-Z]{2,}(?:_[A-Z]+)+\b", words)
    violation_type = found[0] if found else ""
    about = held.address if held else (item.get("externalTag") or "").partition("/")[0]
    noted: dict[str, Any] = {
        "id": item["id"],
        "about": about,
        "name": shown(item["name"]),
        "record": {"recordingId": about, "violationType": violation_type, "key": item.get("externalTag")},
    }
    state.work_items.append(noted)
    state.saw("work item", about or None, shown(violation_type))
    if held is None or held.recording.recording_id in cloud.struck_items:
        return
    # Once a recording: what a client does about it is for it to know, but it must be able to end.
    if state.strikes(FaultKind.WORK_ITEM_DELETED, held.recording.recording_id):
        cloud.struck_items.add(held.recording.recording_id)
        cloud.work_items_gone.add(item["id"])
        noted["deleted"] = True


async def get_work_item(call: Call) -> Response:
    item = call.cloud.work_items.get(call.path("work_item_id"))
    if item is None or item["id"] in call.cloud.work_items_gone:
        raise not_found("the workitem")
    return JSONResponse(item)


async def query_work_items(call: Call) -> Response:
    query = await call.body(WorkItemQuery)
    cloud = call.cloud
    exact = {one.name: one.values for one in query.filters if one.operator == "EQ"}
    if len(query.filters) > _MOST_FILTERS:
        raise bad(f"At most {_MOST_FILTERS} filters are allowed", "filters")
    if not _NEEDED_FILTERS & exact.keys():
        raise bad(f"An EQ filter on one of {', '.join(sorted(_NEEDED_FILTERS))} is required", "filters")
    if "externalTag" in exact:
        ids = [one for tag in exact["externalTag"] for one in cloud.tagged_items.get(tag, [])]
    else:
        ids = list(cloud.work_items)
    call.state.saw("work items searched")
    return _by_cursor(query, [cloud.work_items[one] for one in ids if one not in cloud.work_items_gone])


_FIELDS: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "id": lambda item: item["id"],
    "name": lambda item: item["name"],
    "divisionId": lambda item: item["division"]["id"],
    "typeId": lambda item: item.get("type", {}).get("id"),
    "workbinId": lambda item: item.get("workbin", {}).get("id"),
    "queueId": lambda item: item.get("queue", {}).get("id"),
    "assigneeId": lambda item: item.get("assignee", {}).get("id"),
    "statusId": lambda item: item.get("status", {}).get("id"),
    "statusCategory": lambda item: item.get("statusCategory"),
    "externalTag": lambda item: item.get("externalTag"),
    "priority": lambda item: item.get("priority"),
    "dateCreated": lambda item: item.get("dateCreated"),
    "dateDue": lambda item: item.get("dateDue"),
}


def _meets(item: dict[str, Any], wanted: Filter) -> bool:
    if wanted.name not in _FIELDS:
        raise bad(f"There is no attribute {shown(wanted.name)} to filter by", "filters.name")
    needed = 2 if wanted.operator == "BETWEEN" else 1
    if len(wanted.values) < needed or (wanted.operator != "IN" and len(wanted.values) > needed):
        raise bad(f"{wanted.operator} takes {needed} value(s)", "filters.values")
    has = _FIELDS[wanted.name](item)
    if has is None:
        return wanted.operator == "NEQ"
    values: list[Any] = list(wanted.values)
    if isinstance(has, int):
        try:
            values = [int(value) for value in values]
        except ValueError:
            raise bad(f"{wanted.name} is a number", "filters.values") from None
    first = values[0]
    match wanted.operator:
        case "EQ" | "IN":
            return has in values
        case "NEQ":
            return bool(has != first)
        case "GT":
            return bool(has > first)
        case "GTE":
            return bool(has >= first)
        case "LT":
            return bool(has < first)
        case "LTE":
            return bool(has <= first)
        case "BETWEEN":
            return bool(first <= has <= values[1])
        case "CONTAINS":
            return str(first).casefold() in str(has).casefold()
        case _:
            return str(has).casefold().startswith(str(first).casefold())


# Callbacks


async def create_callback(call: Call) -> Response:
    new = await call.body(NewCallback)
    cloud, state = call.cloud, call.state
    queue_id = new.queue_id or (new.routing_data.queue_id if new.routing_data else None)
    if queue_id is None:
        raise bad("Either queueId or routingData is required", "queueId")
    queue = _reference(cloud.queues, queue_id, "queueId", "/api/v2/routing/queues")
    conversation_id, callback_id = str(uuid.uuid4()), str(uuid.uuid4())
    now = datetime.now(UTC)
    callback: dict[str, Any] = {
        "id": callback_id,
        "state": "scheduled",
        "direction": "outbound",
        "callbackNumbers": new.callback_numbers,
        "callbackScheduledTime": iso(new.callback_scheduled_time or now),
    }
    if new.callback_user_name is not None:
        callback["callbackUserName"] = new.callback_user_name
    participant = {
        "id": str(uuid.uuid4()),
        "purpose": "customer",
        "startTime": iso(now),
        "queueId": queue["id"],
        "queueName": queue["name"],
        "attributes": new.data,
        "callbacks": [callback],
    }
    cloud.callbacks[conversation_id] = {
        "id": conversation_id,
        "startTime": iso(now),
        "participants": [participant],
        "recordingState": "NONE",
        "selfUri": f"/api/v2/conversations/{conversation_id}",
    }
    cloud.list_callback(conversation_id, now)
    held = _about(state, [*new.data.values(), new.callback_user_name])
    about = held.address if held else ""
    data = new.data | {"recordingId": about}
    state.callbacks.append({"id": conversation_id, "about": about, "data": data})
    state.saw("callback", about or None)
    cloud.audit("ContactCenter", "Create", "Callback", conversation_id)
    reference = {"id": conversation_id, "selfUri": f"/api/v2/conversations/{conversation_id}"}
    return JSONResponse({"conversation": reference, "callbackIdentifiers": [{"type": "ACD", "id": callback_id}]}, 201)


# Triggers


async def list_topics(call: Call) -> Response:
    return _cursor_page(call, list(TOPICS))


async def list_triggers(call: Call) -> Response:
    topic, enabled = call.request.query_params.get("topicName"), call.flag("enabled")
    delayed = call.flag("hasDelayBy")
    found = [
        trigger
        for trigger in call.cloud.triggers.values()
        if topic in (None, trigger["topicName"])
        and enabled in (None, trigger["enabled"])
        and delayed in (None, "delayBySeconds" in trigger)
    ]
    return _cursor_page(call, found)


def _cursor_page(call: Call, entities: list[Any]) -> Response:
    start = offset_of(call.request.query_params.get("after"))
    end = start + call.integer("pageSize", 25, most=200)
    path = call.request.url.path
    body: dict[str, Any] = {"entities": entities[start:end], "selfUri": path}
    if end < len(entities):
        body["nextUri"] = f"{path}?after={cursor_of(end)}&pageSize={end - start}"
    return JSONResponse(body)


async def create_trigger(call: Call) -> Response:
    trigger_id = str(uuid.uuid4())
    trigger = _trigger(call, await call.body(NewTrigger), trigger_id, version=1)
    call.cloud.audit("ProcessAutomation", "Create", "Trigger", trigger_id)
    call.state.subscriptions.append(trigger)
    call.state.saw("subscription")
    return JSONResponse(trigger, 201)


async def change_trigger(call: Call) -> Response:
    old = _known_trigger(call)
    change = await call.body(TriggerChange)
    if change.topic_name != old["topicName"]:
        raise bad("topicName cannot be updated: create a new trigger", "topicName")
    if change.version != old["version"]:
        raise Problem(409, "conflict", "The trigger was changed since: its version differs", fields=("version",))
    trigger = _trigger(call, change, old["id"], version=old["version"] + 1)
    call.state.subscriptions = [trigger if one["id"] == old["id"] else one for one in call.state.subscriptions]
    call.cloud.audit("ProcessAutomation", "Update", "Trigger", old["id"])
    call.state.saw("subscription changed")
    return JSONResponse(trigger)


def _known_trigger(call: Call) -> dict[str, Any]:
    trigger = call.cloud.triggers.get(call.path("trigger_id"))
    if trigger is None:
        raise not_found("the trigger")
    return trigger


def _trigger(call: Call, new: NewTrigger, trigger_id: str, *, version: int) -> dict[str, Any]:
    if new.topic_name not in TOPICS:
        raise bad("There is no such topic for triggers", "topicName")
    if new.target.id not in call.cloud.flows:
        raise bad("The target names no published flow", "target.id")
    trigger = new.model_dump(by_alias=True, exclude_none=True) | {
        "id": trigger_id,
        "version": version,
        "selfUri": f"/api/v2/processautomation/triggers/{trigger_id}",
    }
    trigger.setdefault("matchCriteria", [])
    call.cloud.triggers[trigger_id] = trigger
    return trigger


# Flows


async def list_flows(call: Call) -> Response:
    types = call.request.query_params.getlist("type")
    wanted = {one.upper() for given in types for one in given.split(",")}
    found = [flow for flow in call.cloud.flows.values() if not wanted or flow["type"] in wanted]
    return _by_number(call, sorted(found, key=lambda flow: flow["name"].casefold()))


async def create_flow_job(call: Call) -> Response:
    await call.body(NewFlowJob, optional=True)
    job_id = str(uuid.uuid4())
    job = FlowJob(secrets.token_urlsafe(24), time.time() + call.state.media_ttl_s)
    call.cloud.flow_jobs[job_id] = job
    return JSONResponse(
        {
            "id": job_id,
            "presignedUrl": f"{call.state.base_url}/flow-uploads/{job_id}?signature={job.token}",
            "headers": dict(_UPLOAD_HEADERS),
            "selfUri": f"/api/v2/flows/jobs/{job_id}",
        }
    )


async def take_flow_file(request: Request) -> Response:
    """The object store behind the presigned URL: it wants the headers that came with it, and no bearer token."""
    state: PlatformState = request.app.state.platform
    job = cloud_state(state).flow_jobs.get(request.path_params["job_id"])
    if "authorization" in request.headers:
        state.saw("bearer leaked")
        return _store_error(400, "InvalidArgument", "Only one auth mechanism allowed")
    signed = job is not None and secrets.compare_digest(request.query_params.get("signature", ""), job.token)
    if job is None or not signed or any(request.headers.get(name) != given for name, given in _UPLOAD_HEADERS.items()):
        return _store_error(403, "SignatureDoesNotMatch", "The signature does not match the request")
    if time.time() > job.expires_at:
        return _store_error(403, "AccessDenied", "Request has expired")
    _publish(state, job, await request.body())
    return Response(status_code=200)


def _store_error(status: int, code: str, message: str) -> Response:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Response(body, status, media_type="application/xml")


def _publish(state: PlatformState, job: FlowJob, raw: bytes) -> None:
    """The flow of the file, made or replaced by its type and name."""
    cloud = cloud_state(state)
    job.status = "Started"
    try:
        parsed = yaml.safe_load(raw)
    except yaml.YAMLError:
        parsed = None
    kind = str(next(iter(parsed))) if isinstance(parsed, dict) and len(parsed) == 1 else ""
    content = parsed[kind] if kind in _FLOW_TYPES else None
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        job.wrong = "The file is no flow: expected one flow type at the top, with a name in it"
        return
    flow_id = id_of("flow", f"{kind}:{content['name']}")
    before = cloud.flows.get(flow_id)
    version = int(before["publishedVersion"]["id"].partition(".")[0]) + 1 if before else 1
    flow: dict[str, Any] = {
        "id": flow_id,
        "name": content["name"],
        "description": str(content.get("description", "")),
        "type": _FLOW_TYPES[kind],
        "active": True,
        "deleted": False,
        "publishedVersion": {"id": f"{version}.0", "name": f"{version}.0"},
        "selfUri": f"/api/v2/flows/{flow_id}",
    }
    cloud.flows[flow_id] = flow
    state.flows = [one for one in state.flows if one["id"] != flow_id] + [flow]
    job.flow_id = flow_id
    cloud.audit("Architect", "Update" if before else "Create", "Flow", flow_id)
    state.saw("flow")


async def get_flow_job(call: Call) -> Response:
    job_id = call.path("job_id")
    job = call.cloud.flow_jobs.get(job_id)
    if job is None:
        raise not_found("the job")
    wants_messages = "messages" in call.choices("expand", ("messages",))
    body: dict[str, Any] = {
        "id": job_id,
        "status": job.status,
        "command": "Publish",
        "selfUri": f"/api/v2/flows/jobs/{job_id}",
    }
    if job.status == "Success" and job.flow_id:
        body["flow"] = {"id": job.flow_id, "selfUri": f"/api/v2/flows/{job.flow_id}"}
    if job.status == "Failure" and job.wrong and wants_messages:
        body["messages"] = [{"dateTime": iso(datetime.now(UTC)), "type": "Error", "text": job.wrong, "details": []}]
    if job.status == "Started":
        job.status = "Failure" if job.wrong else "Success"
    return JSONResponse(body)


async def launch_flow(call: Call) -> Response:
    new = await call.body(NewExecution)
    flow = call.cloud.flows.get(new.flow_id)
    if flow is None:
        raise not_found("the flow")
    execution_id = str(uuid.uuid4())
    call.cloud.executions.append({"id": execution_id, "flowId": new.flow_id, "inputData": new.input_data or {}})
    call.state.saw("flow launched")
    return JSONResponse(
        {
            "id": execution_id,
            "name": new.name or flow["name"],
            "flowVersion": {"id": flow["publishedVersion"]["id"], "name": flow["publishedVersion"]["name"]},
            "selfUri": f"/api/v2/flows/executions/{execution_id}",
        }
    )


async def take_webhook(call: Call) -> Response:
    event = await call.json_object()
    call.cloud.webhook_events.append((call.path("token_id"), event))
    call.state.saw("webhook event")
    return JSONResponse({"invocationId": str(uuid.uuid4())}, 202)


# Audits and operational events


async def query_audits(call: Call) -> Response:
    query = await call.body(AuditQuery)
    interval_of(query.interval)
    transaction_id = str(uuid.uuid4())
    call.cloud.audit_queries[transaction_id] = {"query": query, "looks": 0, "asked": iso(datetime.now(UTC))}
    return JSONResponse(_audit_status(call.cloud, transaction_id, "Queued"), 202)


def _audit_status(cloud: CloudState, transaction_id: str, status: str) -> dict[str, Any]:
    kept = cloud.audit_queries[transaction_id]
    asked: dict[str, Any] = kept["query"].model_dump(by_alias=True, exclude_none=True)
    return asked | {"id": transaction_id, "state": status, "startDate": kept["asked"]}


async def get_audit_query(call: Call) -> Response:
    transaction_id = call.path("transaction_id")
    kept = call.cloud.audit_queries.get(transaction_id)
    if kept is None:
        raise not_found("the audit query")
    kept["looks"] += 1
    return JSONResponse(_audit_status(call.cloud, transaction_id, "Running" if kept["looks"] < 2 else "Succeeded"))


async def get_audit_results(call: Call) -> Response:
    transaction_id = call.path("transaction_id")
    kept = call.cloud.audit_queries.get(transaction_id)
    if kept is None:
        raise not_found("the audit query")
    if kept["looks"] < 2:
        raise bad("The audit query has not succeeded yet: look at its state first")
    size = call.integer("pageSize", 25, most=500)
    start = offset_of(call.request.query_params.get("cursor"))
    found = _audits(call.cloud, kept["query"])
    body: dict[str, Any] = {"id": transaction_id, "pageSize": size, "entities": found[start : start + size]}
    if start + size < len(found):
        body["cursor"] = cursor_of(start + size)
    return JSONResponse(body)


async def query_audits_now(call: Call) -> Response:
    query = await call.body(RealtimeAuditQuery)
    since, _ = interval_of(query.interval)
    if since < datetime.now(UTC) - _REALTIME:
        raise bad(f"Only the last {_REALTIME.days} days can be asked for here", "interval")
    return JSONResponse(page(_audits(call.cloud, query), query.page_number, query.page_size))


_AUDIT_FIELDS: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "Action": lambda entry: entry["action"],
    "EntityType": lambda entry: entry["entityType"],
    "EntityId": lambda entry: entry["entity"]["id"],
}


def _audits(cloud: CloudState, query: AuditQuery) -> list[dict[str, Any]]:
    since, until = (iso(at) for at in interval_of(query.interval))
    found = [
        entry
        for entry in cloud.audits
        if since <= entry["eventDate"] < until
        and query.service_name in (None, entry["serviceName"])
        and all(
            _AUDIT_FIELDS[one.property](entry) == one.value for one in query.filters if one.property in _AUDIT_FIELDS
        )
    ]
    return found[::-1] if any(one.sort_order == "descending" for one in query.sort) else found


async def query_usage_events(call: Call) -> Response:
    query = await call.body(UsageQuery)
    since, until = (iso(at) for at in interval_of(query.interval))
    found = [
        event
        for event in call.cloud.operational_events
        if since <= event["dateCreated"] < until
        and (not query.event_definition_ids or event["eventDefinition"]["id"] in query.event_definition_ids)
    ]
    return _cursor_page(call, found[::-1] if query.sort_order == "DESC" else found)


# Who the client is


async def get_token_info(call: Call) -> Response:
    organization = {"id": id_of("organization", "sandbox"), "name": "Sandbox"}
    return JSONResponse(
        {
            "organization": organization,
            "homeOrganization": organization,
            "authorizedScope": [],
            "OAuthClient": {
                "id": id_of("client", call.state.client_id),
                "name": call.state.client_id,
                "authorizedGrantType": "CLIENT-CREDENTIALS",
                "scope": [],
                "state": "active",
                "organization": organization,
            },
        }
    )


def grants_of(permissions: Iterable[str]) -> list[dict[str, Any]]:
    """AuthzGrantPolicy objects of permissions written domain:entity:action."""
    actions: dict[tuple[str, str], list[str]] = {}
    for permission in sorted(permissions):
        domain, entity, action = permission.split(":")
        actions.setdefault((domain, entity), []).append(action)
    return [{"domain": domain, "entityName": entity, "actions": listed} for (domain, entity), listed in actions.items()]
