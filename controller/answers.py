"""Commands that answer questions about billing. They only read."""

import csv
import io
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Final
from uuid import UUID

import psycopg
import typer

from controller import log, output, report, sql, terminal
from controller.app import Application, instance_id
from controller.billing.answers import explain as explanation
from controller.billing.answers import find, read_debts, read_lost_debts, read_run, read_runway, with_names
from controller.billing.audit import audit as check_invariants
from controller.billing.statement import read_statement
from controller.billing.status import Status
from controller.billing.values import Pricing
from controller.billing.verdict import Level, verdict
from controller.commands import AsJson, application
from controller.doctor import examine
from controller.doctor.findings import failed, lines
from controller.errors import DatabaseUnreachableError, one_line
from controller.postgres import migrations

WATCH_SECONDS: Final = 2.0

OlderThan = Annotated[
    str | None, typer.Option(help="Show only debts that are older than this: 90m, 24h or 7d.", metavar="AGE")
]

app = typer.Typer(rich_markup_mode=None)


@app.command()
def status(
    as_json: AsJson = False,
    check: Annotated[
        bool, typer.Option("--check", help="Print only the verdict; exit status 1 unless it is OK.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat every two seconds, until Ctrl-C.")] = False,
) -> None:
    """Shows whether customers are being billed, who leads, and when the next cycle starts."""
    read = application().status
    if watch:
        watch_status(read, lambda shown: _show_status(shown, as_json=as_json, check=check), time.sleep)
        return
    shown = read()
    _show_status(shown, as_json=as_json, check=check)
    raise typer.Exit(1 if check and verdict(shown).level is not Level.OK else 0)


def watch_status(read: Callable[[], Status], show: Callable[[Status], None], wait: Callable[[float], None]) -> None:
    """Shows the status until Ctrl-C. While the database can't be reached, it says so and tries again."""
    try:
        while True:
            try:
                shown = read()
            except (DatabaseUnreachableError, psycopg.OperationalError) as error:
                output.line(f"DOWN: {one_line(error)}")
            else:
                output.clear()
                show(shown)
            wait(WATCH_SECONDS)
    except KeyboardInterrupt:
        return


def _show_status(shown: Status, *, as_json: bool, check: bool) -> None:
    judged = verdict(shown)
    if as_json:
        output.json_line({"verdict": judged.level, "reasons": judged.reasons, **({} if check else shown.as_dict())})
    elif check:
        output.line(judged.line)
    else:
        _print(report.status(shown))


@app.command()
def debts(
    organization: Annotated[
        str | None, typer.Argument(help="Show only this organization: its id or slug.", show_default=False)
    ] = None,
    older_than: OlderThan = None,
    lost: Annotated[
        bool, typer.Option("--lost", help="Show debts that ended because their instance or organization was deleted.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Lists what instances owe, and whether the wallet can pay the oldest hour. Exit status 1 if there are debts."""
    age = parse_age(older_than) if older_than else None
    with _database() as (connection, _):
        wanted = organization_id(connection, organization, lost=lost)
        rows = (read_lost_debts if lost else read_debts)(connection, wanted, age)
    if as_json:
        output.json_line(rows)
    else:
        _print(report.lost_debts(rows) if lost else report.debts(rows))
    raise typer.Exit(1 if rows else 0)


def organization_id(connection: sql.Connection, name: str | None, *, lost: bool = False) -> UUID | None:
    """Returns the id of the organization with this id or slug. With `lost`, an id may be a deleted organization's."""
    if name is None:
        return None
    if lost:
        with suppress(ValueError):
            return UUID(name)
    return find(connection, name, organizations_only=True).organization_id


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="An organization or instance: its id, slug or label.", metavar="NAME")],
    as_json: AsJson = False,
) -> None:
    """Explains why an organization or an instance was or was not charged, and what the next cycle will do."""
    with _database() as (connection, pricing):
        explained = explanation(connection, find(connection, name), pricing)
    if as_json:
        output.json_line(explained.as_dict())
    else:
        _print(report.explanation(explained))


@app.command()
def statement(
    organization: Annotated[str, typer.Argument(help="An organization's id or slug.")],
    from_time: Annotated[
        str, typer.Option("--from", help="A date, a time in UTC, today or yesterday.", metavar="TIME")
    ],
    to_time: Annotated[
        str | None, typer.Option("--to", help="The end, which is not included.", show_default="now", metavar="TIME")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Prints an organization's balances, top-ups and charges. Exit status 1 if they don't add up."""
    if as_csv and as_json:
        raise typer.BadParameter("choose one of --csv and --json")
    with _database() as (connection, _):
        wanted = find(connection, organization, organizations_only=True)
        shown = read_statement(connection, wanted, from_time, to_time)
    if as_json:
        output.json_line(shown.as_dict())
    elif as_csv:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(report.statement_rows(shown))
        for row in text.getvalue().splitlines():
            terminal.write(terminal.printable(row))
    else:
        _print(report.statement(shown))
    raise typer.Exit(1 if shown.difference else 0)


@app.command()
def runway(
    organization: Annotated[
        str | None, typer.Argument(help="Show only this organization: its id or slug.", show_default=False)
    ] = None,
    within: Annotated[
        str | None, typer.Option(help="Show only wallets that last less than this: 24h or 7d.", metavar="AGE")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimates how long each wallet lasts: its balance divided by the sum of its instances' prices."""
    age = parse_age(within, "--within") if within else None
    with _database() as (connection, pricing):
        rows = read_runway(connection, organization_id(connection, organization), age, pricing)
    if as_json:
        output.json_line(rows)
    else:
        _print(report.runway(rows))


@app.command()
def history(
    run: Annotated[
        int | None, typer.Argument(min=1, help="Show this run, with its failures.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    limit: Annotated[int, typer.Option(min=1, max=10000, help="Number of cycles.")] = 20,
) -> None:
    """Lists the newest cycles, or shows one of them."""
    built = application()
    if run is None:
        output.history(built.history(limit), as_json=as_json)
        return
    with _database(built) as (connection, _):
        shown, failures = read_run(connection, run)
    shown["error"] = built.redact(shown["error"]) if shown["error"] else None
    if as_json:
        output.json_line({**shown, "failed": failures})
    else:
        _print(report.run(shown, failures))


@app.command()
def audit(
    organization: Annotated[
        str | None, typer.Option(help="Check only this organization: its id or slug.", metavar="ORG")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Checks every billing invariant. Exit status 1 if one is violated."""
    with _database() as (connection, _):
        checked = with_names(connection, check_invariants(connection, organization_id(connection, organization)))
    output.audit(checked, as_json=as_json)
    raise typer.Exit(0 if checked.clean else 1)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Checks everything that billing depends on, and says how to fix it. Exit status 1 if there is a failure."""
    log.configure("error", None, instance_id(), list, sys.stderr)
    found = examine()
    if as_json:
        output.json_line({"ok": not failed(found), "findings": [asdict(finding) for finding in found]})
    else:
        _print(lines(found))
    raise typer.Exit(1 if failed(found) else 0)


def parse_age(text: str, option: str = "--older-than") -> timedelta:
    """Reads an age such as 90m, 24h or 7d.

    Raises:
        typer.BadParameter: the text is not an age.
    """
    match = re.fullmatch(r"(\d{1,6})([mhd])", text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a number with m, h or d, such as 24h", param_hint=option)
    unit = {"m": "minutes", "h": "hours", "d": "days"}[match[2]]
    return timedelta(**{unit: int(match[1])})


@contextmanager
def _database(built: Application | None = None) -> Iterator[tuple[sql.Connection, Pricing]]:
    built = built or application()
    with built.connect() as connection:
        migrations.check(connection)
        yield connection, built.pricing


def _print(lines: Iterable[str]) -> None:
    for text in lines:
        output.line(text)
