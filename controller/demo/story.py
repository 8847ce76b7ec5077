"""The demo: three replicas on a PostgreSQL of their own; elected, killed, drained, audited, in under a minute.

Everything that is told is measured, everything with a tick is verified; what is not so ends it with status 1.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import FrameType

import psycopg

from controller import __version__
from controller.demo import sample
from controller.demo.books import Books
from controller.demo.chapters import SIZE, Chapters
from controller.demo.foreground import commands, keep_running
from controller.demo.proof import prove
from controller.demo.replicas import ExpectationError, Troupe, expect
from controller.demo.server import Server
from controller.demo.teller import Teller

__all__ = ["keep_running", "tell"]


def tell() -> int:
    """Tells the story on standard output.

    Returns:
        0 when all of it was so; 1 when something was not, which is then explained; 130 when it was interrupted.

    Raises:
        ServerError: there is no PostgreSQL to tell it with.
    """
    teller = Teller()
    teller.title(f"containerstacks-billing {__version__}: three replicas, one PostgreSQL, one leader")
    try:
        with _ended_by_sigterm(), _server(teller) as server, Troupe() as troupe:
            try:
                _tell(teller, server, troupe)
            except (ExpectationError, psycopg.Error) as error:
                _explain(teller, error)
                return 1
    except KeyboardInterrupt:
        teller.plain("interrupted; nothing is left behind")
        return 130
    _conclude(teller)
    return 0


@contextmanager
def _server(teller: Teller) -> Iterator[Server]:
    server = Server()
    try:
        with teller.waiting("starting a PostgreSQL"):
            server.start()
        yield server
    finally:
        server.remove()


def _tell(teller: Teller, server: Server, troupe: Troupe) -> None:
    teller.chapter("prepare")
    teller.say(f"{server.installation.title} runs, for this demo alone")
    with teller.waiting("making a ContainerStacks database"):
        url = server.create_database("containerstacks")
        with psycopg.connect(url, autocommit=True) as connection:
            sample.create_schema(connection)
            sample.create_data(connection, SIZE)
        migrated = troupe.run("migrate", settings={"DATABASE_URL": url})
        expect(migrated.returncode == 0, f"`migrate` succeeds; it says {migrated.stderr.strip()}")
    with closing(Books(url)) as books:
        chapters = Chapters(teller, troupe, books, url)
        chapters.open_books()
        chapters.elect()
        chapters.kill_the_leader()
        chapters.hand_over()
        prove(teller, troupe, books, url, chapters.funds)


def _explain(teller: Teller, error: ExpectationError | psycopg.Error) -> None:
    if not isinstance(error, ExpectationError):
        teller.failed(f"the demo's own session failed: {str(error).strip()}")
        return
    teller.failed(f"expected: {error}")
    for replica in error.replicas:
        status = replica.process.poll()
        teller.plain()
        teller.plain(
            f"The end of the log of {replica.name}, {'which runs' if status is None else f'which ended with {status}'}:"
        )
        for line in list(replica.tail):
            teller.plain(f"  {_readable(line)}", "dim")


def _conclude(teller: Teller) -> None:
    teller.plain()
    teller.plain(f"All of it was so, in {teller.seconds:.0f} s. Nothing is left behind.", "bold")
    teller.plain()
    for command, meaning in commands():
        teller.plain(f"  {command:<30} {meaning}")


def _readable(line: str) -> str:
    """A JSON line of a log as people read it: time, event, the rest."""
    try:
        fields = json.loads(line)
        head = f"{fields.pop('time')[11:23]} {fields.pop('event')}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return line
    rest = (f"{name}={text}" for name, text in fields.items() if name not in {"part", "level", "instance"})
    return " ".join((head, *rest))


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as an exception does, so that it cleans up."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
