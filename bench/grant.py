"""How fast the server itself hands over a lock: what no failover can beat."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Final

import psycopg

from tests.support.waiting import eventually

KEY: Final = 17
#: The session that holds the lock, in a process without anything of the controller.
_HOLDER: Final = """
import sys, psycopg
connection = psycopg.connect(sys.argv[1], autocommit=True)
connection.execute("select pg_advisory_lock(%s)", [int(sys.argv[2])])
print("held", flush=True)
sys.stdin.read()
"""
_WAIT: Final = "select clock_timestamp() from pg_advisory_lock(%s)"
_WAITS: Final = "select from pg_locks where locktype = 'advisory' and not granted and objid = %s"


def grant_seconds(url: str) -> float:
    """Seconds from `kill -9` of a process that holds an advisory lock to the grant in a session that waits for it.

    Raises:
        SystemExit: the process did not take the lock.
    """
    with psycopg.connect(url, autocommit=True) as observer, psycopg.connect(url, autocommit=True) as waiter:
        command = [sys.executable, "-c", _HOLDER, url, str(KEY)]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with holder, ThreadPoolExecutor(1) as pool:
            try:
                if holder.stdout is None or holder.stdout.readline() != "held\n":
                    raise SystemExit("the process that holds the lock did not start")
                granted = pool.submit(lambda: waiter.execute(_WAIT, [KEY]).fetchall())
                eventually(lambda: observer.execute(_WAITS, [KEY]).fetchone() is not None, "a session waits")
            finally:
                killed_at = datetime.now(UTC)
                holder.kill()
            ((granted_at,),) = granted.result()
    seconds: float = (granted_at - killed_at).total_seconds()
    return seconds
