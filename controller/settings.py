"""The settings: the only reader of the environment and of `.env`.

Every wrong value becomes one line that names its variable. No secret is ever part of a message: values of the database
variables are not repeated, and a URL whose password would end up in another part of it is refused before libpq can
quote that part.
"""

import os
import re
import stat
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from controller.election import Bounds
from controller.errors import SettingsError

ENV_FILE: Final = Path(".env")
HOURS_A_MONTH: Final = 730
_DATABASE: Final = {"DATABASE_URL", "DATABASE_DIRECT_URL"}


def _none(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() in {"none", "off"} else value


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _env(name: str) -> Any:  # noqa: ANN401 - pydantic's Field is declared so
    return Field(validation_alias=AliasChoices(name))


class Settings(BaseSettings):
    """All settings, checked. The variable of each is its alias; docs/configuration.md explains them."""

    model_config = SettingsConfigDict(
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        env_ignore_empty=True,
    )

    database_url: Annotated[SecretStr | None, _env("DATABASE_URL")] = None
    database_url_file: Annotated[Path | None, _env("DATABASE_URL_FILE")] = None
    database_direct_url: Annotated[SecretStr | None, _env("DATABASE_DIRECT_URL")] = None
    database_direct_url_file: Annotated[Path | None, _env("DATABASE_DIRECT_URL_FILE")] = None

    interval_minutes: Annotated[float, _env("BILLING_INTERVAL_MINUTES"), Field(gt=0, le=10080)] = 60.0
    workers: Annotated[int, _env("BILLING_WORKERS"), Field(ge=1, le=16)] = 2
    batch_size: Annotated[int, _env("BILLING_BATCH_SIZE"), Field(ge=1, le=20000)] = 3000
    default_hourly_rate: Annotated[
        Annotated[Decimal, Field(ge=0, le=100000, allow_inf_nan=False)] | None,
        BeforeValidator(_none),
        _env("BILLING_DEFAULT_HOURLY_RATE"),
    ] = Decimal("0.027")
    currency: Annotated[str, _env("BILLING_CURRENCY"), Field(pattern="^[A-Z]{3}$")] = "USD"
    lock_name: Annotated[str, _env("BILLING_LOCK_NAME"), Field(min_length=1, max_length=200)] = (
        "containerstacks-billing"
    )
    takeover_delay_seconds: Annotated[float, _env("BILLING_TAKEOVER_DELAY_SECONDS"), Field(ge=0, le=86400)] = 300.0
    ping_interval_seconds: Annotated[float, _env("BILLING_PING_INTERVAL_SECONDS"), Field(ge=0.1, le=60)] = 2.0
    leader_deadline_seconds: Annotated[float, _env("BILLING_LEADER_DEADLINE_SECONDS"), Field(ge=0.2, le=300)] = 6.0
    session_timeout_seconds: Annotated[float, _env("BILLING_SESSION_TIMEOUT_SECONDS"), Field(ge=1.2, le=600)] = 10.0
    eviction: Annotated[Literal["on", "off"], BeforeValidator(_lower), _env("BILLING_EVICTION")] = "on"
    heartbeat_seconds: Annotated[float, _env("BILLING_HEARTBEAT_SECONDS"), Field(ge=0.1, le=1800)] = 60.0
    status_retention_days: Annotated[int, _env("BILLING_STATUS_RETENTION_DAYS"), Field(ge=1, le=3650)] = 30
    drain_timeout_seconds: Annotated[float, _env("BILLING_DRAIN_TIMEOUT_SECONDS"), Field(ge=0, le=3600)] = 270.0
    control_socket: Annotated[Path | None, BeforeValidator(_none), _env("BILLING_CONTROL_SOCKET")] = Field(
        default_factory=lambda: default_control_socket()  # noqa: PLW0108 - defined below
    )
    http_address: Annotated[str | None, BeforeValidator(_none), _env("BILLING_HTTP_ADDRESS")] = "127.0.0.1:8080"

    log_level: Annotated[Literal["error", "warn", "info", "debug"], BeforeValidator(_lower), _env("LOG_LEVEL")] = "info"
    log_format: Annotated[Literal["json", "console"] | None, BeforeValidator(_lower), _env("LOG_FORMAT")] = None

    notify_socket: Annotated[str | None, _env("NOTIFY_SOCKET")] = None

    kubernetes: Annotated[Literal["auto", "off"], BeforeValidator(_lower), _env("BILLING_KUBERNETES")] = "auto"
    kubernetes_service_host: Annotated[str | None, _env("KUBERNETES_SERVICE_HOST")] = None
    deployment_name: Annotated[str | None, _env("BILLING_DEPLOYMENT_NAME")] = None
    pod_name: Annotated[str | None, _env("POD_NAME")] = None
    pod_namespace: Annotated[str | None, _env("POD_NAMESPACE")] = None
    pod_uid: Annotated[str | None, _env("POD_UID")] = None
    node_name: Annotated[str | None, _env("NODE_NAME")] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.bounds  # noqa: B018 - raises when the order is wrong
        for name, url, file in (
            ("DATABASE_URL", self.database_url, self.database_url_file),
            ("DATABASE_DIRECT_URL", self.database_direct_url, self.database_direct_url_file),
        ):
            if url and file:
                raise SettingsError(f"{name} and {name}_FILE are both set: keep one of them")
            if url:
                check_url(url.get_secret_value(), name)
        if self.http_address is not None:
            parse_address(self.http_address)
        return self

    @property
    def bounds(self) -> Bounds:
        """The election's three bounds, in their order."""
        return Bounds(self.ping_interval_seconds, self.leader_deadline_seconds, self.session_timeout_seconds)

    @property
    def http_address_given(self) -> bool:
        """Whether somebody asked for it: then it must be had."""
        return "http_address" in self.model_fields_set

    @property
    def default_monthly_price(self) -> Decimal | None:
        """For 730 hours."""
        return None if self.default_hourly_rate is None else self.default_hourly_rate * HOURS_A_MONTH

    def require_database(self) -> None:
        """Raises SettingsError when no database is named, or its file can't be read."""
        self.read_url()
        self.read_direct_url()

    def read_url(self) -> str:
        """The connection string, read anew where it is in a file."""
        if self.database_url is None and self.database_url_file is None:
            raise SettingsError(
                "DATABASE_URL is not set: give a PostgreSQL URL such as postgresql://user:password@host:5432/database,"
                " or name a file that holds it in DATABASE_URL_FILE"
            )
        return _read("DATABASE_URL", self.database_url, self.database_url_file)

    def read_direct_url(self) -> str:
        """The one that leads past a pooler, for the lock session; the other where none is set."""
        if self.database_direct_url is None and self.database_direct_url_file is None:
            return self.read_url()
        return _read("DATABASE_DIRECT_URL", self.database_direct_url, self.database_direct_url_file)

    @property
    def direct_url_setting(self) -> str:
        """The variable to name when the lock session has trouble."""
        direct = self.database_direct_url or self.database_direct_url_file
        return "DATABASE_DIRECT_URL" if direct else "DATABASE_URL"

    def secrets(self) -> list[str]:
        """What must never be printed: the passwords of the connection strings, as they are now."""
        found = set()
        for read in (self.read_url, self.read_direct_url):
            try:
                password = conninfo_to_dict(read()).get("password")
            except (SettingsError, ProgrammingError):
                continue
            if password:
                found.add(str(password))
        return sorted(found)


def load(env_file: Path | None = ENV_FILE) -> Settings:
    """Reads the environment, and `.env` in the working directory where there is one.

    Raises:
        SettingsError: one line; where several values are wrong it names the first, and how many more.
    """
    try:
        return Settings(_env_file=env_file if env_file and env_file.is_file() else None)
    except UnicodeDecodeError:
        raise SettingsError(f"{env_file} is not UTF-8 text") from None
    except ValidationError as error:
        messages = [_one_line(e) for e in error.errors(include_url=False, include_input=False)]
        more = f" (and {len(messages) - 1} more: {'; '.join(messages[1:])})" if len(messages) > 1 else ""
        raise SettingsError(messages[0] + more) from None


def env_file_warning(env_file: Path = ENV_FILE) -> str | None:
    """A warning when others than its owner can read `.env`."""
    if os.name == "nt" or not env_file.is_file():
        return None
    if env_file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        return f"{env_file} can be read by others and holds a password: chmod 600 {env_file}"
    return None


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, or of `:port`, which is every interface and gives the host `*`.

    Raises:
        SettingsError: it is neither.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:  # noqa: PLR2004 - the largest port
        raise SettingsError(f"BILLING_HTTP_ADDRESS={address} is not host:port; give for example 0.0.0.0:8080, or none")
    return host.strip("[]") or "*", int(port)


def check_url(url: str, setting: str) -> None:
    """Refuses what libpq would misread, or could only refuse by quoting a part of the password.

    Raises:
        SettingsError: without a word of the value.
    """
    if not url.isprintable():  # line breaks, NUL, and what is no text at all
        raise SettingsError(f"{setting} holds characters that can't be part of a URL; is it the right value?")
    if "://" in url:
        scheme, _, rest = url.partition("://")
        if scheme not in {"postgresql", "postgres"}:
            raise SettingsError(f"{setting} must begin with postgresql://, or be a libpq connection string")
        authority, path = re.fullmatch(r"([^/?]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr] # matches all
        userinfo, _, hosts = authority.rpartition("@")
        bare_hosts = re.sub(r"\[[^\]]*\]", "", hosts)
        if (
            "#" in rest
            or re.search(r"%(?![0-9a-fA-F]{2})", rest)
            or "@" in path.partition("?")[0]
            or re.search(r"[@\[\]]", userinfo)
            or not re.fullmatch(r"[\w.\-,:%]*", bare_hosts)
            or re.search(r":(?!\d*(,|$))", bare_hosts)
        ):
            raise SettingsError(
                f"{setting} can't be read: percent-encode the characters @ : / ? # [ ] % in the user name and the"
                " password (@ is %40, # is %23, / is %2F)"
            )
        if not hosts and "host" not in path.partition("?")[2]:
            raise SettingsError(f"{setting} names no host: postgresql://user:password@host:5432/database")
    try:
        conninfo_to_dict(url)
    except (ProgrammingError, UnicodeError):
        raise SettingsError(
            f"{setting} can't be read as a PostgreSQL URL or connection string:"
            " postgresql://user:password@host:5432/database, the password percent-encoded"
        ) from None


def _read(setting: str, url: SecretStr | None, file: Path | None) -> str:
    if url is not None:
        return url.get_secret_value()
    if file is None:
        raise SettingsError(f"{setting} is not set")
    try:
        text = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsError(f"{setting}_FILE={file} can't be read: {reason}") from None
    if not text:
        raise SettingsError(f"{setting}_FILE={file} is empty")
    check_url(text, f"{setting}_FILE")
    return text


def default_control_socket() -> Path:
    """Below the runtime folder of this user, else in a folder of this user's own among the temporary ones."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return Path(base) / f"containerstacks-billing-{user}" / "control.sock"


def _one_line(error: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    cause = (error.get("ctx") or {}).get("error")
    if isinstance(cause, SettingsError):
        return str(cause)
    if not error["loc"]:
        return "the settings contradict each other"  # said without a value: it could be a secret
    name = str(error["loc"][0])
    message = str(error["msg"]).removeprefix("Value error, ")
    value = os.environ.get(name)
    shown = f"={value}" if value is not None and not name.startswith(tuple(_DATABASE)) else ""
    return f"{name}{shown} is wrong: {message[0].lower()}{message[1:]}"
