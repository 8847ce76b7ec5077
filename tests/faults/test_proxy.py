"""The proxy fails as a network does. Otherwise the other tests would prove nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.faults.proxy import Proxy
from tests.faults.wire import ClientStream
from tests.support.waiting import eventually, through


@pytest.fixture
def proxied(database: str, proxy: Proxy) -> str:
    return through(database, proxy.port)


@pytest.fixture
def session(proxied: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(proxied, autocommit=True, application_name="patient one") as conn:
        yield conn


def test_proxy_knows_sessions_and_their_statements(session: psycopg.Connection[Any], proxy: Proxy) -> None:
    for _ in range(7):  # psycopg prepares the sixth execution
        session.execute("select %s::int -- why", [1])
    with session.transaction():
        session.execute("select 2")
    (link,) = proxy.links("patient")
    assert [each.sql for each in link.statements] == ["select $1::int"] * 8 + ["BEGIN", "select 2", "COMMIT"]
    assert [each.number for each in link.statements] == list(range(1, 12))


def test_statement_held_before_has_not_reached_the_server(session: psycopg.Connection[Any], proxy: Proxy) -> None:
    session.execute("create table marks (n int)")
    with proxy.hold("patient", lambda statement: "insert" in statement.sql) as hold:
        writer = threading.Thread(target=session.execute, args=("insert into marks values (1)",))
        writer.start()
        assert hold.wait().label == "insert into marks values"
        with psycopg.connect(session.info.dsn) as other:
            assert other.execute("select count(*) from marks").fetchone() == (0,)
    writer.join(10)
    assert session.execute("select count(*) from marks").fetchone() == (1,)


def test_statement_held_after_has_taken_effect_and_is_not_answered(
    session: psycopg.Connection[Any], proxy: Proxy
) -> None:
    session.execute("create table marks (n int)")
    with proxy.hold("patient", lambda statement: "insert" in statement.sql, "after") as hold:
        writer = threading.Thread(target=session.execute, args=("insert into marks values (1)",))
        writer.start()
        hold.wait()
        with psycopg.connect(session.info.dsn) as other:
            assert other.execute("select count(*) from marks").fetchone() == (1,)
        assert writer.is_alive()
    writer.join(10)
    assert not writer.is_alive()


def test_cut_ends_both_sides(session: psycopg.Connection[Any], proxy: Proxy, database: str) -> None:
    assert proxy.cut("somebody else") == 0
    assert proxy.cut("patient") == 1
    with pytest.raises(psycopg.OperationalError):
        session.execute("select 1")
    with psycopg.connect(database, autocommit=True) as direct:

        def gone() -> bool:
            row = direct.execute("select count(*) from pg_stat_activity where application_name = 'patient one'")
            return row.fetchone() == (0,)

        eventually(gone, "the server has noticed")


@pytest.mark.parametrize("way", ["up", "down"])
def test_stall_keeps_answers_away_until_it_ends(session: psycopg.Connection[Any], proxy: Proxy, way: Any) -> None:  # noqa: ANN401
    answered = threading.Event()

    def ask() -> None:
        session.execute("select 1")
        answered.set()

    proxy.stall(way)
    asking = threading.Thread(target=ask)
    asking.start()
    assert not answered.wait(0.2)
    proxy.resume()
    assert answered.wait(10)
    asking.join(10)


def test_stalled_connections_stay_silent_while_new_ones_pass(
    session: psycopg.Connection[Any], proxied: str, proxy: Proxy
) -> None:
    proxy.stall_present()
    with psycopg.connect(proxied) as fresh:
        assert fresh.execute("select 1").fetchone() == (1,)
    proxy.cut("patient")


def test_refused_connections_are_accepted_later(proxied: str, proxy: Proxy) -> None:
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(proxied, connect_timeout=5)
    proxy.accept()
    with psycopg.connect(proxied) as conn:
        assert conn.execute("select 1").fetchone() == (1,)


def test_client_stream_gives_whole_round_trips_however_bytes_arrive() -> None:
    startup = b"\0\0\0\x21\0\x03\0\0user\0a\0application_name\0x\0\0"
    startup = len(startup).to_bytes(4, "big") + startup[4:]
    query = b"Q\0\0\0\x0dselect 1\0"
    stream = ClientStream()
    pieces = [each for byte in startup + query for each in stream.feed(bytes([byte]))]
    assert [chunk for chunk, _ in pieces] == [startup, query]
    assert stream.application_name == "x"
    assert pieces[1][1] is not None
    assert pieces[1][1].sql == "select 1"
