"""The settings. Only this module reads the environment and `.env`, except for the address that `__main__` binds early.

Every wrong value becomes one line that names its variable. No message contains a secret: values of the database
variables are never repeated. The table in docs/configuration.md (`make docs`) and the environment part of `--help` are
generated from the descriptions of the fields below.
"""

import os
import re
import tempfile
from collections.abc import Collection
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, cast

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from controller import env_file as env_files
from controller.connection_url import check_url
from controller.election import Bounds
from controller.errors import SecretFileError, SettingsError
from controller.listener import PAGE_SETTING, parse_address

ENV_FILE: Final = Path(".env")
HOURS_A_MONTH: Final = 730

#: Headings of docs/configuration.md and of `--help`.
DATABASE: Final = "Database"
BILLING: Final = "Billing"
LEADERSHIP: Final = "Leadership"
HEARTBEAT: Final = "Heartbeat"
STOPPING: Final = "Stopping"
OUTPUT: Final = "HTTP and logs"
KUBERNETES: Final = "Kubernetes"
PLATFORM: Final = "Set by the platform"


def _none(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() in {"none", "off"} else value


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _setting(name: str, group: str, description: str, *, default: str | None = None) -> Any:  # noqa: ANN401 - as pydantic's Field
    """The variable that sets a field.

    Args:
        name: the environment variable's name.
        group: the heading it is listed under.
        description: Markdown. `--help` shows the first sentence.
        default: what to show for a default that is not a constant.
    """
    return Field(
        validation_alias=AliasChoices(name),
        description=description,
        json_schema_extra={"group": group, "shown_default": default},
    )


class Settings(BaseSettings):
    """All settings, validated.

    Raises:
        SettingsError: two settings contradict each other, or a URL or an address is malformed.
        ValidationError: a value is of the wrong type or out of bounds; `load` makes one line of it.
    """

    model_config = SettingsConfigDict(
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        env_ignore_empty=True,
    )

    database_url: Annotated[
        SecretStr | None,
        _setting(
            "DATABASE_URL",
            DATABASE,
            "PostgreSQL URL or libpq connection string. Percent-encode `@ : / ? # [ ] %` in the user name and password."
            " Several hosts work: `postgresql://u:p@a,b/db?target_session_attrs=read-write`.",
            default="required",
        ),
    ] = None
    database_url_file: Annotated[
        Path | None,
        _setting(
            "DATABASE_URL_FILE",
            DATABASE,
            "File that holds the URL, instead of `DATABASE_URL`. It is read again for each new connection.",
            default="unset",
        ),
    ] = None
    database_username_file: Annotated[
        Path | None,
        _setting(
            "DATABASE_USERNAME_FILE",
            DATABASE,
            "File that holds the user name, for a URL without one. It is read again for each new connection.",
            default="unset",
        ),
    ] = None
    database_password_file: Annotated[
        Path | None,
        _setting(
            "DATABASE_PASSWORD_FILE",
            DATABASE,
            "File that holds the password, for a URL without one. It is read again for each new connection, and its"
            " text needs no encoding.",
            default="unset",
        ),
    ] = None
    database_ca_file: Annotated[
        Path | None,
        _setting(
            "DATABASE_CA_FILE",
            DATABASE,
            "CA certificate that signed the server's certificate. The server's name is then verified, unless the URL"
            " states another `sslmode` or `sslrootcert`.",
            default="unset",
        ),
    ] = None
    database_direct_url: Annotated[
        SecretStr | None,
        _setting(
            "DATABASE_DIRECT_URL",
            DATABASE,
            "URL that bypasses a pooler. The lock session and migrations use it.",
            default="same as `DATABASE_URL`",
        ),
    ] = None
    database_direct_url_file: Annotated[
        Path | None,
        _setting(
            "DATABASE_DIRECT_URL_FILE",
            DATABASE,
            "File that holds the direct URL, instead of `DATABASE_DIRECT_URL`.",
            default="unset",
        ),
    ] = None

    interval_minutes: Annotated[
        float,
        _setting("BILLING_INTERVAL_MINUTES", BILLING, "Minutes from the start of one cycle to the start of the next."),
        Field(gt=0, le=10080),
    ] = 60.0
    workers: Annotated[
        int, _setting("BILLING_WORKERS", BILLING, "Sessions that charge in parallel."), Field(ge=1, le=16)
    ] = 2
    batch_size: Annotated[
        int, _setting("BILLING_BATCH_SIZE", BILLING, "Instances per transaction."), Field(ge=1, le=20000)
    ] = 3000
    pace: Annotated[
        float,
        _setting(
            "BILLING_PACE",
            BILLING,
            "Share of the time that a session works, in a cycle that began on time. The session pauses between"
            " transactions for the rest, but never for more than 5 s at once. `1` never pauses. A cycle that begins"
            " late or takes long runs at full speed.",
        ),
        Field(ge=0.01, le=1),
    ] = 0.05
    default_hourly_rate: Annotated[
        Annotated[Decimal, Field(ge=0, le=100000, allow_inf_nan=False)] | None,
        BeforeValidator(_none),
        _setting(
            "BILLING_DEFAULT_HOURLY_RATE",
            BILLING,
            "Price per hour of an instance without a priced plan. `none` records a failure instead of charging.",
        ),
    ] = Decimal("0.027")
    max_backlog_hours: Annotated[
        Annotated[int, Field(ge=1, le=100000)] | None,
        BeforeValidator(_none),
        _setting(
            "BILLING_MAX_BACKLOG_HOURS",
            BILLING,
            "An instance with more unrecorded hours is not charged until they are accepted. Hours are"
            " recorded if they are billed or in an open row. Only hours before the last successful cycle count; before"
            " the first one, all of them. `none` charges every backlog.",
        ),
    ] = 168
    accept_columns: Annotated[
        str | None,
        _setting(
            "BILLING_ACCEPT_COLUMNS",
            BILLING,
            "Columns that look like prices and may be ignored, separated by commas. The controller refuses to bill if"
            " `vps_plans` or `vps_instances` has any other unknown column that looks like a price.",
            default="none",
        ),
    ] = None
    other_billers: Annotated[
        Literal["stop", "warn"],
        BeforeValidator(_lower),
        _setting(
            "BILLING_OTHER_BILLERS",
            BILLING,
            "If another program bills: `stop` until `resume`, or `warn` and keep billing. A live daemon always halts"
            " billing. See [other billers](leadership.md#other-billers).",
        ),
    ] = "stop"
    currency: Annotated[
        str,
        _setting(
            "BILLING_CURRENCY",
            BILLING,
            "Currency that wallets must be in. A wallet in another currency is a failure of its organization.",
        ),
        Field(pattern="^[A-Z]{3}$"),
    ] = "USD"
    status_retention_days: Annotated[
        int,
        _setting(
            "BILLING_STATUS_RETENTION_DAYS",
            BILLING,
            "Days to keep batches, and status rows of replicas that no longer run.",
        ),
        Field(ge=1, le=3650),
    ] = 30

    lock_name: Annotated[
        str,
        _setting(
            "BILLING_LOCK_NAME",
            LEADERSHIP,
            "Name of the advisory lock. Two environments in one database need two names and two schemas.",
        ),
        Field(min_length=1, max_length=200),
    ] = "containerstacks-billing"
    ping_interval_seconds: Annotated[
        float,
        _setting(
            "BILLING_PING_INTERVAL_SECONDS",
            LEADERSHIP,
            "Seconds between the leader's pings on its lock session. See [leadership](leadership.md#the-bounds).",
        ),
        Field(ge=0.1, le=60),
    ] = 2.0
    leader_deadline_seconds: Annotated[
        float,
        _setting(
            "BILLING_LEADER_DEADLINE_SECONDS",
            LEADERSHIP,
            "Seconds without a good ping after which a leader stops. At least twice the ping interval, and more than"
            " 0.9 s longer than it.",
        ),
        Field(ge=1, le=300),
    ] = 5.0
    session_timeout_seconds: Annotated[
        float,
        _setting(
            "BILLING_SESSION_TIMEOUT_SECONDS",
            LEADERSHIP,
            "Seconds after which the server ends a silent lock session. At least one second more than the leader's"
            " deadline.",
        ),
        Field(ge=1.2, le=600),
    ] = 10.0
    eviction: Annotated[
        Literal["on", "off"],
        BeforeValidator(_lower),
        _setting(
            "BILLING_EVICTION",
            LEADERSHIP,
            "Lets a standby end the session of a leader that is silent past its deadline. With `off`, only the"
            " session timeout ends it. See [eviction](leadership.md#eviction).",
        ),
    ] = "on"

    heartbeat_seconds: Annotated[
        float,
        _setting(
            "BILLING_HEARTBEAT_SECONDS",
            HEARTBEAT,
            "Seconds between the leader's heartbeats. The application resumes its own billing when the newest heartbeat"
            " is older than 90 minutes.",
        ),
        Field(ge=0.1, le=1800),
    ] = 60.0
    takeover_delay_seconds: Annotated[
        float,
        _setting(
            "BILLING_TAKEOVER_DELAY_SECONDS",
            HEARTBEAT,
            "Seconds to wait before the first cycle if the heartbeat had lapsed. The application's own billing may"
            " still be running then, so the wait lasts until no other program has billed anything for that long.",
        ),
        Field(ge=0, le=86400),
    ] = 300.0

    drain_timeout_seconds: Annotated[
        float,
        _setting(
            "BILLING_DRAIN_TIMEOUT_SECONDS",
            STOPPING,
            "Seconds that a drain gives the cycle in hand. After that, the batch in hand is the last.",
        ),
        Field(ge=0, le=3600),
    ] = 270.0
    control_socket: Annotated[
        Path | None,
        BeforeValidator(_none),
        _setting(
            "BILLING_CONTROL_SOCKET",
            STOPPING,
            "Unix socket that the `drain` command talks to. `none` opens no socket.",
            default="in the runtime or temporary folder",
        ),
    ] = Field(default_factory=lambda: default_control_socket())  # noqa: PLW0108 - defined below

    http_address: Annotated[
        str | None,
        BeforeValidator(_none),
        _setting(
            "BILLING_HTTP_ADDRESS",
            OUTPUT,
            "Address, `host:port`, of probes, metrics and the public status. They name no customer. `:8080` is every"
            " interface; `none` disables them.",
        ),
    ] = "127.0.0.1:8080"
    page_address: Annotated[
        str | None,
        BeforeValidator(_none),
        _setting(
            "BILLING_PAGE_ADDRESS",
            OUTPUT,
            "Address, `host:port`, of the [operator's pages](operator-pages.md). They name customers and ask for no"
            " password, so keep it on loopback. `none` disables them.",
        ),
    ] = "127.0.0.1:8081"
    log_level: Annotated[
        Literal["error", "warn", "info", "debug"],
        BeforeValidator(_lower),
        _setting("LOG_LEVEL", OUTPUT, "Least severe level that is logged."),
    ] = "info"
    log_format: Annotated[
        Literal["json", "console"] | None,
        BeforeValidator(_lower),
        _setting("LOG_FORMAT", OUTPUT, "Format of a log line.", default="console on a terminal, else json"),
    ] = None

    no_color: Annotated[
        str | None,
        _setting("NO_COLOR", OUTPUT, "Any value disables colours.", default="unset"),
    ] = None

    kubernetes: Annotated[
        Literal["auto", "off"],
        BeforeValidator(_lower),
        _setting(
            "BILLING_KUBERNETES",
            KUBERNETES,
            "In a cluster, `auto` labels the pod and sends Events; `off` does neither.",
        ),
    ] = "auto"
    deployment_name: Annotated[
        str | None,
        _setting(
            "BILLING_DEPLOYMENT_NAME", KUBERNETES, "Deployment that receives the Events.", default="set by the chart"
        ),
    ] = None
    pod_name: Annotated[
        str | None, _setting("POD_NAME", KUBERNETES, "Name of this pod.", default="set by the chart")
    ] = None
    pod_namespace: Annotated[
        str | None, _setting("POD_NAMESPACE", KUBERNETES, "Namespace of this pod.", default="set by the chart")
    ] = None
    pod_uid: Annotated[str | None, _setting("POD_UID", KUBERNETES, "UID of this pod.", default="set by the chart")] = (
        None
    )
    node_name: Annotated[
        str | None, _setting("NODE_NAME", KUBERNETES, "Node that this pod runs on.", default="set by the chart")
    ] = None

    kubernetes_service_host: Annotated[
        str | None,
        _setting(
            "KUBERNETES_SERVICE_HOST",
            PLATFORM,
            "Address of the API server. Its presence means that the process runs in a cluster.",
            default="set by the kubelet",
        ),
    ] = None
    notify_socket: Annotated[
        str | None,
        _setting(
            "NOTIFY_SOCKET",
            PLATFORM,
            "Socket for readiness notifications of a `Type=notify` unit.",
            default="set by systemd",
        ),
    ] = None
    watchdog_microseconds: Annotated[
        int | None,
        _setting(
            "WATCHDOG_USEC",
            PLATFORM,
            "Microseconds without a sign of life after which systemd kills the process (`WatchdogSec`).",
            default="set by systemd",
        ),
        Field(ge=1, le=86_400_000_000),
    ] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.bounds  # noqa: B018 - raises when the order is wrong
        for name, url, file in (
            ("DATABASE_URL", self.database_url, self.database_url_file),
            ("DATABASE_DIRECT_URL", self.database_direct_url, self.database_direct_url_file),
        ):
            if url and file:
                raise SettingsError(f"{name} and {name}_FILE are both set: remove one of them")
            if url:
                check_url(url.get_secret_value(), name)
        if self.http_address is not None:
            parse_address(self.http_address)
        if self.page_address is not None:
            parse_address(self.page_address, PAGE_SETTING)
        return self

    @property
    def bounds(self) -> Bounds:
        """The election's time bounds. Raises: BoundsError if they are in the wrong order."""
        return Bounds(self.ping_interval_seconds, self.leader_deadline_seconds, self.session_timeout_seconds)

    @property
    def http_address_given(self) -> bool:
        """True if BILLING_HTTP_ADDRESS is set. Failing to listen is fatal only then."""
        return "http_address" in self.model_fields_set

    @property
    def page_address_given(self) -> bool:
        """True if BILLING_PAGE_ADDRESS is set. Failing to listen is fatal only then."""
        return "page_address" in self.model_fields_set

    @property
    def default_monthly_price(self) -> Decimal | None:
        """The price of 730 hours without a priced plan; None if such an instance is a failure."""
        return None if self.default_hourly_rate is None else self.default_hourly_rate * HOURS_A_MONTH

    @property
    def accepted_columns(self) -> tuple[str, ...]:
        """The columns that look like prices and that billing may ignore."""
        return tuple(name for name in re.split(r"[\s,]+", self.accept_columns or "") if name)

    def require_database(self) -> None:
        """Raises SettingsError if no database is configured or its file can't be read."""
        self.read_url()
        self.read_direct_url()

    def read_url(self) -> str:
        """The connection string. A file is read again on each call, because the password may have been rotated."""
        if self.database_url is None and self.database_url_file is None:
            raise SettingsError(
                "DATABASE_URL is not set: set it to a PostgreSQL URL such as"
                " postgresql://user:password@host:5432/database, or set DATABASE_URL_FILE to a file that holds one"
            )
        return self._completed("DATABASE_URL", _read("DATABASE_URL", self.database_url, self.database_url_file))

    def read_direct_url(self) -> str:
        """The connection string for the lock session and migrations; `read_url()` if none is set."""
        if self.database_direct_url is None and self.database_direct_url_file is None:
            return self.read_url()
        url = _read("DATABASE_DIRECT_URL", self.database_direct_url, self.database_direct_url_file)
        return self._completed("DATABASE_DIRECT_URL", url)

    def _completed(self, setting: str, url: str) -> str:
        """Adds the user name, the password and the CA that files provide."""
        stated, added = conninfo_to_dict(url), {}
        for key, name, file in (
            ("user", "DATABASE_USERNAME_FILE", self.database_username_file),
            ("password", "DATABASE_PASSWORD_FILE", self.database_password_file),
        ):
            if file is not None:
                if stated.get(key):
                    raise SettingsError(f"{setting} holds a {key} and {name} is set: remove one of them")
                added[key] = _read_text(name, file).removesuffix("\n").removesuffix("\r")
                if not added[key] or re.search(r"[\0\r\n]", added[key]):
                    raise SecretFileError(f"{name}={file} must hold one line, the {key}")
        if self.database_ca_file is not None and "sslrootcert" not in stated:
            added["sslrootcert"] = str(self.database_ca_file)
            added["sslmode"] = str(stated.get("sslmode") or "verify-full")
        return make_conninfo(url, **added) if added else url

    @property
    def direct_url_setting(self) -> str:
        """The variable to name in an error of the lock session."""
        direct = self.database_direct_url or self.database_direct_url_file
        return "DATABASE_DIRECT_URL" if direct else "DATABASE_URL"

    def for_sample(self, url: str, control_socket: Path) -> Self:
        """A copy for the sample at `url`. Unless set otherwise, a cycle runs at once and then every minute."""
        defaults = {"interval_minutes": 1.0, "takeover_delay_seconds": 0.0, "control_socket": control_socket}
        unset = {name: value for name, value in defaults.items() if name not in self.model_fields_set}
        elsewhere = dict.fromkeys(name for name in type(self).model_fields if name.startswith("database_"))
        return self.model_copy(update={**unset, **elsewhere, "database_url": SecretStr(url)})

    def secrets(self) -> list[str]:
        """The current passwords of the connection strings. The log masks them."""
        found = set()
        for read in (self.read_url, self.read_direct_url):
            try:
                password = conninfo_to_dict(read()).get("password")
            except (SettingsError, ProgrammingError):
                continue
            if password:
                found.add(str(password))
        return sorted(found)


def load(env_file: Path | None = ENV_FILE, *, ignored: Collection[str] = ()) -> Settings:
    """Reads the environment and, if it exists, `env_file`. The environment takes precedence.

    Args:
        env_file: None to read only the environment.
        ignored: variables that count as unset; they must be optional.

    Raises:
        SettingsError: one line with every wrong value, the first one first.
    """
    try:
        given = {name.upper() for name, value in os.environ.items() if value}
        from_file = {name: value for name, value in env_files.read(env_file).items() if name not in given}
        return Settings(**cast("dict[str, Any]", {**from_file, **dict.fromkeys(ignored)}))
    except UnicodeDecodeError:
        raise SettingsError(f"{env_file} is not UTF-8 text: save it as UTF-8") from None
    except ValidationError as error:
        messages = [_one_line(e) for e in error.errors(include_url=False, include_input=False)]
        more = f" (and {len(messages) - 1} more: {'; '.join(messages[1:])})" if len(messages) > 1 else ""
        raise SettingsError(messages[0] + more) from None


def variables() -> set[str]:
    """Returns the names of all variables that are settings."""
    fields: list[Any] = list(Settings.model_fields.values())
    return {str(field.validation_alias.choices[0]) for field in fields}


def database_variables() -> set[str]:
    """Returns the variables that say which database to use, and how."""
    return {name for name in variables() if name.startswith("DATABASE_")}


def warnings(env_file: Path = ENV_FILE) -> list[dict[str, str]]:
    """Returns warnings about settings that are suspicious but usable. Each is an event with its key-value pairs."""
    found = []
    if remedy := env_files.exposed(env_file):
        found.append({"event": "settings.exposed", "remedy": remedy})
    for name, similar in env_files.misspelled({*os.environ, *env_files.read(env_file)}, variables()):
        remedy = f"set {similar} instead" if similar else "remove it"
        found.append({"event": "settings.unknown", "variable": name, "remedy": f"{name} is not a setting: {remedy}"})
    return found


def default_control_socket() -> Path:
    """A path in the user's runtime folder, or in a folder for this user below the temporary folder."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return Path(base) / f"containerstacks-billing-{user}" / "control.sock"


def _read(setting: str, url: SecretStr | None, file: Path | None) -> str:
    if url is not None:
        return url.get_secret_value()
    if file is None:
        raise SettingsError(f"{setting} is not set")
    text = _read_text(f"{setting}_FILE", file).strip()
    if not text:
        raise SecretFileError(f"{setting}_FILE={file} is empty: write a PostgreSQL URL to it")
    try:
        check_url(text, f"{setting}_FILE")
    except SettingsError as error:
        raise SecretFileError(str(error)) from None
    return text


def _read_text(setting: str, file: Path) -> str:
    if file.exists() and not file.is_file():
        raise SettingsError(
            f"{setting}={file} is not a regular file, so it can't be read again for each connection:"
            " write the URL to a file"
        )
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SecretFileError(f"{setting}={file} can't be read: {reason}") from None


def _one_line(error: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    name = str(error["loc"][0])
    value = os.environ.get(name)
    shown = f"={value}" if value is not None and not name.startswith("DATABASE_") else ""
    message = str(error["msg"])
    if wording := re.match(r"(?:Input|String|Value) should ", message):
        return f"{name}{shown} must {message[wording.end() :]}"
    return f"{name}{shown} is wrong: {message[0].lower()}{message[1:]}"
