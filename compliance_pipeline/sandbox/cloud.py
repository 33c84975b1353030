"""The published Genesys Cloud API over the simulated platform: which path takes which method with which permissions.
What operations do is in `cloud_recordings` and `cloud_work`; written from the published contract, not from a client."""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from compliance_pipeline.sandbox import cloud_recordings as recordings
from compliance_pipeline.sandbox import cloud_work as work
from compliance_pipeline.sandbox.cloud_state import CloudState, cloud_state, id_of
from compliance_pipeline.sandbox.cloud_wire import Call, Problem

__all__ = ["OPERATIONS", "CloudState", "cloud_state", "permissions_of_all", "routes"]

Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Operation:
    """permissions: any of them is enough; with `every`, all are needed."""

    handler: Handler
    permissions: tuple[str, ...] = ()
    every: bool = False

    def check(self, cloud: CloudState) -> None:
        """Raises Problem 403 naming what is missing."""
        missing = [name for name in self.permissions if not cloud.grants(name)]
        if missing and (self.every or len(missing) == len(self.permissions)):
            raise recordings.missing_permissions(missing)


class _Resource:
    """One path with its operations. An ASGI application, so that wrong methods get the platform's own error body."""

    def __init__(self, operations: dict[str, Operation]) -> None:
        self._operations = operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
        except Problem as problem:
            answer = problem.answer()
        answer.headers["ININ-Correlation-Id"] = str(uuid.uuid4())
        await answer(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        operation = self._operations.get(request.method)
        if operation is None:
            raise Problem(405, "method.not.allowed", f"HTTP method {request.method} is not allowed here")
        call = Call(request, request.app.state.platform)
        operation.check(call.cloud)
        return await operation.handler(call)


_VIEW: Final = (
    "recording:recording:view",
    "recording:recordingSegment:view",
    "recording:snippetRecording:view",
    "recording:screenRecording:view",
)
_RETENTION: Final = tuple(
    f"recording:{what}:{action}"
    for what in ("recording", "screenRecording", "snippetRecording")
    for action in ("view", "editRetention", "restore")
)
_PROTECTION: Final = ("recording:deletionProtection:apply", "recording:deletionProtection:revoke")
_AUDITS: Final = ("audits:audit:view",)
_TRIGGER_VIEW: Final = ("processautomation:trigger:edit", "processautomation:trigger:view")
_CONVERSATION: Final = "/api/v2/conversations/{conversation_id}"
_RECORDING: Final = _CONVERSATION + "/recordings/{recording_id}"


async def _my_grants(call: Call) -> Response:
    """What the client may do: its grants, with the policies of each role only if full roles are asked for."""
    granted = call.cloud.permissions
    full = call.flag("includeFullRoles", False)
    call.flag("includeDuplicates")
    policies = work.grants_of(permissions_of_all() if granted is None else granted)
    role = {"id": id_of("role", "Compliance"), "name": "Compliance", "default": False}
    grant = {
        "subjectId": id_of("client", call.state.client_id),
        "division": {"id": id_of("division", "Home"), "name": "Home", "homeDivision": True},
        "role": role | ({"policies": policies} if full else {}),
        "grantMadeAt": "2026-01-01T00:00:00.000Z",
    }
    return JSONResponse({"id": id_of("client", call.state.client_id), "name": call.state.client_id, "grants": [grant]})


OPERATIONS: Final[dict[str, dict[str, Operation]]] = {
    # Before {conversation_id}, which would take it for one.
    "/api/v2/conversations/callbacks": {
        "POST": Operation(work.create_callback, ("conversation:callback:create",), every=True),
    },
    _CONVERSATION: {"GET": Operation(recordings.get_conversation, ("conversation:communication:view",))},
    _CONVERSATION + "/tags": {"PUT": Operation(recordings.put_tags, ("conversation:externalTag:edit",))},
    _CONVERSATION + "/recordings": {"GET": Operation(recordings.list_recordings, _VIEW)},
    _RECORDING: {
        "GET": Operation(recordings.get_recording, _VIEW),
        "PUT": Operation(recordings.put_recording, _RETENTION),
    },
    _CONVERSATION + "/recordingmetadata": {"GET": Operation(recordings.list_metadata, _VIEW)},
    _CONVERSATION + "/recordingmetadata/{recording_id}": {"GET": Operation(recordings.get_metadata, _VIEW)},
    _RECORDING + "/annotations": {
        "GET": Operation(recordings.list_annotations, ("recording:annotation:view", *_VIEW)),
        "POST": Operation(recordings.add_annotation, ("recording:annotation:add", "recording:annotation:edit", *_VIEW)),
    },
    "/api/v2/speechandtextanalytics/conversations/{conversation_id}/communications/{communication_id}/transcripturl": {
        "GET": Operation(
            recordings.get_transcript_url,
            ("recording:recording:view", "speechAndTextAnalytics:data:view"),
            every=True,
        ),
    },
    "/api/v2/recording/batchrequests": {"POST": Operation(recordings.submit_batch, _VIEW)},
    "/api/v2/recording/batchrequests/{job_id}": {"GET": Operation(recordings.get_batch)},
    "/api/v2/recording/settings": {"GET": Operation(recordings.get_settings)},
    "/api/v2/recordings/deletionprotection": {"PUT": Operation(recordings.protect, _PROTECTION)},
    "/api/v2/analytics/conversations/details/query": {
        "POST": Operation(
            recordings.query_conversations,
            ("analytics:conversationDetail:view", "analytics:agentConversationDetail:view"),
        ),
    },
    "/api/v2/routing/queues": {"GET": Operation(work.list_queues, ("routing:queue:view",))},
    "/api/v2/taskmanagement/worktypes/query": {
        "POST": Operation(work.query_worktypes, ("workitems:worktype:view",), every=True),
    },
    "/api/v2/taskmanagement/workbins/query": {
        "POST": Operation(work.query_workbins, ("workitems:workbin:view",), every=True),
    },
    "/api/v2/taskmanagement/workitems": {"POST": Operation(work.create_work_item, ("workitems:workitem:add",))},
    "/api/v2/taskmanagement/workitems/query": {
        "POST": Operation(work.query_work_items, ("workitems:workitem:view",)),
    },
    "/api/v2/taskmanagement/workitems/{work_item_id}": {
        "GET": Operation(work.get_work_item, ("workitems:workitem:view",)),
    },
    "/api/v2/processautomation/triggers": {
        "GET": Operation(work.list_triggers, _TRIGGER_VIEW),
        "POST": Operation(work.create_trigger, ("processautomation:trigger:add",)),
    },
    "/api/v2/processautomation/triggers/topics": {"GET": Operation(work.list_topics, _TRIGGER_VIEW)},
    "/api/v2/processautomation/triggers/{trigger_id}": {
        "PUT": Operation(work.change_trigger, ("processautomation:trigger:edit",)),
    },
    "/api/v2/flows": {"GET": Operation(work.list_flows, ("architect:flow:view",))},
    "/api/v2/flows/jobs": {"POST": Operation(work.create_flow_job, ("architect:job:create",), every=True)},
    "/api/v2/flows/jobs/{job_id}": {"GET": Operation(work.get_flow_job, ("architect:job:view",), every=True)},
    "/api/v2/flows/executions": {"POST": Operation(work.launch_flow, ("architect:flow:launch",))},
    "/api/v2/integrations/webhooks/{token_id}/events": {"POST": Operation(work.take_webhook)},
    "/api/v2/audits/query": {"POST": Operation(work.query_audits, _AUDITS, every=True)},
    "/api/v2/audits/query/realtime": {"POST": Operation(work.query_audits_now, _AUDITS, every=True)},
    "/api/v2/audits/query/{transaction_id}": {"GET": Operation(work.get_audit_query, _AUDITS, every=True)},
    "/api/v2/audits/query/{transaction_id}/results": {
        "GET": Operation(work.get_audit_results, _AUDITS, every=True),
    },
    "/api/v2/usage/events/query": {"POST": Operation(work.query_usage_events, ("usage:events:view",), every=True)},
    "/api/v2/tokens/me": {"GET": Operation(work.get_token_info)},
    "/api/v2/authorization/subjects/me": {"GET": Operation(_my_grants)},
}


def permissions_of_all() -> set[str]:
    """Every permission that an operation here asks for."""
    return {name for operations in OPERATIONS.values() for one in operations.values() for name in one.permissions} | {
        "recording:recording:viewSensitiveData"
    }


def routes() -> list[Route]:
    """The API, and the store that takes flow files. The application holds the PlatformState as `state.platform`."""
    api = [Route(path, _Resource(operations)) for path, operations in OPERATIONS.items()]
    return [*api, Route("/flow-uploads/{job_id}", work.take_flow_file, methods=["PUT"])]
