"""Requests struck by the plan, over real HTTP: what the client sees, and what took effect."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from compliance_pipeline.sandbox.faults import FaultKind
from compliance_pipeline_tests.contract.conformance import check_component
from compliance_pipeline_tests.sandbox.struck import api_of, chat, fault, state_under

RECORDS = "/api/v2/analytics/datadatasets/records"
LOOK_UP = f"{RECORDS}?datasetId=d&key=k"
RECORD: dict[str, Any] = {
    "datasetId": "d",
    "record": {"recordingId": "r", "violationType": "X", "assignedQueue": "q", "priority": "high", "key": "k"},
}


def token(base_url: httpx.URL) -> httpx.Response:
    form = {"grant_type": "client_credentials"}
    return httpx.post(base_url.join("/oauth/token"), data=form, auth=("compliance-service", "s3cret"))


def check_error(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status
    body: dict[str, Any] = answer.json()
    check_component("Error", body)
    assert (body["status"], body["code"]) == (status, code)
    assert (body["details"], body["errors"]) == ([], [])
    return body


def test_a_401_mid_run_ends_the_token_and_a_new_one_works() -> None:
    state = state_under(fault(FaultKind.UNAUTHORISED, for_s=1.0))
    with api_of(state) as api:
        check_error(api.get(LOOK_UP), 401, "bad.credentials")
        state.started_at -= 2
        check_error(api.get(LOOK_UP), 401, "authentication.required")
        fresh = token(api.base_url).json()["access_token"]
        assert api.get(LOOK_UP, headers={"Authorization": f"Bearer {fresh}"}).status_code == 200
    assert state.struck[FaultKind.UNAUTHORISED] == 1


@pytest.mark.parametrize("seconds", [3, None])
def test_429_says_how_long_to_wait_or_does_not(seconds: float | None) -> None:
    with api_of(state_under(fault(FaultKind.TOO_MANY_REQUESTS, seconds=seconds))) as api:
        answer = api.get(LOOK_UP)
    assert check_error(answer, 429, "too.many.requests")["limit"]["value"] == 300
    assert answer.headers.get("retry-after") == (None if seconds is None else "3")


def test_server_errors_are_of_four_kinds() -> None:
    with api_of(state_under(fault(FaultKind.SERVER_ERROR))) as api:
        assert {api.get(LOOK_UP).status_code for _ in range(20)} == {500, 502, 503, 504}


def test_faults_in_a_row_end_after_so_many_times_on_the_same_path_only() -> None:
    state = state_under(fault(FaultKind.FORBIDDEN_FOR_NOW, times=3, for_s=1))
    with api_of(state) as api:
        check_error(api.get(LOOK_UP), 403, "missing.permissions")
        state.started_at -= 2
        assert api.get("/api/v2/architect/flows").status_code == 200
        assert [api.get(LOOK_UP).status_code for _ in range(3)] == [403, 403, 200]


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [(FaultKind.CONFLICT, 409, "conflict"), (FaultKind.TOO_LARGE, 413, "request.too.large")],
)
def test_conflicts_and_too_large_strike_writes_only_and_nothing_is_written(
    kind: FaultKind, status: int, code: str
) -> None:
    state = state_under(fault(kind))
    with api_of(state) as api:
        assert api.get(LOOK_UP).status_code == 200
        check_error(api.post(RECORDS, json=RECORD), status, code)
    assert not state.work_items


def test_a_post_is_carried_out_and_its_connection_dropped_and_reads_go_on() -> None:
    state = state_under(fault(FaultKind.DROPPED_AFTER_EFFECT))
    with api_of(state) as api:
        with pytest.raises(httpx.TransportError):
            api.post(RECORDS, json=RECORD)
        assert len(api.get(LOOK_UP).json()["entities"]) == 1
    assert len(state.work_items) == 1


def test_the_token_endpoint_is_busy_while_the_api_is_not() -> None:
    with api_of(state_under(fault(FaultKind.TOKEN_BUSY, seconds=1))) as api:
        answers = [token(api.base_url) for _ in range(12)]
        assert {answer.status_code for answer in answers} <= {429, 500, 503}
        assert {answer.headers["retry-after"] for answer in answers} == {"1"}
        assert api.get(LOOK_UP).status_code == 200


def test_retries_are_drawn_anew() -> None:
    with api_of(state_under(fault(FaultKind.SERVER_ERROR, rate=0.5))) as api:
        said = [api.get(LOOK_UP).status_code for _ in range(60)]
    assert 10 < said.count(200) < 50


def test_each_token_has_its_own_minute() -> None:
    state = state_under(requests_per_minute=5)
    with api_of(state) as api:
        assert [api.get(LOOK_UP).status_code for _ in range(6)] == [200] * 5 + [429]
        limited = api.get(LOOK_UP)
        assert check_error(limited, 429, "too.many.requests")["limit"]["value"] == 5
        assert 50 < int(limited.headers["retry-after"]) <= 60
        other = {"Authorization": f"Bearer {state.issue_token()}"}
        assert api.get(LOOK_UP, headers=other).status_code == 200
    assert state.counts["rate limited"] == 2


def test_a_body_above_the_limit_is_413_also_when_its_length_is_not_said() -> None:
    state = state_under()
    with api_of(state) as api:
        body = b'{"datasetId": "' + b"x" * 512_000 + b'"}'
        assert api.post(RECORDS, content=body).status_code == 413
        assert api.post(RECORDS, content=iter([body[:300_000], body[300_000:]])).status_code == 413
        assert api.post(RECORDS, content=body[:400_000]).status_code == 400
    assert not state.work_items


def test_a_planted_value_is_counted_wherever_it_stands_in_a_request_and_however_it_is_escaped() -> None:
    state = state_under()
    state.add(recording := chat())
    phone, address, *_, card, _ = recording.planted
    at_sign = address.replace("@", "%40")
    with api_of(state) as api:
        asks: tuple[Callable[[], httpx.Response], ...] = (
            lambda: api.get(RECORDS, params={"datasetId": "d", "key": card}),
            lambda: api.get(f"{RECORDS}?datasetId=d&key={at_sign}"),
            lambda: api.get(f"{RECORDS}?datasetId=d&key={card[:4]}+{card[4:]}"),
            lambda: api.get(f"/api/v2/recordings/{at_sign}"),
            lambda: api.get(f"/media/{phone}"),
            lambda: api.post(RECORDS, content=json.dumps(with_key(address)).replace("@", "\\u0040")),
            lambda: api.post(RECORDS, json=with_key(f"{card[:4]}\n{card[4:]}")),
        )
        for count, ask in enumerate(asks, start=1):
            ask()
            assert state.counts["sensitive value received"] == count
        api.post(RECORDS, json=with_key("nothing\nof it"))
    assert state.counts["sensitive value received"] == 7


def with_key(key: str) -> dict[str, Any]:
    return RECORD | {"record": RECORD["record"] | {"key": key}}


def test_a_bearer_token_that_comes_inside_after_a_redirect_is_counted_as_a_leak() -> None:
    state = state_under()
    state.add(recording := chat())
    with api_of(state) as api:
        api.get(f"/internal/{recording.recording_id}")
    assert (state.counts["bearer leaked"], state.counts["inside reached"]) == (1, 1)


def test_what_belongs_to_the_sandbox_itself_is_never_struck() -> None:
    state = state_under(fault(FaultKind.SERVER_ERROR), fault(FaultKind.UNAUTHORISED))
    with api_of(state) as api:
        for path in ("/healthz", "/sandbox/state", "/sandbox/truth", "/sandbox/plan", "/sandbox/"):
            assert api.get(path).status_code == 200
        assert api.get("/favicon.ico").status_code == 404
    assert state.counts["requests"] == 0
