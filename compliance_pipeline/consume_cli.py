"""`compliance consume`: take events from a queue. Only arguments, printing and exit codes.

What a queue is lies in intake/queues, the loop in intake/consumer.
"""

import logging
import signal
import threading
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compliance_pipeline.stores_cli import out

if TYPE_CHECKING:
    from compliance_pipeline.intake.consumer import Counts
    from compliance_pipeline.intake.dead_messages import DeadMessages
    from compliance_pipeline.intake.inbox import Inbox
    from compliance_pipeline.intake.tokens import Tokenizer

err = Console(stderr=True)


def consume(
    url: Annotated[str | None, typer.Argument(help="The queue's address.", metavar="URL", show_default=False)] = None,
    dead: Annotated[bool, typer.Option("--dead", help="List the messages that nobody understood, and why.")] = False,
    retry_dead: Annotated[bool, typer.Option("--retry-dead", help="Read them again, after an upgrade.")] = False,
) -> None:
    """Take recording events from a queue: Amazon SQS, Kafka or Azure Service Bus.

    A message is acknowledged after its events are stored, so a crash loses nothing; what comes again is counted as a
    duplicate. What is not understood is set aside, sealed, with the reason (`--dead`). Understood: the guide's events,
    Genesys Cloud's events by EventBridge, and S3 'object created' of its recording export, also through SNS.
    Run as many of these as you like on one queue; Ctrl-C or SIGTERM finishes the batch under way.

    Examples:

        compliance consume sqs://sqs.eu-west-1.amazonaws.com/123456789012/recordings

    The address is the queue's URL with sqs:// for https://. Credentials come from where boto3 looks: AWS_PROFILE,
    AWS_ACCESS_KEY_ID, a role. They need sqs:ReceiveMessage and sqs:DeleteMessage.

        compliance consume 'kafka://broker-1:9092,broker-2:9092/recordings?group=compliance'

    For TLS and SASL add `&config=client.properties`: a file with librdkafka's properties, one `name=value` a line.

        compliance consume servicebus://contoso.servicebus.windows.net/recordings

    The connection string comes from AZURE_SERVICEBUS_CONNECTION_STRING; without it, this machine's identity is used
    (`pip install azure-identity`). It needs the right to listen.

        compliance consume --dead

        compliance consume --retry-dead
    """
    from compliance_pipeline.cli import fail, settings_or_exit
    from compliance_pipeline.intake.consumer import QueueError
    from compliance_pipeline.intake.dead_messages import DeadMessages, SealBroken, sealing_secret
    from compliance_pipeline.intake.inbox import Inbox
    from compliance_pipeline.intake.tokens import Tokenizer

    if (url is not None) + dead + retry_dead != 1:
        raise typer.BadParameter("give a queue's address, or --dead, or --retry-dead; --help has examples")
    settings = settings_or_exit()
    inbox = Inbox(settings.inbox_database_url)
    letters = DeadMessages(inbox.engine, sealing_secret(settings))
    tokens = Tokenizer(settings.participant_token_key)
    try:
        if url is not None:
            _run(url, inbox, letters, tokens)
        else:
            inbox.create()
            if retry_dead:
                _retry(inbox, letters, tokens)
            else:
                _list(letters)
    except (QueueError, SealBroken) as error:
        raise fail(str(error)) from None
    finally:
        inbox.close()


def _run(url: str, inbox: "Inbox", letters: "DeadMessages", tokens: "Tokenizer") -> None:
    from compliance_pipeline.clock import utc_now
    from compliance_pipeline.intake import consumer
    from compliance_pipeline.intake.queues import open_queue

    # The vendors' clients tell much at INFO.
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("compliance_pipeline").setLevel(logging.INFO)
    stop = threading.Event()

    def asked_to_stop(number: int, _frame: Any) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # who asks twice does not want to wait

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, asked_to_stop)
    queue = open_queue(url)
    try:
        with err.status(f"waiting for events from {escape(queue.name)}") as status:
            counts = consumer.consume(
                queue, inbox, letters, tokens, utc_now, stop, on_batch=lambda counts: status.update(_figures(counts))
            )
    finally:
        queue.close()
    err.print(f"stopped: {_figures(counts)}", highlight=False)


def _figures(counts: "Counts") -> str:
    return (
        f"{counts.received} messages: {counts.stored} events stored, {counts.duplicates} duplicates, "
        f"{counts.nothing} about nothing that is screened, {counts.dead} not understood"
    )


def _list(letters: "DeadMessages") -> None:
    table = Table(title="Messages not understood", title_justify="left", header_style="bold")
    for column in ("first came", "reason", "queue", "bytes", "times"):
        table.add_column(column, justify="right" if column in ("bytes", "times") else "left", overflow="fold")
    found = letters.all()
    for letter in found:
        when = f"{letter.received_at:%Y-%m-%d %H:%M:%S}"
        table.add_row(when, escape(letter.reason), escape(letter.queue), str(letter.size), str(letter.attempts))
    if found:
        out.print(table)
    out.print(f"{len(found)} messages not understood.", highlight=False)


def _retry(inbox: "Inbox", letters: "DeadMessages", tokens: "Tokenizer") -> None:
    from compliance_pipeline.clock import utc_now
    from compliance_pipeline.intake.consumer import retry_dead

    understood, still = retry_dead(inbox, letters, tokens, utc_now)
    out.print(f"{understood} are understood now and stored; {still} still are not.", highlight=False)
