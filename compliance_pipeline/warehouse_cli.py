"""`compliance warehouse`: one process that holds the warehouse for many. Only arguments, printing and exit codes."""

from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""The warehouse, served to many machines.

On one machine nothing needs this: each process opens `warehouse.duckdb` in turn. With workers on several machines one
process serves the file, and all others set COMPLIANCE_WAREHOUSE_URL and COMPLIANCE_WAREHOUSE_SECRET.
""",
)


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to bind; default: COMPLIANCE_WAREHOUSE_HOST (127.0.0.1).")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; default: COMPLIANCE_WAREHOUSE_PORT (8095).", min=1, max=65535)
    ] = None,
) -> None:
    """Serve the warehouse in the home folder until stopped. Only one process can.

    What crosses the network is not encrypted: on other than a trusted network put TLS before it and give the others an
    `https://` URL. For other machines COMPLIANCE_WAREHOUSE_SECRET must be set (32 characters or more); on this machine
    alone the secret is made in the home folder.

    Examples:

        compliance warehouse serve

        COMPLIANCE_WAREHOUSE_SECRET="$(openssl rand -base64 32)" compliance warehouse serve --host 0.0.0.0

        COMPLIANCE_WAREHOUSE_URL=http://127.0.0.1:8095 compliance doctor
    """
    from compliance_pipeline.cli import err, fail, settings_or_exit
    from compliance_pipeline.warehouse import server
    from compliance_pipeline.warehouse.warehouse import WarehouseError

    settings = settings_or_exit()
    address, number = host or settings.warehouse_host, port or settings.warehouse_port
    given = settings.warehouse_secret.get_secret_value() if settings.warehouse_secret else None
    try:
        secret = server.checked_secret(address, given, lambda: settings.warehouse_shared_secret)
        err.print(f"[dim]{settings.warehouse_path} at http://{address}:{number}[/]", highlight=False, soft_wrap=True)
        well = server.serve(settings.warehouse_path, address, number, secret)
    except WarehouseError as error:
        raise fail(str(error)) from None
    if not well:
        raise fail("The warehouse stopped: see the log above, and start it again.")
