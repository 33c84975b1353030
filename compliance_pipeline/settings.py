"""One typed `Settings`: COMPLIANCE_* environment variables or a `.env` file. Secrets come from variables or files."""

import secrets
from base64 import b64decode, b64encode
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Base64Bytes, Field, IPvAnyNetwork, Secret, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from compliance_pipeline.private_file import write


class Settings(BaseSettings):
    """Everything that can be set. Each field is the variable COMPLIANCE_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="COMPLIANCE_", env_file=".env", extra="ignore", frozen=True)

    home: Path = Field(default=Path("var"), description="folder that holds all data")
    inbox_url: str | None = Field(
        default=None, repr=False, description="SQLAlchemy URL of the inbox; default: SQLite in the home folder"
    )
    platform_profile: Literal["guide", "cloud"] = Field(
        default="guide", description="which API the platform speaks: `guide` (the guide's endpoints) or `cloud`"
    )
    platform_url: str = Field(default="http://127.0.0.1:8090", description="base URL of the platform's API")
    login_url: str | None = Field(
        default=None, description="base URL of `/oauth/token`; default: the API's, with `login.` for a leading `api.`"
    )
    media_hosts: tuple[str, ...] = Field(
        default=(),
        description="hosts that media may come from (JSON list; `*.example.com` for those below a domain); "
        "default: the API's own, and for `cloud` Genesys Cloud's and Amazon S3's",
    )
    requests_per_minute: int | None = Field(
        default=None, ge=1, description="API requests allowed to all processes together; default: 300 for `cloud`"
    )
    client_id: str = Field(default="compliance-service", description="OAuth2 client id")
    client_secret: SecretStr | None = Field(default=None, description="OAuth2 client secret")
    webhook_secret: SecretStr | None = Field(
        default=None, description="Standard Webhooks secret (whsec_...) that signs events"
    )
    token_key: SecretStr | None = Field(default=None, description="key that turns participant identifiers into tokens")
    fingerprint_key: SecretStr | None = Field(default=None, description="key of the fingerprints of numbers")
    engine_url: str | None = Field(
        default=None, description="base URL of an HTTP engine; default: the engine in the package, in process"
    )
    engine_secret: SecretStr | None = Field(
        default=None, description="Standard Webhooks secret (whsec_...) that signs what the HTTP engine is asked"
    )
    callback_secret: SecretStr | None = Field(
        default=None, description="Standard Webhooks secret (whsec_...) that signs verdicts called back"
    )
    engine_seconds: float = Field(default=300.0, description="an HTTP engine that accepted is asked again after")
    engine_port: int = Field(default=8070, ge=1, le=65535, description="port of `compliance engine serve`")
    engine_hosts: tuple[str, ...] = Field(
        default=(),
        description="hosts that the served engine may fetch from and call (JSON list); default: any public one",
    )
    engine_keys: dict[str, Secret[Base64Bytes]] = Field(
        default={}, description="keys by which the served engine opens sealed media (JSON: id to base64, 32 bytes)"
    )
    engine_seal_key: dict[str, Secret[Base64Bytes]] = Field(
        default={},
        max_length=1,
        description="key by which media for an HTTP engine are sealed (JSON: its id to base64, 32 bytes)",
    )
    receiver_url: str | None = Field(
        default=None, description="where an HTTP engine reaches the receiver; default: its own address"
    )
    recogniser_model: Path | None = Field(
        default=None, description="folder of a faster-whisper model; hears calls that have no transcript"
    )
    policy: Path | None = Field(default=None, description="policy pack (YAML); default: the one in the package")
    queue_url: str | None = Field(
        default=None, repr=False, description="queue that events come from (`compliance consume --help`); for `up`"
    )
    host: str = Field(default="127.0.0.1", description="address that the receiver binds")
    receiver_port: int = Field(default=8080, ge=1, le=65535, description="port of the receiver")
    max_body_bytes: int = Field(default=256 * 1024, description="largest event accepted")
    compliance_queue: str = Field(default="compliance_review_queue", description="queue that work items go to")
    supervisor_queue: str = Field(default="supervisor_callback_queue", description="queue that callbacks go to")
    supervisor_number: str | None = Field(
        default=None, repr=False, description="number that supervisors are called back on (E.164); `cloud` needs one"
    )
    callback_lag_seconds: float = Field(
        default=900.0, ge=0, description="a callback whose answer was lost is looked up after (`cloud`: analytics lags)"
    )
    work_item_type: str = Field(default="Compliance review", description="worktype of work items, by name (`cloud`)")
    workbin: str | None = Field(
        default=None, description="workbin of work items, by name (`cloud`); default: the worktype's"
    )
    redaction_samples: tuple[str, ...] = Field(
        default=(),
        description="interactions with planted numbers, checked each day for what the platform's redaction leaves "
        "(JSON list of CHANNEL=ID; `compliance platform redaction-check` says how to make them)",
    )
    notify_urls: dict[str, SecretStr] = Field(
        default={}, description="where the policy's `notify` and alerts go: JSON, channel to an Apprise URL (`alerts`)"
    )
    vault_url: str | None = Field(
        default=None,
        description="where clips and originals lie, encrypted: file://, s3://, az://, gs://; default: in the home",
    )
    vault_key: str | None = Field(
        default=None,
        description="what wraps data keys: `aws-kms://KEY-ARN` (extra `kms`); default: a key file in the home folder",
    )
    keep_originals: bool = Field(
        default=False, description="whole recordings of what was flagged are kept in the vault, encrypted"
    )
    evidence_port: int = Field(default=8085, ge=1, le=65535, description="port that evidence is played from")
    evidence_url: str | None = Field(
        default=None,
        description="where browsers reach the evidence service (`https://clips.example.com`); default: the address it "
        "binds",
    )
    link_seconds: int = Field(default=300, ge=1, description="how long a link to evidence works")
    dashboard_host: str = Field(default="127.0.0.1", description="address that the dashboard binds")
    dashboard_port: int = Field(default=8075, ge=1, le=65535, description="port of the dashboard")
    dashboard_url: str | None = Field(
        default=None,
        description="where browsers reach the dashboard (`https://calls.example.com`); default: the address it binds",
    )
    dagster_url: str = Field(default="http://127.0.0.1:3000", description="where browsers reach Dagster's UI")
    dashboard_auth: Literal["none", "proxy", "oidc"] = Field(
        default="none",
        description="who says who looks at the dashboard: `none` (this machine alone), a `proxy`'s headers, or `oidc`",
    )
    dashboard_trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        default=(),
        description="addresses or networks whose X-Forwarded-User and X-Forwarded-Groups are believed (JSON list)",
    )
    dashboard_roles: dict[Literal["viewer", "reviewer", "admin"], tuple[str, ...]] = Field(
        default={},
        description="who may do what on the dashboard (JSON: role to a list of user names and `group:NAME`)",
    )
    oidc_issuer: str | None = Field(default=None, description="issuer that signs people in to the dashboard")
    oidc_client_id: str | None = Field(default=None, description="the dashboard's client id at the issuer")
    oidc_client_secret: SecretStr | None = Field(
        default=None, description="the dashboard's client secret; none for a public client"
    )
    oidc_user_claim: str = Field(
        default="preferred_username",
        description="claim that people are known by: unique, and nothing that they can change themselves",
    )
    warehouse_url: str | None = Field(
        default=None,
        repr=False,
        description="where `compliance warehouse serve` is reached; default: the file in the home",
    )
    warehouse_host: str = Field(default="127.0.0.1", description="address that `compliance warehouse serve` binds")
    warehouse_port: int = Field(default=8095, ge=1, le=65535, description="port of `compliance warehouse serve`")
    warehouse_secret: SecretStr | None = Field(
        default=None, description="shared secret (32 characters or more) of those who use the served warehouse"
    )
    workers: int = Field(default=0, ge=0, description="warm workers that `up` starts; 0: a new process for each run")
    canaries: bool = Field(
        default=True, description="synthetic violations each hour, by rule and channel, that must be flagged"
    )
    alert_found_by_sweep: float = Field(
        default=0.01, ge=0, le=1, description="share of an hour's recordings found by the sweep alone that alerts"
    )
    review_minutes: float = Field(default=6.0, gt=0, description="minutes that a person needs for one review")
    sweep_hours: int = Field(default=6, ge=1, description="how far back the reconcile sweep looks")
    objective_seconds: float = Field(
        default=30.0, gt=0, allow_inf_nan=False, description="available to flagged, as promised"
    )
    objective_seconds_by_channel: dict[
        Literal["voice", "chat", "email"], Annotated[float, Field(gt=0, allow_inf_nan=False)]
    ] = Field(default={}, description="the same for single channels (JSON: channel to seconds)")
    objective_target: float = Field(
        default=0.99, gt=0, lt=1, description="share of the flagged recordings that is in time, over 30 days"
    )
    max_attempts: int = Field(default=12, description="tries of a recording, and of each action, before it is given up")
    longest_backoff_seconds: float = Field(
        default=120.0, gt=0, description="longest wait between two tries of a recording or action"
    )
    claim_seconds: float = Field(default=60.0, description="after this a silent run's recordings are given back")
    fetch_workers: int = Field(default=4, description="recordings fetched and screened at a time in one run")

    @field_validator("webhook_secret", "engine_secret", "callback_secret")
    @classmethod
    def _signs(cls, value: SecretStr | None) -> SecretStr | None:
        """Standard Webhooks: 24 to 64 bytes."""
        said = value.get_secret_value() if value else ""
        try:
            fits = said.startswith("whsec_") and 24 <= len(b64decode(said.removeprefix("whsec_"), validate=True)) <= 64
        except ValueError:
            fits = False
        if value and not fits:
            raise ValueError("must be whsec_ and the base64 of 24 to 64 bytes")
        return value

    @field_validator("engine_keys", "engine_seal_key")
    @classmethod
    def _seals(cls, value: dict[str, Secret[bytes]]) -> dict[str, Secret[bytes]]:
        if any(len(key.get_secret_value()) != 32 for key in value.values()):
            raise ValueError("each key must be the base64 of 32 bytes")
        return value

    @field_validator("dashboard_url")
    @classmethod
    def _origin(cls, value: str | None) -> str | None:
        parts = urlsplit((value or "").rstrip("/").lower())
        if value is not None and (parts.geturl() != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc):
            raise ValueError("must be http:// or https://, a host, and a port if it is not the usual one; no path")
        if value is not None and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("must begin with http:// or https:// and a host")
        return value and parts.geturl()

    @field_validator("oidc_issuer")
    @classmethod
    def _issues(cls, value: str | None) -> str | None:
        """OpenID Connect Discovery 1.0, 3: https, no query. Plain http is for tests on this machine."""
        parts = urlsplit(value or "")
        is_here = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
        if value is not None and (not parts.hostname or parts.query or not (parts.scheme == "https" or is_here)):
            raise ValueError("must be the issuer's https:// URL (http:// on this machine only)")
        return value

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @property
    def is_sandboxed(self) -> bool:
        """Whether the platform is on this machine, so the sandbox."""
        return urlsplit(self.platform_url).hostname in ("127.0.0.1", "localhost")

    @property
    def dashboard_base_url(self) -> str:
        host = "127.0.0.1" if self.dashboard_host in ("0.0.0.0", "::") else self.dashboard_host  # noqa: S104 - compared
        bound = f"http://{f'[{host}]' if ':' in host else host}:{self.dashboard_port}"
        return (self.dashboard_url or bound).rstrip("/")

    @property
    def inbox_database_url(self) -> str:
        return self.inbox_url or f"sqlite:///{self.home / 'inbox.db'}"

    @property
    def warehouse_path(self) -> Path:
        return self.home / "warehouse.duckdb"

    @cached_property
    def webhook_signing_secret(self) -> str:
        return self._secret(self.webhook_secret, "webhook", prefix="whsec_")

    @cached_property
    def participant_token_key(self) -> str:
        return self._secret(self.token_key, "token")

    @cached_property
    def fingerprint_secret(self) -> str:
        return self._secret(self.fingerprint_key, "fingerprint")

    @cached_property
    def engine_signing_secret(self) -> str:
        return self._secret(self.engine_secret, "engine", prefix="whsec_")

    @cached_property
    def callback_signing_secret(self) -> str:
        return self._secret(self.callback_secret, "callback", prefix="whsec_")

    @cached_property
    def platform_client_secret(self) -> str:
        return self._secret(self.client_secret, "client")

    @cached_property
    def warehouse_shared_secret(self) -> str:
        return self._secret(self.warehouse_secret, "warehouse")

    @property
    def ledger_signing_key(self) -> str:
        return self._secret(None, "ledger")

    def _secret(self, given: SecretStr | None, name: str, prefix: str = "") -> str:
        """The given secret, else the one in `<home>/secrets/<name>`, made there (0600) by whoever comes first."""
        if given is not None:
            return given.get_secret_value()
        folder = self.home / "secrets"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / name
        if not path.exists():
            # Durably: what is signed or wrapped by it must not outlast it in a power cut.
            write(path, prefix + b64encode(secrets.token_bytes(32)).decode(), replace=False)
        return path.read_text().strip()
