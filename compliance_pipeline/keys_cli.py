"""`compliance keys`: the keys of the vault. Only arguments, printing and exit codes; what they are is media/keys's."""

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from compliance_pipeline.stores_cli import opened, out, user_name

app = typer.Typer(
    no_args_is_help=True,
    help="""The keys of the vault: each recording has a data key, which your key-encryption key wraps.

The key-encryption key is the file `secrets/vault_key` in the home folder, made at first use: keep a copy of it apart
from the data; without it no clip can be played. With `COMPLIANCE_VAULT_KEY=aws-kms://KEY-ARN` it is a key in AWS KMS.
""",
)
SHOWN = 10


@app.command()
def show() -> None:
    """Say how many data keys there are, under which key-encryption key, and how many were shredded.

    Examples:

        compliance keys show
    """
    with opened() as stores:
        counts = stores.vault.counts()
    table = Table("key-encryption key", "data keys", box=box.SIMPLE)
    table.columns[1].justify = "right"
    for kek, number in sorted(counts.by_kek.items()):
        table.add_row(escape(kek), str(number))
    table.add_row("shredded", str(counts.shredded))
    out.print(table)
    if len(counts.by_kek) > 1:
        out.print(
            "More than one key-encryption key is in use: `compliance keys rotate` wraps all by the one that is set."
        )


@app.command()
def rotate() -> None:
    """Wrap every data key anew: by a new local key, or by the KMS key that is set. Clips are not touched.

    Nothing needs to stop for it. Killed in between, the next one carries on. At the end the old local key is forgotten:
    copy `secrets/vault_key` to where you keep it. After a change of COMPLIANCE_VAULT_KEY this moves all keys to it.
    Last the inbox's SQLite file is written anew, and events wait for that: needs as much free disk as it has.

    Examples:

        compliance keys rotate

        COMPLIANCE_VAULT_KEY=aws-kms://arn:aws:kms:eu-west-1:123456789012:key/KEY-ID compliance keys rotate
    """
    from compliance_pipeline.cli import fail
    from compliance_pipeline.clock import utc_now

    with opened() as stores:
        rotation = stores.vault.rotate(utc_now(), user_name())
        out.print(f"{rotation.rewrapped} data keys are wrapped by {escape(rotation.kek)} now.", highlight=False)
        if rotation.left:
            named = ", ".join(rotation.left[:SHOWN]) + (" …" if len(rotation.left) > SHOWN else "")
            raise fail(
                f"{len(rotation.left)} data keys could not be unwrapped, and their key-encryption keys are kept: "
                f"{named}. Give back the key that wrapped them (`compliance keys show`) and rotate again"
            )
