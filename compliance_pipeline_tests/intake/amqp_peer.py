"""An AMQP 1.0 peer on loopback with what azure-servicebus uses of Service Bus: claims ($cbs), and queues whose
messages are locked when delivered, gone when accepted, and delivered again when given back or when the peer is left.

It is Qpid Proton's protocol engine, not Azure's service: sessions, lock expiry and the service's limits are missing.
"""

import threading
import uuid
from collections import deque
from typing import Any

import pytest

proton = pytest.importorskip("proton", reason="no AMQP peer: pip install python-qpid-proton")
from proton import handlers, reactor  # noqa: E402

CONNECTION = (
    "Endpoint=sb://127.0.0.1:{port};SharedAccessKeyName=test;SharedAccessKey=dGVzdA==;UseDevelopmentEmulator=true"
)


class Letter:
    def __init__(self, body: Any) -> None:
        self.body = body
        self.deliveries = 0


class AmqpPeer(handlers.MessagingHandler):
    """Serves `queue` in a thread. waiting: not delivered; locked: delivered and not settled; accepted: gone."""

    def __init__(self, port: int) -> None:
        super().__init__(prefetch=10, auto_accept=False, auto_settle=False)
        self.port = port
        self.waiting: deque[Letter] = deque()
        self.locked: dict[bytes, tuple[Any, Letter]] = {}
        self.accepted: list[Letter] = []
        self._senders: list[Any] = []
        self._answers: Any = None
        self._started = threading.Event()
        self._lock = threading.Lock()
        self._container = reactor.Container(self)
        self._injector = reactor.EventInjector()
        self._container.selectable(self._injector)
        self._thread = threading.Thread(target=self._container.run, daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    @property
    def connection_string(self) -> str:
        return CONNECTION.format(port=self.port)

    def put(self, *bodies: Any) -> None:
        with self._lock:
            self.waiting.extend(Letter(body) for body in bodies)
        self._injector.trigger(reactor.ApplicationEvent("put"))

    def stop(self) -> None:
        self._injector.trigger(reactor.ApplicationEvent("leave"))
        self._thread.join(10)

    def on_start(self, event: Any) -> None:
        self._acceptor = event.container.listen(f"127.0.0.1:{self.port}")
        self._started.set()

    def on_put(self, _event: Any) -> None:
        for sender in self._senders:
            self._deliver(sender)

    def on_leave(self, _event: Any) -> None:
        self._acceptor.close()
        self._injector.close()
        self._container.stop()

    def on_link_opening(self, event: Any) -> None:
        link = event.link
        link.source.copy(link.remote_source)
        link.target.copy(link.remote_target)
        if not link.is_sender:
            return
        if link.remote_source.address == "$cbs":
            self._answers = link
        else:
            self._senders.append(link)

    def on_sendable(self, event: Any) -> None:
        if event.link in self._senders:
            self._deliver(event.link)

    def on_message(self, event: Any) -> None:
        """The only messages that come in are claims: taken, whatever they say."""
        self.accept(event.delivery)
        event.delivery.settle()
        answer = proton.Message(properties={"status-code": 202, "status-description": "Accepted"})
        answer.correlation_id = event.message.id
        self._answers.send(answer)

    def _deliver(self, sender: Any) -> None:
        while self.waiting and sender.credit > 0:
            letter = self.waiting.popleft()
            tag = uuid.uuid4().hex[:16]  # 16 bytes: the SDK reads a lock token, a UUID, from it
            letter.deliveries += 1
            message = proton.Message(body=letter.body, inferred=True, delivery_count=letter.deliveries - 1)
            delivery = sender.send(message, tag=tag)
            self.locked[delivery.tag] = (sender, letter)

    def on_accepted(self, event: Any) -> None:
        self._settled(event, kept=False)

    def on_released(self, event: Any) -> None:
        self._settled(event, kept=True)

    def _settled(self, event: Any, *, kept: bool) -> None:
        if (found := self.locked.pop(event.delivery.tag, None)) is None:
            return
        # Service Bus confirms an outcome by repeating it; without that the SDK calls the settlement failed.
        event.delivery.update(event.delivery.remote_state)
        event.delivery.settle()
        if kept:
            self.waiting.append(found[1])
            for sender in self._senders:
                self._deliver(sender)
        else:
            self.accepted.append(found[1])

    def on_link_closed(self, event: Any) -> None:
        self._gone(event.link)

    def on_disconnected(self, event: Any) -> None:
        for sender in [sender for sender in self._senders if sender.connection == event.connection]:
            self._gone(sender)

    def _gone(self, link: Any) -> None:
        if link not in self._senders:
            return
        self._senders.remove(link)
        for tag, (sender, letter) in list(self.locked.items()):
            if sender == link:
                del self.locked[tag]
                self.waiting.append(letter)
        for sender in self._senders:
            self._deliver(sender)
