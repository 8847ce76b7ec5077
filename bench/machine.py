"""Where and with what a run was made: it belongs to every figure."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psycopg

import controller
from controller.demo.server import Server

ROOT: Final = Path(__file__).parents[1]

#: Settings that say how durable and how large the server is.
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


def describe(server: Server) -> dict[str, str]:
    """The machine, the versions, the server's settings, the date."""
    with psycopg.connect(server.url()) as connection:
        settings = connection.execute(
            "select string_agg(name || '=' || current_setting(name), ' ' order by place)"
            " from unnest(%s::text[]) with ordinality as s (name, place)",
            [list(SHOWN)],
        ).fetchone()
        version = connection.execute("select current_setting('server_version')").fetchone()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{os.cpu_count()} cores ({_processor()}), {_memory()}, {platform.system()} {platform.release()}",
        "versions": f"PostgreSQL {version[0] if version else '?'}, Python {platform.python_version()},"
        f" psycopg {psycopg.__version__}, controller {controller.__version__} {_commit()}",
        "settings": str(settings[0]) if settings else "",
    }


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


def _commit() -> str:
    """The checked-out commit, `+` when files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short", "HEAD")
    return (
        f"({commit}{'+' if git('status', '--porcelain', 'controller', 'migrations', 'bench') else ''})"
        if commit
        else ""
    )
