"""Where a measurement was made: date, machine, versions and server settings."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psycopg

import controller
from tests.support.servers import Server

ROOT: Final = Path(__file__).parents[1]

#: The settings that decide how durable the server is and how much it caches.
SHOWN: Final = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_compression",
    "autovacuum",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
)


def describe(servers: Sequence[Server]) -> dict[str, str]:
    """Date, machine, versions and server settings, one text each. All servers have the same settings."""
    versions = []
    for server in servers:
        with psycopg.connect(server.url()) as connection:
            settings = connection.execute(
                "select string_agg(name || '=' || current_setting(name), ' ' order by position)"
                " from unnest(%s::text[]) with ordinality as shown (name, position)",
                [list(SHOWN)],
            ).fetchone()
            version = connection.execute("select current_setting('server_version')").fetchone()
            versions.append(f"PostgreSQL {version[0] if version else '?'}")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{os.cpu_count()} cores ({_processor()}), {_memory()}, {platform.system()} {platform.release()}",
        "versions": f"{', '.join(versions)}, Python {platform.python_version()},"
        f" psycopg {psycopg.__version__}, controller {controller.__version__} ({commit(ROOT) or 'not in git'})",
        "settings": str(settings[0]) if settings else "",
    }


def commit(checkout: Path) -> str:
    """The short hash of the checked-out commit, with `+` if measured files differ from it; empty outside of git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "controller", "migrations", "bench/*.py", "bench/*.sql")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "memory unknown"
    return f"{size / 2**30:.0f} GiB"
