"""Key-encryption keys: what wraps the data keys of the vault. A key file in the home folder, or AWS KMS.

A wrapped key is bound to its recording: under another's id it does not unwrap.
"""

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from compliance_pipeline.private_file import sync, write
from compliance_pipeline.settings import Settings

KMS = "aws-kms://"
LOCAL = "local:"


class VaultError(Exception):
    """Says which recording and what to do next; never what was stored, nor a key."""


class KeyUnavailable(VaultError):
    """The key-encryption key can't be used, or it is not the one that wrapped this."""


class KeyWrapper(Protocol):
    @property
    def kek(self) -> str:
        """Name of the key that wraps now."""

    def wrap(self, data_key: bytes, recording_id: str) -> tuple[bytes, str]:
        """The wrapped key and the name of what wrapped it. Raises KeyUnavailable."""

    def unwrap(self, wrapped: bytes, recording_id: str) -> bytes:
        """Raises KeyUnavailable."""


class LocalKey:
    """A Tink keyset (AES-256-GCM) in a file of mode 0600. Whoever calls `make` knows that nothing was wrapped before.

    It is read anew each time: another process may have rotated it. All methods raise KeyUnavailable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def kek(self) -> str:
        return f"{LOCAL}{self._read()['primaryKeyId']}"

    def wrap(self, data_key: bytes, recording_id: str) -> tuple[bytes, str]:
        keyset = self._read()
        return self._aead(keyset).encrypt(data_key, recording_id.encode()), f"{LOCAL}{keyset['primaryKeyId']}"

    def unwrap(self, wrapped: bytes, recording_id: str) -> bytes:
        import tink

        keyset = self._read()
        try:
            return bytes(self._aead(keyset).decrypt(wrapped, recording_id.encode()))
        except tink.TinkError:
            raise KeyUnavailable(
                f"recording {recording_id}: its data key does not open with the key file {self.path}: restore the "
                "file, or the recording's row in `data_keys`, from your backup"
            ) from None

    def make(self) -> None:
        """The first key, where there is no file; of several that come at once, the first one's stays."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._write(_new_keyset(), replace=False)

    def add(self) -> None:
        """A new primary key beside the old one, which still unwraps. An interrupted rotation is not begun twice."""
        keyset = self._read()
        if len(keyset["key"]) == 1:
            new = _new_keyset()
            self._write({"primaryKeyId": new["primaryKeyId"], "key": keyset["key"] + new["key"]})

    def drop_old(self) -> None:
        """Only the primary key stays."""
        keyset = self._read()
        primary = keyset["primaryKeyId"]
        if len(keyset["key"]) > 1:
            self._write({"primaryKeyId": primary, "key": [key for key in keyset["key"] if key["keyId"] == primary]})

    def remove(self) -> None:
        """Nothing is wrapped by it any more."""
        self.path.unlink(missing_ok=True)
        if self.path.parent.is_dir():
            sync(self.path.parent)

    def _read(self) -> dict[str, Any]:
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            raise KeyUnavailable(
                f"the key file {self.path} is not there, and data keys are wrapped by it: restore it from your backup"
            ) from None
        try:
            keyset: dict[str, Any] = json.loads(text)
            if any(key["keyId"] == keyset["primaryKeyId"] for key in keyset["key"]):
                return keyset
        except (ValueError, LookupError, TypeError):
            pass
        raise KeyUnavailable(f"the key file {self.path} is damaged: restore it from your backup") from None

    def _write(self, keyset: dict[str, Any], replace: bool = True) -> None:
        write(self.path, json.dumps(keyset), replace=replace)

    def _aead(self, keyset: dict[str, Any]) -> Any:
        import tink
        from tink import aead, json_proto_keyset_format, secret_key_access

        aead.register()
        try:
            handle = json_proto_keyset_format.parse(json.dumps(keyset), secret_key_access.TOKEN)
            return handle.primitive(aead.Aead)
        except tink.TinkError:
            raise KeyUnavailable(f"the key file {self.path} is damaged: restore it from your backup") from None


def _new_keyset() -> dict[str, Any]:
    import tink
    from tink import aead, json_proto_keyset_format, secret_key_access

    aead.register()
    handle = tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM)
    keyset: dict[str, Any] = json.loads(json_proto_keyset_format.serialize(handle, secret_key_access.TOKEN))
    return keyset


class AwsKms:
    """A key in AWS KMS, `aws-kms://KEY-ARN`; the recording id is the encryption context. Needs the extra `kms`."""

    def __init__(self, url: str) -> None:
        self.kek = url

    def wrap(self, data_key: bytes, recording_id: str) -> tuple[bytes, str]:
        return self._call("encrypt", recording_id, "CiphertextBlob", Plaintext=data_key), self.kek

    def unwrap(self, wrapped: bytes, recording_id: str) -> bytes:
        return self._call("decrypt", recording_id, "Plaintext", CiphertextBlob=wrapped)

    def _call(self, operation: str, recording_id: str, answer: str, **arguments: bytes) -> bytes:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            said = getattr(self._client, operation)(
                KeyId=self.kek.removeprefix(KMS), EncryptionContext={"recording": recording_id}, **arguments
            )
            return bytes(said[answer])
        except ClientError as error:
            why = error.response.get("Error", {}).get("Code", "refused")
        except BotoCoreError as error:
            why = type(error).__name__
        raise KeyUnavailable(
            f"recording {recording_id}: {self.kek} did not {operation} its data key ({why}): check that the key is "
            "enabled, and that this process may kms:Encrypt and kms:Decrypt with it"
        )

    @cached_property
    def _client(self) -> Any:
        import boto3

        parts = self.kek.removeprefix(KMS).split(":")
        return boto3.client("kms", region_name=parts[3] if parts[0] == "arn" and len(parts) > 3 else None)


class Keys:
    """The wrapper that is set now, and whatever wrapped before."""

    def __init__(self, local: LocalKey, kms: str | None = None) -> None:
        self.local = local
        self.current: KeyWrapper = AwsKms(kms) if kms else local
        self._others: dict[str, KeyWrapper] = {}

    def unwrap(self, wrapped: bytes, recording_id: str, kek: str) -> bytes:
        if kek.startswith(LOCAL):
            return self.local.unwrap(wrapped, recording_id)
        if isinstance(self.current, AwsKms) and kek == self.current.kek:
            return self.current.unwrap(wrapped, recording_id)
        return self._others.setdefault(kek, AwsKms(kek)).unwrap(wrapped, recording_id)

    def begin_rotation(self) -> None:
        if self.current is self.local:
            self.local.add()

    def end_rotation(self, keks: Iterable[str]) -> None:
        """Forget what none of `keks`, those still in use, needs."""
        if self.current is self.local:
            if set(keks) <= {self.local.kek}:
                self.local.drop_old()
        elif not any(kek.startswith(LOCAL) for kek in keks):
            self.local.remove()


def keys_of(settings: Settings) -> Keys:
    """Raises KeyUnavailable for a COMPLIANCE_VAULT_KEY that is none."""
    if settings.vault_key and not settings.vault_key.startswith(f"{KMS}arn:"):
        raise KeyUnavailable("COMPLIANCE_VAULT_KEY must be aws-kms://KEY-ARN; leave it out for a key file")
    return Keys(LocalKey(settings.home / "secrets" / "vault_key"), settings.vault_key)
