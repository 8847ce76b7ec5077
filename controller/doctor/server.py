"""Checks of the settings, and of the way to the server."""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Final

from psycopg.conninfo import conninfo_to_dict

from controller import settings, sql
from controller.doctor.findings import Finding, Level, as_finding
from controller.doctor.patient import SESSION, Patient
from controller.postgres.bounded_connection import BoundedConnection
from controller.postgres.connections import PoolerError, is_pooled

OLDEST_VERSION: Final = 14
#: A difference between the clocks that would confuse someone who compares two logs.
SKEW_SECONDS: Final = 5.0
VERIFYING: Final = {"verify-ca", "verify-full"}


def variables(_patient: Patient) -> Iterator[Finding]:
    """Reports variables that look like settings but aren't, and a `.env` that others can read."""
    found = settings.warnings()
    for warning in found:
        message, _, remedy = warning["remedy"].rpartition(": ")
        yield Finding("variables", Level.WARNING, message, remedy)
    if not found:
        yield Finding("variables", Level.OK, "no variable is unknown")


def bounds(patient: Patient) -> Iterator[Finding]:
    """Shows the election's bounds. Settings in the wrong order are refused when they are read."""
    of = patient.application.settings.bounds
    yield Finding(
        "bounds",
        Level.OK,
        f"ping {of.ping_interval_seconds:g} s < leader's deadline {of.leader_deadline_seconds:g} s"
        f" < session timeout {of.session_timeout_seconds:g} s",
    )


def url(patient: Patient) -> Iterator[Finding]:
    """Shows where the connection strings lead. Raises SettingsError if one can't be read."""
    application = patient.application
    names = dict.fromkeys(("DATABASE_URL", application.settings.direct_url_setting))
    for name in names:
        read = application.settings.read_url if name == "DATABASE_URL" else application.settings.read_direct_url
        given = conninfo_to_dict(read())
        where = f"{given.get('host') or 'the default host'}:{given.get('port') or 5432}/{given.get('dbname') or ''}"
        yield Finding("url", Level.OK, f"{name}: {where} as {given.get('user') or 'the default user'}")


def connection(patient: Patient) -> Iterator[Finding]:
    """Connects. Raises DatabaseUnreachableError."""
    began = time.monotonic()
    session = patient.connect()
    milliseconds = (time.monotonic() - began) * 1000
    yield Finding("connection", Level.OK, f"connected to {_host(session) or 'a Unix socket'} in {milliseconds:.0f} ms")


def tls(patient: Patient) -> Iterator[Finding]:
    """Checks that the connection is encrypted and that the server has proved its identity."""
    session = patient.session
    mode = next(
        (option.val.decode() for option in session.pgconn.info if option.keyword == b"sslmode" and option.val), ""
    )
    if not session.pgconn.ssl_in_use:
        local = _is_local(session)
        yield Finding(
            "tls",
            Level.OK if local else Level.WARNING,
            "not encrypted, and the server is on this host" if local else f"{_host(session)}: not encrypted",
            "" if local else "append sslmode=verify-full to the URL, and set DATABASE_CA_FILE",
        )
    elif mode not in VERIFYING:
        yield Finding(
            "tls",
            Level.WARNING,
            f"encrypted, but sslmode={mode} accepts any certificate",
            "set DATABASE_CA_FILE, or append sslmode=verify-full to the URL",
        )
    else:
        yield Finding("tls", Level.OK, f"encrypted, sslmode={mode}")


def version(patient: Patient) -> Iterator[Finding]:
    """Checks the server's version, and that it accepts writes."""
    with patient.reading() as session:
        row = sql.row(session, "doctor_server")
    major = row["version_number"] // 10000
    if major < OLDEST_VERSION:
        yield Finding("server", Level.FAILURE, f"PostgreSQL {row['version']}", f"use {OLDEST_VERSION} or newer")
    else:
        yield Finding("server", Level.OK, f"PostgreSQL {row['version']}, role {row['role']}")
    if row["in_recovery"]:
        yield Finding(
            "server",
            Level.FAILURE,
            "this is a standby server, which accepts no writes",
            "connect to the primary: list every host in the URL, with target_session_attrs=read-write",
        )


def clock(patient: Patient) -> Iterator[Finding]:
    """Compares this host's clock with the database's, which alone decides what is due."""
    with patient.reading() as session:
        before, began = datetime.now(UTC), time.monotonic()
        row = sql.row(session, "doctor_server")
        half_trip = (time.monotonic() - began) / 2
    skew = (row["database_time"] - before).total_seconds() - half_trip
    if abs(skew) > SKEW_SECONDS + half_trip:
        order = "ahead of" if skew > 0 else "behind"
        yield Finding(
            "clock",
            Level.WARNING,
            f"the database's clock is {abs(skew):.0f} s {order} this host's",
            "synchronize both; billing follows the database's clock, but times in the logs are this host's",
        )
    else:
        yield Finding("clock", Level.OK, f"within {abs(skew) + half_trip:.1f} s of the database's")


def pooler(patient: Patient) -> Iterator[Finding]:
    """Checks that the lock session can keep its backend, and that both URLs lead to the same server."""
    application, setting = patient.application, patient.application.settings.direct_url_setting
    pooled = is_pooled(patient.session)
    if pooled:
        yield Finding("pooler", Level.OK, "DATABASE_URL leads through a pooler; workers may use it in any mode")
    try:
        direct = application.direct.connect(replace(SESSION, direct=True))
    except PoolerError as error:
        yield as_finding("pooler", Level.FAILURE, str(error))
        return
    with direct:
        how = "through a pooler that keeps sessions" if is_pooled(direct) else "to PostgreSQL itself"
        yield Finding("pooler", Level.OK, f"the lock session ({setting}) leads {how}")
        if setting == "DATABASE_DIRECT_URL":
            identities = [sql.row(session, "doctor_identity") for session in (direct, patient.session)]
            if identities[0] != identities[1]:
                yield Finding(
                    "pooler",
                    Level.FAILURE,
                    "DATABASE_URL and DATABASE_DIRECT_URL lead to different databases",
                    "make both lead to one database on one server",
                )


def _host(session: BoundedConnection) -> str:
    host = session.info.host
    return "" if host.startswith("/") else host


def _is_local(session: BoundedConnection) -> bool:
    address = session.info.hostaddr
    return not _host(session) or (bool(address) and ip_address(address).is_loopback)
