"""Writes migrations/schema.sql, which shows the result of all migrations: `make schema`.

`pg_dump` dumps a sample database before and after the migrations. The objects that only the second dump has are ours.
The text is the same on every supported PostgreSQL, so that a test on any of them can compare it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import psycopg

from controller.demo.sample import create_schema
from controller.demo.server import Installation
from tests.support.servers import Server, prepare_template, temporary_database

FILE: Final = Path(__file__).parents[2] / "migrations" / "schema.sql"
HEADER: Final = """\
-- The controller's own tables, functions and indexes after all migrations. Written by `make schema`; never applied.

"""
_NAME: Final = re.compile(r"^--\n-- Name: .*\n--\n\n", re.MULTILINE)
#: Headings, session settings, and the default options of sequences.
_NOISE: Final = re.compile(
    rf"{_NAME.pattern}|^SET .*;\n|\n    (START WITH 1|INCREMENT BY 1|NO MINVALUE|NO MAXVALUE|CACHE 1)(?=[\n;])",
    re.MULTILINE,
)
_VIEW: Final = re.compile(r"^CREATE (?:MATERIALIZED )?VIEW .*?;$", re.MULTILINE | re.DOTALL)
_FROM: Final = re.compile(r"^ +FROM (?:\w+(?:\([^()]*\))? )?(\w+)(?:\([^()]*\))?;?$", re.MULTILINE)


def current(server: Server) -> str:
    """The text that migrations/schema.sql should have."""
    with temporary_database(server) as before, temporary_database(server) as after:
        with psycopg.connect(before, autocommit=True) as connection:
            create_schema(connection)
        prepare_template(after)
        with tempfile.TemporaryDirectory() as folder:
            return HEADER + normalized(_added(server.installation, before, after, Path(folder)))


def _added(installation: Installation, before: str, after: str, folder: Path) -> str:
    applications = {_identity(line) for line in _contents(installation, before, folder / "before")}
    ours = [line for line in _contents(installation, after, folder / "after") if _identity(line) not in applications]
    (folder / "list").write_text("\n".join(ours), "utf-8")
    return _run(
        installation, "pg_restore", "--no-owner", "--use-list", folder / "list", "--file", "-", folder / "after"
    )


def _contents(installation: Installation, url: str, archive: Path) -> list[str]:
    """Dumps a database to an archive and returns the archive's table of contents."""
    _run(installation, "pg_dump", "--schema-only", "--no-privileges", "--format", "custom", "--file", archive, url)
    lines = _run(installation, "pg_restore", "--list", archive).splitlines()
    return [line for line in lines if line and not line.startswith(";")]


def _identity(line: str) -> str:
    """An entry of a table of contents without its numbers: type, schema, name, owner."""
    return line.split(maxsplit=3)[3]


def _run(installation: Installation, program: str, *arguments: str | Path) -> str:
    command = [installation.program(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def normalized(dump: str) -> str:
    """A dump without the parts that differ between versions, and without uninformative ones."""
    first = _NAME.search(dump)
    objects = dump[first.start() :].partition("--\n-- PostgreSQL database dump complete")[0] if first else ""
    objects = _NOISE.sub("", objects).replace("public.", "")
    return re.sub(r"\n{3,}", "\n\n", _VIEW.sub(lambda view: _unqualified(view[0]), objects)).strip() + "\n"


def _unqualified(view: str) -> str:
    """Before version 16, columns of a view on a single source were qualified with its name."""
    source = _FROM.search(view)
    return re.sub(rf"\b{source[1]}\.", "", view) if source and view.count("\n   FROM ") == 1 else view


if __name__ == "__main__":
    with Server() as running:
        FILE.write_text(current(running), "utf-8")
    from tests.support import uninstall

    uninstall.write()
