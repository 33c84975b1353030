"""Files that only this user may read, written whole and durably."""

import os
import secrets
from contextlib import suppress
from pathlib import Path


def write(path: Path, text: str, *, replace: bool) -> None:
    """All at once (0600); unless it replaces, the first one stays, whoever wrote it."""
    made = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            made.replace(path)
        else:
            with suppress(FileExistsError):
                os.link(made, path)
    finally:
        made.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make durable what is in a file, or what was named, renamed or removed in a folder."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
