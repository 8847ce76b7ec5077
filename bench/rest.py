"""What a leader and a standby cost while there is nothing to do: real processes, probed as Kubernetes probes them."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg

from bench.figures import Aim, Figure, Section
from bench.reload import changed_settings
from controller.demo.server import Server
from tests.faults.books import Books
from tests.faults.replica import Replica
from tests.faults.standing import wait_until_standing_by
from tests.servers import migrated_database

MIB: Final = 2**20
MEMORY: Final = Aim(80.0, held="worst")
QUERIES: Final = Aim(1.0)
READY: Final = Aim(2.0, held="worst")
#: The chart's.
PROBES: Final = {"/livez": 10.0, "/readyz": 5.0}
READY_LOOKS_EVERY_SECONDS: Final = 0.02
IMAGE: Final = "localhost/containerstacks-billing"


@dataclass
class AtRest:
    """Windows of one role."""

    resident: list[float] = field(default_factory=list)
    proportional: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    queries: list[float] = field(default_factory=list)
    connections: list[float] = field(default_factory=list)

    def figures(self, role: str) -> list[Figure]:
        """Of the role."""
        return [
            Figure(f"{role}: resident memory", "MiB", tuple(self.resident), MEMORY),
            Figure(f"{role}: memory, shared pages in parts", "MiB", tuple(self.proportional), MEMORY),
            Figure(f"{role}: processor time an hour", "s", tuple(self.processor)),
            Figure(f"{role}: statements at the server", "a second", tuple(self.queries), QUERIES),
            Figure(f"{role}: connections, the most at once", "", tuple(self.connections)),
        ]


def rest(server: Server, rounds: int, window_seconds: float) -> Section:
    """Each window measures a leader and its standby side by side, after the leader's first cycle.

    Raises:
        SystemExit: not on Linux, whose /proc it reads.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        raise SystemExit("figures at rest are read from Linux's /proc")
    ready: list[float] = []
    leading, standing = AtRest(), AtRest()
    with (
        migrated_database(server) as url,
        psycopg.connect(url, autocommit=True) as connection,
        ExitStack() as stack,
    ):
        books = Books(connection)
        books.add()
        for _ in range(rounds):
            with _started(url) as (replica, seconds, _port):
                ready.append(seconds)
                replica.terminate()
        leader, _, leader_port = stack.enter_context(_started(url))
        leader.wait_for("leader.elected")
        standby, _, standby_port = stack.enter_context(_started(url))
        wait_until_standing_by(books, standby)
        for port in (leader_port, standby_port):
            stack.enter_context(_probed(port))
        for number in range(rounds + 1):  # the first one warms up
            kept = (leading, standing) if number else (AtRest(), AtRest())
            _window(server, connection, dict(zip((leader, standby), kept, strict=True)), window_seconds)
            print(f"  window {number}" if number else "  warm-up", flush=True)
    return Section(
        "rest",
        "At rest",
        f"A leader and a standby with default settings and nothing due, {rounds} windows of {window_seconds:g} s,"
        f" /livez asked every {PROBES['/livez']:g} s and /readyz every {PROBES['/readyz']:g} s. Statements are counted"
        " in the server's log, by session; time to Ready is from exec to the first 200 of /readyz.",
        (
            *leading.figures("leader"),
            *standing.figures("standby"),
            Figure("exec to Ready", "s", tuple(ready), READY),
            *_image(),
        ),
    )


@contextmanager
def _started(url: str) -> Iterator[tuple[Replica, float, int]]:
    """A replica that is Ready, how long that took, and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    began = time.monotonic()
    replica = Replica(url, BILLING_HTTP_ADDRESS=f"127.0.0.1:{port}")
    try:
        nothing = threading.Event()
        while _status(port, "/readyz") != 200:  # noqa: PLR2004 - HTTP's OK
            if time.monotonic() - began > 30:  # noqa: PLR2004 - seconds
                raise SystemExit(f"a replica is not Ready:\n{replica.tail()}")
            nothing.wait(READY_LOOKS_EVERY_SECONDS)
        yield replica, time.monotonic() - began, port
    finally:
        replica.remove()


def _status(port: int, path: str) -> int | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@contextmanager
def _probed(port: int) -> Iterator[None]:
    """As the kubelet does."""
    stop = threading.Event()

    def probe(path: str, seconds: float) -> None:
        while not stop.wait(seconds):
            _status(port, path)

    threads = [threading.Thread(target=probe, args=each) for each in PROBES.items()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _window(
    server: Server, connection: psycopg.Connection[tuple[object, ...]], roles: dict[Replica, AtRest], seconds: float
) -> None:
    most: Counter[str] = Counter()
    with changed_settings(server, {"log_statement": "all"}):
        start = server.log_path.stat().st_size
        began = time.monotonic()
        spent = {replica: _processor_seconds(replica.pid) for replica in roles}
        nothing = threading.Event()
        while time.monotonic() - began < seconds:
            most |= _connections(connection)
            nothing.wait(0.25)
        elapsed = time.monotonic() - began
        said = _statements(server.log_path, start)
    for replica, kept in roles.items():
        resident, proportional = _memory(replica.pid)
        kept.resident.append(resident / MIB)
        kept.proportional.append(proportional / MIB)
        kept.processor.append((_processor_seconds(replica.pid) - spent[replica]) / elapsed * 3600)
        kept.queries.append(said[replica.instance] / elapsed)
        kept.connections.append(float(most[replica.instance]))


def _statements(log: Path, start: int) -> Counter[str]:
    """Statements by instance, from the server's log."""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    return Counter(re.findall(r"billing \w+ (\S+) LOG: +(?:statement|execute)", text))


def _connections(connection: psycopg.Connection[tuple[object, ...]]) -> Counter[str]:
    rows = connection.execute(
        "select split_part(application_name, ' ', 3), count(*) from pg_stat_activity"
        " where application_name like 'billing %' group by 1"
    ).fetchall()
    return Counter({str(name): int(str(number)) for name, number in rows})


def _processor_seconds(pid: int) -> float:
    """Of the process, user and system."""
    words = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> tuple[int, int]:
    """Resident bytes, and those with shared pages counted in parts."""
    kib = dict(re.findall(r"^(Rss|Pss): +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8"), re.MULTILINE))
    return int(kib["Rss"]) * 1024, int(kib["Pss"]) * 1024


def _image() -> list[Figure]:
    """The newest that buildah has built here, if it has one."""
    if shutil.which("buildah") is None:
        print("  image size left out: no buildah here")
        return []
    command = ["buildah", "images", "--json", "--filter", f"reference={IMAGE}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    images = json.loads(done.stdout or "[]") if done.returncode == 0 else []
    if not images:
        print(f"  image size left out: buildah has no {IMAGE}")
        return []
    newest = max(images, key=lambda image: image["created"])
    number, unit = newest["size"].split()
    return [Figure(f"image {newest['names'][0].rpartition('/')[2]}", unit, (float(number),))]
