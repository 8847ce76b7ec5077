"""What an idle leader and an idle standby cost. Real processes, probed as often as the kubelet probes them."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg

from bench.measurement import Aim, Measurement, Section
from bench.server import LogTail, changed_settings
from controller.demo.process import ControllerProcess
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import terminate
from tests.support.servers import Server, migrated_database
from tests.support.sessions import wait_until_standing_by

MIB: Final = 2**20
MEMORY_AIM: Final = Aim(80.0, judged_by="worst")
#: A standby waits for the lock for 0.9 s at a time, and each wait is a transaction.
TRANSACTIONS_AIM: Final = Aim(1.2)
#: How a transaction shows in the server's log. Each statement of the elector is a separate transaction, and so is the
#: first statement of any other session. Every later transaction has a COMMIT or a ROLLBACK.
_TRANSACTION: Final = re.compile(
    r"billing (?:elector (\S+) LOG: +(?:statement|execute)"
    r"|\w+ (\S+) LOG: +(?:statement: (?:COMMIT|ROLLBACK)|(?:statement|execute [^:]*): select pg_backend_pid))"
)
READY_AIM: Final = Aim(2.0, judged_by="worst")
#: Seconds between probes, as in the chart.
PROBES: Final = {"/livez": 10.0, "/readyz": 5.0}
READY_POLL_SECONDS: Final = 0.02
READY_TIMEOUT_SECONDS: Final = 30.0
CONNECTIONS_POLL_SECONDS: Final = 0.25


@dataclass
class RoleSamples:
    """One value per window, for a leader or a standby.

    Attributes:
        resident: MiB.
        proportional: MiB, with each shared page divided among the processes that map it.
        processor: seconds of CPU time per hour.
        transactions: per second.
        connections: the most at once.
    """

    resident: list[float] = field(default_factory=list)
    proportional: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    transactions: list[float] = field(default_factory=list)
    connections: list[float] = field(default_factory=list)

    def measurements(self, role: str) -> list[Measurement]:
        return [
            Measurement(f"{role}: resident memory", "MiB", tuple(self.resident), MEMORY_AIM),
            Measurement(f"{role}: proportional memory (PSS)", "MiB", tuple(self.proportional), MEMORY_AIM),
            Measurement(f"{role}: CPU time", "s per hour", tuple(self.processor)),
            Measurement(f"{role}: transactions", "per second", tuple(self.transactions), TRANSACTIONS_AIM),
            Measurement(f"{role}: most connections at once", "", tuple(self.connections)),
        ]


def idle(server: Server, rounds: int, window_seconds: float) -> Section:
    """Measures a leader and its standby side by side in each window, after the leader's first cycle.

    Raises:
        SystemExit: this is not Linux (memory and CPU time come from /proc), or a process did not become Ready.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        raise SystemExit("the idle suite reads Linux's /proc: run it on Linux")
    ready: list[float] = []
    leading, standing_by = RoleSamples(), RoleSamples()
    with (
        migrated_database(server) as url,
        psycopg.connect(url, autocommit=True) as connection,
        ExitStack() as stack,
    ):
        ledger = LedgerProbe(connection)
        ledger.add()
        for _ in range(rounds):
            with _started(url) as (replica, seconds, _port):
                ready.append(seconds)
                terminate(replica)
        leader, _, leader_port = stack.enter_context(_started(url))
        leader.wait_for("leader.elected")
        standby, _, standby_port = stack.enter_context(_started(url))
        wait_until_standing_by(ledger, standby)
        for port in (leader_port, standby_port):
            stack.enter_context(_probed(port))
        for number in range(rounds + 1):  # the first window is the warm-up
            samples = (leading, standing_by) if number else (RoleSamples(), RoleSamples())
            _window(server, connection, dict(zip((leader, standby), samples, strict=True)), window_seconds)
            print(f"  window {number}" if number else "  warm-up", flush=True)
    return Section(
        "idle",
        "Idle replicas",
        f"A leader and a standby with default settings and nothing due, in {rounds} windows of {window_seconds:g} s."
        f" /livez is probed every {PROBES['/livez']:g} s and /readyz every {PROBES['/readyz']:g} s. Transactions"
        " are counted by session in the server's log. The time to Ready runs from exec to the first 200 from /readyz.",
        (
            *leading.measurements("leader"),
            *standing_by.measurements("standby"),
            Measurement("exec to Ready", "s", tuple(ready), READY_AIM),
        ),
    )


@contextmanager
def _started(url: str) -> Iterator[tuple[ControllerProcess, float, int]]:
    """A replica that is Ready, the seconds that took, and its HTTP port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    began = time.monotonic()
    replica = ControllerProcess(url, BILLING_HTTP_ADDRESS=f"127.0.0.1:{port}")
    try:
        never = threading.Event()
        while _status(port, "/readyz") != 200:  # noqa: PLR2004 - HTTP's OK
            if time.monotonic() - began > READY_TIMEOUT_SECONDS:
                raise SystemExit(f"not Ready within {READY_TIMEOUT_SECONDS:g} s:\n{replica.tail()}")
            never.wait(READY_POLL_SECONDS)
        yield replica, time.monotonic() - began, port
    finally:
        replica.remove()


def _status(port: int, path: str) -> int | None:
    """The status code, or None without an answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@contextmanager
def _probed(port: int) -> Iterator[None]:
    """Probes a replica for the length of the block."""
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
    server: Server, connection: psycopg.Connection[Any], roles: dict[ControllerProcess, RoleSamples], seconds: float
) -> None:
    """Adds one value to each list of samples."""
    most: Counter[str] = Counter()
    with changed_settings(server, {"log_statement": "all"}):
        log = LogTail(server)
        began = time.monotonic()
        processor_before = {replica: _processor_seconds(replica.pid) for replica in roles}
        never = threading.Event()
        while time.monotonic() - began < seconds:
            most |= _connections(connection)
            never.wait(CONNECTIONS_POLL_SECONDS)
        elapsed = time.monotonic() - began
        transactions = Counter(elector or other for elector, other in _TRANSACTION.findall(log.read()))
    for replica, samples in roles.items():
        resident, proportional = _memory_bytes(replica.pid)
        processor = _processor_seconds(replica.pid) - processor_before[replica]
        samples.resident.append(resident / MIB)
        samples.proportional.append(proportional / MIB)
        samples.processor.append(processor / elapsed * 3600)
        samples.transactions.append(transactions[replica.instance] / elapsed)
        samples.connections.append(float(most[replica.instance]))


def _connections(connection: psycopg.Connection[Any]) -> Counter[str]:
    """Open connections by instance."""
    rows = connection.execute(
        "select split_part(application_name, ' ', 3), count(*) from pg_stat_activity"
        " where application_name like 'billing %' group by 1"
    ).fetchall()
    return Counter(dict(rows))


def _processor_seconds(pid: int) -> float:
    """User and system time since the process started."""
    words = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _memory_bytes(pid: int) -> tuple[int, int]:
    """Resident and proportional set size."""
    kib = dict(re.findall(r"^(Rss|Pss): +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8"), re.MULTILINE))
    return int(kib["Rss"]) * 1024, int(kib["Pss"]) * 1024
