"""Checks a PostgreSQL URL before libpq sees it, so that no error message can quote a part of its password."""

import re

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from controller.errors import SettingsError


def check_url(url: str, setting: str) -> None:
    """Refuses a URL that libpq would misread, or would reject with a message that quotes part of the password.

    Raises:
        SettingsError: names `setting` and the remedy, never the value.
    """
    if not url.isprintable():  # line breaks, NUL, and bytes that are not text
        raise SettingsError(f"{setting} holds characters that can't be part of a URL; check that it holds the URL")
    if "://" in url:
        _check_parts(url, setting)
    try:
        conninfo_to_dict(url)
    except (ProgrammingError, UnicodeError) as error:
        if unknown := _unknown_parameter(url, str(error)):
            raise SettingsError(
                f"{setting} has the parameter {unknown}, which belongs to another client; remove it"
                + (" (options=-csearch_path%3Dname chooses a schema)" if unknown == "schema" else "")
            ) from None
        raise SettingsError(
            f"{setting} can't be read as a PostgreSQL URL or connection string; write"
            " postgresql://user:password@host:5432/database, with the password percent-encoded"
        ) from None


def _unknown_parameter(url: str, error: str) -> str | None:
    """Returns the URL parameter that libpq rejected. Only names after the `?` count, so no secret is returned."""
    query = url.rpartition("@")[2].partition("?")[2] if "://" in url else ""
    names = (part.partition("=")[0] for part in query.split("&") if "=" in part)
    return next((name for name in names if re.fullmatch(r"\w{1,40}", name) and f'"{name}"' in error), None)


def _check_parts(url: str, setting: str) -> None:
    scheme, _, rest = url.partition("://")
    if scheme not in {"postgresql", "postgres"}:
        raise SettingsError(f"{setting} must begin with postgresql://, or be a libpq connection string")
    # libpq looks for the @ before it looks for the path or the query, so no other @ may stand anywhere.
    userinfo, _, location = rest.rpartition("@")
    hosts, path = re.fullmatch(r"([^/?]*)(.*)", location).groups()  # type: ignore[union-attr] # matches all
    bare_hosts = re.sub(r"\[[^\]]*\]", "", hosts)
    if (
        "#" in rest
        or re.search(r"%(?![0-9a-fA-F]{2})", rest)
        or re.search(r"[@/?\[\]]", userinfo)
        or not re.fullmatch(r"[\w.\-,:%]*", bare_hosts)
        or re.search(r":(?!\d*(,|$))", bare_hosts)
    ):
        raise SettingsError(
            f"{setting} can't be read: percent-encode the characters @ : / ? # [ ] % in the user name and the"
            " password (@ is %40, # is %23, / is %2F)"
        )
    if not hosts and "host" not in path.partition("?")[2]:
        raise SettingsError(f"{setting} names no host; write postgresql://user:password@host:5432/database")
