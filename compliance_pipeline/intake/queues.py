"""Queues that events come from, each by its vendor's client: Amazon SQS, Kafka, Azure Service Bus.

Only receiving, settling and plain words for errors. When a message is acknowledged is the consumer's.
"""

import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib import import_module
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from compliance_pipeline.intake.consumer import Consumer, Message, QueueError

if TYPE_CHECKING:
    from azure.servicebus import ServiceBusReceivedMessage

CONNECTION_VARIABLE = "AZURE_SERVICEBUS_CONNECTION_STRING"
"""As the Azure SDKs and their samples name it."""
DEFAULT_GROUP = "compliance-pipeline"
CONNECT_S = 10.0

_SQS_BATCH = 10  # SQS API reference: messages in a ReceiveMessage, entries in a DeleteMessageBatch
_SQS_LONGEST_WAIT_S = 20
_SQS_REGION = re.compile(r"(?:^|\.)sqs\.([a-z]{2}(?:-[a-z]+)+-\d)\.")


def open_queue(url: str) -> Consumer:
    """The queue at `url`: sqs://HOST/ACCOUNT/QUEUE, kafka://BROKER[,BROKER]/TOPIC?group=GROUP (config=FILE for
    librdkafka's properties), servicebus://NAMESPACE/QUEUE. Raises QueueError: what is wrong, or what to install."""
    try:
        parts = urlsplit(url)
        port = parts.port if "," not in parts.netloc else None
    except ValueError:
        raise QueueError("that is no address: see `compliance consume --help`") from None
    if parts.username or parts.password:
        raise QueueError("no secrets in the address: they come from the variables that --help names")
    if not parts.hostname or not parts.path.strip("/"):
        raise QueueError("the address names no queue: write it as `compliance consume --help` shows")
    if parts.scheme in ("sqs", "sqs+http"):
        return _installed("sqs", lambda: Sqs(parts))
    if parts.scheme == "kafka":
        return _installed("kafka", lambda: Kafka(parts))
    if parts.scheme == "servicebus":
        return _installed("servicebus", lambda: ServiceBus(parts, port))
    raise QueueError("the address must begin with sqs://, kafka:// or servicebus://")


def _installed(extra: str, opened: Callable[[], Consumer]) -> Consumer:
    try:
        return opened()
    except ModuleNotFoundError as error:
        raise QueueError(f"{error.name} is not installed: pip install 'compliance-pipeline[{extra}]'") from None


def _bare(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


class Sqs:
    """An SQS queue. Region and credentials come from boto3's usual chain; the address's region goes first.

    What is not acknowledged comes again after the queue's visibility timeout.
    """

    def __init__(self, parts: SplitResult) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        self.name = _bare(parts)
        self._errors = (BotoCoreError, ClientError)
        scheme = "https"
        if parts.scheme == "sqs+http":
            if not _is_loopback(parts.hostname or ""):
                raise QueueError("sqs+http:// is for this machine only: write sqs://")
            scheme = "http"
        endpoint = f"{scheme}://{parts.netloc}"
        region = _SQS_REGION.search(parts.hostname or "")
        self._url = f"{endpoint}{parts.path}"
        config = Config(
            connect_timeout=5, read_timeout=_SQS_LONGEST_WAIT_S + 10, retries={"mode": "standard", "max_attempts": 3}
        )
        try:
            self._client = boto3.client(
                "sqs", endpoint_url=endpoint, region_name=region[1] if region else None, config=config
            )
        except self._errors as error:
            raise self._said(error) from None

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        found: list[Message] = []
        wait = min(max(round(wait_s), 0), _SQS_LONGEST_WAIT_S)
        begun = time.monotonic()
        # Ten a call: no longer than this, as what was received first must be stored before it is visible again.
        while len(found) < limit and (not found or time.monotonic() - begun < wait_s):
            try:
                answer = self._client.receive_message(
                    QueueUrl=self._url,
                    MaxNumberOfMessages=min(limit - len(found), _SQS_BATCH),
                    WaitTimeSeconds=0 if found else wait,
                    MessageSystemAttributeNames=["ApproximateReceiveCount"],
                )
            except self._errors as error:
                if found:
                    break
                raise self._said(error) from None
            if not (part := answer.get("Messages", [])):
                break
            found += [
                Message(
                    body=message["Body"].encode(errors="surrogatepass"),
                    id=message["MessageId"],
                    handle=message["ReceiptHandle"],
                    attempts=int(message.get("Attributes", {}).get("ApproximateReceiveCount", 1)),
                )
                for message in part
            ]
        return found

    def acknowledge(self, messages: Sequence[Message]) -> None:
        failed: list[str] = []
        for start in range(0, len(messages), _SQS_BATCH):
            entries = [
                {"Id": str(index), "ReceiptHandle": message.handle}
                for index, message in enumerate(messages[start : start + _SQS_BATCH])
            ]
            try:
                answer = self._client.delete_message_batch(QueueUrl=self._url, Entries=entries)
            except self._errors as error:
                raise self._said(error) from None
            failed += [str(entry.get("Code")) for entry in answer.get("Failed", [])]
        if failed:
            raise QueueError(f"SQS kept {len(failed)} messages ({failed[0]}); they come again and count as duplicates")

    def release(self, messages: Sequence[Message]) -> None:
        """Nothing: the visibility timeout gives them back, and keeps a failing database from being hammered."""

    def close(self) -> None:
        self._client.close()

    def _said(self, error: Exception) -> QueueError:
        what = getattr(error, "response", {}).get("Error", {}).get("Code") or type(error).__name__
        if "NonExistentQueue" in what:
            hint = "there is no such queue: copy its URL from the SQS console, with sqs:// for https://"
        elif "Credentials" in what or "Token" in what:
            hint = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where a role is attached"
        elif "Region" in what:
            hint = "set AWS_REGION"
        elif "AccessDenied" in what:
            hint = "the role needs sqs:ReceiveMessage and sqs:DeleteMessage on the queue"
        else:
            hint = "is the address right, and can this machine reach it?"
        return QueueError(f"SQS said {what}: {hint}")


class Kafka:
    """A topic, in a consumer group. An offset is committed only where all before it were acknowledged."""

    def __init__(self, parts: SplitResult) -> None:
        import confluent_kafka

        self.name = _bare(parts)
        asked = parse_qs(parts.query)
        if unknown := set(asked) - {"group", "config"}:
            raise QueueError(f"unknown in the address: {', '.join(sorted(unknown))}; known are group and config")
        self._kafka = confluent_kafka
        self._topic = parts.path.strip("/")
        given = _properties(Path(asked["config"][-1])) if "config" in asked else {}
        fixed = {
            "bootstrap.servers": parts.netloc,
            "group.id": asked.get("group", [DEFAULT_GROUP])[-1],
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
        }
        try:
            self._consumer = confluent_kafka.Consumer({"auto.offset.reset": "earliest", **given, **fixed})
            known = self._consumer.list_topics(self._topic, timeout=CONNECT_S).topics[self._topic]
            if known.error:
                raise QueueError(f"Kafka said {known.error.name()}: there is no topic {self._topic} for this user")
            self._consumer.subscribe([self._topic])
        except confluent_kafka.KafkaException as error:
            raise self._said(error.args[0]) from None

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        found: list[Message] = []
        # One by one from librdkafka's own buffer: its batch call waits out the time unless the batch is full.
        while len(found) < limit and (message := self._consumer.poll(0 if found else wait_s)) is not None:
            if error := message.error():
                if found:
                    break
                raise self._said(error)
            place = (message.partition(), message.offset())
            found.append(Message(message.value() or b"", f"{self._topic}/{place[0]}/{place[1]}", place))
        return found

    def acknowledge(self, messages: Sequence[Message]) -> None:
        ends = [
            self._kafka.TopicPartition(self._topic, partition, max(offsets) + 1)
            for partition, offsets in _by_partition(messages).items()
        ]
        try:
            for end in self._consumer.commit(offsets=ends, asynchronous=False):
                if end.error:
                    raise self._said(end.error)
        except self._kafka.KafkaException as error:
            raise self._said(error.args[0]) from None

    def release(self, messages: Sequence[Message]) -> None:
        try:
            for partition, offsets in _by_partition(messages).items():
                self._consumer.seek(self._kafka.TopicPartition(self._topic, partition, min(offsets)))
        except self._kafka.KafkaException:
            # To go on from here would skip them: join anew, which starts at what was committed.
            self._consumer.unsubscribe()
            self._consumer.subscribe([self._topic])

    def close(self) -> None:
        self._consumer.close()

    def _said(self, error: Any) -> QueueError:
        return QueueError(
            f"Kafka said {error.name()}: are broker, topic and access right? What was not committed stays"
        )


class ServiceBus:
    """A Service Bus queue, by the connection string in AZURE_SERVICEBUS_CONNECTION_STRING; without one, by the
    machine's identity (azure-identity). Messages are locked while they are stored, then completed."""

    def __init__(self, parts: SplitResult, port: int | None) -> None:
        from azure.core.exceptions import AzureError
        from azure.servicebus import ServiceBusClient, parse_connection_string
        from azure.servicebus.amqp import AmqpMessageBodyType

        self.name = _bare(parts)
        self._errors, self._data = (AzureError, OSError), AmqpMessageBodyType.DATA
        host = f"{parts.hostname}:{port}" if port else f"{parts.hostname}"
        if connection := os.environ.get(CONNECTION_VARIABLE):
            try:
                namespace = parse_connection_string(connection).fully_qualified_namespace
            except ValueError:
                raise QueueError(f"{CONNECTION_VARIABLE} is no connection string: copy it from the portal") from None
            if namespace != host:
                raise QueueError(f"{CONNECTION_VARIABLE} is for {namespace}, the address for {host}: make them agree")
            self._client = ServiceBusClient.from_connection_string(connection)
        else:
            try:
                credential = import_module("azure.identity").DefaultAzureCredential()
            except ModuleNotFoundError:
                raise QueueError(
                    f"set {CONNECTION_VARIABLE}, or pip install azure-identity to use this machine's identity"
                ) from None
            self._client = ServiceBusClient(host, credential)
        self._receiver = self._client.get_queue_receiver(parts.path.strip("/"))

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        try:
            found = self._receiver.receive_messages(max_message_count=limit, max_wait_time=wait_s)
        except self._errors as error:
            raise self._said(error) from None
        return [
            Message(self._body(message), str(message.message_id), message, (message.delivery_count or 0) + 1)
            for message in found
        ]

    def acknowledge(self, messages: Sequence[Message]) -> None:
        self._settle(messages, self._receiver.complete_message)

    def release(self, messages: Sequence[Message]) -> None:
        self._settle(messages, self._receiver.abandon_message)

    def close(self) -> None:
        self._receiver.close()
        self._client.close()

    def _settle(self, messages: Sequence[Message], settle: "Callable[[ServiceBusReceivedMessage], None]") -> None:
        failed: list[Exception] = []
        for message in messages:
            try:
                settle(message.handle)
            except self._errors as error:
                failed.append(error)
        if failed:
            raise QueueError(f"{len(failed)} messages come again and count as duplicates: {self._said(failed[0])}")

    def _body(self, message: "ServiceBusReceivedMessage") -> bytes:
        """The bytes sent. A body that is no data section (some senders put a string) is taken as its text."""
        if message.body_type is self._data:
            return b"".join(message.body)
        value = message.body
        return value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")

    def _said(self, error: Exception) -> QueueError:
        return QueueError(
            f"Service Bus said {type(error).__name__}: are namespace and queue right, does the key or role have the "
            "right to listen, and can this machine reach port 5671?"
        )


def _by_partition(messages: Sequence[Message]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for message in messages:
        partition, offset = message.handle
        found[partition].append(offset)
    return found


def _properties(path: Path) -> dict[str, str]:
    """librdkafka's properties, `name=value` in each line: where TLS and SASL are set, and no secret is in a command."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except OSError as error:
        raise QueueError(f"the Kafka configuration {path} can't be read: {error.strerror}") from None
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
