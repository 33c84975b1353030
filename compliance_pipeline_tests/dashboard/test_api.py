"""The API: the pages' figures, by the pages' parameters, and refusals that a program can read."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from compliance_pipeline.dashboard import api
from compliance_pipeline.dashboard.app import create_app
from compliance_pipeline.settings import Settings
from compliance_pipeline_tests.dashboard.boards import END
from compliance_pipeline_tests.dashboard.lists import Home, home_at


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with home_at(tmp_path_factory.mktemp("api") / "home") as made:
        yield made


def asked(home: Home, path: str, status: int = 200) -> Any:
    answer = home.client.get(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def test_every_figure_that_is_listed_answers(home: Home) -> None:
    listed = asked(home, "/api")
    assert {one["path"] for one in listed["figures"]} == {f"/api/{name}" for name in api.FIGURES}
    for one in listed["figures"]:
        answer = asked(home, one["path"])
        assert answer["data"] or one["path"] == "/api/breaches", one["path"]
        assert answer["window"]["tz"] == "UTC"
        assert datetime.fromisoformat(answer["data_to"]) == END


def test_the_headline_is_counted_from_the_rows(home: Home) -> None:
    answer = asked(home, "/api/headline?queue=collections&severity=critical")
    rows = home.violations("queue = 'collections' AND severity = 'critical'")
    assert answer["filter"] == {"queue": ["collections"], "severity": ["critical"]}
    assert answer["data"]["violations"] == len(rows)
    assert answer["data"]["open"] == sum(row["review"] == "open" for row in rows)


def test_the_rules_have_their_rates_and_precision_beside_the_counts(home: Home) -> None:
    found = {one["rule_id"]: one for one in asked(home, "/api/rules")["data"]}
    rows = home.violations("rule_id = 'PCI-PAN-01'")
    assert found["PCI-PAN-01"]["recordings"] == len(rows)
    confirmed, dismissed = (sum(row["review"] == word for row in rows) for word in ("confirmed", "dismissed"))
    assert found["PCI-PAN-01"]["precision"] == pytest.approx(confirmed / (confirmed + dismissed))
    assert len(found["PCI-PAN-01"]["interval"]) == 2


def test_following_next_lists_every_violation_once(home: Home) -> None:
    seen: list[tuple[str, str]] = []
    before = ""
    while True:
        page = asked(home, f"/api/latest?limit=40&before={before}" if before else "/api/latest?limit=40")["data"]
        seen += [(row["recording_id"], row["rule_id"]) for row in page["rows"]]
        if page["next"] is None:
            break
        before = page["next"].replace("+", "%2B")
    assert seen == [(row["recording_id"], row["rule_id"]) for row in home.violations()]


def test_the_cells_of_the_matrix_are_named(home: Home) -> None:
    matrix = asked(home, "/api/matrix")["data"]
    rows = home.violations("queue = 'sales' AND rule_id = 'PCI-PAN-01'")
    [cell] = [one for one in matrix["cells"] if (one["queue"], one["rule"]) == ("sales", "PCI-PAN-01")]
    assert cell["violations"] == len(rows)


def test_rates_are_by_the_dimension_that_is_asked_for(home: Home) -> None:
    values = {one["value"] for one in asked(home, "/api/rates?by=channel")["data"]}
    assert values == {"chat", "email", "voice"}


@pytest.mark.parametrize(
    "path",
    [
        "/api/rates?by=masked",
        "/api/latest?limit=0",
        "/api/latest?limit=9999",
        "/api/latest?before=x",
        "/api/latest?before=9999-12-31T23:59:59Z~a~b",
    ],
)
def test_a_parameter_that_can_not_be_meant_is_refused(home: Home, path: str) -> None:
    refusal = asked(home, path, status=400)
    assert refusal["reason"] == "bad_parameter"
    assert refusal["error"]


def test_an_unknown_figure_is_refused_in_json(home: Home) -> None:
    assert asked(home, "/api/secrets", status=404)["reason"] == "unknown_figure"


def test_before_anything_is_published_the_api_says_so(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, home=tmp_path)
    app = create_app(settings, clock=lambda: END)
    with TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 50000)) as client:
        answer = client.get("/api/headline")
    assert answer.status_code == 503
    assert set(answer.json()) == {"error", "reason"}
