"""Every wrong value is reported in one line that names its variable. No message contains part of a password."""

from __future__ import annotations

import os
import re
from decimal import Decimal
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from controller import env_file
from controller import settings as controller_settings
from controller.errors import SecretFileError, SettingsError
from tests.support.settings import load

pytestmark = pytest.mark.usefixtures("no_settings")

URL = "postgresql://user:secret@db.example:5432/app"


def refusal(**environment: str) -> str:
    """The error line for these variables."""
    with pytest.raises(SettingsError) as refused:
        load(**environment).require_database()
    assert refused.value.exit_status == 2
    assert refused.value.__cause__ is None, "a chained exception would print its values"
    line = str(refused.value)
    assert len(line.splitlines()) == 1
    return line


def test_defaults_are_those_of_the_design() -> None:
    loaded = load(DATABASE_URL=URL)
    assert (loaded.interval_minutes, loaded.workers, loaded.batch_size) == (60, 2, 3000)
    assert (loaded.default_hourly_rate, loaded.currency) == (Decimal("0.027"), "USD")
    assert (loaded.takeover_delay_seconds, loaded.drain_timeout_seconds, loaded.heartbeat_seconds) == (300, 270, 60)
    assert (loaded.log_level, loaded.log_format, loaded.lock_name) == ("info", None, "containerstacks-billing")
    assert loaded.eviction == "on"
    bounds = loaded.bounds
    assert (bounds.ping_interval_seconds, bounds.leader_deadline_seconds, bounds.session_timeout_seconds) == (2, 5, 10)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BILLING_INTERVAL_MINUTES", "0"),
        ("BILLING_INTERVAL_MINUTES", "-5"),
        ("BILLING_INTERVAL_MINUTES", "nan"),
        ("BILLING_INTERVAL_MINUTES", "inf"),
        ("BILLING_INTERVAL_MINUTES", "hourly"),
        ("BILLING_WORKERS", "0"),
        ("BILLING_WORKERS", "17"),
        ("BILLING_WORKERS", "2.5"),
        ("BILLING_WORKERS", "two\nthree"),
        ("BILLING_BATCH_SIZE", "0"),
        ("BILLING_BATCH_SIZE", "1e9"),
        ("BILLING_DEFAULT_HOURLY_RATE", "-0.01"),
        ("BILLING_DEFAULT_HOURLY_RATE", "NaN"),
        ("BILLING_DEFAULT_HOURLY_RATE", "Infinity"),
        ("BILLING_DEFAULT_HOURLY_RATE", "free"),
        ("BILLING_CURRENCY", "usd"),
        ("BILLING_CURRENCY", "USDT"),
        ("BILLING_CURRENCY", "USD\n"),
        ("BILLING_LOCK_NAME", "x" * 201),
        ("BILLING_TAKEOVER_DELAY_SECONDS", "-1"),
        ("BILLING_TAKEOVER_DELAY_SECONDS", "nan"),
        ("BILLING_PING_INTERVAL_SECONDS", "0"),
        ("BILLING_PING_INTERVAL_SECONDS", "nan"),
        ("BILLING_LEADER_DEADLINE_SECONDS", "nan"),
        ("BILLING_SESSION_TIMEOUT_SECONDS", "nan"),
        ("BILLING_EVICTION", "maybe"),
        ("BILLING_HEARTBEAT_SECONDS", "0"),
        ("BILLING_HEARTBEAT_SECONDS", "nan"),
        ("BILLING_STATUS_RETENTION_DAYS", "0"),
        ("BILLING_DRAIN_TIMEOUT_SECONDS", "-1"),
        ("BILLING_DRAIN_TIMEOUT_SECONDS", "nan"),
        ("BILLING_DRAIN_TIMEOUT_SECONDS", "inf"),
        ("BILLING_HTTP_ADDRESS", "8080"),
        ("BILLING_HTTP_ADDRESS", "localhost"),
        ("BILLING_HTTP_ADDRESS", "localhost:http"),
        ("BILLING_HTTP_ADDRESS", "localhost:65536"),
        ("BILLING_HTTP_ADDRESS", "localhost:²"),
        ("BILLING_HTTP_ADDRESS", "local\nhost"),
        ("BILLING_PAGE_ADDRESS", "8081"),
        ("BILLING_PAGE_ADDRESS", "localhost:65536"),
        ("LOG_LEVEL", "verbose"),
        ("LOG_FORMAT", "xml"),
        ("BILLING_KUBERNETES", "maybe"),
    ],
)
def test_wrong_value_is_one_line_that_begins_with_its_variable(name: str, value: str) -> None:
    line = refusal(DATABASE_URL=URL, **{name: value})
    assert line.startswith(name)
    assert "secret" not in line


def test_line_names_every_wrong_value() -> None:
    line = refusal(DATABASE_URL=URL, BILLING_WORKERS="0", LOG_LEVEL="loud", BILLING_CURRENCY="x")
    for name in ("BILLING_WORKERS", "LOG_LEVEL", "BILLING_CURRENCY"):
        assert name in line


@pytest.mark.parametrize(
    "bounds",
    [("3.1", "6", "10"), ("2", "9.1", "10"), ("2", "6", "6"), ("10", "6", "2")],
)
def test_bounds_in_the_wrong_order_are_refused(bounds: tuple[str, str, str]) -> None:
    ping, deadline, timeout = bounds
    line = refusal(
        DATABASE_URL=URL,
        BILLING_PING_INTERVAL_SECONDS=ping,
        BILLING_LEADER_DEADLINE_SECONDS=deadline,
        BILLING_SESSION_TIMEOUT_SECONDS=timeout,
    )
    assert re.match("BILLING_(LEADER_DEADLINE|SESSION_TIMEOUT)_SECONDS=", line)


@pytest.mark.parametrize("value", ["WARN", " Warn ", "warn"])
def test_log_level_ignores_case_and_surrounding_space(value: str) -> None:
    assert load(DATABASE_URL=URL, LOG_LEVEL=value).log_level == "warn"


@pytest.mark.parametrize("value", ["off", "OFF", " Off "])
def test_eviction_can_be_switched_off(value: str) -> None:
    assert load(DATABASE_URL=URL, BILLING_EVICTION=value).eviction == "off"


def test_empty_value_counts_as_unset() -> None:
    assert load(DATABASE_URL=URL, BILLING_WORKERS="").workers == 2


@pytest.mark.parametrize("value", ["none", "NONE", "off"])
def test_rate_socket_and_address_can_be_none(value: str) -> None:
    loaded = load(
        DATABASE_URL=URL,
        BILLING_DEFAULT_HOURLY_RATE=value,
        BILLING_CONTROL_SOCKET=value,
        BILLING_HTTP_ADDRESS=value,
    )
    assert (loaded.default_monthly_price, loaded.control_socket, loaded.http_address) == (None, None, None)


def test_exactly_one_database_setting_is_required() -> None:
    assert refusal().startswith("DATABASE_URL is not set")
    assert refusal(DATABASE_URL=URL, DATABASE_URL_FILE="/x").startswith("DATABASE_URL and DATABASE_URL_FILE")
    both = refusal(DATABASE_URL=URL, DATABASE_DIRECT_URL=URL, DATABASE_DIRECT_URL_FILE="/x")
    assert both.startswith("DATABASE_DIRECT_URL and DATABASE_DIRECT_URL_FILE")


def test_url_in_a_file_is_read_again_each_time(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(f"\n {URL}\n\n")
    loaded = load(DATABASE_URL_FILE=str(file))
    assert (loaded.read_url(), loaded.read_direct_url()) == (URL, URL)
    assert loaded.secrets() == ["secret"]
    file.write_text(URL.replace("secret", "rotated"))
    assert "rotated" in loaded.read_url()
    assert loaded.secrets() == ["rotated"]


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe\x00", b"no url at all", b"postgresql://u:p\0w@h/db"])
def test_file_without_a_url_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "url"
    file.write_bytes(content)
    assert refusal(DATABASE_URL_FILE=str(file)).startswith("DATABASE_URL_FILE")


@pytest.mark.parametrize("name", ["missing", "."])
def test_unreadable_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    assert refusal(DATABASE_URL_FILE=str(tmp_path / name)).startswith("DATABASE_URL_FILE")


def test_env_file_is_read_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"DATABASE_URL={URL}\nBILLING_WORKERS=3\nLOG_LEVEL=debug\nOTHER=1\n")
    loaded = load(LOG_LEVEL="error")
    assert (loaded.read_url(), loaded.workers, loaded.log_level) == (URL, 3, "error")


def test_wrong_value_in_an_env_file_names_its_variable(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"DATABASE_URL={URL}\nBILLING_WORKERS=none\n")
    assert refusal().startswith("BILLING_WORKERS")


@pytest.mark.parametrize("content", [b"DATABASE_URL=postgresql://u:p\xe4ss@h/db\n", b"\xff\xfe"])
def test_env_file_that_is_not_utf_8_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".env").write_bytes(content)
    assert ".env" in refusal()


@pytest.mark.parametrize("password", ["a${b}c", "a$bc", "${HOME}", "a%24%7Bb%7D", "$$"])
def test_password_in_an_env_file_is_literal(tmp_path: Path, password: str) -> None:
    url = f"postgresql://user:{password}@db.example/app"
    for written in (url, f"'{url}'", f'"{url}"'):
        (tmp_path / ".env").write_text(f"b=interpolated\nDATABASE_URL={written}\n")
        assert load(b="environment").read_url() == url


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("BILLING_INTERVALL_MINUTES", "BILLING_INTERVAL_MINUTES"),
        ("BILING_WORKERS", "BILLING_WORKERS"),
        ("DATABASE_URI", "DATABASE_URL"),
        ("BILLING_ENTIRELY_NEW", None),
    ],
)
def test_variable_that_looks_like_a_setting_causes_a_warning(tmp_path: Path, name: str, similar: str | None) -> None:
    (tmp_path / ".env").write_text(f"DATABASE_URL={URL}\n{name}=hunter2\n")
    (warning,) = [each for each in controller_settings.warnings() if each["event"] == "settings.unknown"]
    assert warning["variable"] == name
    assert (f"set {similar} instead" if similar else "remove it") in warning["remedy"]
    assert "hunter2" not in str(warning)


def test_variables_of_others_cause_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("BILLING_SERVICE_HOST", "BILLING_SERVICE_PORT_HTTP", "BILLING_PORT", "BILLING_PORT_8080_TCP_ADDR"),
        *("DATABASE_HOST", "DATABASE_NAME", "LOG_DIR", "POD_IP", "PGHOST"),
    ):
        monkeypatch.setenv(name, "x")
    assert [each["variable"] for each in controller_settings.warnings() if each["event"] == "settings.unknown"] == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_file_that_can_be_read_only_once_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "is not a regular file" in refusal(DATABASE_URL_FILE=str(tmp_path / "fifo"))
    reader, writer = os.pipe()
    try:
        os.write(writer, URL.encode())
        assert "is not a regular file" in refusal(DATABASE_URL_FILE=f"/dev/fd/{reader}")
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True), (0o644, True)])
@pytest.mark.skipif(os.name == "nt", reason="Windows has no file modes")
def test_env_file_that_others_can_read_causes_a_warning(tmp_path: Path, mode: int, *, warned: bool) -> None:
    file = tmp_path / ".env"
    assert env_file.exposed(file) is None
    file.write_text("DATABASE_URL=x")
    file.chmod(mode)
    warning = env_file.exposed(file)
    assert (warning is not None) is warned
    assert warning is None or "chmod 600" in warning


@pytest.fixture
def credentials(tmp_path: Path) -> dict[str, str]:
    """The settings of a URL whose credentials are in files."""
    (tmp_path / "username").write_text("billing", "utf-8")
    (tmp_path / "password").write_text("p@ss: 'w\\ord'#?/ü\n", "utf-8")
    return {
        "DATABASE_URL": "postgresql://one:1,two:2/app?target_session_attrs=read-write",
        "DATABASE_USERNAME_FILE": str(tmp_path / "username"),
        "DATABASE_PASSWORD_FILE": str(tmp_path / "password"),
    }


def test_credentials_of_files_complete_both_urls_and_follow_a_rotation(credentials: dict[str, str]) -> None:
    loaded = load(**credentials, DATABASE_DIRECT_URL="postgresql://three/app")
    assert conninfo_to_dict(loaded.read_url()) == {
        "host": "one,two", "port": "1,2", "dbname": "app", "target_session_attrs": "read-write",
        "user": "billing", "password": "p@ss: 'w\\ord'#?/ü",
    }  # fmt: skip
    assert loaded.secrets() == ["p@ss: 'w\\ord'#?/ü"]
    Path(credentials["DATABASE_PASSWORD_FILE"]).write_text("next", "utf-8")
    assert conninfo_to_dict(loaded.read_direct_url())["password"] == "next"


@pytest.mark.parametrize("text", ["", "\n", "two\nlines", "with\0nul"])
def test_password_file_without_one_line_is_refused(credentials: dict[str, str], text: str) -> None:
    Path(credentials["DATABASE_PASSWORD_FILE"]).write_text(text, "utf-8")
    with pytest.raises(SecretFileError, match=r"^DATABASE_PASSWORD_FILE=\S+ must hold one line, the password$"):
        load(**credentials).read_url()


def test_password_in_two_places_is_refused(credentials: dict[str, str]) -> None:
    credentials["DATABASE_URL"] = "postgresql://billing:hunter2@db/app"
    del credentials["DATABASE_USERNAME_FILE"]
    with pytest.raises(SettingsError, match="holds a password and DATABASE_PASSWORD_FILE is set") as refused:
        load(**credentials).read_url()
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"sslrootcert": "/ca.crt", "sslmode": "verify-full"}),
        ("?sslmode=verify-ca", {"sslrootcert": "/ca.crt", "sslmode": "verify-ca"}),
        ("?sslrootcert=system", {"sslrootcert": "system"}),
    ],
)
def test_ca_file_verifies_the_servers_name_unless_the_url_says_otherwise(query: str, expected: dict[str, str]) -> None:
    url = load(DATABASE_URL=f"postgresql://u@db/app{query}", DATABASE_CA_FILE="/ca.crt").read_url()
    assert {key: text for key, text in conninfo_to_dict(url).items() if key.startswith("ssl")} == expected


def test_demo_ignores_variables_and_file_that_name_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("BILLING_INTERVAL_MINUTES=7\n", "utf-8")
    for name in controller_settings.database_variables():
        monkeypatch.setenv(name, str(tmp_path / "contradicts-the-others"))
    monkeypatch.setenv("BILLING_WORKERS", "3")
    loaded = controller_settings.load(None, ignored=controller_settings.database_variables())
    assert [name for name, value in loaded if name.startswith("database_") and value is not None] == []
    assert (loaded.workers, loaded.interval_minutes) == (3, 60)
    monkeypatch.setenv("DATABASE_URL", URL)
    asked = controller_settings.load(None, ignored=controller_settings.database_variables() - {"DATABASE_URL"})
    assert (asked.read_url(), asked.read_direct_url()) == (URL, URL)
