"""Addresses of queues: what is wrong with one is said, with what to do, before anything is taken from it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compliance_pipeline.intake.consumer import Message, QueueError
from compliance_pipeline.intake.queues import open_queue
from compliance_pipeline_tests.intake.brokers import REDELIVERED_S, KafkaBroker, SqsBroker, broker, free_port

CONNECTION = "Endpoint=sb://contoso.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey=a2V5"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "names no queue"),
        ("sqs://", "names no queue"),
        ("sqs://sqs.eu-west-1.amazonaws.com", "names no queue"),
        ("rabbit://host/queue", "must begin with"),
        ("https://sqs.eu-west-1.amazonaws.com/1/q", "must begin with"),
        ("sqs://[half/1/q", "no address"),
        ("sqs://user:password@host/1/q", "no secrets in the address"),
        ("sqs+http://sqs.eu-west-1.amazonaws.com/1/q", "for this machine only"),
        ("kafka://127.0.0.1:9/t?groop=g", "unknown in the address: groop"),
        ("kafka://127.0.0.1:9/t?config=/nowhere/x", "can't be read"),
        ("servicebus://other.servicebus.windows.net/q", "make them agree"),
    ],
)
def test_a_wrong_address_is_refused_in_words(url: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_SERVICEBUS_CONNECTION_STRING", CONNECTION)
    with pytest.raises(QueueError, match=said) as refused:
        open_queue(url)
    assert "password" not in str(refused.value)


def test_without_a_connection_string_or_an_identity_service_bus_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AZURE_SERVICEBUS_CONNECTION_STRING", raising=False)
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    with pytest.raises(QueueError, match="set AZURE_SERVICEBUS_CONNECTION_STRING, or pip install azure-identity"):
        open_queue("servicebus://contoso.servicebus.windows.net/q")
    monkeypatch.setenv("AZURE_SERVICEBUS_CONNECTION_STRING", "secret nonsense")
    with pytest.raises(QueueError, match="is no connection string") as refused:
        open_queue("servicebus://contoso.servicebus.windows.net/q")
    assert "nonsense" not in str(refused.value)


@pytest.mark.parametrize(
    ("module", "url", "extra"),
    [
        ("boto3", "sqs://sqs.eu-west-1.amazonaws.com/1/q", "sqs"),
        ("confluent_kafka", "kafka://127.0.0.1:9/t", "kafka"),
        ("azure.servicebus", "servicebus://contoso.servicebus.windows.net/q", "servicebus"),
    ],
)
def test_a_client_that_is_not_installed_is_named_with_what_to_install(
    module: str, url: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(QueueError, match=rf"pip install 'compliance-pipeline\[{extra}\]'"):
        open_queue(url)


def test_no_vendors_client_is_imported_before_its_queue_is_opened() -> None:
    code = (
        "import sys; from compliance_pipeline.intake import queues; from compliance_pipeline import consume_cli; "
        "print([name for name in ('boto3', 'confluent_kafka', 'azure.servicebus') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"[]"


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("sqs.eu-west-1.amazonaws.com", "eu-west-1"),
        ("sqs.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("sqs.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("vpce-0a1b-x.sqs.ap-southeast-2.vpce.amazonaws.com", "ap-southeast-2"),
    ],
)
def test_the_region_of_an_sqs_queue_is_read_from_its_address(
    host: str, region: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    queue: Any = open_queue(f"sqs://{host}/123456789012/events")
    assert queue._client.meta.region_name == region
    assert queue._client.meta.endpoint_url == f"https://{host}"
    assert queue.name == f"sqs://{host}/123456789012/events"
    queue.close()


def test_an_sqs_queue_that_is_not_there_is_said_to_be_missing(
    tmp_path: Path, moto_port: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with broker("sqs", tmp_path, moto_port) as sqs:
        for name, value in sqs.environment.items():
            monkeypatch.setenv(name, value)
        queue = open_queue(f"{sqs.url}-other")
        with pytest.raises(QueueError, match="there is no such queue"):
            queue.receive(10, 0)
        queue.close()


def test_sqs_counts_deliveries_and_hides_a_message_until_its_visibility_timeout(
    tmp_path: Path, moto_port: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with broker("sqs", tmp_path, moto_port, REDELIVERED_S) as sqs:
        assert isinstance(sqs, SqsBroker)
        for name, value in sqs.environment.items():
            monkeypatch.setenv(name, value)
        sqs.send(b"one")
        queue = open_queue(sqs.url)
        (first,) = queue.receive(10, 1)
        assert queue.receive(10, 0) == []
        (second,) = queue.receive(10, 5)
        assert (first.body, first.attempts, second.attempts, first.id) == (b"one", 1, 2, second.id)
        queue.acknowledge([second])
        assert sqs.left() == 0
        queue.close()


def test_an_sqs_queue_out_of_reach_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    queue = open_queue(f"sqs+http://127.0.0.1:{free_port()}/1/q")
    with pytest.raises(QueueError, match="SQS said EndpointConnectionError: is the address right"):
        queue.receive(1, 0)
    queue.close()


def test_kafka_gives_back_what_it_cannot_seek_by_joining_anew(tmp_path: Path) -> None:
    kafka = KafkaBroker(tmp_path)
    kafka.send(b"a", b"b", b"c")
    queue = open_queue(kafka.url)
    found = queue.receive(3, 10)
    # One of a partition that is not this member's: the seek of all of them fails.
    queue.release([Message(b"", "x", (77, 0)), *found])
    again: list[Message] = []
    for _ in range(12):
        again += queue.receive(3 - len(again), 1)
        if len(again) == 3:
            break
    assert sorted(message.body for message in again) == [b"a", b"b", b"c"]
    queue.close()


def test_a_kafka_broker_out_of_reach_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("compliance_pipeline.intake.queues.CONNECT_S", 1.0)
    with pytest.raises(QueueError, match="Kafka said _TRANSPORT"):
        open_queue(f"kafka://127.0.0.1:{free_port()}/t")


def test_a_service_bus_message_that_is_a_string_is_taken_as_its_text(
    tmp_path: Path, moto_port: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with broker("servicebus", tmp_path, moto_port) as bus:
        for name, value in bus.environment.items():
            monkeypatch.setenv(name, value)
        bus.send("{}", b"[]")  # type: ignore[arg-type]
        queue = open_queue(bus.url)
        found = queue.receive(2, 5)
        assert [message.body for message in found] == [b"{}", b"[]"]
        queue.release(found)
        again = queue.receive(2, 5)
        assert [message.attempts for message in again] == [2, 2]
        queue.acknowledge(again)
        assert bus.left() == 0
        queue.close()


def test_a_service_bus_out_of_reach_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    nowhere = f"Endpoint=sb://127.0.0.1:{port};SharedAccessKeyName=n;SharedAccessKey=a2V5;UseDevelopmentEmulator=true"
    monkeypatch.setenv("AZURE_SERVICEBUS_CONNECTION_STRING", nowhere)
    queue = open_queue(f"servicebus://127.0.0.1:{port}/events")
    with pytest.raises(QueueError, match=r"Service Bus said .*: are namespace and queue right"):
        queue.receive(1, 1)
    queue.close()
