"""`compliance sandbox serve`: help that teaches, plans that are refused by name, queues by URL."""

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compliance_pipeline.cli import app
from compliance_pipeline.sandbox.cli import _fault_plan, _queue

runner = CliRunner()


def test_the_help_shows_a_plan_and_every_option() -> None:
    shown = runner.invoke(app, ["sandbox", "serve", "--help"])
    assert shown.exit_code == 0
    for word in ("--faults", "--profile", "--queue-url", "--rate", "--spread", "kind: not_found_for_now", "full"):
        assert word in shown.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: [", "not YAML"),
        ("faults: [{kind: nonsense, rate: 1}]", "faults.0.kind"),
        ("", "it needs `faults:`"),
        (None, "No such file"),
    ],
)
def test_a_plan_that_is_none_is_refused_by_name(
    text: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path / "var"))
    path = tmp_path / "plan.yaml"
    if text is not None:
        path.write_text(text)
    shown = runner.invoke(app, ["sandbox", "serve", "--faults", str(path)])
    assert shown.exit_code == 1
    assert said in shown.output.replace("\n", " ")


def test_a_seed_is_for_the_faults_of_a_file_too_and_without_one_the_file_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("{seed: 7, faults: []}")
    assert [_fault_plan(str(path), seed).seed for seed in (None, 3)] == [7, 3]
    assert _fault_plan("full", 5).seed == 5


def test_a_port_that_is_taken_is_told_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path / "var"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("COMPLIANCE_PLATFORM_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        shown = runner.invoke(app, ["sandbox", "serve", "--count", "1"])
    assert shown.exit_code == 1
    said = " ".join(shown.output.split())
    assert "COMPLIANCE_PLATFORM_URL" in said
    assert "platform at" not in said


def test_a_queue_is_for_the_cloud_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path / "var"))
    shown = runner.invoke(app, ["sandbox", "serve", "--profile", "guide", "--queue-url", "sqs://x/1/y"])
    assert shown.exit_code == 1
    assert "--profile cloud" in shown.output


@pytest.mark.parametrize(
    ("given", "url", "endpoint"),
    [
        (
            "sqs://sqs.eu-west-1.amazonaws.com/1/q",
            "https://sqs.eu-west-1.amazonaws.com/1/q",
            "https://sqs.eu-west-1.amazonaws.com",
        ),
        ("sqs+http://127.0.0.1:5000/1/q", "http://127.0.0.1:5000/1/q", "http://127.0.0.1:5000"),
        (
            "https://sqs.eu-west-1.amazonaws.com/1/q",
            "https://sqs.eu-west-1.amazonaws.com/1/q",
            "https://sqs.eu-west-1.amazonaws.com",
        ),
    ],
)
def test_a_queue_is_named_as_its_consumer_names_it(given: str, url: str, endpoint: str) -> None:
    assert _queue(given) == (url, endpoint)
