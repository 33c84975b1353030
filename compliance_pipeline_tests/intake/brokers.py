"""Queues on loopback that the vendors' own clients speak to: moto's SQS, librdkafka's mock cluster, an AMQP peer."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pytest

VISIBILITY_S = 10
"""Long enough that on a busy machine nothing comes twice by itself."""
REDELIVERED_S = 2
"""For tests that wait for a message to come again."""


class Broker(Protocol):
    """One fresh queue. `left`: messages that are not acknowledged for good."""

    url: str
    environment: dict[str, str]

    def send(self, *bodies: bytes) -> None: ...

    def left(self) -> int: ...


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class SqsBroker:
    def __init__(self, port: int, visibility_s: int = VISIBILITY_S) -> None:
        import boto3

        self.environment = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "eu-west-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._client = boto3.client(
            "sqs",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="eu-west-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        name = f"events-{uuid4().hex}"
        attributes = {"VisibilityTimeout": str(visibility_s)}
        self._queue = self._client.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
        self.url = f"sqs+http://127.0.0.1:{port}/123456789012/{name}"

    def send(self, *bodies: bytes) -> None:
        for start in range(0, len(bodies), 10):
            part = enumerate(bodies[start : start + 10])
            entries = [{"Id": str(index), "MessageBody": body.decode()} for index, body in part]
            assert not self._client.send_message_batch(QueueUrl=self._queue, Entries=entries).get("Failed")

    def left(self) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self._client.get_queue_attributes(QueueUrl=self._queue, AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)


class KafkaBroker:
    """A topic with four partitions in a cluster that lives in this process's librdkafka."""

    def __init__(self, folder: Path) -> None:
        from confluent_kafka import Producer

        self.environment: dict[str, str] = {}
        self._producer = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "linger.ms": 0})
        (broker,) = self._producer.list_topics(timeout=10).brokers.values()
        self._address = f"{broker.host}:{broker.port}"
        self._topic = f"events-{uuid4().hex}"
        # A member that was killed is noticed after the session's timeout: 45 s unless said otherwise. It must be longer
        # than the 3 s that the mock lets a group form.
        properties = folder / "client.properties"
        properties.write_text("# test\nsession.timeout.ms=4000\nheartbeat.interval.ms=500\n")
        self.url = f"kafka://{self._address}/{self._topic}?group=test&config={properties}"

    def send(self, *bodies: bytes) -> None:
        for index, body in enumerate(bodies):
            self._producer.produce(self._topic, body, partition=index % 4)
        assert self._producer.flush(10) == 0

    def left(self) -> int:
        from confluent_kafka import Consumer, TopicPartition

        asking = Consumer({"bootstrap.servers": self._address, "group.id": "test"})
        places = asking.committed([TopicPartition(self._topic, partition) for partition in range(4)], timeout=10)
        left = 0
        for place in places:
            first, end = asking.get_watermark_offsets(place, timeout=10)
            left += end - max(place.offset, first)
        asking.close()
        return left


class ServiceBusBroker:
    def __init__(self, peer: Any) -> None:
        self._peer = peer
        self.environment = {"AZURE_SERVICEBUS_CONNECTION_STRING": peer.connection_string}
        self.url = f"servicebus://127.0.0.1:{peer.port}/events"

    def send(self, *bodies: Any) -> None:
        self._peer.put(*bodies)

    def left(self) -> int:
        time.sleep(0.1)
        return len(self._peer.waiting) + len(self._peer.locked)


@contextmanager
def broker(kind: str, folder: Path, moto_port: Any, visibility_s: int = VISIBILITY_S) -> Iterator[Broker]:
    """A fresh queue of the kind; moto_port: gives the port of a running moto server. visibility_s: of SQS."""
    if kind == "sqs":
        yield SqsBroker(moto_port(), visibility_s)
    elif kind == "kafka":
        pytest.importorskip("confluent_kafka")
        yield KafkaBroker(folder)
    else:
        pytest.importorskip("azure.servicebus")
        pytest.importorskip("proton", reason="no AMQP 1.0 peer to play Service Bus: run `make amqp-peer`")
        from compliance_pipeline_tests.intake.amqp_peer import AmqpPeer

        peer = AmqpPeer(free_port())
        yield ServiceBusBroker(peer)
        peer.stop()
