"""Settings: every wrong value is one line that names its variable, and no message ever holds a part of a password."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller import settings as controller_settings
from controller.errors import DatabaseUnreachableError, SettingsError
from controller.postgres.connections import Database

URL = "postgresql://user:secret@db.example:5432/app"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing of this machine's settings, and a folder without a `.env`."""
    for name in list(os.environ):
        if name.startswith(("PG", "BILLING_", "DATABASE_", "LOG_", "POD_", "NODE_", "NOTIFY_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    yield


def load(**environment: str) -> controller_settings.Settings:
    """Reads the settings with these variables, and those alone."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return controller_settings.load()


def refusal(**environment: str) -> str:
    """The line with which the settings are refused."""
    with pytest.raises(SettingsError) as refused:
        loaded = load(**environment)
        loaded.require_database()
    assert refused.value.exit_status == 2
    assert refused.value.__cause__ is None, "a cause would be printed with its values"
    line = str(refused.value)
    assert len(line.splitlines()) == 1
    return line


def test_defaults_are_those_of_the_design() -> None:
    loaded = load(DATABASE_URL=URL)
    assert (loaded.interval_minutes, loaded.workers, loaded.batch_size) == (60, 2, 2000)
    assert (loaded.default_hourly_rate, loaded.currency) == (Decimal("0.027"), "USD")
    assert (loaded.takeover_delay_seconds, loaded.drain_timeout_seconds, loaded.heartbeat_seconds) == (300, 270, 60)
    assert (loaded.log_level, loaded.log_format, loaded.lock_name) == ("info", None, "containerstacks-billing")
    bounds = loaded.bounds
    assert (bounds.ping_interval_seconds, bounds.leader_deadline_seconds, bounds.session_timeout_seconds) == (2, 6, 10)


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
        ("LOG_LEVEL", "verbose"),
        ("LOG_FORMAT", "xml"),
        ("BILLING_KUBERNETES", "maybe"),
    ],
)
def test_wrong_value_is_one_line_that_begins_with_its_variable(name: str, value: str) -> None:
    line = refusal(DATABASE_URL=URL, **{name: value})
    assert line.startswith(name)
    assert "secret" not in line


def test_several_wrong_values_are_all_in_the_line() -> None:
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
def test_levels_may_be_written_as_people_write_them(value: str) -> None:
    assert load(DATABASE_URL=URL, LOG_LEVEL=value).log_level == "warn"


def test_empty_value_is_as_none_at_all() -> None:
    assert load(DATABASE_URL=URL, BILLING_WORKERS="").workers == 2


@pytest.mark.parametrize("value", ["none", "NONE", "off"])
def test_rate_socket_and_address_can_be_switched_off(value: str) -> None:
    loaded = load(
        DATABASE_URL=URL,
        BILLING_DEFAULT_HOURLY_RATE=value,
        BILLING_CONTROL_SOCKET=value,
        BILLING_HTTP_ADDRESS=value,
    )
    assert (loaded.default_monthly_price, loaded.control_socket, loaded.http_address) == (None, None, None)


def test_database_must_be_named_once() -> None:
    assert refusal().startswith("DATABASE_URL is not set")
    assert refusal(DATABASE_URL=URL, DATABASE_URL_FILE="/x").startswith("DATABASE_URL and DATABASE_URL_FILE")
    both = refusal(DATABASE_URL=URL, DATABASE_DIRECT_URL=URL, DATABASE_DIRECT_URL_FILE="/x")
    assert both.startswith("DATABASE_DIRECT_URL and DATABASE_DIRECT_URL_FILE")


def test_url_in_a_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(f"\n {URL}\n\n")
    loaded = load(DATABASE_URL_FILE=str(file))
    assert (loaded.read_url(), loaded.read_direct_url()) == (URL, URL)
    assert loaded.secrets() == ["secret"]
    file.write_text(URL.replace("secret", "rotated"))
    assert "rotated" in loaded.read_url()
    assert loaded.secrets() == ["rotated"]


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe\x00", b"no url at all", b"postgresql://u:p\0w@h/db"])
def test_file_that_holds_no_url_is_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "url"
    file.write_bytes(content)
    assert refusal(DATABASE_URL_FILE=str(file)).startswith("DATABASE_URL_FILE")


@pytest.mark.parametrize("name", ["missing", "."])
def test_file_that_can_not_be_read_is_one_line(tmp_path: Path, name: str) -> None:
    assert refusal(DATABASE_URL_FILE=str(tmp_path / name)).startswith("DATABASE_URL_FILE")


def test_env_file_is_read_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"DATABASE_URL={URL}\nBILLING_WORKERS=3\nLOG_LEVEL=debug\nOTHER=1\n")
    loaded = load(LOG_LEVEL="error")
    assert (loaded.read_url(), loaded.workers, loaded.log_level) == (URL, 3, "error")


def test_wrong_value_in_an_env_file_names_its_variable(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"DATABASE_URL={URL}\nBILLING_WORKERS=none\n")
    assert refusal().startswith("BILLING_WORKERS")


@pytest.mark.parametrize("content", [b"DATABASE_URL=postgresql://u:p\xe4ss@h/db\n", b"\xff\xfe"])
def test_env_file_that_is_not_utf_8_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".env").write_bytes(content)
    assert ".env" in refusal()


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True), (0o644, True)])
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_env_file_that_others_can_read_is_warned_about(tmp_path: Path, mode: int, *, warned: bool) -> None:
    file = tmp_path / ".env"
    assert controller_settings.env_file_warning(file) is None
    file.write_text("DATABASE_URL=x")
    file.chmod(mode)
    warning = controller_settings.env_file_warning(file)
    assert (warning is not None) is warned
    assert warning is None or "chmod 600" in warning


@pytest.mark.parametrize(
    "url",
    [
        URL,
        "postgres://user@db.example/app",
        "postgresql://user:p%40ss%23w%2Frd@db.example/app",
        "postgresql://user:secret@one:5432,two:5433/app?target_session_attrs=read-write",
        "postgresql://user:secret@[::1]:5432/app",
        "postgresql:///app?host=/run/postgresql",
        "postgresql://user:secret@/app?host=/run/postgresql&port=5433",
        "postgresql://user:secret@db.example/app?sslmode=require",
        "host=db.example user=user password='p@ss w#rd' dbname=app",
    ],
)
def test_good_url_is_taken_as_it_is(url: str) -> None:
    assert load(DATABASE_URL=url).read_url() == url


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:hunter2@db.example/app",
        "PostgreSQL://user:hunter2@db.example/app",
        "postgresql:/user:hunter2@db.example/app",
        "user:hunter2@db.example/app",
        "postgresql://user:hunter2@db.example:54x32/app",
        "postgresql://user:hunter2@db.example:99999/app",
        "postgresql://user:hunter2@db.example:/app:5432 x",
        "postgresql://user@db.example:hunter2/app",
        "postgresql://user:hunter2",
        "postgresql://user:hunter2/app",
        "postgresql://user:123456789/app",
        "postgresql://user:hunter2@",
        "postgresql://user:hunter2@/app",
        "postgresql://us[er:hunter2@/app?host=/tmp",
        "postgresql://user:hunter2\u2100x@/app?host=/tmp",
        "postgresql://user:hunter2@[::1/app",
        "postgresql://user:hunter2@db.example/app?sslmod=require",
        "postgresql://user:hunter2@db.example/app?sslmode",
        "host=db.example password=hunter2 x",
        "host=db.example pass=hunter2",
        "host=db.example password='hunter2",
        "password=hunter2 port=x",
        "\udce4hunter2",
        "postgresql://user:hunter2\udce4@db.example/app",
        "hunter2",
        "=hunter2",
    ],
)
def test_mistake_in_a_url_is_one_line_without_its_password(url: str) -> None:
    """Whether the settings see the mistake or, later, libpq."""
    told = everything_said(url)
    assert "hunter2" not in told
    assert "123456789" not in told
    assert "DATABASE_URL" in told
    assert len(told.splitlines()) == 1


MISTAKES = ["@", "/", "#", "?", "%", ":", "[", "]", "&", "=", "'", '"', "\\", " ", ",", ";", "+", "$", "\t", "é", "\u2100"]
SECRET = "zq7kx"
passwords = st.lists(st.sampled_from([SECRET, *MISTAKES]), min_size=1, max_size=6).map("".join)


@given(passwords)
@settings(max_examples=300, deadline=None)
@example("zq7kx?host=")
@example("1?zq7kx")
@example("zq7kx@")
def test_password_written_into_a_url_as_it_is_never_comes_out_again(password: str) -> None:
    for url in (
        f"postgresql://user:{password}@127.0.0.1:1/app",
        f"postgresql://user:{password}@/app?host=/nowhere",
        f"postgresql://{password}:{password}@127.0.0.1:1/app?connect_timeout=1",
        f"host=127.0.0.1 port=1 user=user password={password} dbname=app",
        f"host=127.0.0.1 port=1 user=user password='{password}' dbname=app",
    ):
        assert SECRET not in everything_said(url), url


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_password_that_is_encoded_arrives_as_it_was(password: str) -> None:
    url = f"postgresql://user:{quote(password, safe='')}@db.example/app"
    loaded = load(DATABASE_URL=url)
    assert psycopg.conninfo.conninfo_to_dict(loaded.read_url())["password"] == password
    assert loaded.secrets() == [password]


def test_settings_show_no_password_in_any_form() -> None:
    loaded = load(DATABASE_URL=URL, DATABASE_DIRECT_URL=URL)
    for text in (repr(loaded), str(loaded), str(loaded.model_dump()), loaded.model_dump_json(), f"{loaded!r}"):
        assert "secret" not in text
    database = Database(loaded.read_url, "DATABASE_URL", "host-1")
    assert "secret" not in repr(database)


def everything_said(url: str) -> str:
    """What a person sees of a URL's mistake: of the settings, else of the attempt to connect."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DATABASE_URL", url)
            loaded = controller_settings.load()
            loaded.require_database()
            with Database(loaded.read_url, "DATABASE_URL", "host-1").connect():
                return "DATABASE_URL works"
    except (SettingsError, DatabaseUnreachableError) as error:
        return str(error)
