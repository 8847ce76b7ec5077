"""A valid URL is used unchanged. No message about a malformed URL contains part of its password."""

from __future__ import annotations

from urllib.parse import quote

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller import settings as controller_settings
from controller.errors import DatabaseUnreachableError, SettingsError
from controller.postgres.connections import Database
from tests.support.settings import load

pytestmark = pytest.mark.usefixtures("no_settings")

URL = "postgresql://user:secret@db.example:5432/app"


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
def test_valid_url_is_used_unchanged(url: str) -> None:
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
def test_malformed_url_is_refused_in_one_line_without_its_password(url: str) -> None:
    message = reported(url)
    assert "hunter2" not in message
    assert "123456789" not in message
    assert "DATABASE_URL" in message
    assert len(message.splitlines()) == 1


MISTAKES = [
    "@",
    "/",
    "#",
    "?",
    "%",
    ":",
    "[",
    "]",
    "&",
    "=",
    "'",
    '"',
    "\\",
    " ",
    ",",
    ";",
    "+",
    "$",
    "\t",
    "é",
    "\u2100",
]
SECRET = "zq7kx"
passwords = st.lists(st.sampled_from([SECRET, *MISTAKES]), min_size=1, max_size=6).map("".join)


@given(passwords)
@settings(max_examples=25, deadline=None)
@example("zq7kx?host=")
@example("1?zq7kx")
@example("zq7kx@")
@example("?@zq7kx")
@example("1?host=/zq7kx")
def test_unencoded_password_never_appears_in_a_message(password: str) -> None:
    for url in (
        f"postgresql://user:{password}@127.0.0.1:1/app",
        f"postgresql://user:{password}@/app?host=/nowhere",
        f"postgresql://{password}:{password}@127.0.0.1:1/app?connect_timeout=1",
        f"host=127.0.0.1 port=1 user=user password={password} dbname=app",
        f"host=127.0.0.1 port=1 user=user password='{password}' dbname=app",
    ):
        assert SECRET not in reported(url), url


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_encoded_password_is_decoded_unchanged(password: str) -> None:
    url = f"postgresql://user:{quote(password, safe='')}@db.example/app"
    loaded = load(DATABASE_URL=url)
    assert psycopg.conninfo.conninfo_to_dict(loaded.read_url())["password"] == password
    assert loaded.secrets() == [password]


def test_no_representation_of_the_settings_contains_a_password() -> None:
    loaded = load(DATABASE_URL=URL, DATABASE_DIRECT_URL=URL)
    for text in (repr(loaded), str(loaded), str(loaded.model_dump()), loaded.model_dump_json(), f"{loaded!r}"):
        assert "secret" not in text
    database = Database(loaded.read_url, "DATABASE_URL", "host-1")
    assert "secret" not in repr(database)


def reported(url: str) -> str:
    """The error of loading the settings with this URL or, if they accept it, of connecting."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DATABASE_URL", url)
            loaded = controller_settings.load()
            loaded.require_database()
            with Database(loaded.read_url, "DATABASE_URL", "host-1").connect():
                return "DATABASE_URL works"
    except (SettingsError, DatabaseUnreachableError) as error:
        return str(error)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("schema=public", "schema"),
        ("sslmode=require&pgbouncer=true&x=hunter2", "pgbouncer"),
        ("currentSchema=a", "currentSchema"),
    ],
)
def test_parameter_of_another_client_is_named_without_a_secret(query: str, named: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(DATABASE_URL=f"postgresql://user:hunter2@db.example/app?{query}")
    assert f"has the parameter {named}," in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert "encoded" not in str(refused.value)


@pytest.mark.parametrize("url", ["postgresql://db.example/app?hunter2", "host=db.example password=a hunter2=b"])
def test_what_may_be_a_part_of_a_password_is_not_named(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(DATABASE_URL=url)
    assert "hunter2" not in str(refused.value)
