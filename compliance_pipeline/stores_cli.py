"""What the commands over the stores share: opening them, and telling in one line what is wrong with one."""

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    import sqlalchemy as sa

    from compliance_pipeline.intake.inbox import Inbox
    from compliance_pipeline.media.vault import Vault
    from compliance_pipeline.settings import Settings
    from compliance_pipeline.warehouse.warehouse import Warehouse

# Without a terminal (a pipe, a log) there is no width to fit.
out = Console(width=None if sys.stdout.isatty() else 140)


@dataclass(frozen=True)
class Stores:
    """Each is opened, and the database made, when it is first asked for."""

    settings: "Settings"

    @cached_property
    def inbox(self) -> "Inbox":
        from compliance_pipeline.intake.inbox import Inbox

        inbox = Inbox(self.settings.inbox_database_url)
        inbox.create()
        return inbox

    @property
    def engine(self) -> "sa.Engine":
        return self.inbox.engine

    @cached_property
    def warehouse(self) -> "Warehouse":
        from compliance_pipeline.warehouse.warehouse import warehouse_of

        return warehouse_of(self.settings)

    @cached_property
    def vault(self) -> "Vault":
        from compliance_pipeline.media.vault import vault_of

        return vault_of(self.settings, self.engine)


@contextmanager
def opened() -> Iterator[Stores]:
    """The stores of this home. What is wrong with one, or may not be stored, is told in one line, and exits with 1."""
    from sqlalchemy.exc import SQLAlchemyError

    from compliance_pipeline.cli import fail, settings_or_exit
    from compliance_pipeline.database import DatabaseDamaged
    from compliance_pipeline.media.keys import VaultError
    from compliance_pipeline.plain_text import NotPlain
    from compliance_pipeline.warehouse.warehouse import WarehouseError

    stores = Stores(settings_or_exit())
    try:
        yield stores
    except (DatabaseDamaged, NotPlain, VaultError, WarehouseError) as error:
        raise fail(str(error)) from None
    except SQLAlchemyError as error:
        raise fail(
            f"the inbox's database can't be used ({type(error).__name__}): check COMPLIANCE_HOME and "
            "COMPLIANCE_INBOX_URL"
        ) from None
    except OSError as error:
        where, why = error.filename or stores.settings.home, error.strerror or type(error).__name__
        raise fail(f"{where} can't be read or written: {why}") from None
    except UnicodeEncodeError:
        raise fail("an argument is no valid Unicode text") from None
    finally:
        if "inbox" in vars(stores):
            stores.inbox.close()


def user_name() -> str:
    """The operating system's name of who runs this. Exits where it has none."""
    from compliance_pipeline.cli import fail

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without an entry
        raise fail("this user has no name here: say who you are (--for, --as, or the variable LOGNAME)") from None
